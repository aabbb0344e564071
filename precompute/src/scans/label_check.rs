//! The check of all labels before anything is encoded.

use super::error::ScanError;
use super::label_map::StoredLabels;
use super::{CaseEntry, Layout, ScanSource, published};
use rayon::prelude::*;
use sam_ladder_formats::Error as FileError;
use sam_ladder_formats::volume::read_volume;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::observer::{Observer, Phase, Unit};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Cases whose labels are in memory at the same time.
const AT_ONCE: usize = 4;

/// What the labels of a case say.
struct CaseLabels {
    /// The classes that they have.
    classes: BTreeSet<u8>,
    /// Number of voxels.
    voxels: usize,
    /// In the published layout, each file with its shape.
    shapes: Vec<(PathBuf, [usize; 3])>,
}

impl ScanSource {
    /// Reads all labels and checks what would otherwise be found only when a case is encoded, perhaps hours later. Files that cannot be read are
    /// left to the encoding, which reports them and continues with the other cases. Classes that no training label has are reported to the
    /// observer by their names, of which `class_names` are those from 1. Returns the number of voxels of all labels that can be
    /// read, or of all scans if there are no labels.
    ///
    /// # Errors
    /// The first label without a class, or whose file was not fetched; training labels that are all background; a test volume of the published layout whose slices lie along
    /// another axis than the training slices.
    pub fn check_labels(&self, class_names: &[String], observer: &dyn Observer) -> Result<usize, ScanError> {
        if self.layout == Layout::Unlabelled {
            let grids = self.cases.iter().filter_map(|case| case.grid.as_ref());
            return Ok(grids.map(|grid| grid.shape().iter().product::<usize>()).sum());
        }
        let progress = observer.begin(Phase::new("checking the labels", Unit::Files, self.cases.len() as u64));
        let (mut found, mut all_known, mut in_training, mut voxels, mut shapes) = (BTreeSet::new(), true, 0, 0, Vec::new());
        for cases in self.cases.chunks(AT_ONCE) {
            let checked: Vec<_> = cases.par_iter().map(|case| self.labels_of(case)).collect();
            for (case, checked) in cases.iter().zip(checked) {
                in_training += usize::from(case.split == Split::Train);
                match checked {
                    Ok(labels) => {
                        if case.split == Split::Train {
                            found.extend(labels.classes);
                        }
                        voxels += labels.voxels;
                        shapes.extend(labels.shapes.into_iter().map(|(path, shape)| (case.split, path, shape)));
                    }
                    Err(error @ (ScanError::Label { .. } | ScanError::File(FileError::NotFetched { .. }))) => return Err(error),
                    // Nobody knows what it holds.
                    Err(_) => all_known &= case.split != Split::Train,
                }
            }
            progress.advance(cases.len() as u64);
        }
        if let Some(ignored) = self.preprocessing.ignored_class(class_names.len()) {
            found.remove(&ignored);
        }
        if in_training > 0 && all_known {
            if found.iter().all(|&class| class == 0) {
                return Err(ScanError::NoForeground { path: self.root.clone(), scans: in_training });
            }
            unlearnable(class_names, &found).iter().for_each(|note| observer.message(note));
        }
        published::check_axes(&shapes)?;
        Ok(voxels)
    }

    fn labels_of(&self, case: &CaseEntry) -> Result<CaseLabels, ScanError> {
        let map = &self.preprocessing.label_map;
        if self.layout == Layout::Published {
            return self.published_labels_of(case, &published::classes(map));
        }
        let Some(path) = case.files.last() else { return Err(ScanError::NoScans { path: self.root.clone(), advice: None }) };
        let label = read_volume(path)?;
        let classes = StoredLabels::of_volume(path, &label).classes(map, self.layout)?;
        Ok(CaseLabels { voxels: classes.len(), classes: distinct(&classes).collect(), shapes: Vec::new() })
    }

    fn published_labels_of(&self, case: &CaseEntry, classes: &[u8]) -> Result<CaseLabels, ScanError> {
        let mut all = CaseLabels { classes: BTreeSet::new(), voxels: 0, shapes: Vec::new() };
        for path in &case.files {
            let label = published::read_label(path, case.split)?;
            let classes = StoredLabels::of_array(path, &label).classes(classes, self.layout)?;
            all.classes.extend(distinct(&classes));
            all.voxels += classes.len();
            all.shapes.push((path.clone(), label.shape));
        }
        Ok(all)
    }
}

/// Each class once.
fn distinct(classes: &[u8]) -> impl Iterator<Item = u8> {
    let mut is_there = [false; 256];
    classes.iter().for_each(|&class| is_there[usize::from(class)] = true);
    (0..=u8::MAX).filter(move |&class| is_there[usize::from(class)])
}

/// A warning for the classes that no training label has, if there are any.
fn unlearnable(class_names: &[String], found: &BTreeSet<u8>) -> Option<String> {
    let missing: Vec<String> = class_names
        .iter()
        .zip(1u8..)
        .filter(|(_, class)| !found.contains(class))
        .map(|(name, class)| format!("{name} ({class})"))
        .collect();
    let (count, all) = (missing.len(), class_names.len());
    (count > 0).then(|| {
        format!(
            "warning: {count} of {all} classes have no voxel in any training label, and nothing can learn them: {}",
            missing.join(", ")
        )
    })
}
