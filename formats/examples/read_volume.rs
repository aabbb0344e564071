//! Reads a volume: `cargo run -p sam-ladder-formats --example read_volume -- scan.nrrd [voxels.f32]` prints shape, spacing and affine as JSON, and
//! writes the voxels `[d, h, w]` as little-endian float32. Without an argument it writes a small volume first.

use sam_ladder_formats::nifti::{Geometry, write_nifti};
use sam_ladder_formats::volume::{read_geometry, read_volume};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let Some(path) = arguments.next() else { return show_small() };
    show(Path::new(&path), arguments.next().as_deref().map(Path::new))
}

fn show(path: &Path, out: Option<&Path>) -> Result<(), Box<dyn Error>> {
    let image = read_volume(path)?;
    // The header only, with the same result.
    assert_eq!(read_geometry(path)?, image.geometry);
    let (shape, spacing, affine) = (image.geometry.shape, image.geometry.spacing_mm(), image.geometry.world_affine());
    println!("{}", serde_json::json!({ "shape": shape, "spacing_mm": spacing, "affine": affine }));
    if let Some(out) = out {
        std::fs::write(out, image.voxels.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    Ok(())
}

fn show_small() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("small.nii.gz");
    write_nifti(&path, &Geometry::aligned([1, 2, 3], [3.0, 0.8, 0.7]), &[1u8, 2, 3, 4, 5, 6])?;
    show(&path, None)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_volume_is_shown() {
        super::show_small().unwrap();
    }
}
