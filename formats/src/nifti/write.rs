//! Writes NIfTI single files, `.nii` and `.nii.gz`.

use super::fields::Fields;
use super::{Geometry, NIFTI_1_HEADER_BYTES, NIFTI_2_HEADER_BYTES, NiftiVersion};
use crate::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::gzip::Gunzip;
use crate::hash::sha256_hex;
use crate::outputs::{Origin, is_regular_file};
use flate2::{Compression, GzBuilder};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

/// What the header's description begins with; the SHA-256 of the file, uncompressed and without description, follows.
const DESCRIPTION: &[u8] = b"sam-ladder ";
/// Length of the description, in both versions.
const DESCRIPTION_BYTES: usize = 80;
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
    write_scaled_nifti(path, geometry, voxels, 1.0)
}

/// As [`write_nifti`], of voxels that stand for `slope` times their number: `scl_slope`.
///
/// # Errors
/// As [`write_nifti`].
pub fn write_scaled_nifti<T: NiftiElement>(path: &Path, geometry: &Geometry, voxels: &[T], slope: f64) -> Result<()> {
    let contents = contents(path, geometry, voxels, slope)?;
    if is_plain(path) { write_atomic(path, &contents) } else { write_atomic(path, &compressed(path, &contents)?) }
}

/// The bytes of a `.nii.gz` file as [`write_nifti`] writes it; `path` is for errors.
///
/// # Errors
/// [`Error::Voxels`] when the number of voxels is not that of the geometry's shape.
pub fn nifti_gz<T: NiftiElement>(path: &Path, geometry: &Geometry, voxels: &[T]) -> Result<Vec<u8>> {
    compressed(path, &contents(path, geometry, voxels, 1.0)?)
}

fn contents<T: NiftiElement>(path: &Path, geometry: &Geometry, voxels: &[T], slope: f64) -> Result<Vec<u8>> {
    let expected: usize = geometry.shape.iter().product();
    if voxels.len() != expected {
        return Err(Error::Voxels { path: path.into(), shape: geometry.shape, expected, found: voxels.len() });
    }
    let mut contents = header(geometry, T::CODE, size_of::<T>(), slope);
    contents.reserve(size_of_val(voxels));
    voxels.iter().for_each(|voxel| voxel.write(&mut contents));
    let hash = sha256_hex(&contents);
    let at = Fields::of(geometry.version_needed()).description;
    contents[at..][..DESCRIPTION.len()].copy_from_slice(DESCRIPTION);
    contents[at + DESCRIPTION.len()..][..hash.len()].copy_from_slice(hash.as_bytes());
    Ok(contents)
}

fn compressed(path: &Path, contents: &[u8]) -> Result<Vec<u8>> {
    // No name and no time stamp in the stream.
    let mut stream = GzBuilder::new().write(Vec::new(), Compression::default());
    stream.write_all(contents).and_then(|()| stream.finish()).map_err(Error::io("write", path))
}

/// Whether a file of this name is not compressed: `.nii`, in either case.
fn is_plain(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("nii"))
}

/// The origin of a file that [`write_nifti`] may have written, by its header's description and the hash there; links and what cannot be read
/// are foreign.
pub fn origin_of(path: &Path) -> Origin {
    read_ours(path).unwrap_or(Origin::Foreign)
}

/// `None` for a file of another origin.
fn read_ours(path: &Path) -> Option<Origin> {
    let file = BufReader::new(File::open(path).ok().filter(|_| is_regular_file(path))?);
    let mut file: Box<dyn Read> = if is_plain(path) { Box::new(file) } else { Box::new(Gunzip::new(file)) };
    let mut contents = Vec::new();
    file.by_ref().take(NIFTI_2_HEADER_BYTES as u64).read_to_end(&mut contents).ok()?;
    let version = match contents.get(..4)? {
        [0x5c, 1, 0, 0] => NiftiVersion::One,
        [0x1c, 2, 0, 0] => NiftiVersion::Two,
        _ => return None,
    };
    let at = Fields::of(version).description;
    let description = contents.get(at..at + DESCRIPTION_BYTES)?.to_vec();
    let recorded = description.strip_prefix(DESCRIPTION)?;
    // What cannot be read to its end is not as it was written.
    if file.read_to_end(&mut contents).is_err() {
        return Some(Origin::Changed);
    }
    contents[at..at + DESCRIPTION_BYTES].fill(0);
    let mut expected = sha256_hex(&contents).into_bytes();
    expected.resize(recorded.len(), 0);
    Some(if recorded == expected { Origin::Ours } else { Origin::Changed })
}

/// The header and the four bytes that say that no extension follows, little-endian.
fn header(geometry: &Geometry, code: i16, element_bytes: usize, slope: f64) -> Vec<u8> {
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
        (fields.slope, &[slope]),
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
                assert_eq!(origin_of(&path), Origin::Ours, "{name} {version:?}");
            }
        }
        // A voxel that a user has corrected, a header that a program has changed, and both in a compressed file.
        let ours = std::fs::read(dir.path().join("a.nii")).unwrap();
        let other = dir.path().join("b.nii");
        let changed = |at: usize| {
            let mut bytes = ours.clone();
            bytes[at] ^= 1;
            std::fs::write(&other, bytes).unwrap();
            origin_of(&other)
        };
        assert_eq!([ours.len() - 1, 180, 260].map(changed), [Origin::Changed; 3]);
        assert_eq!([240, 1].map(changed), [Origin::Foreign; 2]);
        let mut packed = GzBuilder::new().write(Vec::new(), Compression::default());
        packed.write_all(&ours[..ours.len() - 1]).and_then(|()| packed.write_all(&[7])).unwrap();
        std::fs::write(dir.path().join("a.nii.gz"), packed.finish().unwrap()).unwrap();
        assert_eq!(origin_of(&dir.path().join("a.nii.gz")), Origin::Changed);
        std::fs::write(dir.path().join("c.nii"), "text").unwrap();
        assert_eq!(["c.nii", "d.nii"].map(|name| origin_of(&dir.path().join(name))), [Origin::Foreign; 2]);
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
        let header = header(&Geometry::aligned([1, 1, 40000], [1.0; 3]), u8::CODE, 1, 1.0);
        assert_eq!(header.len(), 544);
        assert_eq!(i64::from_le_bytes(header[24..32].try_into().unwrap()), 40000);
    }
}
