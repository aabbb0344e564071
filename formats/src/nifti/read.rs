//! Reads NIfTI-1 and NIfTI-2, single files (`.nii`, `.nii.gz`) and pairs (`.hdr`, `.img`), of every real number type and either byte order.
//!
//! Voxel values follow nibabel's `get_fdata()`: a slope that is 0 or not finite means unscaled, anything else applies slope
//! and intercept in float64. A NIfTI array is stored with its first axis fastest, so its voxels in file order are already the row-major
//! array `[axis 2, axis 1, axis 0]` to which the published preprocessing transposes: `[d, h, w]`.
//!
//! Headers are not trusted: at most as many bytes are allocated as the file can hold.

use super::fields::{Field, Fields};
use super::{Geometry, NIFTI_1_HEADER_BYTES, NIFTI_2_HEADER_BYTES, NiftiVersion};
use crate::error::{Error, Problem, Result};
use crate::gzip::Gunzip;
use crate::numeric::NumericType;
use crate::packed::{Packing, Section};
use crate::placeholder;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The format's name in messages.
const FORMAT: &str = "NIfTI";
/// What to do about several volumes in one file.
const ONE_VOLUME: &str =
    "save each volume in a file of its own; of a label in one-hot form, one volume with the number of each voxel's class";
/// What to do about voxels without a size.
const CORRECT_SPACING: &str = "write the true voxel sizes into its header: pixdim, and the affine if it has one";

/// An image of any format that is read: values as stored after slope and intercept.
#[derive(Debug, Clone, PartialEq)]
pub struct NiftiImage {
    /// Where its voxels lie.
    pub geometry: Geometry,
    /// `[d, h, w]`: Hounsfield units for CT, raw labels for a segmentation.
    pub voxels: Vec<f32>,
    /// Slope and intercept that the stored values were scaled by; `None` for values as they are stored.
    pub scaling: Option<(f64, f64)>,
    /// The first value that is too large for float32 to hold exactly: its index, and the value in words.
    pub inexact: Option<(usize, String)>,
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

/// Where a header's voxels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Behind it, in the same file.
    Single,
    /// In the other file of a pair.
    Pair,
}

/// Reads an image with its geometry.
///
/// # Errors
/// When the file cannot be read, is not a NIfTI file, is truncated, or has an unsupported number type.
pub fn read_image(path: &Path) -> Result<NiftiImage> {
    decode_image(path, &placeholder::read(path)?)
}

/// Reads only the geometry, from the header.
///
/// # Errors
/// When the file cannot be read, is not a NIfTI file, or is too small for its voxels; not when they are damaged.
pub fn read_geometry(path: &Path) -> Result<Geometry> {
    let (head, packing, file_bytes) = read_head(path)?;
    let header = Header::parse(path, &head, Form::Single)?;
    header.section(packing).fits(path, file_bytes)?;
    Ok(header.geometry)
}

/// As [`read_geometry`], of a pair: a header, and the file of its voxels.
pub(crate) fn read_pair_geometry(path: &Path, voxels: &Path) -> Result<Geometry> {
    let header = Header::parse(path, &read_head(path)?.0, Form::Pair)?;
    let (_, packing, file_bytes) = read_head(voxels)?;
    header.section(packing).fits(voxels, file_bytes)?;
    Ok(header.geometry)
}

/// The first bytes of a file, unpacked, as many as a header may have; how they were packed; the file's size.
fn read_head(path: &Path) -> Result<(Vec<u8>, Packing, u64)> {
    placeholder::refuse(path)?;
    let file = File::open(path).map_err(Error::io("read", path))?;
    let file_bytes = file.metadata().map_err(Error::io("read", path))?.len();
    let mut file = BufReader::new(file);
    let packing = Packing::of(file.fill_buf().map_err(Error::io("read", path))?);
    Ok((head(path, file, packing)?, packing, file_bytes))
}

/// As many unpacked bytes as a header may have.
fn head(path: &Path, file: impl BufRead, packing: Packing) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    let limit = NIFTI_2_HEADER_BYTES as u64;
    let read = match packing {
        Packing::Plain => file.take(limit).read_to_end(&mut head),
        _ => Gunzip::new(file).take(limit).read_to_end(&mut head),
    };
    match read {
        // A damaged stream may still give the whole header; otherwise parsing reports what is missing.
        Err(error) if head.len() < NIFTI_1_HEADER_BYTES => {
            Err(Problem::from(format!("damaged gzip data: {error}")).in_file(path, FORMAT))
        }
        _ => Ok(head),
    }
}

/// Decodes the bytes of a file; `path` is for messages.
///
/// # Errors
/// As [`read_image`], except those of reading the file.
pub fn decode_image(path: &Path, file: &[u8]) -> Result<NiftiImage> {
    let packing = Packing::of(file);
    let header = Header::parse(path, &head(path, file, packing)?, Form::Single)?;
    let voxels = header.section(packing).of(path, FORMAT, file)?;
    Ok(header.image(&voxels))
}

/// Decodes the bytes of a pair of files, the header's first.
pub(crate) fn decode_pair([path, voxels_path]: [&Path; 2], [file, voxels]: [&[u8]; 2]) -> Result<NiftiImage> {
    let header = Header::parse(path, &head(path, file, Packing::of(file))?, Form::Pair)?;
    let voxels = header.section(Packing::of(voxels)).of(voxels_path, FORMAT, voxels)?;
    Ok(header.image(&voxels))
}

/// Whether a file's first bytes are a NIfTI-2 header's, in either byte order.
fn is_nifti_2(head: &[u8]) -> bool {
    head.len() >= 4 && [540i32.to_le_bytes(), 540i32.to_be_bytes()].iter().any(|size| head.starts_with(size))
}

/// The fields of a header, of either version, before they are checked.
struct RawHeader {
    version: NiftiVersion,
    form: Form,
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
    fn of_fields(head: &[u8], version: NiftiVersion, form: Form, big_endian: bool) -> Self {
        let fields = Fields::of(version);
        let number = |field: Field| field.read::<1>(head, big_endian)[0];
        RawHeader {
            version,
            form,
            data_type: number(fields.data_type) as i16,
            dim: fields.dim.read(head, big_endian).map(|n| n as i64),
            pixdim: fields.pixdim.read(head, big_endian),
            vox_offset: number(fields.voxel_offset),
            scl_slope: number(fields.slope),
            scl_inter: number(fields.intercept),
            xyzt_units: (number(fields.units) as i64 & 0xff) as u8,
            qform_code: number(fields.qform_code) as i16,
            quaternion: fields.quaternion.read(head, big_endian),
            translation: fields.translation.read(head, big_endian),
            sform_code: number(fields.sform_code) as i16,
            srow: fields.rows.map(|row| row.read(head, big_endian)),
        }
    }

    /// The same of Analyze 7.5, which has other fields where NIfTI has units and affines.
    fn of_analyze(self) -> Self {
        RawHeader { xyzt_units: 0, qform_code: 0, sform_code: 0, srow: [[0.0; 4]; 3], ..self }
    }

    /// Reads the fields of a header whose size and magic code are right, and whether its bytes are big-endian.
    fn read(head: &[u8], form: Form) -> Result<(Self, bool), Problem> {
        let too_short = |bytes: usize| format!("{} bytes are too few for a header of {bytes} bytes", head.len());
        if head.len() < NIFTI_1_HEADER_BYTES {
            return Err(too_short(NIFTI_1_HEADER_BYTES).into());
        }
        let big_endian = match [head[0], head[1], head[2], head[3]].map(u32::from) {
            [0x5c, 1, 0, 0] | [0x1c, 2, 0, 0] => false,
            [0, 0, 1, 0x5c] | [0, 0, 2, 0x1c] => true,
            _ => return Err("its first four bytes are not the size of a NIfTI header".into()),
        };
        let version = if is_nifti_2(head) { NiftiVersion::Two } else { NiftiVersion::One };
        let fields = Fields::of(version);
        if head.len() < fields.header_bytes {
            return Err(too_short(fields.header_bytes).into());
        }
        let raw = Self::of_fields(head, version, form, big_endian);
        let magic = &head[fields.magic.0..][..4];
        match (magic, form) {
            (b"n+1\0" | b"n+2\0", Form::Single) | (b"ni1\0" | b"ni2\0", Form::Pair) => Ok((raw, big_endian)),
            (b"ni1\0" | b"ni2\0", Form::Single) => Err(Problem::with_advice(
                "it is the header of a .hdr/.img pair",
                "give both files of the pair one name, with the endings .hdr and .img",
            )),
            (b"n+1\0" | b"n+2\0", Form::Pair) => {
                Err(Problem::with_advice("it is a single file, not the header of a pair", "rename it so that it ends in .nii"))
            }
            (_, Form::Pair) if version == NiftiVersion::One => Ok((raw.of_analyze(), big_endian)),
            _ => Err(format!("its magic code is {}, not n+1 or n+2", magic.escape_ascii()).into()),
        }
    }

    /// The first byte of the voxels.
    fn voxel_offset(&self) -> Result<u64, String> {
        let first = match self.form {
            Form::Single => Fields::of(self.version).header_bytes as f64 + 4.0,
            Form::Pair => 0.0,
        };
        let offset = self.vox_offset;
        if !(offset >= first && offset < 9e15) {
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

    fn geometry(&self, shape: [usize; 3]) -> Result<Geometry, Problem> {
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
            return Err(Problem::with_advice(format!("its voxel spacing {spacing_mm:?} is not positive"), CORRECT_SPACING));
        }
        Ok(geometry)
    }
}

impl Header {
    /// Parses and checks a header (`nifti1.h`, `nifti2.h`).
    fn parse(path: &Path, head: &[u8], form: Form) -> Result<Self> {
        let bad = |problem: String| Problem::from(problem).in_file(path, FORMAT);
        let (raw, big_endian) = RawHeader::read(head, form).map_err(|problem| problem.in_file(path, FORMAT))?;
        let number_type = NumericType::from_nifti_code(raw.data_type)
            .ok_or_else(|| Error::NumberType { path: path.into(), found: NumericType::refused_nifti_code(raw.data_type) })?;
        let shape = volume_shape(raw.dim).map_err(|problem| problem.in_file(path, FORMAT))?;
        let voxel_bytes = shape
            .iter()
            .try_fold(number_type.bytes() as u64, |bytes, &n| bytes.checked_mul(n as u64))
            .filter(|bytes| bytes.checked_add(1 << 53).is_some())
            .ok_or_else(|| bad(format!("its shape {shape:?} is beyond any file")))?;
        let voxel_offset = raw.voxel_offset().map_err(bad)?;
        let (slope, intercept) = raw.scaling().map_err(bad)?;
        let geometry = raw.geometry(shape).map_err(|problem| problem.in_file(path, FORMAT))?;
        Ok(Header { geometry, number_type, big_endian, slope, intercept, voxel_offset, voxel_bytes })
    }

    /// Where its voxels lie in a file that is packed in this way.
    fn section(&self, packing: Packing) -> Section {
        Section { before: 0, packing, skip: self.voxel_offset, len: self.voxel_bytes }
    }

    /// The image of the voxels' bytes.
    fn image(self, voxels: &[u8]) -> NiftiImage {
        let values = self.number_type.decode(voxels, self.big_endian, self.slope, self.intercept);
        let inexact = self.number_type.first_inexact(&values, voxels, self.big_endian, (self.slope, self.intercept));
        let scaling = Some((self.slope, self.intercept)).filter(|scaling| *scaling != (1.0, 0.0));
        NiftiImage { geometry: self.geometry, voxels: values, scaling, inexact }
    }
}

/// `[d, h, w]` from a header's `dim`: three axes; more are accepted if their length is 1.
fn volume_shape(dims: [i64; 8]) -> Result<[usize; 3], Problem> {
    let rank = dims[0];
    if (1..3).contains(&rank) {
        let advice = "save its slices as one volume of three axes";
        return Err(Problem::with_advice(format!("it has {rank} axes; expected a volume of 3"), advice));
    }
    if !(3..=7).contains(&rank) {
        return Err(format!("it has {rank} axes; expected a volume of 3").into());
    }
    let axes = &dims[1..=rank as usize];
    let [width, height, depth] = [axes[0], axes[1], axes[2]];
    let refused = || format!("its shape is {axes:?}; expected one volume of 3 axes of length 1 or more");
    if axes.iter().any(|&n| n < 1) {
        return Err(refused().into());
    }
    if axes[3..].iter().any(|&n| n != 1) {
        return Err(Problem::with_advice(refused(), ONE_VOLUME));
    }
    Ok([depth, height, width].map(|n| n as usize))
}
