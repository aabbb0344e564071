//! What can go wrong with a file: what happened, where, and a hint that says what to do.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Result of reading or writing a file.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system returned an error.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The attempted action: `write`, `read`, `create`…
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The bytes are not what the file should hold.
    #[error("{}: not a readable {format} file: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// NIfTI, NRRD, MetaImage, npz, HDF5, Parquet, PyTorch, safetensors, or several of them.
        format: &'static str,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// A table of someone's can be read, but something in it is wrong or missing.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and in which line.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// The file ends before its data does.
    #[error("{}: truncated: its header promises {expected} bytes of voxels, found {found}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that the header promises.
        expected: u64,
        /// Bytes that are there, at most.
        found: u64,
    },
    /// A link or pointer file of git-annex or Git LFS whose content is not on this machine.
    #[error("{}: only {manager}'s pointer is here, not the file's content", path.display())]
    NotFetched {
        /// The file.
        path: PathBuf,
        /// DataLad, git-annex or Git LFS.
        manager: &'static str,
        /// The command that fetches the content.
        command: String,
    },
    /// A link to something that is not there.
    #[error("{} is a link to {}, which is not there", path.display(), target.display())]
    Dangling {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A number type that is not real, or not supported.
    #[error("{}: values of type {found} are not supported", path.display())]
    NumberType {
        /// The file.
        path: PathBuf,
        /// The type's name or code.
        found: String,
    },
    /// The number of voxels does not match the shape.
    #[error("cannot write {}: shape {shape:?} needs {expected} voxels, got {found}", path.display())]
    Voxels {
        /// The file.
        path: PathBuf,
        /// `[d, h, w]`.
        shape: [usize; 3],
        /// Product of `shape`.
        expected: usize,
        /// Voxels given.
        found: usize,
    },
    /// Something is in the way of an output.
    #[error("{} exists", path.display())]
    Exists {
        /// The file or folder.
        path: PathBuf,
    },
    /// What is in the way of an output was not made by the same command.
    #[error("{} is not {what}, and is not replaced", path.display())]
    Foreign {
        /// The file or folder.
        path: PathBuf,
        /// What the command replaces.
        what: &'static str,
    },
    /// What is in the way of an output was made by the same command, but someone has changed it since.
    #[error("{} has been changed since sam-ladder wrote it, and is not replaced", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Another process writes the folder.
    #[error("{} is being written by another process", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The columns of a table are not those of its rows.
    #[error("the table {} {}", path.display(), problems.join(", "))]
    Columns {
        /// The file.
        path: PathBuf,
        /// Each column that is missing, unknown or of another type, in words.
        problems: Vec<String>,
    },
    /// Rows cannot be made into a table, or a table's cells into rows.
    #[error("cannot {action} the rows of {}: {reason}", path.display())]
    Rows {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The library's message.
        reason: String,
    },
    /// The checkpoint lacks a required tensor.
    #[cfg(feature = "state-dict")]
    #[error("{}: the key {key} is missing (expected a tensor of shape {expected})", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        key: String,
        /// The shape that it should have.
        expected: String,
    },
    /// The checkpoint has a required tensor, but not as one that is read.
    #[cfg(feature = "state-dict")]
    #[error("{}: {key} is there, but not as a plain tensor: it is quantised, sparse or without data", path.display())]
    UnreadTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        key: String,
    },
    /// A tensor has another shape than expected.
    #[cfg(feature = "state-dict")]
    #[error("{}: {key} has shape {found:?}, expected {expected:?}", path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        key: String,
        /// The expected shape.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor could not be made on the device, or be read from it.
    #[cfg(feature = "state-dict")]
    // Without the backtrace that candle appends where RUST_BACKTRACE is set.
    #[error("{}: {key}: {}", path.display(), source.to_string().lines().next().unwrap_or_default())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        key: String,
        /// Candle's reason.
        source: candle_core::Error,
    },
}

impl Error {
    /// An [`Error::Io`], for `map_err`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// Whether the disk is full or over its quota: once there is space, the same command continues.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Error::Io { source, .. } if is_full(source))
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Io { source, .. } => return io_hint(source),
            Error::Format { advice, .. } | Error::Content { advice, .. } => (*advice).into(),
            Error::Truncated { .. } => COPY_AGAIN.into(),
            Error::NotFetched { command, .. } => format!("fetch it with `{command}`"),
            Error::Dangling { .. } => "put the file there, or correct the link".into(),
            Error::Exists { .. } => "replace it with --force, or choose another --out".into(),
            Error::Foreign { .. } | Error::Changed { .. } => "move it away, or choose another --out".into(),
            Error::InUse { .. } => "wait until that process has ended, or choose another --out".into(),
            Error::NumberType { .. } => "save one real number per voxel, of an integer or floating-point type".into(),
            Error::Voxels { .. } | Error::Rows { action: "write", .. } => "this is a bug in the program; please report it".into(),
            Error::Columns { .. } | Error::Rows { .. } => "put back the table that this program wrote, or make it again".into(),
            #[cfg(feature = "state-dict")]
            Error::MissingTensor { .. } | Error::TensorShape { .. } => "pass a checkpoint of the requested model".into(),
            #[cfg(feature = "state-dict")]
            Error::UnreadTensor { .. } => "save its tensors as dense float32".into(),
            #[cfg(feature = "state-dict")]
            Error::Tensor { .. } => return None,
        })
    }
}

/// What to do about an error of the file system.
pub fn io_hint(error: &io::Error) -> Option<String> {
    let hint = match error.kind() {
        _ if is_full(error) => "free space on the disk, then run the same command again",
        ErrorKind::FileTooLarge => "raise the limit on the size of a file (ulimit -f), or choose another file system",
        ErrorKind::NotFound => "check that it exists and that its name is right",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "check that you may access it",
        ErrorKind::NotADirectory => "name a folder",
        ErrorKind::IsADirectory => "name a file",
        _ => return None,
    };
    Some(hint.into())
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::QuotaExceeded | ErrorKind::StorageFull)
}

#[cfg(feature = "state-dict")]
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        candle_core::Error::wrap(error)
    }
}

/// What to do about a file that is cut off or damaged.
const COPY_AGAIN: &str = "the file is truncated or damaged: copy or download it again";

/// What is wrong with a file's content, found where the file's name is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    what: String,
    advice: &'static str,
}

impl Problem {
    /// A problem that another copy of the file would not solve.
    pub(crate) fn with_advice(what: impl Into<String>, advice: &'static str) -> Self {
        Problem { what: what.into(), advice }
    }

    /// The same of one part of the file.
    #[cfg(feature = "state-dict")]
    pub(crate) fn of(self, part: &str) -> Self {
        Problem { what: format!("{part}: {}", self.what), ..self }
    }

    /// The problem of a file that can be read.
    pub(crate) fn in_content_of(self, path: &Path) -> Error {
        Error::Content { path: path.into(), problem: self.what, advice: self.advice }
    }

    pub(crate) fn in_file(self, path: &Path, format: &'static str) -> Error {
        Error::Format { path: path.into(), format, problem: self.what, advice: self.advice }
    }
}

impl<T: Into<String>> From<T> for Problem {
    fn from(what: T) -> Self {
        Problem::with_advice(what, COPY_AGAIN)
    }
}
