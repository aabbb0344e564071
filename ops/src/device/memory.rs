//! A GPU's memory for kernels: tensors that they read, and fresh memory that they fill.

#[cfg(feature = "cuda")]
use super::cuda;
use super::launch_args::Arg;
use candle_core::op::BackpropOp;
use candle_core::{DType, Device, Result, Shape, Storage, StorageRef, Tensor, bail};

/// A contiguous tensor's memory for as long as a launch needs it.
pub(crate) struct Input<'a> {
    pointer: u64,
    _storage: StorageRef<'a>,
}

impl<'a> Input<'a> {
    /// # Errors
    /// If the tensor is not contiguous.
    pub(crate) fn new(tensor: &'a Tensor) -> Result<Self> {
        if !tensor.is_contiguous() {
            bail!("expected a contiguous tensor, found {:?}", tensor.layout());
        }
        Self::strided(tensor)
    }

    /// As [`Self::new`], for any strides.
    pub(crate) fn strided(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let pointer = address(&storage)? + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64;
        Ok(Self { pointer, _storage: storage })
    }

    pub(crate) fn arg(&self) -> Arg<'static> {
        Arg::Pointer(self.pointer)
    }

    /// The address of the first element.
    pub(crate) fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Whether four elements of `dtype` can be moved together.
    pub(crate) fn is_aligned(&self, dtype: DType) -> bool {
        self.pointer.is_multiple_of(4 * dtype.size_in_bytes() as u64)
    }
}

/// The address of a storage's first element.
fn address(storage: &Storage) -> Result<u64> {
    match storage {
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => cuda::address(storage),
        _ => bail!("a kernel was given memory that is not the GPU's"),
    }
}

/// Memory of unspecified content for `len` elements.
fn unwritten(device: &Device, dtype: DType, len: usize) -> Result<Storage> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Ok(Storage::Cuda(cuda::empty(device, dtype, len)?)),
        _ => bail!("the kernels are not part of this build"),
    }
}

/// Fresh memory that a kernel fills.
pub(crate) struct Output {
    storage: Storage,
    shape: Shape,
    pointer: u64,
}

impl Output {
    /// Memory of unspecified content; see [`super::Gpu::output`].
    pub(super) fn unwritten(device: &Device, dtype: DType, shape: Shape) -> Result<Self> {
        Self::of_storage(unwritten(device, dtype, shape.elem_count())?, shape)
    }

    /// From a storage made elsewhere.
    pub(crate) fn of_storage(storage: Storage, shape: Shape) -> Result<Self> {
        let pointer = address(&storage)?;
        Ok(Self { storage, shape, pointer })
    }

    pub(crate) fn arg(&self) -> Arg<'static> {
        Arg::Pointer(self.pointer)
    }

    /// The address of the first element.
    #[cfg(feature = "cuda")]
    pub(crate) fn pointer(&self) -> u64 {
        self.pointer
    }

    /// The address of a later element of `dtype`.
    pub(crate) fn arg_at(&self, element: usize, dtype: DType) -> Arg<'static> {
        Arg::Pointer(self.pointer + (element * dtype.size_in_bytes()) as u64)
    }

    /// The same memory as another shape of as many elements.
    pub(crate) fn reshape(mut self, shape: impl Into<Shape>) -> Self {
        self.shape = shape.into();
        self
    }

    /// The memory as a tensor without a graph.
    pub(crate) fn tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.elem_count()
    }
}

/// Contiguous tensors as arguments.
pub(crate) fn args_of(tensors: &[&Tensor]) -> Result<Vec<Arg<'static>>> {
    tensors.iter().map(|tensor| Ok(Input::new(tensor)?.arg())).collect()
}
