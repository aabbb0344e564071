//! DINOv2's and DINOv3's vision transformer.
//!
//! `g` is the number of patches along the side of an image, `c` the width of tokens, `p` the number of tokens before the patches: the class token,
//! then the registers.

use std::f64::consts::TAU;

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use sam_ladder_ops::{FrozenLinear, FrozenNorm, Numerics, PatchEmbed, PrefixAttention, contiguous, layer_norm};

use super::super::vit::Taps;
use super::super::{Placement, Result};
use super::config::DinoConfig;

/// The longest period of DINOv3's rotary positions, as a multiple of 2 (`pos_embed_rope_base`).
const ROPE_BASE: f64 = 100.0;

/// The encoder.
pub(in crate::encoder) struct DinoVit {
    /// Patches to tokens, with `pos_embed`.
    patch_embed: PatchEmbed,
    /// Class token and registers, `[p, c]`.
    prefix: Tensor,
    blocks: Vec<Block>,
    attention: PrefixAttention,
    /// Scale and shift of the last norm, `[c]`.
    norm: [Tensor; 2],
    eps: f64,
}

/// Attention and a perceptron, each behind a norm and with a residual connection. The layer scale, a factor for each channel of what is added, is
/// part of the weights of `proj` and `fc2`.
struct Block {
    norm1: FrozenNorm,
    qkv: FrozenLinear,
    proj: FrozenLinear,
    norm2: FrozenNorm,
    fc1: FrozenLinear,
    fc2: FrozenLinear,
}

impl DinoVit {
    /// The patches' tokens after the last norm; one channel stands for three equal ones. The taps change nothing.
    ///
    /// # Shapes
    /// images `[b, 1 or 3, g·patch, g·patch]`, float32 → `[b, c, g, g]`, float32
    pub(in crate::encoder) fn forward(&self, images: &Tensor, mut taps: Option<Taps<'_>>) -> TensorResult<Tensor> {
        let mut x = self.patch_embed.forward(images)?.with_prefix(&self.prefix)?; // [b·(p + g·g), c]
        let grid = x.grid();
        if let Some(first) = self.blocks.first() {
            x.each_tile(|tile| {
                tile.norm(&first.norm1)?;
                tile.qkv(&first.qkv)
            })?;
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let _span = tracing::trace_span!("block").entered();
            tracing::trace_span!("attention").in_scope(|| x.attend_with_prefix(&self.attention, &block.qkv))?;
            let _span = tracing::trace_span!("proj, norm, mlp, norm, qkv").entered();
            x.each_tile(|tile| {
                tile.add_linear(&block.proj)?; // x = x + ls1·proj(attn(norm1(x)))
                tile.norm(&block.norm2)?;
                tile.add_mlp(&block.fc1, &block.fc2)?; // x = x + ls2·fc2(gelu(fc1(norm2(x))))
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
        let [weight, bias] = &self.norm;
        let x = layer_norm(&x.into_tokens()?.into(), &weight.into(), &bias.into(), self.eps)?; // [b·g·g, c]
        let x = x.tensor().reshape((grid.batch, grid.grid, grid.grid, ()))?.permute((0, 3, 1, 2))?; // [b, c, g, g]
        contiguous(&x)
    }

    /// Takes each parameter by its name in [`DinoConfig::tensors`], on its device, layer by layer.
    pub(in crate::encoder) fn new(
        config: &DinoConfig,
        numerics: Numerics,
        placement: Placement<'_>,
        mut get: impl FnMut(&str) -> Result<Tensor>,
    ) -> Result<Self> {
        let (c, g, device) = (config.embed_dim, config.grid, placement.device);
        let mut prefix = vec![get("cls_token")?.reshape((1, c))?];
        if config.registers > 0 {
            prefix.push(get("register_tokens")?.reshape((config.registers, c))?);
        }
        let positions = match config.rotary {
            true => Tensor::zeros((1, g, g, c), DType::F32, device)?,
            false => get("pos_embed")?.reshape((1, g, g, c))?,
        };
        let patch_embed = (get("patch_embed.proj.weight")?, get("patch_embed.proj.bias")?);
        let angles = if config.rotary { Some(angles(g, config.head_dim())?) } else { None };
        let heads = (config.num_heads, config.head_dim());
        Ok(DinoVit {
            patch_embed: PatchEmbed::new(&patch_embed.0, &patch_embed.1, &positions, numerics)?,
            attention: PrefixAttention::new(angles.as_ref(), heads, 1 + config.registers, numerics, device)?,
            prefix: Tensor::cat(&prefix, 0)?,
            blocks: (0..config.depth).map(|i| Block::new(config, i, numerics, &mut get)).collect::<Result<_>>()?,
            norm: [get("norm.weight")?, get("norm.bias")?],
            eps: config.norm_eps(),
        })
    }
}

impl Block {
    fn new(config: &DinoConfig, i: usize, numerics: Numerics, get: &mut impl FnMut(&str) -> Result<Tensor>) -> Result<Self> {
        let mut of = |name: &str| get(&format!("blocks.{i}.{name}"));
        let norm = |weight: Tensor, bias: Tensor| FrozenNorm::new(&weight, &bias, config.norm_eps());
        let scaled = |weight: Tensor, bias: Tensor, scale: Tensor| -> Result<FrozenLinear> {
            let weight = weight.broadcast_mul(&scale.unsqueeze(1)?)?;
            Ok(FrozenLinear::new(&weight, &(bias * scale)?, numerics)?)
        };
        Ok(Block {
            norm1: norm(of("norm1.weight")?, of("norm1.bias")?)?,
            qkv: FrozenLinear::new(&of("attn.qkv.weight")?, &of("attn.qkv.bias")?, numerics)?,
            proj: scaled(of("attn.proj.weight")?, of("attn.proj.bias")?, of("ls1.gamma")?)?,
            norm2: norm(of("norm2.weight")?, of("norm2.bias")?)?,
            fc1: FrozenLinear::new(&of("mlp.fc1.weight")?, &of("mlp.fc1.bias")?, numerics)?,
            fc2: scaled(of("mlp.fc2.weight")?, of("mlp.fc2.bias")?, of("ls2.gamma")?)?,
        })
    }
}

/// The periods of rotary positions along an axis, for heads of width `d`: 100^(4·k/d) for k below d/4.
pub(super) fn periods(d: usize) -> Vec<f64> {
    (0..d / 4).map(|k| ROPE_BASE.powf(4.0 * k as f64 / d as f64)).collect()
}

/// Angles of the patches, `[g·g, d/2]`: those of the row, then those of the column. Along each axis the patches' middles lie between -1 and 1.
fn angles(g: usize, d: usize) -> Result<Tensor> {
    let periods = periods(d);
    let along = |place: usize| {
        let middle = 2.0 * (place as f64 + 0.5) / g as f64 - 1.0;
        periods.iter().map(move |period| TAU * middle / period)
    };
    let all: Vec<f64> = (0..g * g).flat_map(|patch| along(patch / g).chain(along(patch % g)).collect::<Vec<_>>()).collect();
    Ok(Tensor::from_vec(all, (g * g, 2 * periods.len()), &Device::Cpu)?)
}
