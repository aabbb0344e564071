//! The linear layer, `y = x·Wᵀ + b`.

pub(crate) mod cuda;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::cpu::{contiguous_f32, expect_f32};
use crate::matmul::{Accumulate, MatMut, MatRef, matmul};

/// Applies a linear layer (`torch.nn.functional.linear`).
///
/// # Shapes
/// x `[.., in]`, weight `[out, in]`, bias `[out]` → `[.., out]`, float32. The bias may be another one for each row, `[n, out]` for x `[.., n, in]`.
///
/// Gradients are computed only for those of the three that are tracked, so that a frozen layer costs the input's gradient alone.
///
/// # Errors
/// If shapes do not match or a tensor is not float32.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    if x.dims().last() != Some(&in_features) {
        bail!("linear: the weight takes {in_features} features, the input has shape {:?}", x.dims());
    }
    let rows = x.dims().iter().rev().nth(1).copied().unwrap_or(1);
    if let Some(bias) = bias
        && bias.dims() != [out_features]
        && bias.dims() != [rows, out_features]
    {
        bail!("linear: the weight gives {out_features} features, the bias has shape {:?}", bias.dims());
    }
    if crate::device::runs_on(&[x, weight]) {
        return match bias {
            Some(table) if table.rank() == 2 => cuda::linear(x, weight, None)?.broadcast_add(&table.to_dtype(x.dtype())?),
            _ => cuda::linear(x, weight, bias),
        };
    }
    if !x.device().is_cpu() {
        return linear_composed(x, weight, bias);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        None => {
            expect_f32("linear", &[&x, &weight])?;
            x.apply_op2(&weight, Linear)
        }
        Some(bias) => {
            expect_f32("linear", &[&x, &weight, bias])?;
            x.apply_op3(&weight, &bias.contiguous()?, Linear)
        }
    }
}

/// On a GPU: `x·weightᵀ + bias`, then GELU where `gelu` says so, without a graph; for frozen layers. The weight is of the input's number
/// format or brought to it.
///
/// # Shapes
/// As [`linear`]'s.
///
/// # Errors
/// If shapes do not match or the tensors are not on a GPU.
pub fn linear_on_device(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, gelu: bool) -> Result<Tensor> {
    use crate::elementwise::cuda::Activation;
    if !crate::device::runs_on(&[x, weight]) {
        bail!("linear: the tensors are not on a GPU");
    }
    let activation = if gelu { Activation::Gelu } else { Activation::None };
    Ok(cuda::product(x, weight, bias, activation)?.tensor())
}

/// [`linear`] made of candle's own operations: the reference of the tests.
///
/// # Errors
/// As [`linear`].
pub fn linear_composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    let y = x.reshape(((), in_features))?.matmul(&weight.t()?)?; // [n, out]
    if let Some(last) = dims.last_mut() {
        *last = out_features;
    }
    let y = y.reshape(dims)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

struct Linear;

impl Linear {
    fn forward(&self, x: (&[f32], &Layout), weight: (&[f32], &Layout), bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (out_features, in_features) = weight.1.shape().dims2()?;
        let rows = x.1.shape().elem_count() / in_features.max(1);
        let (mut y, accumulate) = match bias {
            Some(bias) => (bias.repeat(rows * out_features / bias.len().max(1)), Accumulate::Yes),
            None => (vec![0f32; rows * out_features], Accumulate::No),
        };
        let rhs = MatRef::new(weight.0, out_features, in_features).t();
        matmul(MatMut::new(&mut y, rows, out_features), MatRef::new(x.0, rows, in_features), rhs, 1.0, accumulate);
        let mut dims = x.1.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = out_features;
        }
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }

    fn gradients(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (out_features, in_features) = weight.dims2()?;
        let grad = grad.reshape(((), out_features))?.contiguous()?; // [n, out]
        let grad_x = match x.track_op() {
            true => Some(grad.apply_op2_no_bwd(weight, &Product { lhs_transposed: false })?.reshape(x.dims())?),
            false => None,
        };
        let grad_weight = match weight.track_op() {
            true => {
                let x = x.reshape(((), in_features))?; // [n, in]
                Some(grad.apply_op2_no_bwd(&x, &Product { lhs_transposed: true })?)
            }
            false => None,
        };
        Ok((grad_x, grad_weight))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = tracing::trace_span!("linear").entered();
        self.forward((contiguous_f32(s1, l1, "linear")?, l1), (contiguous_f32(s2, l2, "linear")?, l2), None)
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let _span = tracing::trace_span!("linear backward").entered();
        Self::gradients(x, weight, grad)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _span = tracing::trace_span!("linear").entered();
        let bias = contiguous_f32(s3, l3, "linear")?;
        self.forward((contiguous_f32(s1, l1, "linear")?, l1), (contiguous_f32(s2, l2, "linear")?, l2), Some(bias))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let _span = tracing::trace_span!("linear backward").entered();
        let (grad_x, grad_weight) = Self::gradients(x, weight, grad)?;
        let grad_bias = match bias.track_op() {
            true => Some(grad.reshape(((), bias.elem_count()))?.sum(0)?.reshape(bias.dims())?),
            false => None,
        };
        Ok((grad_x, grad_weight, grad_bias))
    }
}

/// lhs·rhs, or lhsᵀ·rhs, of two contiguous matrices; for backward passes.
struct Product {
    lhs_transposed: bool,
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "matrix product"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = tracing::trace_span!("matrix product").entered();
        let ((rows, inner), (rhs_rows, cols)) = (l1.shape().dims2()?, l2.shape().dims2()?);
        let lhs = MatRef::new(contiguous_f32(s1, l1, "matrix product")?, rows, inner);
        let rhs = MatRef::new(contiguous_f32(s2, l2, "matrix product")?, rhs_rows, cols);
        let (lhs, rows) = if self.lhs_transposed { (lhs.t(), inner) } else { (lhs, rows) };
        let mut out = vec![0f32; rows * cols];
        matmul(MatMut::new(&mut out, rows, cols), lhs, rhs, 1.0, Accumulate::No);
        Ok((CpuStorage::F32(out), Shape::from((rows, cols))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_match, uniform};

    #[test]
    fn equals_the_composed_layer_and_its_gradients() -> Result<()> {
        let (x, weight, bias) = (uniform(&[2, 3, 5], 1)?, uniform(&[7, 5], 2)?, uniform(&[7], 3)?);
        assert_gradients_match(
            &[x.clone(), weight.clone(), bias],
            |t| linear(&t[0], &t[1], Some(&t[2])),
            |t| linear_composed(&t[0], &t[1], Some(&t[2])),
        )?;
        assert_gradients_match(
            &[x.clone(), weight.clone()],
            |t| linear(&t[0], &t[1], None),
            |t| linear_composed(&t[0], &t[1], None),
        )?;
        // a bias a row
        assert_gradients_match(
            &[x.clone(), weight.clone(), uniform(&[3, 7], 5)?],
            |t| linear(&t[0], &t[1], Some(&t[2])),
            |t| linear_composed(&t[0], &t[1], Some(&t[2])),
        )?;
        // an input that is a view
        let x = uniform(&[5, 4], 4)?;
        assert_gradients_match(&[x, weight], |t| linear(&t[0].t()?, &t[1], None), |t| linear_composed(&t[0].t()?, &t[1], None))
    }

    #[test]
    fn frozen_weights_get_no_gradient() -> Result<()> {
        let x = candle_core::Var::from_tensor(&uniform(&[4, 5], 1)?)?;
        let weight = uniform(&[7, 5], 2)?;
        let grads = linear(x.as_tensor(), &weight, None)?.sqr()?.sum_all()?.backward()?;
        assert!(grads.get(x.as_tensor()).is_some() && grads.get(&weight).is_none());
        Ok(())
    }

    #[test]
    fn wrong_shapes_are_refused() -> Result<()> {
        let (x, weight, bias) = (uniform(&[4, 5], 1)?, uniform(&[7, 6], 2)?, uniform(&[3], 3)?);
        assert!(linear(&x, &weight, None).unwrap_err().to_string().contains("takes 6 features"));
        assert!(linear(&uniform(&[2, 6], 1)?, &weight, Some(&bias)).is_err());
        assert_eq!(linear(&uniform(&[0, 6], 1)?, &weight, None)?.dims(), [0, 7]);
        Ok(())
    }
}
