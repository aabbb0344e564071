//! The published preprocessed layout: `train_npz/caseNNNN_sliceDDD.npz` and `test_vol_h5/caseNNNN.npy.h5`.
//!
//! Images are windowed and labels are classes already. The layout keeps neither voxel spacing nor orientation.

use super::error::ScanError;
use super::folder::{Reason, Unused, list_files};
use super::intensity::{ChannelValues, refuse_not_finite};
use super::label_map::StoredLabels;
use super::{CaseEntry, Layout, Scan, file_name, read_file, source_file};
use sam_ladder_formats::volume::without_ending;
use sam_ladder_formats::{Array, hdf5, npz, placeholder};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::preprocessing::Preprocessing;
use sam_ladder_schemas::tables::ScanRow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const TRAIN: &str = "train_npz";
const TEST: &str = "test_vol_h5";
/// What each file holds.
const ARRAYS: [&str; 2] = ["image", "label"];

/// The folder `dir` if it holds either half of the layout.
pub(super) fn find(dir: &Path) -> Option<PathBuf> {
    [TRAIN, TEST].iter().any(|half| !folders(dir, half).is_empty()).then(|| dir.into())
}

/// The folders of a half: of its name, or with a suffix that other preprocessing gave it (`train_npz_new_224`).
fn folders(dir: &Path, half: &str) -> Vec<PathBuf> {
    let is_half = |path: &PathBuf| {
        file_name(path).strip_prefix(half).is_some_and(|suffix| suffix.is_empty() || suffix.starts_with(['_', '-']))
            && path.is_dir()
    };
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_half).collect();
    found.sort();
    found
}

/// The folder of a half, if there is one: of several, that of the plain name.
fn half(dir: &Path, half: &str, unused: &mut Unused) -> Result<Option<PathBuf>, ScanError> {
    let found = folders(dir, half);
    match &found[..] {
        [first, second, ..] if file_name(first) != half => {
            Err(ScanError::Ambiguous { path: dir.into(), first: first.clone(), second: second.clone() })
        }
        [first, others @ ..] => {
            others.iter().for_each(|other| unused.add(other, Reason::Folder { taken: half.into() }));
            Ok(Some(first.clone()))
        }
        [] => Ok(None),
    }
}

/// The cases of both halves: no slice is missing, no case appears twice.
pub(super) fn cases(root: &Path, unused: &mut Unused) -> Result<Vec<CaseEntry>, ScanError> {
    let mut cases = Vec::new();
    let mut seen: BTreeMap<u32, PathBuf> = BTreeMap::new();
    if let Some(train) = half(root, TRAIN, unused)? {
        cases.extend(train_cases(&train, unused)?);
        for entry in &cases {
            // The number was parsed once already.
            seen.extend(entry.case.parse().ok().zip(entry.files.first().cloned()));
        }
    }
    let Some(test) = half(root, TEST, unused)? else { return Ok(cases) };
    for path in list_files(&test, unused)? {
        let name = file_name(&path);
        let Some(stem) = without_ending(&name, ".h5") else {
            unused.add_if_scan(&path, ".npy.h5");
            continue;
        };
        let parsed = without_ending(stem, ".npy").unwrap_or(stem).strip_prefix("case").and_then(number);
        let Some((case, number)) = parsed else {
            unused.or_list::<()>(Err(ScanError::Name { path, expected: "case0001.npy.h5" }))?;
            continue;
        };
        if let Some(first) = seen.insert(number, path.clone()) {
            unused.or_list::<()>(Err(ScanError::Duplicate { what: "case", first, second: path }))?;
            continue;
        }
        cases.extend(unused.or_list(test_case(case, path))?);
    }
    Ok(cases)
}

fn test_case(case: String, path: PathBuf) -> Result<CaseEntry, ScanError> {
    placeholder::refuse(&path)?;
    let num_slices = hdf5::read_shape(&path, ARRAYS[0])?[0];
    Ok(CaseEntry { case, split: Split::Test, num_slices, files: vec![path], voxel_files: Vec::new(), grid: None })
}

/// Slices of `train_npz`, gathered into cases.
fn train_cases(folder: &Path, unused: &mut Unused) -> Result<Vec<CaseEntry>, ScanError> {
    let mut cases: BTreeMap<u32, (String, BTreeMap<u32, PathBuf>)> = BTreeMap::new();
    for path in list_files(folder, unused)? {
        let name = file_name(&path);
        let Some(stem) = without_ending(&name, ".npz") else {
            unused.add_if_scan(&path, ".npz");
            continue;
        };
        let parsed = stem.strip_prefix("case").and_then(|rest| rest.split_once("_slice"));
        let Some(((case, case_number), (_, slice))) = parsed.and_then(|(case, slice)| number(case).zip(number(slice))) else {
            unused.or_list::<()>(Err(ScanError::Name { path, expected: "case0005_slice000.npz" }))?;
            continue;
        };
        let slices = &mut cases.entry(case_number).or_insert_with(|| (case, BTreeMap::new())).1;
        if let Some(first) = slices.insert(slice, path.clone()) {
            unused.or_list::<()>(Err(ScanError::Duplicate { what: "slice", first, second: path }))?;
        }
    }
    let mut entries = Vec::with_capacity(cases.len());
    for (case, slices) in cases.into_values() {
        let found = slices.len();
        if let Some(missing) = slices.keys().enumerate().position(|(expected, &slice)| expected as u32 != slice) {
            unused.or_list::<()>(Err(ScanError::MissingSlice { folder: folder.into(), case, found, missing }))?;
            continue;
        }
        let files: Vec<PathBuf> = slices.into_values().collect();
        entries.push(CaseEntry { case, split: Split::Train, num_slices: found, files, voxel_files: Vec::new(), grid: None });
    }
    Ok(entries)
}

/// The classes that labels may have: up to the largest one that the map of raw labels gives.
pub(super) fn classes(label_map: &[u8]) -> Vec<u8> {
    (0..=label_map.iter().copied().max().unwrap_or(0)).collect()
}

/// Only the labels of a file, `[d, h, w]`.
pub(super) fn read_label(path: &Path, split: Split) -> Result<Array, ScanError> {
    let bytes = placeholder::read(path)?;
    let [label] = match split {
        Split::Train => npz::read_arrays(path, bytes, [ARRAYS[1]])?,
        Split::Test => hdf5::read_arrays(path, bytes, [ARRAYS[1]])?,
    };
    Ok(label)
}

/// An error for a test volume `[height, width, depth]`, of the files of both halves with their shapes.
pub(super) fn check_axes(files: &[(Split, PathBuf, [usize; 3])]) -> Result<(), ScanError> {
    let is_training = |height: usize, width: usize| {
        files.iter().any(|(split, _, [_, h, w])| *split == Split::Train && (*h, *w) == (height, width))
    };
    for (_, path, shape) in files.iter().filter(|(split, ..)| *split == Split::Test) {
        let [first, second, third] = *shape;
        let reason = if is_training(second, third) {
            continue;
        } else if is_training(first, second) {
            format!("the training slices have {first}x{second}")
        } else if first == second && second != third {
            format!("its first two axes are equal, as those of slices of {first}x{second} are")
        } else {
            continue;
        };
        return Err(ScanError::SliceAxis { path: path.clone(), found: shape.to_vec(), reason });
    }
    Ok(())
}

/// Reads a case of either half.
pub(super) fn read(root: &Path, entry: &CaseEntry, preprocessing: &Preprocessing) -> Result<Scan, ScanError> {
    let classes = classes(&preprocessing.label_map);
    let (mut image, mut label, mut slice_sources) = (Vec::new(), Vec::new(), Vec::new());
    let (mut files, mut shape) = (Vec::new(), [0; 3]);
    for path in &entry.files {
        let bytes = read_file(path, &mut files)?;
        let source = source_file(root, &files[files.len() - 1]);
        let [values, labels] = match entry.split {
            Split::Train => npz::read_arrays(path, bytes, ARRAYS)?,
            Split::Test => hdf5::read_arrays(path, bytes, ARRAYS)?,
        };
        let [d, h, w] = values.shape;
        same_shape(path, labels.shape, path, values.shape)?;
        if let Some(first) = entry.files.first().filter(|_| !image.is_empty()) {
            same_shape(path, values.shape, first, [d, shape[1], shape[2]])?;
        }
        refuse_not_finite(path, &values.values, values.shape)?;
        label.extend(StoredLabels::of_array(path, &labels).classes(&classes, Layout::Published)?);
        shape = [shape[0] + d, h, w];
        image.extend(values.values);
        slice_sources.extend(std::iter::repeat_n(source, d));
    }
    let values = ChannelValues::of(&image, [0.0, 1.0]);
    let first = entry.files.first().map(|path| path.display().to_string()).unwrap_or_default();
    let notes = values.strange_in_unit_range().map(|strange| format!("warning: {first}: {strange}"));
    let row = ScanRow {
        axis_codes: preprocessing.orientation.map(|codes| codes.to_string()),
        percentiles: values.percentiles.to_vec(),
        in_window: vec![values.in_window],
        ..ScanRow::of_array(&entry.case, shape, preprocessing.spacing_mm)
    };
    Ok(Scan {
        case: entry.case.clone(),
        split: entry.split,
        shape,
        spacing_mm: preprocessing.spacing_mm,
        image,
        label,
        slice_sources,
        row,
        notes: notes.into_iter().collect(),
        files,
    })
}

/// An error unless two arrays of a case have the same shape.
fn same_shape(path: &Path, found: [usize; 3], other: &Path, expected: [usize; 3]) -> Result<(), ScanError> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.to_vec(), expected.to_vec());
    Err(ScanError::Shape { path: path.into(), found, other: other.into(), expected })
}

/// A run of digits, as written and as a number.
fn number(digits: &str) -> Option<(String, u32)> {
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| all_digits).map(|number| (digits.to_owned(), number))
}
