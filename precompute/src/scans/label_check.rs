//! The check of all labels before anything is encoded.

use super::error::ScanError;
use super::label_map::map_labels;
use super::{CaseEntry, Layout, ScanSource, published};
use rayon::prelude::*;
use sam_ladder_formats::Error as FileError;
use sam_ladder_formats::volume::read_volume;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::observer::{Observer, Phase, Unit};
use std::path::PathBuf;

/// Cases whose labels are in memory at the same time.
const AT_ONCE: usize = 4;

/// What the labels of a case say.
struct CaseLabels {
    /// Whether any voxel belongs to a class.
    foreground: bool,
    /// Number of voxels.
    voxels: usize,
    /// In the published layout, each file with its shape.
    shapes: Vec<(PathBuf, [usize; 3])>,
}

impl ScanSource {
    /// Reads all labels and checks what would otherwise be found only when a case is encoded, perhaps hours later. Files that cannot be read are
    /// left to the encoding, which reports them and continues with the other cases. Returns the number of voxels of all labels that can be
    /// read, or of all scans if there are no labels.
    ///
    /// # Errors
    /// The first label without a class, or whose file was not fetched; training labels that are all background; a test volume of the published layout whose slices lie along
    /// another axis than the training slices.
    pub fn check_labels(&self, observer: &dyn Observer) -> Result<usize, ScanError> {
        if self.layout == Layout::Unlabelled {
            let grids = self.cases.iter().filter_map(|case| case.grid.as_ref());
            return Ok(grids.map(|grid| grid.shape().iter().product::<usize>()).sum());
        }
        let progress = observer.begin(Phase::new("checking the labels", Unit::Files, self.cases.len() as u64));
        let (mut foreground, mut in_training, mut voxels, mut shapes) = (false, 0, 0, Vec::new());
        for cases in self.cases.chunks(AT_ONCE) {
            let checked: Vec<_> = cases.par_iter().map(|case| self.labels_of(case)).collect();
            for (case, checked) in cases.iter().zip(checked) {
                in_training += usize::from(case.split == Split::Train);
                match checked {
                    Ok(labels) => {
                        foreground |= labels.foreground && case.split == Split::Train;
                        voxels += labels.voxels;
                        shapes.extend(labels.shapes.into_iter().map(|(path, shape)| (case.split, path, shape)));
                    }
                    Err(error @ (ScanError::Label { .. } | ScanError::File(FileError::NotFetched { .. }))) => return Err(error),
                    // Nobody knows what it holds.
                    Err(_) => foreground = true,
                }
            }
            progress.advance(cases.len() as u64);
        }
        if in_training > 0 && !foreground {
            return Err(ScanError::NoForeground { path: self.root.clone(), scans: in_training });
        }
        published::check_axes(&shapes)?;
        Ok(voxels)
    }

    fn labels_of(&self, case: &CaseEntry) -> Result<CaseLabels, ScanError> {
        let map = &self.preprocessing.label_map;
        if self.layout == Layout::Published {
            return self.published_labels_of(case, &published::classes(map));
        }
        let Some(path) = case.files.last() else { return Err(ScanError::NoScans { path: self.root.clone() }) };
        let label = read_volume(path)?;
        let classes = map_labels(path, &label.voxels, label.geometry.shape, map, label.scaling)?;
        Ok(CaseLabels { foreground: classes.iter().any(|&class| class > 0), voxels: classes.len(), shapes: Vec::new() })
    }

    fn published_labels_of(&self, case: &CaseEntry, classes: &[u8]) -> Result<CaseLabels, ScanError> {
        let mut all = CaseLabels { foreground: false, voxels: 0, shapes: Vec::new() };
        for path in &case.files {
            let label = published::read_label(path, case.split)?;
            let classes = map_labels(path, &label.values, label.shape, classes, None)?;
            all.foreground |= classes.iter().any(|&class| class > 0);
            all.voxels += classes.len();
            all.shapes.push((path.clone(), label.shape));
        }
        Ok(all)
    }
}
