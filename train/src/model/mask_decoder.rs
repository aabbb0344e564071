//! SAM's mask decoder without prompts. `output_upscaling` is trained, and skips to it, mask tokens and hypernetworks if the config says so.

use candle_core::{Result, Tensor, bail};
use sam_ladder_ops::{F32Math, Tape, Value, conv_transpose2d_2x2, gelu, layer_norm, patches_to_image, product_transposed};
use sam_ladder_schemas::train_choices::DecoderKind;

use super::ModelConfig;
use super::error::ModelError;
use super::mlp::Hypernetworks;
use super::names::EMBED_DIM;
use super::parameters::{Parameters, Trainable};
use super::prompt_encoder::PromptEncoder;
use super::side_output::Stages;
use super::skips::Skips;
use super::transformer::{MaskTokens, TwoWayTransformer};

const EPS_2D: f64 = 1e-6;

/// `mask_decoder`: one mask per class, background included. Its IoU head is kept in the state dict but never run, since no loss uses it.
pub(super) struct MaskDecoder {
    transformer: TwoWayTransformer,
    upscaling: OutputUpscaling,
    hypernetworks: Hypernetworks,
    num_classes: usize,
    math: F32Math,
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
        let no_mask = prompts.no_mask_embed().reshape((1, 1, EMBED_DIM))?;
        let transformer = TwoWayTransformer::new(&format!("{p}.transformer"), tokens, (&image_pe, &no_mask), parameters)?;
        let upscaling = OutputUpscaling::new(&format!("{p}.output_upscaling"), config.decoder, parameters)?;
        let hypernetworks = format!("{p}.output_hypernetworks_mlps");
        let hypernetworks = Hypernetworks::new(&hypernetworks, config.num_classes, config.train_hypernetworks, parameters)?;
        Ok(MaskDecoder { transformer, upscaling, hypernetworks, num_classes: config.num_classes, math: parameters.math() })
    }

    /// x `[b, 256, g, g]` and, for skips, the side network's stages → low_res_logits `[b, C, 4g, 4g]`, or `[b, C, 8g, 8g]` with a third stage
    pub(super) fn forward(&self, x: &Value, stages: Option<&Stages<Value>>, tape: Option<&Tape>) -> Result<Value> {
        let (b, c, h, w) = x.tensor().dims4()?;
        let image = x.reshape((b, c, h * w))?.permute(&[0, 2, 1])?; // [b, n, 256]
        let (tokens, image) = self.transformer.forward(&image, tape)?;
        let (upscaled, third) = self.upscaling.forward(&image, stages, tape)?; // [b, 16n, 32]
        let hyper = self.hypernetworks.forward(&tokens.narrow(1, 1, self.num_classes)?, tape)?; // [b, C, 32]
        let logits = product_transposed(&hyper, &upscaled, self.math)?;
        match third {
            None => patches_to_image(&logits, (h, w), 2),
            Some(third) => {
                let logits = logits.repeat_each(4)?.add(&product_transposed(&hyper, &third, self.math)?)?;
                patches_to_image(&logits, (h, w), 3)
            }
        }
    }
}

/// Two transposed convolutions that upsample the embeddings four times. What is between and after them looks at one pixel at a time, so the
/// pixels need not be in the image's order.
struct OutputUpscaling {
    weight0: Trainable,
    bias0: Trainable,
    norm_weight: Trainable,
    norm_bias: Trainable,
    weight3: Trainable,
    bias3: Trainable,
    skips: Option<Skips>,
    math: F32Math,
}

impl OutputUpscaling {
    fn new(prefix: &str, decoder: DecoderKind, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(OutputUpscaling {
            weight0: parameters.trainable_tensor(&format!("{prefix}.0.weight"))?,
            bias0: parameters.trainable_tensor(&format!("{prefix}.0.bias"))?,
            norm_weight: parameters.trainable_tensor(&format!("{prefix}.1.weight"))?,
            norm_bias: parameters.trainable_tensor(&format!("{prefix}.1.bias"))?,
            weight3: parameters.trainable_tensor(&format!("{prefix}.3.weight"))?,
            bias3: parameters.trainable_tensor(&format!("{prefix}.3.bias"))?,
            skips: Skips::new(decoder, parameters)?,
            math: parameters.math(),
        })
    }

    /// `[b, n, 256]`, and the side network's stages for skips → `[b, 16n, 32]`, and of a third stage `[b, 64n, 32]`
    fn forward(&self, x: &Value, stages: Option<&Stages<Value>>, tape: Option<&Tape>) -> Result<(Value, Option<Value>)> {
        let skips = match (&self.skips, stages) {
            (None, _) => None,
            (Some(skips), Some(stages)) => Some((skips, stages)),
            (Some(_), None) => bail!("the decoder's skips need stages of the side network"),
        };
        let mut x = conv_transpose2d_2x2(x, &self.weight0.on(tape), &self.bias0.on(tape), self.math)?; // [b, 4n, 64]
        if let Some((skips, stages)) = skips {
            x = skips.eighth.add_to(&x, &stages.layer2, tape)?;
        }
        let x = gelu(&layer_norm(&x, &self.norm_weight.on(tape), &self.norm_bias.on(tape), EPS_2D)?)?;
        let mut x = conv_transpose2d_2x2(&x, &self.weight3.on(tape), &self.bias3.on(tape), self.math)?; // [b, 16n, 32]
        if let Some((skips, stages)) = skips {
            x = skips.quarter.add_to(&x, &stages.layer1, tape)?;
        }
        let x = gelu(&x)?;
        let third = match skips.and_then(|(skips, stages)| Some((skips.half.as_ref()?, stages.stem.as_ref()))) {
            None => None,
            Some((half, Some(stem))) => Some(half.forward(&x, stem, tape)?),
            Some((_, None)) => bail!("the decoder's third stage needs the side network's first convolution"),
        };
        Ok((x, third))
    }
}
