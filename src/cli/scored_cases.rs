//! The cases that `eval` scores, from the store: its test scans, or the training cases that the runs held out.

use super::progress::Terminal;
use crate::error::refusal;
use crate::print::print_note;
use anyhow::Context;
use sam_ladder_cache::{Batch, Store};
use sam_ladder_eval::{DistanceUnit, EvalSettings, GreySlice, Scored, ScoredSplit, Scoring};
use sam_ladder_formats::nifti::Geometry;
use sam_ladder_formats::volume::read_geometry;
use sam_ladder_precompute::scans::sha256_of_file;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::eval::Resample;
use sam_ladder_schemas::orientation::Orientation;
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use sam_ladder_train::{HeldOut, held_out, identity_variant};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The cases of one split that are scored.
pub struct ScoredCases<'a> {
    /// The store.
    pub store: &'a Store,
    /// The split of the store that holds them.
    pub split: Split,
    /// Their names, sorted.
    pub cases: Vec<String>,
    /// What the evaluation records of them.
    pub scored: Scored,
}

/// The runs that score, and how.
pub struct Scorer<'a> {
    /// The runs; none for other models.
    pub runs: &'a [PathBuf],
    /// Whether the last model of a run scores, even if validation chose an earlier one.
    pub last: bool,
    /// Whether logits are averaged over reflections.
    pub average_reflections: bool,
}

impl<'a> ScoredCases<'a> {
    /// The cases that the settings name.
    ///
    /// # Errors
    /// If there are none, if they have no reference, or their spacing does not go with the settings; for a validation, if a run does not say
    /// what it held out.
    pub fn find(store: &'a Store, settings: &EvalSettings, scorer: &Scorer) -> anyhow::Result<Self> {
        let found = match settings.split {
            ScoredSplit::Test => Self { store, split: Split::Test, cases: test_cases(store)?, scored: Scored::default() },
            ScoredSplit::Validation => Self::of_validation(store, scorer, settings.resample)?,
        };
        found.check_spacing(settings)?;
        Ok(found)
    }

    fn of_validation(store: &'a Store, scorer: &Scorer, resample: Resample) -> anyhow::Result<Self> {
        if scorer.runs.is_empty() {
            let message = "--split validation scores the cases that a run held out, and no run is given";
            return Err(refusal(message, "pass --run, or score the test scans with --split test"));
        }
        let HeldOut { cases, mut settings, seeds } = held_out(scorer.runs, store)?;
        settings.insert("last".into(), json!(scorer.last));
        settings.insert("average_reflections".into(), json!(scorer.average_reflections));
        if !resample.is_published() {
            settings.insert("resample".into(), json!(resample));
        }
        print_note!("validation on held-out training cases: {}", cases.join(", "));
        if !scorer.last {
            print_note!("the model is that of the epoch with the best Dice on these same cases; --last scores the last one");
        }
        let scored = Scored { split: ScoredSplit::Validation, settings, seeds };
        Ok(Self { store, split: Split::Train, cases, scored })
    }

    /// The slices of all cases.
    pub fn slices(&self) -> impl Iterator<Item = &'a SliceRow> {
        let store = self.store;
        store.slices(self.split).iter().filter(|slice| self.cases.contains(&slice.case))
    }

    /// Millimetres need a spacing; a stated one is for the scans that have none.
    fn check_spacing(&self, settings: &EvalSettings) -> anyhow::Result<()> {
        let place = self.store.path().display();
        let unknown: BTreeSet<&str> =
            self.slices().filter(|slice| slice.spacing_mm.is_none()).map(|slice| slice.case.as_str()).collect();
        match (unknown.first(), settings.spacing) {
            (None, None) => Ok(()),
            (None, Some(_)) => {
                let case = self.cases.first().map_or("", |case| case);
                let message = format!("{place}: case {case} has a voxel spacing already, so --spacing does not apply");
                Err(refusal(message, "remove --spacing"))
            }
            (Some(_), Some(_)) => Ok(()),
            (Some(case), None) => {
                let why = self.why_unknown(case);
                if Scoring::from(settings).unit == DistanceUnit::Millimetres {
                    let message =
                        format!("{place}: the voxel spacing of case {case} is unknown{why}, so HD95 cannot be in millimetres");
                    let hint = "state it with --spacing DEPTH,HEIGHT,WIDTH, or measure in voxels with --unit voxels";
                    return Err(refusal(message, hint));
                }
                let (count, all) = (unknown.len(), counted(self.cases.len(), "scan"));
                print_note!(
                    "warning: the voxel spacing is unknown in {count} of {all}{why}; nothing is measured in millimetres there: --spacing states it"
                );
                Ok(())
            }
        }
    }

    /// Why a scan that lies in space has no spacing.
    fn why_unknown(&self, case: &str) -> String {
        let geometry = self.scan(case).ok().and_then(geometry_in_store);
        match geometry.and_then(|geometry| geometry.sheared_to_deg()) {
            Some(degrees) => {
                format!(
                    " (case {case}: its affine is sheared, with an angle of {degrees:.1} degrees between its axes, expected 90.0)"
                )
            }
            None => String::new(),
        }
    }

    /// The picture of a case's slice, as the network sees it.
    pub fn picture(&self, case: &str, slice: usize) -> anyhow::Result<GreySlice> {
        let rows = self.store.case_rows(self.split, case)?;
        let pick = (rows.start + slice as u32, identity_variant(self.store, self.split)?);
        let mut batch = Batch::default();
        self.store.read_batch(self.split, &[pick], &mut batch)?;
        let config = self.store.config();
        let (size, shown) = (config.image_size, config.preprocessing.channels_from.shown_channel());
        // Of several channels the picture shows the first; of neighbours the slice itself.
        let values = batch.images.to_vec()[shown * size * size..][..size * size].to_vec();
        Ok(GreySlice { size: [size, size], values })
    }

    /// What the store says of a case's scan.
    pub fn scan(&self, case: &str) -> anyhow::Result<&'a ScanRow> {
        let missing = || format!("{}: no scan of case {case}", self.store.path().display());
        self.store.scans(self.split).iter().find(|scan| scan.case == case).with_context(missing)
    }

    /// How a case's slices and masks lie in the body: by its affine, or as the user stated it when the store was made.
    pub fn orientation(&self, case: &str) -> anyhow::Result<Option<Orientation>> {
        let scan = self.scan(case)?;
        let file = scan.axis_codes.as_deref().and_then(|codes| codes.parse::<Orientation>().ok());
        let by_affine = file.zip(scan.turn()).map(|(file, turn)| file.turned(turn));
        Ok(by_affine.or(self.store.config().preprocessing.orientation))
    }

    /// Where a case lies in space: as the store says it, or with the whole header of the scan in the folder `scans`, if that is given.
    pub fn geometry(&self, case: &str, scans: Option<&Path>) -> anyhow::Result<Option<Geometry>> {
        match scans {
            Some(scans) => self.geometry_of_file(case, scans).map(Some),
            None => Ok(geometry_in_store(self.scan(case)?)),
        }
    }

    fn geometry_of_file(&self, case: &str, scans: &Path) -> anyhow::Result<Geometry> {
        let slice = &self.store.case_slices(self.split, case)?[0];
        let path = scans.join(&slice.source);
        let found = sha256_of_file(&path, &*Terminal::new())?;
        if found != slice.source_sha256 {
            let (path, store, expected) = (path.display(), self.store.path().display(), &slice.source_sha256);
            let message = format!("{path} has SHA-256 {found}, but {store} was made from {expected}");
            return Err(refusal(message, "pass the folder of the original scans with --scans"));
        }
        Ok(read_geometry(&path)?)
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

/// Where a scan lies in space by its row: with its file's affine or, as its file, without one.
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
