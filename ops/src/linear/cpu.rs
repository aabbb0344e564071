//! The linear layer on the CPU.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use crate::cpu::contiguous_f32;
use crate::matmul::{Accumulate, MatMut, MatRef, matmul};

/// As [`super::linear`].
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        None => x.apply_op2(&weight, Linear),
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Linear),
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
