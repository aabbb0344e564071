//! The configuration of stage two. It travels with the run, and none of it enters the store's `cache_id`.

use crate::precision::Precision;
use serde::{Deserialize, Serialize};

/// The optimizer; `AdamW` is what the published code runs, `Adam` what the paper says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Decoupled weight decay.
    AdamW,
    /// Weight decay, if any, added to the gradient.
    Adam,
    /// Momentum 0.9, weight decay added to the gradient.
    Sgd,
}

/// Order of the slices within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SliceOrder {
    /// A new permutation an epoch.
    Shuffled,
    /// As stored.
    Sequential,
}

/// What the mask decoder sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// Gate between SAM's embeddings and the CNN's: the paper's model.
    Full,
    /// The CNN's embeddings alone.
    CnnOnly,
    /// SAM's embeddings alone.
    SamOnly,
}

/// The side network, which the paper lets be any network; each turns 16×16 pixels into one embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SideNetwork {
    /// torchvision's ResNet-18 up to `layer3`: the published one.
    #[default]
    Resnet18,
    /// torchvision's ResNet-34 up to `layer3`.
    Resnet34,
    /// torchvision's ResNet-50 up to `layer3`, and a 1×1 convolution from its 1024 channels to SAM's 256.
    Resnet50,
    /// timm's `vit_tiny_patch16_224` without its classifier, and a 1×1 convolution from its 192 channels to SAM's 256.
    VitTiny,
}

impl SideNetwork {
    /// As it is typed and stored: `resnet18`.
    pub fn name(self) -> &'static str {
        match self {
            SideNetwork::Resnet18 => "resnet18",
            SideNetwork::Resnet34 => "resnet34",
            SideNetwork::Resnet50 => "resnet50",
            SideNetwork::VitTiny => "vit-tiny",
        }
    }
}

/// What the gate g of equation (1), x = g·x_sam + (1 - g)·x_cnn, is a function of. Each starts at ½ everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateKind {
    /// One number, g = sigmoid(α): the published one.
    #[default]
    Scalar,
    /// One number a channel, g\[c\] = sigmoid(α\[c\]).
    Channel,
    /// One number a place of the image, of both embeddings there: g\[y, x\] = sigmoid(w_sam·x_sam\[:, y, x\] + w_cnn·x_cnn\[:, y, x\] + b).
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

/// All settings of a training run. Those that were added later have a default, so that older runs' `config.json` is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the training slices.
    pub epochs: usize,
    /// Stop after this many optimizer steps; the schedule is still that of `epochs`.
    pub max_steps: Option<usize>,
    /// Slices a step; the last batch of an epoch may be smaller.
    pub batch_size: usize,
    /// Base learning rate.
    pub lr: f64,
    /// λ: weight of Dice in the loss; cross-entropy has 1 - λ.
    pub lambda: f64,
    /// Optimizer.
    pub optimizer: OptimizerKind,
    /// Weight decay.
    pub weight_decay: f64,
    /// Warm-up iterations; 0 for none.
    pub warmup: usize,
    /// Seed of the initial weights, the order of slices and the draw of variants.
    pub seed: u64,
    /// Which variants are drawn; `None` here means all that the store has, by their stored probabilities.
    pub augment: Option<crate::variants::AugmentPolicy>,
    /// Order of the slices.
    pub order: SliceOrder,
    /// Arm of the ablation.
    pub arm: Arm,
    /// Training cases held out for validation.
    pub val_cases: Vec<String>,
    /// The side network.
    #[serde(default)]
    pub side_network: SideNetwork,
    /// The gate.
    #[serde(default)]
    pub gate: GateKind,
    /// Train the mask tokens too, which the published code leaves at their random values.
    #[serde(default)]
    pub train_mask_tokens: bool,
    /// Train the hypernetworks too, which the published code leaves at their random values.
    #[serde(default)]
    pub train_hypernetworks: bool,
    /// How exactly a GPU computes; float32 is left out of the JSON.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
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
            side_network: SideNetwork::default(),
            gate: GateKind::default(),
            train_mask_tokens: false,
            train_hypernetworks: false,
            precision: Precision::F32,
        }
    }
}

impl TrainConfig {
    /// Checks what types cannot: ranges.
    ///
    /// # Errors
    /// A sentence that names the setting, what was expected and what was found.
    pub fn validate(&self) -> Result<(), String> {
        if self.epochs == 0 || self.batch_size == 0 {
            return Err(format!("epochs and batch-size must be at least 1, got {} and {}", self.epochs, self.batch_size));
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return Err(format!("lr must be a positive number, got {}", self.lr));
        }
        if !(0.0..=1.0).contains(&self.lambda) {
            return Err(format!("lambda must lie in [0, 1], got {}", self.lambda));
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return Err(format!("weight-decay must not be negative, got {}", self.weight_decay));
        }
        Ok(())
    }
}

/// Settings, seed and inputs of the run: a [`RunRecord`].
pub const RUN_CONFIG: &str = "config.json";
/// One row an optimizer step: [`crate::tables::StepRow`].
pub const STEPS_TABLE: &str = "steps.parquet";
/// One row an epoch: [`crate::tables::EpochRow`].
pub const EPOCHS_TABLE: &str = "epochs.parquet";
/// The model, in the published state-dict names, as of the last checkpoint.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// The model of the epoch with the highest validation Dice; there is none without validation cases.
pub const BEST_CHECKPOINT: &str = "best.safetensors";
/// All that `--resume` needs: model, optimizer and position in the epoch, in one file so that they cannot disagree.
pub const RESUME_STATE: &str = "state.safetensors";
/// Folder of the TensorBoard event files.
pub const EVENTS_DIR: &str = "tensorboard";

/// A file that a run started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    /// File name, without its folder.
    pub name: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

/// The files that gave a run its initial weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunInputs {
    /// SAM's frozen decoder, from the store.
    pub sam_decoder: InputFile,
    /// `--cnn-checkpoint`.
    pub cnn_checkpoint: Option<InputFile>,
    /// `--init`.
    pub init: Option<InputFile>,
}

/// What a run directory's `config.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Classes with background.
    pub num_classes: usize,
    /// Every setting, the seed among them.
    pub config: TrainConfig,
    /// Hashes of the initial weights' files.
    pub inputs: RunInputs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_from_before_there_was_a_choice_are_the_published_ones() {
        let mut json = serde_json::to_value(TrainConfig::default()).unwrap();
        let object = json.as_object_mut().unwrap();
        for (key, published) in [("side_network", "resnet18"), ("gate", "scalar")] {
            assert_eq!(object.shift_remove(key).unwrap(), published);
        }
        for key in ["train_mask_tokens", "train_hypernetworks"] {
            assert_eq!(object.shift_remove(key).unwrap(), false);
        }
        assert_eq!(serde_json::from_value::<TrainConfig>(json).unwrap(), TrainConfig::default());
    }

    #[test]
    fn networks_and_gates_are_stored_as_they_are_typed() {
        for network in [SideNetwork::Resnet18, SideNetwork::Resnet34, SideNetwork::Resnet50, SideNetwork::VitTiny] {
            assert_eq!(serde_json::to_value(network).unwrap(), network.name());
        }
        for gate in [GateKind::Scalar, GateKind::Channel, GateKind::Pixel] {
            assert_eq!(serde_json::to_value(gate).unwrap(), gate.name());
        }
    }
}
