//! NRRD, `.nrrd` and `.nhdr` (<https://teem.sourceforge.net/nrrd/format.html>): three axes of numbers, raw, in gzip or in words.
//!
//! A space named by directions of the body (`left-posterior-superior`, …) gives the affine. Any other space, or none, says nothing of where
//! the voxels lie, only how far apart they are; ITK takes those for left-posterior-superior.

use super::fields::{Refused, TextFields, lines, own_folder_name, shortened};
use super::{Before, Description, Encoding, Place, Voxels, geometry};
use crate::numeric::NumericType;
use crate::packed::Packing;

/// What to do about encodings and axes that are not read.
const SAVE_AGAIN: &str = "save it again, for example with SimpleITK or 3D Slicer, as a volume of one number per voxel in .nii.gz";

/// The header of a file that begins with these bytes, and where it ends.
pub(super) fn parse(bytes: &[u8]) -> Result<(Description, u64), Refused> {
    let mut header = lines(bytes);
    let Some((magic, mut end)) = header.next() else { return Err("its first line is not NRRD0001 to NRRD0005".into()) };
    if !(magic.starts_with("NRRD000") && magic.len() == 8) {
        return Err("its first line is not NRRD0001 to NRRD0005".into());
    }
    let mut fields = TextFields::default();
    let mut is_whole = false;
    for (line, at) in header {
        end = at;
        if line.is_empty() {
            is_whole = true;
            break;
        }
        // Comments and pairs of key and value say nothing of the voxels.
        if let Some((key, value)) = line.split_once(": ").filter(|(key, _)| !line.starts_with('#') && !key.contains(":=")) {
            fields.insert(key, value);
        }
    }
    // A header without voxels may end with the file.
    if !is_whole && (fields.get(&["data file", "datafile"]).is_none() || end < bytes.len()) {
        return Err("its header does not end".into());
    }
    Ok((description(&fields)?, end as u64))
}

fn description(fields: &TextFields) -> Result<Description, Refused> {
    let [axes] = fields.numbers::<u64, 1>(&["dimension"])?.ok_or("its header lacks dimension")?;
    if axes != 3 {
        return Err(Refused::with_advice(format!("it has {axes} axes; expected a volume of 3"), SAVE_AGAIN));
    }
    let sides = fields.numbers::<u64, 3>(&["sizes"])?.ok_or("its header lacks sizes")?;
    let kinds = fields.get(&["kinds"]).unwrap_or_default();
    if let Some(kind) =
        kinds.split_whitespace().find(|kind| !["domain", "space", "none", "???"].contains(&kind.to_ascii_lowercase().as_str()))
    {
        return Err(Refused::with_advice(
            format!("one of its axes is of the kind {:?}, not of space", shortened(kind)),
            SAVE_AGAIN,
        ));
    }
    let type_name = fields.required(&["type"])?;
    let number_type = number_type(type_name).ok_or_else(|| Refused::NumberType(shortened(type_name)))?;
    let encoding = encoding(fields.required(&["encoding"])?)?;
    let big_endian = match (fields.get(&["endian"]).map(str::to_ascii_lowercase).as_deref(), encoding) {
        (Some("little"), _) => false,
        (Some("big"), _) => true,
        (None, Encoding::Text) => false,
        (None, _) if number_type.bytes() == 1 => false,
        (Some(other), _) => return Err(format!("its endian is {:?}, expected little or big", shortened(other)).into()),
        (None, _) => return Err("its header lacks endian".into()),
    };
    let geometry = geometry(sides, number_type, place(fields)?)?;
    Ok(Description { geometry, number_type, big_endian, voxels: voxels(fields, encoding)? })
}

fn voxels(fields: &TextFields, encoding: Encoding) -> Result<Voxels, Refused> {
    let file = match fields.get(&["data file", "datafile"]) {
        Some(name) if name.eq_ignore_ascii_case("LIST") || name.starts_with("LIST ") => {
            return Err(Refused::with_advice("its voxels are in several files", SAVE_AGAIN));
        }
        Some(name) => Some(own_folder_name(name)?),
        None => None,
    };
    let [lines] = fields.numbers::<usize, 1>(&["line skip", "lineskip"])?.unwrap_or([0]);
    let [bytes] = fields.numbers::<i64, 1>(&["byte skip", "byteskip"])?.unwrap_or([0]);
    let before = match u64::try_from(bytes) {
        Ok(bytes) => Before::Skipped { lines, bytes },
        Err(_) if bytes == -1 && encoding == Encoding::Binary(Packing::Plain) => Before::Rest,
        Err(_) => return Err(format!("its byte skip is {bytes}").into()),
    };
    Ok(Voxels { file, encoding, before })
}

fn encoding(name: &str) -> Result<Encoding, Refused> {
    match name.to_ascii_lowercase().as_str() {
        "raw" => Ok(Encoding::Binary(Packing::Plain)),
        "gz" | "gzip" => Ok(Encoding::Binary(Packing::Gzip)),
        "txt" | "text" | "ascii" => Ok(Encoding::Text),
        _ => Err(Refused::with_advice(
            format!("its encoding {:?} is not read", shortened(name)),
            "save it with the encoding gzip or raw",
        )),
    }
}

/// The affine in RAS+ and millimetres or, if the space is not the body's, the spacing.
fn place(fields: &TextFields) -> Result<Place, Refused> {
    let directions = fields.get(&["space directions"]).map(|text| {
        let vectors = vectors(text).and_then(|vectors| <[[f64; 3]; 3]>::try_from(vectors).ok());
        vectors.ok_or_else(|| format!("its space directions are {:?}, expected three vectors", shortened(text)))
    });
    let unit = unit(fields.get(&["space units"]).unwrap_or_default())?;
    let Some(directions) = directions.transpose()? else {
        let spacings = fields.numbers::<f64, 3>(&["spacings"])?.unwrap_or([1.0; 3]);
        // As ITK: an unknown one is 1.
        return Ok(Place::Spacing(spacings.map(|side| if side.is_nan() { 1.0 } else { side.abs() })));
    };
    let directions = directions.map(|vector| vector.map(|value| value * unit));
    let length = |vector: [f64; 3]| vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    let Some(signs) = fields.get(&["space"]).and_then(signs_of_space) else {
        return Ok(Place::Spacing(directions.map(length)));
    };
    let origin = match fields.get(&["space origin"]) {
        None => [0.0; 3],
        Some(text) => match vectors(text).as_deref() {
            Some([origin]) => origin.map(|value| value * unit),
            _ => return Err(format!("its space origin is {:?}, expected a vector", shortened(text)).into()),
        },
    };
    Ok(Place::Affine(std::array::from_fn(|row| {
        let [x, y, z] = directions.map(|vector| vector[row] * signs[row]);
        [x, y, z, origin[row] * signs[row]]
    })))
}

/// For the body's axes right, front and head, 1 or, if the space counts the other way, -1.
fn signs_of_space(space: &str) -> Option<[f64; 3]> {
    match space.to_ascii_lowercase().as_str() {
        "right-anterior-superior" | "ras" => Some([1.0, 1.0, 1.0]),
        "left-anterior-superior" | "las" => Some([-1.0, 1.0, 1.0]),
        "left-posterior-superior" | "lps" => Some([-1.0, -1.0, 1.0]),
        _ => None,
    }
}

/// Millimetres of a unit; all axes have the same.
fn unit(units: &str) -> Result<f64, Refused> {
    let mut names = units.split('"').map(str::trim).filter(|name| !name.is_empty());
    let first = names.next().unwrap_or("mm");
    let factor = match first.to_ascii_lowercase().as_str() {
        "mm" | "millimeter" | "millimetre" | "???" => 1.0,
        "cm" => 10.0,
        "m" => 1000.0,
        "um" | "µm" | "micron" => 0.001,
        _ => return Err(format!("its space units are {:?}, expected mm, cm, m or um", shortened(units)).into()),
    };
    if names.any(|name| name != first) {
        return Err(format!("its space units {:?} differ", shortened(units)).into());
    }
    Ok(factor)
}

/// Vectors such as `(1,0,0) (0,1,0)`; `None` if one of them is `none` or something else.
fn vectors(text: &str) -> Option<Vec<[f64; 3]>> {
    let mut vectors = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (inside, after) = rest.strip_prefix('(')?.split_once(')')?;
        let numbers: Option<Vec<f64>> = inside.split(',').map(|word| word.trim().parse().ok()).collect();
        vectors.push(numbers?.try_into().ok()?);
        rest = after.trim_start();
    }
    Some(vectors)
}

fn number_type(name: &str) -> Option<NumericType> {
    Some(match name.to_ascii_lowercase().as_str() {
        "signed char" | "int8" | "int8_t" => NumericType::I8,
        "uchar" | "unsigned char" | "uint8" | "uint8_t" => NumericType::U8,
        "short" | "short int" | "signed short" | "signed short int" | "int16" | "int16_t" => NumericType::I16,
        "ushort" | "unsigned short" | "unsigned short int" | "uint16" | "uint16_t" => NumericType::U16,
        "int" | "signed int" | "int32" | "int32_t" => NumericType::I32,
        "uint" | "unsigned int" | "uint32" | "uint32_t" => NumericType::U32,
        "longlong" | "long long" | "long long int" | "signed long long" | "signed long long int" | "int64" | "int64_t" => {
            NumericType::I64
        }
        "ulonglong" | "unsigned long long" | "unsigned long long int" | "uint64" | "uint64_t" => NumericType::U64,
        "float" => NumericType::F32,
        "double" => NumericType::F64,
        _ => return None,
    })
}
