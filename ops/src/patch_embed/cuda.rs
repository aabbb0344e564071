//! The patch embedding on a GPU.

use candle_core::{Result, Tensor};

use crate::add::add_widened_cuda;
use crate::convert::to_format;
use crate::linear::cuda::{Activation, product};
use crate::numerics::Numerics;
use crate::rel_pos_attention::TokenGrid;
use crate::residual_stream::ResidualStream;
use crate::strided_copy::contiguous;

#[derive(Debug)]
pub(super) struct Embedding {
    /// `[c, 3·p·p]`, in the number format of the activations.
    weight: Tensor,
    /// `[c, p·p]`: summed over the colours, for grey images.
    grey_weight: Tensor,
    /// Absolute positions and the bias, `[1, g·g, c]`, float32.
    positions: Tensor,
    numerics: Numerics,
}

impl Embedding {
    pub(super) fn new(weight: &Tensor, bias: &Tensor, positions: &Tensor, numerics: Numerics) -> Result<Self> {
        let ((c, _, _, _), (_, grid, _, _)) = (weight.dims4()?, positions.dims4()?);
        let rows = |weight: Tensor| weight.reshape((c, ()))?.to_dtype(numerics.dtype())?.contiguous();
        Ok(Self {
            weight: rows(weight.clone())?,
            grey_weight: rows(weight.sum(1)?)?,
            positions: positions.reshape((1, grid * grid, c))?.broadcast_add(bias)?.contiguous()?,
            numerics,
        })
    }

    /// Patches as rows, times the weight, plus positions.
    pub(super) fn forward(&self, images: &Tensor, grid: TokenGrid, side: usize) -> Result<ResidualStream> {
        let (batch, channels, _, _) = images.dims4()?;
        let g = grid.grid;
        let tiles = to_format(images, self.numerics.dtype())?.reshape(&[batch, channels, g, side, g, side])?;
        let patches = contiguous(&tiles.permute(vec![0, 2, 4, 1, 3, 5])?)?.reshape((grid.tokens(), channels * side * side))?;
        let weight = if channels == 1 { &self.grey_weight } else { &self.weight };
        let x = product(&patches, weight, None, Activation::None, self.numerics.math())?.tensor(); // [b·g·g, c]
        let x = add_widened_cuda(None, &x, &self.positions)?;
        Ok(ResidualStream::on_gpu(x, grid, self.numerics))
    }
}
