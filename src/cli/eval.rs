//! `sam-ladder eval`: predict from the store, then measure. The two stages know nothing of each other; they are composed here.

use super::cache::Cache;
use super::device::DeviceChoice;
use super::export::run_checkpoint;
use super::progress;
use super::train::ArmName;
use anyhow::{Context, bail, ensure};
use sam_ladder_cache::nifti::Geometry;
use sam_ladder_cache::{Batch, Store};
use sam_ladder_eval::evaluation::{EvaluationConfig, Outputs, SUMMARY_TABLE};
use sam_ladder_eval::protocol::CaseMasks;
use sam_ladder_eval::summary::MEAN;
use sam_ladder_eval::{CasePrediction, Evaluation, GreySlice, Mask, Protocol};
use sam_ladder_precompute::scans::{read_geometry, sha256_of_file};
use sam_ladder_schemas::classes::Split;
use sam_ladder_train::ensemble::Ensemble;
use sam_ladder_train::predict::{CaseRequest, WeightSource, identity_variant};
use std::path::{Path, PathBuf};

/// Pictures of a case besides the one of its fullest slice.
const SPACED_SLICES: usize = 2;

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("model").required(true).args(["run", "checkpoint", "zero_shot"])))]
#[command(after_help = "\
Examples:
  sam-ladder eval --store synapse.zarr --run runs/first --out runs/first/eval
  sam-ladder eval --store synapse.zarr --run runs/first --out in-mm \\
      --protocol standard --save-nifti --scans /data/RawData
  sam-ladder eval --store synapse.zarr --zero-shot --out untrained
  sam-ladder eval --store synapse.zarr --checkpoint epoch_194.pth --out published
")]
pub struct Args {
    /// Store whose test scans are segmented: a folder, or s3://bucket/key
    #[arg(long, value_name = "STORE.zarr")]
    store: PathBuf,
    /// Run folder: its best model where it was validated, else its last; given several times, as for folds, the mean of their probabilities
    #[arg(long, value_name = "DIR")]
    run: Vec<PathBuf>,
    /// With --run: the last model, even where validation chose another
    #[arg(long, requires = "run")]
    last: bool,
    /// A whole model in the published code's names, .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// The model before any training
    #[arg(long)]
    zero_shot: bool,
    /// With --zero-shot: seed of what does not come from SAM
    #[arg(long, default_value_t = 1234, requires = "zero_shot")]
    seed: u64,
    /// With --zero-shot: what the mask decoder sees
    #[arg(long, value_enum, default_value_t = ArmName::Full, requires = "zero_shot")]
    arm: ArmName,
    /// Average each model's logits over the slice and its four reflections, which precompute --test-augment flips stores
    #[arg(long)]
    average_reflections: bool,
    /// Folder for tables, pictures and the report
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// published: voxels, and the published code's rules for empty masks; standard: millimetres, undefined values left out and counted
    #[arg(long, value_name = "published|standard", default_value = "published")]
    protocol: Protocol,
    /// Write the predicted masks as NIfTI
    #[arg(long)]
    save_nifti: bool,
    /// With --save-nifti: folder of the scans that the store was made of; masks get their scans' own affine and header
    #[arg(long, value_name = "DIR", requires = "save_nifti")]
    scans: Option<PathBuf>,
    /// Another evaluation's folder to compare the mean Dice with
    #[arg(long, value_name = "DIR")]
    baseline: Option<PathBuf>,
    /// Fail unless the mean Dice lies this much above the baseline's (0.1 is ten points)
    #[arg(long, value_name = "DICE", requires = "baseline")]
    min_gain: Option<f64>,
    /// Replace the evaluation that --out holds
    #[arg(long)]
    force: bool,
    /// Slices that go through the network together
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// auto, cpu or cuda:INDEX
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    #[command(flatten)]
    cache: Cache,
}

impl Args {
    /// The evaluation of a run in the published protocol, whatever an interrupted one left in `out`.
    pub fn of_run(store: &Path, run: &Path, out: &Path, device: DeviceChoice) -> Self {
        Args {
            store: store.into(),
            run: vec![run.into()],
            last: false,
            checkpoint: None,
            zero_shot: false,
            seed: 0,
            arm: ArmName::Full,
            average_reflections: false,
            out: out.into(),
            protocol: Protocol::Published,
            save_nifti: false,
            scans: None,
            baseline: None,
            min_gain: None,
            force: true,
            batch_size: 8,
            device,
        }
    }

    fn weights(&self) -> Vec<WeightSource> {
        let run = |folder: &PathBuf| WeightSource::Run { folder: folder.clone(), checkpoint: run_checkpoint(self.last) };
        match (self.run.as_slice(), &self.checkpoint) {
            ([], Some(path)) => vec![WeightSource::Checkpoint(path.clone())],
            ([], None) => vec![WeightSource::ZeroShot { seed: self.seed, arm: self.arm.into() }],
            (runs, _) => runs.iter().map(run).collect(),
        }
    }

    /// What the table's row is called, and what the report says of the model.
    fn method(&self) -> (String, Vec<(String, String)>) {
        let (method, mut model) = match (self.run.as_slice(), &self.checkpoint) {
            ([], Some(path)) => ("SAM-Ladder", path.display().to_string()),
            ([], None) => ("untrained", format!("untrained, seed {}", self.seed)),
            (runs, _) => ("SAM-Ladder", runs.iter().map(|run| run.display().to_string()).collect::<Vec<_>>().join(" + ")),
        };
        if self.average_reflections {
            model.push_str(", averaged over reflections");
        }
        let info = [("program", super::program()), ("store", self.store.display().to_string()), ("model", model)];
        (method.into(), info.map(|(name, value)| (name.to_string(), value)).to_vec())
    }

    /// Segments, measures, writes.
    pub fn run(self) -> anyhow::Result<()> {
        let baseline = self.baseline.as_deref().map(mean_dice).transpose()?;
        self.cache.apply();
        let store = Store::open(&self.store)?;
        let cases = store.cases(Split::Test);
        ensure!(
            !cases.is_empty(),
            "{} holds no test scans: precompute a folder that has some of the cases 1 2 3 4 8 22 25 29 32 35 36 38, or, in nnU-Net's layout, \
             name some with --test-cases",
            self.store.display()
        );
        ensure!(
            !store.config().unlabelled,
            "{} holds scans without a reference: there is nothing to measure by; `sam-ladder predict --store` makes masks of them",
            self.store.display()
        );
        let device = self.device.open()?;
        let ensemble = Ensemble::load(&self.weights(), self.average_reflections, &store, &device)?;
        let (method, run_info) = self.method();
        let mut evaluation = Evaluation::new(EvaluationConfig {
            out_dir: self.out.clone(),
            class_names: store.config().class_names.clone(),
            protocol: self.protocol,
            method,
            run_info,
            spaced_slices: SPACED_SLICES,
            save_nifti: self.save_nifti,
            overwrite: self.force,
        })?;
        let bar = progress::bar(store.slices(Split::Test).len(), "{pos}/{len} slices, {msg}, {eta} left")?;
        for case in &cases {
            bar.set_message(format!("case {case}"));
            let predicted =
                ensemble.predict_case(&store, CaseRequest { split: Split::Test, case, batch_size: self.batch_size as usize })?;
            bar.inc(predicted.shape[0] as u64);
            let reference = store.mask(case)?;
            let geometry = self.scans.as_deref().map(|scans| geometry_of(&store, case, scans)).transpose()?;
            evaluation.add_case(&CasePrediction {
                masks: CaseMasks {
                    case,
                    prediction: Mask { voxels: &predicted.mask, shape: predicted.shape },
                    reference: Mask { voxels: &reference.labels, shape: reference.shape },
                    spacing_mm: predicted.spacing_mm,
                },
                images: Some(&|slice| Ok(test_slice(&store, case, slice)?)),
                geometry: geometry.as_ref(),
            })?;
        }
        bar.finish_and_clear();
        let outputs = evaluation.finish()?;
        println!("{}", outputs.table.trim_end());
        eprintln!("report: {}", outputs.report.display());
        self.compare(&outputs, baseline)
    }

    /// Prints the gain over the baseline, and fails where it is smaller than asked for.
    fn compare(&self, outputs: &Outputs, baseline: Option<f64>) -> anyhow::Result<()> {
        let (Some(folder), Some(before)) = (&self.baseline, baseline) else { return Ok(()) };
        let Some(now) = outputs.summary.iter().find(|row| row.organ == MEAN).and_then(|row| row.dice) else {
            bail!("the mean Dice is undefined here: no case has any of the organs");
        };
        let gain = now - before;
        eprintln!("mean Dice {now:.4}, baseline {before:.4}, gain {gain:+.4}");
        match self.min_gain {
            Some(least) if gain < least => {
                bail!("the gain in mean Dice over {} is {gain:+.4}, asked for was at least {least}", folder.display())
            }
            _ => Ok(()),
        }
    }
}

/// The picture of a test slice, as the network sees it.
fn test_slice(store: &Store, case: &str, slice: usize) -> anyhow::Result<GreySlice> {
    let rows = store.case_rows(Split::Test, case)?;
    let mut batch = Batch::default();
    store.read_batch(Split::Test, &[(rows.start + slice as u32, identity_variant(store, Split::Test)?)], &mut batch)?;
    let size = store.config().image_size;
    // Of several channels the picture shows the first.
    let mut values = batch.images.to_vec();
    values.truncate(size * size);
    Ok(GreySlice { size: [size, size], values })
}

/// Where a test case lies in space, from the scan that the store was made of: the store itself keeps no affine.
fn geometry_of(store: &Store, case: &str, scans: &Path) -> anyhow::Result<Geometry> {
    let rows = store.case_rows(Split::Test, case)?;
    let slice = &store.slices(Split::Test)[rows.start as usize];
    let path = scans.join(&slice.source);
    let found = sha256_of_file(&path)?;
    ensure!(
        found == slice.source_sha256,
        "{} has SHA-256 {found}, {} was made of {}: give --scans the original files",
        path.display(),
        store.path().display(),
        slice.source_sha256
    );
    Ok(read_geometry(&path)?)
}

/// Mean Dice of an evaluation's folder.
fn mean_dice(folder: &Path) -> anyhow::Result<f64> {
    let path = folder.join(SUMMARY_TABLE);
    let summary = sam_ladder_eval::tables::read_summary(&path)
        .with_context(|| format!("{} is no evaluation to compare with", folder.display()))?;
    let mean = summary.iter().find(|row| row.organ == MEAN).and_then(|row| row.dice);
    mean.with_context(|| format!("{}: the mean Dice is undefined", path.display()))
}
