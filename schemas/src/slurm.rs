//! How jobs are asked of Slurm, and the record of those that were submitted.

use serde::{Deserialize, Serialize};

/// The user's file of options (TOML): those of every job, and for each kind of job what differs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlurmConfig {
    /// Options of every job.
    pub job: JobOptions,
    /// Of the workers of `precompute`.
    pub precompute: JobOptions,
    /// Of the job that finishes a store after them.
    pub finish: JobOptions,
    /// Of the workers of `sweep`.
    pub sweep: JobOptions,
    /// Of the job that trains the best setting anew and evaluates it.
    pub r#final: JobOptions,
}

/// Options of a job, under `sbatch`'s own names where it has one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct JobOptions {
    /// Tasks of a job array: workers that share the work.
    pub tasks: Option<u32>,
    /// How many of them may run at a time.
    pub max_running: Option<u32>,
    /// `--partition`.
    pub partition: Option<String>,
    /// `--account`.
    pub account: Option<String>,
    /// `--qos`.
    pub qos: Option<String>,
    /// `--constraint`.
    pub constraint: Option<String>,
    /// GPUs of a task, a number or `TYPE:NUMBER`: `--gres=gpu:…`.
    pub gpus: Option<Gpus>,
    /// `--cpus-per-task`.
    pub cpus_per_task: Option<u32>,
    /// `--mem`.
    pub mem: Option<String>,
    /// `--time`: a task that has not finished by then checkpoints, and goes back to the queue.
    pub time: Option<String>,
    /// Seconds before the end of `time` at which a task is told to checkpoint.
    pub grace_seconds: Option<u32>,
    /// Lines of shell before the program starts: `module load …`.
    pub setup: Option<Vec<String>>,
    /// More options of `sbatch`, each one word: `--mail-type=FAIL`.
    pub options: Option<Vec<String>>,
    /// The words that start the program on a node, where they are not the path of the one that submits: another build, or a container's
    /// `apptainer exec --nv IMAGE sam-ladder`.
    pub program: Option<Vec<String>>,
}

/// `gpus = 1` or `gpus = "a100:1"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Gpus {
    /// Of any type.
    Number(u32),
    /// `TYPE:NUMBER`.
    Typed(String),
}

impl std::fmt::Display for Gpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Gpus::Number(number) => write!(f, "{number}"),
            Gpus::Typed(typed) => f.write_str(typed),
        }
    }
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// An array of workers of `precompute`.
    Precompute,
    /// Finishes a store: whatever its workers left.
    Finish,
    /// An array of workers of `sweep`.
    Sweep,
    /// Trains a sweep's best setting on all training cases and evaluates it.
    Final,
}

impl JobKind {
    /// Its name in job names, file names and the options' file.
    pub fn name(self) -> &'static str {
        match self {
            JobKind::Precompute => "precompute",
            JobKind::Finish => "finish",
            JobKind::Sweep => "sweep",
            JobKind::Final => "final",
        }
    }
}

impl SlurmConfig {
    /// Options of a kind of job: its own over those of every job.
    pub fn of(&self, kind: JobKind) -> JobOptions {
        let own = match kind {
            JobKind::Precompute => &self.precompute,
            JobKind::Finish => &self.finish,
            JobKind::Sweep => &self.sweep,
            JobKind::Final => &self.r#final,
        }
        .clone();
        let job = self.job.clone();
        JobOptions {
            tasks: own.tasks.or(job.tasks),
            max_running: own.max_running.or(job.max_running),
            partition: own.partition.or(job.partition),
            account: own.account.or(job.account),
            qos: own.qos.or(job.qos),
            constraint: own.constraint.or(job.constraint),
            gpus: own.gpus.or(job.gpus),
            cpus_per_task: own.cpus_per_task.or(job.cpus_per_task),
            mem: own.mem.or(job.mem),
            time: own.time.or(job.time),
            grace_seconds: own.grace_seconds.or(job.grace_seconds),
            setup: own.setup.or(job.setup),
            options: own.options.or(job.options),
            program: own.program.or(job.program),
        }
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// A sentence that names table and key, what was expected and what was found.
    pub fn validate(&self) -> Result<(), String> {
        let tables = [
            ("job", &self.job),
            ("precompute", &self.precompute),
            ("finish", &self.finish),
            ("sweep", &self.sweep),
            ("final", &self.r#final),
        ];
        tables.into_iter().try_for_each(|(name, options)| options.validate().map_err(|reason| format!("[{name}] {reason}")))
    }
}

/// Options of `sbatch` that the program sets itself.
const OURS: [&str; 11] = [
    "--array",
    "--chdir",
    "--dependency",
    "--error",
    "--no-requeue",
    "--open-mode",
    "--output",
    "--parsable",
    "--requeue",
    "--signal",
    "--wrap",
];

impl JobOptions {
    fn validate(&self) -> Result<(), String> {
        for (key, number) in [("tasks", self.tasks), ("max-running", self.max_running), ("cpus-per-task", self.cpus_per_task)] {
            if number == Some(0) {
                return Err(format!("{key} must be at least 1, got 0"));
            }
        }
        let gpus = self.gpus.as_ref().map(Gpus::to_string);
        let words = [
            ("partition", &self.partition),
            ("account", &self.account),
            ("qos", &self.qos),
            ("constraint", &self.constraint),
            ("gpus", &gpus),
            ("mem", &self.mem),
            ("time", &self.time),
        ];
        for (key, value) in words {
            if let Some(value) = value
                && (value.trim().is_empty() || value.chars().any(char::is_control))
            {
                return Err(format!("{key} must be one line and not empty, got {value:?}"));
            }
        }
        if let Some(words) = &self.program
            && words.first().is_none_or(|program| program.trim().is_empty())
        {
            return Err(format!("program: expected the words of a command, like [\"/opt/gpu/sam-ladder\"], got {words:?}"));
        }
        for option in self.options.iter().flatten() {
            let name = option.split('=').next().unwrap_or_default();
            if !name.starts_with("--") || name.len() < 3 || option.chars().any(char::is_control) {
                return Err(format!("options: expected words like \"--mail-type=FAIL\", got {option:?}"));
            }
            if OURS.contains(&name) {
                return Err(format!("options: {name} is set by the program, leave it out"));
            }
        }
        Ok(())
    }
}

/// Folder of the jobs of a store or a sweep, beside it: `synapse.zarr.slurm`.
pub const JOBS_SUFFIX: &str = ".slurm";
/// Every job submitted: a [`JobsRecord`].
pub const JOBS_RECORD: &str = "jobs.json";

/// What a folder of jobs holds in its `jobs.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobsRecord {
    /// In the order in which they were submitted.
    pub jobs: Vec<JobRecord>,
}

/// A job that was submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRecord {
    /// What it does.
    pub kind: JobKind,
    /// Slurm's number.
    pub id: u64,
    /// Tasks of the array; `None` for a job that is none.
    pub tasks: Option<u32>,
    /// The job that it waits for.
    pub after: Option<u64>,
    /// When it was submitted, in seconds since 1970.
    pub submitted: u64,
    /// File name of its script.
    pub script: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kinds_own_options_go_before_those_of_every_job() {
        let every =
            JobOptions { tasks: Some(4), partition: Some("gpu".into()), gpus: Some(Gpus::Number(1)), ..Default::default() };
        let sweep = JobOptions { tasks: Some(2), gpus: Some(Gpus::Typed("a100:1".into())), ..Default::default() };
        let config = SlurmConfig { job: every.clone(), sweep, ..Default::default() };
        let merged = config.of(JobKind::Sweep);
        assert_eq!((merged.tasks, merged.partition.as_deref()), (Some(2), Some("gpu")));
        assert_eq!(merged.gpus.unwrap().to_string(), "a100:1");
        assert_eq!(config.of(JobKind::Final), every);
    }

    #[test]
    fn what_sbatch_would_take_wrongly_is_refused() {
        let refused = |options: JobOptions| SlurmConfig { sweep: options, ..Default::default() }.validate().unwrap_err();
        assert_eq!(refused(JobOptions { tasks: Some(0), ..Default::default() }), "[sweep] tasks must be at least 1, got 0");
        let line = refused(JobOptions { time: Some("1:00\n#SBATCH --uid=0".into()), ..Default::default() });
        assert!(line.starts_with("[sweep] time must be one line"), "{line}");
        for (option, expected) in [("-p gpu", "expected words"), ("--array=1-9", "set by the program"), ("--", "expected words")]
        {
            let line = refused(JobOptions { options: Some(vec![option.into()]), ..Default::default() });
            assert!(line.contains(expected), "{line}");
        }
        for words in [vec![], vec![String::new()]] {
            let line = refused(JobOptions { program: Some(words), ..Default::default() });
            assert!(line.starts_with("[sweep] program: expected the words of a command"), "{line}");
        }
        assert_eq!(SlurmConfig::default().validate(), Ok(()));
    }
}
