//! Writes NIfTI-1 single files, compressed: the phantoms' scans, and masks that lie on top of a scan.

use super::error::ScanError;
use super::nifti::Geometry;
use flate2::{Compression, GzBuilder};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A number type that can be written as voxels.
pub trait NiftiElement: Copy {
    /// NIfTI's `datatype` code.
    const CODE: i16;
    /// The number's bytes, little endian.
    fn write(self, out: &mut Vec<u8>);
}

macro_rules! nifti_element {
    ($type:ty, $code:literal) => {
        impl NiftiElement for $type {
            const CODE: i16 = $code;
            fn write(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    };
}
nifti_element!(u8, 2);
nifti_element!(i16, 4);
nifti_element!(f32, 16);

/// Writes voxels `[d, h, w]` as `.nii.gz`, aside and then renamed, replacing what is there. The same voxels give the same bytes.
///
/// # Errors
/// When the file cannot be written, or when a side is longer than NIfTI-1 can say (32767).
///
/// # Panics
/// When the number of voxels is not that of the geometry's shape.
pub fn write_nifti<T: NiftiElement>(path: &Path, geometry: &Geometry, voxels: &[T]) -> Result<(), ScanError> {
    assert_eq!(voxels.len(), geometry.shape.iter().product::<usize>(), "voxels for shape {:?}", geometry.shape);
    let mut contents = header(path, geometry, T::CODE, size_of::<T>())?;
    contents.reserve(size_of_val(voxels));
    voxels.iter().for_each(|voxel| voxel.write(&mut contents));
    let mut aside = path.as_os_str().to_owned();
    aside.push(".tmp");
    let aside = PathBuf::from(aside);
    let written = (|| {
        // No name and no time stamp in the stream.
        let mut stream = GzBuilder::new().write(BufWriter::new(File::create(&aside)?), Compression::default());
        stream.write_all(&contents)?;
        stream.finish()?.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        std::fs::rename(&aside, path)
    })();
    written.map_err(|error| {
        // Half a file is of no use to anyone; the error to report is the first.
        let _ = std::fs::remove_file(&aside);
        ScanError::io(path)(error)
    })
}

/// The 348 bytes of the header and the 4 that say that no extension follows.
fn header(path: &Path, geometry: &Geometry, code: i16, element_bytes: usize) -> Result<Vec<u8>, ScanError> {
    let [depth, height, width] = geometry.shape;
    let mut dim = [1i16; 8];
    dim[0] = 3;
    for (slot, n) in dim[1..4].iter_mut().zip([width, height, depth]) {
        *slot = i16::try_from(n)
            .map_err(|_| ScanError::nifti(path, format!("shape {:?} is too large for NIfTI-1 (32767 a side)", geometry.shape)))?;
    }
    let [dz, dy, dx] = geometry.spacing_mm;
    let mut head = vec![0u8; 352];
    let mut put = |offset: usize, bytes: &[u8]| head[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &348i32.to_le_bytes());
    put(38, b"r");
    dim.iter().enumerate().for_each(|(i, n)| put(40 + 2 * i, &n.to_le_bytes()));
    put(70, &code.to_le_bytes());
    put(72, &(8 * element_bytes as i16).to_le_bytes());
    let mut floats = |offset: usize, values: &[f64]| {
        for (i, &value) in values.iter().enumerate() {
            put(offset + 4 * i, &(value as f32).to_le_bytes());
        }
    };
    floats(76, &[geometry.qfac, dx, dy, dz, 1.0, 1.0, 1.0, 1.0]);
    floats(108, &[352.0, 1.0, 0.0]);
    floats(256, &geometry.quaternion);
    floats(268, &geometry.translation);
    for (row, offset) in geometry.affine.iter().zip([280, 296, 312]) {
        floats(offset, row);
    }
    put(123, &[geometry.xyzt_units]);
    put(252, &geometry.qform_code.to_le_bytes());
    put(254, &geometry.sform_code.to_le_bytes());
    put(344, b"n+1\0");
    Ok(head)
}
