//! `sam-ladder precompute`.

use super::device::DeviceChoice;
use super::image_channels::ChannelArgs;
use super::profile::Profile;
use super::progress::{self, Terminal};
use super::sam_checkpoint::WeightFiles;
use super::slurm::SlurmArgs;
use super::typed::Typed;
use super::weights;
use crate::error::refusal;
use crate::interrupt;
use crate::print::{print_line, print_note};
use crate::slurm::{Job, JobsFolder, Word};
use sam_ladder_cache::{Store, images_stored};
use sam_ladder_precompute::pipeline::{
    Plan, PrecomputeArgs, Share, Space, Summary, estimate, identify_encoder, identify_weights, load_encoder, run_part,
};
use sam_ladder_precompute::scans::{SourceOptions, configure};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::encoder::EncoderArch;
use sam_ladder_schemas::observer::Unit;
use sam_ladder_schemas::orientation::Orientation;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
use sam_ladder_schemas::preprocessing::parse_spacing;
use sam_ladder_schemas::slurm::JobKind;
use std::path::{Path, PathBuf};

/// The encoder's waiting that is worth a line: at least so long, and such a part of all time.
const NOTABLE_SECONDS: f64 = 10.0;
const NOTABLE_PART: f64 = 0.1;

/// Arguments of `precompute`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sam-ladder precompute --scans /data/RawData --store synapse.zarr \\
      --sam-checkpoint weights/sam_vit_b_01ec64.pth
  sam-ladder precompute --scans /data/RawData --store small.zarr \\
      --sam-checkpoint weights/sam_vit_b_01ec64.pth --preset native224 --augment flips
  sam-ladder precompute --scans scans --store trial.zarr --random-encoder 0 --dry-run
  sam-ladder precompute --scans /data/RawData --store dino.zarr --pixel-normalisation imagenet \\
      --encoder-checkpoint weights/dinov2_vits14_reg4_pretrain.pth \\
      --sam-checkpoint weights/sam_vit_b_01ec64.pth
")]
pub struct Args {
    /// Folder of the scans: the raw Synapse layout (RawData/Training/{img,label}), the published preprocessed one (train_npz, test_vol_h5), or
    /// nnU-Net's (imagesTr, labelsTr, dataset.json). Volumes are NIfTI, NRRD, MetaImage or .hdr/.img; what looks like a scan and is not used is
    /// listed
    #[arg(long, value_name = "DIR")]
    scans: PathBuf,
    /// Store to write: a folder, or s3://bucket/key. An unfinished store is continued; a finished one takes new scans and variants
    #[arg(long, value_name = "STORE.zarr")]
    store: PathBuf,
    /// SAM checkpoint (Segment Anything's published weights, which `make weights` downloads), .pth or .safetensors; or --random-encoder
    #[arg(long, value_name = "FILE", conflicts_with = "random_encoder")]
    sam_checkpoint: Option<PathBuf>,
    /// Checkpoint of another encoder instead of SAM's: DINOv2's or DINOv3's ViT-S, B or L, in their publisher's names or timm's. The mask decoder is
    /// still that of --sam-checkpoint
    #[arg(long, value_name = "FILE", conflicts_with = "random_encoder", requires = "sam_checkpoint")]
    encoder_checkpoint: Option<PathBuf>,
    /// Random weights from this seed instead of a checkpoint, to try things out
    #[arg(long, value_name = "SEED")]
    random_encoder: Option<u64>,
    /// Image size and data size together; --image-size and --data-size override it
    #[arg(long, value_enum, default_value_t = Preset::Published)]
    preset: Preset,
    #[command(flatten)]
    settings: Typed<PrecomputeConfig>,
    /// Values that become 0 and 1, in Hounsfield units for CT [default: -125,275]. In nnU-Net's layout it is for the CT channels, or
    /// for all if none is CT; other channels use the 0.5th and 99.5th percentile of each scan
    #[arg(long, value_name = "LOW,HIGH", allow_hyphen_values = true, value_parser = parse_window)]
    window: Option<[f32; 2]>,
    /// In nnU-Net's layout: numbers of the channels to use, at most three, in the order in which the network sees them [default: all]
    #[arg(long, value_name = "0,1,2", value_delimiter = ',')]
    channels: Option<Vec<u32>>,
    #[command(flatten)]
    image_channels: ChannelArgs,
    /// How the slices lie, as nibabel's axis codes [default: as the first training scan's]. nnU-Net layout: scans stored otherwise are turned
    /// to it. Other layouts: nothing is turned; it only records how the arrays lie, for `predict`
    #[arg(long, value_name = "LPS")]
    orientation: Option<Orientation>,
    /// In the published layout, whose files do not say it: distance between voxel centres along depth, height and width, in millimetres
    #[arg(long, value_name = "MM,MM,MM", value_parser = parse_spacing)]
    spacing: Option<[f64; 3]>,
    /// In the published layout, whose files do not say them: names of the labels from 1 [default: the eight organs of Synapse]
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    classes: Option<Vec<String>>,
    /// Images per pass of the encoder
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Do only the I-th of N equal parts of the work. Workers on several machines share the store's folder, and all use the same --batch-size
    #[arg(long, value_name = "I/N", default_value_t = Share::ALL, conflicts_with = "slurm")]
    worker: Share,
    /// Print what would be done and about how long it would take, and write nothing; with --slurm print the jobs' scripts
    #[arg(long)]
    dry_run: bool,
    /// Where to compute: auto (the first GPU if this build can use one), cpu or cuda:INDEX
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    #[command(flatten)]
    slurm: SlurmArgs,
    #[command(flatten)]
    profile: Profile,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Preset {
    /// As the published code: data at 224 pixels, network at 512
    Published,
    /// Data and network at 224 pixels: about a fifth of the cost
    Native224,
}

/// `--window`.
pub fn parse_window(typed: &str) -> Result<[f32; 2], String> {
    let parsed = typed.split_once(',').and_then(|(low, high)| Some([low.trim().parse().ok()?, high.trim().parse().ok()?]));
    parsed.ok_or_else(|| "expected two numbers such as -125,275".into())
}

impl Args {
    /// The store's config: what was typed over the preset.
    fn config(&self) -> anyhow::Result<PrecomputeConfig> {
        let published = PrecomputeConfig::default();
        let preset = match self.preset {
            Preset::Published => published,
            Preset::Native224 => PrecomputeConfig { image_size: 224, data_size: 224, ..published },
        };
        let typed = self.settings.over(preset)?;
        let Some(path) = &self.sam_checkpoint else {
            let seed = self.random_encoder.ok_or_else(weights::none_given)?;
            return Ok(PrecomputeConfig { weights: EncoderWeights::Random { seed }, ..typed });
        };
        weights::ensure_there(path, weights::RANDOM_ENCODER)?;
        let of_sam = identify_weights(path, &*Terminal::new())?;
        let Some(path) = &self.encoder_checkpoint else {
            let (encoder, weights) = self.as_typed(path, of_sam, typed.encoder, "--sam-checkpoint")?;
            return Ok(PrecomputeConfig { encoder, weights, ..typed });
        };
        weights::ensure_there(path, "")?;
        let of_other = identify_encoder(path, &*Terminal::new())?;
        let (encoder, weights) = self.as_typed(path, of_other, typed.encoder, "--encoder-checkpoint")?;
        Ok(PrecomputeConfig { encoder, weights, decoder_weights: Some(of_sam.1), ..typed })
    }

    /// What a checkpoint holds, unless another encoder was typed.
    fn as_typed(
        &self,
        path: &Path,
        (found, weights): (EncoderArch, EncoderWeights),
        typed: EncoderArch,
        option: &str,
    ) -> anyhow::Result<(EncoderArch, EncoderWeights)> {
        if !self.settings.has("encoder") || found == typed {
            return Ok((found, weights));
        }
        let message = format!("{} is a {} checkpoint, expected {} as in --encoder", path.display(), found.name(), typed.name());
        let hint = match (option, typed.is_sam()) {
            ("--sam-checkpoint", false) => format!("pass the checkpoint of {} with --encoder-checkpoint, too", typed.name()),
            _ => format!("leave --encoder out, or pass another {option}"),
        };
        Err(refusal(message, hint))
    }

    /// The files that the encoder and SAM's decoder are read from.
    fn weight_files(&self) -> WeightFiles {
        match &self.encoder_checkpoint {
            Some(_) => WeightFiles { encoder: self.encoder_checkpoint.clone(), decoder: self.sam_checkpoint.clone() },
            None => WeightFiles { encoder: self.sam_checkpoint.clone(), decoder: None },
        }
    }

    /// Sends workers to Slurm, and after them a job that finishes the store.
    fn submit(&self, plan: &Plan) -> anyhow::Result<()> {
        print_note!("{plan}");
        let stored = images_stored(&self.store, plan.layout())?;
        if stored == plan.layout().num_items() && Store::open(&self.store).is_ok() {
            print_note!("{} is complete already: nothing to do", self.store.display());
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
        let mut config = self.config()?;
        let test_cases = std::mem::take(&mut config.test_cases);
        let options = SourceOptions {
            window: self.window,
            channels: self.channels.clone(),
            test_cases,
            orientation: self.orientation,
            spacing_mm: self.spacing,
            class_names: self.classes.clone(),
            channels_from: self.image_channels.chosen(self.window)?,
        };
        let config = configure(&self.scans, &options, config)?;
        if !config.encoder.is_sam() && config.pixel_normalisation.is_none() {
            let name = config.encoder.name();
            print_note!("{name} was trained on normalised images: consider --pixel-normalisation imagenet");
        }
        let observer = Terminal::new();
        let plan = Plan::new(&self.scans, &config, &*observer)?;
        if self.slurm.is_given() {
            return self.submit(&plan);
        }
        let files = self.weight_files();
        let args = PrecomputeArgs {
            scans: self.scans,
            store: self.store,
            config,
            checkpoint: files.encoder,
            decoder_checkpoint: files.decoder,
            batch_size: self.batch_size as usize,
            device: self.device.open()?,
            observer,
        };
        if self.dry_run {
            let estimate = estimate(&plan, &args.store, args.batch_size, || load_encoder(&args))?;
            plan.check_values(&*args.observer);
            let space = Space::of(&plan, &args.store).map(|space| format!("\n{space}")).unwrap_or_default();
            print_line!("{plan}{space}\n{estimate}");
            return Ok(());
        }
        print_note!("{plan}");
        let stop = interrupt::stop_flag("the shards in flight are finished")?;
        let summary = run_part(&plan, &args, self.worker, &stop)?;
        report(&summary, self.worker, &args.store);
        Ok(())
    }
}

/// What was done, and whether reading held it up.
fn report(summary: &Summary, worker: Share, store: &Path) {
    let Summary { slices_written, slices_total, images_encoded, seconds, seconds_waiting, .. } = *summary;
    let store = store.display();
    let images = counted(images_encoded, "image");
    let time = match images_encoded {
        0 => progress::duration(seconds),
        images => {
            format!("{}, {}", progress::duration(seconds), progress::rate_text(Unit::Images, images as f64 / seconds.max(1e-9)))
        }
    };
    if !summary.complete {
        let slices = counted(slices_written, "slice");
        print_note!("worker {worker} is done: {slices}, {images} in {time}; other workers are not");
    } else if summary.already_complete {
        print_note!("{store} is complete already: nothing to do");
    } else {
        let slices = counted(slices_total, "slice");
        print_note!("{slices_written} of {slices}, {images} in {time}: {store}");
    }
    if seconds_waiting > NOTABLE_SECONDS.max(NOTABLE_PART * seconds) {
        print_note!(
            "of these, the encoder waited {} for images: reading and resampling the scans takes longer",
            progress::duration(seconds_waiting)
        );
    }
}
