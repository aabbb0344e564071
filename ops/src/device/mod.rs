//! The GPU: launching kernels, memory, streams and graphs.
//!
//! Nothing here waits for the device, but what says so. On a machine without a GPU, `make test-cuda-host` runs all of it against a driver on the host.
//!
//! Numbers are float32, bfloat16 or float16; statistics, sums, softmax and parameters are float32 throughout.
#![cfg_attr(
    not(feature = "cuda"),
    allow(dead_code, unused_variables, reason = "a build for the CPU type-checks what launches kernels, and has none to launch")
)]

#[cfg(feature = "cuda")]
mod cuda;
mod cuda_graph;
mod download;
mod launch_args;
mod map;
mod memory;
mod open;
mod overwrite;
mod product;
mod staging;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

pub use cuda_graph::{Graph, can_capture, capture, prepare};
pub use download::{Download, Downloads};
pub(crate) use launch_args::{Arg, Grid, THREADS};
pub(crate) use map::map;
pub(crate) use memory::{Input, Output, args_of};
pub use open::{DeviceMemory, has_kernels, memory, open, queues_work, synchronize};
pub use overwrite::{copy_into, overwrite};
pub use product::F32Math;
pub(crate) use product::{matmul, product};
pub use staging::Staging;

/// Blocks that share the sum of `n` terms of one channel: two terms or more for each thread. They follow from the sizes only, so that the
/// order of the sum does too.
pub(crate) fn splits(n: usize) -> usize {
    n.div_ceil(2 * launch_args::THREADS as usize).clamp(1, 32)
}

/// The GPU that kernels run on.
#[derive(Debug, Clone)]
pub(crate) struct Gpu(Device);

/// Whether kernels run on these tensors.
pub(crate) fn runs_on(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| has_kernels(t.device()))
        && tensors.iter().all(|t| matches!(t.dtype(), DType::F32 | DType::BF16 | DType::F16))
        // Indices within a plane are 32 bits wide.
        && tensors.iter().all(|t| t.elem_count() < 1 << 31)
}

/// A number format's suffix in kernel names.
pub(crate) fn suffix(dtype: DType) -> Result<&'static str> {
    Ok(match dtype {
        DType::F32 => "f32",
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        other => bail!("expected float32, bfloat16 or float16 on the GPU, found {other:?}"),
    })
}

impl Gpu {
    /// The device of `tensor`.
    pub(crate) fn of(tensor: &Tensor) -> Self {
        Self(tensor.device().clone())
    }

    /// Memory of unspecified content.
    pub(crate) fn output(&self, dtype: DType, shape: impl Into<Shape>) -> Result<Output> {
        Output::unwritten(&self.0, dtype, shape.into())
    }

    /// Starts a kernel of a module, which has the name of the operation's folder.
    ///
    /// # Safety
    /// `args` are the parameters that the kernel's source declares, in order and of the right types. With these sizes and this grid the kernel
    /// stays within the memory behind the pointers, and that memory lives until the launch is queued.
    pub(crate) unsafe fn launch(&self, module: &'static str, kernel: &str, grid: Grid, args: &[Arg<'_>]) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        if grid.blocks[1] > 65_535 || grid.blocks[2] > 65_535 {
            bail!("{kernel}: a grid of {:?} blocks is more than a GPU takes; use a smaller batch", grid.blocks);
        }
        match &self.0 {
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Device::Cuda(device) => unsafe { cuda::launch(device, module, kernel, grid, args) },
            _ => bail!("{module}, {kernel}: the kernels are not part of this build"),
        }
    }
}

/// The values in the form in which kernels take parameters: float32, contiguous, without a graph.
pub(crate) fn parameters(tensor: &Tensor) -> Result<Tensor> {
    tensor.detach().to_dtype(DType::F32)?.contiguous()
}
