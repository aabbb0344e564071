//! What a prediction needs to know in addition to the scan: the run's own settings, or the published ones for a checkpoint without a run.

use crate::cli::export::run_checkpoint;
use crate::cli::progress::Terminal;
use crate::cli::sam_checkpoint::{TypedWeights, WeightFiles};
use crate::cli::weights::ensure_there;
use crate::error::refusal;
use candle_core::Device;
use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_precompute::encoder::{EncoderError, published_encoder};
use sam_ladder_precompute::pipeline::{Encode, Loaded, PrecomputeArgs, SamEncoder, identify_weights, load, load_encoder};
use sam_ladder_precompute::rungs::RungMaps;
use sam_ladder_schemas::differences::differences;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::rungs::Rungs;
use sam_ladder_schemas::tables::{ValueRange, VolumeRange};
use sam_ladder_schemas::train_choices::LadderKind;
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::WeightSource;
use sam_ladder_train::run::{read_info, read_projection, read_record};
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
    /// The maps from tokens to rungs of the runs with a ladder; the config has rungs exactly if there are any.
    pub rungs: Option<RungMaps>,
    /// SHA-256 of the file with these maps; `None` for rungs that are the tokens as they are.
    pub rung_sha256: Option<String>,
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
                    settings.take_rungs(first, run, &of_run)?;
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
        let rung_sha256 = record.inputs.rung_projection.as_ref().map(|file| file.sha256.clone());
        let projection = read_projection(run, &record)?;
        let has_ladder = record.config.ladder == LadderKind::Gated;
        let config = of_new_scans(if has_ladder { record.store } else { record.store.without_rungs() });
        let rungs = match projection {
            Some(bytes) => Some(RungMaps::from_safetensors(&config, bytes)?),
            None => has_ladder.then(|| RungMaps::without_tokens(&config)).flatten(),
        };
        if let Some(path) = checkpoint {
            ensure_rungs_of(path, run, (config.stored_rungs(), rung_sha256.as_deref()))?;
        }
        Ok(Settings {
            config,
            weights: vec![weights],
            encoder,
            rungs,
            rung_sha256,
            training_values: record.training_values,
            training_volumes: record.training_volumes,
        })
    }

    /// Takes the rungs of another run's settings, if it has any. The first run with a ladder decides.
    ///
    /// # Errors
    /// Other rungs than those that are taken already.
    fn take_rungs(&mut self, first: &Path, run: &Path, other: &Settings) -> anyhow::Result<()> {
        if other.rungs.is_none() {
            return Ok(());
        }
        if self.rungs.is_none() {
            (self.rungs, self.rung_sha256) = (other.rungs.clone(), other.rung_sha256.clone());
            self.config = other.config.clone();
            return Ok(());
        }
        let named = |settings: &Settings| json!({"rungs": settings.config.stored_rungs(), "projection": settings.rung_sha256});
        let differing = differences(&named(self), "those before have", &named(other), "it has");
        if differing.is_empty() {
            return Ok(());
        }
        let message =
            format!("{} was trained on other rungs than {}, or a run after it: {differing}", run.display(), first.display());
        Err(refusal(message, "average runs with a ladder that were trained on one store"))
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
        if info.as_ref().is_some_and(|info| info.ladder.is_some()) {
            let message = format!("{} is a model with a ladder, whose rungs the file cannot make", path.display());
            return Err(refusal(message, "pass --run too: the run keeps the rungs' projection"));
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
        let (training_values, training_volumes) = (Vec::new(), Vec::new());
        Ok(Settings { config, weights, encoder, rungs: None, rung_sha256: None, training_values, training_volumes })
    }

    /// Loads the frozen encoder.
    ///
    /// # Errors
    /// Weights that cannot be read or do not fit.
    pub fn load_encoder(&self, device: &Device) -> sam_ladder_precompute::error::Result<SamEncoder> {
        let EncoderFile::Published(path) = &self.encoder else {
            return self.making_rungs(load_encoder(&self.arguments(device))?);
        };
        let encoder = published_encoder(&StateDict::open(path)?, device)?;
        let missing = || EncoderError::NoPositions { path: path.display().to_string(), key: POS_EMBED.into(), model: None };
        SamEncoder::new(encoder.ok_or_else(missing)?, device)?.normalising(self.config.pixel_normalisation)
    }

    /// Loads the frozen encoder, and SAM's decoder, which a store keeps too.
    ///
    /// # Errors
    /// Weights that cannot be read or do not fit.
    pub fn load_frozen(&self, device: &Device) -> sam_ladder_precompute::error::Result<Loaded<SamEncoder>> {
        let Loaded { encoder, decoder } = load(&self.arguments(device))?;
        Ok(Loaded { encoder: self.making_rungs(encoder)?, decoder })
    }

    /// The encoder, which also makes the rungs of a model with a ladder.
    fn making_rungs(&self, mut encoder: SamEncoder) -> sam_ladder_precompute::error::Result<SamEncoder> {
        if let Some(rungs) = &self.rungs {
            encoder.set_rungs(rungs)?;
        }
        Ok(encoder)
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

/// Refuses a model with a ladder whose rungs are not those that its run makes.
///
/// # Errors
/// Both values of what differs.
fn ensure_rungs_of(checkpoint: &Path, run: &Path, (rungs, sha256): (Option<Rungs>, Option<&str>)) -> anyhow::Result<()> {
    let Some(info) = read_info(checkpoint)?.filter(|info| info.ladder.is_some()) else { return Ok(()) };
    let taken = json!({"rungs": info.ladder, "projection": info.rung_projection});
    let differing = differences(&taken, "the model takes", &json!({"rungs": rungs, "projection": sha256}), "the run makes");
    if differing.is_empty() {
        return Ok(());
    }
    let message = format!("{} takes other rungs than {} makes: {differing}", checkpoint.display(), run.display());
    Err(refusal(message, "pass --run the run that the model is of"))
}

/// Refuses runs whose models see other images: the scans are prepared and encoded once, for all of them.
///
/// # Errors
/// Every setting that differs, with both values.
fn ensure_same_images(first: &Path, of_first: &PrecomputeConfig, run: &Path, of_run: &PrecomputeConfig) -> anyhow::Result<()> {
    let [left, right] = [first, run].map(|run| format!("{} has", run.display()));
    let of_images = |config: &PrecomputeConfig| PrecomputeConfig { half_labels: false, ..config.clone().without_rungs() };
    let [of_first, of_run] = [of_first, of_run].map(of_images);
    let differing = differences(&json!(of_first), &left, &json!(of_run), &right);
    if differing.is_empty() {
        return Ok(());
    }
    let message = format!("the runs were trained on images of different kinds: {differing}");
    Err(refusal(message, "average runs on stores of the same settings"))
}

/// The settings of a store of new scans: each slice as it is, and no labels.
fn of_new_scans(config: PrecomputeConfig) -> PrecomputeConfig {
    PrecomputeConfig {
        augment: AugmentPolicy::None,
        test_augment: AugmentPolicy::None,
        rotation_step: 1,
        draws: 0,
        draw_seed: 0,
        test_cases: Vec::new(),
        half_labels: false,
        unlabelled: true,
        ..config
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
