//! Image resampling as in SciPy and PyTorch.

pub mod affine;
pub mod bicubic;
pub mod ndimage;
