//! Writes NIfTI single files, `.nii` and `.nii.gz`.

use super::fields::Fields;
use super::{Geometry, NIFTI_1_HEADER_BYTES, NIFTI_2_HEADER_BYTES, NiftiVersion};
use crate::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::gzip::Gunzip;
use flate2::{Compression, GzBuilder};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

/// The header's description field.
const DESCRIPTION: &[u8] = b"sam-ladder";
/// Offset of NIfTI-1's field `regular`, which Analyze's readers want to be `r`.
const REGULAR: usize = 38;

/// A number type that can be written as voxels.
pub trait NiftiElement: Copy {
    /// NIfTI's `datatype` code.
    const CODE: i16;
    /// The number's bytes, little-endian.
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

/// Writes voxels `[d, h, w]` atomically, replacing an existing file; compressed unless the name ends in `.nii`. The same voxels give the
/// same bytes.
///
/// # Errors
/// [`Error::Io`] that names the file; [`Error::Voxels`] when the number of voxels is not that of the geometry's shape.
pub fn write_nifti<T: NiftiElement>(path: &Path, geometry: &Geometry, voxels: &[T]) -> Result<()> {
    let expected: usize = geometry.shape.iter().product();
    if voxels.len() != expected {
        return Err(Error::Voxels { path: path.into(), shape: geometry.shape, expected, found: voxels.len() });
    }
    let mut contents = header(geometry, T::CODE, size_of::<T>());
    contents.reserve(size_of_val(voxels));
    voxels.iter().for_each(|voxel| voxel.write(&mut contents));
    if is_plain(path) {
        return write_atomic(path, &contents);
    }
    // No name and no time stamp in the stream.
    let mut stream = GzBuilder::new().write(Vec::new(), Compression::default());
    let compressed = stream.write_all(&contents).and_then(|()| stream.finish());
    write_atomic(path, &compressed.map_err(Error::io("write", path))?)
}

/// Whether a file of this name is not compressed: `.nii`, in either case.
fn is_plain(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("nii"))
}

/// Whether the file was written by [`write_nifti`], by its header's description; false for what cannot be read.
pub fn is_ours(path: &Path) -> bool {
    let head = || {
        let mut head = Vec::new();
        let file = BufReader::new(File::open(path).ok()?);
        let mut file: Box<dyn Read> = if is_plain(path) { Box::new(file) } else { Box::new(Gunzip::new(file)) };
        file.by_ref().take(NIFTI_2_HEADER_BYTES as u64).read_to_end(&mut head).ok()?;
        Some(head)
    };
    // An 80-byte field, which differs in place between the versions.
    let described = |head: &[u8], version: NiftiVersion| {
        let at = Fields::of(version).description;
        let field = head.get(at..at + 80);
        field.is_some_and(|field| field.starts_with(DESCRIPTION) && field[DESCRIPTION.len()..].iter().all(|&byte| byte == 0))
    };
    head().is_some_and(|head| match head.get(..4) {
        Some([0x5c, 1, 0, 0]) => described(&head, NiftiVersion::One),
        Some([0x1c, 2, 0, 0]) => described(&head, NiftiVersion::Two),
        _ => false,
    })
}

/// The header and the four bytes that say that no extension follows, little-endian.
fn header(geometry: &Geometry, code: i16, element_bytes: usize) -> Vec<u8> {
    let fields = Fields::of(geometry.version_needed());
    let [depth, height, width] = geometry.shape;
    let mut dim = [1.0; 8];
    dim[..4].copy_from_slice(&[usize::from(geometry.rank.clamp(3, 7)), width, height, depth].map(|n| n as f64));
    let mut head = vec![0u8; fields.header_bytes + 4];
    let numbers: [(_, &[f64]); 14] = [
        (fields.size, &[fields.header_bytes as f64]),
        (fields.data_type, &[f64::from(code)]),
        (fields.bits, &[8.0 * element_bytes as f64]),
        (fields.dim, &dim),
        (fields.pixdim, &geometry.pixdim),
        (fields.voxel_offset, &[(fields.header_bytes + 4) as f64]),
        // For unscaled voxels.
        (fields.slope, &[1.0]),
        (fields.units, &[f64::from(geometry.xyzt_units)]),
        (fields.qform_code, &[f64::from(geometry.qform_code)]),
        (fields.sform_code, &[f64::from(geometry.sform_code)]),
        (fields.quaternion, &geometry.quaternion),
        (fields.translation, &geometry.translation),
        (fields.rows[0], &geometry.affine[0]),
        (fields.rows[1], &geometry.affine[1]),
    ];
    for (field, values) in numbers {
        field.write(&mut head, values);
    }
    fields.rows[2].write(&mut head, &geometry.affine[2]);
    if fields.header_bytes == NIFTI_1_HEADER_BYTES {
        head[REGULAR] = b'r';
    }
    let (at, magic) = fields.magic;
    head[at..at + magic.len()].copy_from_slice(magic);
    head[fields.description..][..DESCRIPTION.len()].copy_from_slice(DESCRIPTION);
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;

    #[test]
    fn our_files_are_known_from_others() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.nii", "a.nii.gz"] {
            let path = dir.path().join(name);
            let mut geometry = Geometry::aligned([1, 1, 2], [1.0; 3]);
            for version in [NiftiVersion::One, NiftiVersion::Two] {
                geometry.version = version;
                write_nifti(&path, &geometry, &[1u8, 2]).unwrap();
                assert!(is_ours(&path), "{name} {version:?}");
            }
        }
        let mut other = std::fs::read(dir.path().join("a.nii")).unwrap();
        other[240] = b'S';
        std::fs::write(dir.path().join("b.nii"), other).unwrap();
        std::fs::write(dir.path().join("c.nii"), "text").unwrap();
        assert!(
            !is_ours(&dir.path().join("b.nii")) && !is_ours(&dir.path().join("c.nii")) && !is_ours(&dir.path().join("d.nii"))
        );
    }

    #[test]
    fn fields_are_where_nifti_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0001.nii.gz");
        let voxels: Vec<u8> = (0..24).collect();
        let geometry = Geometry::aligned([2, 3, 4], [5.0, 0.75, 0.5]);
        write_nifti(&path, &geometry, &voxels).unwrap();
        let mut bytes = Vec::new();
        GzDecoder::new(std::fs::File::open(&path).unwrap()).read_to_end(&mut bytes).unwrap();
        let short = |offset: usize| i16::from_le_bytes([bytes[offset], bytes[offset + 1]]);
        let float = |offset: usize| f32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
        assert_eq!([40, 42, 44, 46].map(short), [3, 4, 3, 2]);
        assert_eq!([80, 84, 88].map(float), [0.5, 0.75, 5.0]);
        assert_eq!([280, 300, 320].map(float), [0.5, 0.75, 5.0]);
        assert_eq!((float(108), &bytes[344..348]), (352.0, &b"n+1\0"[..]));
        assert_eq!(&bytes[352..], voxels);

        let plain = dir.path().join("0001.nii");
        write_nifti(&plain, &geometry, &voxels).unwrap();
        assert_eq!(std::fs::read(&plain).unwrap(), bytes);
        let refused = write_nifti(&plain, &geometry, &voxels[1..]).unwrap_err().to_string();
        assert!(refused.contains("0001.nii") && refused.contains("24") && refused.contains("23"), "{refused}");
        assert_eq!(std::fs::read(&plain).unwrap(), bytes, "what was there stays");
    }

    #[test]
    fn sides_beyond_nifti_1_are_written_as_nifti_2() {
        let header = header(&Geometry::aligned([1, 1, 40000], [1.0; 3]), u8::CODE, 1);
        assert_eq!(header.len(), 544);
        assert_eq!(i64::from_le_bytes(header[24..32].try_into().unwrap()), 40000);
    }
}
