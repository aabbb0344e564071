//! The configuration of stage one: exactly the settings that determine the store's tensors.

#[cfg(test)]
mod tests;

use crate::encoder::{EncoderArch, PATCH_SIZE};
use crate::image_channels::ChannelsFrom;
use crate::json_schema;
use crate::precision::Precision;
use crate::preprocessing::{MAX_CHANNELS, Preprocessing, is_spacing};
use crate::regions::{self, ClassRegion};
use crate::rungs::{self, RUNG_CHANNELS, RungProjection, Rungs};
use crate::setting::{Problem, SettingError};
use crate::tables::voxels_column;
use crate::variants::{AugmentPolicy, Variant, seeded, variants};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;

/// Number format of the embeddings and images of a store
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum StoreDtype {
    /// float16: 2 bytes per value
    F16,
    /// float32, 4 bytes per value: training from it equals running the encoder in the training loop
    F32,
    /// bfloat16: 2 bytes per value
    Bf16,
    /// 8 bits per value, with a scale and an offset for each channel of each variant
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

/// Compression of the arrays that training reads; masks are always compressed
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// None: fastest to read
    None,
    /// zstd, level 1: about a third less disk space, most of it for the images
    Zstd,
}

/// Where the frozen weights come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum EncoderWeights {
    /// A checkpoint file.
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

/// What is done to an image's values before the encoder sees them. The side network always sees them in [0, 1]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum PixelNormalisation {
    /// Nothing: the encoder sees [0, 1], as in the published code
    #[default]
    None,
    /// Also written imagenet: minus the mean, over the deviation of each of the three channels of ImageNet, with which SAM's and DINO's encoders were trained
    #[cfg_attr(feature = "cli", value(alias = "imagenet"))]
    #[serde(alias = "imagenet")]
    Sam,
}

impl PixelNormalisation {
    /// Whether this is the published choice, which configs leave out so that older stores keep their identity.
    pub fn is_none(&self) -> bool {
        *self == PixelNormalisation::None
    }

    /// Mean and deviation of the three channels, for values in [0, 1]: SAM's `pixel_mean` and `pixel_std` over 255.
    pub fn mean_and_deviation(self) -> Option<[[f32; 3]; 2]> {
        match self {
            PixelNormalisation::None => None,
            PixelNormalisation::Sam => Some([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]),
        }
    }
}

/// Longest side of an image in pixels: eight times SAM's. At a longer side one embedding takes a gigabyte.
pub const MAX_SIDE: usize = 8192;
/// Most draws of a slice that a store may hold.
const MAX_DRAWS: u32 = 1000;

fn only_the_slice() -> AugmentPolicy {
    AugmentPolicy::None
}

fn is_only_the_slice(policy: &AugmentPolicy) -> bool {
    *policy == AugmentPolicy::None
}

/// All settings of `precompute` that determine a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(deny_unknown_fields)]
pub struct PrecomputeConfig {
    /// The frozen image encoder. A checkpoint says which it is, and one of another encoder than the one that is typed is refused; with random weights it is vit_b unless typed
    #[cfg_attr(feature = "cli", arg(long, value_enum, hide_default_value = true))]
    pub encoder: EncoderArch,
    /// Weights of the encoder
    #[cfg_attr(feature = "cli", arg(skip = EncoderWeights::Random { seed: 0 }))]
    pub weights: EncoderWeights,
    /// Weights of SAM's mask decoder, if they are not from the same checkpoint as the encoder's
    // Left out of the JSON with SAM's encoders, and where both are random.
    #[cfg_attr(feature = "cli", arg(skip))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder_weights: Option<EncoderWeights>,
    /// Side of the network's input in pixels, a multiple of 16
    #[cfg_attr(feature = "cli", arg(long, value_name = "PIXELS"))]
    #[schemars(range(min = 16, max = MAX_SIDE), extend("multipleOf" = PATCH_SIZE))]
    pub image_size: usize,
    /// Side of the data in pixels: slices are resized to it and augmented, before they are resized to the network's size
    #[cfg_attr(feature = "cli", arg(long, value_name = "PIXELS"))]
    #[schemars(range(min = 1, max = MAX_SIDE))]
    pub data_size: usize,
    /// From Hounsfield units and raw labels to images and classes
    #[cfg_attr(feature = "cli", arg(skip))]
    pub preprocessing: Preprocessing,
    /// Variants (augmented images) of each training slice to store
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub augment: AugmentPolicy,
    /// Variants of each test slice to store: only the slice (none), or also its reflections (flips), for `eval --average-reflections`
    // Left out of the JSON if only the slice is stored.
    #[cfg_attr(feature = "cli", arg(long, value_name = "none|flips", value_parser = test_augment, default_value = "none"))]
    #[serde(default = "only_the_slice", skip_serializing_if = "is_only_the_slice")]
    pub test_augment: AugmentPolicy,
    /// With --augment reference: keep only rotations by multiples of this many degrees; 1 keeps all
    #[cfg_attr(feature = "cli", arg(long, value_name = "DEGREES"))]
    #[schemars(range(min = 1))]
    pub rotation_step: u32,
    /// With --augment seeded, which needs it: draws of each training slice to store, at least 1, in addition to the slice itself
    // Left out of the JSON unless draws are stored, and so is the default of the seed.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", default_value_t, hide_default_value = true))]
    #[serde(default, skip_serializing_if = "is_no_draw")]
    #[schemars(range(max = MAX_DRAWS), extend("default" = 0))]
    pub draws: u32,
    /// With --augment seeded: seed of the draws
    #[cfg_attr(feature = "cli", arg(long, value_name = "SEED", default_value_t))]
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(extend("default" = 0))]
    pub draw_seed: u64,
    /// Number format of the stored embeddings and images
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub dtype: StoreDtype,
    /// Compression of the stored embeddings, images and labels
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub compression: Compression,
    /// Names of the classes from index 1; background has none
    #[cfg_attr(feature = "cli", arg(skip))]
    pub class_names: Vec<String>,
    /// Unions of classes that losses and scores are over, instead of the classes: regions of nnU-Net's `dataset.json`
    // Left out of the JSON if there are none.
    #[cfg_attr(feature = "cli", arg(skip))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<ClassRegion>,
    /// In nnU-Net's layout: cases of imagesTr to keep for the final evaluation, in addition to those with labels in labelsTs
    // Sorted; left out of the JSON if the layout decides.
    #[cfg_attr(feature = "cli", arg(long, value_name = "CASE,CASE", value_delimiter = ','))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test_cases: Vec<String>,
    /// The scans have no reference segmentation: nothing to train on or to measure by
    // Labels and masks are then background everywhere. Left out of the JSON if the scans have one.
    #[cfg_attr(feature = "cli", arg(skip))]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlabelled: bool,
    /// How exactly products are computed; norms, softmax and sums are float32 in each. It shapes the embeddings. The CPU takes f32, and bf16 if the processor has AVX512-BF16
    // float32 is left out of the JSON, so that older stores keep their `cache_id`.
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t))]
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    #[schemars(extend("default" = "f32"))]
    pub precision: Precision,
    /// What is done to an image's values before the encoder sees them
    // The published choice is left out of the JSON, so that older stores keep their `cache_id`.
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t))]
    #[serde(default, skip_serializing_if = "PixelNormalisation::is_none")]
    #[schemars(extend("default" = "none"))]
    pub pixel_normalisation: PixelNormalisation,
    /// The ladder: blocks of the encoder, counted from 0, after which its tokens (one vector per 16 × 16 pixels) are also stored, as `rungs`
    // Left out of the JSON if there are none, and so are the defaults of the others.
    #[cfg_attr(feature = "cli", arg(long, value_name = "BLOCK,BLOCK", value_delimiter = ','))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rungs: Vec<usize>,
    /// With --rungs: channels to which each token is reduced
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", default_value_t = RUNG_CHANNELS))]
    #[serde(default = "rung_channels", skip_serializing_if = "is_rung_channels")]
    #[schemars(range(min = 1, max = 1280), extend("default" = RUNG_CHANNELS))]
    pub rung_channels: usize,
    /// With --rungs: the linear map that reduces a token to these channels
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t))]
    #[serde(default, skip_serializing_if = "RungProjection::is_default")]
    #[schemars(extend("default" = "pca"))]
    pub rung_projection: RungProjection,
    /// With --rungs: seed that chooses the slices for pca, or the numbers for random
    #[cfg_attr(feature = "cli", arg(long, value_name = "SEED", default_value_t))]
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(extend("default" = 0))]
    pub rung_seed: u64,
    /// Also store labels at half the image's side, for `train --decoder skips-half`. To add them to a finished store, repeat its command with this option; nothing is encoded again
    // Left out of the JSON if there are none.
    #[cfg_attr(feature = "cli", arg(long))]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("default" = false))]
    pub half_labels: bool,
}

fn rung_channels() -> usize {
    RUNG_CHANNELS
}

fn is_rung_channels(channels: &usize) -> bool {
    *channels == RUNG_CHANNELS
}

fn is_no_draw(draws: &u32) -> bool {
    *draws == 0
}

fn is_zero(seed: &u64) -> bool {
    *seed == 0
}

/// `--test-augment`, which takes fewer values than `--augment`.
#[cfg(feature = "cli")]
fn test_augment(typed: &str) -> Result<AugmentPolicy, String> {
    match typed {
        "none" => Ok(AugmentPolicy::None),
        "flips" => Ok(AugmentPolicy::Flips),
        _ => Err("expected none or flips".into()),
    }
}

impl Default for PrecomputeConfig {
    /// [`PrecomputeConfig::published`] with random weights.
    fn default() -> Self {
        PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 0 })
    }
}

impl PrecomputeConfig {
    /// The preset `published`: data at 224 pixels, network at 512. Other presets differ only in `image_size` and `data_size`.
    pub fn published(encoder: EncoderArch, weights: EncoderWeights) -> Self {
        PrecomputeConfig {
            encoder,
            weights,
            decoder_weights: None,
            image_size: 512,
            data_size: 224,
            preprocessing: Preprocessing::default(),
            augment: AugmentPolicy::Reference,
            test_augment: AugmentPolicy::None,
            rotation_step: 1,
            draws: 0,
            draw_seed: 0,
            dtype: StoreDtype::F16,
            compression: Compression::None,
            class_names: crate::classes::SYNAPSE_ORGANS.map(String::from).to_vec(),
            regions: Vec::new(),
            test_cases: Vec::new(),
            unlabelled: false,
            precision: Precision::F32,
            pixel_normalisation: PixelNormalisation::None,
            rungs: Vec::new(),
            rung_channels: RUNG_CHANNELS,
            rung_projection: RungProjection::Pca,
            rung_seed: 0,
            half_labels: false,
        }
    }

    /// Tokens along the side of the embeddings: `image_size / 16`.
    pub fn grid_size(&self) -> usize {
        self.image_size / PATCH_SIZE
    }

    /// Channels of the embeddings: 256 of SAM's encoders.
    pub fn embed_channels(&self) -> usize {
        self.encoder.embed_channels()
    }

    /// Values of the embeddings of one image.
    pub fn embeddings_len(&self) -> usize {
        self.embed_channels() * self.grid_size().pow(2)
    }

    /// Pixels along the side of the low-resolution labels and logits: `image_size / 4`.
    pub fn low_res_size(&self) -> usize {
        self.image_size / 4
    }

    /// Pixels along the side of the labels at half the image's side: `image_size / 2`.
    pub fn half_size(&self) -> usize {
        self.image_size / 2
    }

    /// Values of the labels at half the image's side of one image; 0 if none are stored.
    pub fn half_labels_len(&self) -> usize {
        if self.half_labels { self.half_size().pow(2) } else { 0 }
    }

    /// [`IGNORED_CLASS`](crate::preprocessing::IGNORED_CLASS), if the labels may have it.
    pub fn ignored_class(&self) -> Option<u8> {
        self.preprocessing.ignored_class(self.class_names.len())
    }

    /// Names of what is scored: the regions, or the classes if there are none.
    pub fn scored_names(&self) -> Vec<String> {
        match &self.regions[..] {
            [] => self.class_names.clone(),
            regions => regions.iter().map(|region| region.name.clone()).collect(),
        }
    }

    /// Of which classes the regions are, and which values of the label files they have, in words; nothing without regions.
    pub fn region_notes(&self) -> Vec<String> {
        if self.regions.is_empty() {
            return Vec::new();
        }
        let name = |class: u8| self.class_names.get(usize::from(class) - 1).map_or("", String::as_str);
        let region = |region: &ClassRegion| {
            let classes: Vec<&str> = region.classes.iter().map(|&class| name(class)).collect();
            format!("{} = {}", region.name, classes.join(" + "))
        };
        let class = |(class, name): (u8, &String)| {
            let labels: Vec<String> = (0..self.preprocessing.label_map.len())
                .filter(|&label| self.preprocessing.label_map[label] == class)
                .map(|label| label.to_string())
                .collect();
            format!("{class} {name} ({} in the label files)", labels.join(", "))
        };
        let regions: Vec<String> = self.regions.iter().map(region).collect();
        let classes: Vec<String> = (1u8..).zip(&self.class_names).map(class).collect();
        vec![
            format!("regions, over which losses and scores are: {}", regions.join("; ")),
            format!("classes, as masks have them: {}", classes.join("; ")),
        ]
    }

    /// Classes including background: 9 for Synapse.
    pub fn num_classes(&self) -> usize {
        self.class_names.len() + 1
    }

    /// Channels of an image, from 1 to [`MAX_CHANNELS`].
    pub fn num_channels(&self) -> usize {
        match self.preprocessing.channels_from {
            ChannelsFrom::Slice => self.preprocessing.channels.len(),
            ChannelsFrom::Neighbours | ChannelsFrom::Windows { .. } => MAX_CHANNELS,
        }
    }

    /// Values of one image: channels times pixels.
    pub fn image_len(&self) -> usize {
        self.num_channels() * self.image_size.pow(2)
    }

    /// Channels of a stored rung: those that its tokens are brought to, or all of the encoder's.
    pub fn stored_rung_channels(&self) -> usize {
        match self.rung_projection {
            RungProjection::Pca | RungProjection::Random => self.rung_channels,
            RungProjection::None => self.encoder.embed_dim(),
        }
    }

    /// The stored rungs, if there are any.
    pub fn stored_rungs(&self) -> Option<Rungs> {
        Rungs::new(&self.rungs, self.stored_rung_channels())
    }

    /// Values of the rungs of one image; 0 without rungs.
    pub fn rungs_len(&self) -> usize {
        self.rungs.len() * self.stored_rung_channels() * self.grid_size().pow(2)
    }

    /// Whether a store has a file with the rungs' projection.
    pub fn has_rung_projection(&self) -> bool {
        !self.rungs.is_empty() && self.rung_projection != RungProjection::None
    }

    /// Whether the rungs' projection is made of a sample of training slices.
    pub fn samples_rungs(&self) -> bool {
        !self.rungs.is_empty() && self.rung_projection == RungProjection::Pca
    }

    /// The same settings without rungs.
    pub fn without_rungs(self) -> Self {
        PrecomputeConfig {
            rungs: Vec::new(),
            rung_channels: RUNG_CHANNELS,
            rung_projection: RungProjection::Pca,
            rung_seed: 0,
            ..self
        }
    }

    /// The variants of each training slice, by index.
    pub fn train_variants(&self) -> Vec<Variant> {
        match self.augment {
            AugmentPolicy::Seeded => seeded(self.draw_seed, self.draws),
            policy => variants(policy, self.rotation_step),
        }
    }

    fn check_draws(&self) -> Result<(), SettingError> {
        match (self.augment == AugmentPolicy::Seeded, self.draws) {
            (true, 0) => Err(Problem::expected("a number of draws, such as 20, for augment = seeded", "0").with("draws")),
            (false, 1..) => {
                Err(Problem::conflict("draws need augment = seeded", "pass --augment seeded, or leave --draws out").with("draws"))
            }
            (false, 0) if self.draw_seed > 0 => {
                let advice = "pass --augment seeded, or leave --draw-seed out";
                Err(Problem::conflict("a seed of draws needs augment = seeded", advice).with("draw_seed"))
            }
            _ => Ok(()),
        }
    }

    /// Checks what types cannot: sizes, the rotation step, classes, channels and their intensities.
    ///
    /// # Errors
    /// The first setting that is out of range or conflicts with another.
    pub fn validate(&self) -> Result<(), SettingError> {
        json_schema::check(&json!(self), &json_schema::schema_of::<Self>(), "")?;
        match (self.test_augment, self.augment) {
            (AugmentPolicy::None, _) | (AugmentPolicy::Flips, AugmentPolicy::Flips | AugmentPolicy::Reference) => {}
            (AugmentPolicy::Flips, AugmentPolicy::None | AugmentPolicy::Seeded) => {
                let reason = "flips need augment = flips or reference: a model that never saw a reflection cannot segment one";
                return Err(Problem::conflict(reason, "change --augment, or leave --test-augment out").with("test_augment"));
            }
            (AugmentPolicy::Reference | AugmentPolicy::Seeded, _) => {
                let found = json!(self.test_augment).to_string();
                return Err(Problem::expected("\"none\" or \"flips\"", found).with("test_augment"));
            }
        }
        self.check_draws()?;
        // 255 is the fill value: it marks what was never written.
        if self.class_names.is_empty() || self.class_names.len() > 254 {
            let found = format!("{} classes", self.class_names.len());
            return Err(Problem::expected("from 1 to 254 classes", found).with("class_names"));
        }
        self.check_class_names()?;
        regions::check(&self.regions, self.class_names.len())?;
        let [low, high] = self.preprocessing.window_hu;
        if low >= high {
            let found = format!("{low} and {high}");
            return Err(Problem::expected("two ascending numbers", found).with("preprocessing.window_hu"));
        }
        if let Some(spacing) = self.preprocessing.spacing_mm.filter(|spacing| !is_spacing(*spacing)) {
            let found = format!("{spacing:?}");
            return Err(Problem::expected("three positive numbers", found).with("preprocessing.spacing_mm"));
        }
        self.preprocessing.check_channels()?;
        self.preprocessing.check_channels_from()?;
        self.check_decoder()?;
        rungs::check(&self.rungs, (self.rung_channels, self.rung_projection, self.rung_seed), self.encoder)
    }

    /// SAM's checkpoint has both encoder and decoder; that of another encoder has no mask decoder.
    fn check_decoder(&self) -> Result<(), SettingError> {
        let name = self.encoder.name();
        match (&self.weights, &self.decoder_weights) {
            (_, Some(_)) if self.encoder.is_sam() => {
                let reason = format!("{name} and the mask decoder are of one checkpoint");
                Err(Problem::conflict(reason, "leave it out").with("decoder_weights"))
            }
            (EncoderWeights::Checkpoint { .. }, None) if !self.encoder.is_sam() => {
                let reason = format!("a checkpoint of {name} has no mask decoder");
                Err(Problem::conflict(reason, "pass SAM's with --sam-checkpoint").with("decoder_weights"))
            }
            _ => Ok(()),
        }
    }

    /// Tables distinguish classes by name: a class is a column of `slices.parquet`, and a row next to `mean` in an evaluation.
    fn check_class_names(&self) -> Result<(), SettingError> {
        let mut columns = BTreeMap::new();
        let refuse = |reason: String| Err(Problem::conflict(reason, "rename the class").with("class_names"));
        for name in &self.class_names {
            if name.trim().is_empty() || name == "mean" {
                return refuse(format!("a class cannot be called {name:?}"));
            }
            if let Some(other) = columns.insert(voxels_column(name), name) {
                let column = voxels_column(name);
                return refuse(format!("{other:?} and {name:?} would share the column {column} of slices.parquet"));
            }
        }
        Ok(())
    }
}
