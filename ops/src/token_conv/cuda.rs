//! The convolution over tokens on a GPU.

use candle_core::{Result, Tensor};

use crate::conv2d::Conv2d;
use crate::convert::to_format;
use crate::frozen::FrozenNorm;
use crate::layer_norm::cuda::layer_norm;
use crate::linear::cuda::{Activation, product};
use crate::numerics::Numerics;
use crate::rel_pos_attention::TokenGrid;
use crate::strided_copy::contiguous;

/// As [`super::TokenConv::forward`].
pub(super) fn forward(x: &Tensor, weight: &Tensor, norm: &FrozenNorm, grid: TokenGrid, numerics: Numerics) -> Result<Tensor> {
    let TokenGrid { batch, grid: g } = grid;
    let (co, ci, kernel, _) = weight.dims4()?;
    let x = to_format(x, numerics.dtype())?;
    let convolved = if kernel == 1 {
        product(&x, &weight.reshape((co, ci))?, None, Activation::None, numerics.math())?.tensor() // [b·g·g, co]
    } else {
        let planes = contiguous(&x.reshape((batch, g * g, ci))?.transpose(1, 2)?)?.reshape((batch, ci, g, g))?;
        let convolved = Conv2d::new(1, kernel / 2).with_math(numerics.math()).forward(&planes, weight)?; // [b, co, g, g]
        contiguous(&convolved.flatten_from(2)?.transpose(1, 2)?)?.reshape((grid.tokens(), co))?
    };
    layer_norm(&convolved, norm.weight().cuda()?, norm.bias().cuda()?, norm.eps())
}
