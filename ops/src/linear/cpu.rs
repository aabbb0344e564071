//! The linear layer on the CPU.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::{filled_vec, tensor_from, with_f32};
use crate::device::F32Math;
use crate::matmul::packed::{PackedWeight, tiles, with_rounded};
use crate::matmul::{Accumulate, MatMut, MatRef, Output, matmul};
use crate::numerics::Numerics;

use super::rounds;

/// As [`super::linear`].
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, math: F32Math) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    let rows = x.elem_count() / in_features.max(1);
    if rounds(math, rows) {
        let y = rounded_layer(&x.reshape((rows, in_features))?, weight, bias)?;
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
fn rounded_layer(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let of = |bias: Option<&[f32]>| rounded(x, (weight, false), bias);
    match bias {
        Some(bias) => with_f32(bias, "linear", |bias| of(Some(bias))),
        None => of(None),
    }
}

/// lhs·rhs of two matrices with factors rounded to bfloat16.
pub(super) fn rounded_product(lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
    rounded(lhs, (rhs, true), None)
}

/// `x·Wᵀ + b`, or `x·W + b` if the weight is `transposed`.
fn rounded(x: &Tensor, (weight, transposed): (&Tensor, bool), bias: Option<&[f32]>) -> Result<Tensor> {
    let (rows, inner) = x.dims2()?;
    let out = weight.dim(usize::from(transposed))?;
    let product = |x: &[f32], weight: &PackedWeight| {
        let of_tile = |tile: &Range<usize>, y: &mut [f32]| {
            if let Some(bias) = bias {
                repeat(bias, tile.start * out, y);
            }
            let output = if bias.is_some() { Output::Add } else { Output::Replace };
            weight.product(&x[tile.start * inner..tile.end * inner], y, output);
        };
        let tiles = tiles(rows, Numerics::Bf16);
        // SAFETY: the tiles are disjoint and all rows, and each is written whole.
        unsafe {
            filled_vec(rows * out, |y| {
                let tiles = tiles.par_iter().with_max_len(1);
                tiles.for_each(|tile| of_tile(tile, y.slice(tile.start * out, tile.len() * out)));
            })
        }
    };
    let y = with_f32(x, "linear", |x| {
        with_f32(weight, "linear", |weight| Ok(with_rounded(weight, (out, inner), transposed, |weight| product(x, weight))))
    })?;
    tensor_from(y, (rows, out))
}

/// Elements `first..` of `values`, repeated without end.
fn repeat(values: &[f32], first: usize, to: &mut [f32]) {
    let rest = &values[first % values.len()..];
    let (head, tail) = to.split_at_mut(rest.len().min(to.len()));
    head.copy_from_slice(&rest[..head.len()]);
    tail.chunks_mut(values.len()).for_each(|to| to.copy_from_slice(&values[..to.len()]));
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
