//! nnU-Net's raw layout: `imagesTr/CASE_0000.nii.gz` (`_0001`, … for further channels) and `labelsTr/CASE.nii.gz`, described by
//! `dataset.json`; `imagesTs` and `labelsTs` likewise, if the test scans have labels.

use super::dataset_json::{DATASET_JSON, Dataset};
use super::error::ScanError;
use super::folder::{Unused, list_files, unpaired, voxel_files};
use super::grid::{Grid, same_grid};
use super::{CaseEntry, file_name};
use sam_ladder_formats::volume::{read_geometry, split_name, without_ending};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::preprocessing::Preprocessing;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const HALVES: [(Split, &str, &str); 2] = [(Split::Train, "imagesTr", "labelsTr"), (Split::Test, "imagesTs", "labelsTs")];

/// The folder `dir` if it holds the training half of the layout.
pub(super) fn find(dir: &Path) -> Option<PathBuf> {
    let (_, images, labels) = HALVES[0];
    (dir.join(images).is_dir() || dir.join(labels).is_dir()).then(|| dir.into())
}

/// The folder's `dataset.json`.
pub(super) fn dataset(root: &Path) -> Result<Dataset, ScanError> {
    Dataset::read(&root.join(DATASET_JSON))
}

/// The cases of both halves, with the files of the requested channels: every one is there, and their grids agree. The test half
/// counts if it has labels.
pub(super) fn cases(root: &Path, preprocessing: &Preprocessing, unused: &mut Unused) -> Result<Vec<CaseEntry>, ScanError> {
    let dataset = dataset(root)?;
    let mut cases: BTreeMap<String, CaseEntry> = BTreeMap::new();
    for (split, images, labels) in HALVES {
        if split == Split::Test && !root.join(labels).is_dir() {
            continue;
        }
        let folders = [images, labels].map(|name| root.join(name));
        for entry in half(&dataset, split, &folders, preprocessing, unused)? {
            if let Some(first) = cases.get(&entry.case) {
                let [first, second] = [first, &entry].map(|entry| entry.files[0].clone());
                unused.or_list::<()>(Err(ScanError::Duplicate { what: "case", first, second }))?;
                continue;
            }
            cases.insert(entry.case.clone(), entry);
        }
    }
    Ok(cases.into_values().collect())
}

/// What the user should know: fewer training cases than `dataset.json` promises.
pub(super) fn notes(root: &Path, cases: &[CaseEntry]) -> Result<Vec<String>, ScanError> {
    let promised = dataset(root)?.num_training;
    let images = root.join(HALVES[0].1);
    let found = cases.iter().filter(|case| case.files[0].starts_with(&images)).count() as u64;
    Ok(match promised {
        Some(promised) if promised > found => {
            let path = root.join(DATASET_JSON);
            vec![format!(
                "warning: {}: numTraining is {promised}, but {found} training scans with labels are found",
                path.display()
            )]
        }
        _ => Vec::new(),
    })
}

fn half(
    dataset: &Dataset,
    split: Split,
    [images, labels]: &[PathBuf; 2],
    preprocessing: &Preprocessing,
    unused: &mut Unused,
) -> Result<Vec<CaseEntry>, ScanError> {
    let mut scans = scans(dataset, images, labels, unused)?;
    let mut entries = Vec::with_capacity(scans.len());
    for label in list_files(labels, unused)? {
        let name = file_name(&label);
        let Some(case) = without_ending(&name, &dataset.file_ending) else {
            unused.add_if_scan(&label, &dataset.file_ending);
            continue;
        };
        let channel_file = |index: u32| images.join(format!("{case}_{index:04}{}", dataset.file_ending));
        let channels = scans.remove(case).unwrap_or_default();
        let entry = entry(case, split, channels, label.clone(), (preprocessing, &channel_file));
        entries.extend(unused.or_list(entry)?);
    }
    for (case, channels) in scans {
        if let Some(path) = channels.into_values().next() {
            unused.or_list::<()>(Err(unpaired(path, labels.join(case + &dataset.file_ending))))?;
        }
    }
    Ok(entries)
}

/// A case, if the channels that are taken are there, and they and the label lie on one grid.
fn entry(
    case: &str,
    split: Split,
    mut channels: BTreeMap<u32, PathBuf>,
    label: PathBuf,
    (preprocessing, channel_file): (&Preprocessing, &dyn Fn(u32) -> PathBuf),
) -> Result<CaseEntry, ScanError> {
    let mut files = Vec::with_capacity(preprocessing.channels.len() + 1);
    for channel in &preprocessing.channels {
        match channels.remove(&channel.index) {
            Some(path) => files.push(path),
            None => return Err(unpaired(label, channel_file(channel.index))),
        }
    }
    files.push(label);
    let grid = Grid::read(&files[0], preprocessing.orientation)?;
    for other in &files[1..] {
        same_grid(other, &read_geometry(other)?, &files[0], &grid.geometry)?;
    }
    let (voxel_files, num_slices) = (voxel_files(&files)?, grid.shape()[0]);
    Ok(CaseEntry { case: case.into(), split, num_slices, files, voxel_files, grid: Some(grid) })
}

/// The scans of a folder: by case, the file of each channel. A case's label is in `labels`.
fn scans(
    dataset: &Dataset,
    images: &Path,
    labels: &Path,
    unused: &mut Unused,
) -> Result<BTreeMap<String, BTreeMap<u32, PathBuf>>, ScanError> {
    let mut cases: BTreeMap<String, BTreeMap<u32, PathBuf>> = BTreeMap::new();
    for path in list_files(images, unused)? {
        let name = file_name(&path);
        let Some(stem) = without_ending(&name, &dataset.file_ending) else {
            unused.add_if_scan(&path, &dataset.file_ending);
            continue;
        };
        let has_label = |case: &str| labels.join(format!("{case}{}", dataset.file_ending)).exists();
        // A label of the whole name says that the number at its end is the case's.
        let Some((case, index)) = case_and_channel(stem).filter(|(case, _)| has_label(case) || !has_label(stem)) else {
            let error = without_channel(path.clone(), stem, labels, &dataset.file_ending);
            unused.or_list::<()>(Err(error))?;
            continue;
        };
        if index as usize >= dataset.channels.len() {
            let error = ScanError::UnknownChannel { path, channel: index, known: dataset.list_channels() };
            unused.or_list::<()>(Err(error))?;
            continue;
        }
        if let Some(first) = cases.entry(case.into()).or_default().insert(index, path.clone()) {
            unused.or_list::<()>(Err(ScanError::Duplicate { what: "channel", first, second: path }))?;
        }
    }
    Ok(cases)
}

/// The error for an image whose label has its whole name: the image lacks its channel, or the label has one.
fn without_channel(path: PathBuf, stem: &str, labels: &Path, ending: &str) -> ScanError {
    match stem.strip_suffix("_0000").filter(|case| !is_numbered(labels, case)) {
        Some(case) => {
            ScanError::LabelWithChannel { label: labels.join(format!("{stem}{ending}")), renamed: format!("{case}{ending}") }
        }
        None => ScanError::ChannelNumber {
            path,
            renamed: format!("{stem}_0000{ending}; nnUNetv2_convert_MSD_dataset renames all images of such a dataset"),
        },
    }
}

/// Whether labels such as `amos_0001` say that the numbers after `amos` are those of the cases.
fn is_numbered(labels: &Path, case: &str) -> bool {
    let names = std::fs::read_dir(labels).into_iter().flatten().flatten().map(|entry| file_name(&entry.path()));
    let stems = names.filter_map(|name| Some(split_name(&name)?.0.to_owned()));
    stems
        .filter_map(|stem| case_and_channel(&stem).filter(|(of, _)| *of == case).map(|(_, number)| number))
        .any(|number| number > 0)
}

/// `CASE_0000` as the case and its channel; `None` without four digits at the end.
pub(super) fn case_and_channel(stem: &str) -> Option<(&str, u32)> {
    let (case, digits) = stem.rsplit_once('_')?;
    let is_channel = !case.is_empty() && digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_digit());
    Some((case, digits.parse().ok().filter(|_| is_channel)?))
}
