//! A vision transformer's residual stream: the tokens `x` to which every block adds, and the computations between two attentions.
//!
//! Of an image there are the tokens of its patches, and before them those that stand for no patch, such as the class token and registers
//! ([`ResidualStream::with_prefix`]), if there are any.
//! Between two attentions each token is processed independently. On the CPU a thread takes a tile of tokens (about 70; in
//! bfloat16 up to 512) through all steps while they are in its caches; on a GPU all tokens are one tile. Forward only: the encoder is frozen.

mod cpu;
mod cuda;

use candle_core::{Result, Tensor, bail};
use half::bf16;

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
    stream: Box<dyn Stream>,
}

/// Some tokens of a stream, between two attentions.
pub struct Tile<'a>(&'a mut dyn Steps);

/// All tokens, where they are.
trait Stream: Send {
    /// Calls `steps` with every tile, and adds any bias that the last step deferred.
    fn each_tile(&mut self, steps: &(dyn Fn(&mut Tile<'_>) -> Result<()> + Sync)) -> Result<()>;
    /// On a GPU the bias of `qkv` is added here, on the CPU by [`Steps::qkv`]; windows have it where they are padded.
    fn attend(&mut self, attention: &RelPosAttention, qkv: &FrozenLinear, grid: TokenGrid) -> Result<()>;
    fn attend_with_prefix(&mut self, attention: &PrefixAttention, qkv: &FrozenLinear, grid: TokenGrid) -> Result<()>;
    /// `[tokens, c]`, float32.
    fn tokens(&self) -> Result<Tensor>;
    /// As [`Self::tokens`].
    fn into_tokens(self: Box<Self>) -> Result<Tensor>;
    /// A stream of other tokens `[tokens, c]` with the same numerics.
    fn of_tokens(&self, x: Tensor) -> Result<Box<dyn Stream>>;
}

/// The steps between two attentions, of some tokens.
trait Steps {
    fn add_linear(&mut self, layer: &FrozenLinear) -> Result<()>;
    fn norm(&mut self, norm: &FrozenNorm) -> Result<()>;
    fn add_mlp(&mut self, lin1: &FrozenLinear, lin2: &FrozenLinear) -> Result<()>;
    fn qkv(&mut self, layer: &FrozenLinear) -> Result<()>;
}

impl ResidualStream {
    /// On the CPU, from tokens `[b·grid·grid, c]`, whose layers have weights for these numerics.
    pub(crate) fn on_cpu(x: Vec<f32>, grid: TokenGrid, numerics: Numerics) -> Self {
        let stream: Box<dyn Stream> = match numerics {
            Numerics::Bf16 => Box::new(cpu::Stream::<bf16>::new(x, grid.tokens(), numerics)),
            _ => Box::new(cpu::Stream::<f32>::new(x, grid.tokens(), numerics)),
        };
        Self { grid, prefix: 0, stream }
    }

    /// On a GPU, from tokens `[b·grid·grid, c]`, float32, whose memory belongs to the stream.
    pub(crate) fn on_gpu(x: Tensor, grid: TokenGrid, numerics: Numerics) -> Self {
        Self { grid, prefix: 0, stream: Box::new(cuda::Stream::new(x, numerics.dtype())) }
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
        let patches = self.stream.tokens()?.reshape((batch, grid * grid, c))?;
        let x = Tensor::cat(&[&tokens.unsqueeze(0)?.expand((batch, prefix, c))?.contiguous()?, &patches], 1)?;
        let stream = self.stream.of_tokens(x.reshape((batch * (prefix + grid * grid), c))?)?;
        Ok(Self { grid: self.grid, prefix, stream })
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
        self.stream.each_tile(&steps)
    }

    /// Attends with the queries, keys and values that [`Tile::qkv`] computed with the layer `qkv`; the next step is [`Tile::add_linear`].
    ///
    /// # Errors
    /// Layers of other sizes.
    pub fn attend(&mut self, attention: &RelPosAttention, qkv: &FrozenLinear) -> Result<()> {
        self.stream.attend(attention, qkv, self.grid)
    }

    /// As [`Self::attend`], among all tokens of an image, those before the patches too.
    ///
    /// # Errors
    /// Layers of other sizes.
    pub fn attend_with_prefix(&mut self, attention: &PrefixAttention, qkv: &FrozenLinear) -> Result<()> {
        self.stream.attend_with_prefix(attention, qkv, self.grid)
    }

    /// The patches' tokens as they are now, `[b·grid·grid, c]`, float32. On a GPU the next step changes them in place, so whatever is made of them must be
    /// queued before it.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn tokens(&self) -> Result<Tensor> {
        Self::patches(self.stream.tokens()?, self.prefix, self.grid)
    }

    /// The patches' tokens, `[b·grid·grid, c]`, float32.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn into_tokens(self) -> Result<Tensor> {
        Self::patches(self.stream.into_tokens()?, self.prefix, self.grid)
    }
}

impl Tile<'_> {
    /// `x + layer(attended)`, where `attended` is the result of [`ResidualStream::attend`].
    ///
    /// # Errors
    /// A layer of other sizes.
    pub fn add_linear(&mut self, layer: &FrozenLinear) -> Result<()> {
        self.0.add_linear(layer)
    }

    /// The layer norm of `x`, for the next step.
    ///
    /// # Errors
    /// A layer of other sizes.
    pub fn norm(&mut self, norm: &FrozenNorm) -> Result<()> {
        self.0.norm(norm)
    }

    /// `x + lin2(gelu(lin1(normed)))`, where `normed` is the result of [`Self::norm`].
    ///
    /// # Errors
    /// Layers of other sizes.
    pub fn add_mlp(&mut self, lin1: &FrozenLinear, lin2: &FrozenLinear) -> Result<()> {
        self.0.add_mlp(lin1, lin2)
    }

    /// Queries, keys and values from the result of [`Self::norm`], for [`ResidualStream::attend`].
    ///
    /// # Errors
    /// A layer of other sizes.
    pub fn qkv(&mut self, layer: &FrozenLinear) -> Result<()> {
        self.0.qkv(layer)
    }
}
