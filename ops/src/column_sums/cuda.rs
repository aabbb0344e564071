//! Sums over rows on a GPU.

use candle_core::{DType, Result, Tensor};

use crate::device::{Arg, Gpu, Grid, Input, suffix};
use crate::partial_sums::sum_partials;

const MODULE: &str = "column_sums";
/// Columns of one block, as in `kernel.cu`.
const COLUMNS: usize = 64;
/// Rows of one block, at least.
const ROWS: usize = 64;

/// Blocks that share the rows. They follow from the size only, so that the order of the sum does too.
fn splits(rows: usize) -> usize {
    rows.div_ceil(ROWS).clamp(1, 256)
}

/// As [`super::column_sums`], of a contiguous matrix.
pub(super) fn column_sums(x: &Tensor) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let (gpu, splits) = (Gpu::of(x), splits(rows));
    let partial = gpu.output(DType::F64, (columns, splits))?;
    let args = [Input::new(x)?.arg(), partial.arg(), Arg::Int(rows as i32), Arg::Int(columns as i32)];
    let grid = Grid::blocks([splits as u32, columns.div_ceil(COLUMNS) as u32, 1]);
    // SAFETY: `x` is [rows, columns] of the format; each column has a float64 number for each split.
    unsafe { gpu.launch(MODULE, &format!("column_sums_{}", suffix(x.dtype())?), grid, &args)? };
    sum_partials(&gpu, &partial, columns)
}

/// The gradients of a layer norm's scale and shift, `[2, c]`: the sums of gradient·normalised x and of the gradient.
///
/// # Shapes
/// x and gradient `[rows, c]` of one format; statistics `[2, rows]`: mean and inverse deviation of each row.
///
/// # Errors
/// Those of the device.
pub(crate) fn norm_column_sums(x: &Tensor, gradient: &Tensor, statistics: &Tensor) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let (gpu, splits) = (Gpu::of(x), splits(rows));
    let partial = gpu.output(DType::F64, (2, columns, splits))?;
    let inputs = [Input::new(x)?, Input::new(gradient)?, Input::new(statistics)?];
    let sizes = [Arg::Int(rows as i32), Arg::Int(columns as i32)];
    let args = [&inputs.each_ref().map(Input::arg)[..], &[partial.arg()], &sizes].concat();
    let grid = Grid::blocks([splits as u32, columns.div_ceil(COLUMNS) as u32, 1]);
    // SAFETY: as above, with two numbers for each row, and two float64 numbers for each column and split.
    unsafe { gpu.launch(MODULE, &format!("norm_column_sums_{}", suffix(x.dtype())?), grid, &args)? };
    sum_partials(&gpu, &partial, (2, columns))
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::Result;

    use crate::testing::kernels::{FORMATS, assert_close, on_device, tolerance};
    use crate::testing::uniform;

    #[test]
    fn sums_over_rows() -> Result<()> {
        for dtype in FORMATS {
            for (rows, columns) in [(1, 1), (5, 7), (70, 130), (300, 64)] {
                let x = uniform(&[rows, columns], 1)?.to_dtype(dtype)?;
                let want = super::super::column_sums(&x.to_dtype(candle_core::DType::F32)?)?;
                on_device(|device| {
                    assert_close("column sums", &super::column_sums(&x.to_device(device)?)?, &want, tolerance(dtype))
                })?;
            }
        }
        Ok(())
    }
}
