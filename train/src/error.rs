//! The one error type of the crate: each message is one line that says what was expected, what was found and what to do.

use std::path::{Path, PathBuf};

/// Why a run, a prediction or an export stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The operating system refused to read or write a file.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The store could not be read, or a table not written.
    #[error(transparent)]
    Store(#[from] sam_ladder_cache::Error),
    /// A weights file could not be read.
    #[error(transparent)]
    Weights(#[from] sam_ladder_ops::state_dict::StateDictError),
    /// Weights and model do not fit together.
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    /// A tensor operation failed: shapes, or the device's memory.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A setting is unknown, of another type or out of range.
    #[error("{0}")]
    BadSetting(#[from] sam_ladder_schemas::setting::SettingError),
    /// A sweep's file cannot be used.
    #[error("{0}")]
    SweepFile(#[from] sam_ladder_schemas::setting::FileError),
    /// A setting does not go with the store, the device or another setting.
    #[error("{0}")]
    Setting(String),
    /// Something else is asked for than the inputs can give.
    #[error("{0}")]
    Input(String),
    /// The run directory exists already.
    #[error("{0} exists and is not empty: continue it with --resume, or choose another --run")]
    RunExists(PathBuf),
    /// A setting or an input differs from those that the run was started with.
    #[error("{run}: cannot resume, {what} differs: the run has {stored}, this call has {given}; {advice}")]
    ResumeMismatch {
        /// The run directory.
        run: PathBuf,
        /// Name of the setting or input.
        what: String,
        /// Value of the run.
        stored: String,
        /// Value of this call.
        given: String,
        /// What to do.
        advice: &'static str,
    },
    /// A file of the run directory is damaged or missing.
    #[error("{path}: {reason}")]
    RunDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Someone asked to stop.
    #[error(
        "stopped as asked after step {steps}, which is in the checkpoint: continue with `sam-ladder train --resume --run {run}`"
    )]
    Stopped {
        /// The run directory.
        run: PathBuf,
        /// Steps that the checkpoint has behind it.
        steps: u64,
    },
    /// Someone asked a sweep to stop.
    #[error("stopped as asked, the trials under way are saved: continue with `sam-ladder sweep --resume --out {out}`")]
    SweepStopped {
        /// The sweep's folder.
        out: PathBuf,
    },
    /// The loss, or a weight, is not finite any more.
    #[error(
        "training diverged at step {step}: {what} is {value} with learning rate {lr:e}; the last good checkpoint is step {checkpoint_step} in {checkpoint}, start anew with a lower --lr"
    )]
    Diverged {
        /// Optimizer step, from 0.
        step: u64,
        /// What is not finite.
        what: String,
        /// Its value.
        value: f32,
        /// Learning rate of the step.
        lr: f64,
        /// Steps that the last checkpoint has behind it.
        checkpoint_step: u64,
        /// The last checkpoint.
        checkpoint: PathBuf,
    },
}

/// Result with a [`TrainError`].
pub type Result<T> = std::result::Result<T, TrainError>;

/// Turns an [`std::io::Error`] into a [`TrainError`] that names `path`.
pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> TrainError + '_ {
    move |source| TrainError::Io { path: path.to_path_buf(), source }
}
