//! How exactly a GPU computes; the CPU computes in float32.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How products of matrices and convolutions are computed on a GPU. Parameters, statistics, norms, softmax, losses and updates are float32 in all
/// of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum GpuPrecision {
    /// float32 throughout
    #[default]
    F32,
    /// float32 in memory; factors of products are shortened to 10 bits of mantissa
    Tf32,
    /// bfloat16 activations and factors
    Bf16,
    /// float16 activations and factors; only for precompute: train refuses it
    F16,
}

impl GpuPrecision {
    /// Whether this is the default, which configs leave out so that older records keep their identity.
    pub fn is_default(&self) -> bool {
        *self == GpuPrecision::F32
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            GpuPrecision::F32 => "f32",
            GpuPrecision::Tf32 => "tf32",
            GpuPrecision::Bf16 => "bf16",
            GpuPrecision::F16 => "f16",
        }
    }
}
