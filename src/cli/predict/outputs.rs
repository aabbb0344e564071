//! Where masks go, and what must not be overwritten on the way.

use crate::error::refusal;
use anyhow::Context;
use sam_ladder_eval::label_tables::{ITK_SNAP_ENDING, SLICER_ENDING, itk_snap, slicer};
use sam_ladder_formats::atomic::write_atomic;
use sam_ladder_formats::nifti::{origin_of, read_geometry};
use sam_ladder_formats::outputs::{HASH_COMMENT, is_there, origin_of_text};
use sam_ladder_formats::volume::{VOXEL_ENDINGS, split_name, without_ending};
use sam_ladder_precompute::scans::{NewScan, ScanError, same_grid};
use sam_ladder_schemas::preprocessing::Preprocessing;
use std::path::{Path, PathBuf};

/// What to do with masks that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Stop before anything is done.
    #[default]
    Refuse,
    /// Write them anew.
    Replace,
    /// Keep them and make the others.
    Skip,
}

/// Endings of files that are no folders' names: images of other formats, and tables.
const OTHER_FILES: [&str; 12] =
    [".nrrd.gz", ".mgz", ".npy", ".npz", ".h5", ".dcm", ".tif", ".tiff", ".png", ".jpg", ".json", ".gz"];

/// An error for a mask's name with the ending of another format, before any work.
///
/// # Errors
/// Such a name, unless it is a folder's that is there.
pub fn ensure_mask_name(out: &Path) -> anyhow::Result<()> {
    let name = out.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if mask_stem(&name).is_some() || out.is_dir() {
        return Ok(());
    }
    let other = OTHER_FILES.iter().chain(&VOXEL_ENDINGS).find_map(|ending| without_ending(&name, ending));
    match split_name(&name).map(|(stem, _)| stem).or(other) {
        None => Ok(()),
        Some(stem) => {
            let nifti = format!("{}.nii.gz", mask_stem(stem).unwrap_or(stem));
            let message = format!("{} is not the name of a NIfTI file", out.display());
            Err(refusal(
                message,
                format!("masks are written as NIfTI: pass --out {}, or a folder", out.with_file_name(nifti).display()),
            ))
        }
    }
}

/// An error for masks below something that is no folder, before any work.
///
/// # Errors
/// Names what is in the way.
pub fn ensure_folder(out: &Path) -> anyhow::Result<()> {
    let is_file = out.file_name().is_some_and(|name| mask_stem(&name.to_string_lossy()).is_some()) && !out.is_dir();
    let above = out.ancestors().skip(usize::from(is_file)).find(|above| is_there(above));
    match above.filter(|above| !above.is_dir()) {
        Some(file) => Err(refusal(format!("{} is a file, expected a folder", file.display()), "choose another --out")),
        None => Ok(()),
    }
}

/// Checks that a mask that is kept lies on its scan's grid, by the headers of both.
///
/// # Errors
/// What cannot be read, or how the grids differ.
pub fn ensure_mask_of(scan: &NewScan, mask: &Path, preprocessing: &Preprocessing) -> Result<(), ScanError> {
    let grid = scan.grid(preprocessing)?;
    same_grid(mask, &read_geometry(mask)?, &scan.files[0], &grid.geometry)
}

/// The name of a mask's file without its ending.
fn mask_stem(name: &str) -> Option<&str> {
    [".nii.gz", ".nii"].iter().find_map(|ending| without_ending(name, ending))
}

/// A path with a further ending.
fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{ending}"));
    name.into()
}

/// The files of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outputs {
    /// The scans that a mask is made of, each with its file.
    pub masks: Vec<(NewScan, PathBuf)>,
    /// The scans whose masks are there and stay, each with its file.
    pub kept: Vec<(NewScan, PathBuf)>,
    /// The label tables' files without their endings.
    tables: PathBuf,
    existing: Existing,
}

impl Outputs {
    /// `out` is a mask's file where it ends in `.nii` or `.nii.gz` and there is one scan, else the folder of them.
    ///
    /// # Errors
    /// Several scans for one file, a mask that would replace a scan, and what is there already if that is to be refused or not a mask of ours,
    /// unchanged. Nothing is written.
    pub fn plan(scans: Vec<NewScan>, out: &Path, existing: Existing) -> anyhow::Result<Self> {
        let name = out.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let stem = mask_stem(&name);
        let is_file = stem.is_some() && !out.is_dir();
        if is_file && scans.len() > 1 {
            let message = format!("{} scans cannot be written to one file, {}", scans.len(), out.display());
            return Err(refusal(message, "pass a folder with --out"));
        }
        let tables = match stem.filter(|_| is_file) {
            Some(stem) => out.with_file_name(stem),
            None => out.join("labels"),
        };
        let place = |scan: &NewScan| if is_file { out.to_path_buf() } else { out.join(format!("{}.nii.gz", scan.case)) };
        let mut masks: Vec<(NewScan, PathBuf)> =
            scans.into_iter().map(|scan| (place(&scan), scan)).map(|(a, b)| (b, a)).collect();
        for (scan, mask) in &masks {
            let same = |file: &PathBuf| mask.canonicalize().is_ok_and(|mask| file.canonicalize().is_ok_and(|file| file == mask));
            if scan.files.iter().any(same) {
                return Err(refusal(format!("{} is the scan itself", mask.display()), "choose another --out"));
            }
        }
        let mut kept = Vec::new();
        match existing {
            Existing::Refuse => {
                if let Some((_, mask)) = masks.iter().find(|(_, mask)| is_there(mask)) {
                    let hint =
                        "replace it with --force, keep it and make the others with --skip-existing, or choose another --out";
                    return Err(refusal(format!("{} exists", mask.display()), hint));
                }
            }
            Existing::Skip => (kept, masks) = masks.into_iter().partition(|(_, mask)| is_there(mask)),
            Existing::Replace => {
                for (_, mask) in masks.iter().filter(|(_, mask)| is_there(mask)) {
                    origin_of(mask).may_replace(mask, "a mask by sam-ladder")?;
                }
            }
        }
        Ok(Outputs { masks, kept, tables, existing })
    }

    /// The names and colours of the classes for ITK-SNAP and 3D Slicer: two files with their texts.
    fn label_tables(&self, class_names: &[String]) -> [(PathBuf, String); 2] {
        [(ITK_SNAP_ENDING, itk_snap(class_names)), (SLICER_ENDING, slicer(class_names))]
            .map(|(ending, text)| (with_ending(&self.tables, ending), text))
    }

    /// Makes the folder, and writes the names and colours of the classes into it; the two files.
    ///
    /// # Errors
    /// A folder or file that cannot be written.
    pub fn write_label_tables(&self, class_names: &[String]) -> anyhow::Result<[PathBuf; 2]> {
        let folder = self.tables.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        let tables = self.label_tables(class_names);
        for (path, text) in &tables {
            write_atomic(path, text.as_bytes())?;
        }
        Ok(tables.map(|(path, _)| path))
    }

    /// The table of the organs' volumes: next to a mask, or in the folder of masks.
    pub fn volumes_table(&self, out: &Path) -> PathBuf {
        let is_folder = self.tables.parent() == Some(out);
        if is_folder { out.join("volumes.csv") } else { with_ending(&self.tables, "volumes.csv") }
    }

    /// Looks whether the label tables may be written, before anything is.
    ///
    /// # Errors
    /// A file that is no label table, a table that someone has changed, a table of other classes that is not to be replaced.
    pub fn check_label_tables(&self, class_names: &[String]) -> anyhow::Result<()> {
        for (path, text) in &self.label_tables(class_names) {
            match std::fs::read(path) {
                Ok(found) if found == text.as_bytes() => continue,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_there(path) => {}
                _ => {
                    origin_of_text(path, HASH_COMMENT).may_replace(path, "a label table by sam-ladder")?;
                    if self.existing != Existing::Replace {
                        let message = format!("{} is the label table of other classes", path.display());
                        return Err(refusal(message, "replace it with --force, or choose another --out"));
                    }
                }
            }
        }
        Ok(())
    }
}
