//! MetaImage, `.mha` and `.mhd` (<https://itk.org/Wiki/MetaIO/Documentation>): three axes of numbers, plain or in zlib.
//!
//! Its coordinates are left-posterior-superior; without matrix or offset they are the identity and 0, as ITK takes them. Unlike ITK,
//! `DistanceUnits` counts.

use super::fields::{Refused, TextFields, lines, own_folder_name, shortened};
use super::{Before, Description, Encoding, Place, Voxels, geometry};
use crate::nifti::Affine;
use crate::numeric::NumericType;
use crate::packed::Packing;

/// What to do about variants that are not read.
const SAVE_AGAIN: &str = "save it again, for example with SimpleITK or 3D Slicer, as a volume of one number per voxel in .nii.gz";
/// The last field.
const DATA_FILE: &str = "elementdatafile";

/// The header of a file that begins with these bytes, and where it ends.
pub(super) fn parse(bytes: &[u8]) -> Result<(Description, u64), Refused> {
    let mut fields = TextFields::default();
    let mut end = None;
    for (line, at) in lines(bytes) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(format!("its line {:?} is no field of a header", shortened(line)).into());
        };
        fields.insert(key, value);
        if key.trim().eq_ignore_ascii_case(DATA_FILE) {
            end = Some(at as u64);
            break;
        }
    }
    let end = end.ok_or("its header does not end with ElementDataFile")?;
    Ok((description(&fields)?, end))
}

fn description(fields: &TextFields) -> Result<Description, Refused> {
    let [axes] = fields.numbers::<u64, 1>(&["ndims"])?.ok_or("its header lacks NDims")?;
    if axes != 3 {
        return Err(Refused::with_advice(format!("it has {axes} axes; expected a volume of 3"), SAVE_AGAIN));
    }
    let [channels] = fields.numbers::<u64, 1>(&["elementnumberofchannels"])?.unwrap_or([1]);
    if channels != 1 {
        return Err(Refused::with_advice(format!("it has {channels} numbers per voxel; expected 1"), SAVE_AGAIN));
    }
    let sides = fields.numbers::<u64, 3>(&["dimsize"])?.ok_or("its header lacks DimSize")?;
    let type_name = fields.required(&["elementtype"])?;
    let number_type = number_type(type_name).ok_or_else(|| Refused::NumberType(shortened(type_name)))?;
    for (key, neutral) in [("elementtointensityfunctionslope", 1.0), ("elementtointensityfunctionoffset", 0.0)] {
        // ITK reads the stored numbers, other programs may scale them.
        if fields.numbers::<f64, 1>(&[key])?.is_some_and(|[value]| value != neutral) {
            return Err(Refused::with_advice("its values are scaled by ElementToIntensityFunctionSlope or …Offset", SAVE_AGAIN));
        }
    }
    let big_endian = flag(fields, &["binarydatabyteordermsb", "elementbyteordermsb"])?.unwrap_or(false);
    let geometry = geometry(sides, number_type, Place::Affine(affine(fields)?))?;
    Ok(Description { geometry, number_type, big_endian, voxels: voxels(fields)? })
}

fn voxels(fields: &TextFields) -> Result<Voxels, Refused> {
    let name = fields.required(&[DATA_FILE])?;
    let file = if name.eq_ignore_ascii_case("LOCAL") {
        None
    } else if name.eq_ignore_ascii_case("LIST") || name.starts_with("LIST ") {
        return Err(Refused::with_advice("its voxels are in several files", SAVE_AGAIN));
    } else {
        Some(own_folder_name(name)?)
    };
    let is_compressed = flag(fields, &["compresseddata"])?.unwrap_or(false);
    let encoding = match (flag(fields, &["binarydata"])?.unwrap_or(true), is_compressed) {
        (false, _) => Encoding::Text,
        (true, false) => Encoding::Binary(Packing::Plain),
        (true, true) => Encoding::Binary(Packing::Zlib),
    };
    let [header] = fields.numbers::<i64, 1>(&["headersize"])?.unwrap_or([0]);
    let before = match u64::try_from(header) {
        Ok(bytes) if bytes == 0 || (file.is_some() && !is_compressed) => Before::Skipped { lines: 0, bytes },
        Err(_) if header == -1 && encoding == Encoding::Binary(Packing::Plain) => Before::Rest,
        _ => return Err(format!("its HeaderSize is {header}").into()),
    };
    Ok(Voxels { file, encoding, before })
}

/// The affine in RAS+ and millimetres.
fn affine(fields: &TextFields) -> Result<Affine, Refused> {
    let unit = match fields.get(&["distanceunits"]).map(str::to_ascii_lowercase).as_deref() {
        None | Some("mm" | "?") => 1.0,
        Some("um") => 0.001,
        Some("cm") => 10.0,
        Some(other) => return Err(format!("its DistanceUnits are {:?}, expected um, mm or cm", shortened(other)).into()),
    };
    // Three numbers for each axis of the array.
    let matrix = fields.numbers::<f64, 9>(&["transformmatrix", "rotation", "orientation"])?;
    let matrix = matrix.unwrap_or([1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    let offset = fields.numbers::<f64, 3>(&["offset", "position", "origin"])?.unwrap_or([0.0; 3]);
    let spacing = fields.numbers::<f64, 3>(&["elementspacing", "elementsize"])?.unwrap_or([1.0; 3]);
    let signs = [-1.0, -1.0, 1.0];
    Ok(std::array::from_fn(|row| {
        let [x, y, z] = [0, 1, 2].map(|axis| matrix[3 * axis + row] * spacing[axis] * unit * signs[row]);
        [x, y, z, offset[row] * unit * signs[row]]
    }))
}

fn flag(fields: &TextFields, keys: &[&str]) -> Result<Option<bool>, String> {
    match fields.get(keys).map(|value| (value, value.chars().next().map(|first| first.to_ascii_lowercase()))) {
        None => Ok(None),
        Some((_, Some('t' | '1'))) => Ok(Some(true)),
        Some((_, Some('f' | '0'))) => Ok(Some(false)),
        Some((value, _)) => Err(format!("its {} is {:?}, expected True or False", keys[0], shortened(value))),
    }
}

fn number_type(name: &str) -> Option<NumericType> {
    Some(match name.to_ascii_uppercase().as_str() {
        "MET_CHAR" => NumericType::I8,
        "MET_UCHAR" => NumericType::U8,
        "MET_SHORT" => NumericType::I16,
        "MET_USHORT" => NumericType::U16,
        // MetaIO's "long" has 32 bits on every machine.
        "MET_INT" | "MET_LONG" => NumericType::I32,
        "MET_UINT" | "MET_ULONG" => NumericType::U32,
        "MET_LONG_LONG" => NumericType::I64,
        "MET_ULONG_LONG" => NumericType::U64,
        "MET_FLOAT" => NumericType::F32,
        "MET_DOUBLE" => NumericType::F64,
        _ => return None,
    })
}
