//! Adds the partial sums of a kernel's blocks.

use candle_core::{DType, Result, Shape, Tensor};

use crate::device::{Arg, Gpu, Grid, Output};

/// The sums over `partial`, `[sums, splits]` in float64, in the order of the splits, as float32 in `shape`, which must have `sums` elements.
pub(crate) fn sum_partials(gpu: &Gpu, partial: &Output, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let sums = shape.elem_count();
    let out = gpu.output(DType::F32, shape)?;
    let args = [partial.arg(), out.arg(), Arg::Int((partial.len() / sums.max(1)) as i32), Arg::Int(sums as i32)];
    // SAFETY: `partial` has `sums` rows of as many float64 numbers as the first size says, the result `sums` float32 numbers.
    unsafe { gpu.launch("partial_sums", "sum_partials", Grid::over(sums), &args)? };
    Ok(out.tensor())
}
