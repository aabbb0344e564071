//! Tensor operations that candle lacks or does slowly, each with a CPU path and a CUDA path behind one function.

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod batch_norm_pool;
pub mod bicubic;
pub mod conv2d;
pub mod conv_transpose;
mod cpu;
mod device;
pub mod dice_ce;
pub mod elementwise;
pub mod gather;
pub mod gpu;
pub mod graph;
#[cfg(target_arch = "x86_64")]
mod kernel;
pub mod linear;
pub mod matmul;
pub mod ndimage;
pub mod norm;
pub mod optimizer;
pub mod packed;
pub mod pool;
pub mod precision;
pub mod staging;

mod simd;
#[cfg(test)]
mod testing;
