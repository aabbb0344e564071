//! New scans, which have no reference segmentation: volumes anywhere, one per channel.

use super::error::ScanError;
use super::folder::{Reason, Unused, holds_dicom, is_dicom, list_files_or, voxel_files};
use super::grid::{Grid, same_grid};
use super::nnunet::case_and_channel;
use super::{CaseEntry, Scan, channels, file_name};
use sam_ladder_formats::placeholder;
use sam_ladder_formats::volume::{read_geometry, split_name, without_ending};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::preprocessing::{Channel, Preprocessing};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A scan to predict on, before its voxels are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewScan {
    /// Its name: the file's without its ending, and without the channel's number.
    pub case: String,
    /// The file of each channel, in the order of the settings' channels.
    pub files: Vec<PathBuf>,
}

/// What was found to predict on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundScans {
    /// Sorted by name.
    pub scans: Vec<NewScan>,
    /// What looks like a scan and is not used, with the reason; what the names leave open.
    pub notes: Vec<String>,
}

/// The scans among files and folders. From a folder, every volume directly in it is taken.
///
/// Names are nnU-Net's: `CASE_0000.nii.gz` is channel 0 of CASE. Of each case the settings' channels are taken. Where images have one channel, a
/// file whose name has no channel, or a number for which no file of the model's channel is there, is a scan by its whole name.
///
/// # Errors
/// When a path is not there, a folder holds no volume, a channel is missing, a name lacks its channel's number where there are several, or two
/// scans have the same name.
pub fn find_new_scans(paths: &[PathBuf], preprocessing: &Preprocessing) -> Result<FoundScans, ScanError> {
    let (mut files, mut unused) = (Vec::new(), Unused::default());
    for path in paths {
        if std::fs::metadata(path).map_err(|error| not_there(path, error))?.is_dir() {
            files.extend(volumes_in(path, &mut unused)?);
        } else if is_dicom(path) {
            return Err(ScanError::Dicom { path: path.clone() });
        } else {
            files.push(header_of(path));
        }
    }
    let mut notes = Vec::new();
    let scans = match &preprocessing.channels[..] {
        [channel] => of_one_channel(files, channel, &mut unused, &mut notes)?,
        channels => of_channels(files, channels, &mut unused)?,
    };
    notes.extend(unused.notes());
    Ok(FoundScans { scans: distinct(scans)?, notes })
}

/// Why a path cannot be used: a link may not have been fetched.
fn not_there(path: &Path, error: std::io::Error) -> ScanError {
    match placeholder::refuse(path) {
        Err(error) => error.into(),
        Ok(()) => ScanError::io(path)(error),
    }
}

/// The volumes of a folder.
fn volumes_in(folder: &Path, unused: &mut Unused) -> Result<Vec<PathBuf>, ScanError> {
    let mut of_folder = Unused::default();
    let (volumes, others): (Vec<PathBuf>, Vec<PathBuf>) = list_files_or(folder, "pass it to --scan itself", &mut of_folder)?
        .into_iter()
        .partition(|file| split_name(&file_name(file)).is_some());
    if volumes.is_empty() {
        let none = if holds_dicom(folder) {
            ScanError::Dicom { path: folder.into() }
        } else {
            ScanError::NoVolumes { path: folder.into() }
        };
        return Err(of_folder.not_fetched().unwrap_or(none));
    }
    others.iter().for_each(|file| of_folder.add_if_scan(file, ".nii.gz"));
    unused.append(of_folder);
    Ok(volumes)
}

/// The header of a pair whose voxels were named; any other file itself.
fn header_of(path: &Path) -> PathBuf {
    let name = file_name(path);
    let stem = [".img", ".img.gz"].iter().find_map(|ending| without_ending(&name, ending));
    let headers =
        stem.into_iter().flat_map(|stem| [".hdr", ".hdr.gz"].map(|ending| path.with_file_name(format!("{stem}{ending}"))));
    headers.into_iter().find(|header| header.is_file()).unwrap_or_else(|| path.into())
}

/// A file by its folder, its case and its channel, if its name has one.
fn parsed(file: &Path) -> Option<((PathBuf, String), u32)> {
    let stem = stem(file);
    let (case, index) = case_and_channel(&stem)?;
    Some(((folder(file).into(), case.into()), index))
}

/// Scans of models of one channel.
fn of_one_channel(
    files: Vec<PathBuf>,
    channel: &Channel,
    unused: &mut Unused,
    notes: &mut Vec<String>,
) -> Result<Vec<NewScan>, ScanError> {
    let taken: BTreeSet<(PathBuf, String)> =
        files.iter().filter_map(|file| parsed(file)).filter(|(_, index)| *index == channel.index).map(|(case, _)| case).collect();
    let (mut scans, mut numbered) = (Vec::new(), Vec::new());
    for file in files {
        match parsed(&file) {
            Some(((_, case), index)) if index == channel.index => scans.push(NewScan { case, files: vec![file] }),
            Some((case, _)) if taken.contains(&case) => unused.add(&file, Reason::Channel { taken: described(channel) }),
            // In a folder of nnU-Net's names, or for a model of a later channel, the number is a channel's.
            Some(((_, case), _)) if !taken.is_empty() || channel.index > 0 => return Err(missing_channel(&file, &case, channel)),
            other => {
                if other.is_some() {
                    numbered.push(file_name(&file));
                }
                scans.push(NewScan { case: stem(&file), files: vec![file] });
            }
        }
    }
    if let Some(first) = numbered.first() {
        let (count, stem) = (numbered.len(), split_name(first).map_or(first.as_str(), |(stem, _)| stem));
        notes.push(format!(
            "{count} names end in a number, which is taken as the case's, not as a channel's, because none ends in _{:04}: {first}; nnU-Net's name \
             is {stem}_{:04}.nii.gz",
            channel.index, channel.index
        ));
    }
    Ok(scans)
}

/// Scans of models of several channels.
fn of_channels(files: Vec<PathBuf>, channels: &[Channel], unused: &mut Unused) -> Result<Vec<NewScan>, ScanError> {
    let mut cases: BTreeMap<(PathBuf, String), BTreeMap<u32, PathBuf>> = BTreeMap::new();
    for path in files {
        let Some((case, index)) = parsed(&path) else {
            let renamed = format!("{}_0000{}", stem(&path), ending(&path));
            return Err(ScanError::ChannelNumber { path, renamed });
        };
        if let Some(first) = cases.entry(case).or_default().insert(index, path.clone()) {
            return Err(ScanError::Duplicate { what: "channel", first, second: path });
        }
    }
    let mut scans = Vec::with_capacity(cases.len());
    for ((_, case), mut of_case) in cases {
        let other = of_case.values().next().cloned().unwrap_or_default();
        let file = |channel: &Channel| of_case.remove(&channel.index).ok_or_else(|| missing_channel(&other, &case, channel));
        let files = channels.iter().map(file).collect::<Result<_, _>>()?;
        let taken = || channels.iter().map(described).collect::<Vec<_>>().join(", ");
        of_case.values().for_each(|file| unused.add(file, Reason::Channel { taken: taken() }));
        scans.push(NewScan { case, files });
    }
    Ok(scans)
}

fn missing_channel(file: &Path, case: &str, channel: &Channel) -> ScanError {
    let ending = ending(file);
    let missing = file.with_file_name(format!("{case}_{:04}{ending}", channel.index));
    match placeholder::refuse(&missing) {
        Err(error) => error.into(),
        Ok(()) => ScanError::MissingChannel {
            path: file.into(),
            channel: described(channel),
            missing,
            renamed: format!("{}_{:04}{ending}", stem(file), channel.index),
        },
    }
}

/// A channel by its number and name.
fn described(channel: &Channel) -> String {
    format!("{:04} ({})", channel.index, channel.name)
}

/// Sorted, and an error for two of one name.
fn distinct(mut scans: Vec<NewScan>) -> Result<Vec<NewScan>, ScanError> {
    scans.sort_by(|a, b| a.case.cmp(&b.case));
    match scans.windows(2).find(|pair| pair[0].case == pair[1].case) {
        None => Ok(scans),
        Some(pair) => {
            let [first, second] = [&pair[0], &pair[1]].map(|scan| scan.files[0].clone());
            Err(ScanError::Duplicate { what: "scan's name", first, second })
        }
    }
}

/// A file's name without the ending of a volume.
fn stem(path: &Path) -> String {
    let name = file_name(path);
    split_name(&name).map_or(name.as_str(), |(stem, _)| stem).to_owned()
}

/// The ending of a volume.
fn ending(path: &Path) -> &'static str {
    split_name(&file_name(path)).map_or(".nii.gz", |(_, ending)| ending)
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
        let voxel_files = voxel_files(&files)?;
        Ok(CaseEntry { case, split: Split::Test, num_slices, files, voxel_files, grid: Some(grid) })
    }
}

/// The folder that a file lies in: new scans come from anywhere, and their names distinguish them.
pub(super) fn folder(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::preprocessing::{Channel, Intensity};

    fn folder_of(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| std::fs::write(dir.path().join(name), b"x").unwrap());
        dir
    }

    fn cases(scans: &[NewScan]) -> Vec<&str> {
        scans.iter().map(|scan| scan.case.as_str()).collect()
    }

    fn two_channels() -> Preprocessing {
        let channel = |index| Channel { index, name: format!("{index}"), intensity: Intensity::Window };
        Preprocessing { channels: vec![channel(2), channel(0)], ..Preprocessing::default() }
    }

    fn message(error: ScanError) -> String {
        format!("{error}; {}", error.hint().unwrap_or_default())
    }

    #[test]
    fn of_one_channel_every_file_is_a_scan() {
        let dir = folder_of(&["b_0000.nii", "a.NII.GZ", "c.nrrd", "notes.txt", ".hidden.nii"]);
        let one = Preprocessing::default();
        let found = find_new_scans(&[dir.path().into()], &one).unwrap();
        assert_eq!((cases(&found.scans), found.notes.len()), (vec!["a", "b", "c"], 0));
        std::fs::create_dir(dir.path().join("more")).unwrap();
        std::fs::write(dir.path().join("more/d.nii"), b"x").unwrap();
        let found = find_new_scans(&[dir.path().into()], &one).unwrap();
        assert!(
            found.notes[0].ends_with("1 folder is not used (a folder with scans: pass it to --scan itself): more"),
            "{found:?}"
        );
        let named = find_new_scans(&[dir.path().join("notes.txt")], &one).unwrap();
        assert_eq!(cases(&named.scans), ["notes.txt"], "a file that is named is tried");
        let twice = find_new_scans(&[dir.path().into(), dir.path().join("a.NII.GZ")], &one).unwrap_err().to_string();
        assert!(twice.contains("a.NII.GZ") && twice.contains("same"), "{twice}");
        let empty = folder_of(&["notes.txt"]);
        assert!(find_new_scans(&[empty.path().into()], &one).unwrap_err().to_string().contains("no volume"));
        assert!(find_new_scans(&[empty.path().join("gone.nii")], &one).unwrap_err().to_string().contains("gone.nii"));
    }

    #[test]
    fn of_one_channel_only_the_models_is_taken() {
        let mut second = Preprocessing::default();
        second.channels[0] = Channel { index: 1, name: "ADC".into(), intensity: Intensity::Window };
        let dir = folder_of(&["a_0000.nii.gz", "a_0001.nii.gz"]);
        let found = find_new_scans(&[dir.path().into()], &second).unwrap();
        assert_eq!((cases(&found.scans), &found.scans[0].files), (vec!["a"], &vec![dir.path().join("a_0001.nii.gz")]));
        assert!(found.notes[0].contains("other channels than 0001 (ADC)): a_0000.nii.gz"), "{:?}", found.notes);
        let first = find_new_scans(&[dir.path().into()], &Preprocessing::default()).unwrap();
        assert_eq!(first.scans[0].files, [dir.path().join("a_0000.nii.gz")]);
        // Never another channel than the model's.
        for (names, model) in
            [(&["a_0000.nii.gz"][..], &second), (&["a_0000.nii.gz", "b_0001.nii.gz"], &Preprocessing::default())]
        {
            let text = message(find_new_scans(&[folder_of(names).path().into()], model).unwrap_err());
            assert!(text.contains("is not among the scans") && text.contains("add the channel's"), "{text}");
        }
    }

    #[test]
    fn numbers_that_are_the_cases_are_part_of_the_name() {
        let dir = folder_of(&["pancreas_0001.nii.gz", "pancreas_0004.nii.gz"]);
        let found = find_new_scans(&[dir.path().into()], &Preprocessing::default()).unwrap();
        assert_eq!(cases(&found.scans), ["pancreas_0001", "pancreas_0004"]);
        assert!(found.notes[0].contains("pancreas_0001_0000.nii.gz"), "{:?}", found.notes);
        let text = message(find_new_scans(&[dir.path().into()], &two_channels()).unwrap_err());
        assert!(text.contains("pancreas_0001_0002.nii.gz"), "{text}");
        let with = folder_of(&["pancreas_0001_0000.nii.gz"]);
        let found = find_new_scans(&[with.path().into()], &Preprocessing::default()).unwrap();
        assert_eq!((cases(&found.scans), found.notes.len()), (vec!["pancreas_0001"], 0));
    }

    #[test]
    fn channels_are_gathered_by_their_numbers() {
        let two = two_channels();
        let dir = folder_of(&["a_0000.nii.gz", "a_0001.nii.gz", "a_0002.nii.gz"]);
        let found = find_new_scans(&[dir.path().into()], &two).unwrap();
        assert_eq!(cases(&found.scans), ["a"]);
        assert_eq!(found.scans[0].files, ["a_0002.nii.gz", "a_0000.nii.gz"].map(|name| dir.path().join(name)));
        assert!(found.notes[0].contains("a_0001.nii.gz"), "{:?}", found.notes);
        std::fs::remove_file(dir.path().join("a_0002.nii.gz")).unwrap();
        let missing = find_new_scans(&[dir.path().into()], &two).unwrap_err().to_string();
        assert!(missing.contains("a_0002.nii.gz"), "{missing}");
        std::fs::write(dir.path().join("b.nii.gz"), b"x").unwrap();
        let text = message(find_new_scans(&[dir.path().into()], &two).unwrap_err());
        assert!(text.contains("b_0000.nii.gz"), "{text}");
    }
}
