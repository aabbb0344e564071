//! Headers that promise more than the file holds, and what may follow a gzip stream.

use sam_ladder_formats::nifti::{Geometry, read_geometry, read_image, write_nifti};
use std::path::Path;

/// A NIfTI-2 file of `[x, y, z]` voxels of uint8, as far as its header goes.
fn nifti_2(dims: [i64; 3]) -> Vec<u8> {
    let mut file = vec![0u8; 600];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &540i32.to_le_bytes());
    put(4, b"n+2\0\r\n\x1a\n");
    put(12, &2i16.to_le_bytes());
    for (i, n) in [3, dims[0], dims[1], dims[2], 1, 1, 1, 1].into_iter().enumerate() {
        put(16 + 8 * i, &n.to_le_bytes());
        put(104 + 8 * i, &1f64.to_le_bytes());
    }
    put(168, &544i64.to_le_bytes());
    file
}

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
    std::fs::write(&small, nifti_2([4, 4, 3])).unwrap();
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
