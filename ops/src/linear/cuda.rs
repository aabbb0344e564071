//! The linear layer on a GPU: a matrix product by the device's library, and the bias in place.

use candle_core::{DType, Result, Tensor, bail};

use crate::device::{Arg, F32Math, Gpu, Gradients, Grid, Input, Node, Output, matmul, parameters, suffix};

const MODULE: &str = "linear";

/// As [`super::linear`]. The weight is converted to the input's number format; its gradient has the weight's format.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, math: F32Math) -> Result<Tensor> {
    let backward = move |inputs: &[&Tensor], _: &Tensor, grad: &Tensor| gradients(inputs, grad, math);
    match bias {
        // A bias per row.
        Some(table) if table.rank() == 2 => {
            let y = Node::tensor("linear", product(x, weight, None, Activation::None, math)?, &[x, weight], backward)?;
            y.broadcast_add(&table.to_dtype(x.dtype())?)
        }
        Some(bias) => {
            let y = product(x, weight, Some(bias), Activation::None, math)?;
            Node::tensor("linear", y, &[x, weight, bias], backward)
        }
        None => Node::tensor("linear", product(x, weight, None, Activation::None, math)?, &[x, weight], backward),
    }
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
    let y = crate::device::product(&rows, &weight.detach().to_dtype(x.dtype())?.contiguous()?.t()?, math)?; // [n, out]
    if let Some(bias) = bias {
        add_bias(&Gpu::of(x), &y, x.dtype(), bias, activation)?;
    }
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = out_features;
    }
    Ok(y.reshape(dims))
}

/// Adds a bias `[c]` to every row of a fresh `[.., c]` of type `dtype`, in place.
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

fn gradients(inputs: &[&Tensor], grad: &Tensor, math: F32Math) -> Result<Gradients> {
    let &[x, weight, ..] = inputs else { bail!("linear: expected an input and a weight") };
    let (out_features, in_features) = weight.dims2()?;
    let grad = grad.contiguous()?.reshape(((), out_features))?; // [n, out]
    let of_x = || {
        let weight = weight.detach().to_dtype(grad.dtype())?.contiguous()?;
        matmul(&grad, &weight, math)?.reshape(x.dims())
    };
    let of_weight = || {
        let rows = x.detach().contiguous()?.reshape(((), in_features))?;
        matmul(&grad.t()?, &rows, math)?.to_dtype(weight.dtype())
    };
    let grad_bias = match inputs.get(2) {
        Some(bias) if bias.track_op() => Some(grad.to_dtype(DType::F32)?.sum(0)?.to_dtype(bias.dtype())?),
        _ => None,
    };
    Ok([x.track_op().then(of_x).transpose()?, weight.track_op().then(of_weight).transpose()?, grad_bias])
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{DType, Result};

    use super::{Activation, product};
    use crate::device::F32Math;
    use crate::linear::linear;
    use crate::testing::kernels::{FORMATS, assert_close, compare, on_device, tolerance};
    use crate::testing::uniform;

    #[test]
    fn linear_layers() -> Result<()> {
        for dtype in FORMATS {
            let inputs = [uniform(&[2, 9, 20], 1)?, uniform(&[13, 20], 2)?, uniform(&[13], 3)?];
            compare("linear", &inputs, &[0], dtype, |t| Ok(vec![linear(&t[0], &t[1], Some(&t[2]), F32Math::Exact)?]))?;
            let wide = [inputs[0].clone(), uniform(&[40, 20], 4)?, uniform(&[40], 5)?]; // rows of whole 16 bytes
            compare("wide linear", &wide, &[0], dtype, |t| Ok(vec![linear(&t[0], &t[1], Some(&t[2]), F32Math::Exact)?]))?;
            compare("linear without bias", &inputs[..2], &[0], dtype, |t| Ok(vec![linear(&t[0], &t[1], None, F32Math::Exact)?]))?;
            let x = inputs[0].to_dtype(dtype)?.to_dtype(DType::F32)?;
            let want = crate::gelu(&linear(&x, &inputs[1], Some(&inputs[2]), F32Math::Exact)?)?;
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
