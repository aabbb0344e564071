//! The model: a side network, a gate that mixes its output with SAM's cached embeddings, and SAM's mask decoder without prompts.
//!
//! ```text
//! images ─▶ ResNet ─▶ x_cnn ┐
//!                           ├─ gate ─▶ x ─▶ two-way transformer ─▶ output_upscaling ─▶ · hypernetworks ─▶ low_res_logits
//! store  ──────────▶ x_sam ┘               (9 mask tokens)
//! ```
//!
//! In the published model, the CNN, α and `output_upscaling` are trained; everything else is frozen, and gradients flow through it to the
//! CNN. [`ModelConfig`] offers other side networks and gates and skips from the CNN to `output_upscaling`, mixes x_sam with that of the slices around
//! and tokens from within SAM's encoder into the CNN, and can also train the mask tokens and hypernetworks. Embeddings of another encoder than SAM's
//! are brought to 256 channels by a trained projection.

mod batch_norm;
mod depth_mix;
mod error;
mod expected;
mod gate;
mod inputs;
mod ladder;
mod mask_decoder;
mod mlp;
mod names;
mod parameters;
mod projection;
mod prompt_encoder;
mod residual_block;
mod resnet;
mod side_network;
mod side_output;
mod skips;
mod transformer;
mod vit;
mod weights;

use candle_core::{Device, Result, Tensor, Var};
use sam_ladder_ops::{F32Math, Gradients, Tape, Value};
use sam_ladder_schemas::encoder::EMBED_CHANNELS;
use sam_ladder_schemas::precision::Precision;
use sam_ladder_schemas::rungs::Rungs;
use sam_ladder_schemas::train::{Arm, GateKind, SideNetworkKind, TrainConfig};
use sam_ladder_schemas::train_choices::{DecoderKind, LadderKind};

pub use error::ModelError;
pub use inputs::OfSam;
pub use weights::ModelWeights;

use depth_mix::DepthMix;
use gate::Gate;
use ladder::Ladder;
use mask_decoder::MaskDecoder;
use parameters::Parameters;
use projection::{EMBEDDING_PROJECTION, Projection};
use prompt_encoder::PromptEncoder;
use side_network::{SideNetwork, SideTape, stage_channels};
use side_output::{SideGradients, SideOutput};

/// Side of a patch (one position of the embeddings) in pixels of the network's input.
const PATCH_SIZE: usize = 16;

/// Settings that determine the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelConfig {
    /// Side of the network's input in pixels, a multiple of 16.
    pub image_size: usize,
    /// Classes including background; 9 in the published model.
    pub num_classes: usize,
    /// What the mask decoder sees.
    pub arm: Arm,
    /// The side network.
    pub side_network: SideNetworkKind,
    /// The gate.
    pub gate: GateKind,
    /// What the decoder's upscaling sees.
    pub decoder: DecoderKind,
    /// Whether the embeddings are those of three slices, which are mixed along depth.
    pub neighbours: bool,
    /// Channels of the embeddings; if they are not 256, a trained projection follows.
    pub embed_channels: usize,
    /// The rungs that are mixed into the side network, if any are.
    pub ladder: Option<Rungs>,
    /// Whether the mask tokens are trained.
    pub train_mask_tokens: bool,
    /// Whether the hypernetworks are trained.
    pub train_hypernetworks: bool,
    /// How a GPU rounds the float32 factors of products.
    pub math: F32Math,
}

impl ModelConfig {
    /// The published model: its side network, its gate and its trained parts.
    pub fn published(image_size: usize, num_classes: usize, arm: Arm) -> Self {
        ModelConfig {
            image_size,
            num_classes,
            arm,
            side_network: SideNetworkKind::Resnet18,
            gate: GateKind::Scalar,
            decoder: DecoderKind::Plain,
            neighbours: false,
            embed_channels: EMBED_CHANNELS,
            ladder: None,
            train_mask_tokens: false,
            train_hypernetworks: false,
            math: F32Math::Exact,
        }
    }

    /// The model that a run with these settings trains, on embeddings of SAM's encoders (of others [`Self::embed_channels`] differ); `rungs` are its
    /// store's, which it takes if it has a ladder.
    pub fn of_run(config: &TrainConfig, image_size: usize, num_classes: usize, rungs: Option<Rungs>) -> Self {
        ModelConfig {
            image_size,
            num_classes,
            arm: config.arm,
            side_network: config.side_network,
            gate: config.gate,
            decoder: config.decoder,
            neighbours: config.neighbours > 0,
            embed_channels: EMBED_CHANNELS,
            ladder: rungs.filter(|_| config.ladder == LadderKind::Gated),
            train_mask_tokens: config.train_mask_tokens,
            train_hypernetworks: config.train_hypernetworks,
            math: if config.precision == Precision::Tf32 { F32Math::Tf32 } else { F32Math::Exact },
        }
    }

    /// Whether the published model has the same tensors.
    pub fn has_published_names(&self) -> bool {
        let own = (self.side_network, self.gate, self.decoder, self.neighbours, self.ladder, self.projects_embeddings());
        own == (SideNetworkKind::Resnet18, GateKind::Scalar, DecoderKind::Plain, false, None, false)
    }

    /// Whether a trained projection brings the embeddings to SAM's channels: that of another encoder than SAM's.
    pub fn projects_embeddings(&self) -> bool {
        self.embed_channels != EMBED_CHANNELS
    }
}

/// The published model (SAM-LST) without its image encoder.
pub struct LadderSam {
    config: ModelConfig,
    side_network: SideNetwork,
    depth_mix: Option<DepthMix>,
    embedding_projection: Option<Projection>,
    gate: Gate,
    prompt_encoder: PromptEncoder,
    mask_decoder: MaskDecoder,
    parameters: Parameters,
}

/// A forward pass in training mode, ready for the backward pass.
pub struct TrainPass<'a> {
    /// Logits at a quarter of the input's side, `[b, C, s/4, s/4]`; with [`DecoderKind::SkipsHalf`] at half, `[b, C, s/2, s/2]`.
    pub low_res_logits: Tensor,
    /// The gate's and the mask decoder's operations, and their output.
    tape: Tape,
    output: Value,
    /// x_cnn and the stages, leaves of that tape, and what the side network's backward pass needs.
    cnn: Option<(SideOutput, &'a SideNetwork, SideTape)>,
}

impl TrainPass<'_> {
    /// Gradients of all trainable variables, given that of [`Self::low_res_logits`]. The decoder's activations are freed before the side
    /// network's gradients are computed.
    ///
    /// # Errors
    /// A gradient of another shape, and those of the tensor library.
    pub fn backward(self, gradient: Tensor) -> Result<Gradients> {
        let TrainPass { low_res_logits, tape, output, cnn } = self;
        drop(low_res_logits);
        let mut gradients = tape.backward(&output, gradient)?;
        drop(output);
        if let Some((of_cnn, side_network, side_tape)) = cnn
            && let Some(x) = gradients.remove(&of_cnn.x)
        {
            let stages = of_cnn.stages.as_ref().map(|stages| stages.map(|stage| gradients.remove(stage)));
            drop(of_cnn);
            side_network.backward(side_tape, SideGradients { x, stages }, &mut gradients)?;
        }
        Ok(gradients)
    }
}

impl LadderSam {
    /// Makes the model from its weights.
    ///
    /// # Errors
    /// Names a weight that is missing, superfluous or of another shape; an image size that is not a positive multiple of 16; skips from a side
    /// network without stages, or in an arm without a side network; neighbours in an arm without embeddings; a ladder in an arm without either.
    pub fn new(config: &ModelConfig, weights: &ModelWeights, device: &Device) -> std::result::Result<Self, ModelError> {
        if config.image_size == 0 || !config.image_size.is_multiple_of(PATCH_SIZE) {
            return Err(ModelError::ImageSize(config.image_size));
        }
        if config.num_classes < 2 {
            return Err(ModelError::Classes(config.num_classes));
        }
        if config.decoder.has_skips() && (stage_channels(config.side_network).is_none() || config.arm == Arm::SamOnly) {
            return Err(ModelError::NoStages);
        }
        if config.neighbours && config.arm == Arm::CnnOnly {
            return Err(ModelError::NoNeighbours);
        }
        if config.ladder.is_some() && config.arm != Arm::Full {
            return Err(ModelError::NoLadder);
        }
        weights.check(config)?;
        let mut parameters = Parameters::new(weights, device, config.math);
        let depth_mix = if config.neighbours { Some(DepthMix::new(config.embed_channels, &mut parameters)?) } else { None };
        let projection = |parameters: &mut Parameters| Projection::new(EMBEDDING_PROJECTION, parameters);
        let embedding_projection = config.projects_embeddings().then(|| projection(&mut parameters)).transpose()?;
        let gate = Gate::new(config.arm, config.gate, &mut parameters)?;
        let prompt_encoder = PromptEncoder::new(config.image_size / PATCH_SIZE, &mut parameters)?;
        let mask_decoder = MaskDecoder::new(config, &prompt_encoder, &mut parameters)?;
        let side_network = SideNetwork::new(config.side_network, config.decoder, config.ladder, &mut parameters)?;
        parameters.seal(tensor_names(config))?;
        Ok(LadderSam {
            config: *config,
            side_network,
            depth_mix,
            embedding_projection,
            gate,
            prompt_encoder,
            mask_decoder,
            parameters,
        })
    }

    /// The configuration that the model was made with.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The trainable variables by name: `sam.alpha`, `sam.mask_decoder.output_upscaling.…`, `CNN_encoder.…`, and others if the config says so.
    /// The same in every arm.
    pub fn trainable(&self) -> &[(String, Var)] {
        self.parameters.trainable()
    }

    /// All tensors of the model, in the published names and order, including frozen tensors, running statistics and `num_batches_tracked`
    /// (i64 scalars). They share storage with the model: write them before the next step.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn state_dict(&self) -> Result<Vec<(String, Tensor)>> {
        self.parameters.state_dict(tensor_names(&self.config))
    }

    /// Logits at a quarter of the input's side, or at half, with batch norm's running statistics and without a graph.
    ///
    /// `images` `[b, c, s, s]` in [0, 1] with 1 to 3 channels, `embeddings` `[b, 256, s/16, s/16]` (of another encoder than SAM's its channels), of
    /// a model with neighbours those of the slices before, at and after, `[b, 3, 256, s/16, s/16]`; of a model with a ladder with rungs
    /// `[b, rung, c, s/16, s/16]` → `[b, C, s/4, s/4]`, with [`DecoderKind::SkipsHalf`] `[b, C, s/2, s/2]`.
    ///
    /// # Errors
    /// Inputs of another shape, and rungs that are missing or superfluous.
    pub fn forward<'a>(&self, images: &Tensor, sam: impl Into<OfSam<'a>>) -> Result<Tensor> {
        let OfSam { embeddings, rungs } = sam.into();
        let cnn = match self.config.arm {
            Arm::SamOnly => None,
            Arm::CnnOnly | Arm::Full => Some(self.side_network.forward(images, rungs)?),
        };
        self.decode(cnn.as_ref(), embeddings, None).map(Value::into_tensor)
    }

    /// As [`Self::forward`], but in training mode: batch norm uses the statistics of the batch, and updates the running ones with momentum 0.1.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_train<'a>(&self, images: &Tensor, sam: impl Into<OfSam<'a>>) -> Result<TrainPass<'_>> {
        self.count_batch()?;
        self.forward_train_uncounted(images, sam)
    }

    /// Counts a batch in every `num_batches_tracked`: the host's part of [`Self::forward_train`].
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn count_batch(&self) -> Result<()> {
        match self.config.arm {
            Arm::SamOnly => Ok(()),
            Arm::CnnOnly | Arm::Full => self.parameters.count_batch(),
        }
    }

    /// The tensors that a training step changes on the device: trainable variables and running statistics. They share memory with the model.
    pub fn moving(&self) -> Vec<Tensor> {
        self.parameters.moving()
    }

    /// The device's part of [`Self::forward_train`], which a CUDA graph can repeat.
    ///
    /// # Errors
    /// As [`Self::forward_train`].
    pub fn forward_train_uncounted<'a>(&self, images: &Tensor, sam: impl Into<OfSam<'a>>) -> Result<TrainPass<'_>> {
        let OfSam { embeddings, rungs } = sam.into();
        let cnn = match self.config.arm {
            Arm::SamOnly => None,
            Arm::CnnOnly | Arm::Full => {
                let (of_cnn, side_tape) = self.side_network.forward_train(images, rungs)?;
                Some((of_cnn, &self.side_network, side_tape))
            }
        };
        let tape = Tape::default();
        let output = self.decode(cnn.as_ref().map(|(of_cnn, _, _)| of_cnn), embeddings, Some(&tape))?;
        Ok(TrainPass { low_res_logits: output.tensor().clone(), tape, output, cnn })
    }

    fn decode(&self, cnn: Option<&SideOutput>, embeddings: &Tensor, tape: Option<&Tape>) -> Result<Value> {
        let value = |tensor: &Tensor| tape.map_or_else(|| tensor.into(), |tape| tape.leaf(tensor));
        let x_sam = || {
            let mixed = match &self.depth_mix {
                Some(depth_mix) => depth_mix.forward(embeddings, tape)?,
                None => embeddings.into(),
            };
            self.embedding_projection.as_ref().map_or(Ok(mixed.clone()), |projection| projection.forward_on(&mixed, tape))
        };
        let x = match (cnn, self.config.arm) {
            (None, _) => x_sam()?,
            (Some(cnn), Arm::Full) => self.gate.forward(&x_sam()?, &value(&cnn.x), tape)?,
            (Some(cnn), _) => value(&cnn.x),
        };
        let stages = cnn.and_then(|cnn| cnn.stages.as_ref()).map(|stages| stages.map(value));
        self.mask_decoder.forward(&x, stages.as_ref(), tape)
    }

    /// x_cnn in training mode, as in [`Self::forward_train`]: `[b, c, s, s]`, and of a model with a ladder its rungs → `[b, 256, s/16, s/16]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn cnn_embeddings(&self, images: &Tensor, rungs: Option<&Tensor>) -> Result<Tensor> {
        self.parameters.count_batch()?;
        Ok(self.side_network.forward_train(images, rungs)?.0.x)
    }

    /// SAM's dense positional encoding, `[1, 256, g, g]`.
    pub fn image_pe(&self) -> &Tensor {
        self.prompt_encoder.image_pe()
    }

    /// The parameter α, before the sigmoid: its mean for a gate per channel, the bias for a gate per pixel. In the arms `cnn-only` and
    /// `sam-only` it has no gradient and keeps its value.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn alpha(&self) -> Result<f32> {
        self.gate.alpha()
    }

    /// The weight of x_sam: sigmoid(α) in the full model, 0 in `cnn-only`, 1 in `sam-only`. For a gate per channel the mean over channels, for
    /// a gate per pixel the mean over the last batch.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn gate(&self) -> Result<f32> {
        self.gate.value()
    }

    /// α and, for a gate that is not one number, its mean; of a model with a ladder followed by α of each rung. One or two numbers per tensor, on the
    /// device, without waiting for them and without new memory: the next step changes them.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn gate_numbers(&self) -> Result<Vec<Tensor>> {
        let mut numbers = self.gate.numbers()?;
        numbers.extend(self.side_network.ladder().into_iter().flat_map(Ladder::alphas));
        Ok(numbers)
    }

    /// Of a model with a ladder the gate of each rung, in the order of the encoder's blocks: the rung's share where it is mixed. Otherwise empty.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn rung_gates(&self) -> Result<Vec<f32>> {
        self.side_network.ladder().map_or_else(|| Ok(Vec::new()), Ladder::gates)
    }
}

/// The names of the model's tensors, in the published order.
fn tensor_names(config: &ModelConfig) -> impl Iterator<Item = String> {
    ModelWeights::expected(config).into_iter().map(|(name, _)| name)
}

/// Masks at the network's resolution: bilinear, `align_corners = false`; `[b, C, h, w]` → `[b, C, size, size]`.
///
/// # Errors
/// Those of the tensor library.
pub fn upsample_masks(low_res_logits: &Tensor, size: usize) -> Result<Tensor> {
    low_res_logits.detach().to_dtype(candle_core::DType::F32)?.upsample_bilinear2d(size, size, false)
}
