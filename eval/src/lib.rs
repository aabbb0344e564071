//! Evaluation: Dice and HD95 as the published code computes them, tables, overlay figures, a report and NIfTI masks.
//!
//! This crate knows no network. It is handed a predicted and a reference mask a case, through [`Evaluation::add_case`], and writes files.
//! The parts are usable alone: [`evaluate_case`] and [`summarise`] measure, [`overlay`] draws.

pub mod comparison;
pub mod dice;
mod distance;
pub mod error;
pub mod evaluation;
pub mod folder;
pub mod hd95;
mod html;
pub mod label_tables;
pub mod masks;
pub mod overlay;
pub mod palette;
mod picture_choice;
pub mod plot;
pub mod protocol;
mod report;
pub mod results;
pub mod run_curves;
mod scores;
pub mod statistics;
pub mod summary;
mod surface;
pub mod surface_distances;
pub mod sweep_page;
pub mod table_md;
pub mod tables;
mod write;

pub use dice::dice;
pub use error::EvalError;
pub use evaluation::{CasePrediction, Evaluation, EvaluationConfig, Outputs};
pub use hd95::hd95;
pub use masks::{Mask, MaskPair};
pub use overlay::GreySlice;
pub use palette::Palette;
pub use protocol::{DistanceUnit, EmptyRule, Hd95Definition, Protocol, Scoring, evaluate_case};
pub use summary::summarise;
pub use surface_distances::SurfaceDistances;
pub use sweep_page::{SweepPage, write_sweep_page};
