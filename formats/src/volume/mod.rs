//! Volumes in any format that is read: NIfTI, pairs of `.hdr` and `.img`, NRRD, MetaImage. The name's ending chooses the format, in either
//! case; a file with another ending is read as NIfTI.
//!
//! | format | endings | voxels in a file of their own |
//! | --- | --- | --- |
//! | NIfTI-1, NIfTI-2 | `.nii`, `.nii.gz` | |
//! | pairs of NIfTI or Analyze 7.5 | `.hdr`, `.hdr.gz` | `.img`, `.img.gz` |
//! | NRRD | `.nrrd`, `.nhdr` | named by the header |
//! | MetaImage | `.mha`, `.mhd` | named by the header |
//!
//! Values and places are those of SimpleITK and nibabel (`bench/parity/check_formats.py`), with affines in RAS+ as NIfTI has them. Headers are
//! not trusted: the file's size bounds what is allocated, and a header names only files in its own folder. The readers are ours because no
//! well-kept crate reads NRRD and MetaImage; `fuzz_parsers` feeds them damaged files.

mod fields;
mod metaimage;
mod nrrd;
mod pair;

use crate::error::{Error, Problem, Result};
use crate::nifti::{self, Affine, Geometry, NiftiImage};
use crate::numeric::NumericType;
use crate::packed::{Packing, Section};
use crate::placeholder;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// No header of text is longer.
const MOST_HEADER_BYTES: u64 = 1 << 20;

/// A format that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A single NIfTI file.
    Nifti,
    /// The header of a pair.
    Pair,
    /// NRRD, with its voxels or without.
    Nrrd,
    /// MetaImage, with its voxels or without.
    MetaImage,
}

/// The endings of volumes: of two that fit, the longer comes first.
pub const ENDINGS: [(&str, Format); 8] = [
    (".nii.gz", Format::Nifti),
    (".nii", Format::Nifti),
    (".hdr.gz", Format::Pair),
    (".hdr", Format::Pair),
    (".nrrd", Format::Nrrd),
    (".nhdr", Format::Nrrd),
    (".mha", Format::MetaImage),
    (".mhd", Format::MetaImage),
];

/// The endings of files that hold only the voxels of one of them.
pub const VOXEL_ENDINGS: [&str; 6] = [".img.gz", ".img", ".raw.gz", ".raw", ".zraw", ".zraw.gz"];

/// A file's name without an ending, which it has in either case.
pub fn without_ending<'a>(name: &'a str, ending: &str) -> Option<&'a str> {
    let (stem, found) = name.split_at_checked(name.len().checked_sub(ending.len())?)?;
    found.eq_ignore_ascii_case(ending).then_some(stem)
}

/// The name of a volume's file without its ending, and the ending in lower case; `None` for another file.
pub fn split_name(name: &str) -> Option<(&str, &'static str)> {
    ENDINGS.into_iter().find_map(|(ending, _)| Some((without_ending(name, ending)?, ending)))
}

/// One of the files of a volume, with its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFile {
    /// Where it is.
    pub path: PathBuf,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// What a header of text says of its voxels.
#[derive(Debug, Clone, PartialEq)]
struct Description {
    geometry: Geometry,
    number_type: NumericType,
    big_endian: bool,
    voxels: Voxels,
}

/// Where the voxels are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Voxels {
    /// The name of their own file, in the header's folder; `None` if they follow the header.
    file: Option<String>,
    encoding: Encoding,
    /// Bytes of the file before them; after the header, if they follow it.
    before: Before,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// Numbers as in memory.
    Binary(Packing),
    /// Numbers in words, between spaces.
    Text,
}

/// What a header says of where its voxels lie.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    /// In the body, RAS+ and millimetres.
    Affine(Affine),
    /// Only how far apart they are along the array's axes, fastest first, in millimetres.
    Spacing([f64; 3]),
}

/// What comes before the voxels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// So many lines and then bytes; of a packed file, within what is packed.
    Skipped { lines: usize, bytes: u64 },
    /// As much as there is: the voxels are the last bytes of the file.
    Rest,
}

/// Reads a volume with its geometry.
///
/// # Errors
/// When a file cannot be read, was not fetched, is of no format that is read, is truncated, holds another number of axes than three or several
/// values per voxel, or has an unsupported number type.
pub fn read_volume(path: &Path) -> Result<NiftiImage> {
    decode(&read_files(path)?)
}

/// Reads only the geometry, from the header.
///
/// # Errors
/// As [`read_volume`]; files are too small for their voxels, but damage of the voxels is not seen.
pub fn read_geometry(path: &Path) -> Result<Geometry> {
    match format_of(path) {
        Format::Nifti => nifti::read_geometry(path),
        Format::Pair => nifti::read_pair_geometry(path, &pair::voxels_of(path)?),
        format => {
            let (description, header_bytes) = describe(path, format, &read_header(path)?)?;
            let (file, before) = match beside(path, &description.voxels)? {
                Some(file) => (file, 0),
                None => (path.into(), header_bytes),
            };
            placeholder::refuse(&file)?;
            let bytes = std::fs::metadata(&file).map_err(Error::io("read", &file))?.len();
            description.section(bytes, before, 0).fits(&file, bytes)?;
            Ok(description.geometry)
        }
    }
}

/// The file that holds a volume's voxels, if it is not the volume's own.
///
/// # Errors
/// When the header cannot be read, or names a file in another folder or several files.
pub fn voxel_file(path: &Path) -> Result<Option<PathBuf>> {
    match format_of(path) {
        Format::Nifti => Ok(None),
        Format::Pair => pair::voxels_of(path).map(Some),
        format => beside(path, &describe(path, format, &read_header(path)?)?.0.voxels),
    }
}

/// The files of a volume: the named one, and that of its voxels if there is one.
///
/// # Errors
/// As [`voxel_file`], and when a file cannot be read or was not fetched.
pub fn read_files(path: &Path) -> Result<Vec<VolumeFile>> {
    let mut files = vec![VolumeFile { path: path.into(), bytes: placeholder::read(path)? }];
    let own = match format_of(path) {
        Format::Nifti => None,
        Format::Pair => Some(pair::voxels_of(path)?),
        format => beside(path, &describe(path, format, &files[0].bytes)?.0.voxels)?,
    };
    if let Some(path) = own {
        files.push(VolumeFile { bytes: placeholder::read(&path)?, path });
    }
    Ok(files)
}

/// Decodes the files of a volume, as [`read_files`] gives them.
///
/// # Errors
/// As [`read_volume`], except those of reading the files.
pub fn decode(files: &[VolumeFile]) -> Result<NiftiImage> {
    let [header, rest @ ..] = files else { return Err(Problem::from("no file is given").in_file(Path::new(""), "volume")) };
    let voxels = rest.first();
    match (format_of(&header.path), voxels) {
        (Format::Nifti, _) => nifti::decode_image(&header.path, &header.bytes),
        (Format::Pair, Some(voxels)) => nifti::decode_pair([&header.path, &voxels.path], [&header.bytes, &voxels.bytes]),
        (Format::Pair, None) => Err(pair::no_voxels(&header.path)),
        (format, voxels) => {
            let (description, header_bytes) = describe(&header.path, format, &header.bytes)?;
            match voxels {
                Some(voxels) => description.image(&voxels.path, format, &voxels.bytes, 0),
                None => description.image(&header.path, format, &header.bytes, header_bytes),
            }
        }
    }
}

/// The format of a file, by its name.
fn format_of(path: &Path) -> Format {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    ENDINGS.into_iter().find(|(ending, _)| without_ending(&name, ending).is_some()).map_or(Format::Nifti, |(_, format)| format)
}

/// The first bytes of a file, as many as a header of text may have.
fn read_header(path: &Path) -> Result<Vec<u8>> {
    placeholder::refuse(path)?;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io("read", path))?;
    file.take(MOST_HEADER_BYTES).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    Ok(bytes)
}

/// Parses a header of text; also where it ends.
fn describe(path: &Path, format: Format, bytes: &[u8]) -> Result<(Description, u64)> {
    let bytes = &bytes[..bytes.len().min(MOST_HEADER_BYTES as usize)];
    let parsed = if format == Format::MetaImage { metaimage::parse(bytes) } else { nrrd::parse(bytes) };
    parsed.map_err(|problem| match problem {
        fields::Refused::Format(problem) => problem.in_file(path, format.name()),
        fields::Refused::NumberType(found) => Error::NumberType { path: path.into(), found },
    })
}

/// The path of the voxels' own file, next to the header.
fn beside(path: &Path, voxels: &Voxels) -> Result<Option<PathBuf>> {
    Ok(voxels.file.as_ref().map(|name| path.with_file_name(name)))
}

impl Format {
    /// Its name in messages.
    fn name(self) -> &'static str {
        match self {
            Format::Nifti | Format::Pair => "NIfTI",
            Format::Nrrd => "NRRD",
            Format::MetaImage => "MetaImage",
        }
    }
}

impl Description {
    /// Where the voxels lie in a file of so many bytes, of which the first ones are the header's.
    fn section(&self, file_bytes: u64, header_bytes: u64, skipped_lines: u64) -> Section {
        let count = self.geometry.shape.iter().product::<usize>() as u64;
        let (packing, len) = match self.voxels.encoding {
            Encoding::Binary(packing) => (packing, count * self.number_type.bytes() as u64),
            // A number is a digit at least.
            Encoding::Text => return Section { before: header_bytes, packing: Packing::Plain, skip: 0, len: count },
        };
        match self.voxels.before {
            Before::Skipped { bytes, .. } => Section { before: header_bytes + skipped_lines, packing, skip: bytes, len },
            Before::Rest => Section { before: header_bytes.max(file_bytes.saturating_sub(len)), packing, skip: 0, len },
        }
    }

    /// The image, of the file that holds its voxels.
    fn image(self, path: &Path, format: Format, file: &[u8], header_bytes: u64) -> Result<NiftiImage> {
        let bad = |problem: String| Problem::from(problem).in_file(path, format.name());
        let body = file.get(header_bytes as usize..).unwrap_or_default();
        let lines = match self.voxels.before {
            Before::Skipped { lines, .. } if lines > 0 => {
                fields::end_of_line(body, lines).ok_or_else(|| bad("it ends before its voxels".into()))?
            }
            _ => 0,
        };
        let section = self.section(file.len() as u64, header_bytes, lines as u64);
        let (voxels, inexact) = if self.voxels.encoding == Encoding::Text {
            section.fits(path, file.len() as u64)?;
            let skip = if let Before::Skipped { bytes, .. } = self.voxels.before { bytes as usize } else { 0 };
            let words = body.get(lines.saturating_add(skip)..).unwrap_or_default();
            (fields::numbers_in_words(words, section.len as usize).map_err(bad)?, None)
        } else {
            let bytes = section.of(path, format.name(), file)?;
            let voxels = self.number_type.decode(&bytes, self.big_endian, 1.0, 0.0);
            let inexact = self.number_type.first_inexact(&voxels, &bytes, self.big_endian, (1.0, 0.0));
            (voxels, inexact)
        };
        Ok(NiftiImage { geometry: self.geometry, voxels, scaling: None, inexact })
    }
}

/// The geometry of a header of text: `sides` are the axes' lengths, fastest first.
fn geometry(sides: [u64; 3], number_type: NumericType, place: Place) -> Result<Geometry, fields::Refused> {
    let bytes = sides.iter().try_fold(number_type.bytes() as u64, |bytes, &n| bytes.checked_mul(n));
    if sides.contains(&0) || bytes.is_none_or(|bytes| bytes > 1 << 53) {
        return Err(
            format!("its axes have lengths {sides:?}; expected 1 or more, and no more voxels than a file can hold").into()
        );
    }
    let [width, height, depth] = sides.map(|n| n as usize);
    let shape = [depth, height, width];
    let geometry = match place {
        Place::Affine(affine) => Geometry::of_affine(shape, Some(affine)),
        Place::Spacing([dx, dy, dz]) => {
            let Geometry { pixdim, xyzt_units, .. } = Geometry::aligned(shape, [dz, dy, dx]);
            Geometry { pixdim, xyzt_units, ..Geometry::of_affine(shape, None) }
        }
    };
    if matches!(place, Place::Affine(_)) && geometry.world_affine().is_none() {
        return Err("its directions do not span space".into());
    }
    let spacing_mm = geometry.spacing_mm();
    if !spacing_mm.iter().all(|spacing| spacing.is_finite() && *spacing > 0.0) {
        let advice = "write the true voxel sizes into its header";
        return Err(fields::Refused::with_advice(format!("its voxel spacing {spacing_mm:?} is not positive"), advice));
    }
    Ok(geometry)
}

#[cfg(test)]
mod tests;
