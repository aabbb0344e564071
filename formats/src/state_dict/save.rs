//! Writing checkpoints.

use std::io::{Read, Write};
use std::path::Path;

use candle_core::{DType, Tensor};
use zip::write::SimpleFileOptions;

use super::safetensors::MAX_HEADER_BYTES;
use crate::atomic::{write_atomic, write_atomic_with};
use crate::error::{Error, Result};

/// Name of the entry that says which program wrote a file.
const MARK: &str = "written_by";
/// Its content.
const PROGRAM: &str = "sam-ladder";

/// Whether a file was written by [`save_safetensors`] or [`save_pth`]; false for what cannot be read.
pub fn is_ours(path: &Path) -> bool {
    let Ok(mut file) = std::fs::File::open(path) else { return false };
    let mut start = [0; 8];
    if file.read_exact(&mut start).is_err() {
        return false;
    }
    if start.starts_with(b"PK") {
        let Ok(mut archive) = zip::ZipArchive::new(std::io::BufReader::new(file)) else { return false };
        let ending = format!("/{MARK}");
        let marked = |name: &std::borrow::Cow<'_, str>| name.ends_with(&ending);
        let name = archive.file_names().filter_map(|name| name.ok().map(|name| name.into_owned().into())).find(marked);
        let mut text = String::new();
        let entry = name.and_then(|name| archive.by_name(&name).ok());
        return entry.is_some_and(|entry| entry.take(64).read_to_string(&mut text).is_ok()) && text == PROGRAM;
    }
    let length = u64::from_le_bytes(start);
    let mut header = Vec::new();
    if length > MAX_HEADER_BYTES || file.take(length).read_to_end(&mut header).is_err() {
        return false;
    }
    let header: std::result::Result<serde_json::Value, _> = serde_json::from_slice(&header);
    header.is_ok_and(|header| header["__metadata__"][MARK] == PROGRAM)
}

/// Writes tensors as float32 in `.safetensors`, replacing an existing file.
///
/// # Errors
/// If a tensor cannot be read or the file cannot be written.
pub fn save_safetensors(path: impl AsRef<Path>, tensors: &[(String, Tensor)]) -> Result<()> {
    let path = path.as_ref();
    let data = elements(path, tensors)?;
    let views = tensors.iter().zip(&data).map(|((name, tensor), data)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, tensor.dims().to_vec(), data);
        view.map(|view| (name.as_str(), view))
    });
    let format = |e: safetensors::SafeTensorError| Error::io("write", path)(std::io::Error::other(e));
    let views = views.collect::<std::result::Result<Vec<_>, _>>().map_err(format)?;
    let mark = std::collections::HashMap::from([(MARK.to_owned(), PROGRAM.to_owned())]);
    let bytes = safetensors::serialize(views, Some(mark)).map_err(format)?;
    write_atomic(path, &bytes)
}

/// Writes tensors as float32 in the zip layout of `torch.save`, replacing an existing file;
/// `torch.load(file, weights_only=True)` reads it as a dict in the order given.
///
/// # Errors
/// If a tensor cannot be read or the file cannot be written.
pub fn save_pth(path: impl AsRef<Path>, tensors: &[(String, Tensor)]) -> Result<()> {
    let path = path.as_ref();
    let data = elements(path, tensors)?;
    let stem = path.file_stem().map_or("archive".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let stem = if stem.is_ascii() { stem } else { "archive".to_owned() };
    write_atomic_with(path, |file| {
        let mut zip = zip::ZipWriter::new(file);
        let mut entry = |name: String, bytes: &[u8]| -> std::io::Result<()> {
            let options = SimpleFileOptions::default()
                .compression_method(zip::CompressionMethod::Stored)
                .last_modified_time(zip::DateTime::default())
                .large_file(bytes.len() > u32::MAX as usize);
            zip.start_file(format!("{stem}/{name}"), options)?;
            zip.write_all(bytes)
        };
        entry("data.pkl".to_owned(), &pickle(tensors))?;
        entry("byteorder".to_owned(), b"little")?;
        for (i, data) in data.iter().enumerate() {
            entry(format!("data/{i}"), data)?;
        }
        entry("version".to_owned(), b"3\n")?;
        entry(MARK.to_owned(), PROGRAM.as_bytes())?;
        zip.finish()?.flush()
    })
}

/// Each tensor's elements as little-endian float32.
fn elements(path: &Path, tensors: &[(String, Tensor)]) -> Result<Vec<Vec<u8>>> {
    let one = |(name, tensor): &(String, Tensor)| {
        let values =
            tensor.to_dtype(DType::F32).and_then(|tensor| tensor.flatten_all()).and_then(|tensor| tensor.to_vec1::<f32>());
        let error = |source| Error::Tensor { path: path.into(), key: name.clone(), source };
        values.map_err(error).map(|values| values.iter().flat_map(|value| value.to_le_bytes()).collect())
    };
    tensors.iter().map(one).collect()
}

/// The pickle (protocol 2) of a dict from names to tensors; tensor i lies in storage i.
fn pickle(tensors: &[(String, Tensor)]) -> Vec<u8> {
    let mut out = vec![0x80, 2, b'}', b'('];
    let integer = |out: &mut Vec<u8>, n: usize| match i32::try_from(n) {
        Ok(n) => {
            out.push(b'J');
            out.extend(n.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 8]);
            out.extend((n as u64).to_le_bytes());
        }
    };
    let string = |out: &mut Vec<u8>, text: &str| {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    };
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        string(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        string(&mut out, "storage");
        out.extend(b"ctorch\nFloatStorage\n");
        string(&mut out, &i.to_string());
        string(&mut out, "cpu");
        integer(&mut out, tensor.elem_count());
        out.extend(b"tQK\x00("); // the storage; offset 0; shape
        tensor.dims().iter().for_each(|&n| integer(&mut out, n));
        out.extend(b"t("); // strides
        (0..tensor.rank()).for_each(|axis| integer(&mut out, tensor.dims()[axis + 1..].iter().product()));
        out.extend(b"t\x89ccollections\nOrderedDict\n)RtR"); // requires no gradient, no hooks
    }
    out.extend(b"u.");
    out
}
