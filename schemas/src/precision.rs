//! How exactly a device computes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How products of matrices and convolutions are computed. Parameters, statistics, norms, softmax, losses and updates are float32 in all of them.
/// A GPU computes in each of them. The CPU computes in `F32`, and in `Bf16` if the processor has AVX512-BF16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Precision {
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

impl Precision {
    /// Whether this is the default, which configs leave out so that older records keep their identity.
    pub fn is_default(&self) -> bool {
        *self == Precision::F32
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
        }
    }
}
