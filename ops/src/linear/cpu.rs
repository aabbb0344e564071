//! The linear layer on the CPU.

use candle_core::{Result, Tensor};

use crate::cpu::{tensor_from, with_f32};
use crate::matmul::{Accumulate, MatMut, MatRef, matmul};

/// As [`super::linear`].
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    let rows = x.elem_count() / in_features.max(1);
    let repeated = |bias: &Tensor| {
        with_f32(bias, "linear", |bias| Ok((bias.repeat(rows * out_features / bias.len().max(1)), Accumulate::Yes)))
    };
    let (mut y, accumulate) = match bias {
        Some(bias) => repeated(bias)?,
        None => (vec![0f32; rows * out_features], Accumulate::No),
    };
    with_f32(x, "linear", |x| {
        with_f32(weight, "linear", |weight| {
            let rhs = MatRef::new(weight, out_features, in_features).t();
            matmul(MatMut::new(&mut y, rows, out_features), MatRef::new(x, rows, in_features), rhs, 1.0, accumulate);
            Ok(())
        })
    })?;
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = out_features;
    }
    tensor_from(y, dims)
}

/// lhs·rhs of two matrices, or lhsᵀ·rhs if `transposed`.
pub(super) fn product(lhs: &Tensor, rhs: &Tensor, transposed: bool) -> Result<Tensor> {
    let ((rows, inner), (rhs_rows, columns)) = (lhs.dims2()?, rhs.dims2()?);
    with_f32(lhs, "matrix product", |lhs| {
        with_f32(rhs, "matrix product", |rhs| {
            let (lhs, rhs) = (MatRef::new(lhs, rows, inner), MatRef::new(rhs, rhs_rows, columns));
            let (lhs, rows) = if transposed { (lhs.t(), inner) } else { (lhs, rows) };
            let mut out = vec![0f32; rows * columns];
            matmul(MatMut::new(&mut out, rows, columns), lhs, rhs, 1.0, Accumulate::No);
            tensor_from(out, (rows, columns))
        })
    })
}
