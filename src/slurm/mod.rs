//! Slurm: scripts of jobs, submitted with `sbatch`, and the queue as `squeue` and `sacct` tell it.
//!
//! A job is the program itself with the arguments that were typed, so what a worker on the cluster does is what the same command
//! does here. Its folder, next to the store or the sweep, holds scripts, logs and `jobs.json`.

mod client;
mod config;
mod folder;
mod queue;
mod script;

pub use config::read_config;
pub use folder::{JobsFolder, Submission};
pub use queue::{TaskState, tasks_of};
pub use script::{Job, Word, typed_words};
