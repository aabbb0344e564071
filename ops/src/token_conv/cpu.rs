//! The convolution over tokens on the CPU: each token's neighbourhood is a row, times the packed weight.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::{tensor_from, with_f32};
use crate::frozen::FrozenNorm;
use crate::layer_norm::cpu::layer_norm_rows;
use crate::matmul::Output;
use crate::matmul::packed::{PackedWeight, split_tiles, tiles};
use crate::rel_pos_attention::TokenGrid;

/// Rows that one task of an element-wise pass works on.
const ROWS: usize = 128;

/// As [`super::TokenConv::forward`].
pub(super) fn forward(
    x: &Tensor,
    (weight, kernel): (&PackedWeight, usize),
    norm: &FrozenNorm,
    grid: TokenGrid,
) -> Result<Tensor> {
    let _span = tracing::trace_span!("token convolution").entered();
    let (out, row, ci) = (weight.out(), weight.inner(), weight.inner() / (kernel * kernel));
    let (scale, shift, eps) = (norm.weight().cpu()?, norm.bias().cpu()?, norm.eps() as f32);
    let tiles = tiles(grid.tokens(), weight.numerics());
    let mut normed = vec![0f32; grid.tokens() * out];
    with_f32(x, "token convolution", |x| {
        let scratch = || (Vec::new(), Vec::new());
        tiles.par_iter().zip(split_tiles(&mut normed, &tiles, out)).with_max_len(1).for_each_init(
            scratch,
            |(columns, convolved), (tile, normed)| {
                convolved.resize(tile.len() * out, 0.0);
                if kernel == 1 {
                    weight.product(&x[tile.start * ci..tile.end * ci], convolved, Output::Replace);
                } else {
                    columns.resize(tile.len() * row, 0.0);
                    let each = columns.par_chunks_mut(row).with_min_len(ROWS).zip(tile.start..tile.end);
                    each.for_each(|(column, token)| neighbours(x, (token, ci), grid.grid, kernel, column));
                    weight.product(columns, convolved, Output::Replace);
                }
                let rows = ROWS * out;
                let each = convolved.par_chunks(rows).zip(normed.par_chunks_mut(rows));
                each.for_each(|(x, normed)| layer_norm_rows(x, scale, shift, eps, normed));
            },
        );
        Ok(())
    })?;
    tensor_from(normed, (grid.tokens(), out))
}

/// A token's neighbourhood, zeros over the edge: x `[b·g·g, ci]` → `[k, k, ci]`.
fn neighbours(x: &[f32], (token, ci): (usize, usize), grid: usize, kernel: usize, column: &mut [f32]) {
    let (image, row, col) = (token / (grid * grid), token / grid % grid, token % grid);
    let margin = kernel / 2;
    for (i, values) in column.chunks_exact_mut(ci).enumerate() {
        let (y, x_) = (row + i / kernel, col + i % kernel); // the margin more than the neighbour's place
        if (margin..grid + margin).contains(&y) && (margin..grid + margin).contains(&x_) {
            let neighbour = (image * grid + y - margin) * grid + x_ - margin;
            values.copy_from_slice(&x[neighbour * ci..(neighbour + 1) * ci]);
        } else {
            values.fill(0.0);
        }
    }
}
