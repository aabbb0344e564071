//! Reads NIfTI-1 and NIfTI-2 single files (`.nii`, `.nii.gz`) of every real number type and either byte order.
//!
//! Voxel values follow nibabel's `get_fdata()`: a slope that is 0 or not finite means unscaled, anything else applies slope
//! and intercept in float64. A NIfTI array is stored with its first axis fastest, so its voxels in file order are already the row-major
//! array `[axis 2, axis 1, axis 0]` to which the published preprocessing transposes: `[d, h, w]`.
//!
//! Headers are not trusted: at most as many bytes are allocated as the file can hold.

use super::{Geometry, NIFTI_1_HEADER_BYTES, NIFTI_2_HEADER_BYTES, NiftiVersion};
use crate::error::{Error, Problem, Result};
use crate::gzip::Gunzip;
use crate::numeric::NumericType;
use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::Path;

/// The format's name in messages.
const FORMAT: &str = "NIfTI";
/// No deflate stream expands by more than this factor.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// A NIfTI image: values as stored after slope and intercept.
#[derive(Debug, Clone, PartialEq)]
pub struct NiftiImage {
    /// Where its voxels lie.
    pub geometry: Geometry,
    /// `[d, h, w]`: Hounsfield units for CT, raw labels for a segmentation.
    pub voxels: Vec<f32>,
    /// Slope and intercept that the stored values were scaled by; `None` for values as they are stored.
    pub scaling: Option<(f64, f64)>,
}

/// What the reader needs of a header.
#[derive(Debug, Clone, PartialEq)]
struct Header {
    geometry: Geometry,
    number_type: NumericType,
    big_endian: bool,
    slope: f64,
    intercept: f64,
    voxel_offset: u64,
    /// Bytes of all voxels; the sum with the offset fits a u64.
    voxel_bytes: u64,
}

/// Reads an image with its geometry.
///
/// # Errors
/// When the file cannot be read, is not a NIfTI file, is truncated, or has an unsupported number type.
pub fn read_image(path: &Path) -> Result<NiftiImage> {
    decode_image(path, &std::fs::read(path).map_err(Error::io("read", path))?)
}

/// Reads only the geometry, from the header.
///
/// # Errors
/// When the file cannot be read, is not a NIfTI file, or is too small for its voxels; not when they are damaged.
pub fn read_geometry(path: &Path) -> Result<Geometry> {
    let mut head = Vec::new();
    let file = File::open(path).map_err(Error::io("read", path))?;
    let file_bytes = file.metadata().map_err(Error::io("read", path))?.len();
    let mut file = BufReader::new(file);
    let is_gzip = std::io::BufRead::fill_buf(&mut file).map_err(Error::io("read", path))?.starts_with(&[0x1f, 0x8b]);
    let limit = NIFTI_2_HEADER_BYTES as u64;
    let read =
        if is_gzip { Gunzip::new(file).take(limit).read_to_end(&mut head) } else { file.take(limit).read_to_end(&mut head) };
    // A damaged stream may still give the whole header; otherwise parsing reports what is missing.
    if let Err(error) = read
        && head.len() < NIFTI_1_HEADER_BYTES
    {
        return Err(Problem::from(error.to_string()).in_file(path, FORMAT));
    }
    let header = Header::parse(path, &head)?;
    let most = if is_gzip { file_bytes.saturating_mul(MAX_DEFLATE_RATIO) } else { file_bytes };
    if header.voxel_offset + header.voxel_bytes > most {
        return Err(header.truncated(path, most));
    }
    Ok(header.geometry)
}

/// Decodes the bytes of a file; `path` is for messages.
///
/// # Errors
/// As [`read_image`], except those of reading the file.
pub fn decode_image(path: &Path, file: &[u8]) -> Result<NiftiImage> {
    let (header, voxels) = if file.starts_with(&[0x1f, 0x8b]) {
        let mut stream = Gunzip::new(Cursor::new(file));
        let damaged = |error: std::io::Error| Problem::from(format!("damaged gzip data: {error}")).in_file(path, FORMAT);
        let mut head = Vec::new();
        (&mut stream).take(NIFTI_1_HEADER_BYTES as u64).read_to_end(&mut head).map_err(damaged)?;
        if is_nifti_2(&head) {
            let more = (NIFTI_2_HEADER_BYTES - NIFTI_1_HEADER_BYTES) as u64;
            (&mut stream).take(more).read_to_end(&mut head).map_err(damaged)?;
        }
        let header = Header::parse(path, &head)?;
        let promised = header.voxel_offset + header.voxel_bytes;
        let most = (file.len() as u64).saturating_mul(MAX_DEFLATE_RATIO);
        if promised > most {
            return Err(header.truncated(path, most));
        }
        let gap = header.voxel_offset - head.len() as u64;
        std::io::copy(&mut (&mut stream).take(gap), &mut std::io::sink()).map_err(damaged)?;
        let mut voxels = Vec::new();
        (&mut stream).take(header.voxel_bytes).read_to_end(&mut voxels).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => header.truncated(path, header.voxel_offset),
            _ => damaged(error),
        })?;
        if (voxels.len() as u64) < header.voxel_bytes {
            return Err(header.truncated(path, header.voxel_offset + voxels.len() as u64));
        }
        // Read to the end, where gzip checks the checksum.
        std::io::copy(&mut stream, &mut std::io::sink()).map_err(damaged)?;
        (header, std::borrow::Cow::Owned(voxels))
    } else {
        let header = Header::parse(path, file)?;
        let promised = header.voxel_offset + header.voxel_bytes;
        if (file.len() as u64) < promised {
            return Err(header.truncated(path, file.len() as u64));
        }
        let voxels = &file[header.voxel_offset as usize..promised as usize];
        (header, std::borrow::Cow::Borrowed(voxels))
    };
    let voxels = header.number_type.decode(&voxels, header.big_endian, header.slope, header.intercept);
    let scaling = Some((header.slope, header.intercept)).filter(|scaling| *scaling != (1.0, 0.0));
    Ok(NiftiImage { geometry: header.geometry, voxels, scaling })
}

/// Whether a file's first bytes are a NIfTI-2 header's, in either byte order.
fn is_nifti_2(head: &[u8]) -> bool {
    head.len() >= 4 && [540i32.to_le_bytes(), 540i32.to_be_bytes()].iter().any(|size| head.starts_with(size))
}

/// Reads numbers at fixed offsets of a header; its length must have been checked.
struct Fields<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

macro_rules! field_reader {
    ($name:ident, $type:ty) => {
        fn $name(&self, offset: usize) -> $type {
            let mut raw = [0; size_of::<$type>()];
            raw.copy_from_slice(&self.bytes[offset..offset + size_of::<$type>()]);
            if self.big_endian { <$type>::from_be_bytes(raw) } else { <$type>::from_le_bytes(raw) }
        }
    };
}

impl Fields<'_> {
    field_reader!(i16, i16);
    field_reader!(i32, i32);
    field_reader!(i64, i64);
    field_reader!(f32, f32);
    field_reader!(f64, f64);

    /// `N` numbers in a row.
    fn array<T, const N: usize>(&self, offset: usize, read: impl Fn(&Self, usize) -> T) -> [T; N] {
        std::array::from_fn(|index| read(self, offset + index * size_of::<T>()))
    }

    /// `N` float32 in a row, widened.
    fn f32s<const N: usize>(&self, offset: usize) -> [f64; N] {
        self.array::<f32, N>(offset, Self::f32).map(f64::from)
    }
}

/// The fields of a header, of either version, before they are checked.
struct RawHeader {
    version: NiftiVersion,
    data_type: i16,
    dim: [i64; 8],
    pixdim: [f64; 8],
    vox_offset: f64,
    scl_slope: f64,
    scl_inter: f64,
    xyzt_units: u8,
    qform_code: i16,
    quaternion: [f64; 3],
    translation: [f64; 3],
    sform_code: i16,
    srow: [[f64; 4]; 3],
}

impl RawHeader {
    /// `nifti1.h`
    fn version_1(fields: &Fields) -> Self {
        RawHeader {
            version: NiftiVersion::One,
            data_type: fields.i16(70),
            dim: fields.array::<i16, 8>(40, Fields::i16).map(i64::from),
            pixdim: fields.f32s(76),
            vox_offset: f64::from(fields.f32(108)),
            scl_slope: f64::from(fields.f32(112)),
            scl_inter: f64::from(fields.f32(116)),
            xyzt_units: fields.bytes[123],
            qform_code: fields.i16(252),
            quaternion: fields.f32s(256),
            translation: fields.f32s(268),
            sform_code: fields.i16(254),
            srow: [280, 296, 312].map(|row| fields.f32s(row)),
        }
    }

    /// `nifti2.h`
    fn version_2(fields: &Fields) -> Self {
        RawHeader {
            version: NiftiVersion::Two,
            data_type: fields.i16(12),
            dim: fields.array(16, Fields::i64),
            pixdim: fields.array(104, Fields::f64),
            vox_offset: fields.i64(168) as f64,
            scl_slope: fields.f64(176),
            scl_inter: fields.f64(184),
            xyzt_units: (fields.i32(500) & 0x3f) as u8,
            qform_code: fields.i32(344) as i16,
            quaternion: fields.array(352, Fields::f64),
            translation: fields.array(376, Fields::f64),
            sform_code: fields.i32(348) as i16,
            srow: [400, 432, 464].map(|row| fields.array(row, Fields::f64)),
        }
    }

    /// Reads the fields of a header whose size and magic code are right.
    fn read(head: &[u8]) -> Result<(Self, bool), Problem> {
        let too_short = |bytes: usize| format!("{} bytes are too few for a header of {bytes} bytes", head.len());
        if head.len() < NIFTI_1_HEADER_BYTES {
            return Err(too_short(NIFTI_1_HEADER_BYTES).into());
        }
        let big_endian = match [head[0], head[1], head[2], head[3]].map(u32::from) {
            [0x5c, 1, 0, 0] | [0x1c, 2, 0, 0] => false,
            [0, 0, 1, 0x5c] | [0, 0, 2, 0x1c] => true,
            _ => return Err("its first four bytes are not the size of a NIfTI header".into()),
        };
        let version_2 = is_nifti_2(head);
        if version_2 && head.len() < NIFTI_2_HEADER_BYTES {
            return Err(too_short(NIFTI_2_HEADER_BYTES).into());
        }
        let magic = if version_2 { &head[4..8] } else { &head[344..348] };
        match magic {
            b"n+1\0" | b"n+2\0" => {}
            b"ni1\0" | b"ni2\0" => {
                return Err(Problem::with_advice("it is the header of a .hdr/.img pair", "convert the pair to one .nii file"));
            }
            _ => return Err(format!("its magic code is {}, not n+1 or n+2", magic.escape_ascii()).into()),
        }
        let fields = Fields { bytes: head, big_endian };
        Ok((if version_2 { Self::version_2(&fields) } else { Self::version_1(&fields) }, big_endian))
    }

    /// The first byte of the voxels.
    fn voxel_offset(&self) -> Result<u64, String> {
        let header_bytes = if self.version == NiftiVersion::Two { NIFTI_2_HEADER_BYTES } else { NIFTI_1_HEADER_BYTES } as f64;
        let offset = self.vox_offset;
        if !(offset >= header_bytes + 4.0 && offset < 9e15) {
            return Err(format!("its voxels start at byte {offset}, within the header or beyond any file"));
        }
        // The offset is a whole number in a float; nibabel, too, drops what follows the point.
        Ok(offset as u64)
    }

    /// Slope and intercept of the stored values.
    fn scaling(&self) -> Result<(f64, f64), String> {
        match (self.scl_slope, self.scl_inter) {
            (slope, _) if slope == 0.0 || !slope.is_finite() => Ok((1.0, 0.0)),
            (slope, intercept) if intercept.is_finite() => Ok((slope, intercept)),
            (slope, intercept) => Err(format!("its slope {slope} comes with the intercept {intercept}")),
        }
    }

    fn geometry(&self, shape: [usize; 3]) -> Result<Geometry, String> {
        let geometry = Geometry {
            version: self.version,
            shape,
            rank: self.dim[0] as u8, // 3 to 7, as `volume_shape` made sure
            pixdim: self.pixdim,
            xyzt_units: self.xyzt_units,
            qform_code: self.qform_code,
            quaternion: self.quaternion,
            translation: self.translation,
            sform_code: self.sform_code,
            affine: self.srow,
        };
        let spacing_mm = geometry.spacing_mm();
        if !spacing_mm.iter().all(|spacing| spacing.is_finite() && *spacing > 0.0) {
            return Err(format!("its voxel spacing {spacing_mm:?} is not positive"));
        }
        Ok(geometry)
    }
}

impl Header {
    /// Parses and checks a header (`nifti1.h`, `nifti2.h`).
    fn parse(path: &Path, head: &[u8]) -> Result<Self> {
        let bad = |problem: String| Problem::from(problem).in_file(path, FORMAT);
        let (raw, big_endian) = RawHeader::read(head).map_err(|problem| problem.in_file(path, FORMAT))?;
        let number_type = NumericType::from_nifti_code(raw.data_type)
            .ok_or_else(|| Error::NumberType { path: path.into(), found: format!("code {}", raw.data_type) })?;
        let shape = volume_shape(raw.dim).map_err(bad)?;
        let voxel_bytes = shape
            .iter()
            .try_fold(number_type.bytes() as u64, |bytes, &n| bytes.checked_mul(n as u64))
            .filter(|bytes| bytes.checked_add(1 << 53).is_some())
            .ok_or_else(|| bad(format!("its shape {shape:?} is beyond any file")))?;
        let voxel_offset = raw.voxel_offset().map_err(bad)?;
        let (slope, intercept) = raw.scaling().map_err(bad)?;
        let geometry = raw.geometry(shape).map_err(bad)?;
        Ok(Header { geometry, number_type, big_endian, slope, intercept, voxel_offset, voxel_bytes })
    }

    fn truncated(&self, path: &Path, file_bytes: u64) -> Error {
        let found = file_bytes.saturating_sub(self.voxel_offset);
        Error::Truncated { path: path.into(), expected: self.voxel_bytes, found }
    }
}

/// `[d, h, w]` from a header's `dim`: three axes; more are accepted if their length is 1.
fn volume_shape(dims: [i64; 8]) -> Result<[usize; 3], String> {
    let rank = dims[0];
    if !(3..=7).contains(&rank) {
        return Err(format!("it has {rank} axes; expected a volume of 3"));
    }
    let axes = &dims[1..=rank as usize];
    let [width, height, depth] = [axes[0], axes[1], axes[2]];
    if axes.iter().any(|&n| n < 1) || axes[3..].iter().any(|&n| n != 1) {
        return Err(format!("its shape is {axes:?}; expected one volume of 3 axes of length 1 or more"));
    }
    Ok([depth, height, width].map(|n| n as usize))
}
