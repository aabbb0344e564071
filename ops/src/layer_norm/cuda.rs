//! Layer norm on a GPU.

use candle_core::{DType, Result, Tensor, bail};

use crate::column_sums::norm_column_sums_cuda;
use crate::device::{Arg, Gpu, Grid, Input, Output, parameters, suffix};

const MODULE: &str = "layer_norm";

/// As [`super::layer_norm`], of a contiguous tensor.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    Ok(norm_of_sum(x, None, weight, bias, eps)?.0)
}

/// The layer norm of `x`, or of its sum with `added`, and that sum. Both are contiguous and of one format.
pub(super) fn norm_of_sum(
    x: &Tensor,
    added: Option<&Tensor>,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let channels = weight.elem_count();
    let rows = x.elem_count() / channels;
    let (w, b) = (parameters(weight)?, parameters(bias)?);
    let gpu = Gpu::of(x);
    let y = gpu.output(x.dtype(), x.shape())?;
    let sum = if added.is_some() { Some(gpu.output(x.dtype(), x.shape())?) } else { None };
    let added = added.map(Input::new).transpose()?;
    let args = [
        Input::new(x)?.arg(),
        added.as_ref().map_or(Arg::Pointer(0), Input::arg),
        Input::new(&w)?.arg(),
        Input::new(&b)?.arg(),
        sum.as_ref().map_or(Arg::Pointer(0), Output::arg),
        y.arg(),
        Arg::Int(rows as i32),
        Arg::Int(channels as i32),
        Arg::Float(eps as f32),
    ];
    let kernel = format!("layer_norm_{}", suffix(x.dtype())?);
    // SAFETY: x, y and, if there is a second term, that and the sum are [rows, channels] of one format, weight and bias [channels] of float32.
    unsafe { gpu.launch(MODULE, &kernel, Grid::warps(rows), &args)? };
    Ok((y.tensor(), sum.map_or_else(|| x.clone(), Output::tensor)))
}

/// The gradient of x and, if `of_parameters`, those of weight and bias, `[2, c]` of float32. x and the gradient are contiguous.
pub(super) fn layer_norm_backward(
    x: &Tensor,
    weight: &Tensor,
    gradient: &Tensor,
    eps: f64,
    of_parameters: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (channels, w) = (weight.elem_count(), parameters(weight)?);
    let rows = x.elem_count() / channels;
    let gpu = Gpu::of(x);
    let out = gpu.output(x.dtype(), x.shape())?;
    let statistics = if of_parameters { Some(gpu.output(DType::F32, (2, rows))?) } else { None };
    let args = [
        Input::new(x)?.arg(),
        Input::new(&w)?.arg(),
        Input::new(gradient)?.arg(),
        out.arg(),
        statistics.as_ref().map_or(Arg::Pointer(0), Output::arg),
        Arg::Int(rows as i32),
        Arg::Int(channels as i32),
        Arg::Float(eps as f32),
    ];
    let kernel = format!("layer_norm_backward_{}", suffix(x.dtype())?);
    // SAFETY: x, its gradient and the result's are [rows, channels] of one format, the weight [channels] of float32; two float32 numbers for
    // each row, or none.
    unsafe { gpu.launch(MODULE, &kernel, Grid::warps(rows), &args)? };
    let sums = match statistics {
        None => None,
        Some(statistics) => {
            let as_rows = |t: &Tensor| t.reshape((rows, channels));
            Some(norm_column_sums_cuda(&as_rows(x)?, &as_rows(gradient)?, &statistics.tensor())?)
        }
    };
    Ok((out.tensor(), sums))
}

/// Adds `delta` and `added` to the rows of `x`, in place, then norms them: a linear layer's product and bias, the residual sum and the norm in
/// one pass. `x` is float32, so that sums over many layers stay exact; delta and the result are of type `dtype`.
///
/// # Shapes
/// x and delta `[rows, c]`, added, weight and bias `[c]` of float32 → `[rows, c]`
///
/// # Errors
/// If shapes do not match.
pub(crate) fn add_layer_norm(
    x: &Tensor,
    (delta, added): (Option<&Tensor>, Option<&Tensor>),
    (weight, bias): (&Tensor, &Tensor),
    eps: f64,
    dtype: DType,
) -> Result<Tensor> {
    let (rows, channels) = x.dims2()?;
    super::check_channels("layer norm", channels, weight, bias)?;
    let fits = delta.is_none_or(|delta| delta.dims() == x.dims() && delta.dtype() == dtype)
        && added.is_none_or(|added| added.dims() == [channels])
        && [Some(x), added, Some(weight), Some(bias)].into_iter().flatten().all(|t| t.dtype() == DType::F32);
    if !fits {
        bail!("layer norm: rows {:?}, sum {delta:?} and bias {added:?} do not go together", x.dims());
    }
    let gpu = Gpu::of(x);
    let y = gpu.output(dtype, (rows, channels))?;
    let (delta, added) = (delta.map(Input::new).transpose()?, added.map(Input::new).transpose()?);
    let pointer = |input: &Option<Input<'_>>| Arg::Pointer(input.as_ref().map_or(0, Input::pointer));
    let args = [
        Input::new(x)?.arg(),
        pointer(&delta),
        pointer(&added),
        Input::new(weight)?.arg(),
        Input::new(bias)?.arg(),
        y.arg(),
        Arg::Int(rows as i32),
        Arg::Int(channels as i32),
        Arg::Float(eps as f32),
    ];
    let kernel = format!("add_layer_norm_{}", suffix(dtype)?);
    // SAFETY: x is [rows, channels] of float32, delta and y the same of `dtype`, the others [channels] of float32: just checked.
    unsafe { gpu.launch(MODULE, &kernel, Grid::warps(rows), &args)? };
    Ok(y.tensor())
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Result, Tensor};

    use super::add_layer_norm;
    use crate::testing::kernels::{FORMATS, assert_close, compare, on_device, tolerance};
    use crate::testing::uniform;

    #[test]
    fn layer_norms() -> Result<()> {
        for dtype in FORMATS {
            for (rows, c) in [(7, 256), (65, 33), (1, 1), (300, 64)] {
                let inputs = [uniform(&[rows, c], 1)?, uniform(&[c], 2)?, uniform(&[c], 3)?];
                compare("layer norm", &inputs, &[0], dtype, |v| crate::layer_norm(&v[0], &v[1], &v[2], 1e-5))?;
                let [x, weight, bias] = inputs;
                let inputs = [x, uniform(&[rows, c], 4)?, weight, bias];
                compare("norm of a sum", &inputs, &[0, 1], dtype, |v| crate::add_layer_norm(&v[0], &v[1], &v[2], &v[3], 1e-5))?;
            }
        }
        Ok(())
    }

    #[test]
    fn residual_sum_and_norm_in_one() -> Result<()> {
        // Rows in registers, of ViT-B's and ViT-H's width at most; of a width that is no multiple of 4.
        for ((rows, c), dtype) in [(9, 100), (3, 1280), (5, 33)].into_iter().flat_map(|size| FORMATS.map(|dtype| (size, dtype))) {
            let (x, delta) = (uniform(&[rows, c], 1)?, uniform(&[rows, c], 2)?.to_dtype(dtype)?);
            let [added, weight, bias] = [3, 4, 5].map(|seed| uniform(&[c], seed));
            let (added, weight, bias) = (added?, weight?, bias?);
            let sum = (&x + delta.to_dtype(DType::F32)?)?.broadcast_add(&added)?;
            let want = crate::composed::layer_norm_composed(&sum, &weight, &bias, 1e-6)?;
            on_device(|device| {
                let there = |t: &Tensor| t.to_device(device)?.copy();
                let x = there(&x)?;
                let (added, weight, bias, delta) = (there(&added)?, there(&weight)?, there(&bias)?, there(&delta)?);
                let y = add_layer_norm(&x, (Some(&delta), Some(&added)), (&weight, &bias), 1e-6, dtype)?;
                assert_close("sum", &x, &sum, 1e-6)?;
                assert_close("norm of the sum", &y, &want, tolerance(dtype))?;
                let y = add_layer_norm(&x, (None, None), (&weight, &bias), 1e-6, dtype)?;
                assert_close("norm without a sum", &y, &want, tolerance(dtype))
            })?;
        }
        Ok(())
    }
}
