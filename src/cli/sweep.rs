//! `sam-ladder sweep`.

use super::cache::Cache;
use super::machine::Machine;
use super::progress::Terminal;
use super::slurm::SlurmArgs;
use super::sweep_slurm;
use super::train::recorded_store;
use crate::interrupt;
use crate::print::{print_line, print_note};
use anyhow::ensure;
use sam_ladder_eval::{MaskPair, MaskView, SUMMARY_TABLE, aligned_table};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::sweep::{FINAL_EVAL, TrialRow, TrialStatus};
use sam_ladder_train::run::Hd95;
use sam_ladder_train::sweep::{self, SweepArgs, SweepSummary};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Trials that are printed at the end; `trials.parquet` has all.
const PRINTED: usize = 10;

/// Arguments of `sweep`.
// Help texts name tables of TOML, `[budget]`, which are no links.
#[allow(rustdoc::broken_intra_doc_links)]
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder sweep --store synapse.zarr --config sweep.toml --out sweeps/first
  sam-ladder sweep --out sweeps/first --resume
  sam-ladder sweep --out sweeps/first --final
  sam-ladder sweep --store synapse.zarr --config sweep.toml --out sweeps/cluster \\
      --slurm slurm.toml --dry-run
")]
pub struct Args {
    /// Store to train on: a folder, or s3://bucket/key. Only --final reads its test scans. With --resume, the sweep's store
    /// unless given
    #[arg(long, value_name = "STORE.zarr", required_unless_present_any = ["resume", "final_run"])]
    store: Option<PathBuf>,
    /// What is searched and how (the keys: docs/reference/settings.md). With --resume, only [budget] and [failures] may change
    #[arg(long, value_name = "SWEEP.toml", required_unless_present_any = ["resume", "final_run"])]
    config: Option<PathBuf>,
    /// Folder of the sweep: a new one, or with --resume the one to continue
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Continue the sweep in --out. Finished trials (points of the search) are kept, interrupted ones resumed, failed ones tried again
    #[arg(long)]
    resume: bool,
    /// After the search: train the best setting on all training cases, and evaluate it on the test cases, once
    #[arg(long = "final")]
    final_run: bool,
    /// With --final: use this trial instead of the best one
    #[arg(long, value_name = "ID", requires = "final_run")]
    trial: Option<String>,
    /// Trials to train at the same time [default: 1]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: Option<u32>,
    /// Work as worker I of N that share one folder: they take the next trial in turn, and decide by the results of all
    #[arg(long, value_name = "I/N", default_value = "1/1", conflicts_with_all = ["final_run", "slurm"])]
    worker: Worker,
    /// Initial weights of the side network, as torchvision or timm publish them, .pth or .safetensors [default: random]
    #[arg(long, value_name = "FILE")]
    cnn_checkpoint: Option<PathBuf>,
    /// Initial weights of the whole model, in the published code's names
    #[arg(long, value_name = "FILE", conflicts_with = "cnn_checkpoint")]
    init: Option<PathBuf>,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    slurm: SlurmArgs,
    /// With --slurm: print the jobs' scripts without submitting them
    #[arg(long, requires = "slurm")]
    dry_run: bool,
    #[command(flatten)]
    cache: Cache,
}

/// `--worker I/N`.
#[derive(Debug, Clone, Copy)]
pub struct Worker(u32, u32);

impl FromStr for Worker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match parsed {
            Some((index, count)) if index >= 1 && index <= count => Ok(Worker(index, count)),
            _ => Err(format!("expected I/N with I from 1 to N, such as 2/8, found {text}")),
        }
    }
}

/// Measures HD95 for the validation within a sweep.
fn hd95() -> Hd95 {
    Arc::new(|volume, class| {
        let mask = |voxels| MaskView { voxels, shape: volume.shape };
        let pair = MaskPair::new(volume.case, mask(volume.predicted), mask(volume.reference), u8::MAX.into()).ok()?;
        sam_ladder_eval::hd95(&pair, class, volume.spacing_mm)
    })
}

impl Args {
    /// Searches, and with --final trains and evaluates the best.
    pub fn run(self) -> anyhow::Result<()> {
        if self.final_run {
            sweep::refuse_second_final(&self.out)?;
        }
        if self.slurm.is_given() {
            if let Some(config) = &self.config {
                sweep::read_config(config)?;
            }
            return sweep_slurm::submit(&self.slurm, &self.store()?, self.store.is_some(), &self.out, self.dry_run);
        }
        let store = self.store()?;
        let device = self.machine.device.open()?;
        let Worker(index, count) = self.worker;
        let args = SweepArgs {
            store: store.clone(),
            out: self.out.clone(),
            config: self.config.clone(),
            resume: self.resume || self.config.is_none(),
            jobs: self.jobs,
            worker: (index, count),
            cnn_checkpoint: self.cnn_checkpoint.clone(),
            init: self.init.clone(),
            device,
            read_mode: self.machine.read,
            cache: Some(self.cache.options()),
            device_store: self.machine.device_store,
            cuda_graph: self.machine.cuda_graph,
            hd95: hd95(),
            program: super::program(),
            observer: Terminal::new(),
        };
        let args = if count > 1 { sweep_slurm::join(args)? } else { args };
        let stop = interrupt::stop_flag("the steps in flight are finished and saved")?;
        let outcome = sweep::sweep_until(&args, &stop);
        // The page shows a sweep that was stopped, too; the sweep's own error matters more than the page's.
        let page = sam_ladder_eval::write_sweep_page(&self.out);
        let summary = outcome?;
        print_note!("page: {}", page?.display());
        print(&summary);
        print_note!("{}: {}", counted(summary.trials.len(), "trial"), self.out.display());
        if self.final_run {
            self.evaluate_best(&store, &args, &summary, &stop)?;
        }
        Ok(())
    }

    /// The store that was typed, or the sweep's.
    fn store(&self) -> anyhow::Result<PathBuf> {
        match &self.store {
            Some(store) => Ok(store.clone()),
            None => recorded_store(sweep::store_of(&self.out)?, &self.out),
        }
    }

    fn evaluate_best(&self, store: &Path, args: &SweepArgs, summary: &SweepSummary, stop: &AtomicBool) -> anyhow::Result<()> {
        let best = sweep::train_final(args, summary, self.trial.as_deref(), stop)?;
        let out = self.out.join(FINAL_EVAL);
        // An evaluation that was finished and not recorded, since the program was killed between the two, is not done again.
        if !out.join(SUMMARY_TABLE).exists() {
            super::eval::Args::of_run(store, &best.run, &out, self.machine.device).run()?;
        }
        sweep::mark_evaluated(&self.out, &best.record)?;
        sam_ladder_eval::write_sweep_page(&self.out)?;
        ensure!(out.join(SUMMARY_TABLE).exists(), "{}: the evaluation left no {SUMMARY_TABLE}", out.display());
        Ok(())
    }
}

/// The best trials as a table; the settings, which may be long, stand last.
fn print(summary: &SweepSummary) {
    let headings = ["rank", "trial", "folder", "Dice", "HD95, mm", "epochs", "status", "settings"];
    let left = [false, false, true, false, false, false, true, true];
    let rows: Vec<Vec<String>> = summary.trials.iter().take(PRINTED).map(table_row).collect();
    print_line!("{}", aligned_table(&headings, &left, &rows).trim_end());
}

fn table_row(row: &TrialRow) -> Vec<String> {
    let value = |mean: Option<f64>, deviation: Option<f64>, digits: usize| match (mean, deviation) {
        (Some(mean), Some(deviation)) => format!("{mean:.digits$} ± {deviation:.digits$}"),
        (Some(mean), None) => format!("{mean:.digits$}"),
        (None, _) => "–".to_string(),
    };
    let rank = row.rank.map_or("–".to_string(), |rank| rank.to_string());
    let status = match (&row.reason, row.status) {
        (Some(reason), TrialStatus::Failed | TrialStatus::Diverged) => format!("{}: {reason}", row.status.name()),
        _ => row.status.name().to_string(),
    };
    vec![
        rank,
        row.number.to_string(),
        row.trial.clone(),
        value(row.dice, row.dice_std, 4),
        value(row.hd95, row.hd95_std, 2),
        format!("{}/{}", row.epochs, row.max_epochs),
        status,
        row.settings.trim_matches(['{', '}']).replace('"', "").replace(',', ", ").replace(':', " "),
    ]
}
