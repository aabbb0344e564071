//! New scans, which have no reference segmentation: NIfTI files anywhere, one per channel.

use super::error::ScanError;
use super::grid::{Grid, same_grid};
use super::{CaseEntry, Scan, channels, file_name, list_files};
use sam_ladder_formats::nifti::read_geometry;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::Preprocessing;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A scan to predict on, before its voxels are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewScan {
    /// Its name: the file's without `.nii.gz`, and without `_0000` if there is more than one channel.
    pub case: String,
    /// The file of each channel, in the order of the settings' channels.
    pub files: Vec<PathBuf>,
}

/// The scans among files and folders, sorted by name. From a folder, every `.nii` and `.nii.gz` directly in it is taken.
///
/// If images have one channel, every file is a scan. If they have more, files are named as nnU-Net's, `CASE_0000.nii.gz` and so on, and those
/// of the settings' channels are taken.
///
/// # Errors
/// When a path is not there, a folder holds no NIfTI file, a name lacks its channel's number, a channel is missing, or two scans have the
/// same name.
pub fn find_new_scans(paths: &[PathBuf], preprocessing: &Preprocessing) -> Result<Vec<NewScan>, ScanError> {
    let mut files = Vec::new();
    for path in paths {
        if !std::fs::metadata(path).map_err(ScanError::io(path))?.is_dir() {
            files.push(path.clone());
            continue;
        }
        let before = files.len();
        files.extend(list_files(path)?.into_iter().filter(|file| stem(file) != file_name(file)));
        if files.len() == before {
            return Err(ScanError::NoVolumes { path: path.clone() });
        }
    }
    if preprocessing.channels.len() == 1 {
        let scans = files.into_iter().map(|file| (stem(&file), vec![file]));
        return distinct(scans.map(|(case, files)| NewScan { case, files }));
    }
    let mut cases: BTreeMap<String, BTreeMap<u32, PathBuf>> = BTreeMap::new();
    for path in files {
        let name = stem(&path);
        let parsed = name
            .rsplit_once('_')
            .filter(|(case, digits)| !case.is_empty() && digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_digit()));
        let Some((case, Ok(channel))) = parsed.map(|(case, digits)| (case, digits.parse::<u32>())) else {
            return Err(ScanError::Name { path, expected: "CASE_0000.nii.gz (0000 is the channel)" });
        };
        if let Some(first) = cases.entry(case.into()).or_default().insert(channel, path.clone()) {
            return Err(ScanError::Duplicate { what: "channel", first, second: path });
        }
    }
    let mut scans = Vec::with_capacity(cases.len());
    for (case, mut of_case) in cases {
        let other = of_case.values().next().cloned().unwrap_or_default();
        let mut files = Vec::with_capacity(preprocessing.channels.len());
        for channel in &preprocessing.channels {
            let missing = || other.with_file_name(format!("{case}_{:04}.nii.gz", channel.index));
            files.push(
                of_case.remove(&channel.index).ok_or_else(|| ScanError::Unpaired { path: other.clone(), missing: missing() })?,
            );
        }
        scans.push(NewScan { case, files });
    }
    Ok(scans)
}

/// Sorted, and an error for two of one name.
fn distinct(scans: impl Iterator<Item = NewScan>) -> Result<Vec<NewScan>, ScanError> {
    let mut scans: Vec<NewScan> = scans.collect();
    scans.sort_by(|a, b| a.case.cmp(&b.case));
    match scans.windows(2).find(|pair| pair[0].case == pair[1].case) {
        None => Ok(scans),
        Some(pair) => {
            let [first, second] = [&pair[0], &pair[1]].map(|scan| scan.files[0].clone());
            Err(ScanError::Duplicate { what: "scan's name", first, second })
        }
    }
}

/// A file's name without its `.nii.gz` or `.nii`.
fn stem(path: &Path) -> String {
    let name = file_name(path);
    name.strip_suffix(".nii.gz").or_else(|| name.strip_suffix(".nii")).unwrap_or(&name).to_owned()
}

impl NewScan {
    /// Where its voxels lie and how they are turned to the settings' orientation, from the first file's header; the other channels must lie in
    /// the same place.
    ///
    /// # Errors
    /// When a header cannot be read, or the grids differ.
    pub fn grid(&self, preprocessing: &Preprocessing) -> Result<Grid, ScanError> {
        let grid = Grid::read(&self.files[0], preprocessing.orientation)?;
        for other in &self.files[1..] {
            same_grid(other, &read_geometry(other)?, &self.files[0], &grid.geometry)?;
        }
        Ok(grid)
    }

    /// Its voxels as the network's images, of the split `test`; every label is the background.
    ///
    /// # Errors
    /// When a file is damaged, the channels differ in shape or place, or an image holds NaN.
    pub fn read(&self, preprocessing: &Preprocessing) -> Result<Scan, ScanError> {
        let image = channels::read(folder(&self.files[0]), &self.files, preprocessing, preprocessing.orientation)?;
        Ok(image.into_scan(&self.case, Split::Test, |grid| vec![0; grid.shape().iter().product()]))
    }

    pub(super) fn entry(&self, preprocessing: &Preprocessing) -> Result<CaseEntry, ScanError> {
        let grid = self.grid(preprocessing)?;
        let (case, num_slices, files) = (self.case.clone(), grid.shape()[0], self.files.clone());
        Ok(CaseEntry { case, split: Split::Test, num_slices, files, grid: Some(grid) })
    }
}

/// The folder that a file lies in: new scans come from anywhere, and their names distinguish them.
pub(super) fn folder(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::precompute::{Channel, Intensity};

    fn folder_of(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| std::fs::write(dir.path().join(name), b"x").unwrap());
        dir
    }

    fn cases(scans: &[NewScan]) -> Vec<&str> {
        scans.iter().map(|scan| scan.case.as_str()).collect()
    }

    #[test]
    fn of_one_channel_every_file_is_a_scan() {
        let dir = folder_of(&["b_0000.nii", "a.nii.gz", "notes.txt", ".hidden.nii"]);
        let one = Preprocessing::default();
        let scans = find_new_scans(&[dir.path().into()], &one).unwrap();
        assert_eq!(cases(&scans), ["a", "b_0000"]);
        let named = find_new_scans(&[dir.path().join("notes.txt")], &one).unwrap();
        assert_eq!(cases(&named), ["notes.txt"], "a file that is named is tried");
        let twice = find_new_scans(&[dir.path().into(), dir.path().join("a.nii.gz")], &one).unwrap_err().to_string();
        assert!(twice.contains("a.nii.gz") && twice.contains("same"), "{twice}");
        let empty = folder_of(&["notes.txt"]);
        assert!(find_new_scans(&[empty.path().into()], &one).unwrap_err().to_string().contains("no .nii"));
        assert!(find_new_scans(&[empty.path().join("gone.nii")], &one).unwrap_err().to_string().contains("gone.nii"));
    }

    #[test]
    fn channels_are_gathered_by_their_numbers() {
        let mut two = Preprocessing::default();
        let channel = |index| Channel { index, name: format!("{index}"), intensity: Intensity::Window };
        two.channels = vec![channel(2), channel(0)];
        let dir = folder_of(&["a_0000.nii.gz", "a_0001.nii.gz", "a_0002.nii.gz"]);
        let scans = find_new_scans(&[dir.path().into()], &two).unwrap();
        assert_eq!(cases(&scans), ["a"]);
        assert_eq!(scans[0].files, ["a_0002.nii.gz", "a_0000.nii.gz"].map(|name| dir.path().join(name)));
        std::fs::remove_file(dir.path().join("a_0002.nii.gz")).unwrap();
        let missing = find_new_scans(&[dir.path().into()], &two).unwrap_err().to_string();
        assert!(missing.contains("a_0002.nii.gz"), "{missing}");
        std::fs::write(dir.path().join("b.nii.gz"), b"x").unwrap();
        assert!(find_new_scans(&[dir.path().into()], &two).unwrap_err().to_string().contains("CASE_0000"));
    }
}
