//! Masks as NIfTI-1 files (`.nii.gz`).

use crate::error::Result;
use crate::masks::Mask;
use crate::write::write_atomically;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use std::path::Path;

/// Bytes before the voxels: the header and four bytes that say that no extension follows.
const VOXEL_OFFSET: usize = 352;
/// `NIFTI_TYPE_UINT8`.
const DATATYPE_UINT8: i16 = 2;
/// `NIFTI_UNITS_MM`.
const UNITS_MM: u8 = 2;
/// `NIFTI_XFORM_SCANNER_ANAT`.
const FORM_SCANNER: i16 = 1;

/// Writes a mask `[d, h, w]` as gzipped NIfTI-1, uint8, in the axis order of the scan that it was read from.
///
/// The store holds a scan as `[depth, axis 1, axis 0]` of its NIfTI array; NIfTI's first axis runs fastest, so the voxels lie in the
/// file as they lie here, and the array that is read back is `[w, h, d]`. `spacing_mm` is along depth, height and width. The store holds no origin and
/// no direction: the affine is the diagonal of the spacing.
///
/// # Errors
/// Where the file cannot be written. The same mask gives the same bytes.
pub fn write_mask(path: &Path, mask: Mask, spacing_mm: [f64; 3]) -> Result<()> {
    let header = header(mask.shape, spacing_mm);
    write_atomically(path, |file| {
        let mut gzip = GzEncoder::new(file, Compression::new(6));
        gzip.write_all(&header)?;
        gzip.write_all(mask.voxels)?;
        gzip.finish()?.flush()
    })
}

/// The header, little-endian, field by field at the offsets of `nifti1.h`.
fn header([depth, height, width]: [usize; 3], [spacing_d, spacing_h, spacing_w]: [f64; 3]) -> [u8; VOXEL_OFFSET] {
    let mut bytes = [0u8; VOXEL_OFFSET];
    let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
    put(0, &348i32.to_le_bytes());
    for (index, length) in [3, width, height, depth, 1, 1, 1, 1].into_iter().enumerate() {
        put(40 + 2 * index, &(length as i16).to_le_bytes());
    }
    put(70, &DATATYPE_UINT8.to_le_bytes());
    put(72, &8i16.to_le_bytes());
    let spacing = [spacing_w, spacing_h, spacing_d].map(|spacing| spacing as f32);
    // The first is the sign of the quaternion's third axis.
    put(76, &1f32.to_le_bytes());
    for (axis, spacing) in spacing.into_iter().enumerate() {
        put(80 + 4 * axis, &spacing.to_le_bytes());
    }
    put(108, &(VOXEL_OFFSET as f32).to_le_bytes());
    put(112, &1f32.to_le_bytes());
    put(123, &[UNITS_MM]);
    put(148, b"sam-ladder mask");
    // The quaternion of the identity is all zeros, as is the origin.
    put(252, &FORM_SCANNER.to_le_bytes());
    put(254, &FORM_SCANNER.to_le_bytes());
    for (axis, spacing) in spacing.into_iter().enumerate() {
        put(280 + 16 * axis + 4 * axis, &spacing.to_le_bytes());
    }
    put(344, b"n+1\0");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    #[test]
    fn voxels_and_spacing_are_where_nifti_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0001.nii.gz");
        let voxels: Vec<u8> = (0..24).collect();
        write_mask(&path, Mask { voxels: &voxels, shape: [2, 3, 4] }, [5.0, 0.75, 0.5]).unwrap();
        let mut bytes = Vec::new();
        GzDecoder::new(std::fs::File::open(&path).unwrap()).read_to_end(&mut bytes).unwrap();
        let short = |offset: usize| i16::from_le_bytes([bytes[offset], bytes[offset + 1]]);
        let float = |offset: usize| f32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
        assert_eq!([40, 42, 44, 46].map(short), [3, 4, 3, 2]);
        assert_eq!([80, 84, 88].map(float), [0.5, 0.75, 5.0]);
        assert_eq!([280, 300, 320].map(float), [0.5, 0.75, 5.0]);
        assert_eq!((float(108), &bytes[344..348]), (352.0, &b"n+1\0"[..]));
        assert_eq!(&bytes[VOXEL_OFFSET..], voxels);
    }
}
