//! The GPU: what launches the operations' kernels, and its memory, streams and graphs.
//!
//! The same kernels run on the host under the feature `emulate-kernels` (see `emulation.h`), with the same code around them: what allocates,
//! shapes, launches and differentiates. Nothing here waits for the device.
//!
//! Numbers are float32, bfloat16 or float16; statistics, sums, softmax and parameters are float32 throughout (see [`crate::precision`]).
#![cfg_attr(
    not(any(feature = "cuda", feature = "emulate-kernels")),
    allow(dead_code, unused_variables, reason = "a build for the CPU type-checks what launches kernels, and has none to launch")
)]

mod autograd;
#[cfg(feature = "cuda")]
mod cuda;
mod cuda_graph;
#[cfg(feature = "emulate-kernels")]
mod emulated;
mod open;
mod staging;
#[cfg(all(test, any(feature = "emulate-kernels", feature = "cuda")))]
mod tests;

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, StorageRef, Tensor, bail};

pub(crate) use autograd::{Gradients, Node};
pub use cuda_graph::{Graph, capture, prepare};
pub use open::{DeviceMemory, has_kernels, memory, open, synchronize};
pub use staging::{Staging, as_f32};

/// Threads of a block where nothing speaks for another number.
pub(crate) const THREADS: u32 = 256;
/// Blocks that share the sum over one channel; fixed, so that the order of the sum is.
pub(crate) const SPLITS: usize = 32;

/// Where the kernels of this module run: a GPU, or the host that stands in for one.
#[derive(Debug, Clone)]
pub(crate) struct Gpu(Device);

/// True where kernels run on these tensors: they live on a GPU, or on the CPU while that emulates one.
pub(crate) fn runs_on(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device().is_cuda() || (t.device().is_cpu() && emulating()))
        && tensors.iter().all(|t| matches!(t.dtype(), DType::F32 | DType::BF16 | DType::F16))
        // Indices within a plane are 32 bits wide.
        && tensors.iter().all(|t| t.elem_count() < 1 << 31)
}

/// Whether the CPU stands in for a GPU.
pub(crate) fn emulating() -> bool {
    #[cfg(feature = "emulate-kernels")]
    return emulated::is_on();
    #[cfg(not(feature = "emulate-kernels"))]
    return false;
}

/// The kernels' name of a number format.
pub(crate) fn suffix(dtype: DType) -> Result<&'static str> {
    Ok(match dtype {
        DType::F32 => "f32",
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        other => bail!("expected float32, bfloat16 or float16 on the GPU, found {other:?}"),
    })
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg<'a> {
    Pointer(u64),
    Int(i32),
    Unsigned(u32),
    Size(u64),
    Float(f32),
    Double(f64),
    Strides([i64; 3]),
    Geometry([i32; 5]),
    Rule([u32; 11]),
    Table(&'a [u64]),
}

/// How many blocks and threads a kernel is launched with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
}

impl Grid {
    /// A thread for each of `n`.
    pub(crate) fn over(n: usize) -> Self {
        Self::blocks([n.div_ceil(THREADS as usize).max(1) as u32, 1, 1])
    }

    /// A warp for each of `n`.
    pub(crate) fn warps(n: usize) -> Self {
        Self::blocks([n.div_ceil(THREADS as usize / 32).max(1) as u32, 1, 1])
    }

    pub(crate) fn blocks(blocks: [u32; 3]) -> Self {
        Self { blocks, threads: THREADS, shared_bytes: 0 }
    }
}

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

    /// As [`Self::new`], of any strides: the address of the first element.
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

    /// Whether four elements of `dtype` can be moved as one.
    pub(crate) fn is_aligned(&self, dtype: DType) -> bool {
        self.pointer.is_multiple_of(4 * dtype.size_in_bytes() as u64)
    }
}

/// The address of a storage's first element.
fn address(storage: &Storage) -> Result<u64> {
    Ok(match storage {
        Storage::Cpu(storage) => match storage {
            CpuStorage::U8(data) => data.as_ptr() as u64,
            CpuStorage::U32(data) => data.as_ptr() as u64,
            CpuStorage::I64(data) => data.as_ptr() as u64,
            CpuStorage::BF16(data) => data.as_ptr() as u64,
            CpuStorage::F16(data) => data.as_ptr() as u64,
            CpuStorage::F32(data) => data.as_ptr() as u64,
            CpuStorage::F64(data) => data.as_ptr() as u64,
            _ => bail!("a kernel was given numbers of a format that it does not know"),
        },
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => cuda::address(storage)?,
        _ => bail!("a kernel was given memory that is not the GPU's"),
    })
}

/// Fresh memory that a kernel fills.
pub(crate) struct Output {
    storage: Storage,
    shape: Shape,
    pointer: u64,
}

impl Output {
    /// A storage that was made elsewhere.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_storage(storage: Storage, shape: Shape) -> Result<Self> {
        let pointer = address(&storage)?;
        Ok(Self { storage, shape, pointer })
    }

    /// The values of a contiguous tensor on the CPU.
    pub(crate) fn copy_of(tensor: &Tensor) -> Result<Self> {
        let storage = match &*tensor.storage_and_layout().0 {
            Storage::Cpu(storage) => Storage::Cpu(storage.clone()),
            _ => bail!("expected a tensor on the CPU"),
        };
        let pointer = address(&storage)?;
        Ok(Self { storage, shape: tensor.shape().clone(), pointer })
    }

    pub(crate) fn arg(&self) -> Arg<'static> {
        Arg::Pointer(self.pointer)
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

    /// Elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.elem_count()
    }

    /// Storage and shape, for a node of the graph.
    pub(crate) fn into_parts(self) -> (Storage, Shape) {
        (self.storage, self.shape)
    }
}

impl Gpu {
    /// The one that holds `tensor`.
    pub(crate) fn of(tensor: &Tensor) -> Self {
        Self(tensor.device().clone())
    }

    /// Memory of unspecified content; NaN where the host stands in, so that what a kernel leaves out is seen.
    pub(crate) fn output(&self, dtype: DType, shape: impl Into<Shape>) -> Result<Output> {
        let shape = shape.into();
        let len = shape.elem_count();
        let storage = match &self.0 {
            Device::Cpu => Storage::Cpu(match dtype {
                DType::U8 => CpuStorage::U8(vec![0xff; len]),
                DType::F32 => CpuStorage::F32(vec![f32::NAN; len]),
                DType::F64 => CpuStorage::F64(vec![f64::NAN; len]),
                DType::BF16 => CpuStorage::BF16(vec![half::bf16::NAN; len]),
                DType::F16 => CpuStorage::F16(vec![half::f16::NAN; len]),
                other => bail!("no kernel makes {other:?}"),
            }),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Storage::Cuda(cuda::empty(device, dtype, len)?),
            _ => bail!("the kernels are not part of this build"),
        };
        let pointer = address(&storage)?;
        Ok(Output { storage, shape, pointer })
    }

    /// The matrix product `[m, k]·[k, n]` by the device's library.
    pub(crate) fn product(&self, lhs: &Tensor, rhs: &Tensor) -> Result<Output> {
        let ((m, k), (inner, n)) = (lhs.dims2()?, rhs.dims2()?);
        if inner != k {
            bail!("matrix product: {:?} and {:?} do not go together", lhs.dims(), rhs.dims());
        }
        let ((left, left_layout), (right, right_layout)) = (lhs.storage_and_layout(), rhs.storage_and_layout());
        let sizes = (1, m, n, k);
        let storage = match (&*left, &*right) {
            (Storage::Cpu(left), Storage::Cpu(right)) => Storage::Cpu(left.matmul(right, sizes, left_layout, right_layout)?),
            (Storage::Cuda(left), Storage::Cuda(right)) => Storage::Cuda(left.matmul(right, sizes, left_layout, right_layout)?),
            _ => bail!("matrix product: the matrices are not on one device"),
        };
        let pointer = address(&storage)?;
        Ok(Output { storage, shape: Shape::from((m, n)), pointer })
    }

    /// Starts a kernel of a module (its source file's name).
    ///
    /// The arguments must be those of the kernel: nothing can check them.
    pub(crate) fn launch(&self, module: &'static str, kernel: &str, grid: Grid, args: &[Arg<'_>]) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        if grid.blocks[1] > 65_535 || grid.blocks[2] > 65_535 {
            bail!("{kernel}: a grid of {:?} blocks is more than a GPU takes; use a smaller batch", grid.blocks);
        }
        match &self.0 {
            #[cfg(feature = "emulate-kernels")]
            Device::Cpu => emulated::launch(kernel, grid, args),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::launch(device, module, kernel, grid, args),
            _ => bail!("{module}, {kernel}: the kernels are not part of this build"),
        }
    }
}

/// Contiguous tensors as arguments.
pub(crate) fn args_of(tensors: &[&Tensor]) -> Result<Vec<Arg<'static>>> {
    tensors.iter().map(|tensor| Ok(Input::new(tensor)?.arg())).collect()
}

/// The values as float32, which is how kernels take parameters; without a graph, contiguous.
pub(crate) fn parameters(tensor: &Tensor) -> Result<Tensor> {
    tensor.detach().to_dtype(DType::F32)?.contiguous()
}
