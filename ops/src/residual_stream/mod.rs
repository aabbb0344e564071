//! A vision transformer's residual stream: the tokens `x` to which every block adds, and the computations between two attentions.
//!
//! Of an image there are the tokens of its patches, and before them those that are no patches ([`ResidualStream::with_prefix`]), if there are any.
//! Between two attentions each token is processed independently. On the CPU a thread takes a tile of about 70 tokens through all steps while
//! they are in its caches; on a GPU all tokens are one tile. Forward only: the encoder is frozen.

mod cpu;
mod cuda;

use candle_core::{DType, Result, Tensor, bail};

use crate::frozen::{FrozenLinear, FrozenNorm};
use crate::numerics::Numerics;
use crate::prefix_attention::PrefixAttention;
use crate::rel_pos_attention::{RelPosAttention, TokenGrid};
use crate::strided_copy::contiguous;

/// The tokens of some images.
pub struct ResidualStream {
    grid: TokenGrid,
    /// Tokens of each image before its patches.
    prefix: usize,
    path: Path,
}

enum Path {
    Cpu(cpu::Stream),
    Cuda(cuda::Stream),
}

/// Some tokens of a stream, between two attentions.
pub struct Tile<'a>(TilePath<'a>);

enum TilePath<'a> {
    Cpu(cpu::Tile<'a>),
    Cuda(&'a mut cuda::Stream),
}

impl ResidualStream {
    /// On the CPU, from tokens `[b·grid·grid, c]`, whose layers have weights for these numerics.
    pub(crate) fn on_cpu(x: Vec<f32>, grid: TokenGrid, numerics: Numerics) -> Self {
        let path = Path::Cpu(cpu::Stream::new(x, grid.tokens(), numerics));
        Self { grid, prefix: 0, path }
    }

    /// On a GPU, from tokens `[b·grid·grid, c]`, float32, whose memory belongs to the stream.
    pub(crate) fn on_gpu(x: Tensor, grid: TokenGrid, numerics: Numerics) -> Self {
        Self { grid, prefix: 0, path: Path::Cuda(cuda::Stream::new(x, numerics.dtype())) }
    }

    /// The same with these tokens before the patches of each image: `[prefix, c]`, float32.
    ///
    /// # Errors
    /// Tokens of another width or device; a stream that has some already.
    pub fn with_prefix(self, tokens: &Tensor) -> Result<Self> {
        let (TokenGrid { batch, grid }, (prefix, c)) = (self.grid, tokens.dims2()?);
        if self.prefix > 0 {
            bail!("residual stream: there are {} tokens before the patches already", self.prefix);
        }
        let (grid, patches) = (self.grid, grid * grid);
        let (on_cpu, dtype) = match &self.path {
            Path::Cpu(stream) => (Some(stream.numerics()), DType::F32),
            Path::Cuda(stream) => (None, stream.dtype()),
        };
        let x = self.into_tokens()?.reshape((batch, patches, c))?;
        let x = Tensor::cat(&[&tokens.unsqueeze(0)?.expand((batch, prefix, c))?.contiguous()?, &x], 1)?;
        let x = x.reshape((batch * (prefix + patches), c))?;
        let path = match on_cpu {
            Some(numerics) => Path::Cpu(cpu::Stream::new(x.flatten_all()?.to_vec1()?, batch * (prefix + patches), numerics)),
            None => Path::Cuda(cuda::Stream::new(x, dtype)),
        };
        Ok(Self { grid, prefix, path })
    }

    /// All tokens, those before the patches too.
    fn count(&self) -> usize {
        self.grid.batch * self.prefix + self.grid.tokens()
    }

    /// Of all tokens those of the patches.
    fn patches(all: Tensor, prefix: usize, TokenGrid { batch, grid }: TokenGrid) -> Result<Tensor> {
        if prefix == 0 {
            return Ok(all);
        }
        let (patches, c) = (grid * grid, all.dim(1)?);
        contiguous(&all.reshape((batch, prefix + patches, c))?.narrow(1, prefix, patches)?)?.reshape((batch * patches, c))
    }

    /// Number of images, and tokens along their side.
    pub fn grid(&self) -> TokenGrid {
        self.grid
    }

    /// Calls `steps` with every tile of the tokens, and adds any bias that the last step deferred.
    ///
    /// # Errors
    /// Those of `steps`.
    pub fn each_tile(&mut self, steps: impl Fn(&mut Tile<'_>) -> Result<()> + Sync) -> Result<()> {
        match &mut self.path {
            Path::Cpu(stream) => stream.each_tile(|tile| {
                let mut tile = Tile(TilePath::Cpu(tile));
                steps(&mut tile)?;
                match tile.0 {
                    TilePath::Cpu(tile) => tile.finish(),
                    TilePath::Cuda(_) => {}
                }
                Ok(())
            }),
            Path::Cuda(stream) => {
                steps(&mut Tile(TilePath::Cuda(stream)))?;
                stream.finish()
            }
        }
    }

    /// Attends with the queries, keys and values that [`Tile::qkv`] computed with the layer `qkv`; the next step is [`Tile::add_linear`].
    ///
    /// # Errors
    /// Layers of other sizes.
    pub fn attend(&mut self, attention: &RelPosAttention, qkv: &FrozenLinear) -> Result<()> {
        match &mut self.path {
            Path::Cpu(stream) => stream.attend(attention, qkv, self.grid),
            Path::Cuda(stream) => stream.attend(attention, qkv, self.grid),
        }
    }

    /// As [`Self::attend`], among all tokens of an image, those before the patches too.
    ///
    /// # Errors
    /// Layers of other sizes.
    pub fn attend_with_prefix(&mut self, attention: &PrefixAttention, qkv: &FrozenLinear) -> Result<()> {
        match &mut self.path {
            Path::Cpu(stream) => stream.attend_with_prefix(attention, qkv, self.grid),
            Path::Cuda(stream) => stream.attend_with_prefix(attention, qkv, self.grid),
        }
    }

    /// The patches' tokens as they are now, `[b·grid·grid, c]`, float32. On a GPU the next step changes them in place, so whatever is made of them must be
    /// queued before it.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn tokens(&self) -> Result<Tensor> {
        let all = match &self.path {
            Path::Cpu(stream) => stream.tokens(self.count())?,
            Path::Cuda(stream) => stream.tokens(),
        };
        Self::patches(all, self.prefix, self.grid)
    }

    /// The patches' tokens, `[b·grid·grid, c]`, float32.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn into_tokens(self) -> Result<Tensor> {
        let (count, prefix, grid) = (self.count(), self.prefix, self.grid);
        let all = match self.path {
            Path::Cpu(stream) => stream.into_tokens(count)?,
            Path::Cuda(stream) => stream.into_tokens(),
        };
        Self::patches(all, prefix, grid)
    }
}

impl Tile<'_> {
    /// `x + layer(attended)`, where `attended` is the result of [`ResidualStream::attend`].
    ///
    /// # Errors
    /// A layer of other sizes.
    pub fn add_linear(&mut self, layer: &FrozenLinear) -> Result<()> {
        match &mut self.0 {
            TilePath::Cpu(tile) => tile.add_linear(layer),
            TilePath::Cuda(stream) => stream.add_linear(layer),
        }
    }

    /// The layer norm of `x`, for the next step.
    ///
    /// # Errors
    /// A layer of other sizes.
    pub fn norm(&mut self, norm: &FrozenNorm) -> Result<()> {
        match &mut self.0 {
            TilePath::Cpu(tile) => tile.norm(norm),
            TilePath::Cuda(stream) => stream.norm(norm),
        }
    }

    /// `x + lin2(gelu(lin1(normed)))`, where `normed` is the result of [`Self::norm`].
    ///
    /// # Errors
    /// Layers of other sizes.
    pub fn add_mlp(&mut self, lin1: &FrozenLinear, lin2: &FrozenLinear) -> Result<()> {
        match &mut self.0 {
            TilePath::Cpu(tile) => tile.add_mlp(lin1, lin2),
            TilePath::Cuda(stream) => stream.add_mlp(lin1, lin2),
        }
    }

    /// Queries, keys and values from the result of [`Self::norm`], for [`ResidualStream::attend`].
    ///
    /// # Errors
    /// A layer of other sizes.
    pub fn qkv(&mut self, layer: &FrozenLinear) -> Result<()> {
        match &mut self.0 {
            TilePath::Cpu(tile) => tile.qkv(layer),
            TilePath::Cuda(stream) => stream.qkv(layer),
        }
    }
}
