//! The raw layout of the Synapse multi-organ set: `img/imgNNNN.nii.gz` and `label/labelNNNN.nii.gz` (or another volume), prepared as the
//! published `preprocess_data.py` does.

use super::error::ScanError;
use super::folder::{Unused, list_files, unpaired, voxel_files};
use super::grid::{Grid, same_grid};
use super::{CaseEntry, file_name};
use sam_ladder_formats::volume::{read_geometry, split_name};
use sam_ladder_schemas::classes::{SYNAPSE_TEST_CASES, Split};
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

/// The cases of a folder that holds `img` and `label`: pairs are complete and their grids agree.
pub(super) fn cases(training: &Path, unused: &mut Unused) -> Result<Vec<CaseEntry>, ScanError> {
    let images = numbered(&training.join("img"), "img", "img0001.nii.gz", unused)?;
    let mut labels = numbered(&training.join("label"), "label", "label0001.nii.gz", unused)?;
    let mut cases = Vec::with_capacity(images.len());
    for (number, (case, image)) in images {
        let entry = match labels.remove(&number) {
            Some((_, label)) => entry(number, case, image, label),
            None => Err(unpaired(image, training.join("label").join(format!("label{case}.nii.gz")))),
        };
        cases.extend(unused.or_list(entry)?);
    }
    for (case, label) in labels.into_values() {
        unused.or_list::<()>(Err(unpaired(label, training.join("img").join(format!("img{case}.nii.gz")))))?;
    }
    Ok(cases)
}

/// A case, if its image and its label lie on one grid.
fn entry(number: u32, case: String, image: PathBuf, label: PathBuf) -> Result<CaseEntry, ScanError> {
    // As published, scans are taken as they lie.
    let grid = Grid::read(&image, None)?;
    same_grid(&label, &read_geometry(&label)?, &image, &grid.geometry)?;
    let split = if SYNAPSE_TEST_CASES.contains(&number) { Split::Test } else { Split::Train };
    let (files, num_slices) = (vec![image, label], grid.shape()[0]);
    Ok(CaseEntry { case, split, num_slices, voxel_files: voxel_files(&files)?, files, grid: Some(grid) })
}

/// The volumes of a folder by the number in their names; what else looks like a scan is noted.
fn numbered(folder: &Path, prefix: &str, expected: &'static str, unused: &mut Unused) -> Result<Numbered, ScanError> {
    let mut files = Numbered::new();
    for path in list_files(folder, unused)? {
        let name = file_name(&path);
        let Some((stem, _)) = split_name(&name) else {
            unused.add_if_scan(&path, ".nii.gz");
            continue;
        };
        let digits = stem.strip_prefix(prefix).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let Some((digits, number)) = digits.and_then(|digits| Some((digits.to_owned(), digits.parse().ok()?))) else {
            unused.or_list::<()>(Err(ScanError::Name { path, expected }))?;
            continue;
        };
        if let Some((_, first)) = files.get(&number) {
            unused.or_list::<()>(Err(ScanError::Duplicate { what: "case", first: first.clone(), second: path }))?;
            continue;
        }
        files.insert(number, (digits, path));
    }
    Ok(files)
}
