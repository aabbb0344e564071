//! The `.safetensors` format: a JSON header, then the tensors' bytes.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek, SeekFrom};
use std::sync::{Mutex, PoisonError};

use super::{ElementType, Opened, TensorFile};
use crate::error::Problem;

/// Longest accepted header, as in the format's own library.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

struct SafetensorsFile<F> {
    file: Mutex<F>,
    /// Element type, first byte and length in bytes, of each tensor.
    places: HashMap<String, (ElementType, u64, usize)>,
}

/// Shapes and places of a file's tensors.
pub(super) fn open<F: Read + Seek + Send + 'static>(mut file: F, file_bytes: u64) -> Result<Opened, Problem> {
    let truncated = |e: std::io::Error| format!("the .safetensors header cannot be read ({e})");
    let mut length = [0u8; 8];
    file.seek(SeekFrom::Start(0)).map_err(truncated)?;
    file.read_exact(&mut length).map_err(truncated)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES || header_bytes > file_bytes.saturating_sub(8) {
        return Err(format!("the .safetensors header should be {header_bytes} bytes long, the file has {file_bytes}").into());
    }
    let mut buffer = vec![0u8; header_bytes as usize];
    file.read_exact(&mut buffer).map_err(truncated)?;
    let metadata: safetensors::tensor::Metadata =
        serde_json::from_slice(&buffer).map_err(|e| format!("the .safetensors header is damaged ({e})"))?;
    let data_start = 8 + header_bytes;
    let expected = data_start.saturating_add(metadata.data_len() as u64);
    if expected != file_bytes {
        return Err(format!("it has {file_bytes} bytes, its header tells of {expected}").into());
    }
    let (mut shapes, mut places) = (BTreeMap::new(), HashMap::new());
    for (name, info) in metadata.tensors() {
        let element = match info.dtype {
            safetensors::Dtype::F64 => ElementType::F64,
            safetensors::Dtype::F32 => ElementType::F32,
            safetensors::Dtype::F16 => ElementType::F16,
            safetensors::Dtype::BF16 => ElementType::BF16,
            safetensors::Dtype::I64 => ElementType::I64,
            safetensors::Dtype::I32 => ElementType::I32,
            safetensors::Dtype::I16 => ElementType::I16,
            safetensors::Dtype::I8 => ElementType::I8,
            safetensors::Dtype::U8 => ElementType::U8,
            safetensors::Dtype::BOOL => ElementType::Bool,
            safetensors::Dtype::U64 => ElementType::U64,
            safetensors::Dtype::U32 => ElementType::U32,
            safetensors::Dtype::U16 => ElementType::U16,
            // It may be one that nobody needs.
            _ => ElementType::Opaque(1),
        };
        let (start, end) = info.data_offsets;
        shapes.insert(name.clone(), info.shape.clone());
        places.insert(name, (element, data_start + start as u64, end - start));
    }
    Ok((shapes, Box::new(SafetensorsFile { file: Mutex::new(file), places })))
}

impl<F: Read + Seek + Send> TensorFile for SafetensorsFile<F> {
    fn read(&self, name: &str) -> Result<Vec<f32>, Problem> {
        let (element, start, bytes) = self.places.get(name).ok_or("is not in the file")?;
        element.check()?;
        let mut buffer = vec![0u8; *bytes];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(*start))
            .and_then(|_| file.read_exact(&mut buffer))
            .map_err(|e| format!("its data cannot be read ({e})"))?;
        Ok(element.decode(&buffer))
    }

    fn element(&self, name: &str) -> Option<ElementType> {
        self.places.get(name).map(|(element, ..)| *element)
    }
}
