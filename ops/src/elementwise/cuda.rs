//! Sums with an activation, and the gate's sum, on a GPU.

use candle_core::{DType, Result, Tensor};

use crate::device::{Arg, Gpu, Grid, Input, map, parameters, suffix};
use crate::partial_sums::sum_partials;
use crate::strided_copy::contiguous;

const MODULE: &str = "elementwise";
/// Blocks that share a sum over all elements.
const SUM_BLOCKS: usize = 256;

/// As [`super::add_relu`].
pub(super) fn add_relu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    // SAFETY: `add_relu` maps two inputs.
    Ok(unsafe { map(MODULE, "add_relu", &[&a.detach().contiguous()?, &b.detach().contiguous()?], None)? }.tensor())
}

/// As [`super::relu`].
pub(super) fn relu(x: &Tensor) -> Result<Tensor> {
    // SAFETY: `relu` maps one input.
    Ok(unsafe { map(MODULE, "relu", &[&contiguous(x)?], None)? }.tensor())
}

/// As [`super::relu_backward`].
pub(super) fn relu_backward(res: &Tensor, grad: &Tensor) -> Result<Tensor> {
    // SAFETY: `relu_backward` maps the result and its gradient.
    Ok(unsafe { map(MODULE, "relu_backward", &[&res.contiguous()?, &grad.contiguous()?], None)? }.tensor())
}

/// As [`super::relu_backward_sum`].
pub(super) fn relu_backward_sum(res: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    // SAFETY: `relu_backward_sum` maps the result and two gradients.
    Ok(unsafe { map(MODULE, "relu_backward_sum", &[&res.contiguous()?, &a.contiguous()?, &b.contiguous()?], None)? }.tensor())
}

/// As [`super::mix`], of contiguous tensors.
pub(super) fn mix(sam: &Tensor, cnn: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    // SAFETY: `mix` maps two inputs with a scalar.
    Ok(unsafe { map(MODULE, "mix", &[sam, cnn], Some(&parameters(alpha)?))? }.tensor())
}

/// The gradient of `cnn`.
pub(super) fn mix_backward_cnn(gradient: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    // SAFETY: `mix_backward_cnn` maps the gradient with a scalar.
    Ok(unsafe { map(MODULE, "mix_backward_cnn", &[gradient], Some(&parameters(alpha)?))? }.tensor())
}

/// The gradient of `alpha`, `[1]`.
pub(super) fn mix_backward_alpha(gradient: &Tensor, sam: &Tensor, cnn: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    let (gpu, alpha) = (Gpu::of(gradient), parameters(alpha)?);
    let partial = gpu.output(DType::F64, SUM_BLOCKS)?;
    let inputs = [Input::new(gradient)?, Input::new(sam)?, Input::new(cnn)?, Input::new(&alpha)?];
    let n = Arg::Size(gradient.elem_count() as u64);
    let args = [&inputs.each_ref().map(Input::arg)[..], &[partial.arg(), n]].concat();
    let (kernel, grid) = (format!("mix_backward_alpha_{}", suffix(gradient.dtype())?), Grid::blocks([SUM_BLOCKS as u32, 1, 1]));
    // SAFETY: three tensors of `n` elements of one format, a number, and a float64 number for each block.
    unsafe { gpu.launch(MODULE, &kernel, grid, &args)? };
    sum_partials(&gpu, &partial, 1)
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{Device, Result, Tensor};

    use crate::testing::kernels::{FORMATS, compare, compare_results, on_device, to_cpu};
    use crate::testing::uniform;

    #[test]
    fn elementwise_passes() -> Result<()> {
        for dtype in FORMATS {
            for n in [1, 5, 4096, 3 * 1023] {
                let inputs = [(uniform(&[n], 1)? * 4.0)?, uniform(&[n], 2)?, uniform(&[n], 3)?, uniform(&[1], 4)?];
                let (one, two) = (&inputs[..1], &inputs[..2]);
                // With a value of 4, because GELU's error is relative to the input, not to the result, which may be near zero.
                let one = &[Tensor::cat(&[&one[0], &Tensor::new(&[4.0f32], &Device::Cpu)?], 0)?];
                compare("gelu", one, &[0], dtype, |v| crate::gelu(&v[0]))?;
                compare("relu", one, &[0], dtype, |v| crate::relu(&v[0]))?;
                compare_results("add-relu", two, &[0, 1], dtype, |t| Ok(vec![crate::add_relu(&t[0], &t[1])?]))?;
                compare("mix", &[&inputs[1..3], &inputs[3..]].concat(), &[0, 1], dtype, |v| crate::mix(&v[0], &v[1], &v[2]))?;
                compare_results("relu backward", &inputs[..3], &[0, 1, 2], dtype, |t| {
                    let sum = crate::relu_backward_sum(&t[0], &t[1], &t[2])?;
                    Ok(vec![crate::relu_backward(&t[0], &t[1])?, sum])
                })?;
            }
        }
        Ok(())
    }

    #[test]
    fn nan_stays_nan() -> Result<()> {
        let x = Tensor::new(&[f32::NAN, -1.0, 2.0], &Device::Cpu)?;
        on_device(|device| {
            let x = x.to_device(device)?;
            let y = to_cpu(&crate::add_relu(&x, &x)?)?.to_vec1::<f32>()?;
            assert!(y[0].is_nan() && y[1..] == [0.0, 4.0], "{y:?}");
            Ok(())
        })
    }
}
