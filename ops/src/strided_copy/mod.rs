//! A contiguous copy of a tensor of any strides (axes in another order, a repeated axis), or with zeros around a part of an axis.
//!
//! On a GPU it replaces candle's copy, which uploads sizes and strides each time.

mod cuda;

use candle_core::{Result, Tensor};

use crate::dispatch::{Path, path};

/// The tensor itself if it is contiguous, otherwise a contiguous copy.
///
/// # Errors
/// Those of the tensor library.
pub fn contiguous(x: &Tensor) -> Result<Tensor> {
    match path(&[x]) {
        Path::Cuda if !x.is_contiguous() => cuda::copy(x),
        _ => x.contiguous(),
    }
}

/// A copy with zeros along an axis: `before` in front of the tensor's elements, `after` behind them.
///
/// # Errors
/// Those of the tensor library.
pub(crate) fn with_zeros(x: &Tensor, axis: usize, before: usize, after: usize) -> Result<Tensor> {
    match path(&[x]) {
        Path::Cuda => cuda::with_zeros(&contiguous(x)?, axis, before, after),
        _ => x.pad_with_zeros(axis, before, after),
    }
}
