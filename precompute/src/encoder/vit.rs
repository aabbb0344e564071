//! SAM's image encoder, a vision transformer, as `modeling/image_encoder.py` has it: `ImageEncoderViT`, `Block` and the neck.
//!
//! `g` is the number of tokens along the side of an image, `c` their width. Where it runs and in which layout weights lie is the operations' part.

use candle_core::{DType, Result as TensorResult, Tensor};
use sam_ladder_ops::{FrozenLinear, FrozenNorm, Numerics, PatchEmbed, RelPosAttention, TokenConv, contiguous, to_format};
use sam_ladder_schemas::encoder::EMBED_CHANNELS;

use super::Result;
use super::config::VitConfig;

/// Added to the variance in every norm of the encoder.
const NORM_EPS: f64 = 1e-6;

/// `ImageEncoderViT`.
pub(super) struct ImageEncoderVit {
    /// Patches to tokens, with `pos_embed`.
    patch_embed: PatchEmbed,
    blocks: Vec<Block>,
    /// `neck.0` and `neck.1`: a 1×1 convolution to 256 channels, and its norm.
    neck_conv1: TokenConv,
    /// `neck.2` and `neck.3`: a 3×3 convolution, and its norm.
    neck_conv2: TokenConv,
}

/// Blocks after which tokens are looked at, and what is done with them: it gets the block's place among them, and the tokens `[b·g·g, c]`,
/// float32. On a GPU these change with the next block, so whatever is made of them must be queued at once.
pub struct Taps<'a> {
    /// The blocks, ascending.
    pub blocks: &'a [usize],
    /// Called after each.
    pub visit: &'a mut dyn FnMut(usize, &Tensor) -> TensorResult<()>,
}

/// `Block`: attention, within windows or over the whole image, then a perceptron, each behind a norm and with a residual connection.
struct Block {
    norm1: FrozenNorm,
    qkv: FrozenLinear,
    attn: RelPosAttention,
    proj: FrozenLinear,
    norm2: FrozenNorm,
    lin1: FrozenLinear,
    lin2: FrozenLinear,
}

impl ImageEncoderVit {
    /// Image embeddings of images in [0, 1]; one channel stands for three equal ones. The taps change nothing.
    ///
    /// # Shapes
    /// images `[b, 1 or 3, s, s]`, float32 → `[b, 256, g, g]`, float32
    pub(super) fn forward(&self, images: &Tensor, mut taps: Option<Taps<'_>>) -> TensorResult<Tensor> {
        let mut x = self.patch_embed.forward(images)?; // [b·g·g, c]
        let grid = x.grid();
        if let Some(first) = self.blocks.first() {
            let _span = tracing::trace_span!("norm, qkv").entered();
            x.each_tile(|tile| {
                tile.norm(&first.norm1)?;
                tile.qkv(&first.qkv) // [b·g·g, 3·c]
            })?;
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let _span = tracing::trace_span!("block").entered();
            tracing::trace_span!("attention").in_scope(|| x.attend(&block.attn, &block.qkv))?; // [b·g·g, c]
            let _span = tracing::trace_span!("proj, norm, mlp, norm, qkv").entered();
            x.each_tile(|tile| {
                tile.add_linear(&block.proj)?; // x = x + proj(attn(norm1(x)))
                tile.norm(&block.norm2)?;
                tile.add_mlp(&block.lin1, &block.lin2)?; // x = x + lin2(gelu(lin1(norm2(x))))
                match self.blocks.get(i + 1) {
                    Some(next) => {
                        tile.norm(&next.norm1)?;
                        tile.qkv(&next.qkv)
                    }
                    None => Ok(()),
                }
            })?;
            if let Some(Taps { blocks, visit }) = &mut taps
                && let Some(place) = blocks.iter().position(|block| *block == i)
            {
                visit(place, &x.tokens()?)?;
            }
        }
        let _span = tracing::trace_span!("neck").entered();
        let x = self.neck_conv1.forward(&x.into_tokens()?, grid)?; // [b·g·g, 256]
        let x = self.neck_conv2.forward(&x, grid)?; // [b·g·g, 256]
        let x = x.reshape((grid.batch, grid.grid, grid.grid, EMBED_CHANNELS))?.permute((0, 3, 1, 2))?; // [b, 256, g, g]
        to_format(&contiguous(&x)?, DType::F32)
    }

    /// Takes each parameter by its name without `image_encoder.`, layer by layer, so that no more than one is in memory twice.
    pub(super) fn new(config: &VitConfig, numerics: Numerics, mut get: impl FnMut(&str) -> Result<Tensor>) -> Result<Self> {
        let pos_embed = get("pos_embed")?; // [1, g, g, c]
        let patch_embed = (get("patch_embed.proj.weight")?, get("patch_embed.proj.bias")?);
        Ok(Self {
            patch_embed: PatchEmbed::new(&patch_embed.0, &patch_embed.1, &pos_embed, numerics)?,
            blocks: (0..config.depth).map(|i| Block::new(config, i, numerics, &mut get)).collect::<Result<_>>()?,
            neck_conv1: TokenConv::new(&get("neck.0.weight")?, norm("neck.1", &mut get)?, numerics)?,
            neck_conv2: TokenConv::new(&get("neck.2.weight")?, norm("neck.3", &mut get)?, numerics)?,
        })
    }
}

impl Block {
    fn new(config: &VitConfig, i: usize, numerics: Numerics, get: &mut impl FnMut(&str) -> Result<Tensor>) -> Result<Self> {
        let mut linear = |name: &str| -> Result<FrozenLinear> {
            let (weight, bias) = (get(&format!("blocks.{i}.{name}.weight"))?, get(&format!("blocks.{i}.{name}.bias"))?);
            Ok(FrozenLinear::new(&weight, &bias, numerics)?)
        };
        let (qkv, proj) = (linear("attn.qkv")?, linear("attn.proj")?);
        let (lin1, lin2) = (linear("mlp.lin1")?, linear("mlp.lin2")?);
        let tables = (get(&format!("blocks.{i}.attn.rel_pos_h"))?, get(&format!("blocks.{i}.attn.rel_pos_w"))?);
        Ok(Block {
            norm1: norm(&format!("blocks.{i}.norm1"), get)?,
            qkv,
            attn: RelPosAttention::new(&tables.0, &tables.1, config.attention_side(i), config.num_heads, numerics)?,
            proj,
            norm2: norm(&format!("blocks.{i}.norm2"), get)?,
            lin1,
            lin2,
        })
    }
}

fn norm(name: &str, get: &mut impl FnMut(&str) -> Result<Tensor>) -> Result<FrozenNorm> {
    Ok(FrozenNorm::new(&get(&format!("{name}.weight"))?, &get(&format!("{name}.bias"))?, NORM_EPS)?)
}
