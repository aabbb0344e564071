//! How exactly a GPU computes; the CPU computes in float32.

use serde::{Deserialize, Serialize};

/// How products of matrices and convolutions are taken on a GPU. Parameters, statistics, norms, softmax, losses and updates are float32 in all
/// of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32, and nothing shortened.
    #[default]
    F32,
    /// float32 in memory, factors shortened to a mantissa of 10 bits.
    Tf32,
    /// bfloat16 activations and factors.
    Bf16,
    /// float16 activations and factors; the encoder alone.
    F16,
}

impl Precision {
    /// Whether it is the one that configs leave out, so that what was written before there was a choice keeps its identity.
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
