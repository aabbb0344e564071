//! The linear layer on a GPU: a matrix product by the device's library, and the bias in place.

use candle_core::{DType, Result, Tensor, bail};

use crate::convert::to_format;
use crate::device::{Arg, F32Math, Gpu, Grid, Input, Output, parameters, suffix};

const MODULE: &str = "linear";

/// As [`super::linear`].
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, math: F32Math) -> Result<Tensor> {
    Ok(product(x, weight, bias, Activation::None, math)?.tensor())
}

/// Activation after the bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    None,
    Gelu,
}

/// `act(x·weightᵀ + bias)` without a graph; no activation without a bias.
pub(crate) fn product(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    math: F32Math,
) -> Result<Output> {
    let (out_features, in_features) = weight.dims2()?;
    let rows = x.detach().contiguous()?.reshape(((), in_features))?;
    let y = crate::device::product(&rows, &to_format(weight, x.dtype())?.contiguous()?.t()?, math)?; // [n, out]
    if let Some(bias) = bias {
        add_bias(&Gpu::of(x), &y, x.dtype(), bias, activation)?;
    }
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = out_features;
    }
    Ok(y.reshape(dims))
}

/// Adds a bias `[c]` to every row of a fresh `[.., c]` of type `dtype`, in place; or a bias per row, `[n, c]`, to every `n` rows.
fn add_bias(gpu: &Gpu, x: &Output, dtype: DType, bias: &Tensor, activation: Activation) -> Result<()> {
    let (n, bias) = (x.len(), parameters(bias)?);
    let c = bias.elem_count();
    let Ok(count) = u32::try_from(n) else { bail!("linear: a result of {n} elements is too large for one call") };
    let args = [
        x.arg(),
        Input::new(&bias)?.arg(),
        Arg::Unsigned(count),
        Arg::Unsigned(c as u32),
        Arg::Int(i32::from(activation == Activation::Gelu)),
    ];
    let run = 16 / dtype.size_in_bytes();
    let threads = if c.is_multiple_of(run) { n / run } else { n };
    // SAFETY: `x` is a fresh allocation of `n` elements of the format, in rows of as many as the bias has float32 numbers.
    unsafe { gpu.launch(MODULE, &format!("add_bias_{}", suffix(dtype)?), Grid::over(threads), &args) }
}

/// Adds the bias `[g, c]` to the fresh products `[g, n, c]` of groups, in place; then takes the ReLU if `relu`.
pub(super) fn add_group_bias(products: Tensor, bias: &Tensor, relu: bool) -> Result<Tensor> {
    let ((g, n, c), bias) = (products.dims3()?, parameters(bias)?);
    let Ok(elements) = u32::try_from(g * n * c) else { bail!("linear: a result of {:?} is too large", products.dims()) };
    if bias.dims() != [g, c] {
        bail!("linear: expected a bias of {:?}, found {:?}", [g, c], bias.dims());
    }
    let sizes = [elements, (n * c) as u32, c as u32].map(Arg::Unsigned);
    let args = [&[Input::new(&products)?.arg(), Input::new(&bias)?.arg()][..], &sizes, &[Arg::Int(i32::from(relu))]].concat();
    let kernel = format!("add_group_bias_{}", suffix(products.dtype())?);
    // SAFETY: `products` is a fresh allocation of `elements`, g groups of n·c, and the bias has c float32 numbers for each.
    unsafe { Gpu::of(&products).launch(MODULE, &kernel, Grid::over(elements as usize), &args)? };
    Ok(products)
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Result};

    use super::{Activation, product};
    use crate::device::F32Math;
    use crate::linear::{linear, linear_groups, product_transposed};
    use crate::tape::Value;
    use crate::testing::kernels::{FORMATS, assert_close, compare, on_device, tolerance};
    use crate::testing::uniform;

    #[test]
    fn linear_layers() -> Result<()> {
        for dtype in FORMATS {
            let inputs = [uniform(&[2, 9, 20], 1)?, uniform(&[13, 20], 2)?, uniform(&[13], 3)?];
            compare("linear", &inputs, &[0], dtype, |v| linear(&v[0], &v[1], Some(&v[2]), F32Math::Exact))?;
            let per_row = [inputs[0].clone(), inputs[1].clone(), uniform(&[9, 13], 6)?];
            compare("linear, bias per row", &per_row, &[0], dtype, |v| linear(&v[0], &v[1], Some(&v[2]), F32Math::Exact))?;
            let wide = [inputs[0].clone(), uniform(&[40, 20], 4)?, uniform(&[40], 5)?]; // rows of whole 16 bytes
            compare("wide linear", &wide, &[0], dtype, |v| linear(&v[0], &v[1], Some(&v[2]), F32Math::Exact))?;
            compare("linear without bias", &inputs[..2], &[0], dtype, |v| linear(&v[0], &v[1], None, F32Math::Exact))?;
            let groups = [uniform(&[3, 4, 5], 7)?, uniform(&[3, 6, 5], 8)?, uniform(&[3, 6], 9)?];
            for relu in [false, true] {
                compare("layers of groups", &groups, &[0], dtype, |v| linear_groups(&v[0], &v[1], &v[2], relu, F32Math::Exact))?;
            }
            compare("products", &groups[..2], &[0, 1], dtype, |v| product_transposed(&v[0], &v[1], F32Math::Exact))?;
            let x = inputs[0].to_dtype(dtype)?.to_dtype(DType::F32)?;
            let [x, weight, bias] = [&x, &inputs[1], &inputs[2]].map(Value::from);
            let want = crate::gelu(&linear(&x, &weight, Some(&bias), F32Math::Exact)?)?.into_tensor();
            on_device(|device| {
                let there = inputs.iter().map(|t| t.to_device(device)).collect::<Result<Vec<_>>>()?;
                let x = there[0].to_dtype(dtype)?;
                let y = product(&x, &there[1], Some(&there[2]), Activation::Gelu, F32Math::Exact)?;
                assert_close("linear with GELU", &y.tensor(), &want, tolerance(dtype))
            })?;
        }
        Ok(())
    }
}
