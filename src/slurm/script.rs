//! The script of a job.
//!
//! The shell of a job outlives the program in it, so that it can send the job back to the queue. Slurm warns it with USR1 before
//! the time is over; the shell passes that on as TERM, at which the program finishes its step, writes a checkpoint and ends with
//! 130. A TERM from Slurm itself (cancelled, or preempted) reaches only the shell where processes are tracked by cgroups, and the
//! program too where they are not: the shell passes it on in any case, and the program takes two in quick succession for one. After a
//! preemption Slurm requeues by itself, after `scancel` nobody does.

use crate::error::refusal;
use anyhow::Context;
use sam_ladder_schemas::slurm::{JobKind, JobOptions};
use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;

/// Seconds of warning before a job's time is over, unless the file says.
const GRACE_SECONDS: u32 = 120;
/// Times that a job is sent back to the queue after its program was killed (out of memory, a failing node).
const RETRIES_AFTER_KILL: u32 = 3;
/// Tasks of an array unless the file says.
const TASKS: u32 = 4;

/// A word of a job's command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// As it is.
    Literal(String),
    /// `i/n` of the array's task.
    Share,
}

/// A job, before it is submitted.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// What it does.
    pub kind: JobKind,
    /// What it works on, for people who read the queue: `synapse.zarr`.
    pub subject: String,
    /// The user's options.
    pub options: JobOptions,
    /// Folder in which the command was typed: relative paths of it start there.
    pub folder: &'a Path,
    /// Program and arguments; [`JobOptions::program`], where it is given, takes this program's place.
    pub command: Vec<Word>,
}

impl Job<'_> {
    /// Tasks of the job's array; `None` where one process does it all.
    pub fn tasks(&self) -> Option<u32> {
        let workers = matches!(self.kind, JobKind::Precompute | JobKind::Sweep);
        workers.then(|| self.options.tasks.unwrap_or(TASKS))
    }

    /// The script, whose output goes below `logs`.
    ///
    /// # Errors
    /// When a path is one that `sbatch` cannot take.
    pub fn script(&self, logs: &Path) -> anyhow::Result<String> {
        let log = format!("{}/{}-{}", for_pattern(logs)?, self.kind.name(), if self.tasks().is_some() { "%A_%a" } else { "%j" });
        let mut out = String::from("#!/bin/bash\n");
        for (option, value) in self.directives(&log)? {
            let _ = if value.is_empty() { writeln!(out, "#SBATCH {option}") } else { writeln!(out, "#SBATCH {option}={value}") };
        }
        out.push_str(
            "# Written by sam-ladder; docs/how-to/slurm.md says what happens at the end of the time, on preemption and on failure.\n\n",
        );
        for line in self.options.setup.iter().flatten() {
            let _ = writeln!(out, "{line}");
        }
        if self.options.cpus_per_task.is_some() {
            out.push_str("export RAYON_NUM_THREADS=\"${RAYON_NUM_THREADS:-$SLURM_CPUS_PER_TASK}\"\n");
        }
        out.push_str("again=no\nstop=no\nchild=\n");
        out.push_str("trap 'again=yes; stop=yes; kill -TERM \"$child\" 2>/dev/null' USR1  # the time is nearly over\n");
        out.push_str(
            "trap 'stop=yes; kill -TERM \"$child\" 2>/dev/null' TERM  # cancelled, or preempted: then Slurm requeues by itself\n",
        );
        let _ = writeln!(out, "{} &", self.command_line());
        out.push_str(
            "child=$!\nif [ \"$stop\" = yes ]; then kill -TERM \"$child\"; fi  # the signal came before this number was known\n",
        );
        out.push_str("while kill -0 \"$child\" 2>/dev/null; do wait \"$child\"; done  # a signal ends a wait early\n");
        out.push_str("wait \"$child\"; status=$?\n");
        let _ = writeln!(
            out,
            "if [ \"$status\" -eq 137 ] && [ \"${{SLURM_RESTART_COUNT:-0}}\" -lt {RETRIES_AFTER_KILL} ]; then again=yes; fi  # killed"
        );
        // The number of an array is that of one of its tasks, too: requeued by its number, every task of it would go back.
        let this = if self.tasks().is_some() { "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" } else { "$SLURM_JOB_ID" };
        let _ = write!(
            out,
            "if [ \"$status\" -ne 0 ] && [ \"$again\" = yes ]; then\n\
             \x20   echo \"sam-ladder ended with $status: back to the queue\" >&2\n\
             \x20   scontrol requeue \"{this}\" && sleep 60  # Slurm ends this shell\n\
             fi\n\
             exit \"$status\"\n",
        );
        Ok(out)
    }

    fn directives(&self, log: &str) -> anyhow::Result<Vec<(String, String)>> {
        let JobOptions {
            max_running, partition, account, qos, constraint, gpus, cpus_per_task, mem, time, grace_seconds, ..
        } = &self.options;
        let mut all = vec![
            ("--job-name".to_string(), directive(&format!("sam-ladder {} {}", self.kind.name(), self.subject))?),
            ("--output".into(), directive(&format!("{log}.log"))?),
            ("--chdir".into(), directive(path_text(self.folder)?)?),
            ("--open-mode".into(), "append".into()),
            ("--requeue".into(), String::new()),
            ("--signal".into(), format!("B:USR1@{}", grace_seconds.unwrap_or(GRACE_SECONDS))),
            ("--ntasks".into(), "1".into()),
        ];
        if let Some(tasks) = self.tasks() {
            let at_once = max_running.map_or_else(String::new, |running| format!("%{running}"));
            all.push(("--array".into(), format!("1-{tasks}{at_once}")));
        }
        let words = [
            ("partition", partition),
            ("account", account),
            ("qos", qos),
            ("constraint", constraint),
            ("mem", mem),
            ("time", time),
        ];
        for (name, value) in words {
            if let Some(value) = value {
                all.push((format!("--{name}"), directive(value)?));
            }
        }
        if let Some(gpus) = gpus {
            all.push(("--gres".into(), directive(&format!("gpu:{gpus}"))?));
        }
        if let Some(cpus) = cpus_per_task {
            all.push(("--cpus-per-task".into(), cpus.to_string()));
        }
        for option in self.options.options.iter().flatten() {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            all.push((name.into(), if value.is_empty() { String::new() } else { directive(value)? }));
        }
        Ok(all)
    }

    fn command_line(&self) -> String {
        let tasks = self.tasks().unwrap_or(1);
        let word = |word: &Word| match word {
            Word::Literal(text) => shell(text),
            Word::Share => format!("\"$SLURM_ARRAY_TASK_ID/{tasks}\""),
        };
        let (typed, arguments) = self.command.split_at(self.command.len().min(1));
        let program: Vec<String> = match &self.options.program {
            Some(words) => words.iter().map(|word| shell(word)).collect(),
            None => typed.iter().map(word).collect(),
        };
        program.into_iter().chain(arguments.iter().map(word)).collect::<Vec<_>>().join(" ")
    }
}

/// The program and the arguments that were typed, without those that are about submitting: `flags` have no value, `options` have one.
///
/// # Errors
/// When one of them is not UTF-8.
pub fn typed_words(flags: &[&str], options: &[&str]) -> anyhow::Result<Vec<Word>> {
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let typed = keep(std::env::args_os().skip(1), flags, options);
    let words = std::iter::once(program.into_os_string()).chain(typed);
    words
        .map(|word| match word.into_string() {
            Ok(text) => Ok(Word::Literal(text)),
            Err(word) => {
                let message = format!("{} is not UTF-8, as arguments in the script of a job must be", word.to_string_lossy());
                Err(refusal(message, "rename it"))
            }
        })
        .collect()
}

fn keep(typed: impl Iterator<Item = OsString>, flags: &[&str], options: &[&str]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut typed = typed;
    while let Some(word) = typed.next() {
        let text = word.to_string_lossy();
        if options.contains(&&*text) {
            typed.next();
        } else if !flags.contains(&&*text) && !text.split_once('=').is_some_and(|(name, _)| options.contains(&name)) {
            kept.push(word);
        }
    }
    kept
}

/// A word that a shell takes as it is.
pub(super) fn shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A value of an `#SBATCH` line: quotes group, and a backslash goes before a quote. (`sbatch` drops other backslashes.)
fn directive(text: &str) -> anyhow::Result<String> {
    if text.chars().any(|c| c == '\\' || c.is_control()) {
        return Err(refusal(format!("{text:?} has a backslash or a line break, which Slurm cannot take"), "rename it"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%[]()&|*".contains(c);
    Ok(if !text.is_empty() && text.chars().all(plain) { text.into() } else { format!("\"{}\"", text.replace('"', "\\\"")) })
}

fn path_text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().ok_or_else(|| refusal(format!("{}: Slurm takes only paths in UTF-8", path.display()), "rename it"))
}

/// A path in the pattern of a log's name, where `%` stands for something.
fn for_pattern(path: &Path) -> anyhow::Result<String> {
    Ok(path_text(path)?.replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(kind: JobKind, options: JobOptions) -> Job<'static> {
        let command = ["/opt/sam-ladder", "precompute", "--store", "it's \"my\" store.zarr", "--worker"];
        let mut command: Vec<Word> = command.iter().map(|word| Word::Literal((*word).into())).collect();
        command.push(Word::Share);
        Job { kind, subject: "s.zarr".into(), options, folder: Path::new("/data/a b"), command }
    }

    #[test]
    fn words_survive_the_shell() {
        let words = ["plain-1.0/x", "", "a b", "it's", "$HOME `x` \\n", "\"quoted\"", "#", "*?", "line\nbreak", "~", "ü"];
        let line: Vec<_> = words.iter().map(|word| shell(word)).collect();
        let shell =
            std::process::Command::new("sh").args(["-c", &format!("printf '%s\\0' {}", line.join(" "))]).output().unwrap();
        let got = String::from_utf8(shell.stdout).unwrap();
        assert_eq!(got.trim_end_matches('\0').split('\0').collect::<Vec<_>>(), words);
    }

    #[test]
    fn a_script_says_all_that_sbatch_needs() {
        let options = JobOptions {
            tasks: Some(3),
            max_running: Some(2),
            partition: Some("gpu".into()),
            gpus: Some(sam_ladder_schemas::slurm::Gpus::Typed("a100:1".into())),
            time: Some("1-00:00:00".into()),
            setup: Some(vec!["module load cuda".into()]),
            options: Some(vec!["--mail-type=FAIL".into(), "--exclusive".into(), "--comment=two words".into()]),
            ..Default::default()
        };
        let script = job(JobKind::Precompute, options).script(Path::new("/data/100% \"x\"")).unwrap();
        for line in [
            "#SBATCH --output=\"/data/100%% \\\"x\\\"/precompute-%A_%a.log\"",
            "#SBATCH --chdir=\"/data/a b\"",
            "#SBATCH --array=1-3%2",
            "#SBATCH --partition=gpu",
            "#SBATCH --gres=gpu:a100:1",
            "#SBATCH --time=1-00:00:00",
            "#SBATCH --requeue",
            "#SBATCH --signal=B:USR1@120",
            "#SBATCH --mail-type=FAIL",
            "#SBATCH --exclusive",
            "#SBATCH --comment=\"two words\"",
            "module load cuda",
            "/opt/sam-ladder precompute --store 'it'\\''s \"my\" store.zarr' --worker \"$SLURM_ARRAY_TASK_ID/3\" &",
        ] {
            assert!(script.lines().any(|found| found == line), "{line} is not in\n{script}");
        }
        let words = ["apptainer", "exec", "--nv", "/data/my image.sif", "sam-ladder"];
        let inside = JobOptions { program: Some(words.map(String::from).to_vec()), ..Default::default() };
        let script = job(JobKind::Precompute, inside).script(Path::new("/logs")).unwrap();
        let line = "apptainer exec --nv '/data/my image.sif' sam-ladder precompute --store 'it'\\''s \"my\" store.zarr' --worker \"$SLURM_ARRAY_TASK_ID/4\" &";
        assert!(script.lines().any(|found| found == line), "{line} is not in\n{script}");
        let alone = job(JobKind::Finish, JobOptions::default()).script(Path::new("/logs")).unwrap();
        assert!(!alone.contains("--array") && alone.contains("/logs/finish-%j.log"), "{alone}");
        assert!(job(JobKind::Finish, JobOptions::default()).script(Path::new("/back\\slash")).is_err());
    }

    #[test]
    fn arguments_about_submitting_stay_here() {
        let typed =
            "precompute --slurm a.toml --store s.zarr --dry-run --slurm=b.toml --dtype f16".split(' ').map(OsString::from);
        assert_eq!(keep(typed, &["--dry-run"], &["--slurm"]), ["precompute", "--store", "s.zarr", "--dtype", "f16"]);
    }

    /// The script under a shell, with a program that takes its time, and a `scontrol` that notes what it is told.
    fn run_script(kind: JobKind, program: &str, signal: Option<&str>) -> (i32, String) {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, text) in [("scontrol", "#!/bin/sh\necho \"$@\" >> \"$NOTES\"\nexit 1\n"), ("program", program)] {
            std::fs::write(path(name), text).unwrap();
            std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let command = vec![Word::Literal(path("program").to_str().unwrap().into())];
        let job = Job { kind, subject: "x".into(), options: JobOptions::default(), folder: folder.path(), command };
        std::fs::write(path("job.sh"), job.script(folder.path()).unwrap()).unwrap();
        let search = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
        let mut shell = std::process::Command::new("bash")
            .arg(path("job.sh"))
            .env("PATH", search)
            .env("NOTES", path("notes"))
            .env("READY", path("ready"))
            .env("SLURM_JOB_ID", "7")
            .env("SLURM_ARRAY_JOB_ID", "7")
            .env("SLURM_ARRAY_TASK_ID", "2")
            .env_remove("SLURM_RESTART_COUNT")
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        if let Some(signal) = signal {
            while !path("ready").exists() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let sent = std::process::Command::new("kill").args([signal, &shell.id().to_string()]).status().unwrap();
            assert!(sent.success());
        }
        (shell.wait().unwrap().code().unwrap(), std::fs::read_to_string(path("notes")).unwrap_or_default())
    }

    #[test]
    fn a_job_goes_back_to_the_queue_when_its_time_is_over_and_when_it_was_killed() {
        let patient = "#!/bin/bash\ntrap 'sleep 0.1; exit 130' TERM\n: > \"$READY\"\nwhile :; do sleep 0.02; done\n";
        assert_eq!(run_script(JobKind::Finish, patient, Some("-USR1")), (130, "requeue 7\n".into()), "the end of the time");
        let at_once = "#!/bin/bash\ntrap 'exit 130' TERM\nkill -USR1 $PPID\nwhile :; do sleep 0.02; done\n";
        assert_eq!(
            run_script(JobKind::Finish, at_once, None),
            (130, "requeue 7\n".into()),
            "the end of the time, at the very start"
        );
        assert_eq!(run_script(JobKind::Finish, patient, Some("-TERM")), (130, String::new()), "cancelled");
        assert_eq!(run_script(JobKind::Finish, "#!/bin/bash\nkill -KILL $$\n", None), (137, "requeue 7\n".into()), "killed");
        // The last task of an array has the number of the array.
        assert_eq!(run_script(JobKind::Sweep, patient, Some("-USR1")), (130, "requeue 7_2\n".into()), "only this task");
        assert_eq!(run_script(JobKind::Finish, "#!/bin/bash\nexit 0\n", None), (0, String::new()));
        assert_eq!(
            run_script(JobKind::Finish, "#!/bin/bash\nexit 1\n", None),
            (1, String::new()),
            "an error is no reason to try again"
        );
    }
}
