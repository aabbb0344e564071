//! Strided copies on a GPU.

use candle_core::{Result, Tensor, bail};

use crate::device::{Arg, Gpu, Grid, Input, suffix};

const MODULE: &str = "strided_copy";
/// Most axes of a copy, as in `kernel.cu`, after those that lie one behind the other are joined.
const AXES: usize = 12;
/// Side of the tile that a block transposes, as in `kernel.cu`.
const TILE: usize = 32;

/// Most matrices that one launch transposes.
const MATRICES: usize = 65_535;

/// The axes of a tensor, outermost first, each a size and a stride; neighbours that one stride covers are joined, and sizes of 1 left out.
fn joined_axes(x: &Tensor) -> Vec<(usize, usize)> {
    let mut axes: Vec<(usize, usize)> = Vec::new();
    for (&size, &stride) in x.dims().iter().zip(x.stride()).filter(|(size, _)| **size != 1) {
        match axes.last_mut() {
            Some((outer, outer_stride)) if *outer_stride == stride * size => (*outer, *outer_stride) = (*outer * size, stride),
            _ => axes.push((size, stride)),
        }
    }
    axes
}

/// As [`super::contiguous`].
pub(super) fn copy(x: &Tensor) -> Result<Tensor> {
    let (gpu, n, suffix) = (Gpu::of(x), x.elem_count(), suffix(x.dtype())?);
    let (out, input) = (gpu.output(x.dtype(), x.shape())?, Input::strided(x)?);
    let mut axes = joined_axes(x);
    // Two axes that change places, in each of a number of matrices: rows, and columns with their stride.
    let matrices = match axes[..] {
        [rows @ (_, 1), columns] => Some(((1, 0), rows.0, columns)),
        [matrices, rows @ (_, 1), columns] if matrices.0 <= MATRICES => Some((matrices, rows.0, columns)),
        _ => None,
    };
    if let Some(((matrices, between), rows, (columns, stride))) = matrices {
        let sizes = [rows, columns, stride].map(|n| Arg::Int(n as i32));
        let args = [&[input.arg(), out.arg()][..], &sizes, &[Arg::Size(between as u64)]].concat();
        let grid = Grid::blocks([columns.div_ceil(TILE) as u32, rows.div_ceil(TILE) as u32, matrices as u32]);
        // SAFETY: each of the matrices has `columns` rows of at least `rows` elements in memory, and as many in the result.
        unsafe { gpu.launch(MODULE, &format!("transpose_{suffix}"), grid, &args)? };
        return Ok(out.tensor());
    }
    if axes.len() > AXES {
        bail!("a copy of {:?} with strides {:?} has too many axes", x.dims(), x.stride());
    }
    let count = axes.len();
    axes.resize(AXES, (1, 0));
    // Sizes, then strides.
    let words: Vec<u64> = axes.iter().map(|axis| axis.0 as u64).chain(axes.iter().map(|axis| axis.1 as u64)).collect();
    let args = [input.arg(), out.arg(), Arg::LongWords(&words), Arg::Int(count as i32), Arg::Size(n as u64)];
    // SAFETY: sizes and strides are those of `x`, whose elements the storage holds; the result has as many elements.
    unsafe { gpu.launch(MODULE, &format!("strided_copy_{suffix}"), Grid::over(n), &args)? };
    Ok(out.tensor())
}

/// As [`super::with_zeros`], of a contiguous tensor.
pub(super) fn with_zeros(x: &Tensor, axis: usize, before: usize, after: usize) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let Some(total) = dims.get_mut(axis) else { bail!("zeros along axis {axis} of {:?}", x.dims()) };
    let len = *total;
    *total += before + after;
    let sizes = [len, *total, before, x.dims()[axis + 1..].iter().product()].map(|n| Arg::Unsigned(n as u32));
    let (gpu, n) = (Gpu::of(x), dims.iter().product());
    let out = gpu.output(x.dtype(), dims)?;
    let args = [&[Input::new(x)?.arg(), out.arg(), Arg::Size(n as u64)][..], &sizes].concat();
    // SAFETY: the sizes are those of both tensors.
    unsafe { gpu.launch(MODULE, &format!("with_zeros_{}", suffix(x.dtype())?), Grid::over(n), &args)? };
    Ok(out.tensor())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::uniform;

    #[test]
    fn neighbouring_axes_are_joined() -> Result<()> {
        let x = uniform(&[2, 3, 4, 5], 1)?;
        assert_eq!(joined_axes(&x), [(120, 1)]);
        assert_eq!(joined_axes(&x.narrow(1, 0, 2)?), [(2, 60), (40, 1)]);
        assert_eq!(joined_axes(&x.permute((0, 2, 3, 1))?), [(2, 60), (20, 1), (3, 20)]);
        assert_eq!(joined_axes(&x.narrow(0, 0, 1)?.broadcast_as((7, 3, 4, 5))?), [(7, 0), (60, 1)]);
        Ok(())
    }
}

#[cfg(all(test, feature = "cuda"))]
mod kernel_tests {
    use candle_core::Result;

    use crate::testing::kernels::{FORMATS, assert_close, on_device};
    use crate::testing::uniform;

    #[test]
    fn zeros_around_a_part() -> Result<()> {
        for dtype in FORMATS {
            let x = uniform(&[3, 4, 5], 1)?.to_dtype(dtype)?;
            on_device(|device| {
                let there = x.to_device(device)?;
                for (axis, before, after) in [(0, 1, 0), (1, 2, 3), (2, 0, 4)] {
                    let (got, want) = (super::with_zeros(&there, axis, before, after)?, x.pad_with_zeros(axis, before, after)?);
                    assert_close(&format!("axis {axis}"), &got, &want, 0.0)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Transposed matrices of sizes around a tile's, axes in any order, and repeated ones.
    #[test]
    fn copies_of_any_strides() -> Result<()> {
        for dtype in FORMATS {
            let x = uniform(&[2, 3, 35, 40], 1)?.to_dtype(dtype)?;
            let small = uniform(&[2, 3, 2, 2, 2, 5, 2, 2], 2)?.to_dtype(dtype)?;
            let many = uniform(&[2, 3, 2, 2, 2, 5, 2, 2, 2, 3], 3)?.to_dtype(dtype)?;
            on_device(|device| {
                let (there, small_there) = (x.to_device(device)?, small.to_device(device)?);
                let many_there = many.to_device(device)?;
                for axes in [[0, 1, 3, 2], [0, 2, 3, 1], [3, 2, 1, 0], [1, 0, 2, 3], [2, 3, 0, 1]] {
                    let (got, want) = (super::copy(&there.permute(axes)?)?, x.permute(axes)?.contiguous()?);
                    assert_close(&format!("{axes:?}"), &got, &want, 0.0)?;
                }
                let axes = &[7, 5, 0, 3, 1, 2, 4, 6][..];
                assert_close("eight axes", &super::copy(&small_there.permute(axes)?)?, &small.permute(axes)?.contiguous()?, 0.0)?;
                let axes = &[7, 9, 5, 0, 3, 1, 8, 2, 4, 6][..];
                assert_close("ten axes", &super::copy(&many_there.permute(axes)?)?, &many.permute(axes)?.contiguous()?, 0.0)?;
                let repeated = |t: &candle_core::Tensor| t.narrow(0, 1, 1)?.broadcast_as((4, 3, 35, 40));
                assert_close("repeated", &super::copy(&repeated(&there)?)?, &repeated(&x)?.contiguous()?, 0.0)?;
                let part = |t: &candle_core::Tensor| t.narrow(3, 7, 20)?.narrow(1, 1, 2);
                assert_close("part", &super::copy(&part(&there)?)?, &part(&x)?.contiguous()?, 0.0)
            })?;
        }
        Ok(())
    }
}
