//! The model: ResNet-18 to layer3 beside a cache of SAM's embeddings, the gate between them, SAM's mask decoder without prompts.
//!
//! ```text
//! images ─▶ ResNet ─▶ x_cnn ┐
//!                           ├─ gate ─▶ x ─▶ two-way transformer ─▶ output_upscaling ─▶ · hypernetworks ─▶ low_res_logits
//! store  ──────────▶ x_sam ┘               (9 mask tokens)
//! ```
//!
//! Trainable are the CNN, α and `output_upscaling`; everything else is frozen, and gradients flow through it to the CNN.

mod gate;
mod mask_decoder;
mod mlp;
mod parameters;
mod prompt_encoder;
mod resnet;
mod transformer;
mod weights;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};
use sam_ladder_schemas::train::Arm;

pub use weights::{ModelError, ModelWeights};

use gate::Gate;
use mask_decoder::MaskDecoder;
use parameters::Parameters;
use prompt_encoder::PromptEncoder;
use resnet::ResNet;

/// Side of a pixel of the image embeddings, in pixels of the network's input.
const PATCH_SIZE: usize = 16;

/// What shapes the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelConfig {
    /// Side of the network's input in pixels, a multiple of 16.
    pub image_size: usize,
    /// Classes with the background; 9 in the published model.
    pub num_classes: usize,
    /// What the mask decoder sees.
    pub arm: Arm,
}

/// How batch norm normalises, and whether a gradient will be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By the statistics of the batch; the running statistics follow with momentum 0.1.
    Train,
    /// By the running statistics; no graph is kept.
    Eval,
}

/// The published model (SAM-LST) less its image encoder.
pub struct LadderSam {
    config: ModelConfig,
    resnet: ResNet,
    gate: Gate,
    prompt_encoder: PromptEncoder,
    mask_decoder: MaskDecoder,
    parameters: Parameters,
}

/// A forward pass in training mode, from which gradients can be had.
pub struct TrainPass {
    /// Logits at a quarter of the input's side, `[b, C, s/4, s/4]`.
    pub low_res_logits: Tensor,
}

impl TrainPass {
    /// Gradients of a scalar that was computed from [`Self::low_res_logits`], by trainable variable.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn backward(self, loss: &Tensor) -> Result<GradStore> {
        loss.backward()
    }
}

impl LadderSam {
    /// Makes the model of its weights.
    ///
    /// # Errors
    /// A weight that is missing, superfluous or of another shape, by name; an image size that is no positive multiple of 16.
    pub fn new(config: &ModelConfig, weights: &ModelWeights, device: &Device) -> std::result::Result<Self, ModelError> {
        if config.image_size == 0 || !config.image_size.is_multiple_of(PATCH_SIZE) {
            return Err(ModelError::Config(format!("image size must be a positive multiple of 16, got {}", config.image_size)));
        }
        if config.num_classes < 2 {
            return Err(ModelError::Config(format!(
                "the number of classes must be at least 2 with the background, got {}",
                config.num_classes
            )));
        }
        weights.check(config)?;
        let mut parameters = Parameters::new(weights, device);
        let gate = Gate::new(config.arm, &mut parameters)?;
        let prompt_encoder = PromptEncoder::new(config.image_size / PATCH_SIZE, &mut parameters)?;
        let mask_decoder = MaskDecoder::new(config.num_classes, &prompt_encoder, &mut parameters)?;
        let resnet = ResNet::new(&mut parameters)?;
        parameters.seal(config)?;
        Ok(LadderSam { config: *config, resnet, gate, prompt_encoder, mask_decoder, parameters })
    }

    /// The configuration that the model was made with.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The trainable variables by name: `sam.alpha`, `sam.mask_decoder.output_upscaling.…`, `CNN_encoder.…`; the same in every arm.
    pub fn trainable(&self) -> &[(String, Var)] {
        self.parameters.trainable()
    }

    /// Everything the model holds, in the published names and order: frozen tensors, running statistics and
    /// `num_batches_tracked` (i64 scalars) too. The tensors share storage with the model; write them before the next step.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn state_dict(&self) -> Result<Vec<(String, Tensor)>> {
        self.parameters.state_dict(&self.config)
    }

    /// Logits at a quarter of the input's side.
    ///
    /// `images` `[b, c, s, s]` in [0, 1] with 1 to 3 channels, `embeddings` `[b, 256, s/16, s/16]` → `[b, C, s/4, s/4]`. In [`Mode::Train`] the running
    /// statistics of batch norm are updated and the result carries its graph; in [`Mode::Eval`] neither.
    ///
    /// # Errors
    /// Inputs of another shape.
    pub fn forward(&self, images: &Tensor, embeddings: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = match self.config.arm {
            Arm::SamOnly => embeddings.clone(),
            Arm::CnnOnly => self.cnn_embeddings(images, mode)?,
            Arm::Full => self.gate.forward(embeddings, &self.cnn_embeddings(images, mode)?, mode)?,
        };
        self.mask_decoder.forward(&x, mode)
    }

    /// As [`Self::forward`] in [`Mode::Train`], together with the way back to the gradients.
    ///
    /// # Errors
    /// Inputs of another shape.
    pub fn forward_train(&self, images: &Tensor, embeddings: &Tensor) -> Result<TrainPass> {
        Ok(TrainPass { low_res_logits: self.forward(images, embeddings, Mode::Train)? })
    }

    /// x_cnn: `[b, c, s, s]` → `[b, 256, s/16, s/16]`.
    ///
    /// # Errors
    /// Images of another shape.
    pub fn cnn_embeddings(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        self.resnet.forward(images, mode)
    }

    /// SAM's dense positional encoding, `[1, 256, g, g]`.
    pub fn image_pe(&self) -> &Tensor {
        self.prompt_encoder.image_pe()
    }

    /// The parameter α, before the sigmoid. It has no gradient in the arms `cnn-only` and `sam-only` and keeps its value there.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn alpha(&self) -> Result<f32> {
        self.gate.alpha()
    }

    /// The weight that x_sam has: sigmoid(α) in the full model, 0 in `cnn-only`, 1 in `sam-only`.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn gate(&self) -> Result<f32> {
        self.gate.value()
    }
}

/// Masks at the network's resolution: bilinear, `align_corners = false`; `[b, C, h, w]` → `[b, C, size, size]`.
///
/// # Errors
/// Those of the tensor library.
pub fn upsample_masks(low_res_logits: &Tensor, size: usize) -> Result<Tensor> {
    low_res_logits.detach().upsample_bilinear2d(size, size, false)
}
