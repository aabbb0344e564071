//! The errors of an evaluation, each one line that names the case or file and says what to do.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, EvalError>;

/// What can be wrong with an evaluation's input or output.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Prediction and reference are of different shapes.
    #[error(
        "case {case}: prediction of shape {prediction:?} but reference of shape {reference:?}; predict at the scan's own resolution"
    )]
    ShapesDiffer {
        /// Case, as in the store.
        case: String,
        /// `[d, h, w]` of the prediction.
        prediction: [usize; 3],
        /// `[d, h, w]` of the reference.
        reference: [usize; 3],
    },
    /// A mask's voxels do not fill its shape.
    #[error(
        "case {case}: {mask} holds {found} voxels but its shape {shape:?} needs {expected}; the mask is damaged, make it again"
    )]
    VoxelCount {
        /// Case, as in the store.
        case: String,
        /// `prediction` or `reference`.
        mask: &'static str,
        /// `[d, h, w]`.
        shape: [usize; 3],
        /// Product of `shape`.
        expected: usize,
        /// Voxels handed in.
        found: usize,
    },
    /// A mask has an axis of zero length or one longer than a NIfTI file can hold.
    #[error("case {case}: shape {shape:?} has an axis outside 1 to {limit}; evaluate scans with every axis in that range", limit = crate::masks::MAX_AXIS)]
    Axis {
        /// Case, as in the store.
        case: String,
        /// `[d, h, w]`.
        shape: [usize; 3],
    },
    /// A mask holds a class that has no name.
    #[error(
        "case {case}: {mask} holds class {found} but only {classes} organs are named; classes run from 0 (background) to {classes}"
    )]
    Class {
        /// Case, as in the store.
        case: String,
        /// `prediction` or `reference`.
        mask: &'static str,
        /// The class found.
        found: u8,
        /// Number of named organs.
        classes: usize,
    },
    /// Spacing that is not a positive number of millimetres.
    #[error("case {case}: voxel spacing {spacing_mm:?} mm; every axis needs a positive, finite number")]
    Spacing {
        /// Case, as in the store.
        case: String,
        /// Spacing along depth, height and width, in millimetres.
        spacing_mm: [f64; 3],
    },
    /// A tolerance that no distance can be compared with.
    #[error("a tolerance of {found} mm; the surface Dice needs one of 0 mm or more")]
    Tolerance {
        /// The tolerance.
        found: f64,
    },
    /// Evaluations that cannot stand in one table.
    #[error("{} and {} cannot be compared: {reason}", first.display(), second.display())]
    NotComparable {
        /// One evaluation's folder.
        first: PathBuf,
        /// The other's.
        second: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A folder that holds no evaluation.
    #[error("{}: holds no evaluation ({} is missing, also below eval/); make one with sam-ladder eval --out", path.display(), crate::evaluation::CASES_TABLE)]
    NoEvaluation {
        /// The folder.
        path: PathBuf,
    },
    /// A file that ought to be there cannot be read as what it is.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// An evaluation without organs, or with more than a mask's 255 classes.
    #[error("{found} organ names; an evaluation needs 1 to 255")]
    ClassNames {
        /// Number of names.
        found: usize,
    },
    /// The same case twice.
    #[error("case {case} was evaluated already; each case counts once")]
    RepeatedCase {
        /// Case, as in the store.
        case: String,
    },
    /// A case's name that cannot be a file's name.
    #[error("case name {case:?} cannot name a file; use letters, digits, '.', '_' and '-'")]
    CaseName {
        /// The name.
        case: String,
    },
    /// Nothing was evaluated.
    #[error("{}: no case was evaluated; check that the store's test split has cases", path.display())]
    NoCases {
        /// Output folder.
        path: PathBuf,
    },
    /// The output folder holds an evaluation.
    #[error("{} holds an evaluation already; choose another folder or allow overwriting", path.display())]
    Exists {
        /// Output folder.
        path: PathBuf,
    },
    /// A slice's picture could not be had.
    #[error("case {case}, slice {slice}: no picture for the overlay: {reason}")]
    Picture {
        /// Case, as in the store.
        case: String,
        /// Slice, from 0.
        slice: usize,
        /// The cause.
        reason: String,
    },
    /// The file system refused.
    #[error("{}: cannot {action}: {source}; check permissions and free space", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] sam_ladder_formats::Error),
    /// A Parquet table could not be written.
    #[error("{}: cannot write the table: {reason}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// A PNG could not be encoded.
    #[error("{}: cannot encode the picture: {reason}", path.display())]
    Png {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
}
