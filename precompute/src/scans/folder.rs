//! What a folder of scans holds: the files that may be scans, and those that look like scans and are not used, each with the reason.

use super::error::ScanError;
use super::file_name;
use sam_ladder_formats::nifti::{self, origin_of};
use sam_ladder_formats::outputs::Origin;
use sam_ladder_formats::placeholder;
use sam_ladder_formats::volume::{self, VOXEL_ENDINGS, split_name, without_ending};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Endings of images that are not read.
const OTHER_IMAGES: [&str; 18] = [
    ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".mgz", ".mgh", ".mnc", ".gipl", ".gipl.gz", ".npy", ".npz", ".h5", ".hdf5",
    ".tif", ".tiff", ".vtk", ".vti", ".zarr",
];
/// Endings of files that are still being downloaded or copied.
const PARTIAL: [&str; 8] = [".part", ".partial", ".crdownload", ".download", ".filepart", ".aria2", ".tmp", ".opdownload"];
/// Ends of the names of copies that an editor or a user keeps.
const BACKUP: [&str; 4] = ["~", ".bak", ".old", ".orig"];
/// Entries of a subfolder that are looked at.
const LOOKED_AT: usize = 300;
/// Endings of DICOM files.
const DICOM: [&str; 3] = [".dcm", ".dicom", ".ima"];
/// Names in a line.
const SHOWN: usize = 6;

/// Why a file is not used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// macOS's `._` file next to another.
    AppleDouble,
    /// It is not whole yet.
    Partial,
    /// An older copy, by its name.
    Backup,
    /// A hidden file.
    Hidden,
    /// A folder with scans in it.
    Subfolder {
        /// What to do with it.
        advice: &'static str,
    },
    /// A link to something that is not there.
    Dangling,
    /// DICOM.
    Dicom,
    /// Voxels whose header is not there.
    NoHeader,
    /// Its ending is not the one that is taken.
    Ending {
        /// What is taken.
        expected: String,
    },
    /// A channel that the model does not take.
    Channel {
        /// What it takes, by number and name.
        taken: String,
    },
    /// Another folder of the same kind.
    Folder {
        /// The one that is taken.
        taken: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::AppleDouble => f.write_str("macOS's ._ files hold no voxels"),
            Reason::Partial => f.write_str("their names are those of unfinished downloads"),
            Reason::Backup => f.write_str("their names are those of backups"),
            Reason::Hidden => f.write_str("their names begin with a dot"),
            Reason::Subfolder { advice } => write!(f, "a folder with scans: {advice}"),
            Reason::Dangling => f.write_str("links to files that are not there"),
            Reason::Dicom => f.write_str("DICOM is not read; dcm2niix converts it"),
            Reason::NoHeader => f.write_str("voxels without the header that belongs to them"),
            Reason::Ending { expected } => write!(f, "expected the ending {expected}"),
            Reason::Channel { taken } => write!(f, "other channels than {taken}"),
            Reason::Folder { taken } => write!(f, "{taken} is taken"),
        }
    }
}

/// What looks like scans and is not used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Unused {
    files: BTreeMap<(PathBuf, Reason), BTreeSet<PathBuf>>,
    /// What is wrong with cases, a line each, if that is to be listed; otherwise the first error ends the search.
    errors: Option<Vec<String>>,
}

impl Unused {
    /// One that lists what is wrong with cases.
    pub(super) fn listing_errors() -> Self {
        Unused { errors: Some(Vec::new()), ..Unused::default() }
    }

    /// What is found, or nothing if its error is only to be listed.
    pub(super) fn or_list<T>(&mut self, found: Result<T, ScanError>) -> Result<Option<T>, ScanError> {
        match (found, &mut self.errors) {
            (Ok(found), _) => Ok(Some(found)),
            (Err(error), Some(errors)) => {
                errors.push(error.with_hint());
                Ok(None)
            }
            (Err(error), None) => Err(error),
        }
    }

    /// The errors that were listed.
    pub(super) fn take_errors(&mut self) -> Vec<String> {
        self.errors.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Notes a file or folder.
    pub(super) fn add(&mut self, path: &Path, reason: Reason) {
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        self.files.entry((folder, reason)).or_default().insert(path.into());
    }

    /// Notes a file that is not taken, if it looks like a scan; `expected` is the ending of those that are.
    pub(super) fn add_if_scan(&mut self, path: &Path, expected: &str) {
        let name = file_name(path);
        let has = |endings: &[&str]| endings.iter().any(|ending| without_ending(&name, ending).is_some());
        if is_dicom(path) {
            self.add(path, Reason::Dicom);
        } else if has(&VOXEL_ENDINGS) {
            if !has_header(path) {
                self.add(path, Reason::NoHeader);
            }
        } else if split_name(&name).is_some() || has(&OTHER_IMAGES) || is_packed_twice(&name) || is_nifti(path) {
            self.add(path, Reason::Ending { expected: expected.into() });
        }
    }

    /// Takes up what was noted elsewhere.
    pub(super) fn append(&mut self, other: Unused) {
        for (key, paths) in other.files {
            self.files.entry(key).or_default().extend(paths);
        }
    }

    /// One line for each folder and reason.
    pub(super) fn notes(&self) -> Vec<String> {
        let line = |((folder, reason), paths): (&(PathBuf, Reason), &BTreeSet<PathBuf>)| {
            let names: Vec<String> = paths.iter().take(SHOWN).map(|path| file_name(path)).collect();
            let more = if paths.len() > SHOWN { ", …" } else { "" };
            let what = match (reason, paths.len()) {
                (Reason::Folder { .. } | Reason::Subfolder { .. }, 1) => "folder is",
                (Reason::Folder { .. } | Reason::Subfolder { .. }, _) => "folders are",
                (_, 1) => "file is",
                _ => "files are",
            };
            let fetch = fetch_command(reason, paths);
            format!(
                "warning: {}: {} {what} not used ({reason}{fetch}): {}{more}",
                folder.display(),
                paths.len(),
                names.join(", ")
            )
        };
        self.files.iter().map(line).collect()
    }

    /// What to do if all that looks like scans has another ending than the expected one.
    pub(super) fn other_endings(&self) -> Option<String> {
        self.files.iter().find_map(|((folder, reason), paths)| match reason {
            Reason::Ending { expected } => {
                let (count, first) = (paths.len(), file_name(paths.first()?));
                Some(format!(
                    "{} has {count} files of another ending than {expected}, such as {first}: correct file_ending in dataset.json, or the names",
                    folder.display()
                ))
            }
            _ => None,
        })
    }

    /// The error for a link that was not fetched, where nothing else is there.
    pub(super) fn not_fetched(&self) -> Option<ScanError> {
        let dangling = self.files.iter().filter(|((_, reason), _)| *reason == Reason::Dangling).flat_map(|(_, paths)| paths);
        dangling.into_iter().find_map(|path| Some(placeholder::refuse(path).err()?.into()))
    }
}

/// For links of git-annex, how to fetch them.
fn fetch_command(reason: &Reason, paths: &BTreeSet<PathBuf>) -> String {
    let first = paths.first().filter(|_| *reason == Reason::Dangling);
    match first.map(|path| placeholder::refuse(path)) {
        Some(Err(sam_ladder_formats::Error::NotFetched { command, .. })) => format!("; fetch them as with `{command}`"),
        _ => String::new(),
    }
}

/// The files of a layout's folder that are there, sorted by name, without hidden ones; what is no scan by its name or was not fetched or not
/// finished is noted, and so are folders with scans.
pub(super) fn list_files(folder: &Path, unused: &mut Unused) -> Result<Vec<PathBuf>, ScanError> {
    list_files_or(folder, "only scans directly in the layout's folders are taken", unused)
}

/// As [`list_files`], of any folder; what to do with folders in it.
pub(super) fn list_files_or(folder: &Path, advice: &'static str, unused: &mut Unused) -> Result<Vec<PathBuf>, ScanError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(ScanError::io(folder))? {
        let path = entry.map_err(ScanError::io(folder))?.path();
        let name = file_name(&path);
        match reason_by_name(&path, &name) {
            Some((reason, true)) => unused.add(&path, reason),
            Some((_, false)) => {}
            None if path.is_file() => files.push(path),
            None if path.is_dir() && holds_scans(&path) => unused.add(&path, Reason::Subfolder { advice }),
            None if placeholder::is_dangling(&path) && looks_like_scan(&name) => unused.add(&path, Reason::Dangling),
            None => {}
        }
    }
    files.sort();
    Ok(files)
}

/// Why a name is not that of a scan, and whether the file looks like one all the same.
fn reason_by_name(path: &Path, name: &str) -> Option<(Reason, bool)> {
    let without = |endings: &[&str]| endings.iter().find_map(|ending| without_ending(name, ending)).map(str::to_owned);
    let of_scan = |name: &str| looks_like_scan(name.trim_start_matches('.')) && path.is_file();
    if let Some(shadowed) = name.strip_prefix("._") {
        Some((Reason::AppleDouble, of_scan(shadowed)))
    } else if let Some(partial) = without(&PARTIAL) {
        Some((Reason::Partial, of_scan(&partial)))
    } else if let Some(copied) = without(&BACKUP) {
        Some((Reason::Backup, of_scan(&copied)))
    } else if name.starts_with('.') {
        Some((Reason::Hidden, path.is_file() && is_nifti(path)))
    } else {
        None
    }
}

/// Whether there are scans directly in a folder that are not masks of this program.
fn holds_scans(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().take(LOOKED_AT);
    let is_scan = |path: PathBuf| looks_like_scan(&file_name(&path)) && path.is_file() && origin_of(&path) == Origin::Foreign;
    entries.map(|entry| entry.path()).any(is_scan)
}

/// Whether a file is NIfTI, packed or not, whatever its name.
fn is_nifti(path: &Path) -> bool {
    nifti::read_geometry(path).is_ok()
}

/// Whether a name is that of a scan with one more `.gz`.
fn is_packed_twice(name: &str) -> bool {
    without_ending(name, ".gz").is_some_and(looks_like_scan)
}

/// Whether a file's name is that of an image, of a format that is read or of another.
fn looks_like_scan(name: &str) -> bool {
    let others = OTHER_IMAGES.iter().chain(&VOXEL_ENDINGS).chain(&DICOM);
    split_name(name).is_some() || others.into_iter().any(|ending| without_ending(name, ending).is_some())
}

/// Whether a header next to a file of voxels is of its name, or names it.
fn has_header(voxels: &Path) -> bool {
    const HEADERS: [&str; 4] = [".hdr", ".hdr.gz", ".nhdr", ".mhd"];
    let names =
        |header: &Path| header.is_file() && volume::voxel_file(header).is_ok_and(|named| named.as_deref() == Some(voxels));
    let name = file_name(voxels);
    let stem = VOXEL_ENDINGS.iter().find_map(|ending| without_ending(&name, ending)).unwrap_or(&name);
    // Mostly the header has the same name.
    if HEADERS.iter().any(|ending| names(&voxels.with_file_name(format!("{stem}{ending}")))) {
        return true;
    }
    let Ok(entries) = std::fs::read_dir(voxels.parent().unwrap_or(Path::new(""))) else { return false };
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.any(|path| HEADERS.iter().any(|ending| without_ending(&file_name(&path), ending).is_some()) && names(&path))
}

/// The files of voxels that belong to some of these headers.
pub(super) fn voxel_files(files: &[PathBuf]) -> Result<Vec<PathBuf>, ScanError> {
    files.iter().filter_map(|file| volume::voxel_file(file).transpose()).map(|file| Ok(file?)).collect()
}

/// An error for a file whose partner is missing; one that was not fetched is named as such.
pub(super) fn unpaired(path: PathBuf, missing: PathBuf) -> ScanError {
    match placeholder::refuse(&missing) {
        Err(error) => error.into(),
        Ok(()) => ScanError::Unpaired { path, missing },
    }
}

/// Whether a file is DICOM, by its ending or, if it has none, by its content.
pub(super) fn is_dicom(path: &Path) -> bool {
    let name = file_name(path);
    if DICOM.iter().any(|ending| without_ending(&name, ending).is_some()) || name.eq_ignore_ascii_case("DICOMDIR") {
        return true;
    }
    // Names such as IM000001 and 1.2.840.113619.2.
    let may_be =
        !name.contains('.') || name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    may_be && path.is_file() && has_dicom_magic(path).unwrap_or(false)
}

fn has_dicom_magic(path: &Path) -> std::io::Result<bool> {
    let (mut file, mut magic) = (File::open(path)?, [0; 4]);
    file.seek(SeekFrom::Start(128))?;
    file.read_exact(&mut magic)?;
    Ok(magic == *b"DICM")
}

/// Whether a folder holds DICOM files, in it or in the folders below; looks at no more than a few hundred files.
pub(super) fn holds_dicom(folder: &Path) -> bool {
    let (mut folders, mut left) = (vec![(folder.to_path_buf(), 0)], 300);
    while let Some((next, depth)) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(next) else { continue };
        for entry in entries.flatten().take(left) {
            left -= 1;
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < 4 => folders.push((path, depth + 1)),
                Ok(kind) if kind.is_file() && is_dicom(&path) => return true,
                _ => {}
            }
        }
    }
    false
}
