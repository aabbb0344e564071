//! timm's `vit_tiny_patch16_224` (Touvron et al., "Training data-efficient image transformers", 2021) as the side network: twelve blocks
//! of width 192 over patches of 16×16 pixels. The class token is dropped at the end; a 1×1 convolution maps the rest to SAM's 256
//! channels. There is no dropout, as in timm's defaults.

use candle_core::{Result, Tensor};
use sam_ladder_ops::{F32Math, attention, gelu, layer_norm, linear};

use super::error::ModelError;
use super::mlp::TrainedLinear;
use super::names::Names;
use super::parameters::{Parameters, Trainable};
use super::projection::{Projection, projection_names};
use super::{Mode, PATCH_SIZE};

/// Channels of each token.
pub(super) const WIDTH: usize = 192;
const HEADS: usize = 3;
const DEPTH: usize = 12;
const MLP_RATIO: usize = 4;
const EPS: f64 = 1e-6;

/// The network, under timm's names behind `CNN_encoder.`.
pub(super) struct VitTiny {
    patch_embed: PatchEmbed,
    /// [1, 1, 192]
    cls_token: Trainable,
    /// [1, 1 + g·g, 192], the class token first
    pos_embed: Trainable,
    blocks: Vec<Block>,
    norm: LayerNorm,
    projection: Projection,
}

impl VitTiny {
    pub(super) fn new(parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(VitTiny {
            cls_token: parameters.trainable_tensor("CNN_encoder.cls_token")?,
            pos_embed: parameters.trainable_tensor("CNN_encoder.pos_embed")?,
            patch_embed: PatchEmbed::new(parameters)?,
            blocks: (0..DEPTH)
                .map(|i| Block::new(&format!("CNN_encoder.blocks.{i}"), parameters))
                .collect::<std::result::Result<_, _>>()?,
            norm: LayerNorm::new("CNN_encoder.norm", parameters)?,
            projection: Projection::new(parameters)?,
        })
    }

    /// `[b, c, s, s]` → `[b, 256, s/16, s/16]`, with candle's graph in training.
    pub(super) fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let (b, _, h, w) = images.dims4()?;
        let (gh, gw) = (h / PATCH_SIZE, w / PATCH_SIZE);
        let patches = self.patch_embed.forward(images, mode)?; // [b, g·g, 192]
        let cls = self.cls_token.get(mode).broadcast_as((b, 1, WIDTH))?.contiguous()?;
        let mut x = Tensor::cat(&[&cls, &patches], 1)?.broadcast_add(&self.pos_embed.get(mode))?; // [b, 1 + g·g, 192]
        for block in &self.blocks {
            x = block.forward(&x, mode)?;
        }
        let x = self.norm.forward(&x, mode)?.narrow(1, 1, gh * gw)?; // [b, g·g, 192]
        let x = x.transpose(1, 2)?.contiguous()?.reshape((b, WIDTH, gh, gw))?;
        self.projection.forward(&x, mode)
    }
}

/// A linear map of each patch: timm's 16×16 convolution with stride 16.
struct PatchEmbed {
    /// [192, 3, 16, 16]
    weight: Trainable,
    /// [192]
    bias: Trainable,
    math: F32Math,
}

impl PatchEmbed {
    fn new(parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(PatchEmbed {
            weight: parameters.trainable_tensor("CNN_encoder.patch_embed.proj.weight")?,
            bias: parameters.trainable_tensor("CNN_encoder.patch_embed.proj.bias")?,
            math: parameters.math(),
        })
    }

    /// `[b, c, s, s]` → `[b, g·g, 192]`. One channel is repeated to three, and of two the missing third is zero, as in the ResNets.
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let (b, c, h, w) = images.dims4()?;
        let (gh, gw) = (h / PATCH_SIZE, w / PATCH_SIZE);
        let patches = images
            .reshape(&[b, c, gh, PATCH_SIZE, gw, PATCH_SIZE][..])?
            .permute([0, 2, 4, 1, 3, 5])?
            .contiguous()?
            .reshape((b, gh * gw, c * PATCH_SIZE * PATCH_SIZE))?;
        let weight = match c {
            1 => self.weight.get(mode).sum_keepdim(1)?,
            c => self.weight.get(mode).narrow(1, 0, c)?,
        };
        let weight = weight.contiguous()?.reshape((WIDTH, c * PATCH_SIZE * PATCH_SIZE))?;
        linear(&patches, &weight, Some(&self.bias.get(mode)), self.math)
    }
}

/// Attention, then a perceptron, each behind a layer norm and with a shortcut around it.
struct Block {
    norm1: LayerNorm,
    qkv: TrainedLinear,
    proj: TrainedLinear,
    norm2: LayerNorm,
    fc1: TrainedLinear,
    fc2: TrainedLinear,
}

impl Block {
    fn new(prefix: &str, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(Block {
            norm1: LayerNorm::new(&format!("{prefix}.norm1"), parameters)?,
            qkv: TrainedLinear::new(&format!("{prefix}.attn.qkv"), parameters)?,
            proj: TrainedLinear::new(&format!("{prefix}.attn.proj"), parameters)?,
            norm2: LayerNorm::new(&format!("{prefix}.norm2"), parameters)?,
            fc1: TrainedLinear::new(&format!("{prefix}.mlp.fc1"), parameters)?,
            fc2: TrainedLinear::new(&format!("{prefix}.mlp.fc2"), parameters)?,
        })
    }

    /// `[b, n, 192]` → the same
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = (x + self.attend(&self.norm1.forward(x, mode)?, mode)?)?;
        let hidden = gelu(&self.fc1.forward(&self.norm2.forward(&x, mode)?, mode)?)?; // [b, n, 768]
        &x + self.fc2.forward(&hidden, mode)?
    }

    fn attend(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let (b, n, _) = x.dims3()?;
        let d = WIDTH / HEADS;
        let qkv = self.qkv.forward(x, mode)?.reshape((b, n, 3, HEADS, d))?;
        let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2); // [b, heads, n, d], a view
        let attended = attention(&part(0)?, &part(1)?, &part(2)?, 1.0 / (d as f64).sqrt())?;
        self.proj.forward(&attended.transpose(1, 2)?.contiguous()?.reshape((b, n, WIDTH))?, mode)
    }
}

/// A trainable layer norm.
struct LayerNorm {
    weight: Trainable,
    bias: Trainable,
}

impl LayerNorm {
    fn new(prefix: &str, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(LayerNorm {
            weight: parameters.trainable_tensor(&format!("{prefix}.weight"))?,
            bias: parameters.trainable_tensor(&format!("{prefix}.bias"))?,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        layer_norm(x, &self.weight.get(mode), &self.bias.get(mode), EPS)
    }
}

/// Names and shapes of the network's tensors for a grid of `grid`×`grid` patches, in timm's order.
pub(super) fn vit_names(list: &mut Names, grid: usize) {
    let p = "CNN_encoder";
    list.add(format!("{p}.cls_token"), &[1, 1, WIDTH]);
    list.add(format!("{p}.pos_embed"), &[1, 1 + grid * grid, WIDTH]);
    list.add_affine(&format!("{p}.patch_embed.proj"), &[WIDTH, 3, PATCH_SIZE, PATCH_SIZE]);
    for i in 0..DEPTH {
        let block = format!("{p}.blocks.{i}");
        list.add_affine(&format!("{block}.norm1"), &[WIDTH]);
        list.add_affine(&format!("{block}.attn.qkv"), &[3 * WIDTH, WIDTH]);
        list.add_affine(&format!("{block}.attn.proj"), &[WIDTH, WIDTH]);
        list.add_affine(&format!("{block}.norm2"), &[WIDTH]);
        list.add_affine(&format!("{block}.mlp.fc1"), &[MLP_RATIO * WIDTH, WIDTH]);
        list.add_affine(&format!("{block}.mlp.fc2"), &[WIDTH, MLP_RATIO * WIDTH]);
    }
    list.add_affine(&format!("{p}.norm"), &[WIDTH]);
    projection_names(list, WIDTH);
}
