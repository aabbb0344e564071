//! `sam-ladder train`.

use super::cache::Cache;
use super::device::DeviceChoice;
use super::precision::PrecisionName;
use super::precompute::Augment;
use super::profile::Profile;
use super::progress::Terminal;
use crate::interrupt;
use clap::ValueEnum;
use sam_ladder_cache::{ReadMode, TrainingSplit};
use sam_ladder_schemas::train::{Arm, GateKind, OptimizerKind, SideNetwork, SliceOrder, TrainConfig};
use sam_ladder_train::run::{self, DeviceStore, TrainArgs};
use std::path::PathBuf;

/// Arguments of `train`. Settings are options without a default here, so that `--resume` can tell what was typed from what was not.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder train --store synapse.zarr --run runs/first \\
      --cnn-checkpoint weights/resnet18-f37072fd.pth
  sam-ladder train --store synapse.zarr --run runs/first --resume
  sam-ladder train --store synapse.zarr --run runs/lower --lr 5e-4 --lambda 0.9 \\
      --val-cases 0005,0006
")]
pub struct Args {
    /// Store to train on: a folder, or s3://bucket/key
    #[arg(long, value_name = "STORE.zarr")]
    store: PathBuf,
    /// Run folder to make, or with --resume to go on with
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Continue the run in --run from its last checkpoint; settings are the run's own
    #[arg(long)]
    resume: bool,
    /// Initial weights of the side network: torchvision's resnet18 (or what --side-network names), .pth or .safetensors [default: random]
    #[arg(long, value_name = "FILE")]
    cnn_checkpoint: Option<PathBuf>,
    /// Initial weights of the whole model, in the published code's names
    #[arg(long, value_name = "FILE", conflicts_with = "cnn_checkpoint")]
    init: Option<PathBuf>,
    /// Passes over the training slices [default: 200]
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// Stop after this many steps; the schedule stays that of --epochs
    #[arg(long, value_name = "N")]
    max_steps: Option<usize>,
    /// Slices a step [default: 24]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Base learning rate [default: 1e-3]
    #[arg(long)]
    lr: Option<f64>,
    /// Weight of Dice in the loss, cross-entropy has the rest [default: 0.8]
    #[arg(long, value_name = "0..1")]
    lambda: Option<f64>,
    /// Optimizer: adamw is what the published code runs, adam what the paper says [default: adamw]
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerName>,
    /// Weight decay [default: 0.1]
    #[arg(long)]
    weight_decay: Option<f64>,
    /// Iterations of linear warm-up, 0 for none [default: 250]
    #[arg(long, value_name = "N")]
    warmup: Option<usize>,
    /// Seed of initial weights, order and draws [default: 1234]
    #[arg(long)]
    seed: Option<u64>,
    /// Which of the stored variants are drawn [default: all]
    #[arg(long, value_enum)]
    augment: Option<Augment>,
    /// Order of the slices [default: shuffled]
    #[arg(long, value_enum)]
    order: Option<OrderName>,
    /// What the mask decoder sees [default: full]
    #[arg(long, value_enum)]
    arm: Option<ArmName>,
    /// The side network [default: resnet18]
    #[arg(long, value_enum)]
    side_network: Option<SideNetworkName>,
    /// The gate between SAM's embeddings and the side network's [default: scalar]
    #[arg(long, value_enum)]
    gate: Option<GateName>,
    /// Train the mask tokens too [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    train_mask_tokens: Option<bool>,
    /// Train the hypernetworks too [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    train_hypernetworks: Option<bool>,
    /// Training cases held out for validation
    #[arg(long, value_name = "CASE,CASE", value_delimiter = ',')]
    val_cases: Option<Vec<String>>,
    /// Hold out fold I of N of the training cases, from 1/N to N/N
    #[arg(long, value_name = "I/N", conflicts_with = "val_cases")]
    fold: Option<String>,
    /// Write a checkpoint every this many steps, beside the one at each epoch's end
    #[arg(long, value_name = "STEPS")]
    checkpoint_every: Option<usize>,
    /// Whether the store is read from disk at each step or kept in memory
    #[arg(long, value_enum, default_value_t = ReadName::Auto)]
    read: ReadName,
    /// Training items in the GPU's memory: auto (as many as fit), off, or a number of bytes as 20G
    #[arg(long, value_name = "auto|off|BYTES", default_value = "auto")]
    device_store: DeviceStore,
    /// Ask a GPU for the training step as one CUDA graph; it is compared with a plain step before it is relied on
    #[arg(long)]
    cuda_graph: bool,
    /// How exactly a GPU computes: f32, tf32 or bf16; weights, statistics, norms, softmax, loss and updates are float32 in each
    /// [default: f32]
    #[arg(long, value_enum)]
    precision: Option<PrecisionName>,
    /// auto, cpu or cuda:INDEX
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    #[command(flatten)]
    cache: Cache,
    #[command(flatten)]
    profile: Profile,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OptimizerName {
    #[value(name = "adamw")]
    AdamW,
    Adam,
    Sgd,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OrderName {
    /// A new permutation an epoch
    Shuffled,
    /// As stored
    Sequential,
}

/// `--arm`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ArmName {
    /// Gate between SAM's embeddings and the CNN's
    Full,
    /// The CNN's embeddings alone
    CnnOnly,
    /// SAM's embeddings alone
    SamOnly,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SideNetworkName {
    /// torchvision's, up to layer3: the published one
    Resnet18,
    /// torchvision's, up to layer3
    Resnet34,
    /// torchvision's, up to layer3, and a trained projection from its 1024 channels to 256
    Resnet50,
    /// timm's vit_tiny_patch16_224, and a trained projection from its 192 channels to 256
    VitTiny,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GateName {
    /// One number: the published one
    Scalar,
    /// One number a channel
    Channel,
    /// One number a place of the image, of both embeddings there
    Pixel,
}

/// `--read`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ReadName {
    /// In memory where it takes at most half of what is available
    Auto,
    /// From disk at each step, in bounded memory
    Stream,
    /// In memory once read
    Resident,
}

impl From<ArmName> for Arm {
    fn from(typed: ArmName) -> Self {
        match typed {
            ArmName::Full => Arm::Full,
            ArmName::CnnOnly => Arm::CnnOnly,
            ArmName::SamOnly => Arm::SamOnly,
        }
    }
}

impl From<ReadName> for ReadMode {
    fn from(typed: ReadName) -> Self {
        match typed {
            ReadName::Auto => ReadMode::Auto,
            ReadName::Stream => ReadMode::Stream,
            ReadName::Resident => ReadMode::Resident,
        }
    }
}

impl Args {
    /// The run's settings: what was typed over the run's own with `--resume`, else over the published ones.
    fn config(&self) -> anyhow::Result<TrainConfig> {
        let base = if self.resume { run::read_record(&self.run)?.config } else { TrainConfig::default() };
        let val_cases = match (&self.val_cases, &self.fold) {
            (Some(cases), _) => cases.clone(),
            (None, Some(fold)) => run::fold_cases(&TrainingSplit::open(&self.store)?, fold)?,
            (None, None) => base.val_cases,
        };
        Ok(TrainConfig {
            epochs: self.epochs.unwrap_or(base.epochs),
            max_steps: self.max_steps.or(base.max_steps),
            batch_size: self.batch_size.unwrap_or(base.batch_size),
            lr: self.lr.unwrap_or(base.lr),
            lambda: self.lambda.unwrap_or(base.lambda),
            optimizer: self.optimizer.map_or(base.optimizer, |typed| match typed {
                OptimizerName::AdamW => OptimizerKind::AdamW,
                OptimizerName::Adam => OptimizerKind::Adam,
                OptimizerName::Sgd => OptimizerKind::Sgd,
            }),
            weight_decay: self.weight_decay.unwrap_or(base.weight_decay),
            warmup: self.warmup.unwrap_or(base.warmup),
            seed: self.seed.unwrap_or(base.seed),
            augment: self.augment.map(Into::into).or(base.augment),
            order: self.order.map_or(base.order, |typed| match typed {
                OrderName::Shuffled => SliceOrder::Shuffled,
                OrderName::Sequential => SliceOrder::Sequential,
            }),
            arm: self.arm.map_or(base.arm, Into::into),
            val_cases,
            side_network: self.side_network.map_or(base.side_network, |typed| match typed {
                SideNetworkName::Resnet18 => SideNetwork::Resnet18,
                SideNetworkName::Resnet34 => SideNetwork::Resnet34,
                SideNetworkName::Resnet50 => SideNetwork::Resnet50,
                SideNetworkName::VitTiny => SideNetwork::VitTiny,
            }),
            gate: self.gate.map_or(base.gate, |typed| match typed {
                GateName::Scalar => GateKind::Scalar,
                GateName::Channel => GateKind::Channel,
                GateName::Pixel => GateKind::Pixel,
            }),
            train_mask_tokens: self.train_mask_tokens.unwrap_or(base.train_mask_tokens),
            train_hypernetworks: self.train_hypernetworks.unwrap_or(base.train_hypernetworks),
            precision: self.precision.map_or(base.precision, Into::into),
        })
    }

    /// Trains.
    pub fn run(self) -> anyhow::Result<()> {
        let _profile = self.profile.start()?;
        self.cache.apply();
        let config = self.config()?;
        let args = TrainArgs {
            config,
            store: self.store,
            run: self.run.clone(),
            cnn_checkpoint: self.cnn_checkpoint,
            init: self.init,
            resume: self.resume,
            device: self.device.open()?,
            read_mode: self.read.into(),
            device_store: self.device_store,
            cuda_graph: self.cuda_graph,
            checkpoint_every: self.checkpoint_every,
            program: super::program(),
            observer: Terminal::new(),
        };
        let stop = interrupt::stop_flag("the step in flight is finished and saved")?;
        let summary = run::train_until(&args, &stop)?;
        let at = match summary.last {
            Some(row) => format!(", loss {:.4}, gate {:.3}", row.loss, row.gate),
            None => String::new(),
        };
        eprintln!("{} steps{at}: {}", summary.steps, self.run.display());
        Ok(())
    }
}
