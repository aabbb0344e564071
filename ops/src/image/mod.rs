//! Image resampling as SciPy and PyTorch do it.

pub mod bicubic;
pub mod ndimage;
