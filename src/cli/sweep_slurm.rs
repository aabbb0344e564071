//! `sweep --slurm`: workers that share a sweep's folder, and the job that comes after them.

use super::slurm::SlurmArgs;
use crate::error::refusal;
use crate::slurm::{JobsFolder, Word};
use sam_ladder_cache::Store;
use sam_ladder_schemas::slurm::JobKind;
use sam_ladder_schemas::sweep::SWEEP_CONFIG;
use sam_ladder_train::sweep::{SweepArgs, prepare};
use std::path::Path;

/// Options of `sweep` that are about the end of it, with and without a value.
const FINAL: ([&str; 1], [&str; 1]) = (["--final"], ["--trial"]);

/// Sends workers to Slurm, after the jobs of the store if those are still in the queue; and after the workers a job that trains what they left, writes
/// the sweep's tables and page, and does what `--final` says.
///
/// `store_typed`: whether the store is among the arguments; otherwise jobs get it as another one.
pub fn submit(slurm: &SlurmArgs, store: &Path, store_typed: bool, out: &Path, dry_run: bool) -> anyhow::Result<()> {
    let Some(session) = slurm.session(out, dry_run)? else { return Ok(()) };
    let after = JobsFolder::beside(store)?.waiting(JobKind::Finish)?;
    if after.is_none()
        && let Err(error) = Store::open(store)
    {
        return Err(refusal(error.to_string(), "submit `precompute --slurm` first, and the sweep will wait for it"));
    }
    let mut workers = session.typed(&[&["--dry-run", "--resume"], &FINAL.0[..]].concat(), &FINAL.1)?;
    let mut rest = session.typed(&["--dry-run", "--resume"], &[])?;
    if !store_typed {
        let words = ["--store".to_string(), store.to_string_lossy().into_owned()].map(Word::Literal);
        [&mut workers, &mut rest].into_iter().for_each(|command| command.extend(words.clone()));
    }
    workers.extend([Word::Literal("--worker".into()), Word::Share]);
    rest.push(Word::Literal("--resume".into()));
    let jobs = [session.job(JobKind::Sweep, workers), session.job(JobKind::Final, rest)];
    JobsFolder::beside(out)?.submit(&jobs, after.as_ref(), session.how)
}

/// A worker continues the sweep that another worker has made, or makes it: whichever comes first makes the same.
///
/// # Errors
/// As [`prepare`].
pub fn join(args: SweepArgs) -> anyhow::Result<SweepArgs> {
    let is_begun = || args.out.join(SWEEP_CONFIG).is_file();
    if !args.resume
        && !is_begun()
        && let Err(error) = prepare(&args)
        && !is_begun()
    {
        return Err(error.into());
    }
    Ok(SweepArgs { resume: true, ..args })
}
