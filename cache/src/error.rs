//! What can go wrong with a store. Every message names the file, or the array, slice and variant; the hint says what to do.

use std::path::PathBuf;

/// Result of every operation on a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a store could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written, in a folder or in a bucket.
    #[error(transparent)]
    File(#[from] sam_ladder_formats::Error),
    /// There is no store at the path.
    #[error("{} is not a sam-ladder store: {reason}", path.display())]
    NotAStore {
        /// The path.
        path: PathBuf,
        /// What is missing there.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// The store was written by another version of the layout.
    #[error("{} has format version {found}, but this program reads version {expected}", path.display())]
    FormatVersion {
        /// The store.
        path: PathBuf,
        /// Its version, as JSON.
        found: String,
        /// Ours.
        expected: u32,
    },
    /// Not every tensor is there.
    #[error("{} is incomplete ({detail})", path.display())]
    Incomplete {
        /// The store.
        path: PathBuf,
        /// How much is there.
        detail: String,
    },
    /// A store for another configuration is in the way.
    #[error("{} was made for another configuration: {differences}", path.display())]
    OtherConfig {
        /// The store.
        path: PathBuf,
        /// Each differing value, the store's and the requested one.
        differences: String,
    },
    /// A manifest or a table does not say what the arrays or the config say.
    #[error("{} is damaged: {reason}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A tensor cannot be read back as it was written.
    #[error("{array} of slice {row} ({place}) is damaged: {reason} in {}", path.display())]
    Damaged {
        /// Path of the array below the store: `train/embeddings`.
        array: String,
        /// Index along the array's slice axis.
        row: usize,
        /// Case, slice and variant in words.
        place: String,
        /// What is wrong.
        reason: String,
        /// The shard's file.
        path: PathBuf,
    },
    /// Both copies of the manifest are damaged, so that nothing tells what the store holds.
    #[error("{} is damaged: {reason}; so is the copy of the manifest", path.display())]
    ManifestLost {
        /// The root group's `zarr.json`.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process extended or repaired the store after it was opened.
    #[error("{} has changed since it was opened: another process extends, repairs or replaces it", path.display())]
    Changed {
        /// The store.
        path: PathBuf,
    },
    /// A file of a store that says it is complete is not there.
    #[error("{} is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A slice, variant or case that the store lacks.
    #[error("{} has no {what}", path.display())]
    Absent {
        /// The store.
        path: PathBuf,
        /// What was requested.
        what: String,
        /// What the store has instead.
        known: String,
    },
    /// Values that the caller gave have the wrong number or range.
    #[error("cannot store {what}: {reason}")]
    Values {
        /// Array, slice and variant.
        what: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// Zarr metadata or encoding failed.
    #[error("zarr array {array}: {reason}")]
    Zarr {
        /// Path of the array below the store.
        array: String,
        /// What the library said.
        reason: String,
    },
}

impl Error {
    /// A [`sam_ladder_formats::Error::Io`], for `map_err`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let error = sam_ladder_formats::Error::io(action, path);
        move |source| error(source).into()
    }

    /// Whether the disk is full or over its quota, so that the same command continues after space was freed.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Error::File(error) if error.is_disk_full())
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        use sam_ladder_formats::Error::Io;
        Some(match self {
            Error::File(Io { source, .. }) if source.get_ref().is_some_and(|inner| inner.is::<Refusal>()) => {
                return source.get_ref()?.downcast_ref::<Refusal>().map(|refusal| refusal.advice.clone());
            }
            Error::File(error) => return error.hint(),
            Error::NotAStore { advice, .. } => (*advice).into(),
            Error::FormatVersion { found, expected, .. } => match found.parse::<u64>() {
                Ok(newer) if newer > u64::from(*expected) => "use a newer version of sam-ladder".into(),
                _ => {
                    "make the store again: run `sam-ladder precompute` with the same scans and settings into a new folder".into()
                }
            },
            Error::ManifestLost { .. } => "run `sam-ladder precompute` into a new folder".into(),
            Error::Changed { .. } => {
                "once the store is complete, resume with the same command; a store with more scans or variants than a run was \
                 started with is another store to that run: start another --run"
                    .into()
            }
            Error::Incomplete { .. } => "run the same `sam-ladder precompute` command again to continue it".into(),
            Error::OtherConfig { .. } => {
                "run `sam-ladder precompute` with another --store, or with the store's settings; to a finished store only scans, \
                 variants and labels at half the image's side (--half-labels) can be added, and none of them left out again"
                    .into()
            }
            Error::Manifest { .. } | Error::Damaged { .. } | Error::Missing { .. } => {
                "repair it with `sam-ladder verify --repair`".into()
            }
            Error::Absent { known, .. } => format!("it has {known}"),
            Error::Values { .. } | Error::Zarr { .. } => return None,
        })
    }
}

/// What a server refused, as the error within an [`std::io::Error`].
#[derive(Debug, Clone, thiserror::Error)]
#[error("{answer}")]
pub(crate) struct Refusal {
    /// Status, code and message of the server, or what the library says instead.
    pub(crate) answer: String,
    /// What to do.
    pub(crate) advice: String,
}
