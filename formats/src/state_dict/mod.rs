//! Checkpoints: named tensors in PyTorch's `.pth` or in `.safetensors`, read one at a time.

mod pickle;
mod safetensors;
mod save;
mod torch_file;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use crate::error::{Error, Problem, Result};
use crate::placeholder;

pub use save::{is_ours, save_pth, save_safetensors};

/// The formats' name in messages.
const FORMAT: &str = "PyTorch or .safetensors";
/// Hint for an undamaged file with useless content.
const SAVE_AGAIN: &str = "save it as torch.save(model.state_dict(), file)";
/// Hint for unsupported number types.
const SAVE_AS_FLOAT32: &str = "save its tensors as float32";
/// Hint for weights that are whole numbers.
const QUANTISED: &str = "the file was quantised: pass the one before, with floating-point weights";
/// Hint for weights that are all zero.
const NEVER_FILLED: &str = "they were saved before they were loaded or trained: pass the checkpoint that has them";
/// Hint for weights that are no numbers.
const NOT_FINITE: &str = "the training that wrote it diverged: use an earlier checkpoint of it";
/// What training wraps a model in, and puts before its names: `DataParallel`, `torch.compile`, Lightning, a head on a backbone.
const PREFIXES: [&str; 4] = ["module.", "_orig_mod.", "model.", "backbone."];

/// Element types that a checkpoint may hold; all but the last are read as float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ElementType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    /// A type of this many bytes that is not read: complex, quantised, 8-bit floats.
    Opaque(usize),
}

impl ElementType {
    fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::Opaque(size) => size,
        }
    }

    /// Its name, if its values are whole numbers.
    fn whole(self) -> Option<&'static str> {
        Some(match self {
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::I16 => "int16",
            Self::I8 => "int8",
            Self::U64 => "uint64",
            Self::U32 => "uint32",
            Self::U16 => "uint16",
            Self::U8 => "uint8",
            Self::Bool => "bool",
            Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::Opaque(_) => return None,
        })
    }

    /// Refuses a type that is not read, before its bytes are.
    fn check(self) -> Result<(), Problem> {
        match self {
            Self::Opaque(_) => Err(Problem::with_advice(
                "its values are complex, quantised or 8-bit floats, which are not read",
                SAVE_AS_FLOAT32,
            )),
            _ => Ok(()),
        }
    }

    /// Little-endian bytes as float32.
    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk)).collect()
        }
        match self {
            Self::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            Self::F32 => each(bytes, f32::from_le_bytes),
            Self::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Self::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Self::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
            Self::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
            Self::I16 => each(bytes, |b| f32::from(i16::from_le_bytes(b))),
            Self::I8 => each(bytes, |b: [u8; 1]| f32::from(b[0] as i8)),
            Self::U64 => each(bytes, |b| u64::from_le_bytes(b) as f32),
            Self::U32 => each(bytes, |b| u32::from_le_bytes(b) as f32),
            Self::U16 => each(bytes, |b| f32::from(u16::from_le_bytes(b))),
            Self::U8 => each(bytes, |b: [u8; 1]| f32::from(b[0])),
            Self::Bool => each(bytes, |b: [u8; 1]| f32::from(u8::from(b[0] != 0))),
            Self::Opaque(_) => Vec::new(),
        }
    }
}

/// A name without what wrappers put before it.
fn without_prefixes(mut name: &str) -> &str {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).filter(|rest| !rest.is_empty()) {
        name = rest;
    }
    name
}

/// A file's tensors, which are read on request.
trait TensorFile: Send + Sync {
    /// The tensor's elements in C order.
    ///
    /// # Errors
    /// What is wrong with the tensor's data.
    fn read(&self, name: &str) -> Result<Vec<f32>, Problem>;

    /// The type of a tensor's elements, if the file has it.
    fn element(&self, name: &str) -> Option<ElementType>;

    /// What the file says that is not read, if it says something: what the user should know of it.
    fn content(&self) -> Content {
        Content::default()
    }
}

/// What a file holds besides the tensors that are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Content {
    /// The key whose dict is read, and the keys of other dicts of weights that are not.
    nested: Option<(String, Vec<String>)>,
    /// Names of the dict that is read whose values are no tensors that can be read: sparse, quantised, without data.
    passed_over: Vec<String>,
}

/// The shapes of a file's tensors, and the file.
type Opened = (BTreeMap<String, Vec<usize>>, Box<dyn TensorFile>);

enum Source {
    File(Box<dyn TensorFile>),
    Memory(HashMap<String, Tensor>),
}

/// Named tensors of a checkpoint. Opening reads names and shapes; a tensor's data is read on request.
///
/// What a wrapper of the model puts before its names (`module.`, `_orig_mod.`, `model.`, `backbone.`) is removed from them;
/// [`StateDict::removed_prefix`] says so.
pub struct StateDict {
    path: String,
    removed_prefix: Option<String>,
    content: Content,
    shapes: BTreeMap<String, Vec<usize>>,
    /// The file's names, if they differ.
    original: HashMap<String, String>,
    source: Source,
}

impl std::fmt::Debug for StateDict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateDict").field("path", &self.path).field("tensors", &self.shapes.len()).finish()
    }
}

impl StateDict {
    /// Opens a PyTorch file (`torch.save` of a state dict; the zip layout or the older one) or a `.safetensors` file; the content
    /// decides, not the name. A state dict may also be nested under the key `state_dict`, `model_state_dict`, `model`, `model_state`, `net`
    /// or `ema`, next to whatever else training saves.
    ///
    /// # Errors
    /// If the file cannot be read, has another format, or is truncated or damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let format = |problem: Problem| problem.in_file(path, FORMAT);
        placeholder::refuse(path)?;
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        let metadata = file.metadata().map_err(Error::io("read", path))?;
        if metadata.is_dir() {
            return Err(format(Problem::with_advice("it is a folder", "name a .pth or .safetensors file")));
        }
        let mut magic = Vec::new();
        (&mut file).take(16).read_to_end(&mut magic).map_err(Error::io("read", path))?;
        let (shapes, source): Opened = if magic.starts_with(b"PK") {
            torch_file::open_zip(file, metadata.len()).map_err(format)?
        } else if magic.starts_with(&[0x80, 0x02, 0x8a, 0x0a]) {
            torch_file::open_legacy(file, metadata.len()).map_err(format)?
        } else if magic.get(8) == Some(&b'{') {
            safetensors::open(file, metadata.len()).map_err(format)?
        } else {
            return Err(format("its first bytes are those of another kind of file, or damaged".into()));
        };
        Self::new(path.display().to_string(), shapes, Source::File(source))
    }

    /// As [`Self::open`], for the bytes of a `.safetensors` file; `source` names it in messages.
    ///
    /// # Errors
    /// If it has another format, or is truncated or damaged.
    pub fn from_safetensors(source: impl Into<String>, bytes: Vec<u8>) -> Result<Self> {
        let (path, len) = (source.into(), bytes.len() as u64);
        match safetensors::open(std::io::Cursor::new(bytes), len) {
            Ok((shapes, source)) => Self::new(path, shapes, Source::File(source)),
            Err(problem) => Err(problem.in_file(Path::new(&path), FORMAT)),
        }
    }

    /// A state dict of tensors in memory; `source` names them in messages.
    ///
    /// # Errors
    /// If two names are the same without what a wrapper puts before them.
    pub fn from_tensors(source: impl Into<String>, tensors: HashMap<String, Tensor>) -> Result<Self> {
        let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
        Self::new(source.into(), shapes, Source::Memory(tensors))
    }

    fn new(path: String, original_shapes: BTreeMap<String, Vec<usize>>, source: Source) -> Result<Self> {
        let (mut shapes, mut original, mut removed_prefix) = (BTreeMap::new(), HashMap::new(), None);
        let content = match &source {
            Source::File(file) => file.content(),
            Source::Memory(_) => Content::default(),
        };
        for (name, shape) in original_shapes {
            let short = without_prefixes(&name).to_owned();
            if shapes.insert(short.clone(), shape).is_some() {
                let problem =
                    Problem::with_advice(format!("{short} is there with and without a prefix such as `module.`"), SAVE_AGAIN);
                return Err(problem.in_file(Path::new(&path), FORMAT));
            }
            if short != name {
                removed_prefix.get_or_insert_with(|| name[..name.len() - short.len()].to_owned());
                original.insert(short, name);
            }
        }
        Ok(Self { path, removed_prefix, content, shapes, original, source })
    }

    /// What was removed from the beginning of names, if anything was.
    pub fn removed_prefix(&self) -> Option<&str> {
        self.removed_prefix.as_deref()
    }

    /// What the user should know of the file's names: which of several dicts of weights is read, and what is removed from the names.
    pub fn notes(&self) -> Vec<String> {
        let path = &self.path;
        let chosen = self.content.nested.iter().filter(|(_, others)| !others.is_empty());
        let chosen = chosen.map(|(key, others)| {
            format!("{path}: its weights under `{key}` are taken, not those under `{}`", others.join("`, `"))
        });
        let removed =
            self.removed_prefix.iter().map(|prefix| format!("{path}: {prefix} is removed from the names of its tensors"));
        chosen.chain(removed).collect()
    }

    /// The file's path, or the name given to [`StateDict::from_tensors`].
    pub fn source(&self) -> &str {
        &self.path
    }

    fn file(&self) -> PathBuf {
        PathBuf::from(&self.path)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shapes.keys().map(String::as_str)
    }

    /// A tensor's shape, if the file has the tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shapes.get(name).cloned()
    }

    /// The error for a tensor that is not there, or not as one that is read.
    fn missing(&self, name: &str, expected: String) -> Error {
        match self.content.passed_over.iter().any(|passed_over| without_prefixes(passed_over) == name) {
            true => Error::UnreadTensor { path: self.file(), key: name.to_owned() },
            false => Error::MissingTensor { path: self.file(), key: name.to_owned(), expected },
        }
    }

    /// Reads a tensor as float32.
    ///
    /// # Errors
    /// If it is missing or its data is damaged.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let Some(shape) = self.shapes.get(name) else {
            return Err(self.missing(name, "any".to_owned()));
        };
        let original = self.original.get(name).map_or(name, String::as_str);
        let tensor = match &self.source {
            Source::Memory(tensors) => tensors[original].to_dtype(DType::F32).and_then(|tensor| tensor.to_device(device)),
            Source::File(file) => {
                let data = file.read(original).map_err(|problem| problem.of(name).in_file(Path::new(&self.path), FORMAT))?;
                Tensor::from_vec(data, shape.as_slice(), device)
            }
        };
        tensor.map_err(|source| Error::Tensor { path: self.file(), key: name.to_owned(), source })
    }

    /// Reads a weight as float32 and checks that it has the shape `expected` and is a weight, as [`Self::finite`].
    ///
    /// # Errors
    /// If it is missing, has another shape (the message names file, key and both shapes), is no weight, or its data is damaged.
    pub fn expect(&self, name: &str, expected: &[usize], device: &Device) -> Result<Tensor> {
        self.check(name, expected)?;
        self.finite(name, device)
    }

    /// As [`Self::tensor`], for a weight: floating-point numbers, all finite, and of a matrix not all zero.
    ///
    /// # Errors
    /// As [`Self::tensor`]; if its values are whole numbers, as quantised weights without their scale, if one is NaN or infinite, or if a
    /// `weight` of two axes or more holds only zeros.
    pub fn finite(&self, name: &str, device: &Device) -> Result<Tensor> {
        let refused = |what: String, advice| Err(Problem::with_advice(what, advice).in_file(Path::new(&self.path), FORMAT));
        if let Some(whole) = self.element(name).and_then(ElementType::whole) {
            return refused(format!("{name} holds whole numbers ({whole}), expected floating-point weights"), QUANTISED);
        }
        let tensor = self.tensor(name, &Device::Cpu)?;
        let failed = |source| Error::Tensor { path: self.file(), key: name.to_owned(), source };
        let values = tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(failed)?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return refused(format!("{name} holds {} (value {at} of {})", values[at], values.len()), NOT_FINITE);
        }
        if tensor.rank() > 1 && name.ends_with(".weight") && values.iter().all(|&value| value == 0.0) {
            return refused(format!("{name} holds only zeros"), NEVER_FILLED);
        }
        tensor.to_device(device).map_err(failed)
    }

    /// The type of a tensor's elements; `None` if it is missing or in memory.
    fn element(&self, name: &str) -> Option<ElementType> {
        match &self.source {
            Source::File(file) => file.element(self.original.get(name).map_or(name, String::as_str)),
            Source::Memory(_) => None,
        }
    }

    /// Checks that a tensor exists and has the shape `expected`, without reading its data.
    ///
    /// # Errors
    /// If it is missing or has another shape; the message names file, key and both shapes.
    pub fn check(&self, name: &str, expected: &[usize]) -> Result<()> {
        match self.shapes.get(name) {
            None => Err(self.missing(name, format!("{expected:?}"))),
            Some(found) if found != expected => Err(Error::TensorShape {
                path: self.file(),
                key: name.to_owned(),
                expected: expected.to_vec(),
                found: found.clone(),
            }),
            Some(_) => Ok(()),
        }
    }
}
