//! Choices of training that the paper does not have: how slices are drawn, how the learning rate falls, which loss is minimised, and what else the
//! decoder and the side network see.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How the slices of an epoch are drawn. An epoch always has as many slices as there are training slices
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Sampling {
    /// Each slice once per epoch: the published way
    #[default]
    Uniform,
    /// Each organ, and the slices without any, equally often: in turn, in a random order, each time one of its slices at random
    Organs,
    /// The last third of each batch (rounded up) is drawn at random from the slices with an organ, as nnU-Net does; the others as in uniform
    Foreground,
}

impl Sampling {
    /// As it is typed and stored: `uniform`.
    pub fn name(self) -> &'static str {
        match self {
            Sampling::Uniform => "uniform",
            Sampling::Organs => "organs",
            Sampling::Foreground => "foreground",
        }
    }
}

/// How the learning rate falls after the warm-up
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum LrSchedule {
    /// By (1 - step / all steps)^0.9, counted from the end of the warm-up: the published one
    #[default]
    Published,
    /// By half a cosine from the end of the warm-up to 0 at the last step
    Cosine,
}

/// The loss, (1 - λ)·A + λ·B, with A over pixels and B over classes
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// A is cross-entropy, B is Dice with squared denominators: the published one
    #[default]
    Published,
    /// A is focal loss, (1 - p)^γ times cross-entropy (Lin et al., 2017), B is Dice
    Focal,
    /// A is cross-entropy, B is Tversky loss (Salehi et al., 2017)
    Tversky,
    /// A is cross-entropy, B is generalised Dice: each class weighs by one over its squared volume in the batch (Sudre et al., 2017)
    GeneralisedDice,
}

/// What the mask decoder's upscaling sees
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum DecoderKind {
    /// Only the embeddings: the published choice
    #[default]
    Plain,
    /// Also the side network's layer1 and layer2, each through a trained 1×1 convolution that starts at zero; only for ResNets
    Skips,
    /// As skips, and a third stage of upscaling, which takes the ResNet's first convolution, gives logits at half the image's side; needs a store with labels there (precompute --half-labels)
    SkipsHalf,
}

impl DecoderKind {
    /// As it is typed and stored: `plain`.
    pub fn name(self) -> &'static str {
        match self {
            DecoderKind::Plain => "plain",
            DecoderKind::Skips => "skips",
            DecoderKind::SkipsHalf => "skips-half",
        }
    }

    /// Whether stages of the side network join the upscaling.
    pub fn has_skips(self) -> bool {
        self != DecoderKind::Plain
    }

    /// Pixels of the image along the side of one of the logits.
    pub fn logits_stride(self) -> usize {
        match self {
            DecoderKind::Plain | DecoderKind::Skips => 4,
            DecoderKind::SkipsHalf => 2,
        }
    }

    /// Whether it is the published one, which records leave out.
    pub fn is_plain(&self) -> bool {
        *self == DecoderKind::Plain
    }
}

/// The ladder: what the side network takes of the inner layers of the frozen encoder, SAM's or another
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum LadderKind {
    /// Nothing: the published choice
    #[default]
    None,
    /// The store's rungs (precompute --rungs), each mixed in by a gate of its own that starts at ½
    Gated,
}

impl LadderKind {
    /// As it is typed and stored: `none`.
    pub fn name(self) -> &'static str {
        match self {
            LadderKind::None => "none",
            LadderKind::Gated => "gated",
        }
    }
}

/// The accepted forms of [`ClassWeights`], in words.
pub const CLASS_WEIGHT_FORMS: &str = "none, inverse-frequency, or a number per class from background on, such as 0.5,1,1,2";

/// The weights of the classes in the part of the loss that is over pixels.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ClassWeights {
    /// All 1: the published ones.
    #[default]
    None,
    /// All voxels over (classes that occur, times the voxels of the class), in the slices that are trained on; 0 for a class that does not occur.
    InverseFrequency,
    /// By class, background first; not negative, and not all 0.
    Numbers(Vec<f64>),
}

impl FromStr for ClassWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected {CLASS_WEIGHT_FORMS}, found {text}");
        match text {
            "none" => Ok(ClassWeights::None),
            "inverse-frequency" => Ok(ClassWeights::InverseFrequency),
            numbers => {
                let numbers: Vec<f64> =
                    numbers.split(',').map(|number| number.trim().parse()).collect::<Result<_, _>>().map_err(|_| wrong())?;
                let usable = numbers.iter().all(|weight| weight.is_finite() && *weight >= 0.0);
                if usable && numbers.iter().any(|weight| *weight > 0.0) {
                    Ok(ClassWeights::Numbers(numbers))
                } else {
                    Err(wrong())
                }
            }
        }
    }
}

impl fmt::Display for ClassWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClassWeights::None => f.write_str("none"),
            ClassWeights::InverseFrequency => f.write_str("inverse-frequency"),
            ClassWeights::Numbers(numbers) => f.write_str(&numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(",")),
        }
    }
}

crate::by_text!(ClassWeights);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_weights_are_read_as_they_are_written() {
        for (text, expected) in [
            ("none", ClassWeights::None),
            ("inverse-frequency", ClassWeights::InverseFrequency),
            ("0.5,1,2", ClassWeights::Numbers(vec![0.5, 1.0, 2.0])),
        ] {
            assert_eq!(text.parse::<ClassWeights>().unwrap(), expected);
            assert_eq!(expected.to_string(), text);
            assert_eq!(serde_json::from_value::<ClassWeights>(serde_json::json!(expected)).unwrap(), expected);
        }
        assert_eq!("1.0, 2".parse::<ClassWeights>().unwrap().to_string(), "1,2");
        for wrong in ["", "1,x", "-1,1", "0,0", "inf,1", "frequency"] {
            assert!(wrong.parse::<ClassWeights>().unwrap_err().contains(CLASS_WEIGHT_FORMS), "{wrong}");
        }
    }
}
