//! What a prediction needs to know in addition to the scan: the run's own settings, or the published ones for a checkpoint without a run.

use crate::cli::export::run_checkpoint;
use crate::cli::progress::Terminal;
use crate::cli::sam_checkpoint::{TypedWeights, WeightFiles};
use crate::cli::weights::ensure_there;
use crate::error::refusal;
use candle_core::Device;
use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_precompute::encoder::{EncoderError, published_encoder};
use sam_ladder_precompute::pipeline::{Loaded, PrecomputeArgs, SamEncoder, identify_weights, load, load_encoder};
use sam_ladder_schemas::differences::differences;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::tables::{ValueRange, VolumeRange};
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::WeightSource;
use sam_ladder_train::run::{read_info, read_record};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Key of the mask tokens in the published state dict: one per class.
const MASK_TOKENS: &str = "sam.mask_decoder.mask_tokens.weight";
/// Key of the projection from another encoder's channels to SAM's.
const PROJECTION: &str = "sam.embedding_projection.weight";
/// Key of the table of positions of its image encoder: one row per patch.
const POS_EMBED: &str = "sam.image_encoder.pos_embed";

/// The files that were typed.
#[derive(Debug, Clone, Copy)]
pub struct TypedFiles<'a> {
    /// `--run`, in the order typed.
    pub runs: &'a [PathBuf],
    /// `--last`.
    pub last: bool,
    /// `--checkpoint`.
    pub checkpoint: Option<&'a Path>,
    /// `--sam-checkpoint` and `--encoder-checkpoint`.
    pub frozen: TypedWeights<'a>,
}

/// Where the image encoder comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EncoderFile {
    /// SAM's own checkpoint, or another encoder's and, if it is needed, SAM's.
    Files(WeightFiles),
    /// The whole published model.
    Published(PathBuf),
    /// None: random weights of the seed in the settings.
    Random,
}

/// All that is needed to make masks of new scans.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How scans become the network's images, and the embeddings' number format.
    pub config: PrecomputeConfig,
    /// The trained weights; of several models the probabilities are averaged.
    pub weights: Vec<WeightSource>,
    /// The frozen ones.
    pub encoder: EncoderFile,
    /// What the values of the training scans were like, for each channel; empty if nothing is known of them.
    pub training_values: Vec<ValueRange>,
    /// The organs' volumes in the cases that the model was trained on, by class from 1; empty if nothing is known of them.
    pub training_volumes: Vec<VolumeRange>,
}

impl Settings {
    /// Finds them, and checks that the SAM checkpoint is the run's.
    ///
    /// # Errors
    /// A run or checkpoint that cannot be read, or a SAM checkpoint that is missing, superfluous or another one.
    pub fn new(typed: TypedFiles) -> anyhow::Result<Self> {
        match (typed.runs, typed.checkpoint) {
            ([run], checkpoint) => Self::of_run(run, checkpoint, typed),
            ([], Some(checkpoint)) => Self::of_checkpoint(checkpoint, typed.frozen),
            ([], None) => Err(refusal("no model is given", "pass --run DIR or --checkpoint FILE")),
            (runs, Some(_)) => {
                let message = format!("--checkpoint replaces the model of one run, and {} are given", runs.len());
                Err(refusal(message, "pass one --run, or leave --checkpoint out"))
            }
            ([first, others @ ..], None) => {
                let mut settings = Self::of_run(first, None, typed)?;
                for run in others {
                    let of_run = Self::of_run(run, None, typed)?;
                    ensure_same_images(first, &settings.config, run, &of_run.config)?;
                    settings.weights.extend(of_run.weights);
                }
                Ok(settings)
            }
        }
    }

    fn of_run(run: &Path, checkpoint: Option<&Path>, typed: TypedFiles) -> anyhow::Result<Self> {
        let record = read_record(run)?;
        let files = typed.frozen.checked(&record.store, run)?;
        let encoder = match (&record.store.weights, &files.encoder) {
            (EncoderWeights::Random { .. }, None) => EncoderFile::Random,
            (EncoderWeights::Checkpoint { sha256 }, None) => {
                let (what, option) = match record.store.encoder {
                    sam if sam.is_sam() => ("SAM", "--sam-checkpoint"),
                    other => (other.name(), "--encoder-checkpoint"),
                };
                let message = format!("{} was trained on embeddings of a {what} checkpoint (SHA-256 {sha256})", run.display());
                return Err(refusal(message, format!("pass that file with {option}")));
            }
            (_, Some(_)) => EncoderFile::Files(files),
        };
        let weights = match checkpoint {
            Some(path) => WeightSource::Checkpoint(path.into()),
            None => WeightSource::Run { folder: run.into(), checkpoint: run_checkpoint(typed.last) },
        };
        Ok(Settings {
            config: of_new_scans(record.store),
            weights: vec![weights],
            encoder,
            training_values: record.training_values,
            training_volumes: record.training_volumes,
        })
    }

    /// The published preprocessing, and what the file says of sizes and classes.
    fn of_checkpoint(path: &Path, frozen: TypedWeights<'_>) -> anyhow::Result<Self> {
        let state = StateDict::open(path)?;
        let info = read_info(path)?;
        let classes = state.shape(MASK_TOKENS).and_then(|shape| shape.first().copied()).ok_or_else(|| {
            let message = format!("{}: the key {MASK_TOKENS} is missing", path.display());
            refusal(message, "pass a whole model in the published code's names")
        })?;
        if frozen.encoder.is_some() || state.shape(PROJECTION).is_some() {
            let message = format!("{} does not name the encoder whose embeddings it takes", path.display());
            return Err(refusal(message, "pass --run too: its record names it"));
        }
        if let Some(info) = info.as_ref().filter(|info| info.channels != 1) {
            let message =
                format!("{} is a model of images with {} channels, which the file does not name", path.display(), info.channels);
            return Err(refusal(message, "pass --run too: its record names them"));
        }
        let own_size = state.shape(POS_EMBED).and_then(|shape| shape.get(1).copied()).map(|grid| grid * 16);
        let encoder = match (frozen.sam, own_size) {
            (Some(path), _) => {
                ensure_there(path, "")?;
                EncoderFile::Files(WeightFiles { encoder: Some(path.into()), decoder: None })
            }
            (None, Some(_)) => EncoderFile::Published(path.into()),
            (None, None) => {
                let hint = "pass --sam-checkpoint, the SAM checkpoint that it was trained with";
                return Err(refusal(format!("{} holds no image encoder", path.display()), hint));
            }
        };
        let (arch, weights) = match frozen.sam {
            Some(path) => identify_weights(path, &*Terminal::new())?,
            // Named only by its architecture: no store is made of it.
            _ => (arch_of(&state)?, EncoderWeights::Checkpoint { sha256: String::new() }),
        };
        let mut config = of_new_scans(PrecomputeConfig::published(arch, weights));
        config.dtype = StoreDtype::F32;
        config.image_size = info.map(|info| info.image_size).or(own_size).unwrap_or(config.image_size);
        if config.num_classes() != classes {
            config.class_names = (1..classes).map(|class| format!("class {class}")).collect();
        }
        let weights = vec![WeightSource::Checkpoint(path.into())];
        Ok(Settings { config, weights, encoder, training_values: Vec::new(), training_volumes: Vec::new() })
    }

    /// Loads the frozen encoder.
    ///
    /// # Errors
    /// Weights that cannot be read or do not fit.
    pub fn load_encoder(&self, device: &Device) -> sam_ladder_precompute::error::Result<SamEncoder> {
        let EncoderFile::Published(path) = &self.encoder else { return load_encoder(&self.arguments(device)) };
        let encoder = published_encoder(&StateDict::open(path)?, device)?;
        let missing = || EncoderError::NoPositions { path: path.display().to_string(), key: POS_EMBED.into(), model: None };
        SamEncoder::new(encoder.ok_or_else(missing)?, device)?.normalising(self.config.pixel_normalisation)
    }

    /// Loads the frozen encoder, and SAM's decoder, which a store keeps too.
    ///
    /// # Errors
    /// Weights that cannot be read or do not fit.
    pub fn load_frozen(&self, device: &Device) -> sam_ladder_precompute::error::Result<Loaded<SamEncoder>> {
        load(&self.arguments(device))
    }

    fn arguments(&self, device: &Device) -> PrecomputeArgs {
        let files = match &self.encoder {
            EncoderFile::Files(files) => files.clone(),
            EncoderFile::Published(_) | EncoderFile::Random => WeightFiles::default(),
        };
        PrecomputeArgs {
            scans: PathBuf::new(),
            store: PathBuf::new(),
            config: self.config.clone(),
            checkpoint: files.encoder,
            decoder_checkpoint: files.decoder,
            batch_size: 1,
            device: device.clone(),
            observer: Terminal::new(),
        }
    }
}

/// Refuses runs whose models see other images: the scans are prepared and encoded once, for all of them.
///
/// # Errors
/// Every setting that differs, with both values.
fn ensure_same_images(first: &Path, of_first: &PrecomputeConfig, run: &Path, of_run: &PrecomputeConfig) -> anyhow::Result<()> {
    let [left, right] = [first, run].map(|run| format!("{} has", run.display()));
    let differing = differences(&json!(of_first), &left, &json!(of_run), &right);
    if differing.is_empty() {
        return Ok(());
    }
    let message = format!("the runs were trained on images of different kinds: {differing}");
    Err(refusal(message, "average runs on stores of the same settings"))
}

/// The settings of a store of new scans: each slice as it is, no labels, and no rungs, which no model reads yet.
fn of_new_scans(config: PrecomputeConfig) -> PrecomputeConfig {
    PrecomputeConfig {
        augment: AugmentPolicy::None,
        test_augment: AugmentPolicy::None,
        rotation_step: 1,
        test_cases: Vec::new(),
        unlabelled: true,
        ..config.without_rungs()
    }
}

fn arch_of(state: &StateDict) -> anyhow::Result<sam_ladder_schemas::encoder::EncoderArch> {
    use sam_ladder_schemas::encoder::EncoderArch;
    let width = state.shape(POS_EMBED).and_then(|shape| shape.last().copied());
    let arch = EncoderArch::SAM.into_iter().find(|arch| Some(arch.embed_dim()) == width);
    arch.ok_or_else(|| {
        let message = format!("{}: {POS_EMBED} does not have the width of any of SAM's encoders", state.source());
        refusal(message, "pass a model of the published code, or --sam-checkpoint too")
    })
}
