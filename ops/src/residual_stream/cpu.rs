//! The residual stream on the CPU, in buffers that all blocks share.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{Steps, Tile};
use crate::cpu::{pages, tensor_from};
use crate::frozen::{FrozenLinear, FrozenNorm};
use crate::layer_norm::cpu::{add_layer_norm_rows, layer_norm_rows};
use crate::matmul::packed::{RowFormat, split_tiles, tiles};
use crate::matmul::{Output, add_bias_in_place};
use crate::numerics::Numerics;
use crate::prefix_attention::PrefixAttention;
use crate::rel_pos_attention::{RelPosAttention, TokenGrid};

/// Rows that one task of an element-wise pass works on: all of a tile, where products are computed in tiles.
const ROWS: usize = 128;

/// All tokens. What one step passes to the next has the format `T`.
pub(super) struct Stream<T> {
    /// `[tokens, c]`
    x: Vec<f32>,
    /// The attention's result, then norms, `[tokens, c]`.
    rows: Vec<T>,
    /// Queries, keys and values with their bias, `[tokens, 3·c]`.
    qkv: Vec<T>,
    tokens: usize,
    numerics: Numerics,
}

/// One tile of them.
struct Part<'a, T> {
    x: &'a mut [f32],
    rows: &'a mut [T],
    qkv: &'a mut [T],
    /// The previous layer's bias, not yet added to x.
    pending: Option<Arc<[f32]>>,
}

impl<T: RowFormat> Stream<T> {
    pub(super) fn new(x: Vec<f32>, tokens: usize, numerics: Numerics) -> Self {
        let (rows, qkv) = (pages::filled(T::zero(), x.len()), pages::filled(T::zero(), 3 * x.len()));
        Self { x, rows, qkv, tokens, numerics }
    }

    /// Numbers of a token.
    fn width(&self) -> usize {
        self.x.len() / self.tokens.max(1)
    }
}

impl<T: RowFormat> super::Stream for Stream<T> {
    fn each_tile(&mut self, steps: &(dyn Fn(&mut Tile<'_>) -> Result<()> + Sync)) -> Result<()> {
        let (c, tiles) = (self.width(), tiles(self.tokens, self.numerics));
        let rows = split_tiles(&mut self.rows, &tiles, c).into_iter().zip(split_tiles(&mut self.qkv, &tiles, 3 * c));
        let parts = split_tiles(&mut self.x, &tiles, c).into_iter().zip(rows);
        let parts: Vec<_> = parts.map(|(x, (rows, qkv))| Part { x, rows, qkv, pending: None }).collect();
        parts.into_par_iter().with_max_len(1).try_for_each(|mut part| {
            steps(&mut Tile(&mut part))?;
            part.finish();
            Ok(())
        })
    }

    fn attend(&mut self, attention: &RelPosAttention, qkv: &FrozenLinear, grid: TokenGrid) -> Result<()> {
        attention.forward_cpu(&self.qkv, qkv.bias().cpu()?, grid, &mut self.rows)
    }

    fn attend_with_prefix(&mut self, attention: &PrefixAttention, _: &FrozenLinear, grid: TokenGrid) -> Result<()> {
        attention.forward_cpu(&self.qkv, grid, &mut self.rows)
    }

    fn tokens(&self) -> Result<Tensor> {
        tensor_from(self.x.clone(), (self.tokens, self.width()))
    }

    fn into_tokens(self: Box<Self>) -> Result<Tensor> {
        let shape = (self.tokens, self.width());
        tensor_from(self.x, shape)
    }

    fn of_tokens(&self, x: Tensor) -> Result<Box<dyn super::Stream>> {
        let tokens = x.dim(0)?;
        Ok(Box::new(Self::new(x.flatten_all()?.to_vec1()?, tokens, self.numerics)))
    }
}

impl<T: RowFormat> Steps for Part<'_, T> {
    fn add_linear(&mut self, layer: &FrozenLinear) -> Result<()> {
        layer.weight().cpu()?.product_of(self.rows, self.x, Output::Add);
        self.pending = Some(layer.bias().cpu()?.clone());
        Ok(())
    }

    fn norm(&mut self, norm: &FrozenNorm) -> Result<()> {
        let (weight, bias, eps) = (norm.weight().cpu()?, norm.bias().cpu()?, norm.eps() as f32);
        let rows = ROWS * bias.len();
        let parts = self.x.par_chunks_mut(rows).zip(self.rows.par_chunks_mut(rows));
        match self.pending.take() {
            Some(pending) => parts.for_each(|(x, normed)| add_layer_norm_rows(x, &pending, (weight, bias), eps, normed)),
            None => parts.for_each(|(x, normed)| layer_norm_rows(x, weight, bias, eps, normed)),
        }
        Ok(())
    }

    fn add_mlp(&mut self, lin1: &FrozenLinear, lin2: &FrozenLinear) -> Result<()> {
        lin1.weight().cpu()?.add_mlp(lin1.bias().cpu()?, lin2.weight().cpu()?, self.rows, self.x);
        self.pending = Some(lin2.bias().cpu()?.clone());
        Ok(())
    }

    fn qkv(&mut self, layer: &FrozenLinear) -> Result<()> {
        layer.weight().cpu()?.product_of(self.rows, self.qkv, Output::Bias(layer.bias().cpu()?));
        Ok(())
    }
}

impl<T> Part<'_, T> {
    /// Adds the pending bias.
    fn finish(self) {
        if let Some(pending) = self.pending {
            add_bias_in_place(self.x, &pending);
        }
    }
}
