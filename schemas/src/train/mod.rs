//! The configuration of stage two. It is saved with the run; the store's `cache_id` does not depend on it.

#[cfg(test)]
mod tests;

use crate::group_by::GroupBy;
use crate::json_schema;
use crate::precision::Precision;
use crate::setting::{Problem, SettingError};
use crate::train_choices::{ClassWeights, DecoderKind, LadderKind, LossKind, LrSchedule, Sampling};
use crate::variants::AugmentPolicy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The optimizer of training
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum), value(rename_all = "lower"))]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW, with decoupled weight decay: what the published code runs
    AdamW,
    /// Adam, with weight decay added to the gradient: what the paper says
    Adam,
    /// Gradient descent with momentum 0.9, weight decay added to the gradient
    Sgd,
}

/// The order of the slices within an epoch
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum SliceOrder {
    /// A new random order in each epoch
    Shuffled,
    /// The order in which they are stored
    Sequential,
}

/// What the mask decoder sees: an arm of the paper's ablation
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// Both embeddings, mixed by the gate: the paper's model
    Full,
    /// Only the side network's embeddings
    CnnOnly,
    /// Only SAM's embeddings
    SamOnly,
}

/// The side network: the small network that is trained alongside the frozen encoder. Each turns 16×16 pixels into one embedding
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum SideNetworkKind {
    /// torchvision's ResNet-18 up to layer3: the published one
    #[default]
    Resnet18,
    /// torchvision's ResNet-34 up to layer3
    Resnet34,
    /// torchvision's ResNet-50 up to layer3, and a trained 1×1 convolution from its 1024 channels to SAM's 256
    Resnet50,
    /// timm's vit_tiny_patch16_224 without its classifier, and a trained 1×1 convolution from its 192 channels to SAM's 256
    VitTiny,
}

impl SideNetworkKind {
    /// As it is typed and stored: `resnet18`.
    pub fn name(self) -> &'static str {
        match self {
            SideNetworkKind::Resnet18 => "resnet18",
            SideNetworkKind::Resnet34 => "resnet34",
            SideNetworkKind::Resnet50 => "resnet50",
            SideNetworkKind::VitTiny => "vit-tiny",
        }
    }
}

/// The gate g of equation (3), x = g·x_sam + (1 - g)·x_cnn. Each starts at ½ everywhere
// Help texts write `g[c]`, which is no link.
#[allow(rustdoc::broken_intra_doc_links)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum GateKind {
    /// One number, g = sigmoid(α): the published one
    #[default]
    Scalar,
    /// One number per channel, g[c] = sigmoid(α[c])
    Channel,
    /// One number per place of the image, g[y, x] = sigmoid(w_sam·x_sam[:, y, x] + w_cnn·x_cnn[:, y, x] + b)
    Pixel,
}

impl GateKind {
    /// As it is typed and stored: `scalar`.
    pub fn name(self) -> &'static str {
        match self {
            GateKind::Scalar => "scalar",
            GateKind::Channel => "channel",
            GateKind::Pixel => "pixel",
        }
    }
}

/// All settings of a training run.
///
/// Each is defined only here: the comment on a field is its text in `--help`, in the JSON Schema and in `docs/reference/settings.md`;
/// the attribute `schemars` gives its range, `default` below its default value. A setting that a `config.json` lacks has its default, so
/// that records of older versions can be read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the training slices
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    #[schemars(range(min = 1))]
    pub epochs: usize,
    /// Stop after this many steps; the learning rate follows the schedule of all epochs
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    pub max_steps: Option<usize>,
    /// Slices per step; the last batch of an epoch may be smaller
    #[cfg_attr(feature = "cli", arg(long, value_name = "N"))]
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Base learning rate
    #[cfg_attr(feature = "cli", arg(long, value_name = "RATE"))]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// λ of the loss, (1 - λ)·cross-entropy + λ·Dice: the weight of Dice
    #[cfg_attr(feature = "cli", arg(long, value_name = "0..1"))]
    #[schemars(range(min = 0, max = 1))]
    pub lambda: f64,
    /// Optimizer
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub optimizer: OptimizerKind,
    /// Weight decay
    #[cfg_attr(feature = "cli", arg(long, value_name = "DECAY"))]
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
    /// Steps in which the learning rate rises to its base value; 0 for none
    #[cfg_attr(feature = "cli", arg(long, value_name = "STEPS"))]
    pub warmup: usize,
    /// Seed of the initial weights, the order of the slices and the draw of variants
    #[cfg_attr(feature = "cli", arg(long, value_name = "SEED"))]
    pub seed: u64,
    /// Draw only from these stored variants (augmented images of a slice); all unless given
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub augment: Option<AugmentPolicy>,
    /// Order of the slices within an epoch
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub order: SliceOrder,
    /// What the mask decoder sees: an arm of the paper's ablation
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub arm: Arm,
    /// Training cases to hold out for validation
    #[cfg_attr(feature = "cli", arg(long, value_name = "CASE,CASE", value_delimiter = ','))]
    pub val_cases: Vec<String>,
    /// Keep the cases of one patient together when cases are held out: regex:EXPR (the part of a case's name that the first capture group matches, or the whole expression) or csv:FILE:COLUMN (a table with a column `case`)
    #[cfg_attr(feature = "cli", arg(long, value_name = "regex:EXPR|csv:FILE:COLUMN"))]
    #[schemars(with = "Option<String>")]
    pub group_by: Option<GroupBy>,
    /// Side network: the small network that is trained alongside the frozen encoder
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub side_network: SideNetworkKind,
    /// Gate: the weight with which SAM's embeddings and the side network's are mixed
    #[cfg_attr(feature = "cli", arg(long, value_enum))]
    pub gate: GateKind,
    /// Also train the mask tokens (one learned query per class), which the published code leaves at their random values
    #[cfg_attr(feature = "cli", arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true"))]
    pub train_mask_tokens: bool,
    /// Also train the hypernetworks (which turn mask tokens into the last layer's weights), which the published code leaves at their random values
    #[cfg_attr(feature = "cli", arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true"))]
    pub train_hypernetworks: bool,
    /// How exactly products are computed. The CPU takes f32, and bf16 if the processor has AVX512-BF16
    // The default is left out of the JSON, as in records of older versions.
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t))]
    #[serde(skip_serializing_if = "Precision::is_default")]
    #[schemars(extend("default" = "f32"))]
    pub precision: Precision,
    /// How the slices of an epoch are drawn
    // These and the following, which the paper lacks, are left out of the JSON where they have their defaults, as in older records.
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t))]
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = "uniform"))]
    pub sampling: Sampling,
    /// How the learning rate falls after the warm-up
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t))]
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = "published"))]
    pub lr_schedule: LrSchedule,
    /// Keep an exponential moving average of the model, with this share of the earlier average in each step, such as 0.999; 0 for none. Validation, and the models that eval, predict and export take, are then the average
    #[cfg_attr(feature = "cli", arg(long, value_name = "DECAY", default_value_t = 0.0))]
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(range(min = 0, max = 0.999_999), extend("default" = 0.0))]
    pub ema: f64,
    /// Stop after this many epochs without a better validation Dice; 0 for never
    #[cfg_attr(feature = "cli", arg(long, value_name = "EPOCHS", default_value_t = 0))]
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = 0))]
    pub early_stopping: u32,
    /// Train only on these cases, without those that are held out; all unless given
    #[cfg_attr(feature = "cli", arg(long, value_name = "CASE,CASE", value_delimiter = ','))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("default" = []))]
    pub train_cases: Vec<String>,
    /// Train only on this share of the cases, chosen by the seed: at least one, and a larger share has the cases of a smaller one
    #[cfg_attr(feature = "cli", arg(long, value_name = "0..1", default_value_t = 1.0))]
    #[serde(skip_serializing_if = "is_one")]
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0, "default" = 1.0))]
    pub train_fraction: f64,
    /// The loss, (1 - λ)·A + λ·B, with A over pixels and B over classes
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t))]
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = "published"))]
    pub loss: LossKind,
    /// With loss focal: γ, the power by which pixels that are right already count less
    #[cfg_attr(feature = "cli", arg(long, value_name = "GAMMA", default_value_t = FOCAL_GAMMA))]
    #[serde(skip_serializing_if = "is_focal_gamma")]
    #[schemars(range(min = 0), extend("default" = 2.0))]
    pub focal_gamma: f64,
    /// With loss tversky: α, the weight of false positives: of pixels that are given a class and are not of it
    #[cfg_attr(feature = "cli", arg(long, value_name = "ALPHA", default_value_t = TVERSKY_ALPHA))]
    #[serde(skip_serializing_if = "is_tversky_alpha")]
    #[schemars(range(min = 0), extend("default" = 0.3))]
    pub tversky_alpha: f64,
    /// With loss tversky: β, the weight of false negatives: of pixels of a class that are not given it
    #[cfg_attr(feature = "cli", arg(long, value_name = "BETA", default_value_t = TVERSKY_BETA))]
    #[serde(skip_serializing_if = "is_tversky_beta")]
    #[schemars(range(min = 0), extend("default" = 0.7))]
    pub tversky_beta: f64,
    /// Weights of the classes in the part of the loss that is over pixels: none; inverse-frequency, which is N / (K·n) with N the voxels of all slices that are trained on, K the number of classes that occur in them, and n the voxels of the class; or a number per class from background on, such as 0.5,1,1,2
    #[cfg_attr(feature = "cli", arg(long, value_name = "WEIGHTS", default_value_t))]
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(with = "String", extend("default" = "none"))]
    pub class_weights: ClassWeights,
    /// What the mask decoder's upscaling sees
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t))]
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = "plain"))]
    pub decoder: DecoderKind,
    /// With 1, a slice's embeddings are replaced by a trained weighted sum of its own and those of the slices before and after it; the sum starts as its own
    #[cfg_attr(feature = "cli", arg(long, value_name = "0|1", default_value_t = 0))]
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(range(max = 1), extend("default" = 0))]
    pub neighbours: u32,
    /// The ladder: what the side network takes of the inner layers of the frozen encoder, SAM's or another
    #[cfg_attr(feature = "cli", arg(long, value_enum, default_value_t))]
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = "none"))]
    pub ladder: LadderKind,
}

/// γ of the focal loss, as in Lin et al., "Focal Loss for Dense Object Detection" (2017).
const FOCAL_GAMMA: f64 = 2.0;
/// α and β of the Tversky loss, as in Salehi et al., "Tversky loss function for image segmentation using 3D fully convolutional deep
/// networks" (2017).
const TVERSKY_ALPHA: f64 = 0.3;
const TVERSKY_BETA: f64 = 0.7;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_one(value: &f64) -> bool {
    *value == 1.0
}

fn is_focal_gamma(value: &f64) -> bool {
    *value == FOCAL_GAMMA
}

fn is_tversky_alpha(value: &f64) -> bool {
    *value == TVERSKY_ALPHA
}

fn is_tversky_beta(value: &f64) -> bool {
    *value == TVERSKY_BETA
}

impl Default for TrainConfig {
    /// The published settings.
    fn default() -> Self {
        TrainConfig {
            epochs: 200,
            max_steps: None,
            batch_size: 24,
            lr: 1e-3,
            lambda: 0.8,
            optimizer: OptimizerKind::AdamW,
            weight_decay: 0.1,
            warmup: 250,
            seed: 1234,
            augment: None,
            order: SliceOrder::Shuffled,
            arm: Arm::Full,
            val_cases: Vec::new(),
            group_by: None,
            side_network: SideNetworkKind::default(),
            gate: GateKind::default(),
            train_mask_tokens: false,
            train_hypernetworks: false,
            precision: Precision::F32,
            sampling: Sampling::default(),
            lr_schedule: LrSchedule::default(),
            ema: 0.0,
            early_stopping: 0,
            train_cases: Vec::new(),
            train_fraction: 1.0,
            loss: LossKind::default(),
            focal_gamma: FOCAL_GAMMA,
            tversky_alpha: TVERSKY_ALPHA,
            tversky_beta: TVERSKY_BETA,
            class_weights: ClassWeights::default(),
            decoder: DecoderKind::default(),
            neighbours: 0,
            ladder: LadderKind::default(),
        }
    }
}

impl TrainConfig {
    /// The published settings with some of them given, by name.
    ///
    /// # Errors
    /// The first setting that is unknown, of another type or out of range.
    pub fn with(given: &Map<String, Value>) -> Result<Self, SettingError> {
        json_schema::read(&Value::Object(given.clone()), "")
    }

    /// Checks that every setting lies in its range, and that those that need one another are there.
    ///
    /// # Errors
    /// The first setting that does not.
    pub fn validate(&self) -> Result<(), SettingError> {
        json_schema::check(&json!(self), &json_schema::schema_of::<Self>(), "")?;
        if self.sampling != Sampling::Uniform && self.order == SliceOrder::Sequential {
            let reason = format!("{} draws slices at random, but order is sequential", self.sampling.name());
            return Err(Problem::conflict(reason, "leave order at shuffled").with("sampling"));
        }
        if self.early_stopping > 0 && self.val_cases.is_empty() {
            let hint = "hold cases out with --fold 1/5 or --val-cases, or leave --early-stopping out";
            return Err(Problem::conflict("no case is held out for validation", hint).with("early_stopping"));
        }
        if self.loss == LossKind::Tversky && self.tversky_alpha == 0.0 && self.tversky_beta == 0.0 {
            let hint = "give one of them a weight: published Dice has 0.5 and 0.5";
            return Err(Problem::conflict("with α and β both 0 no mistake counts", hint).with("tversky_alpha"));
        }
        self.check_model()
    }

    /// Checks that the parts of the model go together.
    fn check_model(&self) -> Result<(), SettingError> {
        if self.neighbours > 0 && self.arm == Arm::CnnOnly {
            let reason = "neighbours join SAM's embeddings, which arm cnn-only leaves out";
            return Err(Problem::conflict(reason, "leave neighbours at 0, or take another arm").with("neighbours"));
        }
        if self.ladder == LadderKind::Gated && self.arm != Arm::Full {
            let reason =
                "the ladder mixes SAM's rungs into the side network, and the arms cnn-only and sam-only leave one of them out";
            return Err(Problem::conflict(reason, "leave ladder at none, or take the arm full").with("ladder"));
        }
        if self.decoder.has_skips() && self.arm == Arm::SamOnly {
            let reason = "skips come from the side network, which arm sam-only leaves out";
            return Err(Problem::conflict(reason, "leave decoder at plain, or take another arm").with("decoder"));
        }
        if self.decoder.has_skips() && self.side_network == SideNetworkKind::VitTiny {
            let reason = "skips come from layer1 and layer2 of a ResNet, and vit-tiny has no stages of a higher resolution";
            return Err(Problem::conflict(reason, "take a ResNet as side_network, or leave decoder at plain").with("decoder"));
        }
        Ok(())
    }

    /// Settings that differ from their defaults and change nothing, each with the setting that would use it: `["focal_gamma", "loss = focal"]`.
    pub fn unused(&self) -> Vec<[&'static str; 2]> {
        let tversky = "loss = tversky";
        let typed = [
            ("focal_gamma", !is_focal_gamma(&self.focal_gamma), LossKind::Focal, "loss = focal"),
            ("tversky_alpha", !is_tversky_alpha(&self.tversky_alpha), LossKind::Tversky, tversky),
            ("tversky_beta", !is_tversky_beta(&self.tversky_beta), LossKind::Tversky, tversky),
        ];
        let unused = typed.into_iter().filter(|(_, given, loss, _)| *given && self.loss != *loss);
        unused.map(|(setting, _, _, by)| [setting, by]).collect()
    }

    /// The value of a setting in the JSON of a config, which leaves some out where they have their defaults.
    pub fn value_in(config: &Value, setting: &str) -> Value {
        let found = config.get(setting).cloned();
        found.unwrap_or_else(|| json_schema::schema_of::<Self>()["properties"][setting]["default"].clone())
    }
}

/// Settings, seed and inputs of the run: a [`RunRecord`].
pub const RUN_CONFIG: &str = "config.json";
/// One row per optimizer step: [`crate::tables::StepRow`].
pub const STEPS_TABLE: &str = "steps.parquet";
/// One row per epoch: [`crate::tables::EpochRow`].
pub const EPOCHS_TABLE: &str = "epochs.parquet";
/// The model, in the published state-dict names, as of the last checkpoint.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// The model of the epoch with the highest validation Dice; written only with validation cases.
pub const BEST_CHECKPOINT: &str = "best.safetensors";
/// All that `--resume` needs (model, optimizer, position in the epoch), in one file so that they cannot disagree.
pub const RESUME_STATE: &str = "state.safetensors";
/// Held locked by the process that trains; empty.
pub const RUN_LOCK: &str = ".lock";
/// All that the training has said, with times.
pub const RUN_LOG: &str = "log.txt";
/// Folder of the TensorBoard event files.
pub const EVENTS_DIR: &str = "tensorboard";

/// A file with initial weights of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    /// File name, without its folder.
    pub name: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// Its whole path at the start; older versions did not record it.
    #[serde(default)]
    pub path: Option<std::path::PathBuf>,
}

/// The files that gave a run its initial weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunInputs {
    /// SAM's frozen decoder, from the store.
    pub sam_decoder: InputFile,
    /// `--cnn-checkpoint`.
    pub cnn_checkpoint: Option<InputFile>,
    /// `--init`.
    pub init: Option<InputFile>,
    /// With `ladder = gated`: the rungs' projection of the store, of which the run keeps the same bytes; left out if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rung_projection: Option<InputFile>,
}

/// A training case that a run held out, and which scan it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeldOutCase {
    /// The case, as in the store.
    pub case: String,
    /// SHA-256, in hexadecimal, of the SHA-256 of its files, one a line, in the order of the store's `sources` of the case.
    pub sha256: String,
}

/// Content of `config.json` in a run folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    /// Name, version and commit of the program that started the run.
    pub program: String,
    /// The store's `cache_id`.
    pub cache_id: String,
    /// The settings that the store's tensors were made with.
    pub store: crate::precompute::PrecomputeConfig,
    /// Pixels along the side of the network's input.
    pub image_size: usize,
    /// Classes including background.
    pub num_classes: usize,
    /// Every setting, the seed among them.
    pub config: TrainConfig,
    /// Hashes of the files with the initial weights.
    pub inputs: RunInputs,
    /// The patient of each training case, as `group_by` gave it at the start; empty without it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, String>,
    /// What the values of the store's training scans were like, for each channel; empty if nothing is known of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub training_values: Vec<crate::tables::ValueRange>,
    /// The volumes of each organ in the cases that the run is trained on, in the order of the classes from 1; empty in runs of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub training_volumes: Vec<crate::tables::VolumeRange>,
    /// The scans that `config.val_cases` names, so that a store which was made again or has grown is known to hold the same. Older versions did
    /// not record them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_out: Vec<HeldOutCase>,
    /// The cases that the run is trained on, where `train_cases` or `train_fraction` limit them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trained_cases: Vec<String>,
    /// Number of epochs after which early stopping ended the run; `None` if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_early: Option<u32>,
    /// Where the store was: a folder's whole path, or `s3://bucket/key`. Older versions did not record it.
    #[serde(default)]
    pub store_path: Option<std::path::PathBuf>,
}
