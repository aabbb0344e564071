//! Tensor operations that candle lacks or does slowly, each with a CPU path and a path for other devices behind one function.

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod batch_norm_pool;
pub mod bicubic;
pub mod conv2d;
pub mod conv_transpose;
mod cpu;
pub mod elementwise;
#[cfg(target_arch = "x86_64")]
mod kernel;
pub mod linear;
pub mod matmul;
pub mod ndimage;
pub mod norm;
pub mod packed;
pub mod pool;
pub mod state_dict;

mod simd;
#[cfg(test)]
mod testing;
