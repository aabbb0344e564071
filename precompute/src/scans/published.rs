//! The published preprocessed layout: `train_npz/caseNNNN_sliceDDD.npz` and `test_vol_h5/caseNNNN.npy.h5`.
//!
//! Images are windowed and labels are classes already. The layout keeps no voxel spacing: 1 is used.

use super::error::ScanError;
use super::intensity::refuse_nan;
use super::raw_synapse::{map_labels, same_shape};
use super::{CaseEntry, Scan, file_name, list_files, read_file, source_file};
use sam_ladder_formats::{hdf5, npz};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::Preprocessing;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const TRAIN: &str = "train_npz";
const TEST: &str = "test_vol_h5";
/// What each file holds.
const ARRAYS: [&str; 2] = ["image", "label"];

/// The folder `dir` if it holds either half of the layout.
pub(super) fn find(dir: &Path) -> Option<PathBuf> {
    [TRAIN, TEST].iter().any(|half| dir.join(half).is_dir()).then(|| dir.into())
}

/// The cases of both halves: no slice is missing, no case appears twice.
pub(super) fn cases(root: &Path) -> Result<Vec<CaseEntry>, ScanError> {
    let mut cases = Vec::new();
    let mut seen: BTreeMap<u32, PathBuf> = BTreeMap::new();
    if root.join(TRAIN).is_dir() {
        cases.extend(train_cases(&root.join(TRAIN))?);
        for entry in &cases {
            // The number was parsed once already.
            seen.extend(entry.case.parse().ok().zip(entry.files.first().cloned()));
        }
    }
    if root.join(TEST).is_dir() {
        for path in list_files(&root.join(TEST))? {
            let name = file_name(&path);
            let Some(stem) = name.strip_suffix(".h5") else { continue };
            let parsed = stem.strip_suffix(".npy").unwrap_or(stem).strip_prefix("case").and_then(number);
            let Some((case, number)) = parsed else {
                return Err(ScanError::Name { path, expected: "case0001.npy.h5" });
            };
            if let Some(first) = seen.insert(number, path.clone()) {
                return Err(ScanError::Duplicate { what: "case", first, second: path });
            }
            let num_slices = hdf5::read_shape(&path, ARRAYS[0])?[0];
            cases.push(CaseEntry { case, split: Split::Test, num_slices, files: vec![path] });
        }
    }
    Ok(cases)
}

/// Slices of `train_npz`, gathered into cases.
fn train_cases(folder: &Path) -> Result<Vec<CaseEntry>, ScanError> {
    let mut cases: BTreeMap<u32, (String, BTreeMap<u32, PathBuf>)> = BTreeMap::new();
    for path in list_files(folder)? {
        let name = file_name(&path);
        let Some(stem) = name.strip_suffix(".npz") else { continue };
        let parsed = stem.strip_prefix("case").and_then(|rest| rest.split_once("_slice"));
        let Some(((case, case_number), (_, slice))) = parsed.and_then(|(case, slice)| number(case).zip(number(slice))) else {
            return Err(ScanError::Name { path, expected: "case0005_slice000.npz" });
        };
        let slices = &mut cases.entry(case_number).or_insert_with(|| (case, BTreeMap::new())).1;
        if let Some(first) = slices.insert(slice, path.clone()) {
            return Err(ScanError::Duplicate { what: "slice", first, second: path });
        }
    }
    let mut entries = Vec::with_capacity(cases.len());
    for (case, slices) in cases.into_values() {
        let found = slices.len();
        if let Some(missing) = slices.keys().enumerate().position(|(expected, &slice)| expected as u32 != slice) {
            return Err(ScanError::MissingSlice { folder: folder.into(), case, found, missing });
        }
        let files: Vec<PathBuf> = slices.into_values().collect();
        entries.push(CaseEntry { case, split: Split::Train, num_slices: found, files });
    }
    Ok(entries)
}

/// Reads a case of either half.
pub(super) fn read(root: &Path, entry: &CaseEntry, preprocessing: &Preprocessing) -> Result<Scan, ScanError> {
    let largest = preprocessing.label_map.iter().copied().max().unwrap_or(0);
    let classes: Vec<u8> = (0..=largest).collect();
    let mut scan = Scan {
        case: entry.case.clone(),
        split: entry.split,
        shape: [0; 3],
        spacing_mm: [1.0; 3],
        image: Vec::new(),
        label: Vec::new(),
        slice_sources: Vec::new(),
        files: Vec::new(),
    };
    for path in &entry.files {
        let bytes = read_file(path, &mut scan.files)?;
        let source = source_file(root, &scan.files);
        let [image, label] = match entry.split {
            Split::Train => npz::read_arrays(path, bytes, ARRAYS)?,
            Split::Test => hdf5::read_arrays(path, bytes, ARRAYS)?,
        };
        let [d, h, w] = image.shape;
        same_shape(path, label.shape, path, image.shape)?;
        if let Some(first) = entry.files.first().filter(|_| !scan.image.is_empty()) {
            same_shape(path, image.shape, first, [d, scan.shape[1], scan.shape[2]])?;
        }
        refuse_nan(path, &image.values, image.shape)?;
        scan.label.extend(map_labels(path, &label.values, label.shape, &classes)?);
        scan.shape = [scan.shape[0] + d, h, w];
        scan.image.extend(image.values);
        scan.slice_sources.extend(std::iter::repeat_n(source, d));
    }
    Ok(scan)
}

/// A run of digits, as written and as a number.
fn number(digits: &str) -> Option<(String, u32)> {
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| all_digits).map(|number| (digits.to_owned(), number))
}
