//! `sam-ladder eval`: predict from the store, then measure; or compare two evaluations. The two stages know nothing of each other; they are composed here.

use super::cache::Cache;
use super::checkpoint_names::note_prefix;
use super::device::DeviceChoice;
use super::export::run_checkpoint;
use super::progress::Terminal;
use super::typed::Typed;
use crate::error::refusal;
use crate::print::{print_line, print_note};
use anyhow::{Context, bail};
use sam_ladder_cache::{Batch, Store};
use sam_ladder_eval::comparison::{self, Sides};
use sam_ladder_eval::{
    CaseMasks, CasePrediction, DistanceUnit, EvalSettings, Evaluation, EvaluationConfig, EvaluationFolder, EvaluationOutputs,
    GreySlice, MEAN, MaskView, RunCurves, SUMMARY_TABLE, Scoring,
};
use sam_ladder_formats::nifti::Geometry;
use sam_ladder_formats::rows::read_rows;
use sam_ladder_formats::volume::read_geometry;
use sam_ladder_precompute::scans::sha256_of_file;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::observer::{Observer, Phase, Unit};
use sam_ladder_schemas::orientation::Turn;
use sam_ladder_schemas::tables::{ScanRow, SummaryRow};
use sam_ladder_schemas::train::Arm;
use sam_ladder_train::{CaseRequest, Ensemble, WeightSource, identity_variant};
use std::path::{Path, PathBuf};

/// Worst slices of a case that are shown, as many of the best, and the fullest.
const EXTREME_SLICES: usize = 2;
/// Slices per pass of the network unless typed.
const BATCH_SIZE: u32 = 8;

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("model").required(true).args(["run", "checkpoint", "zero_shot", "compare"])))]
#[command(after_help = "\
Examples:
  sam-ladder eval --store synapse.zarr --run runs/first --out runs/first/eval
  sam-ladder eval --store synapse.zarr --run runs/first --out in-mm \\
      --protocol standard --save-nifti
  sam-ladder eval --store synapse.zarr --zero-shot --out untrained
  sam-ladder eval --store synapse.zarr --checkpoint epoch_194.pth --out published
  sam-ladder eval --compare untrained runs/first/eval --out compared
")]
pub struct Args {
    /// Store with the test scans to segment: a folder, or s3://bucket/key
    #[arg(long, value_name = "STORE.zarr", required_unless_present = "compare", conflicts_with = "compare")]
    store: Option<PathBuf>,
    /// Run folder; its best model if it was validated, otherwise its last. Several, such as the runs of all folds, are averaged: --run A --run B
    #[arg(long, value_name = "DIR")]
    run: Vec<PathBuf>,
    /// With --run: use the last model, even if validation chose an earlier one
    #[arg(long, requires = "run")]
    last: bool,
    /// Whole model in the published code's names, .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Evaluate the model before any training
    #[arg(long)]
    zero_shot: bool,
    /// With --zero-shot: seed of the weights that SAM's checkpoint lacks
    #[arg(long, value_name = "SEED", default_value_t = 1234, requires = "zero_shot")]
    seed: u64,
    /// With --zero-shot: what the mask decoder sees
    #[arg(long, value_enum, default_value_t = Arm::Full, requires = "zero_shot")]
    arm: Arm,
    /// Average each model's logits over a slice and its four reflections; the store needs precompute --test-augment flips
    #[arg(long)]
    average_reflections: bool,
    /// Compare two evaluations of the same cases (folders of evaluations or of runs that have one): differences, confidence intervals, paired tests
    #[arg(long, num_args = 2, value_names = ["RUN_A", "RUN_B"])]
    compare: Vec<PathBuf>,
    /// Folder for the tables, pictures and the report
    #[arg(long, value_name = "DIR", required_unless_present = "compare")]
    out: Option<PathBuf>,
    #[command(flatten)]
    settings: Typed<EvalSettings>,
    /// Write the predicted masks as NIfTI files
    #[arg(long)]
    save_nifti: bool,
    /// With --save-nifti: folder of the scans that the store was made from; masks get the scans' whole header, in addition to the affine, which
    /// the store keeps
    #[arg(long, value_name = "DIR", requires = "save_nifti")]
    scans: Option<PathBuf>,
    /// Folder of another evaluation to compare the mean Dice with
    #[arg(long, value_name = "DIR")]
    baseline: Option<PathBuf>,
    /// Fail unless the mean Dice exceeds the baseline's by at least this (0.1 is ten points)
    #[arg(long, value_name = "DICE", requires = "baseline")]
    min_gain: Option<f64>,
    /// Replace an existing evaluation or comparison in --out
    #[arg(long)]
    force: bool,
    /// Slices per pass of the network
    #[arg(long, value_name = "N", default_value_t = BATCH_SIZE, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Where to compute: auto (the first GPU if this build can use one), cpu or cuda:INDEX
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    #[command(flatten)]
    cache: Cache,
}

impl Args {
    /// The evaluation of a run by the default settings, whatever an interrupted one left in `out`.
    pub fn of_run(store: &Path, run: &Path, out: &Path, device: DeviceChoice) -> Self {
        Args {
            store: Some(store.into()),
            run: vec![run.into()],
            last: false,
            checkpoint: None,
            zero_shot: false,
            seed: 0,
            arm: Arm::Full,
            average_reflections: false,
            compare: Vec::new(),
            out: Some(out.into()),
            settings: Typed::default(),
            save_nifti: false,
            scans: None,
            baseline: None,
            min_gain: None,
            force: true,
            batch_size: BATCH_SIZE,
            device,
            cache: Cache::default(),
        }
    }

    fn weights(&self) -> Vec<WeightSource> {
        let run = |folder: &PathBuf| WeightSource::Run { folder: folder.clone(), checkpoint: run_checkpoint(self.last) };
        match (self.run.as_slice(), &self.checkpoint) {
            ([], Some(path)) => vec![WeightSource::Checkpoint(path.clone())],
            ([], None) => vec![WeightSource::ZeroShot { seed: self.seed, arm: self.arm }],
            (runs, _) => runs.iter().map(run).collect(),
        }
    }

    /// What the table's row is called, and what the report says of the model.
    fn method(&self, store: &Path) -> (String, Vec<(String, String)>) {
        let (method, mut model) = match (self.run.as_slice(), &self.checkpoint) {
            ([], Some(path)) => ("SAM-Ladder", path.display().to_string()),
            ([], None) => ("untrained", format!("untrained, seed {}", self.seed)),
            (runs, _) => ("SAM-Ladder", runs.iter().map(|run| run.display().to_string()).collect::<Vec<_>>().join(" + ")),
        };
        if self.average_reflections {
            model.push_str(", averaged over reflections");
        }
        let info = [("program", super::program()), ("store", store.display().to_string()), ("model", model)];
        (method.into(), info.map(|(name, value)| (name.to_string(), value)).to_vec())
    }

    /// The run's course, if there is one run. If its tables are missing or damaged, the report does without them, and a warning says so.
    fn curves(&self) -> Option<RunCurves> {
        let [run] = &self.run[..] else { return None };
        RunCurves::read(run).inspect_err(|error| print_note!("warning: {error}; the report has no learning curves")).ok()
    }

    /// Segments, measures, writes; or compares.
    pub fn run(self) -> anyhow::Result<()> {
        if let [first, second] = &self.compare[..] {
            return compare(first, second, self.out.as_deref(), self.force);
        }
        let missing =
            |option: &str| refusal(format!("{option} is missing"), "pass --store STORE.zarr and --out DIR, or --compare A B");
        let out_dir = self.out.clone().ok_or_else(|| missing("--out"))?;
        let store_path = self.store.as_deref().ok_or_else(|| missing("--store"))?;
        let settings = self.settings.over(EvalSettings::default())?;
        let baseline = self.baseline.as_deref().map(mean_dice).transpose()?;
        let store = Store::open_with(store_path, Some(&self.cache.options()))?;
        let cases = test_cases(&store)?;
        check_spacing(&store, &settings)?;
        let device = self.device.open()?;
        self.checkpoint.iter().for_each(|path| note_prefix(path));
        let ensemble = Ensemble::load(&self.weights(), self.average_reflections, &store, &device)?;
        let (method, run_info) = self.method(store_path);
        let mut evaluation = Evaluation::new(EvaluationConfig {
            out_dir,
            class_names: store.config().class_names.clone(),
            scoring: Scoring::from(&settings),
            method,
            run_info,
            curves: self.curves(),
            extreme_slices: EXTREME_SLICES,
            palette: settings.colours,
            save_nifti: self.save_nifti,
            overwrite: self.force,
        })?;
        let progress = Terminal::new().begin(Phase::new("", Unit::Slices, store.slices(Split::Test).len() as u64));
        for case in &cases {
            progress.describe(&format!("case {case}"));
            let request = CaseRequest { split: Split::Test, case, batch_size: self.batch_size as usize };
            let predicted = ensemble.predict_case(&store, request, |slices| progress.advance(slices as u64))?;
            let reference = store.mask(case)?;
            let scan = scan_of(&store, case)?;
            let geometry = match self.scans.as_deref() {
                Some(scans) => Some(geometry_of(&store, case, scans)?),
                None => geometry_in_store(scan),
            };
            evaluation.add_case(&CasePrediction {
                masks: CaseMasks {
                    case,
                    prediction: MaskView { voxels: &predicted.mask, shape: predicted.shape },
                    reference: MaskView { voxels: &reference.labels, shape: reference.shape },
                    spacing_mm: predicted.spacing_mm.or(settings.spacing),
                },
                images: Some(&|slice| Ok(test_slice(&store, case, slice)?)),
                geometry: geometry.as_ref(),
                turn: scan.turn().unwrap_or(Turn::NONE),
            })?;
        }
        drop(progress);
        let outputs = evaluation.finish()?;
        print_line!("{}", outputs.table.trim_end());
        print_note!("report: {}", outputs.report.display());
        self.compare(&outputs, baseline)
    }

    /// Prints the gain over the baseline, and fails if it is smaller than requested.
    fn compare(&self, outputs: &EvaluationOutputs, baseline: Option<f64>) -> anyhow::Result<()> {
        let (Some(folder), Some(before)) = (&self.baseline, baseline) else { return Ok(()) };
        let Some(now) = outputs.summary.iter().find(|row| row.organ == MEAN).and_then(|row| row.dice) else {
            bail!("the mean Dice is undefined here: no case has any of the organs");
        };
        let gain = now - before;
        print_note!("mean Dice {now:.4}, baseline {before:.4}, gain {gain:+.4}");
        match self.min_gain {
            Some(least) if gain < least => {
                bail!("the gain in mean Dice over {} is {gain:+.4}, expected at least {least}", folder.display())
            }
            _ => Ok(()),
        }
    }
}

/// The test cases of a store that can be measured.
fn test_cases(store: &Store) -> anyhow::Result<Vec<String>> {
    let (cases, place) = (store.cases(Split::Test), store.path().display());
    if cases.is_empty() {
        let hint = "precompute a folder that has some of the cases 1 2 3 4 8 22 25 29 32 35 36 38; in nnU-Net's layout, name test cases \
                    with --test-cases";
        return Err(refusal(format!("{place} holds no test scans"), hint));
    }
    if store.config().unlabelled {
        let message = format!("{place} holds scans without a reference: there is nothing to compare masks with");
        return Err(refusal(message, "`sam-ladder predict --store` makes masks of them"));
    }
    Ok(cases)
}

/// Millimetres need a spacing, and a scan that has one needs no other.
fn check_spacing(store: &Store, settings: &EvalSettings) -> anyhow::Result<()> {
    let place = store.path().display();
    let slices = store.slices(Split::Test);
    if let (Some(_), Some(slice)) = (settings.spacing, slices.iter().find(|slice| slice.spacing_mm.is_some())) {
        let message = format!("{place}: case {} has a voxel spacing already, so --spacing does not apply", slice.case);
        return Err(refusal(message, "remove --spacing"));
    }
    let in_mm = Scoring::from(settings).unit == DistanceUnit::Millimetres;
    match slices.iter().find(|slice| slice.spacing_mm.is_none()).filter(|_| settings.spacing.is_none()) {
        Some(slice) if in_mm => {
            let message =
                format!("{place}: the voxel spacing of case {} is unknown, so HD95 cannot be in millimetres", slice.case);
            Err(refusal(message, "state it with --spacing DEPTH,HEIGHT,WIDTH, or measure in voxels with --unit voxels"))
        }
        Some(_) => {
            print_note!("the voxel spacing of the scans is unknown: nothing is measured in millimetres; --spacing states it");
            Ok(())
        }
        None => Ok(()),
    }
}

/// Prints two evaluations side by side, and writes the table into a folder where one is given.
fn compare(first: &Path, second: &Path, out: Option<&Path>, force: bool) -> anyhow::Result<()> {
    if let Some(out) = out {
        comparison::may_write(out, force)?;
    }
    let (a, b) = (EvaluationFolder::open(first)?, EvaluationFolder::open(second)?);
    let rows = comparison::compare(std::slice::from_ref(&a), std::slice::from_ref(&b))?;
    let [first_name, second_name] = [first, second].map(|path| path.display().to_string());
    let scoring = &a.info.scoring;
    let (unit, empty) = (scoring.unit.name(), scoring.empty);
    let sides = Sides { first: &first_name, second: &second_name, class_names: &a.info.class_names, unit, empty };
    let written = out.map(|out| comparison::write(out, &rows, &sides)).transpose()?;
    print_line!("{}", comparison::markdown(&rows, &sides).trim_end());
    if let Some(path) = written {
        print_note!("comparison: {}", path.display());
    }
    Ok(())
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

/// What the store says of a test scan.
fn scan_of<'a>(store: &'a Store, case: &str) -> anyhow::Result<&'a ScanRow> {
    let missing = || format!("{}: no scan of case {case}", store.path().display());
    store.scans(Split::Test).iter().find(|scan| scan.case == case).with_context(missing)
}

/// Where a test case lies in space, as the store says it: with its file's affine or, as its file, without one.
fn geometry_in_store(scan: &ScanRow) -> Option<Geometry> {
    let (shape, affine) = (scan.file_shape()?, scan.affine_rows());
    let unplaced = Geometry::of_affine(shape, affine);
    match scan.spacing_mm.as_deref() {
        Some(&[x, y, z]) if affine.is_none() => {
            let Geometry { pixdim, xyzt_units, .. } = Geometry::aligned(shape, [z, y, x]);
            Some(Geometry { pixdim, xyzt_units, ..unplaced })
        }
        _ => Some(unplaced),
    }
}

/// As [`geometry_in_store`], but with the whole header of the scan that the store was made of.
fn geometry_of(store: &Store, case: &str, scans: &Path) -> anyhow::Result<Geometry> {
    let rows = store.case_rows(Split::Test, case)?;
    let slice = &store.slices(Split::Test)[rows.start as usize];
    let path = scans.join(&slice.source);
    let found = sha256_of_file(&path, &*Terminal::new())?;
    if found != slice.source_sha256 {
        let (path, store, expected) = (path.display(), store.path().display(), &slice.source_sha256);
        let message = format!("{path} has SHA-256 {found}, but {store} was made from {expected}");
        return Err(refusal(message, "pass the folder of the original scans with --scans"));
    }
    Ok(read_geometry(&path)?)
}

/// Mean Dice of an evaluation's folder.
fn mean_dice(folder: &Path) -> anyhow::Result<f64> {
    let path = folder.join(SUMMARY_TABLE);
    let summary: Vec<SummaryRow> =
        read_rows(&path).with_context(|| format!("{} is not an evaluation to compare with", folder.display()))?;
    let mean = summary.iter().find(|row| row.organ == MEAN).and_then(|row| row.dice);
    mean.with_context(|| format!("{}: the mean Dice is undefined", path.display()))
}
