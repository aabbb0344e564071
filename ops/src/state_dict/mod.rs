//! Checkpoints: named tensors in PyTorch's `.pth` or in `.safetensors`, read one at a time.

mod pickle;
mod safetensors;
mod save;
mod torch_file;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

pub use save::{save_pth, save_safetensors};

/// What went wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum StateDictError {
    /// The file could not be opened, read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is neither of the two formats, or it is damaged.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A tensor that is needed is not there.
    #[error("{path}: the key {key} is missing (expected a tensor of shape {expected})")]
    Missing {
        /// The file.
        path: String,
        /// The tensor's name.
        key: String,
        /// Its shape, were it there.
        expected: String,
    },
    /// A tensor has another shape than the one needed.
    #[error("{path}: {key} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The file.
        path: String,
        /// The tensor's name.
        key: String,
        /// The shape needed.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor could not be made on the device.
    #[error("{path}: {key}: {source}")]
    Tensor {
        /// The file.
        path: String,
        /// The tensor's name.
        key: String,
        /// Candle's reason.
        source: candle_core::Error,
    },
}

impl From<StateDictError> for candle_core::Error {
    fn from(error: StateDictError) -> Self {
        candle_core::Error::wrap(error)
    }
}

/// What the functions of this module return.
pub type Result<T> = std::result::Result<T, StateDictError>;

/// Element types that a checkpoint may hold; all are read as float32.
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
    U8,
    Bool,
}

impl ElementType {
    fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
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
            Self::U8 => each(bytes, |b: [u8; 1]| f32::from(b[0])),
            Self::Bool => each(bytes, |b: [u8; 1]| f32::from(u8::from(b[0] != 0))),
        }
    }
}

/// A file's tensors before they are read: each with its shape and its place.
trait TensorFile: Send + Sync {
    /// The tensor's elements in C order.
    ///
    /// # Errors
    /// The reason alone, without the file's name.
    fn read(&self, name: &str) -> std::result::Result<Vec<f32>, String>;
}

/// Shapes of a file's tensors, and the file.
type Opened = (BTreeMap<String, Vec<usize>>, Box<dyn TensorFile>);

enum Source {
    File(Box<dyn TensorFile>),
    Memory(HashMap<String, Tensor>),
}

/// Named tensors of a checkpoint. Opening reads names and shapes; a tensor's data is read when it is asked for.
///
/// A prefix `module.` (of PyTorch's `DataParallel`) is taken off the names.
pub struct StateDict {
    path: String,
    shapes: BTreeMap<String, Vec<usize>>,
    /// Names as the file has them, where they differ.
    original: HashMap<String, String>,
    source: Source,
}

impl std::fmt::Debug for StateDict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateDict").field("path", &self.path).field("tensors", &self.shapes.len()).finish()
    }
}

impl StateDict {
    /// Opens a PyTorch file (`torch.save` of a state dict; its zip layout or the one before it) or a `.safetensors` file. The
    /// content says which, not the name. A state dict below the key `state_dict` or `model` is found too.
    ///
    /// # Errors
    /// If the file cannot be read, is of another format, is truncated or damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let io = |source| StateDictError::Io { path: name.clone(), source };
        let format = |reason| StateDictError::Format { path: name.clone(), reason };
        let mut file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.is_dir() {
            return Err(format("is a folder, expected a .pth or .safetensors file".to_owned()));
        }
        let mut magic = Vec::new();
        (&mut file).take(16).read_to_end(&mut magic).map_err(io)?;
        let (shapes, source): Opened = if magic.starts_with(b"PK") {
            torch_file::open_zip(file, metadata.len()).map_err(format)?
        } else if magic.starts_with(&[0x80, 0x02, 0x8a, 0x0a]) {
            torch_file::open_legacy(file, metadata.len()).map_err(format)?
        } else if magic.get(8) == Some(&b'{') {
            safetensors::open(file, metadata.len()).map_err(format)?
        } else {
            return Err(format(
                "is neither a PyTorch checkpoint nor a .safetensors file, or it is damaged at its start; download or copy it again"
                    .to_owned(),
            ));
        };
        Self::new(name, shapes, Source::File(source))
    }

    /// As [`Self::open`], of the bytes of a `.safetensors` file; `source` names it in messages.
    ///
    /// # Errors
    /// If it is of another format, is truncated or damaged.
    pub fn from_safetensors(source: impl Into<String>, bytes: Vec<u8>) -> Result<Self> {
        let (path, len) = (source.into(), bytes.len() as u64);
        match safetensors::open(std::io::Cursor::new(bytes), len) {
            Ok((shapes, source)) => Self::new(path, shapes, Source::File(source)),
            Err(reason) => Err(StateDictError::Format { path, reason }),
        }
    }

    /// A state dict of tensors in memory; `source` names them in messages.
    ///
    /// # Errors
    /// If two names are the same once `module.` is taken off.
    pub fn from_tensors(source: impl Into<String>, tensors: HashMap<String, Tensor>) -> Result<Self> {
        let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
        Self::new(source.into(), shapes, Source::Memory(tensors))
    }

    fn new(path: String, original_shapes: BTreeMap<String, Vec<usize>>, source: Source) -> Result<Self> {
        let (mut shapes, mut original) = (BTreeMap::new(), HashMap::new());
        for (name, shape) in original_shapes {
            let short = name.strip_prefix("module.").unwrap_or(&name).to_owned();
            if shapes.insert(short.clone(), shape).is_some() {
                return Err(StateDictError::Format { path, reason: format!("{short} is there with and without `module.`") });
            }
            if short != name {
                original.insert(short, name);
            }
        }
        Ok(Self { path, shapes, original, source })
    }

    /// The file's path, or the name given to [`StateDict::from_tensors`].
    pub fn source(&self) -> &str {
        &self.path
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shapes.keys().map(String::as_str)
    }

    /// A tensor's shape, if it is there.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shapes.get(name).cloned()
    }

    /// Reads a tensor as float32.
    ///
    /// # Errors
    /// If it is not there, or its data is damaged.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let Some(shape) = self.shapes.get(name) else {
            return Err(StateDictError::Missing { path: self.path.clone(), key: name.to_owned(), expected: "any".to_owned() });
        };
        let original = self.original.get(name).map_or(name, String::as_str);
        let tensor = match &self.source {
            Source::Memory(tensors) => tensors[original].to_dtype(DType::F32).and_then(|tensor| tensor.to_device(device)),
            Source::File(file) => {
                let data = file
                    .read(original)
                    .map_err(|reason| StateDictError::Format { path: self.path.clone(), reason: format!("{name}: {reason}") })?;
                Tensor::from_vec(data, shape.as_slice(), device)
            }
        };
        tensor.map_err(|source| StateDictError::Tensor { path: self.path.clone(), key: name.to_owned(), source })
    }

    /// Reads a tensor as float32 that must have the shape `expected`.
    ///
    /// # Errors
    /// If it is not there or has another shape (the message names file, key and both shapes), or its data is damaged.
    pub fn expect(&self, name: &str, expected: &[usize], device: &Device) -> Result<Tensor> {
        self.check(name, expected)?;
        self.tensor(name, device)
    }

    /// Checks that a tensor is there and has the shape `expected`, without reading its data.
    ///
    /// # Errors
    /// If it is not there or has another shape; the message names file, key and both shapes.
    pub fn check(&self, name: &str, expected: &[usize]) -> Result<()> {
        match self.shapes.get(name) {
            None => {
                Err(StateDictError::Missing { path: self.path.clone(), key: name.to_owned(), expected: format!("{expected:?}") })
            }
            Some(found) if found != expected => Err(StateDictError::Shape {
                path: self.path.clone(),
                key: name.to_owned(),
                expected: expected.to_vec(),
                found: found.clone(),
            }),
            Some(_) => Ok(()),
        }
    }
}
