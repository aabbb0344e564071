//! Headers that promise more than the file holds, and what may follow a gzip stream.

#[path = "common/nifti_2.rs"]
mod nifti_2;

use nifti_2::nifti_2;
use sam_ladder_formats::nifti::{Geometry, read_geometry, read_image, write_nifti};
use std::path::Path;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// Reading only the header is enough to refuse it: plans are made from its depth.
#[test]
fn a_depth_of_two_to_the_forty_is_refused_from_the_header() {
    let folder = tempfile::tempdir().unwrap();
    for (name, file) in [("a.nii", nifti_2([4, 4, 1 << 40])), ("a.nii.gz", gzip(&nifti_2([4, 4, 1 << 40])))] {
        let path = folder.path().join(name);
        std::fs::write(&path, file).unwrap();
        for error in [read_geometry(&path).unwrap_err(), read_image(&path).unwrap_err()] {
            assert!(error.to_string().contains("its header promises 17592186044416 bytes of voxels"), "{name}: {error}");
        }
    }
    let small = folder.path().join("b.nii");
    std::fs::write(&small, [nifti_2([4, 4, 3]), vec![0; 48]].concat()).unwrap();
    assert_eq!(read_geometry(&small).unwrap().shape, [3, 4, 4]);
}

#[test]
fn zeros_behind_a_gzip_stream_are_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.nii.gz");
    write_nifti(&path, &Geometry::aligned([1, 1, 3], [1.0; 3]), &[1u8, 2, 3]).unwrap();
    let read = |path: &Path| read_image(path).map(|image| image.voxels);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&whole[..], &[0; 512]].concat()).unwrap();
    assert_eq!(read(&path).unwrap(), [1.0, 2.0, 3.0]);
    std::fs::write(&path, [&whole[..], &[0; 512], b"x"].concat()).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("a.nii.gz"));
}
