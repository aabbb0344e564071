//! The layer of tokens on the CPU: a tile of tokens times the packed weight.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::{tensor_from, with_f32};
use crate::frozen::FrozenLinear;
use crate::matmul::Output;
use crate::matmul::packed::{split_tiles, tiles};

/// As [`super::token_linear`].
pub(super) fn forward(x: &Tensor, layer: &FrozenLinear) -> Result<Tensor> {
    let _span = tracing::trace_span!("token linear").entered();
    let (tokens, inner) = x.dims2()?;
    let (weight, bias) = (layer.weight().cpu()?, layer.bias().cpu()?);
    let (out, tiles) = (weight.out(), tiles(tokens, weight.numerics()));
    let mut y = vec![0f32; tokens * out];
    with_f32(x, "token linear", |x| {
        tiles.par_iter().zip(split_tiles(&mut y, &tiles, out)).with_max_len(1).for_each(|(tile, y)| {
            weight.product(&x[tile.start * inner..tile.end * inner], y, Output::Bias(bias));
        });
        Ok(())
    })?;
    tensor_from(y, (tokens, out))
}
