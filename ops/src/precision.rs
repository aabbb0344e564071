//! How exactly a GPU computes.

use std::sync::atomic::{AtomicU8, Ordering};

use candle_core::DType;

/// How products of matrices and convolutions are taken on a GPU. Statistics, sums, softmax, norms, losses and the optimizer are float32
/// throughout, and so are the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// float32 as on the CPU: the matrix units' shortened float32 is off.
    #[default]
    F32,
    /// float32 in memory; factors are shortened to 10 bits of mantissa (TF32).
    Tf32,
    /// Activations and their gradients are bfloat16, and factors with them.
    Bf16,
    /// The same with float16; for the frozen encoder alone.
    F16,
}

impl Precision {
    /// The number format of activations.
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 | Precision::Tf32 => DType::F32,
            Precision::Bf16 => DType::BF16,
            Precision::F16 => DType::F16,
        }
    }
}

/// 1 while products may shorten float32.
static TF32: AtomicU8 = AtomicU8::new(0);

/// Lets the products of this process shorten float32, or not: for the matrix products of candle and for the convolutions of cuDNN.
pub fn allow_tf32(allowed: bool) {
    TF32.store(u8::from(allowed), Ordering::Relaxed);
    #[cfg(feature = "cuda")]
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(allowed);
}

/// Whether convolutions may shorten float32.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only cuDNN asks"))]
pub(crate) fn tf32_allowed() -> bool {
    TF32.load(Ordering::Relaxed) == 1
}
