//! Tensor operations that candle lacks or does slowly, each with a CPU and a CUDA path behind one function.
//!
//! An operation is a folder: `mod.rs` documents it (definition, shapes, source) and chooses the path, `cpu.rs` is the CPU path, `cuda.rs`
//! launches the GPU's kernels, which are in `kernel.cu`. Callers never check the device.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use sam_ladder_ops::gelu;
//!
//! // GELU of three numbers, and the gradient of their sum: Φ(x) + x·φ(x).
//! let x = Var::new(&[-1.0f32, 0.0, 1.0], &Device::Cpu)?;
//! let y = gelu(x.as_tensor())?;
//! assert_eq!(y.to_vec1::<f32>()?[1], 0.0);
//! let gradients = y.sum_all()?.backward()?;
//! let slope: Vec<f32> = gradients.get(&x).ok_or("no gradient")?.to_vec1()?;
//! assert_eq!(slope[1], 0.5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attention;
mod batch_norm;
mod batch_norm_pool;
mod conv2d;
mod conv_transpose;
mod cpu;
pub mod device;
mod dice_ce;
mod dispatch;
mod elementwise;
mod frozen;
mod gather;
mod gelu;
pub mod image;
mod layer_norm;
mod linear;
pub mod matmul;
mod max_pool;
mod numerics;
mod optimizer;
mod partial_sums;
mod patch_embed;
mod rel_pos_attention;
mod residual_stream;
#[cfg(test)]
mod testing;
mod token_conv;

pub use attention::{attention, multi_head_attention};
pub use batch_norm::{
    BatchNormGradients, BatchNormParams, BatchStatistics, Tail, batch_norm_inference, batch_norm_train, batch_statistics, follow,
    normalize, normalize_backward,
};
pub use batch_norm_pool::{normalize_relu_max_pool, normalize_relu_max_pool_backward};
pub use conv_transpose::conv_transpose2d_2x2;
pub use conv2d::Conv2d;
pub use cpu::vector_instructions;
pub use device::F32Math;
pub use dice_ce::{LossParts, dice_ce};
pub use elementwise::{add_relu, mix, relu_backward, relu_backward_sum};
pub use frozen::{FrozenLinear, FrozenNorm};
pub use gather::{Stored, as_f32, gather, gather_bytes};
pub use gelu::gelu;
pub use layer_norm::{layer_norm, layer_norm_2d};
pub use linear::linear;
pub use max_pool::max_pool2d_3x3_s2_p1;
pub use numerics::Numerics;
pub use optimizer::{Slot, UpdateRule, update};
pub use patch_embed::PatchEmbed;
pub use rel_pos_attention::{RelPosAttention, TokenGrid};
pub use residual_stream::{ResidualStream, Tile};
pub use token_conv::TokenConv;

/// Operations composed of candle's, as the tests' references.
pub mod composed {
    pub use crate::batch_norm::batch_norm_train_composed;
    pub use crate::conv_transpose::conv_transpose2d_2x2_composed;
    pub use crate::layer_norm::{layer_norm_2d_composed, layer_norm_composed};
    pub use crate::linear::linear_composed;
    pub use crate::max_pool::max_pool2d_3x3_s2_p1_composed;
}
