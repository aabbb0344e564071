//! What can be wrong with scans.

use std::path::{Path, PathBuf};

/// What can be wrong with scans: each a line that names the file, what was expected and found, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A scan's file cannot be read.
    #[error(transparent)]
    File(#[from] sam_ladder_formats::Error),
    /// A file or folder cannot be opened, read or written.
    #[error("{path}: {source}; check that it exists and that you may access it")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A folder without scans in any layout that is known.
    #[error(
        "{path}: no scans found; expected RawData/Training/{{img,label}} with imgNNNN.nii.gz and labelNNNN.nii.gz, \
         train_npz/*.npz and test_vol_h5/*.npy.h5, or imagesTr, labelsTr and dataset.json"
    )]
    NoScans {
        /// The folder that was searched.
        path: PathBuf,
    },
    /// A folder without NIfTI files, where scans to predict on were expected.
    #[error("{path}: no .nii or .nii.gz file in this folder; name the folder that the scans lie in, or the files")]
    NoVolumes {
        /// The folder.
        path: PathBuf,
    },
    /// A folder in which more than one layout is found.
    #[error("{path}: holds scans in two layouts, {first} and {second}; name the folder of one of them, or move the other away")]
    Ambiguous {
        /// The folder that was searched.
        path: PathBuf,
        /// Where one was found.
        first: PathBuf,
        /// Where another was found.
        second: PathBuf,
    },
    /// A setting that the layout leaves no room for.
    #[error("{path} is {layout}, to which {option} does not apply; leave it out")]
    NotForLayout {
        /// The folder of scans.
        path: PathBuf,
        /// The option.
        option: &'static str,
        /// The layout's name.
        layout: &'static str,
    },
    /// A case that was named and is not there.
    #[error("{path}: --test-cases names {case:?}, expected some of its cases {}", known.join(", "))]
    NoSuchCase {
        /// The folder of scans.
        path: PathBuf,
        /// The name.
        case: String,
        /// The cases there are.
        known: Vec<String>,
    },
    /// nnU-Net's `dataset.json`, or a file that does not agree with it.
    #[error("{path}: {problem}")]
    Dataset {
        /// The file.
        path: PathBuf,
        /// What was expected, what was found, what to do.
        problem: String,
    },
    /// A file name that does not tell its case.
    #[error("{path}: expected a name like {expected}; rename it, or move it out of the folder")]
    Name {
        /// The file.
        path: PathBuf,
        /// A name of the right form.
        expected: &'static str,
    },
    /// An image without its label, or a label without its image.
    #[error("{path}: has no partner {missing}; add that file, or move this one out of the folder")]
    Unpaired {
        /// The file that is there.
        path: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// Two files that claim the same case, or the same slice of it.
    #[error("{second}: same {what} as {first}; keep one of the two")]
    Duplicate {
        /// `case` or `slice`.
        what: &'static str,
        /// The file that came first.
        first: PathBuf,
        /// The file that came second.
        second: PathBuf,
    },
    /// Slices of a case are missing.
    #[error("{folder}: case {case} has {found} slices but none numbered {missing}; preprocess that case again")]
    MissingSlice {
        /// The folder of slices.
        folder: PathBuf,
        /// The case.
        case: String,
        /// Slices found.
        found: usize,
        /// The first number that is missing, from 0.
        missing: usize,
    },
    /// Image and label, or two slices of a case, do not have the same shape.
    #[error("{path}: shape {found:?} differs from {expected:?} of {other}; both must come from the same scan")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its shape.
        found: Vec<usize>,
        /// The file that it must agree with.
        other: PathBuf,
        /// The shape of that file.
        expected: Vec<usize>,
    },
    /// An image value that is no number.
    #[error("{path}: NaN in slice {slice}, row {row}, column {column}; repair the scan or leave it out")]
    NotANumber {
        /// The file.
        path: PathBuf,
        /// Slice, from 0.
        slice: usize,
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
    },
    /// Values that no percentile makes finite.
    #[error("{path}: most of its values lie between {low} and {high}, expected finite numbers; repair the scan or leave it out")]
    Infinite {
        /// The file.
        path: PathBuf,
        /// The lower percentile.
        low: f32,
        /// The upper percentile.
        high: f32,
    },
    /// A label outside the map, or not a whole number.
    #[error(
        "{path}: label {value} in slice {slice}; expected whole numbers from 0 to {largest}; correct the labels or the label map"
    )]
    Label {
        /// The file.
        path: PathBuf,
        /// The value found.
        value: f32,
        /// Slice, from 0.
        slice: usize,
        /// Largest label that is allowed.
        largest: usize,
    },
}

impl ScanError {
    /// A system error, with the path it happened at.
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ScanError + '_ {
        move |source| ScanError::Io { path: path.into(), source }
    }
}
