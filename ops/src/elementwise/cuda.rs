//! Sums with an activation on a GPU.

use candle_core::{Result, Tensor};

use crate::device::map;
use crate::strided_copy::contiguous;

const MODULE: &str = "elementwise";

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

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{Device, Result, Tensor};

    use crate::testing::kernels::{FORMATS, compare, compare_results, on_device, to_cpu};
    use crate::testing::uniform;

    #[test]
    fn elementwise_passes() -> Result<()> {
        for dtype in FORMATS {
            for n in [1, 5, 4096, 3 * 1023] {
                let inputs = [(uniform(&[n], 1)? * 4.0)?, uniform(&[n], 2)?, uniform(&[n], 3)?];
                let (one, two) = (&inputs[..1], &inputs[..2]);
                // With a value of 4, because GELU's error is relative to the input, not to the result, which may be near zero.
                let one = &[Tensor::cat(&[&one[0], &Tensor::new(&[4.0f32], &Device::Cpu)?], 0)?];
                compare("gelu", one, &[0], dtype, |v| crate::gelu(&v[0]))?;
                compare("relu", one, &[0], dtype, |v| crate::relu(&v[0]))?;
                compare_results("add-relu", two, &[0, 1], dtype, |t| Ok(vec![crate::add_relu(&t[0], &t[1])?]))?;
                compare_results("relu backward", &inputs, &[0, 1, 2], dtype, |t| {
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
