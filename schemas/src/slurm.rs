//! Options of jobs in Slurm, and the record of those that were submitted.

use crate::json_schema;
use crate::setting::{Problem, SettingError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The file that `--slurm` names (TOML): options of every job, and for each kind of job what differs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SlurmConfig {
    /// Options of every job
    pub job: JobOptions,
    /// Options of the workers of `precompute`, over those of every job
    pub precompute: JobOptions,
    /// Options of the job that finishes a store after its workers, over those of every job
    pub finish: JobOptions,
    /// Options of the workers of `sweep`, over those of every job
    pub sweep: JobOptions,
    /// Options of the job that finishes a sweep and evaluates its best setting, over those of every job
    pub r#final: JobOptions,
}

/// Options of a job, under `sbatch`'s own names where it has one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct JobOptions {
    /// Tasks of the job array: workers that share the work (4 unless given)
    #[schemars(range(min = 1))]
    pub tasks: Option<u32>,
    /// Maximum number of tasks that run at a time (all unless given)
    #[schemars(range(min = 1))]
    pub max_running: Option<u32>,
    /// sbatch's --partition
    pub partition: Option<String>,
    /// sbatch's --account
    pub account: Option<String>,
    /// sbatch's --qos
    pub qos: Option<String>,
    /// sbatch's --constraint
    pub constraint: Option<String>,
    /// GPUs per task, a number or "TYPE:NUMBER": sbatch's --gres=gpu:…
    pub gpus: Option<Gpus>,
    /// sbatch's --cpus-per-task
    #[schemars(range(min = 1))]
    pub cpus_per_task: Option<u32>,
    /// sbatch's --mem
    pub mem: Option<String>,
    /// sbatch's --time: a task that has not finished by then writes a checkpoint and returns to the queue
    pub time: Option<String>,
    /// Seconds before the end of `time` at which a task starts to write its checkpoint (120 unless given)
    pub grace_seconds: Option<u32>,
    /// Lines of shell before the program starts, such as "module load cuda"
    pub setup: Option<Vec<String>>,
    /// More options of sbatch, such as "--mail-type=FAIL"
    pub options: Option<Vec<String>>,
    /// The command that starts the program on a node, if it is not the one that submits: another build, or ["apptainer", "exec", "--nv",
    /// "IMAGE", "sam-ladder"]
    pub program: Option<Vec<String>>,
}

/// `gpus = 1` or `gpus = "a100:1"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Finishes a store: does what its workers have left undone.
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
    /// Options of a kind of job: its own override those of every job.
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
    /// The first option that `sbatch` would not accept, or that the program sets itself.
    pub fn validate(&self) -> Result<(), SettingError> {
        json_schema::check(&json!(self), &json_schema::schema_of::<Self>(), "")?;
        let tables = [
            ("job", &self.job),
            ("precompute", &self.precompute),
            ("finish", &self.finish),
            ("sweep", &self.sweep),
            ("final", &self.r#final),
        ];
        tables.into_iter().try_for_each(|(name, options)| options.validate(name))
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
    fn validate(&self, table: &str) -> Result<(), SettingError> {
        let refuse = |key: &str, expected: &str, found: &dyn std::fmt::Debug| {
            Err(Problem::expected(expected, format!("{found:?}")).with(format!("{table}.{key}")))
        };
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
                return refuse(key, "one line that is not empty", value);
            }
        }
        if let Some(words) = &self.program
            && words.first().is_none_or(|program| program.trim().is_empty())
        {
            return refuse("program", "the words of a command, such as [\"/opt/gpu/sam-ladder\"]", words);
        }
        for (index, option) in self.options.iter().flatten().enumerate() {
            let key = format!("options[{index}]");
            let name = option.split('=').next().unwrap_or_default();
            if !name.starts_with("--") || name.len() < 3 || option.chars().any(char::is_control) {
                return refuse(&key, "a word such as \"--mail-type=FAIL\"", option);
            }
            if OURS.contains(&name) {
                let problem = Problem::conflict(format!("{name} is set by the program"), "leave it out");
                return Err(problem.with(format!("{table}.{key}")));
            }
        }
        Ok(())
    }
}

/// Suffix of the folder of a store's or a sweep's jobs, which lies next to it: `synapse.zarr.slurm`.
pub const JOBS_SUFFIX: &str = ".slurm";
/// The file of all submitted jobs: a [`JobsRecord`].
pub const JOBS_RECORD: &str = "jobs.json";

/// Content of `jobs.json` in a folder of jobs.
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
    /// Slurm's job id.
    pub id: u64,
    /// Tasks of the array; `None` if the job is not an array.
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
        let refused = |options: JobOptions| {
            let config = SlurmConfig { sweep: options, ..Default::default() };
            config.validate().unwrap_err().to_string()
        };
        let tasks = refused(JobOptions { tasks: Some(0), ..Default::default() });
        assert_eq!(tasks, "sweep.tasks: expected a whole number from 1, found 0");
        let line = refused(JobOptions { time: Some("1:00\n#SBATCH --uid=0".into()), ..Default::default() });
        assert!(line.starts_with("sweep.time: expected one line"), "{line}");
        for (option, expected) in
            [("-p gpu", "expected a word"), ("--array=1-9", "set by the program"), ("--", "expected a word")]
        {
            let line = refused(JobOptions { options: Some(vec![option.into()]), ..Default::default() });
            assert!(line.starts_with("sweep.options[0]: ") && line.contains(expected), "{line}");
        }
        for words in [vec![], vec![String::new()]] {
            let line = refused(JobOptions { program: Some(words), ..Default::default() });
            assert!(line.starts_with("sweep.program: expected the words of a command"), "{line}");
        }
        assert_eq!(SlurmConfig::default().validate(), Ok(()));
    }
}
