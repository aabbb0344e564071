//! The linear layer on the CPU.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use rayon::prelude::*;

use crate::convert::to_format;
use crate::cpu::activation::{convert_run, in_format};
use crate::cpu::{filled_vec, tensor_from, with_f32, with_numbers, with_scratch};
use crate::matmul::packed::{PackedWeight, RowFormat, tiles, with_rounded};
use crate::matmul::{Accumulate, MatMut, MatRef, Output, matmul};
use crate::numerics::Numerics;

/// As [`super::linear`], in the input's number format.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out, inner) = weight.dims2()?;
    let rows = x.reshape((x.elem_count() / inner.max(1), inner))?;
    let y = match bias {
        Some(bias) => with_f32(bias, "linear", |bias| layer(&rows, (weight, false), Some(bias)))?,
        None => layer(&rows, (weight, false), None)?,
    };
    y.reshape([&x.dims()[..x.rank() - 1], &[out]].concat())
}

/// lhs `[m, k]` · rhs `[k, n]`, in the number format of lhs.
pub(super) fn product(lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
    layer(lhs, (rhs, true), None)
}

/// lhsᵀ·rhs for lhs `[k, m]` and rhs `[k, n]`, in float32.
pub(super) fn transposed_product(lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
    let ((inner, rows), (rhs_rows, columns)) = (lhs.dims2()?, rhs.dims2()?);
    with_f32(&to_format(lhs, DType::F32)?, "matrix product", |lhs| {
        with_f32(&to_format(rhs, DType::F32)?, "matrix product", |rhs| {
            let (lhs, rhs) = (MatRef::new(lhs, inner, rows).t(), MatRef::new(rhs, rhs_rows, columns));
            let mut out = vec![0f32; rows * columns];
            matmul(MatMut::new(&mut out, rows, columns), lhs, rhs, 1.0, Accumulate::No);
            tensor_from(out, (rows, columns))
        })
    })
}

/// `x·Wᵀ + b`, or `x·W + b` if the weight is `transposed`: x `[rows, inner]`, a bias whose length divides the result's.
fn layer(x: &Tensor, (weight, transposed): (&Tensor, bool), bias: Option<&[f32]>) -> Result<Tensor> {
    if x.dtype() == DType::F32 {
        return wide_layer(x, (weight, transposed), bias);
    }
    if uses_instructions(x.dim(0)?) && weight.elem_count() > 0 {
        return in_format!(weight, narrow_layer(x, (weight, transposed), bias));
    }
    // These factors are rounded as well; only the order of the sums differs.
    let (x, weight) = (to_format(x, DType::F32)?, to_format(&to_format(weight, DType::BF16)?, DType::F32)?);
    to_format(&wide_layer(&x, (&weight, transposed), bias)?, DType::BF16)
}

/// Whether products of this many rows use the instructions for bfloat16; for fewer, packing the weight costs more than it saves.
fn uses_instructions(rows: usize) -> bool {
    rows >= 64 && Numerics::Bf16.supported_on(&Device::Cpu)
}

/// [`layer`] in float32.
fn wide_layer(x: &Tensor, (weight, transposed): (&Tensor, bool), bias: Option<&[f32]>) -> Result<Tensor> {
    let (rows, inner) = x.dims2()?;
    let out = weight.dim(usize::from(transposed))?;
    let (mut y, accumulate) = match bias {
        Some(bias) => (bias.repeat(rows * out / bias.len().max(1)), Accumulate::Yes),
        None => (vec![0f32; rows * out], Accumulate::No),
    };
    with_f32(x, "linear", |x| {
        with_f32(weight, "linear", |weight| {
            let weight = if transposed { MatRef::new(weight, inner, out) } else { MatRef::new(weight, out, inner).t() };
            matmul(MatMut::new(&mut y, rows, out), MatRef::new(x, rows, inner), weight, 1.0, accumulate);
            Ok(())
        })
    })?;
    tensor_from(y, (rows, out))
}

/// [`layer`] for rows in bfloat16; the weight is rounded to it.
fn narrow_layer<T: RowFormat>(x: &Tensor, (weight, transposed): (&Tensor, bool), bias: Option<&[f32]>) -> Result<Tensor> {
    let (rows, inner) = x.dims2()?;
    let out = weight.dim(usize::from(transposed))?;
    // A bias for each column, if it is the same for every row.
    let by_column = bias.filter(|bias| bias.len() <= out).map(|bias| bias.repeat(out / bias.len().max(1)));
    let product = |x: &[bf16], weight: &PackedWeight| {
        let of_tile = |tile: &Range<usize>, y: &mut [bf16]| {
            let x = &x[tile.start * inner..tile.end * inner];
            match (&by_column, bias) {
                (Some(bias), _) => weight.product_of(x, y, Output::Bias(bias)),
                (None, None) => weight.product_of(x, y, Output::Replace),
                (None, Some(bias)) => with_scratch(y.len(), |sums| {
                    repeat(bias, tile.start * out, sums);
                    weight.product_of(x, sums, Output::Add);
                    convert_run(sums, y);
                }),
            }
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
    let y = with_numbers(x, "linear", |x: &[bf16]| {
        with_numbers(weight, "linear", |weight: &[T]| {
            Ok(with_rounded(weight, (out, inner), transposed, |weight| product(x, weight)))
        })
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
