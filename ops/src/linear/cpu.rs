//! The linear layer on the CPU.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::{tensor_from, with_f32};
use crate::device::F32Math;
use crate::matmul::packed::{Output, PackedWeight, split_tiles, tiles};
use crate::matmul::{Accumulate, MatMut, MatRef, matmul};
use crate::numerics::Numerics;

use super::rounds;

/// As [`super::linear`].
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, math: F32Math) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    let rows = x.elem_count() / in_features.max(1);
    if rounds(math, rows) {
        let y = rounded_product(&x.reshape((rows, in_features))?, weight, bias)?;
        return y.reshape([&x.dims()[..x.rank() - 1], &[out_features]].concat());
    }
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

/// `x·Wᵀ + b` with factors rounded to bfloat16: x `[rows, in]`, weight `[out, in]`, a bias whose length divides the result's.
pub(super) fn rounded_product(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let ((rows, inner), (out, _)) = (x.dims2()?, weight.dims2()?);
    let weight = with_f32(weight, "linear", |weight| Ok(PackedWeight::new(weight.to_vec(), out, inner, Numerics::Bf16)))?;
    let mut y = match bias {
        Some(bias) => with_f32(bias, "linear", |bias| Ok(bias.repeat(rows * out / bias.len().max(1))))?,
        None => vec![0f32; rows * out],
    };
    with_f32(x, "linear", |x| {
        let tiles = tiles(rows, Numerics::Bf16);
        tiles.par_iter().zip(split_tiles(&mut y, &tiles, out)).with_max_len(1).for_each(|(tile, y)| {
            weight.product(&x[tile.start * inner..tile.end * inner], y, Output::Add);
        });
        Ok(())
    })?;
    tensor_from(y, (rows, out))
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
