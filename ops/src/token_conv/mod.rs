//! A convolution over images of tokens (channels last), followed by a layer norm over the channels (`image_encoder.py`, `neck`).
//! Forward only: the encoder is frozen.

mod cpu;
mod cuda;

use candle_core::{Result, Tensor, bail};

use crate::device::has_kernels;
use crate::frozen::{FrozenNorm, FrozenWeight};
use crate::numerics::Numerics;
use crate::rel_pos_attention::TokenGrid;

/// A convolution without bias, with stride 1 and size-preserving padding, and a norm.
#[derive(Debug)]
pub struct TokenConv {
    path: Path,
    norm: FrozenNorm,
    /// The kernel's side.
    kernel: usize,
}

#[derive(Debug)]
enum Path {
    /// `[co, k·k·ci]`, input channels last.
    Cpu(FrozenWeight),
    /// `[co, ci, k, k]`
    Cuda(Tensor, Numerics),
}

impl TokenConv {
    /// From a weight `[co, ci, k, k]`, k odd, and a norm over `co` channels.
    ///
    /// # Errors
    /// Another shape; numerics that the device does not support.
    pub fn new(weight: &Tensor, norm: FrozenNorm, numerics: Numerics) -> Result<Self> {
        let (co, ci, kernel, width) = weight.dims4()?;
        if kernel != width || kernel.is_multiple_of(2) {
            bail!("token convolution: expected a square kernel of odd side, found {:?}", weight.dims());
        }
        let path = if has_kernels(weight.device()) {
            Path::Cuda(weight.to_dtype(numerics.dtype())?.contiguous()?, numerics)
        } else {
            let rows = weight.permute((0, 2, 3, 1))?.contiguous()?.reshape((co, kernel * kernel * ci))?;
            Path::Cpu(FrozenWeight::new(&rows, numerics)?)
        };
        Ok(Self { path, norm, kernel })
    }

    /// Convolves, then norms.
    ///
    /// # Shapes
    /// x `[b·g·g, ci]`, float32 or the format of the numerics → `[b·g·g, co]` in that format
    ///
    /// # Errors
    /// Another shape.
    pub fn forward(&self, x: &Tensor, grid: TokenGrid) -> Result<Tensor> {
        if x.dim(0)? != grid.tokens() {
            bail!("token convolution: {:?} are not the tokens of {grid:?}", x.dims());
        }
        match &self.path {
            Path::Cpu(weight) => cpu::forward(x, (weight.cpu()?, self.kernel), &self.norm, grid),
            Path::Cuda(weight, numerics) => cuda::forward(x, weight, &self.norm, grid, *numerics),
        }
    }
}
