//! `sam-ladder compare-encoders`: the same trainings on stores of the same scans by different encoders, their scores on held-out cases, and what stores
//! and runs cost.

mod stores;

use super::eval;
use super::several_runs::{OfRuns, SeveralRuns};
use super::weights;
use crate::error::refusal;
use crate::interrupt;
use crate::print::{print_line, print_note};
use anyhow::Context;
use sam_ladder_cache::TrainingSplit;
use sam_ladder_eval::{EncoderCost, EncoderTable, EvalSettings, EvaluationFolder, Method, Protocol, Scoring};
use sam_ladder_formats::hash::sha256_of_file;
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::encoder::PATCH_SIZE;
use sam_ladder_schemas::eval::Resample;
use sam_ladder_schemas::tables::EpochRow;
use sam_ladder_schemas::train::{CHECKPOINT, EPOCHS_TABLE, TrainConfig};
use sam_ladder_train::run;
use serde_json::json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use stores::ComparedStore;

/// Seed unless typed.
const SEED: u64 = 1234;
/// Folder of a run's evaluation within the run's.
const EVALUATION: &str = "eval";

/// Arguments of `compare-encoders`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The stores must hold the same scans, with the same split, classes and data size. Scored are training
cases that each run held out, by its last model; test scans are not read.

Examples:
  sam-ladder compare-encoders --store synapse.zarr --store dino.zarr --folds 3 \\
      --epochs 100 --out encoders
  sam-ladder compare-encoders --store sam=synapse.zarr --store dinov2=dino.zarr --fold 1/3 \\
      --seeds 1,2 --epochs 100 --ema 0.99 --out averaged
")]
pub struct Args {
    /// A store: a folder, or s3://bucket/key, with a name for the tables unless its own will do. The others are tested against the first
    #[arg(long, value_name = "[NAME=]STORE.zarr", num_args = 1.., required = true)]
    store: Vec<String>,
    /// Folder for the runs and the tables; the same command continues what was interrupted
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seeds; on each store there is a run from each
    #[arg(long, value_name = "SEED,SEED", value_delimiter = ',', default_values_t = [SEED])]
    seeds: Vec<u64>,
    /// Cross-validate: hold out each of N folds of the training cases in turn
    #[arg(long, value_name = "N", conflicts_with_all = ["fold", "val_cases"], value_parser = clap::value_parser!(u32).range(2..))]
    folds: Option<u32>,
    /// Hold out one fold of the training cases, the I-th of N, instead of all in turn or of naming cases
    #[arg(long, value_name = "I/N", conflicts_with = "val_cases")]
    fold: Option<String>,
    /// How masks are scored
    #[arg(long, value_enum, default_value_t = Protocol::Published)]
    protocol: Protocol,
    /// How masks come to the scan's own resolution
    #[arg(long, value_enum, default_value_t)]
    resample: Resample,
    #[command(flatten)]
    runs: OfRuns,
}

/// Cases that are held out together, and what the folders of their runs end with.
struct Fold {
    suffix: String,
    cases: Vec<String>,
}

/// One of the runs.
struct Planned<'a> {
    store: &'a ComparedStore,
    folder: PathBuf,
    config: TrainConfig,
}

impl Args {
    /// Trains, scores, and prints the tables.
    pub fn run(mut self) -> anyhow::Result<()> {
        let mut seen = HashSet::new();
        self.seeds.retain(|seed| seen.insert(*seed));
        if let Some(path) = &self.runs.cnn_checkpoint {
            weights::ensure_there(path, weights::RANDOM_SIDE_NETWORK)?;
        }
        let config = self.config()?;
        let stores = stores::open(&self.store, &config, &self.runs.cache)?;
        let folds = self.folds(&config, &stores[0].path)?;
        EncoderTable::may_write(&self.out)?;
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot make the folder {}", self.out.display()))?;
        let stop = interrupt::stop_flag("the step in flight is finished and saved")?;
        let mut done: Vec<(Method, EncoderCost)> = stores.iter().map(begun).collect();
        let mut written = None;
        // Seed by seed and fold by fold, so that an interrupted comparison has all stores.
        for &seed in &self.seeds {
            for fold in &folds {
                for (store, done) in stores.iter().zip(&mut done) {
                    let folder = self.out.join(format!("{}-seed-{seed}{}", store.name, fold.suffix));
                    let config = TrainConfig { seed, val_cases: fold.cases.clone(), ..config.clone() };
                    self.add_run(Planned { store, folder, config }, done, &stop)?;
                }
            }
            let table = EncoderTable::new(&done)?;
            written = Some((table.write(&self.out)?, table));
        }
        if let Some((path, table)) = written {
            print_line!("{}", table.markdown().trim_end());
            print_note!("comparison of encoders: {}", path.display());
        }
        Ok(())
    }

    fn config(&self) -> anyhow::Result<TrainConfig> {
        if self.runs.settings.has("seed") {
            return Err(refusal("--seed is one of several here", "pass --seeds"));
        }
        Ok(self.runs.settings.over(TrainConfig::default())?)
    }

    /// What is held out: the folds of all stores are those of the first.
    fn folds(&self, config: &TrainConfig, store: &Path) -> anyhow::Result<Vec<Fold>> {
        let wanted: Vec<(String, String)> = match (self.folds, &self.fold) {
            (Some(count), _) => {
                (1..=count).map(|index| (format!("-fold-{index}-of-{count}"), format!("{index}/{count}"))).collect()
            }
            (None, Some(fold)) => vec![(String::new(), fold.clone())],
            (None, None) if config.val_cases.is_empty() => {
                let hint = "pass --folds 5 for a cross-validation, or --fold 1/5 or --val-cases";
                return Err(refusal("no case is held out to score", hint));
            }
            (None, None) => return Ok(vec![Fold { suffix: String::new(), cases: config.val_cases.clone() }]),
        };
        let store = TrainingSplit::open_with(store, Some(&self.runs.cache.options()))?;
        let groups = run::groups_of(config, None, &store)?;
        let fold = |(suffix, fold): (String, String)| Ok(Fold { suffix, cases: run::fold_cases(&store, &fold, &groups)? });
        wanted.into_iter().map(fold).collect()
    }

    /// Trains and scores one run, or takes what is there of it.
    fn add_run(
        &self,
        Planned { store, folder: run, config }: Planned<'_>,
        (method, cost): &mut (Method, EncoderCost),
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        print_note!("{}, seed {}, held out {}: {}", store.name, config.seed, config.val_cases.join(", "), run.display());
        let runs = SeveralRuns { what: "comparison", out: &self.out, args: &self.runs };
        cost.trained_parameters = runs.train(&store.path, &run, config, stop)?.trained_parameters;
        method.seeds.push(self.score(store, &run)?);
        let epochs: Vec<EpochRow> = read_rows(&run.join(EPOCHS_TABLE))?;
        cost.epoch_seconds.extend(epochs.iter().map(|epoch| epoch.seconds));
        Ok(())
    }

    /// The evaluation of a run on what it held out, made anew unless it is there.
    fn score(&self, store: &ComparedStore, run: &Path) -> anyhow::Result<EvaluationFolder> {
        let settings = EvalSettings { protocol: self.protocol, resample: self.resample, ..EvalSettings::default() };
        let out = run.join(EVALUATION);
        if let Ok(found) = EvaluationFolder::open(&out)
            && is_current(&found, run, &settings)?
        {
            return Ok(found);
        }
        eval::Args::of_held_out(&store.path, run, &out, self.runs.machine.device, settings).evaluate()?;
        Ok(EvaluationFolder::open(&out)?)
    }
}

/// A store's row before its first run.
fn begun(store: &ComparedStore) -> (Method, EncoderCost) {
    let config = &store.attributes.config;
    let cost = EncoderCost {
        store: store.path.display().to_string(),
        encoder: config.encoder.name().into(),
        channels: config.embed_channels(),
        stride: PATCH_SIZE,
        image_size: config.image_size,
        store_bytes: store.bytes,
        trained_parameters: 0,
        epoch_seconds: Vec::new(),
    };
    (Method { name: store.name.clone(), seeds: Vec::new() }, cost)
}

/// Whether an evaluation is of the run's last model as it is now, by these rules.
fn is_current(found: &EvaluationFolder, run: &Path, settings: &EvalSettings) -> anyhow::Result<bool> {
    let info = &found.info;
    let model = sha256_of_file(&run.join(CHECKPOINT), |_| ())?;
    let same_model = info.run_info.iter().any(|fact| fact.name == "SHA-256" && fact.value == model);
    let resampled = info.scored.settings.get("resample").cloned().unwrap_or_else(|| json!(Resample::Published));
    Ok(same_model && info.scoring == Scoring::from(settings) && resampled == json!(settings.resample))
}
