//! `--decoder skips` and `skips-half`: the side network's layer1 and layer2, at a quarter and an eighth of the images' side, join the mask decoder's
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
//! `skips-half` has a third stage, which takes the side network's first convolution, and adds what it makes to z, of which each pixel is repeated:
//!
//! ```text
//! f = gelu(output_upscaling_half(z) + conv_stem(stem))    s/2, 32 channels
//! logits = hyper · (z at its nearest pixel + f)           s/2
//! ```
//!
//! The 1×1 convolutions have SAM 2's names, and no bias, since that of the transposed convolution before is added at the same place. They start at
//! zero, and so does the third stage: a model with skips begins as the plain one, with each logit four times at half the image's side. No published
//! checkpoint has them.

use candle_core::Result;
use sam_ladder_ops::{Conv2d, F32Math, Tape, Value, conv_transpose2d_2x2, gelu, image_to_patches};
use sam_ladder_schemas::train::SideNetworkKind;
use sam_ladder_schemas::train_choices::DecoderKind;

use super::error::ModelError;
use super::names::{EMBED_DIM, Names};
use super::parameters::{Parameters, Trainable};
use super::resnet::STEM;
use super::side_network::stage_channels;

/// Names of the convolutions of layer1, layer2 and the stem.
const NAMES: [&str; 3] = ["sam.mask_decoder.conv_s0", "sam.mask_decoder.conv_s1", "sam.mask_decoder.conv_stem"];
/// The third transposed convolution.
const THIRD: &str = "sam.mask_decoder.output_upscaling_half";
/// Channels of `output_upscaling` at a quarter, an eighth and half of the images' side.
const CHANNELS: [usize; 3] = [EMBED_DIM / 8, EMBED_DIM / 4, EMBED_DIM / 8];

/// The skips of `output_upscaling`.
pub(super) struct Skips {
    /// Of layer1, after the second transposed convolution.
    pub(super) quarter: Skip,
    /// Of layer2, after the first.
    pub(super) eighth: Skip,
    /// The third stage, for logits at half the images' side.
    pub(super) half: Option<HalfStage>,
}

impl Skips {
    /// Those of a decoder that has some.
    pub(super) fn new(decoder: DecoderKind, parameters: &mut Parameters) -> std::result::Result<Option<Self>, ModelError> {
        if !decoder.has_skips() {
            return Ok(None);
        }
        let (quarter, eighth) = (Skip::new(NAMES[0], 2, parameters)?, Skip::new(NAMES[1], 1, parameters)?);
        let half = (decoder == DecoderKind::SkipsHalf).then(|| HalfStage::new(parameters)).transpose()?;
        Ok(Some(Skips { quarter, eighth, half }))
    }
}

/// A third transposed convolution with the side network's first convolution.
pub(super) struct HalfStage {
    /// `[32, 32, 2, 2]`
    weight: Trainable,
    bias: Trainable,
    stem: Skip,
    math: F32Math,
}

impl HalfStage {
    fn new(parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(HalfStage {
            weight: parameters.trainable_tensor(&format!("{THIRD}.weight"))?,
            bias: parameters.trainable_tensor(&format!("{THIRD}.bias"))?,
            stem: Skip::new(NAMES[2], 3, parameters)?,
            math: parameters.math(),
        })
    }

    /// z `[b, 16n, 32]` and the stem `[b, 64, s/2, s/2]` → f `[b, 64n, 32]`
    pub(super) fn forward(&self, z: &Value, stem: &Value, tape: Option<&Tape>) -> Result<Value> {
        let x = conv_transpose2d_2x2(z, &self.weight.on(tape), &self.bias.on(tape), self.math)?;
        gelu(&self.stem.add_to(&x, stem, tape)?)
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
        // Fewer channels are put in another order than the stage has.
        let projected = self.conv.recorded(stage, &self.weight.on(tape))?;
        map.add(&image_to_patches(&projected, self.times)?)
    }
}

/// Names and shapes of a decoder's skips from a side network; none if it has no such stages.
pub(super) fn skip_names(list: &mut Names, decoder: DecoderKind, kind: SideNetworkKind) {
    let Some([layer1, layer2]) = stage_channels(kind).filter(|_| decoder.has_skips()) else { return };
    let mut skip =
        |stage: usize, channels: usize| list.add(format!("{}.weight", NAMES[stage]), &[CHANNELS[stage], channels, 1, 1]);
    skip(0, layer1);
    skip(1, layer2);
    if decoder == DecoderKind::SkipsHalf {
        skip(2, STEM);
        list.add(format!("{THIRD}.weight"), &[CHANNELS[0], CHANNELS[2], 2, 2]);
        list.add(format!("{THIRD}.bias"), &[CHANNELS[2]]);
    }
}
