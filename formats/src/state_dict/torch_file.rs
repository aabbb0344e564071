//! The files that `torch.save` writes: since PyTorch 1.6 a zip archive with a pickle and one entry per storage; before that, pickles and
//! storages one after the other.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use zip::ZipArchive;

use super::pickle::{self, Pickle, TensorRef, Value};
use super::{Content, ElementType, Opened, SAVE_AGAIN, TensorFile};
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

/// Keys under which people save a state dict next to other things, in the order in which they count.
const NESTED_KEYS: [&str; 6] = ["state_dict", "model_state_dict", "model", "model_state", "net", "ema"];
/// Elements that an expanded view may have for each byte of the file: memory stays a multiple of the file's size.
const MAX_EXPANSION: u64 = 32;
/// The same for the bytes of a compressed pickle: names, which repeat one another.
const MAX_DEFLATED_PICKLE: u64 = 32;
/// No deflate stream expands by more than this factor.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// The entries of a dict of weights.
type Entries = [(Value, Value)];

/// Number of tensors in a dict.
fn count(entries: &Entries) -> usize {
    entries.iter().filter(|(_, value)| matches!(value, Value::Tensor(_))).count()
}

/// Under which key the dict of weights stands, and under which keys others do.
type Place = (String, Vec<String>);

/// The dict of weights, the pickle's own, or the one under one of [`NESTED_KEYS`] if that has more tensors; and under which key it and others
/// stand.
fn weights(pickle: &Pickle) -> Result<(&Entries, Option<Place>), Problem> {
    let top = pickle.dict(&pickle.root).ok_or(Problem::with_advice("it holds no dict of tensors", SAVE_AGAIN))?;
    let nested = NESTED_KEYS.iter().filter_map(|key| Some((*key, pickle.dict(pickle.get(&pickle.root, key)?)?)));
    let mut nested = nested.filter(|(_, nested)| count(nested) > 0 && count(nested) >= count(top));
    let Some((key, entries)) = nested.next() else { return Ok((top, None)) };
    // An optimizer's state has no tensors directly in it.
    let others = nested.map(|(other, _)| other.to_owned()).collect();
    Ok((entries, Some((key.to_owned(), others))))
}

/// What is wrong with a dict that has no tensors: perhaps they stand under keys of its own.
fn no_tensors(pickle: &Pickle, entries: &Entries) -> Problem {
    let holds_tensors = |value: &Value| pickle.dict(value).is_some_and(|nested| count(nested) > 0);
    let keys = entries.iter().filter_map(|(key, value)| match key {
        Value::Str(key) if holds_tensors(value) => Some(format!("`{key}`")),
        _ => None,
    });
    match keys.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => Problem::with_advice("it holds no tensors", SAVE_AGAIN),
        keys => Problem::with_advice(
            format!("its tensors stand under {keys}, expected at the top or under one of {}", NESTED_KEYS.join(", ")),
            "save that part of it: torch.save(torch.load(file)[key], new)",
        ),
    }
}

/// Named tensors of a file of `file_bytes` bytes, and what else it holds.
fn tensors(pickle: &Pickle, file_bytes: u64) -> Result<(HashMap<String, View>, Content), Problem> {
    let (entries, nested) = weights(pickle)?;
    let (mut named, mut passed_over) = (HashMap::new(), Vec::new());
    for (key, value) in entries {
        match (key, value) {
            (Value::Str(key), Value::Tensor(tensor)) => {
                named.insert(key.to_string(), View::new(tensor));
            }
            // Tensors that are not plain ones are objects that call functions, which is not done.
            (Value::Str(key), Value::Other | Value::None) => passed_over.push(key.to_string()),
            _ => {}
        }
    }
    if named.is_empty() {
        return Err(no_tensors(pickle, entries));
    }
    let beyond = |view: &View| {
        let count = view.shape.iter().try_fold(1u64, |count, &n| count.checked_mul(n as u64));
        count.is_none_or(|count| count > view.storage_len as u64 && count > file_bytes.saturating_mul(MAX_EXPANSION))
    };
    if let Some((name, view)) = named.iter().find(|(_, view)| beyond(view)) {
        return Err(format!("{name}: its shape {:?} is larger than the file can hold", view.shape).into());
    }
    Ok((named, Content { nested, passed_over }))
}

fn shapes(views: &HashMap<String, View>) -> BTreeMap<String, Vec<usize>> {
    views.iter().map(|(name, view)| (name.clone(), view.shape.clone())).collect()
}

struct ZipFile {
    archive: Mutex<ZipArchive<BufReader<File>>>,
    /// The folder of all entries, with its slash.
    folder: String,
    views: HashMap<String, View>,
    content: Content,
}

/// Opens the zip layout.
pub(super) fn open_zip(file: File, file_bytes: u64) -> Result<Opened, Problem> {
    let damaged = |e: zip::result::ZipError| format!("it is not a whole PyTorch file ({e})");
    // Without this the library guesses where the directory begins, and is wrong if the first entry has as many bytes there (76) as the
    // records that PyTorch writes behind it: if a file's name has 21 letters before its extension.
    let config = zip::read::Config { archive_offset: zip::read::ArchiveOffset::Known(0) };
    let mut archive = ZipArchive::with_config(config, BufReader::new(file)).map_err(damaged)?;
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
        let mut bytes = Vec::new();
        let entry = archive.by_name(pickle_name).map_err(damaged)?;
        let most = if entry.compression() == zip::CompressionMethod::Stored { 1 } else { MAX_DEFLATED_PICKLE };
        let size = entry.size();
        if size > entry.compressed_size().min(file_bytes).saturating_mul(most) {
            return Err(format!("its {pickle_name} says that it has {size} bytes, more than the file can hold").into());
        }
        // Read to the end, where its checksum is checked; one byte more, to notice surplus bytes before they are parsed.
        entry.take(size.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| damaged(e.into()))?;
        if bytes.len() as u64 != size {
            return Err(format!("its {pickle_name} has another size than the {size} bytes that the archive says").into());
        }
        pickle::read(&mut bytes.as_slice())?
    };
    let (views, content) = tensors(&pickle, file_bytes)?;
    for (name, view) in &views {
        let entry_name = format!("{folder}data/{}", view.key);
        let Ok(entry) = archive.by_name(&entry_name) else {
            return Err(format!("{name}: its data ({entry_name}) is not in the file").into());
        };
        let expected = view.storage_len.checked_mul(view.element.size()).map(|bytes| bytes as u64);
        let most = match entry.compression() {
            zip::CompressionMethod::Stored => file_bytes,
            _ => entry.compressed_size().min(file_bytes).saturating_mul(MAX_DEFLATE_RATIO),
        };
        if Some(entry.size()) != expected || entry.size() > most {
            return Err(format!(
                "{name}: its data has {} bytes, expected {} elements of {} bytes",
                entry.size(),
                view.storage_len,
                view.element.size()
            )
            .into());
        }
    }
    Ok((shapes(&views), Box::new(ZipFile { archive: Mutex::new(archive), folder, views, content })))
}

impl TensorFile for ZipFile {
    fn read(&self, name: &str) -> Result<Vec<f32>, Problem> {
        let view = self.views.get(name).ok_or("is not in the file")?;
        view.element.check()?;
        let mut archive = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
        let damaged = |e: &dyn std::fmt::Display| format!("its data is damaged ({e})");
        let entry = archive.by_name(&format!("{}data/{}", self.folder, view.key)).map_err(|e| damaged(&e))?;
        let expected = view.storage_len * view.element.size();
        // Sizes were compared with the file's at opening. What is compressed takes memory as it comes. One byte more, to notice surplus bytes
        // and to reach the end, where the checksum is checked.
        let is_stored = entry.compression() == zip::CompressionMethod::Stored;
        let mut bytes = Vec::with_capacity(if is_stored { expected + 1 } else { 0 });
        entry.take(expected as u64 + 1).read_to_end(&mut bytes).map_err(|e| damaged(&e))?;
        if bytes.len() != view.storage_len * view.element.size() {
            return Err(damaged(&"it ends early").into());
        }
        Ok(view.gather(&view.element.decode(&bytes)))
    }

    fn element(&self, name: &str) -> Option<ElementType> {
        self.views.get(name).map(|view| view.element)
    }

    fn content(&self) -> Content {
        self.content.clone()
    }
}

struct LegacyFile {
    file: Mutex<File>,
    /// First byte of each storage.
    starts: HashMap<String, u64>,
    views: HashMap<String, View>,
    content: Content,
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
    let (views, content) = tensors(&object, file_bytes)?;
    let mut at = input.count;
    let mut starts = HashMap::new();
    for key in keys.sequence(&keys.root).unwrap_or_default() {
        let Value::Str(key) = key else { return Err("its list of storages is damaged".into()) };
        let Some(storage) = object.storages.get(&**key) else {
            return Err(Problem::with_advice(format!("storage {key} belongs to no tensor"), SAVE_AGAIN));
        };
        let (len, size) = (storage.len, storage.element.size());
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
    Ok((shapes(&views), Box::new(LegacyFile { file: Mutex::new(file), starts, views, content })))
}

impl TensorFile for LegacyFile {
    fn read(&self, name: &str) -> Result<Vec<f32>, Problem> {
        let view = self.views.get(name).ok_or("is not in the file")?;
        view.element.check()?;
        let start = self.starts.get(&*view.key).ok_or("is not in the file")?;
        let mut bytes = vec![0u8; view.storage_len * view.element.size()];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(*start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| format!("its data cannot be read ({e})"))?;
        Ok(view.gather(&view.element.decode(&bytes)))
    }

    fn element(&self, name: &str) -> Option<ElementType> {
        self.views.get(name).map(|view| view.element)
    }

    fn content(&self) -> Content {
        self.content.clone()
    }
}
