//! `sam-ladder precompute`.

use super::device::DeviceChoice;
use super::precision::PrecisionName;
use super::profile::Profile;
use super::progress::Terminal;
use super::slurm::SlurmArgs;
use crate::interrupt;
use crate::slurm::{Job, JobsFolder, Word};
use anyhow::{bail, ensure};
use clap::ValueEnum;
use sam_ladder_cache::{Store, images_stored};
use sam_ladder_precompute::pipeline::{Plan, PrecomputeArgs, Share, Summary, estimate, identify_weights, load, run_part};
use sam_ladder_precompute::scans::{SourceOptions, configure};
use sam_ladder_schemas::encoder::EncoderArch;
use sam_ladder_schemas::precompute::{Compression, EncoderWeights, PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::slurm::JobKind;
use sam_ladder_schemas::variants::AugmentPolicy;
use std::path::PathBuf;

/// Arguments of `precompute`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder precompute --scans /data/RawData --store synapse.zarr \\
      --sam-checkpoint weights/sam_vit_b_01ec64.pth
  sam-ladder precompute --scans /data/RawData --store small.zarr \\
      --sam-checkpoint weights/sam_vit_b_01ec64.pth --preset native224 --augment flips
  sam-ladder precompute --scans scans --store trial.zarr --random-encoder 0 --dry-run
")]
pub struct Args {
    /// Folder of the scans: the raw Synapse layout (RawData/Training/{img,label}), the published one (train_npz, test_vol_h5), or
    /// nnU-Net's (imagesTr, labelsTr, dataset.json)
    #[arg(long, value_name = "DIR")]
    scans: PathBuf,
    /// Store to write: a folder, or s3://bucket/key; an interrupted one is continued, a finished one takes scans and variants that are new
    #[arg(long, value_name = "STORE.zarr")]
    store: PathBuf,
    /// SAM checkpoint, .pth or .safetensors; the architecture is read from it
    #[arg(long, value_name = "FILE", required_unless_present = "random_encoder", conflicts_with = "random_encoder")]
    sam_checkpoint: Option<PathBuf>,
    /// Random encoder and decoder weights from this seed, for machines without a checkpoint
    #[arg(long, value_name = "SEED")]
    random_encoder: Option<u64>,
    /// Architecture: of the random encoder (vit_b unless said), or the one that the checkpoint must have
    #[arg(long, value_enum)]
    encoder: Option<ArchName>,
    /// Sizes of the published code (data 224, network 512), or the network at the data's own 224
    #[arg(long, value_enum, default_value_t = Preset::Published)]
    preset: Preset,
    /// Pixels along the side of the network's input, a multiple of 16; overrides the preset
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// Pixels along the side of the data, where it is augmented; overrides the preset
    #[arg(long, value_name = "PIXELS")]
    data_size: Option<usize>,
    /// Which variants of each training slice are stored: all 44 of the published augmentation, the 5 by reflection, or the slice
    /// alone
    #[arg(long, value_enum, default_value_t = Augment::Reference)]
    augment: Augment,
    /// Which variants of each test slice are stored: the slice alone, or with its four reflections, which eval --average-reflections averages over
    #[arg(long, value_name = "none|flips", value_enum, default_value_t = TestAugment::None)]
    test_augment: TestAugment,
    /// With --augment reference: keep only rotations by multiples of this many degrees
    #[arg(long, value_name = "DEGREES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rotation_step: u32,
    /// Values that become 0 and 1; -125,275 of CT unless said. In nnU-Net's layout of the CT channels, or of all where none is CT;
    /// other channels go from the 0.5th to the 99.5th percentile of each scan
    #[arg(long, value_name = "LOW,HIGH", allow_hyphen_values = true, value_parser = parse_window)]
    window: Option<[f32; 2]>,
    /// nnU-Net's layout: numbers of the channels to take, at most three, in the order in which the network sees them; all unless said
    #[arg(long, value_name = "0,1,2", value_delimiter = ',')]
    channels: Option<Vec<u32>>,
    /// nnU-Net's layout: cases of imagesTr to keep for the final evaluation, beside those that have labels in labelsTs
    #[arg(long, value_name = "CASE,CASE", value_delimiter = ',')]
    test_cases: Vec<String>,
    /// Number format of embeddings and images
    #[arg(long, value_enum, default_value_t = Dtype::F16)]
    dtype: Dtype,
    /// Compression of the arrays that training reads: none reads fastest, zstd takes about a third off the disk (most of it off the images)
    #[arg(long, value_enum, default_value_t = CompressionName::None)]
    compression: CompressionName,
    /// How exactly a GPU encodes: f32, tf32, bf16 or f16; norms, softmax and sums are float32 in each. It shapes the embeddings
    #[arg(long, value_enum, default_value_t = PrecisionName::F32)]
    precision: PrecisionName,
    /// Images that the encoder takes at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Do one of N equal parts of the work, from 1/N to N/N; workers on other machines share the store's folder, and all have the
    /// same --batch-size
    #[arg(long, value_name = "I/N", default_value_t = Share::ALL, conflicts_with = "slurm")]
    worker: Share,
    /// Print what is to be done and about how long it takes, and write nothing; with --slurm print the jobs' scripts
    #[arg(long)]
    dry_run: bool,
    /// auto, cpu or cuda:INDEX
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    #[command(flatten)]
    slurm: SlurmArgs,
    #[command(flatten)]
    profile: Profile,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ArchName {
    #[value(name = "vit_b")]
    VitB,
    #[value(name = "vit_l")]
    VitL,
    #[value(name = "vit_h")]
    VitH,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Preset {
    /// Data at 224, network at 512
    Published,
    /// Data and network at 224
    Native224,
}

/// `--augment`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Augment {
    /// All 44 images of the published augmentation
    Reference,
    /// The slice and its four reflections
    Flips,
    /// The slice alone
    None,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    F16,
    F32,
    Bf16,
    /// 8 bits, a scale and an offset for each channel
    Q8,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompressionName {
    None,
    Zstd,
}

/// `--test-augment`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TestAugment {
    /// The slice alone
    None,
    /// The slice and its four reflections
    Flips,
}

impl From<TestAugment> for AugmentPolicy {
    fn from(typed: TestAugment) -> Self {
        match typed {
            TestAugment::None => AugmentPolicy::None,
            TestAugment::Flips => AugmentPolicy::Flips,
        }
    }
}

impl From<Augment> for AugmentPolicy {
    fn from(typed: Augment) -> Self {
        match typed {
            Augment::Reference => AugmentPolicy::Reference,
            Augment::Flips => AugmentPolicy::Flips,
            Augment::None => AugmentPolicy::None,
        }
    }
}

/// `--window`.
fn parse_window(typed: &str) -> Result<[f32; 2], String> {
    let parsed = typed.split_once(',').and_then(|(low, high)| Some([low.trim().parse().ok()?, high.trim().parse().ok()?]));
    parsed.ok_or_else(|| "expected two numbers, as -125,275".into())
}

impl Args {
    /// The store's config, but for the weights' architecture and hash, which a checkpoint settles.
    fn config(&self, encoder: EncoderArch, weights: EncoderWeights) -> PrecomputeConfig {
        let published = PrecomputeConfig::published(encoder, weights);
        let (data_size, image_size) = match self.preset {
            Preset::Published => (published.data_size, published.image_size),
            Preset::Native224 => (224, 224),
        };
        PrecomputeConfig {
            image_size: self.image_size.unwrap_or(image_size),
            data_size: self.data_size.unwrap_or(data_size),
            augment: self.augment.into(),
            test_augment: self.test_augment.into(),
            rotation_step: self.rotation_step,
            dtype: match self.dtype {
                Dtype::F16 => StoreDtype::F16,
                Dtype::F32 => StoreDtype::F32,
                Dtype::Bf16 => StoreDtype::Bf16,
                Dtype::Q8 => StoreDtype::Q8,
            },
            compression: match self.compression {
                CompressionName::None => Compression::None,
                CompressionName::Zstd => Compression::Zstd,
            },
            precision: self.precision.into(),
            ..published
        }
    }

    /// Architecture and weights: of the checkpoint, or random.
    fn weights(&self) -> anyhow::Result<(EncoderArch, EncoderWeights)> {
        let asked = self.encoder.map(|name| match name {
            ArchName::VitB => EncoderArch::VitB,
            ArchName::VitL => EncoderArch::VitL,
            ArchName::VitH => EncoderArch::VitH,
        });
        match (&self.sam_checkpoint, self.random_encoder) {
            (Some(path), _) => {
                let (found, weights) = identify_weights(path, &*Terminal::new())?;
                let asked = asked.unwrap_or(found);
                ensure!(
                    found == asked,
                    "{} is a {} checkpoint, and --encoder asks for {}: leave --encoder out, or pass the other checkpoint",
                    path.display(),
                    found.name(),
                    asked.name()
                );
                Ok((found, weights))
            }
            (None, Some(seed)) => Ok((asked.unwrap_or(EncoderArch::VitB), EncoderWeights::Random { seed })),
            (None, None) => {
                bail!("the encoder needs weights: pass --sam-checkpoint FILE, or --random-encoder SEED to try things out")
            }
        }
    }

    /// Sends workers to Slurm, and after them a job that finishes the store.
    fn submit(&self, plan: &Plan) -> anyhow::Result<()> {
        eprintln!("{plan}");
        let stored = images_stored(&self.store, plan.layout())?;
        if stored == plan.layout().num_items() && Store::open(&self.store).is_ok() {
            eprintln!("{} is complete already: nothing to do", self.store.display());
            return Ok(());
        }
        let Some(session) = self.slurm.session(&self.store, self.dry_run)? else { return Ok(()) };
        let whole = session.typed(&["--dry-run"], &[])?;
        let mut share = whole.clone();
        share.extend([Word::Literal("--worker".into()), Word::Share]);
        let jobs: [Job; 2] = [session.job(JobKind::Precompute, share), session.job(JobKind::Finish, whole)];
        JobsFolder::beside(&self.store)?.submit(&jobs, None, session.how)
    }

    /// Encodes.
    pub fn run(self) -> anyhow::Result<()> {
        let _profile = self.profile.start()?;
        let (encoder, weights) = self.weights()?;
        let options = SourceOptions { window: self.window, channels: self.channels.clone(), test_cases: self.test_cases.clone() };
        let config = configure(&self.scans, &options, self.config(encoder, weights))?;
        let observer = Terminal::new();
        let plan = Plan::new(&self.scans, &config, &*observer)?;
        if self.slurm.is_asked() {
            return self.submit(&plan);
        }
        let args = PrecomputeArgs {
            scans: self.scans,
            store: self.store,
            config,
            checkpoint: self.sam_checkpoint,
            batch_size: self.batch_size as usize,
            device: self.device.open()?,
            observer,
        };
        if self.dry_run {
            let estimate = estimate(&plan, &args.store, args.batch_size, || Ok(load(&args)?.encoder))?;
            println!("{plan}\n{estimate}");
            return Ok(());
        }
        eprintln!("{plan}");
        let stop = interrupt::stop_flag("the shards in flight are finished")?;
        let summary = run_part(&plan, &args, self.worker, &stop)?;
        let store = args.store.display();
        if !summary.complete {
            let Summary { slices_written, images_encoded, seconds, .. } = summary;
            let worker = self.worker;
            eprintln!(
                "worker {worker} is done: {slices_written} slices, {images_encoded} images in {seconds:.1} s; other workers are not"
            );
        } else if summary.already_complete {
            eprintln!("{store} is complete already: nothing to do");
        } else {
            let Summary { slices_written, slices_total, images_encoded, seconds, .. } = summary;
            eprintln!("{slices_written} of {slices_total} slices, {images_encoded} images in {seconds:.1} s: {store}");
        }
        Ok(())
    }
}
