//! The driver: takes cases one by one and writes the evaluation's folder.

use crate::case_scores::{CaseMasks, check_class_names, evaluate_case, evaluate_regions};
use crate::display::{Display, GreySlice, ShownSlice};
use crate::error::{EvalError, Result};
use crate::folder::{
    CASE_PAGES, CASES_TABLE, EVALUATION_JSON, EvaluationInfo, MASKS, OVERLAYS, REPORT, RunFact, SUMMARY_TABLE, TABLE_MARKDOWN,
    create_dir,
};
use crate::masks::MaskView;
use crate::overlay::{draw, encode_png};
use crate::picture_choice::{Choice, ChosenSlice, choose_slices, slice_dice};
use crate::protocol::Scoring;
use crate::publish::{OutputFolder, Recorded, hashes_below};
use crate::report::{ReportPage, Viewer};
use crate::run_curves::RunCurves;
use crate::scored::Scored;
use crate::slice_picture::SlicePicture;
use crate::summary::summarise;
use crate::table_md::{TableContext, markdown};
use crate::table_terminal::terminal_table;
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::nifti::{Geometry, nifti_gz, write_nifti};
use sam_ladder_formats::rows::write_rows;
use sam_ladder_schemas::eval::Palette;
use sam_ladder_schemas::orientation::{Orientation, Turn};
use sam_ladder_schemas::regions::ClassRegion;
use sam_ladder_schemas::tables::{CaseRow, SummaryRow};
use std::path::{Path, PathBuf};

/// Settings of an evaluation.
#[derive(Debug, Clone)]
pub struct EvaluationConfig {
    /// Output folder; created if necessary.
    pub out_dir: PathBuf,
    /// Names of the classes from 1, as in the store.
    pub class_names: Vec<String>,
    /// Unions of classes that are scored instead of the classes, if there are any.
    pub regions: Vec<ClassRegion>,
    /// How the scores are counted.
    pub scoring: Scoring,
    /// Which cases are scored.
    pub scored: Scored,
    /// Name of the row in the table, and title of the report.
    pub method: String,
    /// What the report says of the run, in this order.
    pub run_info: Vec<RunFact>,
    /// What the grey values of the pictures are: `window -125 to 275 HU`.
    pub greys: String,
    /// The run's learning curves, for the report.
    pub curves: Option<RunCurves>,
    /// Number of worst slices and number of best slices per case to draw, in addition to the one with the most organ voxels.
    pub extreme_slices: usize,
    /// Class of the reference of voxels that take no part: they are neither scored nor shown.
    pub ignored: Option<u8>,
    /// Colours of the organs in pictures.
    pub palette: Palette,
    /// Write the predicted masks as NIfTI.
    pub save_nifti: bool,
    /// Write a page for each case, with all its slices.
    pub case_pages: bool,
    /// NiiVue's script, for a view in three dimensions on these pages.
    pub viewer: Option<String>,
    /// Replace an evaluation that the folder already holds.
    pub overwrite: bool,
}

/// Returns the scan's slice with an index, from 0, for the pictures.
pub type GreySlices<'a> = dyn Fn(usize) -> std::result::Result<GreySlice, Box<dyn std::error::Error + Send + Sync>> + 'a;

/// One case as predicted.
pub struct CasePrediction<'a> {
    /// Its masks and spacing.
    pub masks: CaseMasks<'a>,
    /// The scan's slices, read only for pictures. Without them, pictures are black.
    pub images: Option<&'a GreySlices<'a>>,
    /// Where the scan's voxels lie in space, as its file has them, for the mask's file. Without it, the affine is the diagonal of the spacing.
    pub geometry: Option<&'a Geometry>,
    /// From the file's array to the masks; it is turned back for the mask's file.
    pub turn: Turn,
    /// How the masks' width, height and depth lie in the body, for the pictures; without it they are shown as they lie.
    pub orientation: Option<Orientation>,
}

/// Results of an evaluation.
#[derive(Debug, Clone)]
pub struct EvaluationOutputs {
    /// One row per case and organ.
    pub cases: Vec<CaseRow>,
    /// One row per organ, and the mean.
    pub summary: Vec<SummaryRow>,
    /// `table.md`'s text.
    pub table: String,
    /// The scores on one screen of a terminal.
    pub screen: String,
    /// The page.
    pub report: PathBuf,
}

/// An evaluation in progress. It holds the scores; masks are borrowed one case at a time.
///
/// Files are made in a hidden folder, and [`Evaluation::finish`] moves them to their places, the cases' table last. A folder with
/// `cases.parquet` therefore has the whole evaluation, and an evaluation that is replaced stays complete until then.
#[derive(Debug)]
pub struct Evaluation {
    config: EvaluationConfig,
    /// Names of what is scored: the regions, or the classes.
    organs: Vec<String>,
    folder: OutputFolder,
    unfinished: PathBuf,
    cases: Vec<CaseRow>,
    evaluated: Vec<String>,
    pictures: Vec<SlicePicture>,
}

impl Evaluation {
    /// Starts an evaluation.
    ///
    /// # Errors
    /// If the folder holds an evaluation and `overwrite` is not set, or something else that has the name of one of an evaluation's files; if
    /// another process evaluates into it, it cannot be made, or the organs have no names.
    pub fn new(config: EvaluationConfig) -> Result<Self> {
        check_class_names(&config.class_names)?;
        let folder = OutputFolder::begin(&config.out_dir, config.overwrite)?;
        let unfinished = folder.unfinished();
        create_dir(&unfinished.join(OVERLAYS))?;
        if config.save_nifti {
            create_dir(&unfinished.join(MASKS))?;
        }
        if config.case_pages {
            create_dir(&unfinished.join(CASE_PAGES))?;
        }
        let organs = match &config.regions[..] {
            [] => config.class_names.clone(),
            regions => regions.iter().map(|region| region.name.clone()).collect(),
        };
        Ok(Evaluation { config, organs, folder, unfinished, cases: Vec::new(), evaluated: Vec::new(), pictures: Vec::new() })
    }

    /// Scores a case, writes its mask and pictures, and returns its rows.
    ///
    /// # Errors
    /// As [`evaluate_case`]. If a case is added twice or its name cannot name a file. If a file cannot be written or a slice's
    /// picture cannot be read. After an error the case does not count, and other cases may follow.
    pub fn add_case(&mut self, prediction: &CasePrediction) -> Result<&[CaseRow]> {
        let CaseMasks { case, prediction: mask, .. } = prediction.masks;
        let counted = self.config.ignored.map(|ignored| without(&prediction.masks, ignored));
        let prediction = &match &counted {
            Some([mask, reference]) => CasePrediction { masks: replaced(prediction.masks, mask, reference), ..*prediction },
            None => CasePrediction { ..*prediction },
        };
        check_file_name(case)?;
        if self.evaluated.iter().any(|evaluated| evaluated == case) {
            return Err(EvalError::RepeatedCase { case: case.into() });
        }
        let EvaluationConfig { class_names, regions, scoring, .. } = &self.config;
        let rows = match &regions[..] {
            [] => evaluate_case(&prediction.masks, class_names, *scoring)?,
            regions => evaluate_regions(&prediction.masks, class_names, regions, *scoring)?,
        };
        let drawn = self.draw_case(prediction)?;
        if self.config.case_pages {
            self.write_case_page(prediction)?;
        }
        if self.config.save_nifti {
            let path = self.unfinished.join(MASKS).join(format!("{case}.nii.gz"));
            let voxels = prediction.turn.inverse().voxels(mask.voxels.to_vec(), mask.shape);
            write_nifti(&path, &own_geometry(prediction), &voxels)?;
        }
        for (picture, path, png) in drawn {
            write_atomic(&path, &png)?;
            self.pictures.push(picture);
        }
        self.evaluated.push(case.into());
        let first = self.cases.len();
        self.cases.extend(rows);
        Ok(&self.cases[first..])
    }

    /// A case's pictures for the page, and each one's PNG file.
    fn draw_case(&self, prediction: &CasePrediction) -> Result<Vec<(SlicePicture, PathBuf, Vec<u8>)>> {
        let CaseMasks { case, prediction: mask, reference, .. } = prediction.masks;
        let mut pictures = Vec::new();
        for chosen in choose_slices(mask, reference, &self.config.regions, self.config.extreme_slices) {
            let slice = chosen.slice;
            let shown = shown_slice(prediction, slice)?;
            let path = self.unfinished.join(OVERLAYS).join(format!("{case}_slice{slice:03}.png"));
            let not_encoded = |source| EvalError::Png { path: path.clone(), source };
            let bytes = encode_png(&draw(&shown, self.config.palette)).map_err(not_encoded)?;
            let picture = SlicePicture::new(case, chosen, &shown).map_err(not_encoded)?;
            pictures.push((picture, path, bytes));
        }
        Ok(pictures)
    }

    /// Writes the page of a case, with all its slices.
    fn write_case_page(&self, prediction: &CasePrediction) -> Result<()> {
        let CaseMasks { case, prediction: mask, reference, .. } = prediction.masks;
        let path = self.unfinished.join(CASE_PAGES).join(format!("{case}.html"));
        let mut pictures = Vec::new();
        for slice in 0..reference.shape[0] {
            let [predicted, referred] = [mask, reference].map(|mask| plane_of(mask, slice));
            let chosen = ChosenSlice { slice, choice: Choice::All, dice: slice_dice(predicted, referred, &self.config.regions) };
            let picture = SlicePicture::new(case, chosen, &shown_slice(prediction, slice)?);
            pictures.push(picture.map_err(|source| EvalError::Png { path: path.clone(), source })?);
        }
        let viewer = self.config.viewer.as_deref();
        let viewer = viewer.map(|script| Ok::<_, EvalError>(Viewer { script, volumes: volumes(prediction)? })).transpose()?;
        let page = self.page(&[], 0).case_html(case, &pictures, viewer.as_ref());
        Ok(write_atomic(&path, page.as_bytes())?)
    }

    /// The report's content, with what has been evaluated so far.
    fn page<'a>(&'a self, summary: &'a [SummaryRow], cases: usize) -> ReportPage<'a> {
        let config = &self.config;
        ReportPage {
            context: TableContext {
                method: &config.method,
                organs: &self.organs,
                scoring: config.scoring,
                split: config.scored.split,
                cases,
            },
            class_names: &config.class_names,
            run_info: &config.run_info,
            greys: &config.greys,
            cases: &self.cases,
            summary,
            pictures: &self.pictures,
            palette: config.palette,
            curves: config.curves.as_ref(),
            case_pages: config.case_pages,
        }
    }

    /// Writes tables and report, and moves everything to its place.
    ///
    /// # Errors
    /// If no case was evaluated, or a file cannot be written.
    pub fn finish(self) -> Result<EvaluationOutputs> {
        if self.evaluated.is_empty() {
            // It contains only empty folders, so leaving it does no harm.
            let _ = self.folder.remove_unfinished();
            return Err(EvalError::NoCases { path: self.config.out_dir });
        }
        let summary = summarise(&self.cases, &self.organs);
        let [table, screen] = self.write_files(&summary)?;
        self.folder.publish()?;
        Ok(EvaluationOutputs { cases: self.cases, summary, table, screen, report: self.config.out_dir.join(REPORT) })
    }

    /// Writes all files except pictures and masks, which are already written; returns the text of `table.md` and that of the screen.
    fn write_files(&self, summary: &[SummaryRow]) -> Result<[String; 2]> {
        let Evaluation { config, organs, unfinished, cases, evaluated, .. } = self;
        let report = self.page(summary, evaluated.len());
        let context = report.context;
        let table = markdown(summary, &context);
        write_atomic(&unfinished.join(TABLE_MARKDOWN), table.as_bytes())?;
        write_atomic(&unfinished.join(REPORT), report.html().as_bytes())?;
        let info = EvaluationInfo {
            method: config.method.clone(),
            class_names: organs.clone(),
            scoring: config.scoring,
            scored: config.scored.clone(),
            run_info: config.run_info.clone(),
        };
        let path = unfinished.join(EVALUATION_JSON);
        write_rows(&unfinished.join(SUMMARY_TABLE), summary)?;
        write_rows(&unfinished.join(CASES_TABLE), cases)?;
        let files = hashes_below(unfinished)?;
        let json = serde_json::to_vec_pretty(&Recorded { info, files });
        write_atomic(&path, &json.map_err(|source| EvalError::Json { path: path.clone(), source })?)?;
        Ok([table, terminal_table(summary, &context)])
    }
}

/// Prediction and reference with background where the reference has the class `ignored`.
fn without(masks: &CaseMasks<'_>, ignored: u8) -> [Vec<u8>; 2] {
    let (prediction, reference) = (masks.prediction.voxels, masks.reference.voxels);
    let counted = |of: &[u8]| of.iter().zip(reference).map(|(&class, &r)| if r == ignored { 0 } else { class }).collect();
    // Masks of different lengths are refused later, with both.
    let prediction = if prediction.len() == reference.len() { counted(prediction) } else { prediction.to_vec() };
    [prediction, counted(reference)]
}

/// The same case with other voxels.
fn replaced<'a>(masks: CaseMasks<'a>, prediction: &'a [u8], reference: &'a [u8]) -> CaseMasks<'a> {
    CaseMasks {
        prediction: MaskView { voxels: prediction, ..masks.prediction },
        reference: MaskView { voxels: reference, ..masks.reference },
        ..masks
    }
}

/// A mask's classes in a slice `[h, w]`.
pub(crate) fn plane_of(mask: MaskView<'_>, slice: usize) -> &[u8] {
    let [_, height, width] = mask.shape;
    &mask.voxels[slice * height * width..(slice + 1) * height * width]
}

/// A slice as it is shown.
pub(crate) fn shown_slice(prediction: &CasePrediction, slice: usize) -> Result<ShownSlice> {
    let CaseMasks { prediction: mask, reference, spacing_mm, .. } = prediction.masks;
    let [_, height, width] = reference.shape;
    let display = Display::of(prediction.orientation);
    let grey = grey_slice(prediction, slice)?;
    Ok(ShownSlice {
        grey: grey.map(|grey| GreySlice { values: display.plane(&grey.values, grey.size), size: display.size(grey.size) }),
        reference: display.plane(plane_of(reference, slice), [height, width]),
        prediction: display.plane(plane_of(mask, slice), [height, width]),
        size: display.size([height, width]),
        spacing_mm: display.size(spacing_mm.map_or([1.0; 2], |[_, height, width]| [height, width])),
        sides: display.sides,
    })
}

/// Where the scan's file has its voxels.
fn own_geometry(prediction: &CasePrediction) -> Geometry {
    let CaseMasks { prediction: mask, spacing_mm, .. } = prediction.masks;
    let back = prediction.turn.inverse();
    let shape = back.of_reversed(mask.shape);
    match (prediction.geometry, spacing_mm) {
        (Some(geometry), _) => geometry.clone(),
        (None, Some(spacing_mm)) => Geometry::aligned(shape, back.of_reversed(spacing_mm)),
        (None, None) => Geometry::of_affine(shape, None),
    }
}

/// Scan, prediction and reference on the scan's own grid, as `.nii.gz`. The scan's greys are 0 to 255, by the nearest pixel of its pictures.
fn volumes(prediction: &CasePrediction) -> Result<[Vec<u8>; 3]> {
    let CaseMasks { case, prediction: mask, reference, .. } = prediction.masks;
    let [depth, height, width] = mask.shape;
    let mut scan = Vec::with_capacity(depth * height * width);
    for slice in 0..depth {
        let Some(grey) = grey_slice(prediction, slice)? else {
            scan.resize(scan.len() + height * width, 0);
            continue;
        };
        let [rows, columns] = grey.size;
        let value = |y: usize, x: usize| grey.values[y * rows / height * columns + x * columns / width];
        let byte = |value: f32| (value.clamp(0.0, 1.0) * 255.0).round() as u8;
        scan.extend((0..height).flat_map(|y| (0..width).map(move |x| (y, x))).map(|(y, x)| byte(value(y, x))));
    }
    let (back, geometry) = (prediction.turn.inverse(), own_geometry(prediction));
    let volume =
        |voxels: Vec<u8>| -> Result<Vec<u8>> { Ok(nifti_gz(Path::new(case), &geometry, &back.voxels(voxels, mask.shape))?) };
    Ok([volume(scan)?, volume(mask.voxels.to_vec())?, volume(reference.voxels.to_vec())?])
}

/// The scan's slice for a picture, if the case has images.
fn grey_slice(prediction: &CasePrediction, slice: usize) -> Result<Option<GreySlice>> {
    let Some(slices) = prediction.images else { return Ok(None) };
    let case = || prediction.masks.case.to_string();
    let grey = slices(slice).map_err(|source| EvalError::Picture { case: case(), slice, source })?;
    let GreySlice { size, ref values } = grey;
    if values.is_empty() || values.len() != size[0] * size[1] {
        return Err(EvalError::PictureSize { case: case(), slice, size, found: values.len() });
    }
    Ok(Some(grey))
}

/// Refuses a case whose name is not a plain file name, or would leave the folder.
fn check_file_name(case: &str) -> Result<()> {
    let plain = |character: char| !character.is_control() && !"/\\".contains(character);
    if case.is_empty() || case.starts_with('.') || case.len() > 200 || !case.chars().all(plain) {
        return Err(EvalError::CaseName { case: case.into() });
    }
    Ok(())
}
