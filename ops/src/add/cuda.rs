//! Sums of tensors on a GPU.

use candle_core::{DType, Result, Tensor, bail};

use crate::device::{Arg, Gpu, Grid, Input, map, suffix};
use crate::strided_copy::contiguous;

/// As [`super::add`].
pub(super) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    // SAFETY: `add` maps two inputs.
    Ok(unsafe { map("add", "add", &[&contiguous(a)?, &contiguous(b)?], None)? }.tensor())
}

/// `x + delta + rows`, where `x` may be absent and `rows` are repeated.
///
/// # Shapes
/// x and delta have as many elements, rows divide them; x and rows float32, the result float32 in the shape of delta
///
/// # Errors
/// Others; tensors that are not contiguous.
pub(crate) fn add_widened(x: Option<&Tensor>, delta: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let (n, period) = (delta.elem_count(), rows.elem_count());
    let fits = x.is_none_or(|x| x.elem_count() == n && x.dtype() == DType::F32) && rows.dtype() == DType::F32;
    if !fits || period == 0 || !n.is_multiple_of(period) {
        bail!("add: {x:?}, {delta:?} and {rows:?} do not go together");
    }
    let gpu = Gpu::of(delta);
    let out = gpu.output(DType::F32, delta.shape())?;
    let (x, narrow, repeated) = (x.map(Input::new).transpose()?, Input::new(delta)?, Input::new(rows)?);
    let wide = x.iter().chain([&repeated]).all(|input| input.is_aligned(DType::F32));
    let fours = wide && narrow.is_aligned(delta.dtype()) && period.is_multiple_of(4);
    let args = [
        Arg::Pointer(x.as_ref().map_or(0, Input::pointer)),
        narrow.arg(),
        repeated.arg(),
        out.arg(),
        Arg::Size(n as u64),
        Arg::Size(period as u64),
        Arg::Int(i32::from(fours)),
    ];
    let kernel = format!("add_widened_{}", suffix(delta.dtype())?);
    // SAFETY: `x`, if there, delta and the result have `n` elements, rows `period`, which divides n.
    unsafe { gpu.launch("add", &kernel, Grid::over(n.div_ceil(4)), &args)? };
    Ok(out.tensor())
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Result};

    use crate::testing::kernels::{FORMATS, assert_close, on_device, tolerance};
    use crate::testing::uniform;

    #[test]
    fn sums_that_are_wider_than_a_part() -> Result<()> {
        for dtype in FORMATS {
            for (b, n, c) in [(3, 5, 7), (2, 6, 8), (1, 1, 1)] {
                let (x, delta) = (uniform(&[b * n, c], 1)?, uniform(&[b * n, c], 2)?.to_dtype(dtype)?);
                let rows = uniform(&[n, c], 3)?;
                on_device(|device| {
                    let [x_there, delta_there, rows_there] = [&x, &delta, &rows].map(|t| t.to_device(device));
                    let (x_there, delta_there, rows_there) = (x_there?, delta_there?, rows_there?);
                    let repeated = rows.broadcast_as((b, n, c))?.contiguous()?.reshape((b * n, c))?;
                    let want = (delta.to_dtype(DType::F32)? + repeated)?;
                    let got = super::add_widened(None, &delta_there, &rows_there)?;
                    assert_close(&format!("two of {dtype:?}"), &got, &want, 1e-6)?;
                    let got = super::add_widened(Some(&x_there), &delta_there, &rows_there)?;
                    assert_close(&format!("three of {dtype:?}"), &got, &(&x + want)?, 1e-6)
                })?;
            }
        }
        Ok(())
    }

    #[test]
    fn sums_of_two() -> Result<()> {
        for dtype in FORMATS {
            for n in [1, 6, 1024, 5003] {
                let (a, b) = (uniform(&[n, 2], 1)?.to_dtype(dtype)?, uniform(&[2, n], 2)?.to_dtype(dtype)?);
                on_device(|device| {
                    let got = super::super::add(&a.to_device(device)?, &b.to_device(device)?.t()?)?;
                    assert_close(&format!("{n} of {dtype:?}"), &got, &(&a + b.t()?)?, tolerance(dtype))
                })?;
            }
        }
        Ok(())
    }
}
