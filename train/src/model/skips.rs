//! `--decoder skips`: the side network's layer1 and layer2, at a quarter and an eighth of the images' side, join the mask decoder's
//! `output_upscaling`, as the stages of SAM 2's encoder do (Ravi et al., 2024, `use_high_res_features` of its `mask_decoder.py`):
//!
//! ```text
//! dc1, ln1, act1, dc2, act2 = output_upscaling
//! y = act1(ln1(dc1(x) + conv_s1(layer2)))    s/8, 64 channels
//! z = act2(dc2(y) + conv_s0(layer1))         s/4, 32 channels
//! ```
//!
//! They are added before norm and GELU, where the map is still linear in x: what follows norms the sum, so that the scale of a stage (outputs of
//! ReLU, of any size) cannot outweigh the embeddings, and both pass one nonlinearity together. After GELU they would reach the logits at the second
//! place as they are, as a linear map of layer1.
//!
//! The 1×1 convolutions have SAM 2's names, and no bias, since that of the transposed convolution before is added at the same place. They start at
//! zero, so that a model with skips begins as the plain one; no published checkpoint has them.

use candle_core::Result;
use sam_ladder_ops::{Conv2d, Tape, Value, image_to_patches, record};
use sam_ladder_schemas::train::SideNetworkKind;

use super::error::ModelError;
use super::names::{EMBED_DIM, Names};
use super::parameters::{Parameters, Trainable};
use super::side_network::stage_channels;

/// Name of each convolution, of layer1's first.
const NAMES: [&str; 2] = ["sam.mask_decoder.conv_s0", "sam.mask_decoder.conv_s1"];
/// Channels of `output_upscaling` at a quarter and at an eighth of the images' side.
const CHANNELS: [usize; 2] = [EMBED_DIM / 8, EMBED_DIM / 4];

/// The skips of `output_upscaling`.
pub(super) struct Skips {
    /// Of layer1, after the second transposed convolution.
    pub(super) quarter: Skip,
    /// Of layer2, after the first.
    pub(super) eighth: Skip,
}

impl Skips {
    pub(super) fn new(parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(Skips { quarter: Skip::new(NAMES[0], 2, parameters)?, eighth: Skip::new(NAMES[1], 1, parameters)? })
    }
}

/// A 1×1 convolution from a stage's channels to the decoder's.
pub(super) struct Skip {
    /// [co, ci, 1, 1]
    weight: Trainable,
    conv: Conv2d,
    /// Number of transposed convolutions before the place.
    times: usize,
}

impl Skip {
    fn new(name: &str, times: usize, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        let weight = parameters.trainable_tensor(&format!("{name}.weight"))?;
        Ok(Skip { weight, conv: Conv2d::new(1, 0).with_math(parameters.math()), times })
    }

    /// The sum of the map `[b, n, co]` and the stage `[b, ci, h, w]`, n = h·w, in the map's order of pixels.
    pub(super) fn add_to(&self, map: &Value, stage: &Value, tape: Option<&Tape>) -> Result<Value> {
        let (conv, input, weight) = (self.conv, stage.tensor().clone(), self.weight.tensor());
        let (_, _, h, w) = input.dims4()?;
        let inputs = [stage, &self.weight.on(tape)];
        // Fewer channels are put in another order than the stage has.
        let projected = record(conv.forward(&input, &weight)?, &inputs, move |gradient, wanted| {
            Ok(vec![
                wanted[0].then(|| conv.backward_input(gradient, &weight, (h, w))).transpose()?,
                wanted[1].then(|| conv.backward_weight(&input, gradient, 1)).transpose()?,
            ])
        })?;
        map.add(&image_to_patches(&projected, self.times)?)
    }
}

/// Names and shapes of the skips from a side network; none if it has no such stages.
pub(super) fn skip_names(list: &mut Names, kind: SideNetworkKind) {
    for (stage, channels) in stage_channels(kind).into_iter().flatten().enumerate() {
        list.add(format!("{}.weight", NAMES[stage]), &[CHANNELS[stage], channels, 1, 1]);
    }
}
