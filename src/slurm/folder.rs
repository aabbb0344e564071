//! A folder of jobs: their scripts, their logs, and `jobs.json`.

use super::client;
use super::queue::{TaskState, tasks_of};
use super::script::Job;
use crate::error::refusal;
use crate::print::{print_line, print_note};
use anyhow::Context;
use sam_ladder_cache::is_remote;
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::outputs::{HASH_COMMENT, Origin, is_there, origin_of_text, sealed};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::slurm::{JOBS_RECORD, JOBS_SUFFIX, JobKind, JobRecord, JobsRecord};
use std::path::{Path, PathBuf, absolute};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where jobs are written down.
#[derive(Debug, Clone)]
pub struct JobsFolder {
    path: PathBuf,
}

/// What becomes of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submission {
    /// Their scripts are printed.
    DryRun,
    /// Their scripts are written.
    ScriptsOnly,
    /// They are submitted.
    Submit,
}

/// What a job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// Success of all tasks.
    Success,
    /// Their end, whatever it is.
    End,
}

impl JobsFolder {
    /// The folder for the jobs of a store or a sweep, next to it; for a store in a bucket, in the working directory.
    ///
    /// # Errors
    /// When the working directory is not known.
    pub fn beside(subject: &Path) -> anyhow::Result<Self> {
        let here = if is_remote(subject) { Path::new(subject.file_name().unwrap_or(subject.as_os_str())) } else { subject };
        let mut path = absolute(here)?.components().as_path().as_os_str().to_owned();
        path.push(JOBS_SUFFIX);
        Ok(JobsFolder { path: path.into() })
    }

    /// The jobs that were submitted; none if there is no record.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn jobs(&self) -> anyhow::Result<Vec<JobRecord>> {
        let path = self.path.join(JOBS_RECORD);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let record: JobsRecord = serde_json::from_slice(&bytes)
            .map_err(|error| refusal(format!("{} is damaged: {error}", path.display()), "move it away to continue without it"))?;
        Ok(record.jobs)
    }

    /// Prints, writes or submits jobs, each to start after the one before it.
    ///
    /// # Errors
    /// When jobs of the folder are still in the queue, a script cannot be written, or Slurm is missing or refuses.
    pub fn submit(&self, jobs: &[Job], after: Option<&JobRecord>, how: Submission) -> anyhow::Result<()> {
        let scripts = jobs.iter().map(|job| job.script(&self.path)).collect::<anyhow::Result<Vec<_>>>()?;
        if how == Submission::DryRun {
            for (job, script) in jobs.iter().zip(&scripts) {
                print_line!("==> {}\n{script}", self.path.join(script_name(job.kind)).display());
            }
            return Ok(());
        }
        let mut record = JobsRecord { jobs: self.jobs()? };
        if how == Submission::Submit {
            self.refuse_running(&record.jobs)?;
        }
        let files: Vec<(PathBuf, &String)> = jobs.iter().map(|job| self.path.join(script_name(job.kind))).zip(&scripts).collect();
        files.iter().try_for_each(|(path, _)| may_replace(path))?;
        std::fs::create_dir_all(&self.path).with_context(|| format!("cannot create {}", self.path.display()))?;
        for (path, script) in &files {
            write_atomic(path, sealed(script, HASH_COMMENT).as_bytes())?;
        }
        if how == Submission::ScriptsOnly {
            print_line!("{}", self.by_hand(jobs, after));
            return Ok(());
        }
        let mut before = after.cloned();
        for job in jobs {
            let script = script_name(job.kind);
            let dependency = before.as_ref().map(|before| dependency(before, job.kind));
            let id =
                client::sbatch(&self.path.join(&script), dependency.as_deref()).map_err(|error| match record.jobs.last() {
                    Some(last) if before.as_ref() == Some(last) => {
                        error.context(format!("job {} is in the queue already (`scancel {0}` removes it)", last.id))
                    }
                    _ => error,
                })?;
            let after = before.as_ref().map(|before| before.id);
            let submitted = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let submitted = JobRecord { kind: job.kind, id, tasks: job.tasks(), after, submitted, script };
            let tasks = submitted.tasks.map_or_else(String::new, |tasks| format!(", {}", counted(tasks, "task")));
            let waits = after.map_or_else(String::new, |after| format!(", after job {after}"));
            print_line!("{} is job {id}{tasks}{waits}", job.kind.name());
            record.jobs.push(submitted.clone());
            before = Some(submitted);
            write_atomic(&self.path.join(JOBS_RECORD), &serde_json::to_vec_pretty(&record)?)?;
        }
        print_note!("scripts and logs: {}", self.path.display());
        Ok(())
    }

    /// The last job of a kind, if it has not ended yet.
    ///
    /// # Errors
    /// As [`Self::jobs`].
    pub fn waiting(&self, kind: JobKind) -> anyhow::Result<Option<JobRecord>> {
        let last = self.jobs()?.into_iter().rfind(|job| job.kind == kind);
        let (tasks, _) = tasks_of(last.as_slice())?;
        Ok(last.filter(|_| tasks.iter().any(TaskState::is_alive)))
    }

    /// Two sets of workers at the same work would do much of it twice.
    fn refuse_running(&self, jobs: &[JobRecord]) -> anyhow::Result<()> {
        let (tasks, _) = tasks_of(jobs)?;
        if let Some(task) = tasks.iter().find(|task| task.is_alive()) {
            let message = format!("job {} of {} is still {}", task.job, self.path.display(), task.state.to_lowercase());
            let hint = format!("wait for it (`sam-ladder status`), or remove it from the queue with `scancel {}`", task.job);
            return Err(refusal(message, hint));
        }
        Ok(())
    }

    /// How the written scripts are submitted by hand.
    fn by_hand(&self, jobs: &[Job], after: Option<&JobRecord>) -> String {
        let mut lines = String::new();
        let mut before: Option<JobRecord> = after.cloned();
        for job in jobs {
            let path = super::script::shell(&self.path.join(script_name(job.kind)).to_string_lossy());
            let dependency = before.as_ref().map_or_else(String::new, |before| {
                let condition = dependency(before, job.kind);
                let condition = if before.id == 0 { condition.replace(":0", ":$job") } else { condition };
                format!("--dependency={condition} --kill-on-invalid-dep=yes ")
            });
            lines += &format!("job=$(sbatch --parsable {dependency}{path})\n");
            let script = script_name(job.kind);
            before = Some(JobRecord { kind: job.kind, id: 0, tasks: job.tasks(), after: None, submitted: 0, script });
        }
        lines.trim_end().into()
    }
}

/// Refuses to replace a file that is no script of ours, or that someone has changed.
fn may_replace(path: &Path) -> anyhow::Result<()> {
    if !is_there(path) || origin_of_text(path, HASH_COMMENT) == Origin::Ours {
        return Ok(());
    }
    let message = format!("{} is not as sam-ladder writes it, and is not replaced", path.display());
    Err(refusal(message, "move it away, then submit again"))
}

fn script_name(kind: JobKind) -> String {
    format!("{}.sh", kind.name())
}

/// The job that comes after workers also does what a failed worker left, so it waits for the workers' end and no more.
fn dependency(before: &JobRecord, kind: JobKind) -> String {
    let condition = if matches!(kind, JobKind::Finish | JobKind::Final) { Condition::End } else { Condition::Success };
    match condition {
        Condition::Success => format!("afterok:{}", before.id),
        Condition::End => format!("afterany:{}", before.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unchanged_script_of_ours_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sweep.sh");
        may_replace(&path).unwrap();
        let script = sealed("#!/bin/bash\nexit 0\n", HASH_COMMENT);
        std::fs::write(&path, &script).unwrap();
        may_replace(&path).unwrap();
        let others = [
            "#!/bin/bash\nrm -rf mine\n".to_string(),
            script.replace("exit 0", "exit 1"),
            format!("{script}# more\n"),
            String::new(),
        ];
        for other in others {
            std::fs::write(&path, &other).unwrap();
            assert!(may_replace(&path).unwrap_err().to_string().contains("sweep.sh is not as sam-ladder writes it"), "{other}");
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert!(may_replace(&path).is_err(), "a dangling link is something");
    }

    #[test]
    fn jobs_of_a_bucket_have_a_folder_of_a_plain_name_here() {
        let here = std::env::current_dir().unwrap();
        let folder = |subject: &str| JobsFolder::beside(Path::new(subject)).unwrap().path;
        assert_eq!(folder("s3://bucket/a/b.zarr"), here.join("b.zarr.slurm"));
        assert_eq!(folder("s3://bucket/a/b.zarr/"), here.join("b.zarr.slurm"));
        assert_eq!(folder("a/b.zarr"), here.join("a/b.zarr.slurm"));
    }
}
