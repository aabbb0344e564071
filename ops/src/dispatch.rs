//! Chooses the path of an operation: the only place that checks where tensors are.

use candle_core::{DType, Tensor};

use crate::device;

/// How an operation is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// By kernels on the GPU that holds the tensors: the operation's `cuda.rs`.
    Cuda,
    /// By the processor, in float32 or, for some operations, of bfloat16: the operation's `cpu.rs`.
    Cpu,
    /// By candle's operations, for other number formats and devices.
    Composed,
}

/// The path of an operation on these tensors.
pub(crate) fn path(tensors: &[&Tensor]) -> Path {
    if device::runs_on(tensors) {
        Path::Cuda
    } else if tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32) {
        Path::Cpu
    } else {
        Path::Composed
    }
}

/// The path of an operation whose CPU path takes activations in bfloat16, too.
pub(crate) fn activation_path(tensors: &[&Tensor]) -> Path {
    let supported = |t: &&Tensor| t.device().is_cpu() && matches!(t.dtype(), DType::F32 | DType::BF16);
    if tensors.iter().all(supported) { Path::Cpu } else { path(tensors) }
}
