//! The layer of tokens on a GPU: the library's product, and the bias in place.

use candle_core::{Result, Tensor};

use crate::frozen::FrozenLinear;
use crate::linear::cuda::{Activation, product};

/// As [`super::token_linear`].
pub(super) fn forward(x: &Tensor, layer: &FrozenLinear) -> Result<Tensor> {
    let (weight, math) = layer.weight().cuda()?;
    Ok(product(x, weight, Some(layer.bias().cuda()?), Activation::None, math)?.tensor())
}
