//! Reads the arrays `image` and `label` of an `.npz` slice.

use super::Array;
use super::error::ScanError;
use super::numeric::NumericType;
use std::io::{Cursor, Read};
use std::path::Path;
use zip::ZipArchive;

/// What an `.npy` header says.
#[derive(Debug, PartialEq)]
struct NpyHeader<'a> {
    /// NumPy's type string: byte order, kind, width.
    type_string: &'a str,
    fortran_order: bool,
    shape: Vec<u64>,
}

/// Image and label of a slice, each `[1, h, w]`.
pub(super) fn read_slice(path: &Path, file: Vec<u8>) -> Result<(Array, Array), ScanError> {
    let mut archive = ZipArchive::new(Cursor::new(file)).map_err(|error| bad(path, error.to_string()))?;
    Ok((read_array(path, &mut archive, "image")?, read_array(path, &mut archive, "label")?))
}

fn bad(path: &Path, problem: String) -> ScanError {
    ScanError::Format { path: path.into(), format: "npz", problem }
}

fn read_array(path: &Path, archive: &mut ZipArchive<Cursor<Vec<u8>>>, name: &str) -> Result<Array, ScanError> {
    let mut npy = Vec::new();
    archive
        .by_name(&format!("{name}.npy"))
        .map_err(|error| bad(path, format!("array {name}: {error}")))?
        // Reads to the end, so the entry's checksum is compared too.
        .read_to_end(&mut npy)
        .map_err(|error| bad(path, format!("array {name}: {error}")))?;
    decode_npy(path, name, &npy)
}

/// Decodes a 2-D array of NumPy's `.npy` format.
fn decode_npy(path: &Path, name: &str, npy: &[u8]) -> Result<Array, ScanError> {
    let (header, data) = parse_npy(npy).ok_or_else(|| bad(path, format!("array {name} has no readable .npy header")))?;
    let NpyHeader { type_string, fortran_order, shape } = header;
    let number_type = type_string
        .get(1..)
        .and_then(NumericType::from_numpy)
        .ok_or_else(|| ScanError::NumberType { path: path.into(), found: type_string.into() })?;
    let &[rows, columns] = shape.as_slice() else {
        return Err(bad(path, format!("array {name} has shape {shape:?}, expected [height, width]")));
    };
    let expected = [rows, columns].iter().try_fold(number_type.bytes() as u64, |bytes, &n| bytes.checked_mul(n));
    if expected != Some(data.len() as u64) || data.is_empty() {
        return Err(bad(path, format!("array {name} of shape {rows}x{columns} comes with {} bytes", data.len())));
    }
    let [h, w] = [rows as usize, columns as usize];
    let stored = number_type.decode(data, type_string.starts_with('>'), 1.0, 0.0);
    let values = if fortran_order { (0..h * w).map(|at| stored[at % w * h + at / w]).collect() } else { stored };
    Ok(Array { shape: [1, h, w], values })
}

/// Splits an `.npy` file into its header, a Python dictionary of three keys, and its data; `None` where it is not one.
fn parse_npy(npy: &[u8]) -> Option<(NpyHeader<'_>, &[u8])> {
    let rest = npy.strip_prefix(b"\x93NUMPY")?;
    let (&[major, _], rest) = rest.split_first_chunk::<2>()?;
    let (length, rest) = if major == 1 {
        let (length, rest) = rest.split_first_chunk::<2>()?;
        (u16::from_le_bytes(*length) as usize, rest)
    } else {
        let (length, rest) = rest.split_first_chunk::<4>()?;
        (u32::from_le_bytes(*length) as usize, rest)
    };
    let (header, data) = rest.split_at_checked(length)?;
    let header = std::str::from_utf8(header).ok()?;
    let value = |key: &str| {
        let (_, after) = header.split_once(&format!("'{key}'"))?;
        Some(after.trim_start().strip_prefix(':')?.trim_start())
    };
    let type_string = value("descr")?.strip_prefix('\'')?.split_once('\'')?.0;
    let fortran_order = match value("fortran_order")? {
        yes if yes.starts_with("True") => true,
        no if no.starts_with("False") => false,
        _ => return None,
    };
    let axes = value("shape")?.strip_prefix('(')?.split_once(')')?.0;
    let shape = axes.split(',').map(str::trim).filter(|axis| !axis.is_empty()).map(|axis| axis.parse().ok());
    Some((NpyHeader { type_string, fortran_order, shape: shape.collect::<Option<_>>()? }, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    #[test]
    fn both_orders_and_byte_orders() {
        let path = Path::new("case0005_slice000.npz");
        let rows = npy("{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), }   \n", &[1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0]);
        assert_eq!(decode_npy(path, "image", &rows).unwrap().values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let columns = npy("{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }\n", &[0, 1, 0, 4, 0, 2, 0, 5, 0, 3, 0, 6]);
        assert_eq!(decode_npy(path, "image", &columns).unwrap().values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn headers_that_are_none() {
        for header in [
            "",
            "{'descr': '<f4', 'fortran_order': Maybe, 'shape': (2, 3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3), }",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 3), }",
            "{'fortran_order': False, 'shape': (2, 3), }",
        ] {
            assert_eq!(parse_npy(&npy(header, &[])), None, "{header}");
        }
        assert_eq!(parse_npy(b"\x93NUMPY\x01\x00\xff\xff{}"), None);
    }
}
