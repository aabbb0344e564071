//! Loads a trained model from a run, a checkpoint or an export, or makes an untrained one from a seed.

use crate::error::{Result, TrainError};
use crate::init::{InitSources, initial_weights, whole_model};
use crate::model::{LadderSam, ModelConfig};
use crate::run::{BatchShape, check_same_encoder, check_same_rungs, read_info, read_record};
use candle_core::Device;
use sam_ladder_cache::Store;
use sam_ladder_schemas::train::{Arm, BEST_CHECKPOINT, CHECKPOINT};
use std::path::{Path, PathBuf};

/// One of a run's models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunCheckpoint {
    /// The best on the validation cases if the run had any, otherwise the last.
    #[default]
    BestOrLast,
    /// The last.
    Last,
}

/// Source of a model's weights.
#[derive(Debug, Clone)]
pub enum WeightSource {
    /// A run directory.
    Run {
        /// The directory.
        folder: PathBuf,
        /// Which of its models.
        checkpoint: RunCheckpoint,
    },
    /// A file in the published names: a run's checkpoint, an export, or a checkpoint of the published code.
    Checkpoint(PathBuf),
    /// An untrained model: SAM's decoder from the store, the rest random, as at the start of a run with this seed and arm.
    ZeroShot {
        /// Seed of the random weights.
        seed: u64,
        /// [`Arm::SamOnly`] uses SAM without the side network.
        arm: Arm,
    },
}

/// File of the model `checkpoint` in a run directory.
pub fn run_checkpoint(folder: &Path, checkpoint: RunCheckpoint) -> PathBuf {
    let best = folder.join(BEST_CHECKPOINT);
    if checkpoint == RunCheckpoint::BestOrLast && best.exists() { best } else { folder.join(CHECKPOINT) }
}

/// The model for a store's images.
///
/// # Errors
/// Weights that cannot be read, do not fit, or were trained for another image size, number of classes or number of channels; a run on
/// another encoder's tensors.
pub fn load_model(source: &WeightSource, store: &Store, device: &Device) -> Result<LadderSam> {
    let shape = BatchShape::of(store.config());
    match source {
        WeightSource::ZeroShot { seed, arm } => {
            let published = ModelConfig::published(shape.image_size, shape.num_classes, *arm);
            let config = ModelConfig { embed_channels: shape.embed_channels, ..published };
            let sources = InitSources { sam_decoder: store.decoder_path(), cnn_checkpoint: None, init: None, seed: *seed };
            Ok(LadderSam::new(&config, &initial_weights(&config, &sources)?, device)?)
        }
        trained => {
            if let WeightSource::Run { folder, .. } = trained {
                check_same_encoder(folder, &read_record(folder)?, store)?;
            }
            let path = path_of(trained)?;
            if let Some(info) = read_info(&path)? {
                check_same_rungs(&path, &info, store)?;
            }
            load_trained(trained, shape, device)
        }
    }
}

/// The file of a trained model.
fn path_of(source: &WeightSource) -> Result<PathBuf> {
    match source {
        WeightSource::Run { folder, checkpoint } => {
            read_record(folder)?;
            Ok(run_checkpoint(folder, *checkpoint))
        }
        WeightSource::Checkpoint(path) => Ok(path.clone()),
        WeightSource::ZeroShot { .. } => Err(TrainError::NeedsStore),
    }
}

/// A trained model for images of this shape, without a store.
///
/// # Errors
/// Weights that cannot be read, do not fit, or were trained for another image size, number of classes or number of channels;
/// [`WeightSource::ZeroShot`], which needs a store.
pub fn load_trained(source: &WeightSource, shape: BatchShape, device: &Device) -> Result<LadderSam> {
    let path = path_of(source)?;
    let info = read_info(&path)?;
    if let Some(info) = &info {
        for (what, trained, found) in [
            ("image size", info.image_size, shape.image_size),
            ("number of classes", info.num_classes, shape.num_classes),
            ("number of channels", info.channels, shape.channels),
            ("number of channels of the embeddings", info.embed_channels, shape.embed_channels),
        ] {
            if trained != found {
                return Err(TrainError::OtherImages { path, what, trained, found });
            }
        }
    }
    let arm = info.as_ref().map_or(Arm::Full, |info| info.arm);
    let published =
        ModelConfig { embed_channels: shape.embed_channels, ..ModelConfig::published(shape.image_size, shape.num_classes, arm) };
    let config = info.map_or(published, |info| ModelConfig {
        side_network: info.side_network,
        gate: info.gate,
        decoder: info.decoder,
        neighbours: info.neighbours > 0,
        ladder: info.ladder,
        ..published
    });
    Ok(LadderSam::new(&config, &whole_model(&config, &path)?, device)?)
}
