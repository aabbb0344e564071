//! Tensor operations that candle lacks or does slowly, each with a CPU and a CUDA path behind one function.
//!
//! An operation is a folder: `mod.rs` documents it (definition, shapes, source) and chooses the path, `cpu.rs` is the CPU path, `cuda.rs`
//! launches the GPU's kernels, which are in `kernel.cu`. Callers never check the device.
//!
//! Operations that a trained model needs take [`Value`]s and record themselves on a [`Tape`] where a gradient is wanted.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use sam_ladder_ops::gelu;
//!
//! let y = gelu(&Tensor::new(&[-1.0f32, 0.0, 1.0], &Device::Cpu)?.into())?;
//! assert_eq!(y.tensor().to_vec1::<f32>()?[1], 0.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod add;
mod attention;
mod batch_norm;
mod batch_norm_pool;
mod column_sums;
mod conv2d;
mod conv_transpose;
mod convert;
mod cpu;
pub mod device;
mod dice_ce;
mod dispatch;
mod elementwise;
mod error_line;
mod frozen;
mod gate;
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
mod prefix_attention;
mod rel_pos_attention;
mod residual_stream;
mod segmentation_loss;
mod strided_copy;
mod tape;
#[cfg(test)]
mod testing;
mod token_conv;
mod token_linear;

pub use add::add;
pub use attention::{multi_head_attention, multi_head_cross_attention, multi_head_self_attention};
pub use batch_norm::{
    BatchNormGradients, BatchNormParams, BatchStatistics, GradientSums, NormalizedShortcut, Tail, batch_norm_inference,
    batch_statistics, batch_statistics_followed, normalize, normalize_backward, normalize_backward_summed, relu_backward_summed,
};
pub use batch_norm_pool::{Places, normalize_relu_max_pool, normalize_relu_max_pool_backward};
pub use conv_transpose::{conv_transpose2d_2x2, image_to_patches, patches_to_image};
pub use conv2d::Conv2d;
pub use convert::{convert_all, sum_second_axis, to_format};
pub use cpu::vector_instructions;
pub use device::F32Math;
pub use dice_ce::{LossParts, dice_ce};
pub use elementwise::{add_relu, relu, relu_backward, relu_backward_sum};
pub use error_line::error_line;
pub use frozen::{FrozenLinear, FrozenNorm};
pub use gate::{add_number, mix, sigmoid, write_gate_means};
pub use gather::{Stored, as_f32, gather, gather_bytes, gather_bytes_to, gather_to};
pub use gelu::gelu;
pub use layer_norm::{add_layer_norm, layer_norm};
pub use linear::{linear, linear_groups, product_transposed};
pub use matmul::bf16_instructions;
pub use max_pool::max_pool2d_3x3_s2_p1;
pub use numerics::Numerics;
pub use optimizer::{Slot, UpdateRule, update};
pub use patch_embed::PatchEmbed;
pub use prefix_attention::PrefixAttention;
pub use rel_pos_attention::{RelPosAttention, TokenGrid};
pub use residual_stream::{ResidualStream, Tile};
pub use segmentation_loss::{Region, SegmentationLoss, segmentation_loss};
pub use strided_copy::contiguous;
pub use tape::{Gradients, Tape, Value, record, record_composed};
pub use token_conv::TokenConv;
pub use token_linear::token_linear;

/// Operations composed of candle's, as the tests' references.
pub mod composed {
    pub use crate::batch_norm::batch_norm_train_composed;
    pub use crate::layer_norm::{layer_norm_2d_composed, layer_norm_composed};
    pub use crate::linear::linear_composed;
    pub use crate::max_pool::max_pool2d_3x3_s2_p1_composed;
}
