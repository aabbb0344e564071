//! A contiguous copy of a tensor of any strides: axes in another order, a repeated axis.
//!
//! On a GPU it replaces candle's copy, which uploads sizes and strides each time.

mod cuda;

use candle_core::{Result, Tensor};

use crate::dispatch::{Path, path};

/// The tensor itself if it is contiguous, otherwise a contiguous copy.
///
/// # Errors
/// Those of the tensor library.
pub(crate) fn contiguous(x: &Tensor) -> Result<Tensor> {
    match path(&[x]) {
        Path::Cuda if !x.is_contiguous() => cuda::copy(x),
        _ => x.contiguous(),
    }
}
