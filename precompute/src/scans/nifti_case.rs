//! A labelled case in volumes: one image per channel and the labels, on the same grid.

use super::channels;
use super::error::ScanError;
use super::grid::same_grid;
use super::label_map::StoredLabels;
use super::{CaseEntry, Layout, Scan, read_volume};
use sam_ladder_schemas::preprocessing::Preprocessing;
use std::path::Path;

/// Reads a case whose last file holds the labels: every channel brought to [0, 1] by its intensity, labels mapped to classes. In
/// nnU-Net's layout both are turned to the settings' orientation; in the raw one scans are taken as they lie, as published.
pub(super) fn read(root: &Path, entry: &CaseEntry, preprocessing: &Preprocessing, layout: Layout) -> Result<Scan, ScanError> {
    let Some((label_path, image_paths)) = entry.files.split_last() else {
        return Err(ScanError::NoScans { path: root.into(), advice: None });
    };
    let wanted = preprocessing.orientation.filter(|_| layout == Layout::NnUnet);
    let mut image = channels::read(root, image_paths, preprocessing, wanted)?;
    let label = read_volume(label_path, &mut image.files)?;
    let file_shape = image.grid.geometry.shape;
    same_grid(label_path, &label.geometry, &image_paths[0], &image.grid.geometry)?;
    let label = StoredLabels::of_volume(label_path, &label).classes(&preprocessing.label_map, layout)?;
    Ok(image.into_scan(&entry.case, entry.split, |grid| grid.turn.voxels(label, file_shape)))
}
