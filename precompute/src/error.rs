//! Why stage one stopped: what happened and where, and what to do about it.

use crate::disk::in_words;
use crate::encoder::EncoderError;
use crate::scans::ScanError;
use sam_ladder_schemas::counted::counted;
use std::path::PathBuf;

/// Result of stage one.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why stage one stopped. [`Error::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is out of range, or does not go with another.
    #[error("{0}")]
    Setting(#[from] sam_ladder_schemas::setting::SettingError),
    /// The folder of scans as a whole cannot be used.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// A file, such as the checkpoint, cannot be read or written.
    #[error(transparent)]
    File(#[from] sam_ladder_formats::Error),
    /// The store cannot be read or written.
    #[error(transparent)]
    Store(#[from] sam_ladder_cache::Error),
    /// The encoder cannot be made of these weights, or cannot take these images.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// The encoder's weights are a checkpoint's, and no file of them is given.
    #[error("frozen weights come from a checkpoint, but no file is given with {0}")]
    NoCheckpoint(
        /// The option that names it.
        &'static str,
    ),
    /// Random weights and a checkpoint.
    #[error("the encoder's weights are random, but the checkpoint {} is given", .0.display())]
    UnusedCheckpoint(PathBuf),
    /// The encoder could not be loaded before, and is needed again.
    #[error("the encoder could not be loaded")]
    EncoderNotLoaded,
    /// The encoder gave the wrong number of values.
    #[error("the encoder gave {found} values for {batch} images, expected {expected}")]
    EncoderShape {
        /// Images that it was given.
        batch: usize,
        /// Values that it should have given.
        expected: usize,
        /// Values that it gave.
        found: usize,
    },
    /// The decoder's weights have no form as a safetensors file.
    #[error("cannot encode the decoder's weights: {0}")]
    DecoderWeights(#[from] safetensors::SafeTensorError),
    /// An encoder that does not show its tokens.
    #[error("this encoder has no rungs")]
    NoRungs,
    /// A store of new scans whose rungs are those of another run.
    #[error("{0} was begun with another projection of rungs")]
    OtherProjection(PathBuf),
    /// A projection of training tokens, and nothing to train on.
    #[error("the rungs' projection is made of training slices, and these scans have none")]
    NoSample,
    /// A scan that the rungs' projection is made of cannot be read.
    #[error("case {case}, whose slices the rungs' projection is made of, cannot be used: {source}")]
    SampledScan {
        /// The case.
        case: String,
        /// What is wrong with it.
        source: Box<ScanError>,
    },
    /// Tokens of which no projection can be made.
    #[error("the tokens after block {block} have no principal components: not all of them are finite")]
    SampledTokens {
        /// The block, from 0.
        block: usize,
    },
    /// Damage that only the scans can mend.
    #[error("{}: this damage can be repaired only from the scans", .0.display())]
    NeedsScans(PathBuf),
    /// A repair with other scans.
    #[error("{} cannot be repaired from these scans, since it was made from others: {differing}", store.display())]
    OtherScans {
        /// The store.
        store: PathBuf,
        /// Each difference, with both values.
        differing: String,
    },
    /// What is left to write does not fit on the disk.
    #[error("{}: {} are left to write, but only {} are free there", store.display(), in_words(*needed), in_words(*free))]
    NoSpace {
        /// The store.
        store: PathBuf,
        /// Bytes that it will take in addition to those that it has.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// Writing stopped half-way.
    #[error("{source}; {done} of {} finished and kept in {}", counted(*total, "slice"), store.display())]
    Interrupted {
        /// Why.
        source: Box<Error>,
        /// The store.
        store: PathBuf,
        /// Slices that are finished.
        done: usize,
        /// Slices that the store will have.
        total: usize,
    },
    /// Someone wanted to stop.
    #[error("stopped as requested; {done} of {} finished and kept in {}", counted(*total, "slice"), store.display())]
    Stopped {
        /// The store.
        store: PathBuf,
        /// Slices that are finished.
        done: usize,
        /// Slices that the store will have.
        total: usize,
    },
    /// Some of the scans by which a finished store should grow cannot be used.
    #[error(
        "{} of {} cannot be used: {}; {} is unchanged",
        bad.len(),
        counted(*total, "new scan"),
        bad.iter().map(|(case, error)| format!("case {case}: {error}")).collect::<Vec<_>>().join("; "),
        store.display()
    )]
    BadNewScans {
        /// Each case, and what is wrong with it.
        bad: Vec<(String, ScanError)>,
        /// Scans that the store lacks.
        total: usize,
        /// The store.
        store: PathBuf,
    },
    /// Some scans cannot be used; the others are in the store.
    #[error(
        "{} of {} cannot be used: {}; the others are finished and kept in {}, which stays incomplete",
        bad.len(),
        counted(*total, "scan"),
        bad.iter().map(|(case, error)| format!("case {case}: {error}")).collect::<Vec<_>>().join("; "),
        store.display()
    )]
    BadScans {
        /// Each case, and what is wrong with it.
        bad: Vec<(String, ScanError)>,
        /// Scans of the source.
        total: usize,
        /// The store.
        store: PathBuf,
    },
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        EncoderError::from(error).into()
    }
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        const AGAIN: &str = "run the same command again to continue";
        Some(match self {
            Error::Setting(error) => return error.hint(),
            Error::Scan(error) => return error.hint(),
            Error::File(error) => return error.hint(),
            Error::Store(error) => return error.hint(),
            Error::Encoder(error) => return error.hint(),
            Error::NoCheckpoint(option) => format!("pass {option} FILE"),
            Error::UnusedCheckpoint(_) => "leave the checkpoint or --random-encoder out".into(),
            Error::NoSpace { .. } => {
                "free space, choose another --store, or store less: --augment flips, --dtype q8, --preset native224".into()
            }
            Error::NeedsScans(_) => "pass --scans DIR, the folder that the store was made from".into(),
            Error::OtherScans { .. } => "pass the folder of the original scans with --scans".into(),
            Error::Interrupted { source, .. } => match source.hint() {
                // Its own hint says so already.
                Some(hint) if source.is_disk_full() => hint,
                Some(hint) => format!("{hint}; then {AGAIN}"),
                None => AGAIN.into(),
            },
            Error::Stopped { .. } => AGAIN.into(),
            Error::BadScans { .. } | Error::BadNewScans { .. } => {
                "put good copies of these files in place, or move these scans out of the folder; then run the same command again"
                    .into()
            }
            Error::NoSample => "take --rung-projection random or none, or add training scans".into(),
            Error::SampledScan { .. } => {
                "put a good copy of its file in place, or move the scan out of the folder; then run the same command again".into()
            }
            Error::SampledTokens { .. } => "check the checkpoint: the encoder's weights may be damaged".into(),
            Error::OtherProjection(_) => "choose another --store".into(),
            Error::NoRungs | Error::EncoderNotLoaded | Error::EncoderShape { .. } | Error::DecoderWeights(_) => return None,
        })
    }

    fn is_disk_full(&self) -> bool {
        matches!(self, Error::Store(error) if error.is_disk_full())
    }
}
