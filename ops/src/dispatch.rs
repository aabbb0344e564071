//! Chooses the path of an operation: the only place that checks where tensors are.

use candle_core::{DType, Tensor};

use crate::device;

/// How an operation is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// By kernels on the GPU that holds the tensors: the operation's `cuda.rs`.
    Cuda,
    /// By the processor, of float32 or bfloat16: the operation's `cpu.rs`.
    Cpu,
    /// By candle's operations, for other number formats and devices.
    Composed,
}

/// The path of an operation on these tensors.
pub(crate) fn path(tensors: &[&Tensor]) -> Path {
    let on_cpu = |t: &&Tensor| t.device().is_cpu() && matches!(t.dtype(), DType::F32 | DType::BF16);
    if device::runs_on(tensors) {
        Path::Cuda
    } else if tensors.iter().all(on_cpu) {
        Path::Cpu
    } else {
        Path::Composed
    }
}
