//! The channels of one image, one file each, scaled to [0, 1] and interleaved slice by slice.

use super::error::ScanError;
use super::intensity;
use super::raw_synapse::same_shape;
use super::{ReadFile, read_file, source_file};
use sam_ladder_formats::nifti::decode_image;
use sam_ladder_schemas::precompute::Preprocessing;
use sam_ladder_schemas::store::SourceFile;
use std::path::{Path, PathBuf};

/// An image of one or more channels.
pub(super) struct Image {
    /// Depth, height, width.
    pub(super) shape: [usize; 3],
    /// Distance between voxel centres along depth, height and width.
    pub(super) spacing_mm: [f64; 3],
    /// `[d, c, h, w]`, in [0, 1].
    pub(super) values: Vec<f32>,
    /// The file of the first channel.
    pub(super) source: SourceFile,
}

/// Reads the files, one per channel of `preprocessing`, in its order, and notes them in `files`.
pub(super) fn read(
    root: &Path,
    paths: &[PathBuf],
    preprocessing: &Preprocessing,
    files: &mut Vec<ReadFile>,
) -> Result<Image, ScanError> {
    let mut planes = Vec::with_capacity(paths.len());
    let mut first = None;
    for (path, channel) in paths.iter().zip(&preprocessing.channels) {
        let bytes = read_file(path, files)?;
        let mut image = decode_image(path, &bytes)?;
        let (shape, _, _) =
            first.get_or_insert_with(|| (image.geometry.shape, image.geometry.spacing_mm(), source_file(root, files)));
        same_shape(path, image.geometry.shape, &paths[0], *shape)?;
        intensity::apply(path, &mut image.voxels, *shape, channel.intensity, preprocessing)?;
        planes.push(image.voxels);
    }
    let Some((shape, spacing_mm, source)) = first else { return Err(ScanError::NoScans { path: root.into() }) };
    Ok(Image { shape, spacing_mm, values: slice_by_slice(planes, shape[1] * shape[2]), source })
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
