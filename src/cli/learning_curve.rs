//! `sam-ladder learning-curve`: the same training on growing numbers of cases and from several seeds, and what further cases are likely to bring.

use super::several_runs::{OfRuns, SeveralRuns};
use crate::error::refusal;
use crate::interrupt;
use crate::print::{print_line, print_note};
use anyhow::Context;
use sam_ladder_cache::TrainingSplit;
use sam_ladder_eval::{CurvePoint, Forecast, forecast};
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::outputs::{HASH_COMMENT, may_write, origin_of_text, sealed};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::train::TrainConfig;
use sam_ladder_train::run;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// The table in the folder.
const TABLE: &str = "learning-curve.csv";
/// Seed unless typed.
const SEED: u64 = 1234;

/// Arguments of `learning-curve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder learning-curve --store synapse.zarr --val-cases 0005,0006 --seeds 1,2,3 --out curve
  sam-ladder learning-curve --store synapse.zarr --val-cases 0005,0006 --epochs 100 --ema 0.999 \\
      --out averaged
")]
pub struct Args {
    /// Store to train on: a folder, or s3://bucket/key
    #[arg(long, value_name = "STORE.zarr")]
    store: PathBuf,
    /// Folder for the runs and the table; the same command continues what was interrupted
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Numbers of cases to train on [default: 3, 6, 9 … and all]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    numbers: Vec<usize>,
    /// Seeds; each chooses its own cases
    #[arg(long, value_name = "SEED,SEED", value_delimiter = ',', default_values_t = [SEED])]
    seeds: Vec<u64>,
    /// Hold out one fold of the training cases for validation, instead of naming cases: the I-th of N
    #[arg(long, value_name = "I/N", conflicts_with = "val_cases")]
    fold: Option<String>,
    #[command(flatten)]
    runs: OfRuns,
}

impl Args {
    /// Trains, and prints the curve.
    pub fn run(mut self) -> anyhow::Result<()> {
        let table = self.out.join(TABLE);
        let mut seen = HashSet::new();
        self.seeds.retain(|seed| seen.insert(*seed));
        let files = std::slice::from_ref(&table);
        may_write(files, true, "a learning curve by sam-ladder", |path| origin_of_text(path, HASH_COMMENT))?;
        let config = self.config()?;
        let (numbers, all) = self.sizes(&config)?;
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot make the folder {}", self.out.display()))?;
        let stop = interrupt::stop_flag("the step in flight is finished and saved")?;
        let mut points: Vec<CurvePoint> = Vec::new();
        for &cases in &numbers {
            let share = cases as f64 / all as f64;
            let of_seed = |&seed: &u64| self.train(TrainConfig { seed, train_fraction: share, ..config.clone() }, cases, &stop);
            points.push(CurvePoint { cases, dice: self.seeds.iter().map(of_seed).collect::<anyhow::Result<_>>()? });
            write_atomic(&table, sealed(&csv(&points, &self.seeds), HASH_COMMENT).as_bytes())?;
        }
        print_line!("{}", text(&points).trim_end());
        let most = numbers.last().copied().unwrap_or(0);
        if numbers.len() < 3 {
            print_note!("a forecast needs three numbers of cases");
        }
        let mut further = vec![most + 3, 2 * most];
        further.dedup();
        for more in further {
            if let Some(found) = forecast(&points, more) {
                print_line!("{}", words(&found));
            }
        }
        print_note!("learning curve: {}", table.display());
        Ok(())
    }

    fn config(&self) -> anyhow::Result<TrainConfig> {
        let mut config = self.runs.settings.over(TrainConfig::default())?;
        for (name, instead) in [("seed", "--seeds"), ("train_fraction", "--numbers"), ("train_cases", "--numbers")] {
            if self.runs.settings.has(name) {
                let message = format!("--{} is what the curve varies", name.replace('_', "-"));
                return Err(refusal(message, format!("pass {instead}")));
            }
        }
        if let Some(fold) = &self.fold {
            let store = TrainingSplit::open_with(&self.store, Some(&self.runs.cache.options()))?;
            config.val_cases = run::fold_cases(&store, fold, &run::groups_of(&config, None, &store)?)?;
        }
        if config.val_cases.is_empty() {
            return Err(refusal("no case is held out to measure by", "pass --fold 1/5 or --val-cases"));
        }
        Ok(config)
    }

    /// The numbers of cases, ascending, and how many are not held out.
    fn sizes(&self, config: &TrainConfig) -> anyhow::Result<(Vec<usize>, usize)> {
        let store = TrainingSplit::open_with(&self.store, Some(&self.runs.cache.options()))?;
        run::check_parts(run::parts_of(config), &store)?;
        let all = store.cases().iter().filter(|case| !config.val_cases.contains(case)).count();
        let mut numbers: Vec<usize> = match &self.numbers[..] {
            [] => (3..all).step_by(3).chain([all]).collect(),
            typed => typed.to_vec(),
        };
        numbers.sort_unstable();
        numbers.dedup();
        match numbers.iter().find(|&&number| number == 0 || number > all) {
            Some(number) => {
                let message = format!("the curve cannot have a run on {}: {all} are not held out", counted(*number, "case"));
                Err(refusal(message, format!("pass numbers from 1 to {all} with --numbers")))
            }
            None => Ok((numbers, all)),
        }
    }

    /// The best validation Dice of the run with these settings, which is trained, or continued where it was begun.
    fn train(&self, config: TrainConfig, cases: usize, stop: &AtomicBool) -> anyhow::Result<f64> {
        let run = self.out.join(format!("cases-{cases:03}-seed-{}", config.seed));
        print_note!("{}, seed {}: {}", counted(cases, "case"), config.seed, run.display());
        let runs = SeveralRuns { what: "curve", out: &self.out, args: &self.runs };
        let summary = runs.train(&self.store, &run, config, stop)?;
        summary.best_val_dice.ok_or_else(|| {
            refusal(format!("{}: no held-out case has an organ", run.display()), "hold out others with --val-cases")
        })
    }
}

/// A row per run.
fn csv(points: &[CurvePoint], seeds: &[u64]) -> String {
    let mut text = "cases,seed,val_dice\n".to_string();
    for point in points {
        for (seed, dice) in seeds.iter().zip(&point.dice) {
            text += &format!("{},{seed},{dice}\n", point.cases);
        }
    }
    text
}

/// A line per number of cases.
fn text(points: &[CurvePoint]) -> String {
    let line = |point: &CurvePoint| {
        let spread =
            point.deviation().map_or(String::new(), |sd| format!(" ± {sd:.4} over {}", counted(point.dice.len(), "seed")));
        format!("{:>9}: validation Dice {:.4}{spread}\n", counted(point.cases, "case"), point.mean().unwrap_or(f64::NAN))
    };
    points.iter().map(line).collect()
}

fn words(Forecast { cases, gain, range }: &Forecast) -> String {
    let range = range.map_or(String::new(), |[low, high]| format!(" ({low:+.4} to {high:+.4} by the spread of the seeds)"));
    format!(
        "with {} the Dice is likely to change by {gain:+.4}{range}: a power law through these points",
        counted(*cases, "case")
    )
}
