//! The configuration of stage one: all that shapes a tensor of the store, and nothing else.

use crate::encoder::{EncoderArch, PATCH_SIZE};
use crate::variants::AugmentPolicy;
use serde::{Deserialize, Serialize};

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
    /// Hounsfield window: clipped to it, then scaled so that it becomes [0, 1].
    pub window_hu: [f32; 2],
    /// Raw label → class, by index; a raw label beyond its end is an error.
    pub label_map: Vec<u8>,
}

impl Default for Preprocessing {
    /// The published window and label map.
    fn default() -> Self {
        Preprocessing { window_hu: [-125.0, 275.0], label_map: crate::classes::SYNAPSE_LABEL_MAP.to_vec() }
    }
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
    /// Keep only rotations by multiples of this many degrees; 1 keeps all.
    pub rotation_step: u32,
    /// Number format of embeddings and images.
    pub dtype: StoreDtype,
    /// Compression of embeddings, images and labels.
    pub compression: Compression,
    /// Names of the classes from index 1; background has none.
    pub class_names: Vec<String>,
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
            rotation_step: 1,
            dtype: StoreDtype::F16,
            compression: Compression::None,
            class_names: crate::classes::SYNAPSE_ORGANS.map(String::from).to_vec(),
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

    /// Checks what types cannot: sizes and the rotation step.
    ///
    /// # Errors
    /// A sentence that names the setting, what was expected and what was found.
    pub fn validate(&self) -> Result<(), String> {
        if self.image_size == 0 || !self.image_size.is_multiple_of(PATCH_SIZE) {
            return Err(format!("image-size must be a positive multiple of {PATCH_SIZE}, got {}", self.image_size));
        }
        if self.data_size == 0 {
            return Err("data-size must be at least 1, got 0".into());
        }
        if self.rotation_step == 0 {
            return Err("rotation-step must be at least 1 degree, got 0".into());
        }
        // 255 stands for what was never written.
        if self.class_names.is_empty() || self.class_names.len() > 254 {
            return Err(format!("between 1 and 254 classes are supported, got {}", self.class_names.len()));
        }
        let [low, high] = self.preprocessing.window_hu;
        if !(low.is_finite() && high.is_finite() && low < high) {
            return Err(format!("the Hounsfield window must ascend, got [{low}, {high}]"));
        }
        Ok(())
    }
}
