//! torchvision's ResNets up to layer3, at a sixteenth of the input's resolution: ResNet-18 (the published side network, with 13
//! convolutions on its main path), ResNet-34 and ResNet-50.
//!
//! In training they keep a tape instead of candle's graph, with only the outputs of convolutions and blocks, and on a GPU the normalised
//! activations within a block, which the backward pass recomputes on the CPU. It drops each tensor after its last use, and does not sum
//! gradients into zeros first.

use candle_core::{Result, Tensor};
use sam_ladder_ops::{
    Conv2d, Gradients, Places, Tail, add, contiguous, max_pool2d_3x3_s2_p1, normalize_backward, normalize_relu_max_pool,
    normalize_relu_max_pool_backward, sum_second_axis,
};

use sam_ladder_schemas::train_choices::DecoderKind;

use super::batch_norm::{BatchNorm, Normalized, batch_norm_names};
use super::error::ModelError;
use super::ladder::{Ladder, Mixed, Stage};
use super::names::{EMBED_DIM, Names};
use super::parameters::{Parameters, Trainable, convert};
use super::projection::{Projection, SIDE_PROJECTION, projection_names};
use super::residual_block::{BlockShape, BlockTape, ResidualBlock};
use super::side_output::{SideGradients, SideOutput, Stages};

/// Channels of the stem.
pub(super) const STEM: usize = 64;

/// Which ResNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResNetKind {
    ResNet18,
    ResNet34,
    ResNet50,
}

impl ResNetKind {
    /// Blocks of each layer.
    fn depths(self) -> [usize; 3] {
        if self == ResNetKind::ResNet18 { [2, 2, 2] } else { [3, 4, 6] }
    }

    /// Channels of each layer.
    fn widths(self) -> [usize; 3] {
        if self == ResNetKind::ResNet50 { [256, 512, 1024] } else { [64, 128, EMBED_DIM] }
    }

    /// Every block by name. Layer 1 keeps the resolution; the first block of each later layer halves it.
    fn blocks(self) -> Vec<(String, BlockShape)> {
        let block = if self == ResNetKind::ResNet50 { BlockShape::bottleneck } else { BlockShape::basic };
        let mut blocks = Vec::new();
        let mut input = STEM;
        for (layer, (depth, output)) in self.depths().into_iter().zip(self.widths()).enumerate() {
            for number in 0..depth {
                let stride = if number == 0 && layer > 0 { 2 } else { 1 };
                blocks.push((format!("CNN_encoder.layer{}.{number}", layer + 1), block(input, output, stride)));
                input = output;
            }
        }
        blocks
    }

    /// Channels of layer3.
    fn channels(self) -> usize {
        self.widths()[2]
    }

    /// Channels of layer1 and layer2.
    pub(super) fn stage_channels(self) -> [usize; 2] {
        let [layer1, layer2, _] = self.widths();
        [layer1, layer2]
    }

    /// Index of the last block of layer1 and of layer2.
    fn stage_ends(self) -> [usize; 2] {
        let [layer1, layer2, _] = self.depths();
        [layer1 - 1, layer1 + layer2 - 1]
    }

    /// layer3, which has the resolution of the embeddings.
    pub(super) fn ladder_stage(self) -> Stage {
        Stage { width: self.channels(), depth: self.depths()[2] }
    }

    fn has_projection(self) -> bool {
        self.channels() != EMBED_DIM
    }

    /// Names and shapes of the network's tensors: torchvision's behind `CNN_encoder.`, and the projection's.
    pub(super) fn names(self, list: &mut Names) {
        list.add("CNN_encoder.conv1.weight", &[STEM, 3, 7, 7]);
        batch_norm_names(list, "CNN_encoder.bn1", STEM);
        for (prefix, shape) in self.blocks() {
            shape.names(list, &prefix);
        }
        if self.has_projection() {
            projection_names(list, SIDE_PROJECTION, [self.channels(), EMBED_DIM]);
        }
    }
}

/// `CNN_encoder` of the published model, and its larger variants.
pub(super) struct ResNet {
    /// [64, 3, 7, 7]
    stem: Trainable,
    stem_conv: Conv2d,
    stem_norm: BatchNorm,
    blocks: Vec<ResidualBlock>,
    /// The weights of the blocks' convolutions.
    convolutions: Vec<Trainable>,
    /// `None` if layer3 has SAM's 256 channels.
    projection: Option<Projection>,
    /// Index of the last block of layer1 and of layer2, if their outputs are wanted.
    stage_ends: Option<[usize; 2]>,
    /// Whether the stem's output is wanted, too.
    shows_stem: bool,
    /// What rungs are mixed into layer3, if there are any.
    ladder: Option<Ladder>,
    /// Index of the first block of layer3.
    layer3: usize,
}

impl ResNet {
    /// For a decoder with skips, the stages that it takes are outputs, too.
    pub(super) fn new(
        kind: ResNetKind,
        decoder: DecoderKind,
        ladder: Option<Ladder>,
        parameters: &mut Parameters,
    ) -> std::result::Result<Self, ModelError> {
        let stem = parameters.trainable_tensor("CNN_encoder.conv1.weight")?;
        let stem_norm = BatchNorm::new("CNN_encoder.bn1", parameters)?;
        let blocks = kind
            .blocks()
            .iter()
            .map(|(prefix, shape)| ResidualBlock::new(prefix, shape, parameters))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let projection = if kind.has_projection() { Some(Projection::new(SIDE_PROJECTION, parameters)?) } else { None };
        let stem_conv = Conv2d::new(2, 3).with_math(parameters.math());
        let convolutions = blocks.iter().flat_map(ResidualBlock::weights).cloned().collect();
        let stage_ends = decoder.has_skips().then(|| kind.stage_ends());
        let shows_stem = decoder == DecoderKind::SkipsHalf;
        let layer3 = kind.depths()[..2].iter().sum();
        Ok(ResNet { stem, stem_conv, stem_norm, blocks, convolutions, projection, stage_ends, shows_stem, ladder, layer3 })
    }

    /// Which stage ends with a block: 0 for layer1, 1 for layer2; only if stages are wanted.
    fn stage_of(&self, block: usize) -> Option<usize> {
        self.stage_ends?.iter().position(|&end| end == block)
    }

    pub(super) fn ladder(&self) -> Option<&Ladder> {
        self.ladder.as_ref()
    }

    /// The ladder and the rungs, with the number of a block in layer3, if any are mixed in after it.
    fn rungs_after<'a>(&'a self, block: usize, rungs: Option<&'a Tensor>) -> Option<(&'a Ladder, usize, &'a Tensor)> {
        let place = block.checked_sub(self.layer3)?;
        let ladder = self.ladder.as_ref().filter(|ladder| ladder.is_at(place))?;
        Some((ladder, place, rungs?))
    }

    /// Of images `[b, c, s, s]` and rungs `[b, rung, c, s/16, s/16]`, if there are any; by the running statistics.
    pub(super) fn forward(&self, images: &Tensor, rungs: Option<&Tensor>) -> Result<SideOutput> {
        let x = self.stem_conv.forward(images, &self.stem_weight(images)?)?;
        let stem = self.stem_norm.infer(&x, true)?;
        let mut x = max_pool2d_3x3_s2_p1(&stem)?;
        let stem = self.shows_stem.then_some(stem);
        let mut layers = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x)?;
            if let Some((ladder, place, rungs)) = self.rungs_after(index, rungs) {
                x = ladder.mix(place, &x.into(), rungs, None)?.into_tensor();
            }
            layers.extend(self.stage_of(index).map(|_| x.clone()));
        }
        if let Some(projection) = &self.projection {
            x = projection.forward(&x)?;
        }
        Ok(SideOutput { x, stages: stages(stem, layers) })
    }

    /// As [`Self::forward`], by the statistics of the batch; updates the running ones. Also returns the tape for [`Self::backward`].
    pub(super) fn forward_train(&self, images: &Tensor, rungs: Option<&Tensor>) -> Result<(SideOutput, ResNetTape)> {
        convert(&self.convolutions, images.dtype())?;
        let stem = self.stem_norm.normalized(self.stem_conv.forward(images, &self.stem_weight(images)?)?)?; // [b, 64, s/2, s/2]
        let (weight, bias) = self.stem_norm.parameters();
        let (mut x, places) = normalize_relu_max_pool(&stem.x, &stem.statistics, &weight, &bias)?; // [b, 64, s/4, s/4]
        let shown = self.shows_stem.then(|| self.stem_norm.forward(&stem, Tail::Relu)).transpose()?;
        let (mut blocks, mut layers, mut mixtures) = (Vec::with_capacity(self.blocks.len()), Vec::new(), Vec::new());
        for (index, block) in self.blocks.iter().enumerate() {
            let tape = block.forward_train(x)?;
            x = tape.out.clone();
            layers.extend(self.stage_of(index).map(|_| x.clone()));
            if let Some((ladder, place, rungs)) = self.rungs_after(index, rungs) {
                let mixed = Mixed::new(ladder, place, &x, rungs)?;
                x = mixed.output().clone();
                mixtures.push((index, mixed));
            }
            blocks.push(tape);
        }
        let layer3 = self.projection.as_ref().map(|_| x.clone());
        if let Some(projection) = &self.projection {
            x = projection.forward(&x)?;
        }
        let output = SideOutput { x, stages: stages(shown, layers) };
        Ok((output, ResNetTape { images: images.clone(), stem, places, blocks, mixtures, layer3 }))
    }

    /// Adds the gradients of every variable to `grads`, given those of [`Self::forward_train`]'s output.
    pub(super) fn backward(&self, tape: ResNetTape, grad: SideGradients, grads: &mut Gradients) -> Result<()> {
        let ResNetTape { images, stem, places, mut blocks, mut mixtures, layer3 } = tape;
        let SideGradients { x: grad, stages } = grad;
        let (of_stem, mut of_layers) = stages.map_or((None, [None, None]), |of| (of.stem.flatten(), [of.layer1, of.layer2]));
        let grad = match (&self.projection, layer3) {
            (Some(projection), Some(layer3)) => projection.backward(&layer3, &grad, grads)?,
            _ => grad,
        };
        let mut grad = (grad, None);
        for (index, block) in self.blocks.iter().enumerate().rev() {
            if let Some(of_stage) = self.stage_of(index).and_then(|stage| of_layers[stage].take()) {
                grad.0 = add(&grad.0, &of_stage)?;
            }
            if let Some((_, mixed)) = mixtures.pop_if(|(after, _)| *after == index) {
                grad = (mixed.backward(grad, grads)?, None);
            }
            let Some(tape) = blocks.pop() else { candle_core::bail!("the tape has fewer blocks than the network") };
            grad = block.backward(tape, grad, grads)?;
        }
        let (weight, bias) = self.stem_norm.parameters();
        let parts = (&grad.0, grad.1.as_ref());
        let mut found = normalize_relu_max_pool_backward(&stem.x, &stem.statistics, &weight, &bias, &places, parts)?;
        if let Some(of_stem) = of_stem {
            // What is shown of the stem goes another way than what is pooled; both gradients are linear.
            let shown = normalize_backward(&stem.x, &stem.statistics, &weight, &bias, true, &of_stem)?;
            found.x = add(&found.x, &shown.x)?;
            found.weight = add(&found.weight, &shown.weight)?;
            found.bias = add(&found.bias, &shown.bias)?;
        }
        drop((stem, places, grad));
        let grad = self.stem_norm.keep(found, grads);
        let grad = self.stem_conv.backward_weight(&images, &grad, 7)?;
        grads.insert(self.stem.var(), self.stem_gradient(grad)?);
        Ok(())
    }

    /// `[64, c, 7, 7]`. The published model repeats a grey image to three channels. Convolving one channel with the sum of the weight's three
    /// channels gives the same result, and each of the three has the sum's gradient. With two channels the third would be zero, so it is left
    /// out together with its part of the weight.
    fn stem_weight(&self, images: &Tensor) -> Result<Tensor> {
        let weight = self.stem.tensor();
        match images.dim(1)? {
            1 => sum_second_axis(&weight, images.dtype()),
            channels => weight.narrow(1, 0, channels),
        }
    }

    /// The gradient of the stem's weight, given that of [`Self::stem_weight`].
    fn stem_gradient(&self, grad: Tensor) -> Result<Tensor> {
        let shape = self.stem.var().shape();
        match grad.dim(1)? {
            1 => contiguous(&grad.broadcast_as(shape)?),
            channels => grad.pad_with_zeros(1, 0, shape.dims()[1] - channels),
        }
    }
}

/// The stages that are shown: layer1 and layer2, and perhaps the stem; none without layers.
fn stages(stem: Option<Tensor>, layers: Vec<Tensor>) -> Option<Stages<Tensor>> {
    let [layer1, layer2] = layers.try_into().ok()?;
    Some(Stages { stem, layer1, layer2 })
}

/// What [`ResNet::backward`] needs of a forward pass.
pub(super) struct ResNetTape {
    /// [b, c, s, s]
    images: Tensor,
    stem: Normalized,
    places: Places,
    blocks: Vec<BlockTape>,
    /// With rungs: after which block, and the mixture.
    mixtures: Vec<(usize, Mixed)>,
    /// The projection's input, if there is a projection.
    layer3: Option<Tensor>,
}
