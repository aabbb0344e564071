//! SAM's mask decoder without prompts. `output_upscaling` is trained, and mask tokens and hypernetworks if the config says so.

use candle_core::{Result, Tensor};
use sam_ladder_ops::{F32Math, conv_transpose2d_2x2, gelu, layer_norm_2d};

use super::error::ModelError;
use super::mlp::Hypernetwork;
use super::names::EMBED_DIM;
use super::parameters::{Parameters, Trainable};
use super::prompt_encoder::PromptEncoder;
use super::transformer::{MaskTokens, TwoWayTransformer};
use super::{Mode, ModelConfig};

const EPS_2D: f64 = 1e-6;

/// `mask_decoder`: one mask per class, background included. Its IoU head is kept in the state dict but never run, since no loss uses it.
pub(super) struct MaskDecoder {
    transformer: TwoWayTransformer,
    upscaling: OutputUpscaling,
    hypernetworks: Vec<Hypernetwork>,
    /// [1, 1, 256]
    no_mask_embed: Tensor,
}

impl MaskDecoder {
    pub(super) fn new(
        config: &ModelConfig,
        prompts: &PromptEncoder,
        parameters: &mut Parameters,
    ) -> std::result::Result<Self, ModelError> {
        let p = "sam.mask_decoder";
        let iou_token = parameters.frozen(&format!("{p}.iou_token.weight"))?;
        let mask_tokens = format!("{p}.mask_tokens.weight");
        let tokens = if config.train_mask_tokens {
            MaskTokens::Trained { iou_token, mask_tokens: parameters.trainable_tensor(&mask_tokens)? }
        } else {
            MaskTokens::Frozen(Tensor::cat(&[&iou_token, &parameters.frozen(&mask_tokens)?], 0)?.unsqueeze(0)?) // [1, 1 + C, 256]
        };
        let image_pe = prompts.image_pe().flatten_from(2)?.transpose(1, 2)?.contiguous()?; // [1, n, 256]
        let transformer = TwoWayTransformer::new(&format!("{p}.transformer"), tokens, &image_pe, parameters)?;
        let upscaling = OutputUpscaling::new(&format!("{p}.output_upscaling"), parameters)?;
        let hypernetworks = (0..config.num_classes)
            .map(|class| {
                let layers: Vec<String> =
                    (0..3).map(|layer| format!("{p}.output_hypernetworks_mlps.{class}.layers.{layer}")).collect();
                Hypernetwork::new(&layers, config.train_hypernetworks, parameters)
            })
            .collect::<std::result::Result<_, _>>()?;
        let no_mask_embed = prompts.no_mask_embed().reshape((1, 1, EMBED_DIM))?;
        Ok(MaskDecoder { transformer, upscaling, hypernetworks, no_mask_embed })
    }

    /// x `[b, 256, g, g]` → low_res_logits `[b, C, 4g, 4g]`
    pub(super) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let (b, c, h, w) = x.dims4()?;
        let image = x.flatten_from(2)?.transpose(1, 2)?.contiguous()?; // [b, n, 256]
        let image = image.broadcast_add(&self.no_mask_embed.to_dtype(image.dtype())?)?;
        let (tokens, image) = self.transformer.forward(&image, mode)?;
        let image = image.transpose(1, 2)?.contiguous()?.reshape((b, c, h, w))?;
        let upscaled = self.upscaling.forward(&image, mode)?; // [b, 32, 4h, 4w]
        let hyper = self
            .hypernetworks
            .iter()
            .enumerate()
            .map(|(class, mlp)| mlp.forward(&tokens.narrow(1, 1 + class, 1)?.contiguous()?, mode)) // [b, 1, 32]
            .collect::<Result<Vec<_>>>()?;
        let hyper = Tensor::cat(&hyper, 1)?; // [b, C, 32]
        let masks = hyper.matmul(&upscaled.flatten_from(2)?)?; // [b, C, 16·h·w]
        masks.reshape((b, self.hypernetworks.len(), 4 * h, 4 * w))
    }
}

/// Two transposed convolutions that upsample the embeddings four times.
struct OutputUpscaling {
    weight0: Trainable,
    bias0: Trainable,
    norm_weight: Trainable,
    norm_bias: Trainable,
    weight3: Trainable,
    bias3: Trainable,
    math: F32Math,
}

impl OutputUpscaling {
    fn new(prefix: &str, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(OutputUpscaling {
            weight0: parameters.trainable_tensor(&format!("{prefix}.0.weight"))?,
            bias0: parameters.trainable_tensor(&format!("{prefix}.0.bias"))?,
            norm_weight: parameters.trainable_tensor(&format!("{prefix}.1.weight"))?,
            norm_bias: parameters.trainable_tensor(&format!("{prefix}.1.bias"))?,
            weight3: parameters.trainable_tensor(&format!("{prefix}.3.weight"))?,
            bias3: parameters.trainable_tensor(&format!("{prefix}.3.bias"))?,
            math: parameters.math(),
        })
    }

    /// `[b, 256, h, w]` → `[b, 32, 4h, 4w]`
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = conv_transpose2d_2x2(x, &self.weight0.get(mode), &self.bias0.get(mode), self.math)?; // [b, 64, 2h, 2w]
        let x = layer_norm_2d(&x, &self.norm_weight.get(mode), &self.norm_bias.get(mode), EPS_2D)?;
        let x = conv_transpose2d_2x2(&gelu(&x)?, &self.weight3.get(mode), &self.bias3.get(mode), self.math)?; // [b, 32, 4h, 4w]
        gelu(&x)
    }
}
