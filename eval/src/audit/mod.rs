//! An audit of labels: the slices in which several runs that never saw a case agree with one another, and not with its label.

mod finding;
mod page;

use crate::case_scores::check_class_names;
use crate::display::{Display, ShownSlice};
use crate::error::{EvalError, Result};
use crate::evaluation::{CasePrediction, plane_of, shown_slice};
use crate::masks::{MaskPair, MaskView};
use crate::picture_choice::{Choice, ChosenSlice};
use crate::slice_picture::SlicePicture;
use finding::{SliceFinding, SliceMasks, vote};
use rayon::prelude::*;
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::csv::field;
use sam_ladder_formats::outputs::{HASH_COMMENT, HTML_COMMENT, origin_of_text, sealed};
use sam_ladder_schemas::eval::Palette;
use std::path::{Path, PathBuf};

/// The table in an audit's folder.
pub const AUDIT_TABLE: &str = "audit.csv";
/// The page.
pub const AUDIT_PAGE: &str = "audit.html";

/// Settings of an audit.
#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// Output folder; created if necessary.
    pub out_dir: PathBuf,
    /// Names of the classes from 1, as in the store.
    pub class_names: Vec<String>,
    /// Class of the label of voxels that take no part.
    pub ignored: Option<u8>,
    /// Slices of which the page has pictures.
    pub pictures: usize,
    /// What the grey values of the pictures are.
    pub greys: String,
    /// Colours of the organs in pictures.
    pub palette: Palette,
    /// What is said of store and runs, names and values.
    pub facts: Vec<(String, String)>,
    /// Replace an audit that the folder already holds.
    pub overwrite: bool,
}

/// A slice in which the label is disputed: all runs give at least 3 × 3 pixels the same class, and the label another.
#[derive(Debug, Clone, PartialEq)]
pub struct DisputedSlice {
    /// Case, as in the store.
    pub case: String,
    /// Index of the slice in its case, from 0, as in the store and in an evaluation's report.
    pub slice: usize,
    /// Disputed pixels.
    pub pixels: usize,
    /// The same in mm²; `None` if the scan's spacing is unknown.
    pub area_mm2: Option<f64>,
    /// The label of most of these pixels; 0 is background.
    pub label: u8,
    /// The runs' class there.
    pub predicted: u8,
    /// Pixels of this pair of classes.
    pub of_these: usize,
    /// Runs that held out the case.
    pub runs: usize,
    /// How far these runs agree: mean Dice of two runs' masks in the slice; `None` with one run, and if no two have an organ there.
    pub agreement: Option<f64>,
    /// Mean Dice of a run's mask and the label in the slice.
    pub dice: Option<f64>,
}

/// What an audit found.
#[derive(Debug)]
pub struct AuditOutputs {
    /// The disputed slices, the one with the most area times agreement first.
    pub slices: Vec<DisputedSlice>,
    /// The page.
    pub page: PathBuf,
    /// The table.
    pub table: PathBuf,
}

/// A case that has been looked at.
#[derive(Debug)]
struct AuditedCase {
    case: String,
    slices: usize,
    runs: usize,
}

/// An audit in progress; masks are borrowed one case at a time.
#[derive(Debug)]
pub struct Audit {
    config: AuditConfig,
    cases: Vec<AuditedCase>,
    /// In the order of their ranks.
    found: Vec<DisputedSlice>,
    /// Of the first of `found`, in their order.
    pictures: Vec<SlicePicture>,
}

impl Audit {
    /// Starts an audit.
    ///
    /// # Errors
    /// If the folder holds an audit and `overwrite` is not set, or another file of its names; if the organs have no names.
    pub fn new(config: AuditConfig) -> Result<Self> {
        check_class_names(&config.class_names)?;
        for (name, comment) in [(AUDIT_TABLE, HASH_COMMENT), (AUDIT_PAGE, HTML_COMMENT)] {
            let file = [config.out_dir.join(name)];
            sam_ladder_formats::outputs::may_write(&file, config.overwrite, "an audit by sam-ladder", |path| {
                origin_of_text(path, comment)
            })?;
        }
        Ok(Audit { config, cases: Vec::new(), found: Vec::new(), pictures: Vec::new() })
    }

    /// Looks at a case: `runs` are the masks of runs that were not trained on it, and `of_case` says the rest of it; its prediction is not read.
    ///
    /// # Errors
    /// As for the masks of an evaluation; if a slice's picture cannot be read.
    pub fn add_case(&mut self, of_case: &CasePrediction, runs: &[&[u8]]) -> Result<()> {
        let (case, label) = (of_case.masks.case, of_case.masks.reference);
        let shape = label.shape;
        // What is to be ignored has no name, and is no mistake.
        let counted: Vec<u8> =
            label.voxels.iter().map(|&class| if Some(class) == self.config.ignored { 0 } else { class }).collect();
        for &voxels in runs {
            let label = MaskView { voxels: &counted, shape };
            MaskPair::new(case, MaskView { voxels, shape }, label, self.config.class_names.len())?;
        }
        let [slices, height, width] = shape;
        let pixel_mm2 = of_case.masks.spacing_mm.map(|[_, row, column]| row * column);
        let of_slice = |slice: usize| {
            let runs: Vec<&[u8]> = runs.iter().map(|&voxels| plane_of(MaskView { voxels, shape }, slice)).collect();
            let masks =
                SliceMasks { size: [height, width], runs: &runs, label: plane_of(label, slice), ignored: self.config.ignored };
            Some((slice, masks.finding()?))
        };
        let found: Vec<(usize, SliceFinding)> = (0..slices).into_par_iter().filter_map(of_slice).collect();
        let voted = if found.is_empty() { Vec::new() } else { vote(runs) };
        for (slice, finding) in found {
            let disputed = DisputedSlice {
                case: case.into(),
                slice,
                pixels: finding.pixels,
                area_mm2: pixel_mm2.map(|area| area * finding.pixels as f64),
                label: finding.label,
                predicted: finding.predicted,
                of_these: finding.of_these,
                runs: runs.len(),
                agreement: finding.agreement,
                dice: finding.dice,
            };
            self.insert(disputed, || picture(of_case, MaskView { voxels: &voted, shape }, slice, &finding))?;
        }
        self.cases.push(AuditedCase { case: case.into(), slices, runs: runs.len() });
        Ok(())
    }

    /// Puts a slice at its rank; of equal ones the earlier stays first.
    fn insert(&mut self, disputed: DisputedSlice, picture: impl FnOnce() -> Result<SlicePicture>) -> Result<()> {
        let rank = self.found.partition_point(|other| other.weight() >= disputed.weight());
        if rank < self.config.pictures {
            self.pictures.insert(rank, picture()?);
            self.pictures.truncate(self.config.pictures);
        }
        self.found.insert(rank, disputed);
        Ok(())
    }

    /// Writes table and page.
    ///
    /// # Errors
    /// If no case was added, or a file cannot be written.
    pub fn finish(self) -> Result<AuditOutputs> {
        let out_dir = &self.config.out_dir;
        if self.cases.is_empty() {
            return Err(EvalError::NoCases { path: out_dir.clone() });
        }
        crate::folder::create_dir(out_dir)?;
        let [table, page] = [AUDIT_TABLE, AUDIT_PAGE].map(|name| out_dir.join(name));
        write_atomic(&table, sealed(&self.csv(), HASH_COMMENT).as_bytes())?;
        write_atomic(&page, sealed(&self.html(), HTML_COMMENT).as_bytes())?;
        Ok(AuditOutputs { slices: self.found, page, table })
    }

    fn csv(&self) -> String {
        let mut text = "rank,case,slice,area_mm2,pixels,label,predicted,of_these,runs,agreement,dice\n".to_string();
        let optional = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        for (rank, slice) in (1..).zip(&self.found) {
            let DisputedSlice { case, slice: index, pixels, of_these, runs, .. } = slice;
            let [label, predicted] =
                [slice.label, slice.predicted].map(|class| field(class_name(&self.config.class_names, class)));
            let [area, agreement, dice] = [slice.area_mm2, slice.agreement, slice.dice].map(optional);
            let case = field(case);
            text += &format!("{rank},{case},{index},{area},{pixels},{label},{predicted},{of_these},{runs},{agreement},{dice}\n");
        }
        text
    }
}

impl DisputedSlice {
    /// What slices are ranked by: the area (in pixels where a spacing is unknown), less the less the runs agree elsewhere in the slice. Models that
    /// have learned little agree on the background, and hardly on anything else.
    fn weight(&self) -> f64 {
        self.area_mm2.unwrap_or(self.pixels as f64) * self.agreement.unwrap_or(1.0)
    }
}

/// A class's name; 0 is the background.
pub fn class_name(class_names: &[String], class: u8) -> &str {
    usize::from(class).checked_sub(1).map_or("background", |index| class_names.get(index).map_or("", String::as_str))
}

/// The scan with the outlines of label and vote, and what of the label is disputed.
fn picture(of_case: &CasePrediction, voted: MaskView<'_>, slice: usize, finding: &SliceFinding) -> Result<SlicePicture> {
    let masks = crate::case_scores::CaseMasks { prediction: voted, ..of_case.masks };
    let case = masks.case;
    let shown = shown_slice(&CasePrediction { masks, ..*of_case }, slice)?;
    let [_, height, width] = voted.shape;
    let disputed = Display::of(of_case.orientation).plane(&finding.disputed, [height, width]);
    let of_disputed = |(at, &label): (usize, &u8)| if disputed[at] { shown.prediction[at] } else { label };
    let only_disputed = shown.reference.iter().enumerate().map(of_disputed).collect();
    let chosen = ChosenSlice { slice, choice: Choice::All, dice: finding.dice };
    let not_encoded = |source| EvalError::Png { path: Path::new(case).into(), source };
    let differences = ShownSlice { prediction: only_disputed, grey: None, ..shown.clone() }.differences();
    Ok(SlicePicture::new(case, chosen, &shown).map_err(not_encoded)?.with_differences(&differences))
}
