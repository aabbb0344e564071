//! The residual stream on the CPU, in buffers that all blocks share.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::{pages, tensor_from};
use crate::frozen::{FrozenLinear, FrozenNorm};
use crate::layer_norm::cpu::{add_layer_norm_rows, layer_norm_rows};
use crate::matmul::packed::{Output, split_tiles, tiles};
use crate::numerics::Numerics;
use crate::prefix_attention::PrefixAttention;
use crate::rel_pos_attention::{RelPosAttention, TokenGrid};

/// Rows that one task of an element-wise pass works on: all of a tile, where products are computed in tiles.
const ROWS: usize = 128;

/// All tokens.
pub(super) struct Stream {
    /// `[tokens, c]`
    x: Vec<f32>,
    /// The attention's result, then norms, `[tokens, c]`.
    rows: Vec<f32>,
    /// Queries, keys and values without their bias, `[tokens, 3·c]`.
    qkv: Vec<f32>,
    tokens: usize,
    numerics: Numerics,
}

/// Some of them.
pub(super) struct Tile<'a> {
    x: &'a mut [f32],
    rows: &'a mut [f32],
    qkv: &'a mut [f32],
    /// The previous layer's bias, not yet added to x.
    pending: Option<Arc<[f32]>>,
}

impl Stream {
    pub(super) fn new(x: Vec<f32>, tokens: usize, numerics: Numerics) -> Self {
        let (rows, qkv) = (pages::filled(0f32, x.len()), pages::filled(0f32, 3 * x.len()));
        Self { x, rows, qkv, tokens, numerics }
    }

    /// How its products are computed.
    pub(super) fn numerics(&self) -> Numerics {
        self.numerics
    }

    pub(super) fn each_tile(&mut self, steps: impl Fn(Tile<'_>) -> Result<()> + Sync) -> Result<()> {
        let (c, tiles) = (self.x.len() / self.tokens.max(1), tiles(self.tokens, self.numerics));
        let [x, rows] = [&mut self.x, &mut self.rows].map(|part| split_tiles(part, &tiles, c));
        let parts = x.into_iter().zip(rows).zip(split_tiles(&mut self.qkv, &tiles, 3 * c));
        let parts: Vec<Tile<'_>> = parts.map(|((x, rows), qkv)| Tile { x, rows, qkv, pending: None }).collect();
        parts.into_par_iter().with_max_len(1).try_for_each(&steps)
    }

    pub(super) fn attend(&mut self, attention: &RelPosAttention, qkv: &FrozenLinear, grid: TokenGrid) -> Result<()> {
        attention.forward_cpu(&self.qkv, qkv.bias().cpu()?, grid, &mut self.rows)
    }

    pub(super) fn attend_with_prefix(&mut self, attention: &PrefixAttention, qkv: &FrozenLinear, grid: TokenGrid) -> Result<()> {
        attention.forward_cpu(&self.qkv, qkv.bias().cpu()?, grid, &mut self.rows)
    }

    pub(super) fn tokens(&self, tokens: usize) -> Result<Tensor> {
        let c = self.x.len() / tokens.max(1);
        tensor_from(self.x.clone(), (tokens, c))
    }

    pub(super) fn into_tokens(self, tokens: usize) -> Result<Tensor> {
        let c = self.x.len() / tokens.max(1);
        tensor_from(self.x, (tokens, c))
    }
}

impl Tile<'_> {
    pub(super) fn add_linear(&mut self, layer: &FrozenLinear) -> Result<()> {
        layer.weight().cpu()?.product(self.rows, self.x, Output::Add);
        self.pending = Some(layer.bias().cpu()?.clone());
        Ok(())
    }

    pub(super) fn norm(&mut self, norm: &FrozenNorm) -> Result<()> {
        let (weight, bias, eps) = (norm.weight().cpu()?, norm.bias().cpu()?, norm.eps() as f32);
        let rows = ROWS * bias.len();
        let parts = self.x.par_chunks_mut(rows).zip(self.rows.par_chunks_mut(rows));
        match self.pending.take() {
            Some(pending) => parts.for_each(|(x, normed)| add_layer_norm_rows(x, &pending, (weight, bias), eps, normed)),
            None => parts.for_each(|(x, normed)| layer_norm_rows(x, weight, bias, eps, normed)),
        }
        Ok(())
    }

    pub(super) fn add_mlp(&mut self, lin1: &FrozenLinear, lin2: &FrozenLinear) -> Result<()> {
        lin1.weight().cpu()?.add_mlp(lin1.bias().cpu()?, lin2.weight().cpu()?, self.rows, self.x);
        self.pending = Some(lin2.bias().cpu()?.clone());
        Ok(())
    }

    pub(super) fn qkv(&mut self, layer: &FrozenLinear) -> Result<()> {
        layer.weight().cpu()?.product(self.rows, self.qkv, Output::Replace);
        Ok(())
    }

    /// Adds the pending bias.
    pub(super) fn finish(self) {
        if let Some(pending) = self.pending {
            let add = |row: &mut [f32]| row.iter_mut().zip(pending.iter()).for_each(|(x, bias)| *x += bias);
            self.x.chunks_exact_mut(pending.len()).for_each(add);
        }
    }
}
