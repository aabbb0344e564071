//! The files that `torch.save` writes: since PyTorch 1.6 a zip archive with a pickle and one entry per storage; before that, pickles and
//! storages one after the other.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use zip::ZipArchive;

use super::pickle::{self, Pickle, TensorRef, Value};
use super::{ElementType, Opened, SAVE_AGAIN, TensorFile};
use crate::error::Problem;

fn big_endian() -> Problem {
    Problem::with_advice("it was saved on a big-endian machine, which is not read", "save it again on another machine")
}

/// A tensor's view of its storage, without the pickle's shared pointers.
struct View {
    key: Arc<str>,
    element: ElementType,
    storage_len: usize,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    fn new(tensor: &TensorRef) -> Self {
        let storage = &tensor.storage;
        Self {
            key: storage.key.clone(),
            element: storage.element,
            storage_len: storage.len,
            offset: tensor.offset,
            shape: tensor.shape.clone(),
            strides: tensor.strides.clone(),
        }
    }

    /// The view's elements in C order, from its whole storage.
    fn gather(&self, storage: &[f32]) -> Vec<f32> {
        let count: usize = self.shape.iter().product();
        let mut contiguous = 1;
        let mut is_contiguous = true;
        for (&n, &stride) in self.shape.iter().zip(&self.strides).rev() {
            is_contiguous &= n == 1 || stride == contiguous;
            contiguous *= n;
        }
        if count == 0 {
            return vec![];
        }
        if is_contiguous {
            return storage[self.offset..self.offset + count].to_vec();
        }
        (0..count)
            .map(|index| {
                let (mut rest, mut at) = (index, self.offset);
                for (&n, &stride) in self.shape.iter().zip(&self.strides).rev() {
                    at += rest % n * stride;
                    rest /= n;
                }
                storage[at]
            })
            .collect()
    }
}

/// Named tensors of the pickle's dict, or of the dict under its key `state_dict` or `model`.
fn tensors(pickle: &Pickle) -> Result<HashMap<String, View>, Problem> {
    let is_tensor = |(_, value): &(Value, Value)| matches!(value, Value::Tensor(_));
    let nested = || ["state_dict", "model"].iter().find_map(|key| pickle.get(&pickle.root, key));
    let top = pickle.dict(&pickle.root).ok_or(Problem::with_advice("it holds no dict of tensors", SAVE_AGAIN))?;
    let entries = match nested().and_then(|value| pickle.dict(value)) {
        Some(nested) if !top.iter().any(is_tensor) => nested,
        _ => top,
    };
    let named = entries.iter().filter_map(|(key, value)| match (key, value) {
        (Value::Str(key), Value::Tensor(tensor)) => Some((key.to_string(), View::new(tensor))),
        _ => None,
    });
    let named: HashMap<_, _> = named.collect();
    if named.is_empty() {
        return Err(Problem::with_advice("it holds no tensors", SAVE_AGAIN));
    }
    Ok(named)
}

fn shapes(views: &HashMap<String, View>) -> BTreeMap<String, Vec<usize>> {
    views.iter().map(|(name, view)| (name.clone(), view.shape.clone())).collect()
}

struct ZipFile {
    archive: Mutex<ZipArchive<BufReader<File>>>,
    /// The folder of all entries, with its slash.
    folder: String,
    views: HashMap<String, View>,
}

/// Opens the zip layout.
pub(super) fn open_zip(file: File, file_bytes: u64) -> Result<Opened, Problem> {
    let damaged = |e: zip::result::ZipError| format!("it is not a whole PyTorch file ({e})");
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
    let names: Vec<String> = archive.file_names().filter_map(|name| name.ok().map(|name| name.into_owned())).collect();
    let pickle_name = names
        .iter()
        .find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"))
        .ok_or(Problem::with_advice("it is a zip archive, but not one of torch.save (it has no data.pkl)", SAVE_AGAIN))?;
    let folder = pickle_name.trim_end_matches("data.pkl").to_owned();
    if let Ok(mut order) = archive.by_name(&format!("{folder}byteorder")) {
        let mut text = String::new();
        if (&mut order).take(16).read_to_string(&mut text).is_ok() && text.trim() == "big" {
            return Err(big_endian());
        }
    }
    let pickle = {
        // Read to the end, where its checksum is checked.
        let mut bytes = Vec::new();
        let entry = archive.by_name(pickle_name).map_err(damaged)?;
        entry.take(file_bytes).read_to_end(&mut bytes).map_err(|e| damaged(e.into()))?;
        pickle::read(&mut bytes.as_slice())?
    };
    let views = tensors(&pickle)?;
    for (name, view) in &views {
        let entry_name = format!("{folder}data/{}", view.key);
        let Ok(entry) = archive.by_name(&entry_name) else {
            return Err(format!("{name}: its data ({entry_name}) is not in the file").into());
        };
        let expected = view.storage_len.checked_mul(view.element.size()).map(|bytes| bytes as u64);
        if Some(entry.size()) != expected || entry.size() > file_bytes || entry.compression() != zip::CompressionMethod::Stored {
            return Err(format!(
                "{name}: its data has {} bytes, expected {} elements of {} bytes",
                entry.size(),
                view.storage_len,
                view.element.size()
            )
            .into());
        }
    }
    Ok((shapes(&views), Box::new(ZipFile { archive: Mutex::new(archive), folder, views })))
}

impl TensorFile for ZipFile {
    fn read(&self, name: &str) -> Result<Vec<f32>, Problem> {
        let view = self.views.get(name).ok_or("is not in the file")?;
        let mut archive = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
        let damaged = |e: &dyn std::fmt::Display| format!("its data is damaged ({e})");
        let mut entry = archive.by_name(&format!("{}data/{}", self.folder, view.key)).map_err(|e| damaged(&e))?;
        // Sizes were compared with the file's at opening; the checksum is checked when the last byte is read.
        let mut bytes = Vec::with_capacity(view.storage_len * view.element.size());
        entry.read_to_end(&mut bytes).map_err(|e| damaged(&e))?;
        if bytes.len() != view.storage_len * view.element.size() {
            return Err(damaged(&"it ends early").into());
        }
        Ok(view.gather(&view.element.decode(&bytes)))
    }
}

struct LegacyFile {
    file: Mutex<File>,
    /// First byte of each storage.
    starts: HashMap<String, u64>,
    views: HashMap<String, View>,
}

/// Counts the bytes read.
struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count += n as u64;
        Ok(n)
    }
}

/// Opens the layout before PyTorch 1.6: pickles of a magic number, a version, the machine's properties, the object and the keys of the
/// storages; then each storage as its length (8 bytes) and its elements.
pub(super) fn open_legacy(mut file: File, file_bytes: u64) -> Result<Opened, Problem> {
    let io = |e: std::io::Error| format!("cannot be read ({e})");
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut input = Counted { inner: BufReader::new(&mut file), count: 0 };
    pickle::read(&mut input)?; // magic number
    pickle::read(&mut input)?; // version
    let properties = pickle::read(&mut input)?;
    if let Some(Value::Bool(false)) = properties.get(&properties.root, "little_endian") {
        return Err(big_endian());
    }
    let object = pickle::read(&mut input)?;
    let keys = pickle::read(&mut input)?;
    let views = tensors(&object)?;
    let sizes: HashMap<&str, (usize, usize)> =
        views.values().map(|view| (&*view.key, (view.storage_len, view.element.size()))).collect();
    let mut at = input.count;
    let mut starts = HashMap::new();
    for key in keys.sequence(&keys.root).unwrap_or_default() {
        let Value::Str(key) = key else { return Err("its list of storages is damaged".into()) };
        let Some(&(len, size)) = sizes.get(&**key) else {
            return Err(Problem::with_advice(format!("storage {key} belongs to no tensor"), SAVE_AGAIN));
        };
        let mut stored = [0u8; 8];
        input.inner.seek(SeekFrom::Start(at)).and_then(|_| input.inner.read_exact(&mut stored)).map_err(io)?;
        let end = (len as u64).checked_mul(size as u64).and_then(|bytes| bytes.checked_add(at + 8));
        if u64::from_le_bytes(stored) != len as u64 || end.is_none_or(|end| end > file_bytes) {
            return Err(format!("storage {key} ends after the file or has another length").into());
        }
        starts.insert(key.to_string(), at + 8);
        at = end.unwrap_or(file_bytes);
    }
    if let Some((name, view)) = views.iter().find(|(_, view)| !starts.contains_key(&*view.key)) {
        return Err(format!("{name}: its data (storage {}) is not in the file", view.key).into());
    }
    Ok((shapes(&views), Box::new(LegacyFile { file: Mutex::new(file), starts, views })))
}

impl TensorFile for LegacyFile {
    fn read(&self, name: &str) -> Result<Vec<f32>, Problem> {
        let view = self.views.get(name).ok_or("is not in the file")?;
        let start = self.starts.get(&*view.key).ok_or("is not in the file")?;
        let mut bytes = vec![0u8; view.storage_len * view.element.size()];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(*start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| format!("its data cannot be read ({e})"))?;
        Ok(view.gather(&view.element.decode(&bytes)))
    }
}
