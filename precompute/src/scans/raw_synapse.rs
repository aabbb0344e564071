//! The raw layout of the Synapse multi-organ set: `img/imgNNNN.nii.gz` and `label/labelNNNN.nii.gz`, prepared as the
//! published `preprocess_data.py` does.

use super::error::ScanError;
use super::intensity::apply_window;
use super::{CaseEntry, Scan, file_name, list_files, read_file, source_file};
use sam_ladder_formats::nifti::{decode_image, read_geometry};
use sam_ladder_schemas::classes::{SYNAPSE_TEST_CASES, Split};
use sam_ladder_schemas::precompute::Preprocessing;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A folder's files by case number: the number as it is written, and the file.
type Numbered = BTreeMap<u32, (String, PathBuf)>;

/// The folder below `dir` (or `dir` itself) that holds `img` and `label`.
pub(super) fn find(dir: &Path) -> Option<PathBuf> {
    ["RawData/Training", "Training", ""]
        .map(|below| dir.join(below))
        .into_iter()
        .find(|training| training.join("img").is_dir() || training.join("label").is_dir())
}

/// The cases of a folder that holds `img` and `label`: pairs are complete and their shapes agree.
pub(super) fn cases(training: &Path) -> Result<Vec<CaseEntry>, ScanError> {
    let images = numbered(&training.join("img"), "img", "img0001.nii.gz")?;
    let mut labels = numbered(&training.join("label"), "label", "label0001.nii.gz")?;
    let mut cases = Vec::with_capacity(images.len());
    for (number, (case, image)) in images {
        let Some((_, label)) = labels.remove(&number) else {
            return Err(unpaired(image, training.join("label"), format!("label{case}.nii.gz")));
        };
        let shape = read_geometry(&image)?.shape;
        same_shape(&label, read_geometry(&label)?.shape, &image, shape)?;
        let split = if SYNAPSE_TEST_CASES.contains(&number) { Split::Test } else { Split::Train };
        cases.push(CaseEntry { case, split, num_slices: shape[0], files: vec![image, label] });
    }
    if let Some((_, (case, label))) = labels.pop_first() {
        return Err(unpaired(label, training.join("img"), format!("img{case}.nii.gz")));
    }
    Ok(cases)
}

/// Reads a case: window, scale, map the labels. Slices stay in the order of the file.
pub(super) fn read(root: &Path, entry: &CaseEntry, preprocessing: &Preprocessing) -> Result<Scan, ScanError> {
    let [image_path, label_path] = [&entry.files[0], &entry.files[1]];
    let mut files = Vec::new();
    let bytes = read_file(image_path, &mut files)?;
    let source = source_file(root, &files);
    let mut image = decode_image(image_path, &bytes)?;
    drop(bytes);
    let label = decode_image(label_path, &read_file(label_path, &mut files)?)?;
    let shape = image.geometry.shape;
    same_shape(label_path, label.geometry.shape, image_path, shape)?;
    apply_window(image_path, &mut image.voxels, shape, preprocessing.window_hu)?;
    let label = map_labels(label_path, &label.voxels, shape, &preprocessing.label_map)?;
    Ok(Scan {
        case: entry.case.clone(),
        split: entry.split,
        shape,
        spacing_mm: image.geometry.spacing_mm(),
        image: image.voxels,
        label,
        slice_sources: vec![source; shape[0]],
        files,
    })
}

/// Classes of raw labels `[d, h, w]`.
pub(super) fn map_labels(path: &Path, labels: &[f32], [_, h, w]: [usize; 3], map: &[u8]) -> Result<Vec<u8>, ScanError> {
    labels
        .iter()
        .enumerate()
        .map(|(at, &value)| {
            let index = value as usize;
            match map.get(index) {
                Some(&class) if index as f32 == value => Ok(class),
                _ => {
                    Err(ScanError::Label { path: path.into(), value, slice: at / (h * w), largest: map.len().saturating_sub(1) })
                }
            }
        })
        .collect()
}

/// An error unless two files of a case have the same shape.
pub(super) fn same_shape(path: &Path, found: [usize; 3], other: &Path, expected: [usize; 3]) -> Result<(), ScanError> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.to_vec(), expected.to_vec());
    Err(ScanError::Shape { path: path.into(), found, other: other.into(), expected })
}

fn unpaired(path: PathBuf, folder: PathBuf, name: String) -> ScanError {
    ScanError::Unpaired { path, missing: folder.join(name) }
}

/// The NIfTI files of a folder by the number in their names; other files are passed over.
fn numbered(folder: &Path, prefix: &str, expected: &'static str) -> Result<Numbered, ScanError> {
    let mut files = Numbered::new();
    for path in list_files(folder)? {
        let name = file_name(&path);
        let Some(stem) = name.strip_suffix(".nii.gz").or_else(|| name.strip_suffix(".nii")) else { continue };
        let digits = stem.strip_prefix(prefix).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let Some((digits, number)) = digits.and_then(|digits| Some((digits.to_owned(), digits.parse().ok()?))) else {
            return Err(ScanError::Name { path, expected });
        };
        if let Some((_, first)) = files.get(&number) {
            return Err(ScanError::Duplicate { what: "case", first: first.clone(), second: path });
        }
        files.insert(number, (digits, path));
    }
    Ok(files)
}
