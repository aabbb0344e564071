//! `sam-ladder status`.

use crate::error::refusal;
use crate::print::{self, print_line};
use crate::slurm::{JobsFolder, TaskState, tasks_of};
use anyhow::Context;
use sam_ladder_cache::{Error, StoreLayout, VerifyReport, images_stored};
use sam_ladder_formats::rows::read_rows_without;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::slurm::{JobKind, JobRecord};
use sam_ladder_schemas::sweep::{RETIRED_TRIAL_COLUMNS, SWEEP_CONFIG, TRIAL_RECORD, TRIALS_DIR, TrialRow, TrialStatus};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder status --store synapse.zarr
  sam-ladder status --store synapse.zarr --sweep sweeps/first --json
")]
pub struct Args {
    /// Report on this store and its jobs
    #[arg(long, value_name = "STORE.zarr")]
    store: Option<PathBuf>,
    /// Report on the sweep in this folder and its jobs
    #[arg(long, value_name = "DIR")]
    sweep: Option<PathBuf>,
    /// Print JSON, for other programs
    #[arg(long)]
    json: bool,
}

/// All that is reported.
#[derive(Debug, Default, Serialize)]
struct Status {
    store: Option<StoreStatus>,
    sweep: Option<SweepStatus>,
    jobs: Vec<JobStatus>,
    /// What Slurm does not know.
    note: Option<String>,
}

/// How far a store is.
#[derive(Debug, Serialize)]
struct StoreStatus {
    path: PathBuf,
    /// Whether there is anything yet.
    begun: bool,
    complete: bool,
    images_stored: usize,
    images_total: usize,
}

/// How far a sweep is.
#[derive(Debug, Serialize)]
struct SweepStatus {
    path: PathBuf,
    /// Whether there is anything yet.
    begun: bool,
    /// Trials begun.
    trials: usize,
    /// How many of them are in each state.
    states: BTreeMap<&'static str, usize>,
    /// Epochs that their runs have finished, in total.
    epochs: u64,
    /// Highest validation Dice of a trial that was trained to its last epoch.
    best_dice: Option<f64>,
    /// That trial.
    best_trial: Option<String>,
}

/// A task with the job that it belongs to.
#[derive(Debug, Serialize)]
struct JobStatus {
    kind: JobKind,
    #[serde(flatten)]
    task: TaskState,
}

impl Args {
    /// Looks, and prints.
    pub fn run(self) -> anyhow::Result<()> {
        if self.store.is_none() && self.sweep.is_none() {
            return Err(refusal("no store and no sweep is given", "pass --store STORE.zarr, --sweep DIR, or both"));
        }
        let mut status = Status::default();
        if let Some(store) = &self.store {
            status.store = Some(store_status(store)?);
            status.add_jobs(&JobsFolder::beside(store)?)?;
        }
        if let Some(sweep) = &self.sweep {
            status.sweep = Some(sweep_status(sweep)?);
            status.add_jobs(&JobsFolder::beside(sweep)?)?;
        }
        if self.json {
            print_line!("{}", serde_json::to_string_pretty(&status)?);
        } else {
            print::raw(status.text().as_bytes());
        }
        Ok(())
    }
}

impl Status {
    fn add_jobs(&mut self, folder: &JobsFolder) -> anyhow::Result<()> {
        let jobs = folder.jobs()?;
        let (tasks, note) = tasks_of(&jobs)?;
        let kinds: BTreeMap<u64, JobKind> = jobs.iter().map(|job: &JobRecord| (job.id, job.kind)).collect();
        self.jobs.extend(tasks.into_iter().filter_map(|task| Some(JobStatus { kind: *kinds.get(&task.job)?, task })));
        self.note = self.note.take().or(note);
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if let Some(store) = &self.store {
            text += &store.line();
        }
        if let Some(sweep) = &self.sweep {
            text += &sweep.line();
        }
        let mut jobs: BTreeMap<u64, Vec<&JobStatus>> = BTreeMap::new();
        for job in &self.jobs {
            jobs.entry(job.task.job).or_default().push(job);
        }
        for (id, tasks) in jobs {
            let mut states: BTreeMap<&str, Vec<&TaskState>> = BTreeMap::new();
            for job in &tasks {
                states.entry(&job.task.state).or_default().push(&job.task);
            }
            let states: Vec<String> = states.iter().map(|(state, tasks)| words(state, tasks)).collect();
            text += &format!("{:<10} job {id}: {}\n", tasks[0].kind.name(), states.join("; "));
        }
        if let Some(note) = &self.note {
            text += &format!("note: {note}\n");
        }
        text
    }
}

/// `2 RUNNING on n1, n2` or `1 PENDING (Dependency)`.
fn words(state: &str, tasks: &[&TaskState]) -> String {
    let unique = |of: fn(&TaskState) -> &str| {
        let mut values: Vec<&str> =
            tasks.iter().map(|task| of(task)).filter(|value| !["", "None", "0:0"].contains(value)).collect();
        values.sort_unstable();
        values.dedup();
        values.join(", ")
    };
    let (nodes, reasons) = (unique(|task| &task.nodes), unique(|task| &task.reason));
    let on = if nodes.is_empty() || state == "COMPLETED" { String::new() } else { format!(" on {nodes}") };
    let why = if reasons.is_empty() { String::new() } else { format!(" ({reasons})") };
    format!("{} {state}{on}{why}", tasks.len())
}

impl StoreStatus {
    fn line(&self) -> String {
        let Self { path, images_stored, images_total, .. } = self;
        let path = path.display();
        if !self.begun {
            return format!("{path} does not exist yet\n");
        }
        let percent = 100.0 * *images_stored as f64 / (*images_total).max(1) as f64;
        let complete = if self.complete { "complete" } else { "unfinished" };
        format!("{path} is {complete}: {images_stored} of {} ({percent:.1} %)\n", counted(*images_total, "image"))
    }
}

impl SweepStatus {
    fn line(&self) -> String {
        let path = self.path.display();
        if !self.begun {
            return format!("{path} does not exist yet\n");
        }
        let states: Vec<String> = self.states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let states = if states.is_empty() { String::new() } else { format!(" ({})", states.join(", ")) };
        let best = match (&self.best_trial, self.best_dice) {
            (Some(trial), Some(dice)) => format!(", best validation Dice {:.2} % by trial {trial}", 100.0 * dice),
            _ => String::new(),
        };
        let (trials, epochs) = (counted(self.trials, "trial"), counted(self.epochs, "epoch"));
        format!("{path}: {trials}{states}, {epochs}{best}\n")
    }
}

/// How far a sweep is, from its trials' own records.
fn sweep_status(path: &Path) -> anyhow::Result<SweepStatus> {
    let mut status = SweepStatus {
        path: path.into(),
        begun: path.join(SWEEP_CONFIG).is_file(),
        trials: 0,
        states: BTreeMap::new(),
        epochs: 0,
        best_dice: None,
        best_trial: None,
    };
    let folder = path.join(TRIALS_DIR);
    if !status.begun || !folder.is_dir() {
        return Ok(status);
    }
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let record = entry?.path().join(TRIAL_RECORD);
        // A trial whose folder was just made has no record yet.
        if !record.is_file() {
            continue;
        }
        let rows: Vec<TrialRow> = read_rows_without(&record, &RETIRED_TRIAL_COLUMNS)?;
        for row in rows {
            status.trials += 1;
            *status.states.entry(row.status.name()).or_default() += 1;
            status.epochs += u64::from(row.epochs) * u64::from(row.runs);
            if row.status == TrialStatus::Finished && row.dice > status.best_dice {
                (status.best_dice, status.best_trial) = (row.dice, Some(row.trial));
            }
        }
    }
    Ok(status)
}

/// How far a store is, from its manifest and the shards that are there.
fn store_status(path: &Path) -> anyhow::Result<StoreStatus> {
    let mut status = StoreStatus { path: path.into(), begun: false, complete: false, images_stored: 0, images_total: 0 };
    let attributes = match VerifyReport::of_unfinished(path) {
        Ok(report) => report.attributes,
        Err(Error::NotAStore { .. }) if !path.exists() => return Ok(status),
        Err(error) => return Err(error.into()),
    };
    let layout = StoreLayout::of(&attributes)?;
    status.begun = true;
    status.complete = attributes.complete;
    status.images_total = layout.num_items();
    status.images_stored = images_stored(path, &layout)?;
    Ok(status)
}
