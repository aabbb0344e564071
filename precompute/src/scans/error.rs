//! What can be wrong with scans.

use super::dataset_problem::DatasetProblem;
use sam_ladder_formats::volume::split_name;
use std::path::{Path, PathBuf};

/// What can be wrong with scans. Each message names the file, what was expected and what was found; [`Self::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A file or folder cannot be read.
    #[error(transparent)]
    File(#[from] sam_ladder_formats::Error),
    /// A folder without scans in any layout that is known.
    #[error("{path}: no scans found")]
    NoScans {
        /// The folder that was searched.
        path: PathBuf,
        /// What to do, if something is known besides the layouts.
        advice: Option<String>,
    },
    /// DICOM files, and no scans in a layout that is known.
    #[error("{path}: holds DICOM files, which are not read")]
    Dicom {
        /// The folder or file.
        path: PathBuf,
    },
    /// A folder without volumes, where scans to predict on were expected.
    #[error("{path}: no volume in this folder (.nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd, .hdr)")]
    NoVolumes {
        /// The folder.
        path: PathBuf,
    },
    /// A folder in which more than one layout is found.
    #[error("{path}: holds scans in two layouts, {first} and {second}")]
    Ambiguous {
        /// The folder that was searched.
        path: PathBuf,
        /// Where one was found.
        first: PathBuf,
        /// Where another was found.
        second: PathBuf,
    },
    /// An option that does not apply to the layout.
    #[error("{path} holds {layout}, to which {option} does not apply")]
    NotForLayout {
        /// The folder of scans.
        path: PathBuf,
        /// The option.
        option: &'static str,
        /// The layout's name.
        layout: &'static str,
    },
    /// A requested test case that is not there.
    #[error("{path}: there is no case {case:?}, which --test-cases names")]
    NoSuchCase {
        /// The folder of scans.
        path: PathBuf,
        /// The name.
        case: String,
        /// The cases there are.
        known: Vec<String>,
    },
    /// nnU-Net's `dataset.json`.
    #[error("{path}: {problem}")]
    Dataset {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: DatasetProblem,
    },
    /// An image of a channel that `dataset.json` lacks.
    #[error("{path}: is an image of channel {channel}, but dataset.json has only {known}")]
    UnknownChannel {
        /// The file.
        path: PathBuf,
        /// The channel's number.
        channel: u32,
        /// Number and name of each channel.
        known: String,
    },
    /// A file name that lacks its case.
    #[error("{path}: expected a name like {expected}")]
    Name {
        /// The file.
        path: PathBuf,
        /// A name of the right form.
        expected: &'static str,
    },
    /// An image whose name lacks its channel.
    #[error("{path}: its name lacks the number of its channel, _0000 for the first")]
    ChannelNumber {
        /// The file.
        path: PathBuf,
        /// A name that it could have.
        renamed: String,
    },
    /// A label whose name has a channel, as only those of images have.
    #[error("{label}: labels have no channel, but its name ends in _0000")]
    LabelWithChannel {
        /// The file.
        label: PathBuf,
        /// The name that it should have.
        renamed: String,
    },
    /// A new scan without a channel that the model takes.
    #[error("{path}: the model takes channel {channel}, and {missing} is not among the scans")]
    MissingChannel {
        /// A file of the scan.
        path: PathBuf,
        /// Number and name of the channel.
        channel: String,
        /// The file of that channel.
        missing: PathBuf,
        /// The name that this file could have, if the number in its name is the case's.
        renamed: String,
    },
    /// An image without its label, or a label without its image.
    #[error("{path}: its partner {missing} is missing")]
    Unpaired {
        /// The file that is there.
        path: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// Two files of the same case, slice or channel.
    #[error("{second}: same {what} as {first}")]
    Duplicate {
        /// `case`, `slice`, `channel` or `scan's name`.
        what: &'static str,
        /// The file that came first.
        first: PathBuf,
        /// The file that came second.
        second: PathBuf,
    },
    /// Slices of a case are missing.
    #[error("{folder}: case {case} has {found} slices but none with number {missing}")]
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
    /// Image and label, two channels, or two slices of a case, do not have the same shape.
    #[error("{path}: shape {found:?} differs from {expected:?} of {other}")]
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
    /// Image and label, or two channels, that do not lie in the same place.
    #[error("{path}: lies on another grid than {other}: their corners are up to {distance_mm:.3} mm apart")]
    Grid {
        /// The file.
        path: PathBuf,
        /// The file that it must agree with.
        other: PathBuf,
        /// Largest distance between the same corner of both.
        distance_mm: f64,
    },
    /// A volume of the published layout whose first axis is not the depth.
    #[error("{path}: shape {found:?} has slices of {}x{}, but {reason}", found[1], found[2])]
    SliceAxis {
        /// The file.
        path: PathBuf,
        /// Its shape.
        found: Vec<usize>,
        /// What says that its slices lie along another axis.
        reason: String,
    },
    /// Nothing to learn.
    #[error("{path}: the labels of all {scans} training scans are background everywhere")]
    NoForeground {
        /// The folder of scans.
        path: PathBuf,
        /// Training scans.
        scans: usize,
    },
    /// A file that changed while the program ran.
    #[error("{path}: has {found} slices, its header had {expected} when the program started")]
    Changed {
        /// The file.
        path: PathBuf,
        /// Slices now.
        found: usize,
        /// Slices before.
        expected: usize,
    },
    /// A file whose content changed while the program ran.
    #[error("{path}: has changed since the program started: its SHA-256 is {found}, it was {expected}")]
    Replaced {
        /// The file.
        path: PathBuf,
        /// SHA-256 of the bytes that were read.
        found: String,
        /// SHA-256 when the program started.
        expected: String,
    },
    /// An image value that is not a number.
    #[error("{path}: NaN in slice {slice}, row {row}, column {column}")]
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
    /// Image values that are infinite.
    #[error("{path}: holds infinite values: {count} of {voxels} voxels")]
    Infinite {
        /// The file.
        path: PathBuf,
        /// How many.
        count: usize,
        /// Voxels of the file.
        voxels: usize,
    },
    /// A label outside the map, or not a whole number.
    #[error("{path}: label {value} in slice {slice}, expected whole numbers from 0 to {largest}{}", scaled(*scaling))]
    Label {
        /// The file.
        path: PathBuf,
        /// The value found, in words.
        value: String,
        /// Slice, from 0.
        slice: usize,
        /// Largest label that is allowed.
        largest: usize,
        /// Slope and intercept by which the header scales the stored values, if it does.
        scaling: Option<(f64, f64)>,
        /// What decides on the classes of this layout: what to do if the labels are right, after "correct the labels, or".
        classes_from: &'static str,
    },
}

/// The header's scaling in words; nothing without one.
fn scaled(scaling: Option<(f64, f64)>) -> String {
    scaling.map_or_else(String::new, |(slope, intercept)| {
        format!("; its header scales the stored values by scl_slope {slope} and scl_inter {intercept}")
    })
}

impl ScanError {
    /// What is wrong and what to do about it, in one line.
    pub(super) fn with_hint(&self) -> String {
        self.hint().map_or_else(|| self.to_string(), |hint| format!("{self}; {hint}"))
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        use ScanError::*;
        Some(match self {
            File(error) => return error.hint(),
            NoScans { advice: Some(advice), .. } => advice.clone(),
            NoScans { .. } => {
                "expected RawData/Training/{img,label} with imgNNNN.nii.gz and labelNNNN.nii.gz, or train_npz/*.npz and \
                               test_vol_h5/*.npy.h5, or imagesTr, labelsTr and dataset.json"
                    .into()
            }
            Dicom { path } => format!("convert them first: dcm2niix -z y -o FOLDER {}", path.display()),
            NoVolumes { .. } => "give the folder that holds the scans, or the files".into(),
            Ambiguous { .. } => "give the folder of one of them, or move the other away".into(),
            NotForLayout { option, .. } => format!("remove {option}"),
            NoSuchCase { known, .. } => format!("the cases are {}", known.join(", ")),
            Dataset { problem, .. } => problem.hint(),
            UnknownChannel { path, .. } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let (stem, ending) = split_name(&name).unwrap_or((&name, ""));
                format!(
                    "add the channel to dataset.json, or move the file away; or, if the number in its name is the case's, add the channel's to it: \
                     {stem}_0000{ending}"
                )
            }
            Name { .. } => "rename it, or move it out of the folder".into(),
            ChannelNumber { renamed, .. } => format!("rename it: {renamed}"),
            LabelWithChannel { renamed, .. } => {
                format!("rename it: {renamed}; or, if 0000 is the case's number, add the channel's to the image: _0000_0000")
            }
            MissingChannel { renamed, .. } => {
                format!("add that file; or, if the number in this name is the case's, add the channel's to it: {renamed}")
            }
            Unpaired { .. } => "add that file, or move this one out of the folder".into(),
            Duplicate { .. } => "keep only one of the two".into(),
            MissingSlice { .. } => "preprocess that case again".into(),
            Shape { .. } => "check that both come from the same scan".into(),
            Grid { .. } => "resample it to that file's grid; if only its header is wrong, copy that file's affine".into(),
            SliceAxis { .. } => "store its arrays as [depth, height, width]: np.transpose(array, (2, 0, 1))".into(),
            NoForeground { .. } => {
                "check that the label files are those of the scans, and that they were saved with their values".into()
            }
            Changed { .. } | Replaced { .. } => "run the same command again when nothing writes to it".into(),
            NotANumber { .. } | Infinite { .. } => "repair the scan, or remove it from the folder".into(),
            Label { scaling: Some(_), classes_from, .. } => {
                format!("save the labels as whole numbers without scaling (scl_slope 1), correct them, or {classes_from}")
            }
            Label { classes_from, .. } => format!("correct the labels, or {classes_from}"),
        })
    }

    /// A system error, with the path it happened at.
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ScanError {
        let error = sam_ladder_formats::Error::io("read", path);
        move |source| error(source).into()
    }
}
