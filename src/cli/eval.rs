//! `sam-ladder eval`: predict from the store, then measure; or compare two evaluations. The two stages know nothing of each other; they are composed here.

use super::cache::Cache;
use super::checkpoint_names::note_names;
use super::device::DeviceChoice;
use super::export::run_checkpoint;
use super::postprocess::{Choosing, rules_of};
use super::progress::Terminal;
use super::run_facts::{Evaluated, ensure_each_once, greys, run_facts};
use super::scored_cases::{ScoredCases, Scorer};
use super::typed::Typed;
use crate::error::refusal;
use crate::print::{print_line, print_note};
use anyhow::{Context, bail};
use sam_ladder_cache::Store;
use sam_ladder_eval::comparison::{self, Sides};
use sam_ladder_eval::{
    CaseMasks, CasePrediction, EvalSettings, Evaluation, EvaluationConfig, EvaluationFolder, EvaluationOutputs, MEAN, MaskView,
    RunCurves, SUMMARY_TABLE, ScoredSplit, Scoring, TABLE_MARKDOWN, postprocess,
};
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::observer::{Observer, Phase, Unit};
use sam_ladder_schemas::orientation::Turn;
use sam_ladder_schemas::postprocessing::OrganRule;
use sam_ladder_schemas::tables::SummaryRow;
use sam_ladder_schemas::train::Arm;
use sam_ladder_train::{CaseRequest, Ensemble, MaskRule, WeightSource, run_checkpoint as run_checkpoint_file};
use std::cell::Cell;
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
  sam-ladder eval --store synapse.zarr --run runs/lower --split validation \\
      --out runs/lower/eval
  sam-ladder eval --store synapse.zarr --zero-shot --out untrained
  sam-ladder eval --store synapse.zarr --checkpoint epoch_194.pth --out published
  sam-ladder eval --compare untrained runs/first/eval --out compared
")]
pub struct Args {
    /// Store with the scans to segment: a folder, or s3://bucket/key
    #[arg(long, value_name = "STORE.zarr", required_unless_present = "compare", conflicts_with = "compare")]
    store: Option<PathBuf>,
    /// Run folder. Its best model is taken if it was validated, otherwise its last. Several runs, such as all folds, are averaged: --run A --run B
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
    /// Average each model's logits over a slice and its four reflections; the store needs precompute --test-augment flips, or for --split
    /// validation --augment flips
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
    /// Choose on these cases what is done to each organ's masks (keep the largest component, remove small ones, fill holes), by the mean Dice, and
    /// keep it in the run's folder. Only with --split validation and one --run; eval and predict apply it from then on
    #[arg(long, requires = "run")]
    choose_postprocessing: bool,
    /// Score masks as they come from the model, even if the run has a postprocessing
    #[arg(long)]
    no_postprocessing: bool,
    /// Write the predicted masks as NIfTI files
    #[arg(long)]
    save_nifti: bool,
    /// Write a page for each case, with all its slices under a slider: OUT/cases/CASE.html
    #[arg(long)]
    case_pages: bool,
    /// Write the pages of --case-pages with a view in three dimensions. FILE is NiiVue's script: `make viewer` fetches it to weights/niivue.umd.js
    #[arg(long, value_name = "FILE")]
    viewer: Option<PathBuf>,
    /// With --save-nifti: folder of the scans that the store was made from. Each mask then gets its scan's whole header, not only the
    /// affine, which the store keeps
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
            choose_postprocessing: false,
            no_postprocessing: false,
            save_nifti: false,
            case_pages: false,
            viewer: None,
            scans: None,
            baseline: None,
            min_gain: None,
            force: true,
            batch_size: BATCH_SIZE,
            device,
            cache: Cache::default(),
        }
    }

    /// The evaluation of the cases that a run held out, by its last model, whose masks are scored as they come from it.
    pub fn of_held_out(store: &Path, run: &Path, out: &Path, device: DeviceChoice, settings: EvalSettings) -> Self {
        let settings = Typed::all(EvalSettings { split: ScoredSplit::Validation, ..settings });
        Args { last: true, no_postprocessing: true, settings, ..Self::of_run(store, run, out, device) }
    }

    fn weights(&self) -> Vec<WeightSource> {
        let run = |folder: &PathBuf| WeightSource::Run { folder: folder.clone(), checkpoint: run_checkpoint(self.last) };
        match (self.run.as_slice(), &self.checkpoint) {
            ([], Some(path)) => vec![WeightSource::Checkpoint(path.clone())],
            ([], None) => vec![WeightSource::ZeroShot { seed: self.seed, arm: self.arm }],
            (runs, _) => runs.iter().map(run).collect(),
        }
    }

    /// What the table's row is called.
    fn method(&self) -> &'static str {
        if self.run.is_empty() && self.checkpoint.is_none() { "untrained" } else { "SAM-Ladder" }
    }

    /// The script of `--viewer`.
    fn viewer_script(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.viewer else { return Ok(None) };
        let script = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        if !script.contains("niivue") || !script.contains("loadFromBase64") {
            let hint = "pass niivue.umd.js of the npm package @niivue/niivue; `make viewer` fetches it";
            return Err(refusal(format!("{} is not NiiVue's script", path.display()), hint));
        }
        Ok(Some(script))
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
        let split = self.settings.over(EvalSettings::default())?.split;
        ensure_each_once(&self.run)?;
        let baseline = self.baseline.as_deref().map(|folder| mean_dice(folder, split)).transpose()?;
        let outputs = self.evaluate()?;
        print_line!("{}", outputs.screen.trim_end());
        print_note!("\nall scores: {}", outputs.report.with_file_name(TABLE_MARKDOWN).display());
        print_note!("report: {}", outputs.report.display());
        self.compare(&outputs, baseline)
    }

    /// Segments, measures, and writes the evaluation's folder.
    ///
    /// # Errors
    /// What the store, the model or the folder does not allow.
    pub fn evaluate(&self) -> anyhow::Result<EvaluationOutputs> {
        let missing =
            |option: &str| refusal(format!("{option} is missing"), "pass --store STORE.zarr and --out DIR, or --compare A B");
        let out_dir = self.out.clone().ok_or_else(|| missing("--out"))?;
        let store_path = self.store.as_deref().ok_or_else(|| missing("--store"))?;
        let settings = self.settings.over(EvalSettings::default())?;
        let store = Store::open_with(store_path, Some(&self.cache.options()))?;
        let scorer = Scorer { runs: &self.run, last: self.last, average_reflections: self.average_reflections };
        let scored = ScoredCases::find(&store, &settings, &scorer)?;
        let mut choosing = self.choosing(&store, &scored)?;
        let rules = match self.no_postprocessing || choosing.is_some() {
            true => Vec::new(),
            false => rules_of(&self.run, |run| run_checkpoint_file(run, run_checkpoint(self.last)), &store.config().class_names)?,
        };
        let device = self.device.open()?;
        self.checkpoint.iter().for_each(|path| note_names(path));
        let reflections = self.average_reflections.then_some(scored.split);
        let rule = MaskRule { resample: settings.resample, ..MaskRule::default() };
        let ensemble = Ensemble::load(&self.weights(), reflections, &store, &device)?.making(rule);
        let scoring = Scoring::from(&settings);
        let evaluated = Evaluated {
            weights: &self.weights(),
            last: self.last,
            average_reflections: self.average_reflections,
            resample: settings.resample,
            postprocessed: !rules.is_empty(),
            scoring: &scoring,
            split: scored.split,
            cases: &scored.cases,
        };
        let mut evaluation = Evaluation::new(EvaluationConfig {
            out_dir,
            class_names: store.config().class_names.clone(),
            regions: store.config().regions.clone(),
            scoring,
            scored: scored.scored.clone(),
            method: self.method().into(),
            run_info: run_facts(&store, &evaluated),
            greys: greys(store.config()),
            curves: self.curves(),
            extreme_slices: EXTREME_SLICES,
            ignored: store.config().ignored_class(),
            palette: settings.colours,
            save_nifti: self.save_nifti,
            case_pages: self.case_pages || self.viewer.is_some(),
            viewer: self.viewer_script()?,
            overwrite: self.force,
        })?;
        let work = Masks { ensemble: &ensemble, rules: &rules, spacing_mm: settings.spacing };
        self.add_cases(&mut evaluation, &scored, &work, choosing.as_mut())?;
        let outputs = evaluation.finish()?;
        choosing.map_or(Ok(()), Choosing::finish)?;
        Ok(outputs)
    }

    /// The choice of a postprocessing, if it is asked for.
    fn choosing(&self, store: &Store, scored: &ScoredCases) -> anyhow::Result<Option<Choosing>> {
        if !self.choose_postprocessing {
            return Ok(None);
        }
        let ([run], Split::Train) = (&self.run[..], scored.split) else {
            let message = "--choose-postprocessing chooses on the cases that one run held out";
            return Err(refusal(message, "pass one --run, and --split validation"));
        };
        let model = run_checkpoint_file(run, run_checkpoint(self.last));
        Choosing::begin(run, model, store, &scored.cases, self.force).map(Some)
    }

    /// Segments and measures case by case.
    fn add_cases(
        &self,
        evaluation: &mut Evaluation,
        scored: &ScoredCases,
        work: &Masks<'_>,
        mut choosing: Option<&mut Choosing>,
    ) -> anyhow::Result<()> {
        let progress = Terminal::new().begin(Phase::new("", Unit::Slices, scored.slices().count() as u64));
        // A case's last slices count once it is measured, so that the bar ends when the work does.
        let last = Cell::new(0);
        for case in &scored.cases {
            progress.describe(&format!("case {case}"));
            let request = CaseRequest { split: scored.split, case, batch_size: self.batch_size as usize };
            let mut predicted =
                work.ensemble.predict_case(scored.store, request, |slices| progress.advance(last.replace(slices as u64)))?;
            let reference = scored.store.mask(scored.split, case)?;
            if let Some(choosing) = &mut choosing {
                choosing.add(MaskView { voxels: &predicted.mask, shape: predicted.shape }, &reference.labels);
            }
            postprocess(&mut predicted.mask, predicted.shape, work.rules);
            let geometry = scored.geometry(case, self.scans.as_deref())?;
            evaluation.add_case(&CasePrediction {
                masks: CaseMasks {
                    case,
                    prediction: MaskView { voxels: &predicted.mask, shape: predicted.shape },
                    reference: MaskView { voxels: &reference.labels, shape: reference.shape },
                    spacing_mm: predicted.spacing_mm.or(work.spacing_mm),
                },
                images: Some(&|slice| Ok(scored.picture(case, slice)?)),
                geometry: geometry.as_ref(),
                turn: scored.scan(case)?.turn().unwrap_or(Turn::NONE),
                orientation: scored.orientation(case)?,
            })?;
            progress.advance(last.take());
        }
        Ok(())
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

/// What makes the masks.
struct Masks<'a> {
    ensemble: &'a Ensemble,
    /// The postprocessing.
    rules: &'a [OrganRule],
    /// Of scans whose files do not say it.
    spacing_mm: Option<[f64; 3]>,
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

/// Mean Dice of an evaluation's folder, which must have scored the same split.
fn mean_dice(folder: &Path, split: ScoredSplit) -> anyhow::Result<f64> {
    let path = folder.join(SUMMARY_TABLE);
    let summary: Vec<SummaryRow> =
        read_rows(&path).with_context(|| format!("{} is not an evaluation to compare with", folder.display()))?;
    let found = EvaluationFolder::open(folder)?.info.scored.split;
    if found != split {
        let (folder, found, split) = (folder.display(), found.name(), split.name());
        let message = format!("the baseline {folder} scored the split {found}, and this evaluation scores {split}");
        return Err(refusal(message, format!("evaluate the baseline with --split {split}")));
    }
    let mean = summary.iter().find(|row| row.organ == MEAN).and_then(|row| row.dice);
    mean.with_context(|| format!("{}: the mean Dice is undefined", path.display()))
}
