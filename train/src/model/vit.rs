//! timm's `vit_tiny_patch16_224` (Touvron et al., "Training data-efficient image transformers", 2021) as the side network: twelve blocks
//! of width 192 over patches of 16×16 pixels. The class token is dropped at the end; a 1×1 convolution maps the rest to SAM's 256
//! channels. There is no dropout, as in timm's defaults.

use candle_core::{Result, Tensor};
use sam_ladder_ops::{
    F32Math, Tape, Value, contiguous, gelu, layer_norm, linear, multi_head_self_attention, record, record_composed,
};

use super::PATCH_SIZE;
use super::error::ModelError;
use super::ladder::{Ladder, Stage};
use super::mlp::TrainedLinear;
use super::names::{EMBED_DIM, Names};
use super::parameters::{Parameters, Trainable};
use super::projection::{Projection, SIDE_PROJECTION, projection_names};

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
    /// What rungs are mixed in, if there are any.
    ladder: Option<Ladder>,
}

/// What takes rungs: the patches' tokens of every block.
pub(super) const LADDER_STAGE: Stage = Stage { width: WIDTH, depth: DEPTH };

impl VitTiny {
    pub(super) fn new(ladder: Option<Ladder>, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(VitTiny {
            cls_token: parameters.trainable_tensor("CNN_encoder.cls_token")?,
            pos_embed: parameters.trainable_tensor("CNN_encoder.pos_embed")?,
            patch_embed: PatchEmbed::new(parameters)?,
            blocks: (0..DEPTH)
                .map(|i| Block::new(&format!("CNN_encoder.blocks.{i}"), parameters))
                .collect::<std::result::Result<_, _>>()?,
            norm: LayerNorm::new("CNN_encoder.norm", parameters)?,
            projection: Projection::new(SIDE_PROJECTION, parameters)?,
            ladder,
        })
    }

    pub(super) fn ladder(&self) -> Option<&Ladder> {
        self.ladder.as_ref()
    }

    /// `[b, c, s, s]`, and rungs `[b, rung, c, s/16, s/16]` if there are any → `[b, 256, s/16, s/16]`
    pub(super) fn forward(&self, images: &Tensor, rungs: Option<&Tensor>, tape: Option<&Tape>) -> Result<Value> {
        let (b, _, h, w) = images.dims4()?;
        let (gh, gw) = (h / PATCH_SIZE, w / PATCH_SIZE);
        let patches = self.patch_embed.forward(images, tape)?; // [b, g·g, 192]
        let mut x = record_composed(&[&self.cls_token.on(tape), &patches, &self.pos_embed.on(tape)], move |t| {
            let cls = t[0].broadcast_as((b, 1, WIDTH))?.contiguous()?;
            Tensor::cat(&[&cls, &t[1]], 1)?.broadcast_add(&t[2])
        })?; // [b, 1 + g·g, 192]
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, tape)?;
            if let (Some(ladder), Some(rungs)) = (self.ladder.as_ref().filter(|ladder| ladder.is_at(index)), rungs) {
                let patches = ladder.mix_tokens(index, &x.narrow(1, 1, gh * gw)?, rungs, tape)?;
                x = joined(&x.narrow(1, 0, 1)?, &patches)?;
            }
        }
        let x = self.norm.forward(&x, tape)?.narrow(1, 1, gh * gw)?; // [b, g·g, 192]
        self.projection.forward_on(&x.permute(&[0, 2, 1])?.reshape((b, WIDTH, gh, gw))?, tape)
    }
}

/// The class token `[b, 1, 192]` before the patches' `[b, n, 192]`.
fn joined(class: &Value, patches: &Value) -> Result<Value> {
    let tokens = patches.tensor().dim(1)?;
    record(Tensor::cat(&[class.tensor(), patches.tensor()], 1)?, &[class, patches], move |gradient, wanted| {
        let part =
            |wanted: bool, start: usize, len: usize| wanted.then(|| contiguous(&gradient.narrow(1, start, len)?)).transpose();
        Ok(vec![part(wanted[0], 0, 1)?, part(wanted[1], 1, tokens)?])
    })
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
    fn forward(&self, images: &Tensor, tape: Option<&Tape>) -> Result<Value> {
        let (b, c, h, w) = images.dims4()?;
        let (gh, gw) = (h / PATCH_SIZE, w / PATCH_SIZE);
        let patches = images
            .reshape(&[b, c, gh, PATCH_SIZE, gw, PATCH_SIZE][..])?
            .permute([0, 2, 4, 1, 3, 5])?
            .contiguous()?
            .reshape((b, gh * gw, c * PATCH_SIZE * PATCH_SIZE))?;
        let weight = record_composed(&[&self.weight.on(tape)], move |t| {
            let of_channels = if c == 1 { t[0].sum_keepdim(1)? } else { t[0].narrow(1, 0, c)? };
            of_channels.contiguous()?.reshape((WIDTH, c * PATCH_SIZE * PATCH_SIZE))
        })?;
        linear(&patches.into(), &weight, Some(&self.bias.on(tape)), self.math)
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
    fn forward(&self, x: &Value, tape: Option<&Tape>) -> Result<Value> {
        let x = x.add(&self.attend(&self.norm1.forward(x, tape)?, tape)?)?;
        let hidden = gelu(&self.fc1.forward(&self.norm2.forward(&x, tape)?, tape)?)?; // [b, n, 768]
        x.add(&self.fc2.forward(&hidden, tape)?)
    }

    fn attend(&self, x: &Value, tape: Option<&Tape>) -> Result<Value> {
        let d = WIDTH / HEADS;
        let attended = multi_head_self_attention(&self.qkv.forward(x, tape)?, HEADS, 1.0 / (d as f64).sqrt())?;
        self.proj.forward(&attended, tape)
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

    fn forward(&self, x: &Value, tape: Option<&Tape>) -> Result<Value> {
        layer_norm(x, &self.weight.on(tape), &self.bias.on(tape), EPS)
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
    projection_names(list, SIDE_PROJECTION, [WIDTH, EMBED_DIM]);
}
