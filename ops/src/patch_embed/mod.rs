//! The patch embedding of a vision transformer, with its absolute positions (`image_encoder.py`, `PatchEmbed` and `pos_embed`): a linear map
//! of each patch.

mod cpu;
mod cuda;

use candle_core::{Result, Tensor, bail};

use crate::device::has_kernels;
use crate::numerics::Numerics;
use crate::rel_pos_attention::TokenGrid;
use crate::residual_stream::ResidualStream;

/// A convolution whose stride is its kernel's size, and a table of positions.
#[derive(Debug)]
pub struct PatchEmbed {
    /// Pixels along the side of a patch.
    patch: usize,
    /// Tokens along the side of an image.
    grid: usize,
    path: Path,
}

#[derive(Debug)]
enum Path {
    Cpu(cpu::Embedding),
    Cuda(cuda::Embedding),
}

impl PatchEmbed {
    /// From a weight `[c, 3, p, p]`, a bias `[c]` and positions `[1, g, g, c]`.
    ///
    /// # Errors
    /// Other shapes; numerics that the device does not support.
    pub fn new(weight: &Tensor, bias: &Tensor, positions: &Tensor, numerics: Numerics) -> Result<Self> {
        let ((c, colours, patch, _), (_, grid, _, width)) = (weight.dims4()?, positions.dims4()?);
        if (colours, width) != (3, c) || bias.dims() != [c] || positions.dims() != [1, grid, grid, c] {
            let [weight, bias, positions] = [weight, bias, positions].map(Tensor::dims);
            bail!(
                "patch embedding: a weight of {weight:?}, a bias of {bias:?} and positions of {positions:?} do not go together"
            );
        }
        let path = match has_kernels(weight.device()) {
            true => Path::Cuda(cuda::Embedding::new(weight, bias, positions, numerics)?),
            false => Path::Cpu(cpu::Embedding::new(weight, bias, positions, numerics)?),
        };
        Ok(Self { patch, grid, path })
    }

    /// Embeds images. A single channel counts as three equal ones.
    ///
    /// # Shapes
    /// images `[b, 1 or 3, g·p, g·p]`, float32 → tokens `[b·g·g, c]`
    ///
    /// # Errors
    /// Another shape.
    pub fn forward(&self, images: &Tensor) -> Result<ResidualStream> {
        let (batch, channels, height, width) = images.dims4()?;
        let side = self.grid * self.patch;
        if !matches!(channels, 1 | 3) || (height, width) != (side, side) {
            bail!("patch embedding: expected images of [b, 1 or 3, {side}, {side}], found {:?}", images.dims());
        }
        let grid = TokenGrid { batch, grid: self.grid };
        match &self.path {
            Path::Cpu(embedding) => {
                Ok(ResidualStream::on_cpu(embedding.forward(images, grid, self.patch)?, grid, embedding.numerics()))
            }
            Path::Cuda(embedding) => embedding.forward(images, grid, self.patch),
        }
    }
}
