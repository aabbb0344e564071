//! How exactly a device computes. The CPU computes in float32, or the frozen encoder in bfloat16 if its processor can.

use candle_core::{DType, Device};

use crate::device::{F32Math, has_kernels};
use crate::matmul::bf16_instructions;

/// Number formats of activations and products. Statistics, sums, softmax, norms, losses, the optimizer and the parameters are always
/// float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Numerics {
    /// float32.
    #[default]
    F32,
    /// float32 in memory; factors of products are rounded to 10 bits of mantissa.
    Tf32,
    /// Activations, their gradients and the factors of products are bfloat16.
    Bf16,
    /// The same with float16; only for the frozen encoder.
    F16,
}

impl Numerics {
    /// The number format of activations.
    pub fn dtype(self) -> DType {
        match self {
            Numerics::F32 | Numerics::Tf32 => DType::F32,
            Numerics::Bf16 => DType::BF16,
            Numerics::F16 => DType::F16,
        }
    }

    /// How float32 factors enter products.
    pub fn math(self) -> F32Math {
        if self == Numerics::Tf32 { F32Math::Tf32 } else { F32Math::Exact }
    }

    /// Whether a device supports it.
    pub fn supported_on(self, device: &Device) -> bool {
        self == Numerics::F32
            || has_kernels(device)
            || (self == Numerics::Bf16 && device.is_cpu() && bf16_instructions().is_some())
    }
}
