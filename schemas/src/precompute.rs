//! The configuration of stage one: all that shapes a tensor of the store, and nothing else.

use crate::encoder::{EncoderArch, PATCH_SIZE};
use crate::precision::Precision;
use crate::tables::voxels_column;
use crate::variants::AugmentPolicy;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Number format of the embeddings and images of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreDtype {
    /// IEEE half precision, the default.
    F16,
    /// Single precision: training from it equals running the encoder inside the loop.
    F32,
    /// bfloat16.
    Bf16,
    /// 8 bits a value, with a scale and an offset for every channel of every variant: half of [`StoreDtype::F16`]'s bytes.
    Q8,
}

impl StoreDtype {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            StoreDtype::F16 | StoreDtype::Bf16 => 2,
            StoreDtype::F32 => 4,
            StoreDtype::Q8 => 1,
        }
    }
}

/// Whether the arrays that training reads are compressed; masks always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are: read as fast as the disk gives them.
    None,
    /// zstd, level 1.
    Zstd,
}

/// Where the frozen weights come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum EncoderWeights {
    /// A SAM checkpoint file.
    Checkpoint {
        /// Its SHA-256, in hexadecimal.
        sha256: String,
    },
    /// Random weights, for machines without a checkpoint.
    Random {
        /// Seed of the generator.
        seed: u64,
    },
}

/// How a raw scan becomes the image that the network sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Hounsfield window: clipped to it, then scaled so that it becomes [0, 1]. Of every channel whose intensity is [`Intensity::Window`].
    pub window_hu: [f32; 2],
    /// Raw label → class, by index; a raw label beyond its end is an error.
    pub label_map: Vec<u8>,
    /// The image's channels, one to [`MAX_CHANNELS`]. One CT channel by the window, the published case, is left out of the JSON.
    #[serde(default = "one_ct_channel", skip_serializing_if = "is_one_ct_channel")]
    pub channels: Vec<Channel>,
}

impl Default for Preprocessing {
    /// The published window and label map.
    fn default() -> Self {
        Preprocessing {
            window_hu: [-125.0, 275.0],
            label_map: crate::classes::SYNAPSE_LABEL_MAP.to_vec(),
            channels: one_ct_channel(),
        }
    }
}

/// Longest side of an image in pixels: eight times SAM's own, beyond which one embedding takes a gigabyte.
pub const MAX_SIDE: usize = 8192;

/// Channels that SAM's encoder and ResNet-18 take: one is repeated to three, beside two the third is zero.
pub const MAX_CHANNELS: usize = 3;

/// One channel of the image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    /// Its number in the source: `_0000` of nnU-Net's file names is 0.
    pub index: u32,
    /// Its name in the source: `CT`, `T2`.
    pub name: String,
    /// How its values become [0, 1].
    pub intensity: Intensity,
}

/// How a channel's values become [0, 1].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Intensity {
    /// Clipped to [`Preprocessing::window_hu`], which becomes [0, 1].
    Window,
    /// Clipped to the range between two percentiles of the scan's own voxels, which becomes [0, 1].
    Percentiles {
        /// Percentile that becomes 0.
        low: f64,
        /// Percentile that becomes 1.
        high: f64,
    },
}

fn identity_alone() -> AugmentPolicy {
    AugmentPolicy::None
}

fn is_identity_alone(policy: &AugmentPolicy) -> bool {
    *policy == AugmentPolicy::None
}

fn one_ct_channel() -> Vec<Channel> {
    vec![Channel { index: 0, name: "CT".into(), intensity: Intensity::Window }]
}

fn is_one_ct_channel(channels: &[Channel]) -> bool {
    channels == one_ct_channel()
}

/// All settings of `precompute` that shape a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecomputeConfig {
    /// Architecture of the encoder.
    pub encoder: EncoderArch,
    /// Its weights.
    pub weights: EncoderWeights,
    /// Pixels along the side of the network's input, a multiple of [`PATCH_SIZE`].
    pub image_size: usize,
    /// Pixels along the side of the data: slices are brought to it and augmented there, before they are brought to `image_size`.
    pub data_size: usize,
    /// From Hounsfield units and raw labels to images and classes.
    pub preprocessing: Preprocessing,
    /// Which variants of a training slice are stored.
    pub augment: AugmentPolicy,
    /// Which variants of a test slice are stored: [`AugmentPolicy::None`], or [`AugmentPolicy::Flips`] for an average over the reflections. Left
    /// out of the JSON where it is the slice alone.
    #[serde(default = "identity_alone", skip_serializing_if = "is_identity_alone")]
    pub test_augment: AugmentPolicy,
    /// Keep only rotations by multiples of this many degrees; 1 keeps all.
    pub rotation_step: u32,
    /// Number format of embeddings and images.
    pub dtype: StoreDtype,
    /// Compression of embeddings, images and labels.
    pub compression: Compression,
    /// Names of the classes from index 1; background has none.
    pub class_names: Vec<String>,
    /// Cases that were named to be `test`, sorted; left out of the JSON where the layout alone decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test_cases: Vec<String>,
    /// The scans have no reference segmentation: labels and masks are the background everywhere, and there is nothing to train on or to
    /// measure by. Left out of the JSON where they have.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlabelled: bool,
    /// How exactly a GPU encodes; float32 is left out of the JSON, so that stores from before there was a choice keep their `cache_id`.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
}

impl PrecomputeConfig {
    /// The preset `published`: data at 224, network at 512. `image_size`, `data_size` turn it into any other.
    pub fn published(encoder: EncoderArch, weights: EncoderWeights) -> Self {
        PrecomputeConfig {
            encoder,
            weights,
            image_size: 512,
            data_size: 224,
            preprocessing: Preprocessing::default(),
            augment: AugmentPolicy::Reference,
            test_augment: AugmentPolicy::None,
            rotation_step: 1,
            dtype: StoreDtype::F16,
            compression: Compression::None,
            class_names: crate::classes::SYNAPSE_ORGANS.map(String::from).to_vec(),
            test_cases: Vec::new(),
            unlabelled: false,
            precision: Precision::F32,
        }
    }

    /// Tokens along the side of the embeddings: `image_size / 16`.
    pub fn grid_size(&self) -> usize {
        self.image_size / PATCH_SIZE
    }

    /// Pixels along the side of the low-resolution labels and logits: `image_size / 4`.
    pub fn low_res_size(&self) -> usize {
        self.image_size / 4
    }

    /// Classes with background: 9 for Synapse.
    pub fn num_classes(&self) -> usize {
        self.class_names.len() + 1
    }

    /// Channels of an image, from 1 to [`MAX_CHANNELS`].
    pub fn num_channels(&self) -> usize {
        self.preprocessing.channels.len()
    }

    /// Values of one image: channels times pixels.
    pub fn image_len(&self) -> usize {
        self.num_channels() * self.image_size.pow(2)
    }

    /// Checks what types cannot: sizes, the rotation step, classes, channels and their intensities.
    ///
    /// # Errors
    /// A sentence that names the setting, what was expected and what was found.
    pub fn validate(&self) -> Result<(), String> {
        if self.image_size == 0 || !self.image_size.is_multiple_of(PATCH_SIZE) {
            return Err(format!("image-size must be a positive multiple of {PATCH_SIZE}, got {}", self.image_size));
        }
        if self.image_size > MAX_SIDE {
            return Err(format!("image-size must be at most {MAX_SIDE}, got {}", self.image_size));
        }
        if !(1..=MAX_SIDE).contains(&self.data_size) {
            return Err(format!("data-size must be from 1 to {MAX_SIDE}, got {}", self.data_size));
        }
        if self.rotation_step == 0 {
            return Err("rotation-step must be at least 1 degree, got 0".into());
        }
        match (self.test_augment, self.augment) {
            (AugmentPolicy::None, _) | (AugmentPolicy::Flips, AugmentPolicy::Flips | AugmentPolicy::Reference) => {}
            (AugmentPolicy::Flips, AugmentPolicy::None) => {
                return Err("test-augment flips needs augment flips or reference: a model that never saw a reflection has nothing to say of one".into());
            }
            (AugmentPolicy::Reference, _) => return Err("test-augment must be none or flips, got reference".into()),
        }
        // 255 stands for what was never written.
        if self.class_names.is_empty() || self.class_names.len() > 254 {
            return Err(format!("between 1 and 254 classes are supported, got {}", self.class_names.len()));
        }
        self.check_class_names()?;
        let [low, high] = self.preprocessing.window_hu;
        if !(low.is_finite() && high.is_finite() && low < high) {
            return Err(format!("the Hounsfield window must ascend, got [{low}, {high}]"));
        }
        self.preprocessing.check_channels()
    }

    /// Classes are told apart by their names in the tables: as a column of `slices.parquet`, as a row beside `mean` of an evaluation.
    fn check_class_names(&self) -> Result<(), String> {
        let mut columns = BTreeMap::new();
        for name in &self.class_names {
            if name.trim().is_empty() || name == "mean" {
                return Err(format!("a class cannot be called {name:?}; give it another name"));
            }
            if let Some(other) = columns.insert(voxels_column(name), name) {
                return Err(format!(
                    "classes {other:?} and {name:?} would share the column {} of slices.parquet; rename one",
                    voxels_column(name)
                ));
            }
        }
        Ok(())
    }
}

impl Preprocessing {
    fn check_channels(&self) -> Result<(), String> {
        if self.channels.is_empty() || self.channels.len() > MAX_CHANNELS {
            return Err(format!("images have from 1 to {MAX_CHANNELS} channels, got {}", self.channels.len()));
        }
        for (at, channel) in self.channels.iter().enumerate() {
            if self.channels[..at].iter().any(|before| before.index == channel.index) {
                return Err(format!("channel {} is there twice; name each channel once", channel.index));
            }
            if let Intensity::Percentiles { low, high } = channel.intensity
                && !(0.0 <= low && low < high && high <= 100.0)
            {
                return Err(format!("percentiles must ascend within 0 and 100, got {low} and {high}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> PrecomputeConfig {
        PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 0 })
    }

    #[test]
    fn one_ct_channel_and_no_named_test_cases_leave_no_trace() {
        let json = serde_json::to_value(published()).unwrap();
        assert_eq!(json["preprocessing"].as_object().unwrap().keys().collect::<Vec<_>>(), ["window_hu", "label_map"]);
        assert!(json.get("test_cases").is_none() && json.get("unlabelled").is_none());
        assert_eq!(serde_json::from_value::<PrecomputeConfig>(json).unwrap(), published());
    }

    #[test]
    fn other_channels_come_back_from_json() {
        let mut config = published();
        let intensity = Intensity::Percentiles { low: 0.5, high: 99.5 };
        config.preprocessing.channels.push(Channel { index: 2, name: "PET".into(), intensity });
        config.test_cases = vec!["a".into()];
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(json["preprocessing"]["channels"][1]["intensity"]["kind"], "percentiles");
        assert_eq!(serde_json::from_value::<PrecomputeConfig>(json).unwrap(), config);
        assert_eq!((config.num_channels(), config.image_len()), (2, 2 * 512 * 512));
    }

    #[test]
    fn reflections_of_test_slices_leave_no_trace_where_there_are_none() {
        let json = serde_json::to_value(published()).unwrap();
        assert!(json.get("test_augment").is_none());
        let with = PrecomputeConfig { test_augment: AugmentPolicy::Flips, ..published() };
        let json = serde_json::to_value(&with).unwrap();
        assert_eq!(json["test_augment"], "flips");
        assert_eq!(serde_json::from_value::<PrecomputeConfig>(json).unwrap(), with);
        assert!(with.validate().is_ok());
        let untrained = PrecomputeConfig { augment: AugmentPolicy::None, ..with.clone() };
        assert!(untrained.validate().unwrap_err().contains("test-augment flips needs"));
        let rotated = PrecomputeConfig { test_augment: AugmentPolicy::Reference, ..with };
        assert!(rotated.validate().unwrap_err().contains("got reference"));
    }

    #[test]
    fn classes_and_channels_that_cannot_be_told_apart_are_refused() {
        let refused = |change: fn(&mut PrecomputeConfig)| {
            let mut config = published();
            change(&mut config);
            config.validate().unwrap_err()
        };
        assert!(refused(|c| c.class_names[1] = "left_kidney".into()).contains("voxels_left_kidney"));
        assert!(refused(|c| c.class_names[1] = "mean".into()).contains("mean"));
        assert!(refused(|c| c.class_names[1] = " ".into()).contains("called"));
        assert!(refused(|c| c.preprocessing.channels.clear()).contains("got 0"));
        assert!(refused(|c| c.preprocessing.channels.extend(one_ct_channel())).contains("twice"));
        let percentiles = |low, high| Intensity::Percentiles { low, high };
        for intensity in [percentiles(99.0, 1.0), percentiles(-1.0, 50.0), percentiles(f64::NAN, 50.0)] {
            let mut config = published();
            config.preprocessing.channels[0].intensity = intensity;
            assert!(config.validate().unwrap_err().contains("percentiles"));
        }
    }
}
