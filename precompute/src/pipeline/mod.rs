//! Stage one, end to end: read scans, make variants, encode them, write the store.
//!
//! Reading, making images, encoding, fetching and writing overlap (`stages`). Memory is bounded by two scans and a few groups of slices with their
//! variants, however many scans there are. The same call continues what was interrupted.

mod encode;
mod estimate;
mod fetch;
mod fill;
mod lazy;
mod plan;
mod prepare;
mod repair;
mod rung_sample;
mod share;
mod slices;
mod space;
mod stages;
mod write;

pub use encode::{Encode, SamEncoder};
pub use estimate::{Estimate, estimate, seconds_per_image};
pub use fill::{FillOptions, Summary, fill_part, fill_store};
pub use lazy::Loaded;
pub use plan::Plan;
pub use repair::repair;
pub use share::Share;
pub use slices::{EncodedSlices, encode_slices, encode_variant};
pub use space::Space;

use crate::encoder::{
    EncoderArch, ImageEncoder, Placement, decoder_weights, detect_arch, detect_encoder, random_decoder_weights,
};
use crate::error::{Error, Result};
use crate::scans::sha256_of_file;
use candle_core::{Device, Tensor};
use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_schemas::observer::{Observer, Phase, Unit};
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Images that go through the encoder together by default.
pub const DEFAULT_BATCH_SIZE: usize = 4;

/// What stage one is to do.
#[derive(Debug, Clone)]
pub struct PrecomputeArgs {
    /// Folder of scans.
    pub scans: PathBuf,
    /// Folder of the store: new, an unfinished one of the same config, or a finished one that is to grow.
    pub store: PathBuf,
    /// All that shapes a tensor; architecture and weights as [`identify_weights`] found them.
    pub config: PrecomputeConfig,
    /// The checkpoint that `config.weights` was identified from; `None` for random weights.
    pub checkpoint: Option<PathBuf>,
    /// SAM's checkpoint that `config.decoder_weights` was identified from; `None` if encoder and decoder are from one place.
    pub decoder_checkpoint: Option<PathBuf>,
    /// Images that go through the encoder together.
    pub batch_size: usize,
    /// Where the encoder runs.
    pub device: Device,
    /// Gets progress and messages.
    pub observer: Arc<dyn Observer>,
}

/// The architecture of a SAM checkpoint and the name of its weights in a config.
///
/// # Errors
/// When the file cannot be read or holds no SAM encoder.
pub fn identify_weights(checkpoint: &Path, observer: &dyn Observer) -> Result<(EncoderArch, EncoderWeights)> {
    identify(checkpoint, detect_arch, observer)
}

/// As [`identify_weights`], of a checkpoint of another encoder than SAM's.
///
/// # Errors
/// When the file cannot be read or holds none that is known.
pub fn identify_encoder(checkpoint: &Path, observer: &dyn Observer) -> Result<(EncoderArch, EncoderWeights)> {
    identify(checkpoint, detect_encoder, observer)
}

fn identify(
    checkpoint: &Path,
    detect: fn(&StateDict) -> crate::encoder::Result<EncoderArch>,
    observer: &dyn Observer,
) -> Result<(EncoderArch, EncoderWeights)> {
    let state = StateDict::open(checkpoint)?;
    let arch = detect(&state)?;
    state.notes().iter().for_each(|note| observer.message(note));
    Ok((arch, EncoderWeights::Checkpoint { sha256: sha256_of_file(checkpoint, observer)? }))
}

/// Runs stage one: plans, creates or continues the store, encodes what is missing, finishes.
///
/// # Errors
/// Settings that do not go together, a store of another config, a checkpoint or scan that cannot be
/// read, a full disk. What is finished stays, and the same call resumes.
pub fn run(args: &PrecomputeArgs) -> Result<Summary> {
    run_part(&Plan::new(&args.scans, &args.config, &*args.observer)?, args, Share::ALL, &AtomicBool::new(false))
}

/// As [`run`], but only one worker's part of a plan that was made before from the same arguments, and until `stop` is set.
///
/// # Errors
/// As [`run`], and [`Error::Stopped`].
pub fn run_part(plan: &Plan, args: &PrecomputeArgs, share: Share, stop: &AtomicBool) -> Result<Summary> {
    fill_part(plan, &args.store, &FillOptions { batch_size: args.batch_size, share, stop, observer: &*args.observer }, || {
        load(args)
    })
}

/// The encoder that the arguments name, on their device, and the decoder that goes with it.
///
/// # Errors
/// When a checkpoint cannot be read, is missing, or is not the one of the config.
pub fn load(args: &PrecomputeArgs) -> Result<Loaded<SamEncoder>> {
    let encoder = load_encoder(args)?;
    Ok(Loaded { encoder, decoder: to_safetensors(&decoder_of(args)?)? })
}

/// The encoder that the arguments name, on their device.
///
/// # Errors
/// When its checkpoint cannot be read, is missing, or is not the one of the config.
pub fn load_encoder(args: &PrecomputeArgs) -> Result<SamEncoder> {
    let PrecomputeConfig { encoder: arch, image_size, .. } = args.config;
    let placement = Placement { device: &args.device, precision: args.config.precision };
    let _loading = args.observer.begin(Phase { name: "loading the encoder", unit: Unit::Tensors, total: None, done: 0 });
    let encoder = match (&args.config.weights, &args.checkpoint) {
        (EncoderWeights::Checkpoint { .. }, Some(path)) => {
            ImageEncoder::load(&StateDict::open(path)?, arch, image_size, placement)?
        }
        (EncoderWeights::Random { seed }, None) => ImageEncoder::random(arch, image_size, *seed, placement)?,
        (EncoderWeights::Checkpoint { .. }, None) if arch.is_sam() => return Err(Error::NoCheckpoint("--sam-checkpoint")),
        (EncoderWeights::Checkpoint { .. }, None) => return Err(Error::NoCheckpoint("--encoder-checkpoint")),
        (EncoderWeights::Random { .. }, Some(path)) => return Err(Error::UnusedCheckpoint(path.clone())),
    };
    SamEncoder::new(encoder, &args.device)?.normalising(args.config.pixel_normalisation)
}

/// SAM's mask decoder: of the encoder's own checkpoint if that is SAM's, otherwise of the one that the arguments name; or random.
fn decoder_of(args: &PrecomputeArgs) -> Result<Vec<(String, Tensor)>> {
    let (weights, path) = match &args.config.decoder_weights {
        Some(weights) => (weights, &args.decoder_checkpoint),
        None => (&args.config.weights, &args.checkpoint),
    };
    match (weights, path) {
        (EncoderWeights::Random { seed }, _) => Ok(random_decoder_weights(*seed)?),
        (EncoderWeights::Checkpoint { .. }, Some(path)) => Ok(decoder_weights(&StateDict::open(path)?)?),
        (EncoderWeights::Checkpoint { .. }, None) => Err(Error::NoCheckpoint("--sam-checkpoint")),
    }
}

fn to_safetensors(tensors: &[(String, Tensor)]) -> Result<Vec<u8>> {
    let views = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    Ok(safetensors::serialize(views, None)?)
}
