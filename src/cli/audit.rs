//! `sam-ladder audit`: the training slices in which runs that held out the case agree with one another, and not with its label.

use super::cache::Cache;
use super::device::DeviceChoice;
use super::export::run_checkpoint;
use super::progress::Terminal;
use super::run_facts::{ensure_each_once, greys};
use super::scored_cases::ScoredCases;
use crate::print::{print_line, print_note};
use sam_ladder_cache::Store;
use sam_ladder_eval::{
    Audit, AuditConfig, AuditOutputs, CaseMasks, CasePrediction, DisputedSlice, MaskView, Palette, Scored, aligned_table,
    class_name,
};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::observer::{Observer, Phase, Unit};
use sam_ladder_schemas::orientation::Turn;
use sam_ladder_train::{CaseRequest, Ensemble, WeightSource, held_out};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Slices that a terminal shows.
const LINES: usize = 10;

/// Arguments of `audit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each case is segmented by the runs that held it out (train --fold or --val-cases). A pixel is disputed
if all these runs give it the same class, and the label another. A slice is listed if it has a square
of 3 × 3 disputed pixels. Train each fold with several seeds, and pass all runs:
--run runs/fold*-seed*. One run, as below, cannot agree with others.

Examples:
  sam-ladder audit --store synapse.zarr --run runs/lower --out audit
")]
pub struct Args {
    /// Store that the runs were trained on: a folder, or s3://bucket/key
    #[arg(long, value_name = "STORE.zarr")]
    store: PathBuf,
    /// Runs of a cross-validation, preferably with several seeds of each fold
    #[arg(long, value_name = "DIR", num_args = 1.., required = true)]
    run: Vec<PathBuf>,
    /// Use the last model of each run, even if validation chose an earlier one
    #[arg(long)]
    last: bool,
    /// Folder for the table and the page with pictures
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Slices of which the page has pictures
    #[arg(long, value_name = "N", default_value_t = 50)]
    pictures: usize,
    /// Replace an existing audit in --out
    #[arg(long)]
    force: bool,
    /// Slices per pass of the network
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Where to compute: auto (the first GPU if this build can use one), cpu or cuda:INDEX
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    #[command(flatten)]
    cache: Cache,
}

impl Args {
    /// Segments, compares, writes.
    pub fn run(self) -> anyhow::Result<()> {
        ensure_each_once(&self.run)?;
        let store = Store::open_with(&self.store, Some(&self.cache.options()))?;
        let by_case = self.runs_by_case(&store)?;
        let mut audit = Audit::new(AuditConfig {
            out_dir: self.out.clone(),
            class_names: store.config().class_names.clone(),
            ignored: store.config().ignored_class(),
            pictures: self.pictures,
            greys: greys(store.config()),
            palette: Palette::default(),
            facts: self.facts(&store),
            overwrite: self.force,
        })?;
        let device = self.device.open()?;
        let model = |run: &PathBuf| {
            let source = WeightSource::Run { folder: run.clone(), checkpoint: run_checkpoint(self.last) };
            Ensemble::load(&[source], None, &store, &device)
        };
        let models = self.run.iter().map(model).collect::<Result<Vec<_>, _>>()?;
        let cases = ScoredCases {
            store: &store,
            split: Split::Train,
            cases: by_case.keys().cloned().collect(),
            scored: Scored::default(),
        };
        self.note_what_is_missing(&store, &by_case);
        self.add_cases(&mut audit, &cases, &by_case, &models)?;
        let outputs = audit.finish()?;
        print_line!("{}", text(&outputs, &store.config().class_names).trim_end());
        print_note!("all disputed slices: {}", outputs.table.display());
        print_note!("pictures: {}", outputs.page.display());
        Ok(())
    }

    /// For each case that was held out, the indices of the runs that did.
    fn runs_by_case(&self, store: &Store) -> anyhow::Result<BTreeMap<String, Vec<usize>>> {
        let mut by_case: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, run) in self.run.iter().enumerate() {
            for case in held_out(std::slice::from_ref(run), store)?.cases {
                by_case.entry(case).or_default().push(index);
            }
        }
        Ok(by_case)
    }

    fn note_what_is_missing(&self, store: &Store, by_case: &BTreeMap<String, Vec<usize>>) {
        let never: Vec<String> = store.cases(Split::Train).into_iter().filter(|case| !by_case.contains_key(case)).collect();
        if !never.is_empty() {
            print_note!("not looked at, since no run held them out: {}", never.join(", "));
        }
        let by_one = by_case.values().filter(|runs| runs.len() == 1).count();
        if by_one > 0 {
            print_note!(
                "warning: {} held out by one run only, which cannot agree with others; train each fold with several seeds",
                if by_one == 1 { "1 case was".into() } else { format!("{by_one} cases were") }
            );
        }
    }

    fn add_cases(
        &self,
        audit: &mut Audit,
        cases: &ScoredCases<'_>,
        by_case: &BTreeMap<String, Vec<usize>>,
        models: &[Ensemble],
    ) -> anyhow::Result<()> {
        let store = cases.store;
        let slices = |case: &str| store.case_rows(Split::Train, case).map_or(0, |rows| rows.len() as u64);
        let total = by_case.iter().map(|(case, runs)| slices(case) * runs.len() as u64).sum();
        let progress = Terminal::new().begin(Phase::new("", Unit::Slices, total));
        for (case, runs) in by_case {
            progress.describe(&format!("case {case}"));
            let request = CaseRequest { split: Split::Train, case, batch_size: self.batch_size as usize };
            let predict = |&run: &usize| models[run].predict_case(store, request, |slices| progress.advance(slices as u64));
            let predicted = runs.iter().map(predict).collect::<Result<Vec<_>, _>>()?;
            let reference = store.mask(Split::Train, case)?;
            let masks: Vec<&[u8]> = predicted.iter().map(|predicted| &predicted.mask[..]).collect();
            let of_case = CasePrediction {
                masks: CaseMasks {
                    case,
                    prediction: MaskView { voxels: masks[0], shape: predicted[0].shape },
                    reference: MaskView { voxels: &reference.labels, shape: reference.shape },
                    spacing_mm: predicted[0].spacing_mm,
                },
                images: Some(&|slice| Ok(cases.picture(case, slice)?)),
                geometry: None,
                turn: Turn::NONE,
                orientation: cases.orientation(case)?,
            };
            audit.add_case(&of_case, &masks)?;
        }
        Ok(())
    }

    /// What the page says of store and runs.
    fn facts(&self, store: &Store) -> Vec<(String, String)> {
        let runs: Vec<String> = self.run.iter().map(|run| run.display().to_string()).collect();
        let model = if self.last { "the last of each run" } else { "the best of each run by its validation on these cases" };
        vec![
            ("store".into(), format!("{}, cache_id {}", store.path().display(), store.attributes().cache_id)),
            ("model".into(), model.into()),
            ("runs".into(), runs.join(", ")),
            ("program".into(), super::program()),
        ]
    }
}

/// The first slices, as a table.
fn text(outputs: &AuditOutputs, class_names: &[String]) -> String {
    let AuditOutputs { slices, .. } = outputs;
    if slices.is_empty() {
        return "no label is disputed: nowhere do all runs agree on another class in 3 × 3 pixels".into();
    }
    let percent = |value: Option<f64>| value.map_or("–".into(), |value| format!("{:.1}", 100.0 * value));
    let row = |slice: &DisputedSlice| {
        vec![
            slice.case.clone(),
            slice.slice.to_string(),
            slice.area_mm2.map_or_else(|| counted(slice.pixels, "pixel"), |area| format!("{area:.0} mm²")),
            class_name(class_names, slice.label).into(),
            class_name(class_names, slice.predicted).into(),
            slice.runs.to_string(),
            percent(slice.agreement),
            percent(slice.dice),
        ]
    };
    let headings = ["case", "slice", "disputed", "label", "runs say", "runs", "agreement, %", "DSC with label, %"];
    let left = [true, false, false, true, true, false, false, false];
    let rows: Vec<Vec<String>> = slices.iter().take(LINES).map(row).collect();
    let title = match slices.len() {
        1 => "1 disputed slice:".into(),
        count if count <= LINES => format!("{count} disputed slices:"),
        count => format!("{count} disputed slices, of which the first {LINES} are:"),
    };
    format!("{title}\n{}", aligned_table(&headings, &left, &rows))
}
