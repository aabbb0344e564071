//! `--precision`.

use clap::ValueEnum;
use sam_ladder_schemas::precision::Precision;

/// How exactly a GPU computes, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionName {
    /// float32, nothing shortened
    F32,
    /// float32, factors of products shortened to 10 bits of mantissa
    Tf32,
    /// bfloat16 activations
    Bf16,
    /// float16 activations, for the encoder alone
    F16,
}

impl From<PrecisionName> for Precision {
    fn from(typed: PrecisionName) -> Self {
        match typed {
            PrecisionName::F32 => Precision::F32,
            PrecisionName::Tf32 => Precision::Tf32,
            PrecisionName::Bf16 => Precision::Bf16,
            PrecisionName::F16 => Precision::F16,
        }
    }
}
