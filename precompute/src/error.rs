//! Why stage one stopped.

use crate::scans::ScanError;
use std::path::PathBuf;

/// Result of stage one.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why stage one stopped; the messages name the file and say what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is out of range, or does not go with another.
    #[error("{0}")]
    Setting(#[from] sam_ladder_schemas::setting::SettingError),
    /// Settings that do not go together.
    #[error("{0}")]
    Config(String),
    /// The folder of scans as a whole cannot be used.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// A file, such as the checkpoint, cannot be read or written.
    #[error(transparent)]
    File(#[from] sam_ladder_formats::Error),
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] sam_ladder_cache::Error),
    /// A tensor operation failed.
    #[error("the encoder failed: {0}")]
    Encoder(#[from] candle_core::Error),
    /// The encoder cannot be made of these weights, or cannot take these images.
    #[error(transparent)]
    Sam(#[from] crate::encoder::EncoderError),
    /// The encoder answered with the wrong number of values.
    #[error("the encoder gave {found} values for {batch} images, expected {expected}")]
    EncoderShape {
        /// Images that it was given.
        batch: usize,
        /// Values that it should have given.
        expected: usize,
        /// Values that it gave.
        found: usize,
    },
    /// A file that is neither a scan nor part of the store.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Writing stopped half-way.
    #[error("{source}; {done} of {total} slices are finished and kept in {}: {advice}", store.display())]
    Interrupted {
        /// Why.
        source: Box<Error>,
        /// The store.
        store: PathBuf,
        /// Slices that are finished.
        done: usize,
        /// Slices that the store will have.
        total: usize,
        /// What to do.
        advice: &'static str,
    },
    /// Someone asked to stop.
    #[error(
        "stopped as asked; {done} of {total} slices are finished and kept in {}: run the same command again to continue",
        store.display()
    )]
    Stopped {
        /// The store.
        store: PathBuf,
        /// Slices that are finished.
        done: usize,
        /// Slices that the store will have.
        total: usize,
    },
    /// Some scans cannot be used; the others are in the store.
    #[error(
        "{} of {total} scans cannot be used: {}; the others are finished and kept in {}, which stays incomplete: \
         put good copies of these files in place and run the same command again",
        bad.len(),
        bad.iter().map(|(case, reason)| format!("case {case}: {reason}")).collect::<Vec<_>>().join("; "),
        store.display()
    )]
    BadScans {
        /// Case and reason of each.
        bad: Vec<(String, String)>,
        /// Scans of the source.
        total: usize,
        /// The store.
        store: PathBuf,
    },
}
