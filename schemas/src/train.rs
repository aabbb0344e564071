//! The configuration of stage two. It travels with the run, and none of it enters the store's `cache_id`.

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

/// All settings of a training run.
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
