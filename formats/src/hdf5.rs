//! Reads data sets with three axes from an HDF5 file.

use crate::Array;
use crate::error::{Error, Problem, Result};
use hdf5_pure::{DType, Dataset, File};
use std::path::Path;

/// No filter of HDF5's own expands its input by more than this factor.
const MAX_RATIO: u64 = 1032;

/// The named data sets of a file's bytes, each `[d, h, w]`; `path` is for messages.
///
/// # Errors
/// When a data set is missing or damaged, has another number of axes or an unsupported number type.
pub fn read_arrays<const N: usize>(path: &Path, bytes: Vec<u8>, names: [&str; N]) -> Result<[Array; N]> {
    let file_bytes = bytes.len() as u64;
    let file = File::from_bytes(bytes).map_err(|error| bad(path, error.to_string()))?;
    let mut arrays = [const { Array { shape: [0; 3], values: Vec::new() } }; N];
    for (array, name) in arrays.iter_mut().zip(names) {
        *array = read_array(path, &file, name, file_bytes)?;
    }
    Ok(arrays)
}

/// Only the shape `[d, h, w]` of a data set.
///
/// # Errors
/// When it is missing or has another number of axes.
pub fn read_shape(path: &Path, name: &str) -> Result<[usize; 3]> {
    let file_bytes = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    let file = File::open_streaming(path).map_err(|error| bad(path, error.to_string()))?;
    Ok(open(path, &file, name, file_bytes)?.1)
}

fn bad(path: &Path, problem: String) -> Error {
    Problem::from(problem).in_file(path, "HDF5")
}

/// A data set and its shape, checked: three axes, and at most as many voxels as a file of `file_bytes` can hold.
fn open(path: &Path, file: &File, name: &str, file_bytes: u64) -> Result<(Dataset, [usize; 3])> {
    let failed = |error: hdf5_pure::Error| bad(path, format!("data set {name}: {error}"));
    let dataset = file.dataset(name).map_err(failed)?;
    let dimensions = dataset.shape().map_err(failed)?;
    let &[d, h, w] = dimensions.as_slice() else {
        return Err(bad(path, format!("data set {name} has shape {dimensions:?}, expected [depth, height, width]")));
    };
    let element_bytes = dataset.element_size().map_err(failed)?;
    let bytes = [d, h, w].iter().try_fold(element_bytes, |bytes, &n| bytes.checked_mul(n));
    match bytes {
        Some(0) => Err(bad(path, format!("data set {name} of shape {dimensions:?} is empty"))),
        Some(bytes) if bytes <= file_bytes.saturating_mul(MAX_RATIO) => Ok((dataset, [d, h, w].map(|n| n as usize))),
        _ => Err(bad(path, format!("data set {name} of shape {dimensions:?} is larger than the file can hold"))),
    }
}

fn read_array(path: &Path, file: &File, name: &str, file_bytes: u64) -> Result<Array> {
    let failed = |error: hdf5_pure::Error| bad(path, format!("data set {name}: {error}"));
    let (dataset, shape) = open(path, file, name, file_bytes)?;
    let values = match dataset.dtype().map_err(failed)? {
        DType::F32 => dataset.read_f32().map_err(failed)?,
        DType::F64 | DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::U8 | DType::U16 | DType::U32 | DType::U64 => {
            dataset.read_f64().map_err(failed)?.into_iter().map(|value| value as f32).collect()
        }
        other => return Err(Error::NumberType { path: path.into(), found: other.to_string() }),
    };
    if values.len() != shape.iter().product::<usize>() {
        return Err(bad(path, format!("data set {name} of shape {shape:?} holds {} values", values.len())));
    }
    Ok(Array { shape, values })
}
