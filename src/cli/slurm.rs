//! `--slurm`, for the commands whose work a cluster can do.

use crate::slurm::{Job, Submission, Word, read_config, typed_words};
use anyhow::Context;
use sam_ladder_schemas::slurm::{JobKind, SlurmConfig};
use std::path::{Path, PathBuf};

/// Flags about submitting.
#[derive(Debug, clap::Args)]
pub struct SlurmArgs {
    /// Submit the work to Slurm instead of doing it here, with the partition, GPUs, time and other options in this file (its keys:
    /// docs/reference/settings.md)
    #[arg(long, value_name = "FILE.toml")]
    slurm: Option<PathBuf>,
    /// With --slurm: write the jobs' scripts without submitting them
    #[arg(long, requires = "slurm")]
    slurm_script_only: bool,
}

/// All that jobs of one command have in common.
pub struct Session {
    config: SlurmConfig,
    folder: PathBuf,
    subject: String,
    /// Whether they are submitted, written or printed.
    pub how: Submission,
}

impl SlurmArgs {
    /// Whether the work goes to Slurm.
    pub fn is_given(&self) -> bool {
        self.slurm.is_some()
    }

    /// Reads the user's options; `None` without `--slurm`.
    ///
    /// # Errors
    /// A file that cannot be read, or that has an unknown or bad option.
    pub fn session(&self, subject: &Path, dry_run: bool) -> anyhow::Result<Option<Session>> {
        let Some(path) = &self.slurm else { return Ok(None) };
        let how = match (dry_run, self.slurm_script_only) {
            (true, _) => Submission::DryRun,
            (false, true) => Submission::ScriptsOnly,
            (false, false) => Submission::Submit,
        };
        let folder = std::env::current_dir().context("cannot tell the working directory")?;
        let subject = subject.file_name().unwrap_or(subject.as_os_str()).to_string_lossy().into_owned();
        Ok(Some(Session { config: read_config(path)?, folder, subject, how }))
    }
}

impl Session {
    /// What was typed, but for `--slurm`, these flags, and these options with their values.
    ///
    /// # Errors
    /// When an argument is not UTF-8.
    pub fn typed(&self, flags: &[&str], options: &[&str]) -> anyhow::Result<Vec<Word>> {
        typed_words(&[&["--slurm-script-only"], flags].concat(), &[&["--slurm"], options].concat())
    }

    /// A job of this command.
    pub fn job(&self, kind: JobKind, command: Vec<Word>) -> Job<'_> {
        Job { kind, subject: self.subject.clone(), options: self.config.of(kind), folder: &self.folder, command }
    }
}
