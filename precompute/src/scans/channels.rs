//! The channels of one image, one file each, scaled to [0, 1], turned and interleaved slice by slice.

use super::error::ScanError;
use super::grid::{Grid, same_grid};
use super::intensity::{self, ChannelValues};
use super::{ReadFile, Scan, read_volume, source_file};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::orientation::Orientation;
use sam_ladder_schemas::preprocessing::Preprocessing;
use sam_ladder_schemas::store::SourceFile;
use sam_ladder_schemas::tables::ScanRow;
use std::path::{Path, PathBuf};

/// An image of one or more channels.
pub(super) struct Image {
    /// Where it lies, and how it was turned.
    pub(super) grid: Grid,
    /// `[d, c, h, w]`, turned, in [0, 1].
    values: Vec<f32>,
    /// What the values of each file were like.
    channels: Vec<ChannelValues>,
    /// For each channel or window, the share of voxels that it does not clip.
    in_window: Vec<f64>,
    /// What the user should know of them.
    notes: Vec<String>,
    /// The file of the first channel.
    source: SourceFile,
    /// The files that were read.
    pub(super) files: Vec<ReadFile>,
}

/// Reads the files, one per channel of `preprocessing`, in its order.
pub(super) fn read(
    root: &Path,
    paths: &[PathBuf],
    preprocessing: &Preprocessing,
    wanted: Option<Orientation>,
) -> Result<Image, ScanError> {
    let (mut planes, mut channels, mut notes) = (Vec::with_capacity(paths.len()), Vec::new(), Vec::new());
    let (mut files, mut in_window) = (Vec::new(), Vec::new());
    let mut first: Option<(Grid, SourceFile)> = None;
    for (path, channel) in paths.iter().zip(&preprocessing.channels) {
        let at = files.len();
        let mut image = read_volume(path, &mut files)?;
        let geometry = image.geometry.clone();
        let (grid, _) = first.get_or_insert_with(|| (Grid::new(geometry, wanted), source_file(root, &files[at])));
        same_grid(path, &image.geometry, &paths[0], &grid.geometry)?;
        let shape = grid.geometry.shape;
        let values = match preprocessing.channels_from.windows() {
            None => {
                let values = intensity::apply(path, &mut image.voxels, shape, channel.intensity, preprocessing)?;
                in_window.push(values.in_window);
                planes.push(grid.turn.voxels(image.voxels, shape));
                values
            }
            Some(windows) => {
                let (values, windowed) = intensity::in_windows(path, &image.voxels, shape, windows)?;
                for (window, voxels) in windows.iter().zip(windowed) {
                    let part = intensity::part_in(&image.voxels, *window);
                    notes.extend(empty_window(path, *window, part));
                    in_window.push(part);
                    planes.push(grid.turn.voxels(voxels, shape));
                }
                values
            }
        };
        notes.extend(values.strange_for(channel).map(|strange| format!("warning: {}: {strange}", path.display())));
        channels.push(values);
    }
    let Some((grid, source)) = first else { return Err(ScanError::NoScans { path: root.into(), advice: None }) };
    let [_, height, width] = grid.shape();
    Ok(Image { values: slice_by_slice(planes, height * width), grid, channels, in_window, notes, source, files })
}

impl Image {
    /// The image with its labels `[d, h, w]`, turned as the grid says.
    pub(super) fn into_scan(self, case: &str, split: Split, label: impl FnOnce(&Grid) -> Vec<u8>) -> Scan {
        let (shape, label) = (self.grid.shape(), label(&self.grid));
        let row = ScanRow {
            percentiles: self.channels.iter().flat_map(|values| values.percentiles).collect(),
            in_window: self.in_window,
            ..self.grid.row(case)
        };
        Scan {
            case: case.into(),
            split,
            shape,
            spacing_mm: self.grid.spacing_mm(),
            image: self.values,
            label,
            slice_sources: vec![self.source; shape[0]],
            row,
            notes: self.notes,
            files: self.files,
        }
    }
}

/// A warning of a window that shows nothing of a scan.
fn empty_window(path: &Path, [low, high]: [f32; 2], part: f64) -> Option<String> {
    (part == 0.0).then(|| format!("warning: {}: no voxel lies within the window from {low} to {high}", path.display()))
}

/// Channels `[d, h, w]` each → `[d, c, h, w]`.
fn slice_by_slice(mut channels: Vec<Vec<f32>>, pixels: usize) -> Vec<f32> {
    if channels.len() == 1 {
        return channels.swap_remove(0);
    }
    let slices = channels.first().map_or(0, |channel| channel.len() / pixels);
    (0..slices)
        .flat_map(|slice| channels.iter().flat_map(move |channel| channel[slice * pixels..][..pixels].iter().copied()))
        .collect()
}
