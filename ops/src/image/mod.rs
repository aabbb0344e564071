//! Image resampling as in SciPy and PyTorch.

pub mod bicubic;
pub mod ndimage;
