//! Evaluation: Dice and HD95 as in the published code, tables, pictures, a report and NIfTI masks.
//!
//! This crate knows neither the network nor the store: it takes masks and writes files. [`Evaluation`] takes cases one by one and writes
//! the evaluation's folder; [`evaluate_case`] only computes scores:
//!
//! ```
//! use sam_ladder_eval::{CaseMasks, MaskView, Protocol, evaluate_case};
//!
//! // [d, h, w] = [1, 2, 4]: three of the liver's four voxels are found, and one voxel too many.
//! let shape = [1, 2, 4];
//! let prediction = [0, 1, 1, 0, 0, 1, 0, 1];
//! let reference = [0, 1, 1, 0, 0, 1, 1, 0];
//! let masks = CaseMasks {
//!     case: "0001",
//!     prediction: MaskView { voxels: &prediction, shape },
//!     reference: MaskView { voxels: &reference, shape },
//!     spacing_mm: Some([5.0, 0.8, 0.8]),
//! };
//! let rows = evaluate_case(&masks, &["liver".to_string()], Protocol::Standard)?;
//! assert_eq!(rows[0].dice, Some(0.75));
//! assert_eq!(rows[0].hd95, Some(0.8)); // millimetres
//! # Ok::<(), sam_ladder_eval::EvalError>(())
//! ```
//!
//! | file | what it defines |
//! | --- | --- |
//! | `dice`, `hd95`, `surface_dice` | the metrics |
//! | `surface_distances`, `surface_voxels`, `distance_transform` | the distances behind HD95 and surface Dice |
//! | `protocol` | the published and the standard rules |
//! | `case_scores`, `summary`, [`statistics`] | scores of a case, means over cases, intervals and tests |
//! | `learning_curve` | what further training cases are likely to bring |
//! | `postprocess`, `components` | what is done to masks after the arg-max, and its choice |
//! | `evaluation`, `folder`, `scored` | writing an evaluation's folder, reading it back; which cases it scored |
//! | `table_md`, `table_terminal`, [`comparison`], `results` | tables to read |
//! | `encoders` | scores of several encoders beside what they cost |
//! | `audit` | labels that several runs dispute |
//! | `inspection` | what `inspect` found in a folder of scans |
//! | `report`, `sweep_page`, [`plot`], `slice_picture`, `overlay`, `display`, `outline` | pages, charts and pictures |

mod audit;
mod case_scores;
pub mod comparison;
mod components;
mod dice;
mod display;
mod distance_transform;
mod encoders;
mod error;
mod evaluation;
mod folder;
mod hd95;
mod inspection;
pub mod label_tables;
mod learning_curve;
mod masks;
mod moves;
mod organ_columns;
mod outline;
mod overlay;
mod page;
mod palette;
mod picture_choice;
pub mod plot;
mod postprocess;
mod protocol;
mod publish;
mod report;
mod results;
mod run_curves;
mod scored;
mod scores;
mod slice_picture;
pub mod statistics;
mod summary;
mod surface_dice;
mod surface_distances;
mod surface_voxels;
mod sweep_page;
mod table_md;
mod table_terminal;
mod table_text;

pub use audit::{AUDIT_PAGE, AUDIT_TABLE, Audit, AuditConfig, AuditOutputs, DisputedSlice, class_name};
pub use case_scores::{CaseMasks, evaluate_case, evaluate_regions};
pub use dice::dice;
pub use display::GreySlice;
pub use encoders::{EncoderCost, EncoderTable};
pub use error::{EvalError, Result};
pub use evaluation::{CasePrediction, Evaluation, EvaluationConfig, EvaluationOutputs, GreySlices};
pub use folder::{
    CASE_PAGES, CASES_TABLE, EVALUATION_JSON, EvaluationFolder, EvaluationInfo, MASKS, OVERLAYS, REPORT, RunFact, SUMMARY_TABLE,
    TABLE_MARKDOWN,
};
pub use hd95::hd95;
pub use inspection::{inspection_lines, inspection_page};
pub use learning_curve::{CurvePoint, Forecast, PowerLaw, forecast};
pub use masks::{MaskPair, MaskView, Region};
pub use postprocess::{PostprocessingChoice, postprocess};
pub use protocol::Scoring;
pub use results::{Method, MethodComparison, ResultsTable, tabulate};
pub use run_curves::{Curve, RunCurves};
pub use sam_ladder_schemas::eval::{DistanceUnit, EmptyRule, EvalSettings, Hd95Definition, Palette, Protocol, ScoredSplit};
pub use scored::Scored;
pub use summary::{MEAN, summarise};
pub use sweep_page::write_sweep_page;
pub use table_text::aligned_table;
