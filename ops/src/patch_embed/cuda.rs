//! The patch embedding on a GPU.

use candle_core::{DType, Result, Tensor};

use crate::linear::cuda::{Activation, product};
use crate::numerics::Numerics;
use crate::rel_pos_attention::TokenGrid;
use crate::residual_stream::ResidualStream;

#[derive(Debug)]
pub(super) struct Embedding {
    /// `[c, 3·p·p]`, in the number format of the activations.
    weight: Tensor,
    /// `[c]`
    bias: Tensor,
    /// `[1, g·g, c]`
    positions: Tensor,
    numerics: Numerics,
}

impl Embedding {
    pub(super) fn new(weight: &Tensor, bias: &Tensor, positions: &Tensor, numerics: Numerics) -> Result<Self> {
        let ((c, colours, patch, _), (_, grid, _, _)) = (weight.dims4()?, positions.dims4()?);
        Ok(Self {
            weight: weight.reshape((c, colours * patch * patch))?.to_dtype(numerics.dtype())?.contiguous()?,
            bias: bias.contiguous()?,
            positions: positions.reshape((1, grid * grid, c))?.contiguous()?,
            numerics,
        })
    }

    pub(super) fn forward(&self, images: &Tensor, grid: TokenGrid, side: usize) -> Result<ResidualStream> {
        let (batch, _, height, width) = images.dims4()?;
        let (g, c) = (grid.grid, self.bias.elem_count());
        let patches = images
            .expand((batch, 3, height, width))?
            .to_dtype(self.numerics.dtype())?
            .reshape(&[batch, 3, g, side, g, side])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .contiguous()?
            .reshape((grid.tokens(), 3 * side * side))?;
        let x = product(&patches, &self.weight, Some(&self.bias), Activation::None, self.numerics.math())?.tensor(); // [b·g·g, c]
        let x = x.to_dtype(DType::F32)?.reshape((batch, g * g, c))?.broadcast_add(&self.positions)?;
        Ok(ResidualStream::on_gpu(x.reshape((grid.tokens(), c))?, grid, self.numerics))
    }
}
