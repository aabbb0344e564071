//! Reads 2-D arrays from an `.npz` file, NumPy's zip of `.npy` arrays, of any real number type, order and byte order.
//!
//! The crate `npyz` also reads `.npy`, but allocates whatever length a header claims; this reader does not.

use crate::Array;
use crate::error::{Error, Problem, Result};
use crate::numeric::NumericType;
use std::io::{Cursor, Read};
use std::path::Path;
use zip::ZipArchive;

/// Longest header that is read; NumPy's own limit is 10000 bytes.
const MAX_HEADER_BYTES: usize = 1 << 16;

/// No deflate stream expands by more than this factor.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// Content of an `.npy` header.
#[derive(Debug, PartialEq)]
struct NpyHeader<'a> {
    /// NumPy's type string: byte order, kind, width.
    type_string: &'a str,
    fortran_order: bool,
    shape: Vec<u64>,
}

/// The named arrays of a file's bytes, each `[h, w]` there and `[1, h, w]` here; `path` is for messages.
///
/// # Errors
/// When an array is missing or damaged, has another number of axes or an unsupported number type.
pub fn read_arrays<const N: usize>(path: &Path, file: Vec<u8>, names: [&str; N]) -> Result<[Array; N]> {
    let mut archive = ZipArchive::new(Cursor::new(file)).map_err(|error| bad(path, error.to_string()))?;
    let mut arrays = [const { Array { shape: [0; 3], values: Vec::new() } }; N];
    for (array, name) in arrays.iter_mut().zip(names) {
        *array = read_array(path, &mut archive, name)?;
    }
    Ok(arrays)
}

fn bad(path: &Path, problem: String) -> Error {
    Problem::from(problem).in_file(path, "npz")
}

fn read_array(path: &Path, archive: &mut ZipArchive<Cursor<Vec<u8>>>, name: &str) -> Result<Array> {
    let file = format!("{name}.npy");
    if archive.index_for_name(&file).is_none() {
        let names: Vec<String> =
            archive.file_names().filter_map(|name| Some(name.ok()?.trim_end_matches(".npy").to_owned())).collect();
        let problem = format!("it has no array {name}, but {}", if names.is_empty() { "none".into() } else { names.join(", ") });
        return Err(Problem::with_advice(problem, "save the arrays as `image` and `label`").in_file(path, "npz"));
    }
    let entry = archive.by_name(&file).map_err(|error| bad(path, format!("array {name}: {error}")))?;
    let most = entry.size().min(entry.compressed_size().saturating_mul(MAX_DEFLATE_RATIO));
    read_npy(path, name, most, entry)
}

/// Reads a 2-D array in NumPy's `.npy` format of at most `most` bytes; only as many bytes as its header gives, even if the entry expands to
/// more.
fn read_npy(path: &Path, name: &str, most: u64, mut npy: impl Read) -> Result<Array> {
    let failed = |error: std::io::Error| bad(path, format!("array {name}: {error}"));
    let no_header = || bad(path, format!("array {name} has no readable .npy header"));
    let header = read_header(&mut npy).map_err(failed)?.ok_or_else(no_header)?;
    let NpyHeader { type_string, fortran_order, shape } = parse_header(&header).ok_or_else(no_header)?;
    let number_type = type_string
        .get(1..)
        .and_then(NumericType::from_numpy)
        .ok_or_else(|| Error::NumberType { path: path.into(), found: type_string.into() })?;
    let &[rows, columns] = shape.as_slice() else {
        return Err(bad(path, format!("array {name} has shape {shape:?}, expected [height, width]")));
    };
    let expected = [rows, columns].iter().try_fold(number_type.bytes() as u64, |bytes, &n| bytes.checked_mul(n));
    let Some(expected) = expected else {
        return Err(bad(path, format!("array {name} has the impossible shape {rows}x{columns}")));
    };
    if expected > most {
        return Err(bad(path, format!("array {name} of shape {rows}x{columns} comes with at most {most} bytes")));
    }
    let mut data = Vec::new();
    // One byte more, to notice surplus bytes and to reach the end, where the entry's checksum is checked.
    npy.take(expected.saturating_add(1)).read_to_end(&mut data).map_err(failed)?;
    if expected != data.len() as u64 || data.is_empty() {
        let (more, found) = if expected < data.len() as u64 { ("more than ", data.len() - 1) } else { ("", data.len()) };
        return Err(bad(path, format!("array {name} of shape {rows}x{columns} comes with {more}{found} bytes")));
    }
    let [h, w] = [rows as usize, columns as usize];
    let stored = number_type.decode(&data, type_string.starts_with('>'), 1.0, 0.0);
    let values = if fortran_order { (0..h * w).map(|at| stored[at % w * h + at / w]).collect() } else { stored };
    Ok(Array { shape: [1, h, w], values })
}

/// The text of an `.npy` file's header; `None` if it has none.
fn read_header(npy: &mut impl Read) -> std::io::Result<Option<String>> {
    let mut start = Vec::new();
    npy.take(10).read_to_end(&mut start)?;
    let Some(&[major, _, low, high]) = start.strip_prefix(b"\x93NUMPY") else { return Ok(None) };
    let mut length = [low, high, 0, 0];
    if major != 1 {
        npy.read_exact(&mut length[2..])?;
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_HEADER_BYTES {
        return Ok(None);
    }
    let mut text = vec![0; length];
    npy.read_exact(&mut text)?;
    Ok(String::from_utf8(text).ok())
}

/// Reads the header's text, a Python dictionary with three keys; `None` if it is anything else.
fn parse_header(header: &str) -> Option<NpyHeader<'_>> {
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
    Some(NpyHeader { type_string, fortran_order, shape: shape.collect::<Option<_>>()? })
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
        assert_eq!(read_npy(path, "image", 99, rows.as_slice()).unwrap().values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let columns = npy("{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }\n", &[0, 1, 0, 4, 0, 2, 0, 5, 0, 3, 0, 6]);
        assert_eq!(read_npy(path, "image", 99, columns.as_slice()).unwrap().values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn bad_headers_are_refused() {
        for header in [
            "",
            "{'descr': '<f4', 'fortran_order': Maybe, 'shape': (2, 3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3), }",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 3), }",
            "{'fortran_order': False, 'shape': (2, 3), }",
        ] {
            assert!(read_npy(Path::new("a.npz"), "image", 99, npy(header, &[]).as_slice()).is_err(), "{header}");
            assert_eq!(parse_header(header), None, "{header}");
        }
        assert!(read_header(&mut &b"\x93NUMPY\x01\x00\xff\xff{}"[..]).is_err());
        assert_eq!(read_header(&mut &b"\x93NUMPX\x01\x00\x02\x00{}"[..]).unwrap(), None);
    }

    #[test]
    fn surplus_and_missing_bytes_are_refused() {
        let header = "{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), }\n";
        let read =
            |bytes| read_npy(Path::new("a.npz"), "label", 99, npy(header, &vec![1; bytes]).as_slice()).map_err(|e| e.to_string());
        assert_eq!(read(12).unwrap().shape, [1, 2, 3]);
        assert!(read(11).map(|_| ()).unwrap_err().contains("comes with 11 bytes"));
        assert!(read(13).map(|_| ()).unwrap_err().contains("comes with more than 12 bytes"));
        let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 1), }\n";
        let huge = read_npy(Path::new("a.npz"), "label", 99, npy(header, &[0; 99]).as_slice()).unwrap_err().to_string();
        assert!(huge.contains("array label of shape 1099511627776x1 comes with at most 99 bytes"), "{huge}");
    }
}
