//! The driver: takes one case after the other and writes an evaluation's folder.

use crate::error::{EvalError, Result};
use crate::folder::EvaluationInfo;
use crate::overlay::{GreySlice, Panels, draw, encode_png};
use crate::palette::Palette;
use crate::picture_choice::choose_slices;
use crate::protocol::{CaseMasks, Scoring, check_class_names, evaluate_case};
use crate::report::{self, Report, SlicePicture};
use crate::run_curves::RunCurves;
use crate::summary::summarise;
use crate::table_md::{TableContext, markdown};
use crate::tables::{cases_batch, summary_batch, write as write_table};
use crate::write::write_bytes;
use sam_ladder_formats::nifti::{Geometry, write_nifti};
use sam_ladder_schemas::tables::{CaseRow, SummaryRow};
use std::path::{Path, PathBuf};

/// One row a case and organ.
pub const CASES_TABLE: &str = "cases.parquet";
/// One row an organ, and the mean.
pub const SUMMARY_TABLE: &str = "summary.parquet";
/// The scores in the shape of the paper's Table I.
pub const TABLE_MARKDOWN: &str = "table.md";
/// How the scores were counted: an [`EvaluationInfo`].
pub const EVALUATION_JSON: &str = "evaluation.json";
/// The page.
pub const REPORT: &str = "report.html";
/// Folder of the pictures, `<case>_slice<index>.png`.
pub const OVERLAYS: &str = "overlays";
/// Folder of the predicted masks, `<case>.nii.gz`.
pub const MASKS: &str = "masks";
/// Folder of an evaluation under way, within the output folder.
const UNFINISHED: &str = ".unfinished";

/// How an evaluation is made, and where it goes.
#[derive(Debug, Clone)]
pub struct EvaluationConfig {
    /// Output folder; made where it is not there.
    pub out_dir: PathBuf,
    /// Names of the classes from 1, as in the store.
    pub class_names: Vec<String>,
    /// How the scores are counted.
    pub scoring: Scoring,
    /// Name of the row in the table, and title of the report.
    pub method: String,
    /// What the report says of the run, in this order: pairs of a name and a value.
    pub run_info: Vec<(String, String)>,
    /// The course of the run, for the report; without, it shows none.
    pub curves: Option<RunCurves>,
    /// Pictures of each case's worst slices, and as many of its best, besides the one of the slice with the most organ voxels.
    pub extreme_slices: usize,
    /// Colours of the organs in pictures.
    pub palette: Palette,
    /// Write the predicted masks as NIfTI.
    pub save_nifti: bool,
    /// Replace an evaluation that the folder holds.
    pub overwrite: bool,
}

/// Gives the scan's slice of an index, for the pictures.
pub type SlicePictures<'a> = dyn Fn(usize) -> std::result::Result<GreySlice, Box<dyn std::error::Error + Send + Sync>> + 'a;

/// One case as predicted.
pub struct CasePrediction<'a> {
    /// Its masks and spacing.
    pub masks: CaseMasks<'a>,
    /// The scan's slices, asked for only where a picture shows one; black without.
    pub images: Option<&'a SlicePictures<'a>>,
    /// Where the scan's voxels lie, for the mask's file; without, the affine is the diagonal of the spacing.
    pub geometry: Option<&'a Geometry>,
}

/// What an evaluation found, and where it wrote it.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// One row a case and organ.
    pub cases: Vec<CaseRow>,
    /// One row an organ, and the mean.
    pub summary: Vec<SummaryRow>,
    /// `table.md`'s text.
    pub table: String,
    /// The page.
    pub report: PathBuf,
}

/// An evaluation under way. Holds the scores and one case's pictures; masks are borrowed a case at a time.
///
/// Files are made in a hidden folder and moved to their places by [`Evaluation::finish`], the tables last: a folder that holds
/// `cases.parquet` holds the whole evaluation, and the one that it replaces stays whole until then.
#[derive(Debug)]
pub struct Evaluation {
    config: EvaluationConfig,
    unfinished: PathBuf,
    cases: Vec<CaseRow>,
    evaluated: Vec<String>,
    pictures: Vec<SlicePicture>,
}

impl Evaluation {
    /// Starts an evaluation.
    ///
    /// # Errors
    /// Where the folder holds an evaluation and `overwrite` is not set, it cannot be made, or the organs have no names.
    pub fn new(config: EvaluationConfig) -> Result<Self> {
        check_class_names(&config.class_names)?;
        if config.out_dir.join(CASES_TABLE).exists() && !config.overwrite {
            return Err(EvalError::Exists { path: config.out_dir });
        }
        let unfinished = config.out_dir.join(UNFINISHED);
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished).map_err(io(&unfinished, "remove"))?;
        }
        create_dir(&unfinished.join(OVERLAYS))?;
        if config.save_nifti {
            create_dir(&unfinished.join(MASKS))?;
        }
        Ok(Evaluation { config, unfinished, cases: Vec::new(), evaluated: Vec::new(), pictures: Vec::new() })
    }

    /// Scores a case, writes its mask and pictures, and returns its rows.
    ///
    /// # Errors
    /// As [`evaluate_case`]; where a case comes twice or its name cannot name a file; where a file cannot be written or a slice's picture is not to be had.
    /// After an error the case does not count, and other cases may follow.
    pub fn add_case(&mut self, prediction: &CasePrediction) -> Result<&[CaseRow]> {
        let CaseMasks { case, prediction: mask, spacing_mm, .. } = prediction.masks;
        check_file_name(case)?;
        if self.evaluated.iter().any(|evaluated| evaluated == case) {
            return Err(EvalError::RepeatedCase { case: case.into() });
        }
        let rows = evaluate_case(&prediction.masks, &self.config.class_names, self.config.scoring)?;
        let drawn = self.draw_case(prediction)?;
        if self.config.save_nifti {
            let aligned = Geometry::aligned(mask.shape, spacing_mm);
            let path = self.unfinished.join(MASKS).join(format!("{case}.nii.gz"));
            write_nifti(&path, prediction.geometry.unwrap_or(&aligned), mask.voxels)?;
        }
        for (picture, png) in drawn {
            write_bytes(&picture.path, &png)?;
            self.pictures.push(picture);
        }
        self.evaluated.push(case.into());
        let first = self.cases.len();
        self.cases.extend(rows);
        Ok(&self.cases[first..])
    }

    /// A case's pictures, and each one's PNG file.
    fn draw_case(&self, prediction: &CasePrediction) -> Result<Vec<(SlicePicture, Vec<u8>)>> {
        let CaseMasks { case, prediction: mask, reference, spacing_mm } = prediction.masks;
        let [_, height, width] = reference.shape;
        let mut pictures = Vec::new();
        for chosen in choose_slices(mask, reference, self.config.extreme_slices) {
            let slice = chosen.slice;
            let refused = |reason: String| EvalError::Picture { case: case.into(), slice, reason };
            let grey = prediction.images.map(|images| images(slice)).transpose().map_err(|error| refused(error.to_string()))?;
            if let Some(GreySlice { size, values }) = &grey
                && (values.is_empty() || values.len() != size[0] * size[1])
            {
                return Err(refused(format!("{} values for a picture of {size:?} pixels", values.len())));
            }
            let plane = slice * height * width..(slice + 1) * height * width;
            let picture = draw(&Panels {
                grey: grey.as_ref(),
                reference: &reference.voxels[plane.clone()],
                prediction: &mask.voxels[plane],
                size: [height, width],
                spacing_mm: [spacing_mm[1], spacing_mm[2]],
                palette: self.config.palette,
            });
            let path = self.unfinished.join(OVERLAYS).join(format!("{case}_slice{slice:03}.png"));
            let bytes = encode_png(&picture).map_err(|error| EvalError::Png { path: path.clone(), reason: error.to_string() })?;
            let picture = SlicePicture { case: case.into(), chosen, path, width: picture.width, height: picture.height };
            pictures.push((picture, bytes));
        }
        Ok(pictures)
    }

    /// Writes tables and report, and moves everything to its place.
    ///
    /// # Errors
    /// Where no case was evaluated, or a file cannot be written.
    pub fn finish(self) -> Result<Outputs> {
        let Evaluation { config, unfinished, cases, evaluated, pictures } = self;
        if evaluated.is_empty() {
            // Nothing is in it but empty folders; that it stays does no harm.
            let _ = std::fs::remove_dir_all(&unfinished);
            return Err(EvalError::NoCases { path: config.out_dir });
        }
        let summary = summarise(&cases, &config.class_names);
        let context = TableContext {
            method: &config.method,
            class_names: &config.class_names,
            scoring: config.scoring,
            cases: evaluated.len(),
        };
        let table = markdown(&summary, &context);
        write_bytes(&unfinished.join(TABLE_MARKDOWN), table.as_bytes())?;
        let report = Report {
            context,
            run_info: &config.run_info,
            cases: &cases,
            summary: &summary,
            pictures: &pictures,
            palette: config.palette,
            curves: config.curves.as_ref(),
        };
        report::write(&unfinished.join(REPORT), &report)?;
        let info = EvaluationInfo {
            method: config.method.clone(),
            class_names: config.class_names.clone(),
            scoring: config.scoring,
            run_info: config.run_info.clone(),
        };
        let path = unfinished.join(EVALUATION_JSON);
        let json = serde_json::to_vec_pretty(&info).map_err(|error| EvalError::Io {
            path: path.clone(),
            action: "write",
            source: error.into(),
        })?;
        write_bytes(&path, &json)?;
        write_table(&unfinished.join(SUMMARY_TABLE), summary_batch(&summary))?;
        write_table(&unfinished.join(CASES_TABLE), cases_batch(&cases))?;

        remove_if_there(&config.out_dir.join(CASES_TABLE))?;
        for name in [MASKS, OVERLAYS, TABLE_MARKDOWN, REPORT, EVALUATION_JSON, SUMMARY_TABLE, CASES_TABLE] {
            let (made, place) = (unfinished.join(name), config.out_dir.join(name));
            remove_if_there(&place)?;
            if made.exists() {
                std::fs::rename(&made, &place).map_err(io(&place, "write"))?;
            }
        }
        std::fs::remove_dir_all(&unfinished).map_err(io(&unfinished, "remove"))?;
        Ok(Outputs { cases, summary, table, report: config.out_dir.join(REPORT) })
    }
}

/// Refuses a case that would not be a plain file's name, or would leave the folder.
fn check_file_name(case: &str) -> Result<()> {
    let plain = |character: char| character.is_alphanumeric() || "._-".contains(character);
    if case.is_empty() || case.starts_with('.') || case.len() > 200 || !case.chars().all(plain) {
        return Err(EvalError::CaseName { case: case.into() });
    }
    Ok(())
}

pub(crate) fn create_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(io(path, "make the folder"))
}

fn remove_if_there(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(path, "remove")(error)),
        _ => Ok(()),
    }
}

/// To an error that names the path and what was tried.
fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> EvalError {
    move |source| EvalError::Io { path: path.into(), action, source }
}
