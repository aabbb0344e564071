//! Tensor operations that candle lacks or does slowly, each with a CPU path and a CUDA path behind one function.

pub mod attention;
pub mod batch_norm;
pub mod batch_norm_pool;
pub mod conv2d;
pub mod conv_transpose;
mod cpu;
pub mod device;
pub mod dice_ce;
pub mod elementwise;
pub mod gather;
pub mod gelu;
pub mod image;
pub mod layer_norm;
pub mod linear;
pub mod matmul;
pub mod max_pool;
pub mod optimizer;
pub mod precision;
pub mod rel_pos_attention;

#[cfg(test)]
mod testing;
