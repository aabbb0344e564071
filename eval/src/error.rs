//! The errors of an evaluation: what happened and where, and what to do about it.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, EvalError>;

/// What can be wrong with an evaluation's input or output. [`EvalError::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// Prediction and reference have different shapes.
    #[error("case {case}: the prediction has shape {prediction:?}, the reference {reference:?}")]
    ShapesDiffer {
        /// Case, as in the store.
        case: String,
        /// `[d, h, w]` of the prediction.
        prediction: [usize; 3],
        /// `[d, h, w]` of the reference.
        reference: [usize; 3],
    },
    /// A mask's voxels do not fill its shape.
    #[error("case {case}: {mask} holds {found} voxels but its shape {shape:?} needs {expected}")]
    VoxelCount {
        /// Case, as in the store.
        case: String,
        /// `prediction` or `reference`.
        mask: &'static str,
        /// `[d, h, w]`.
        shape: [usize; 3],
        /// Product of `shape`.
        expected: usize,
        /// Voxels given.
        found: usize,
    },
    /// A mask has an axis of length zero, or one longer than a NIfTI file can hold.
    #[error("case {case}: shape {shape:?} has an axis whose length is not from 1 to {limit}")]
    Axis {
        /// Case, as in the store.
        case: String,
        /// `[d, h, w]`.
        shape: [usize; 3],
        /// Longest axis that a mask may have.
        limit: usize,
    },
    /// A mask holds a class that has no name.
    #[error("case {case}: {mask} holds class {found} but only {classes} organs are named")]
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
    /// A voxel spacing that is not a positive number of millimetres.
    #[error("case {case}: voxel spacing {spacing_mm:?} mm")]
    Spacing {
        /// Case, as in the store.
        case: String,
        /// Spacing along depth, height and width, in millimetres.
        spacing_mm: [f64; 3],
    },
    /// Millimetres without a spacing.
    #[error("case {case}: its voxel spacing is unknown, so nothing can be measured in millimetres")]
    NoSpacing {
        /// Case, as in the store.
        case: String,
    },
    /// A tolerance that is negative or not finite.
    #[error("the surface Dice cannot have a tolerance of {found} mm")]
    Tolerance {
        /// The tolerance.
        found: f64,
    },
    /// No organs, or more than a mask can hold.
    #[error("{found} organ names; an evaluation needs 1 to 255")]
    ClassNames {
        /// Number of names.
        found: usize,
    },
    /// A case that was added twice.
    #[error("case {case} was evaluated already")]
    RepeatedCase {
        /// Case, as in the store.
        case: String,
    },
    /// A case's name that cannot be a file's name.
    #[error("case name {case:?} cannot name a file")]
    CaseName {
        /// The name.
        case: String,
    },
    /// An evaluation that was finished without a case.
    #[error("{}: no case was evaluated", path.display())]
    NoCases {
        /// Output folder.
        path: PathBuf,
    },
    /// The output folder already holds an evaluation.
    #[error("{} holds an evaluation already", path.display())]
    Exists {
        /// Output folder.
        path: PathBuf,
    },
    /// A picture of a slice that could not be read.
    #[error("case {case}, slice {slice}: no picture for the overlay: {source}")]
    Picture {
        /// Case, as in the store.
        case: String,
        /// Slice, from 0.
        slice: usize,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A picture of a slice whose values do not fill it.
    #[error("case {case}, slice {slice}: {found} values for a picture of {size:?} pixels")]
    PictureSize {
        /// Case, as in the store.
        case: String,
        /// Slice, from 0.
        slice: usize,
        /// Height and width.
        size: [usize; 2],
        /// Values given.
        found: usize,
    },
    /// A picture that could not be encoded.
    #[error("{}: cannot encode the picture: {source}", path.display())]
    Png {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: png::EncodingError,
    },
    /// A folder without an evaluation.
    #[error("{} holds no evaluation: {missing} is missing, also in eval/", path.display())]
    NoEvaluation {
        /// The folder.
        path: PathBuf,
        /// The file that every evaluation has.
        missing: &'static str,
    },
    /// An evaluation of an older version, or one that lost a file.
    #[error("{} does not say how the scores were counted: {missing} is missing", path.display())]
    NoScoring {
        /// The folder.
        path: PathBuf,
        /// The missing file.
        missing: &'static str,
    },
    /// Evaluations of other organs.
    #[error("{} and {} cannot be compared: they have the organs {first_organs:?} and {second_organs:?}", first.display(), second.display())]
    OtherOrgans {
        /// One evaluation's folder.
        first: PathBuf,
        /// The other's.
        second: PathBuf,
        /// Organs of the one.
        first_organs: Vec<String>,
        /// Organs of the other.
        second_organs: Vec<String>,
    },
    /// Evaluations scored by other rules.
    #[error("{} and {} cannot be compared: they were scored by different rules ({first_rules} / {second_rules})", first.display(), second.display())]
    OtherRules {
        /// One evaluation's folder.
        first: PathBuf,
        /// The other's.
        second: PathBuf,
        /// Rules of the one.
        first_rules: String,
        /// Rules of the other.
        second_rules: String,
    },
    /// One evaluation of test scans, and one of held-out training cases.
    #[error("{} and {} cannot be compared: the one scored the split {first_split}, the other {second_split}", first.display(), second.display())]
    OtherSplits {
        /// One evaluation's folder.
        first: PathBuf,
        /// The other's.
        second: PathBuf,
        /// Split of the one.
        first_split: &'static str,
        /// Split of the other.
        second_split: &'static str,
    },
    /// Validations of runs that are no folds of one cross-validation.
    #[error("{} and {} are no folds of one cross-validation: {differing}", first.display(), second.display())]
    OtherSettings {
        /// One evaluation's folder.
        first: PathBuf,
        /// The other's.
        second: PathBuf,
        /// Each setting that differs, with both values.
        differing: String,
    },
    /// A case that two folds of a cross-validation have scored.
    #[error("case {case} is in two folds: {} and {}", first.display(), second.display())]
    TwoFolds {
        /// The case.
        case: String,
        /// One evaluation's folder.
        first: PathBuf,
        /// The other's.
        second: PathBuf,
    },
    /// Published rows next to a validation.
    #[error("the published rows are scores of test scans, but {} scored held-out training cases", path.display())]
    PublishedValidation {
        /// The evaluation's folder.
        path: PathBuf,
    },
    /// A row with a published row's name.
    #[error("a row is called {name:?}, as a published row is")]
    PublishedName {
        /// The name.
        name: String,
    },
    /// Evaluations of other cases.
    #[error("{} and {} cannot be compared: they have the cases {first_cases:?} and {second_cases:?}", first.display(), second.display())]
    OtherCases {
        /// One evaluation's folder.
        first: PathBuf,
        /// The other's.
        second: PathBuf,
        /// Cases of the one.
        first_cases: Vec<String>,
        /// Cases of the other.
        second_cases: Vec<String>,
    },
    /// A JSON file that does not have the program's format.
    #[error("{} is not what sam-ladder writes: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A file or folder could not be read or written.
    #[error(transparent)]
    File(#[from] sam_ladder_formats::Error),
}

impl EvalError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        use EvalError::*;
        Some(match self {
            ShapesDiffer { .. } => "predict at the scan's own resolution".into(),
            VoxelCount { .. } => "the mask is damaged; make it again".into(),
            Axis { limit, .. } => format!("evaluate only scans whose axes are 1 to {limit} voxels long"),
            Class { classes, .. } => format!("name every class; they run from 0 (background) to {classes} here"),
            Spacing { .. } => "every axis needs a positive number of millimetres; correct the scan's header".into(),
            NoSpacing { .. } => "state it with --spacing DEPTH,HEIGHT,WIDTH, or measure in voxels with --unit voxels".into(),
            Tolerance { .. } => "choose a tolerance of 0 mm or more".into(),
            ClassNames { .. } => "give the evaluation the names of the store's classes".into(),
            RepeatedCase { .. } => "add each case once".into(),
            CaseName { .. } => "use at most 200 bytes, no '/', '\\' or line breaks, and no '.' at the beginning".into(),
            NoCases { .. } => "check that the store's test split has cases".into(),
            Exists { .. } => "choose another folder, or replace the evaluation with --force".into(),
            NoEvaluation { .. } => "make one with sam-ladder eval --out".into(),
            NoScoring { .. } => "evaluate again, into another folder".into(),
            OtherOrgans { .. } => "compare evaluations of the same store's test scans".into(),
            OtherCases { .. } => {
                "compare evaluations of the same cases; the folds of a cross-validation, all with the same seed, are one row of a \
                 table: --row NAME=DIR,DIR"
                    .into()
            }
            OtherSplits { first_split, .. } => format!("evaluate the other with --split {first_split}, into another folder"),
            OtherSettings { .. } => "put runs of other settings into rows of their own: --row NAME=DIR,DIR --row OTHER=DIR,DIR".into(),
            TwoFolds { .. } => "name one evaluation of each fold, of runs that held out different cases".into(),
            PublishedValidation { .. } => "leave --published out".into(),
            PublishedName { .. } => "give it another name: --row NAME=DIR".into(),
            OtherRules { .. } => "evaluate one of them again, with the options of the other".into(),
            Json { .. } => "make it again with the command that wrote it, and --force".into(),
            File(error) => return error.hint(),
            Picture { .. } | PictureSize { .. } | Png { .. } => return None,
        })
    }
}
