//! The initial weights of a run: from SAM's decoder, a published checkpoint of the side network, a whole model, or a seed.

mod side_network;

use crate::checksum;
use crate::error::{Result, TrainError, internal};
use crate::model::{ModelConfig, ModelWeights};
use candle_core::{DType, Device, Tensor};
use rand::distr::{Distribution, Uniform};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use sam_ladder_cache::{is_remote, read_file};
use sam_ladder_formats::state_dict::StateDict;
pub(crate) use side_network::resnet_default;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Prefix of SAM's tensors in the published state dict.
const SAM_PREFIX: &str = "sam.";
/// Prefix of the side network's tensors in the published state dict.
pub(crate) const CNN_PREFIX: &str = "CNN_encoder.";
/// Parts of SAM's decoder that the published code does not take from SAM's checkpoint (`except_keys` of its `load_from`).
const SEEDED_PARTS: [&str; 3] = ["mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head"];
/// Parts of the published state dict that the model does not need: unused, or replaced by the store.
const UNUSED_PARTS: [&str; 5] =
    ["sam.image_encoder.", "sam_encoder.", "CNN_encoder.layer4.", "CNN_encoder.fc.", "CNN_encoder.head."];
/// What a file with a whole model should hold.
const WHOLE_MODEL: &str = "the file must hold a whole model in the published code's names; the weights of a side network by themselves are \
                           for `train --cnn-checkpoint`";
/// What starts at zero: the gate's parameters, the decoder's skips and its third stage.
const ZERO_AT_START: [&str; 3] = ["sam.alpha", "sam.mask_decoder.conv_s", "sam.mask_decoder.output_upscaling_half"];
/// The mixture of a slice's embeddings with those around, `[channels, 3]`, which starts as the slice itself.
const NEIGHBOURS: &str = "sam.neighbours.weight";
/// The projection from another encoder's channels to SAM's, which starts at PyTorch's default.
const EMBEDDING_PROJECTION: &str = "sam.embedding_projection.";
/// The gates and projections of the ladder's rungs.
const LADDER: &str = "CNN_encoder.ladder.";
/// A batch norm's step counter, which torchvision's older checkpoints lack.
const COUNTER: &str = "num_batches_tracked";

/// Where the initial weights come from.
#[derive(Debug, Clone)]
pub struct InitSources {
    /// SAM's `prompt_encoder.…` and `mask_decoder.…`: the store's `sam_decoder.safetensors`.
    pub sam_decoder: PathBuf,
    /// The side network under torchvision's or timm's names; if `None`, random by `seed`.
    pub cnn_checkpoint: Option<PathBuf>,
    /// A whole model in the published names; the other two files are then not read.
    pub init: Option<PathBuf>,
    /// Seed of everything that comes from no file.
    pub seed: u64,
}

/// The initial weights, every tensor of [`ModelWeights::expected`].
///
/// # Errors
/// A file that cannot be read; a key that is missing, unknown or of another shape, naming file and key.
pub fn initial_weights(config: &ModelConfig, sources: &InitSources) -> Result<ModelWeights> {
    match &sources.init {
        Some(path) => whole_model(config, path),
        None => assemble(config, sources),
    }
}

/// A whole model from a file in the published names, with or without the prefix `module.`. Tensors of the image encoder and of the ResNet
/// beyond layer3 are ignored.
///
/// # Errors
/// A file that cannot be read, or whose checksum is another; a key that is missing, unknown or of another shape, naming file and key.
pub fn whole_model(config: &ModelConfig, path: &Path) -> Result<ModelWeights> {
    checksum::check_file(path)?;
    let file = StateDict::open(path)?;
    let expected = ModelWeights::expected(config);
    refuse_unknown(path, &file, WHOLE_MODEL, |name| {
        UNUSED_PARTS.iter().any(|part| name.starts_with(part)) || expected.iter().any(|(known, _)| known == name)
    })?;
    let mut weights = BTreeMap::new();
    for (name, shape) in &expected {
        weights.insert(name.clone(), read(&file, name, name, shape)?);
    }
    Ok(ModelWeights(weights))
}

fn assemble(config: &ModelConfig, sources: &InitSources) -> Result<ModelWeights> {
    let decoder = open_decoder(&sources.sam_decoder)?;
    let cnn = sources.cnn_checkpoint.as_deref().map(|path| side_network::open(config, path)).transpose()?;
    let expected = ModelWeights::expected(config);
    let shapes: HashMap<&str, &[usize]> = expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    let mut weights = BTreeMap::new();
    for (name, shape) in &expected {
        let tensor = if starts_at_zero(name) {
            Tensor::zeros(shape.as_slice(), DType::F32, &Device::Cpu)?
        } else if name == NEIGHBOURS {
            Tensor::new(&[0f32, 1.0, 0.0], &Device::Cpu)?.broadcast_as(shape.as_slice())?.contiguous()?
        } else if name.starts_with(EMBEDDING_PROJECTION) {
            uniform_by_fan_in(name, shape, config.embed_channels, sources.seed)?
        } else if let Some(cnn_name) = name.strip_prefix(CNN_PREFIX) {
            side_network::weight(config, cnn.as_ref(), cnn_name, shape, sources.seed)?
        } else if SEEDED_PARTS.iter().any(|part| name.contains(part)) {
            decoder_default(name, shape, &shapes, sources.seed)?
        } else {
            let sam_name = name.strip_prefix(SAM_PREFIX).unwrap_or(name);
            read(&decoder, sam_name, name, shape)?
        };
        weights.insert(name.clone(), tensor);
    }
    Ok(ModelWeights(weights))
}

/// The decoder's weights of a store, in a folder or a bucket.
fn open_decoder(path: &Path) -> Result<StateDict> {
    if !is_remote(path) {
        return Ok(StateDict::open(path)?);
    }
    Ok(StateDict::from_safetensors(path.display().to_string(), read_file(path)?)?)
}

fn starts_at_zero(name: &str) -> bool {
    let is_rung_gate = name.starts_with(LADDER) && name.ends_with(".alpha");
    is_rung_gate || ZERO_AT_START.iter().any(|prefix| name.starts_with(prefix))
}

/// Refuses a file with keys that are not `known`; `advice` says what it should hold.
fn refuse_unknown(path: &Path, file: &StateDict, advice: &'static str, known: impl Fn(&str) -> bool) -> Result<()> {
    let mut unknown: Vec<String> = file.names().map(|name| name.to_string()).filter(|name| !known(name)).collect();
    unknown.sort_unstable();
    let Some(first) = unknown.first() else { return Ok(()) };
    Err(TrainError::UnknownKey { path: path.into(), key: first.clone(), count: unknown.len(), advice })
}

/// A file's tensor, on the CPU; a missing step counter is 0, as in PyTorch.
fn read(file: &StateDict, key: &str, name: &str, shape: &[usize]) -> Result<Tensor> {
    if name.ends_with(COUNTER) {
        return match file.shape(key) {
            Some(_) => {
                file.check(key, shape)?;
                Ok(file.tensor(key, &Device::Cpu)?.to_dtype(DType::I64)?)
            }
            None => Ok(Tensor::zeros(shape, DType::I64, &Device::Cpu)?),
        };
    }
    // A gate stays at zero in an arm that does not use it.
    if starts_at_zero(name) && file.check(key, shape).is_ok() {
        let tensor = file.tensor(key, &Device::Cpu)?;
        if tensor.flatten_all()?.to_vec1::<f32>()?.iter().all(|&value| value == 0.0) {
            return Ok(tensor);
        }
    }
    Ok(file.expect(key, shape, &Device::Cpu)?)
}

/// PyTorch's defaults: embeddings from N(0, 1); a linear layer's weight and bias from U(-1/√fan_in, 1/√fan_in).
fn decoder_default(name: &str, shape: &[usize], shapes: &HashMap<&str, &[usize]>, seed: u64) -> Result<Tensor> {
    if name.ends_with("mask_tokens.weight") {
        return seeded(name, shape, seed, |rng| StandardNormal.sample(rng));
    }
    let weight_name = format!("{}.weight", name.rsplit_once('.').map_or(name, |(layer, _)| layer));
    let fan_in = match shapes.get(weight_name.as_str()) {
        Some([_, inputs]) => *inputs,
        other => return Err(internal(format!("{name}: no linear layer's weight, its layer has shape {other:?}"))),
    };
    uniform_by_fan_in(name, shape, fan_in, seed)
}

/// U(-1/√fan_in, 1/√fan_in), PyTorch's default for linear layers and convolutions.
fn uniform_by_fan_in(name: &str, shape: &[usize], fan_in: usize, seed: u64) -> Result<Tensor> {
    let bound = 1.0 / (fan_in as f32).sqrt();
    let range = Uniform::new(-bound, bound).map_err(|error| internal(format!("{name}: {error}")))?;
    seeded(name, shape, seed, |rng| range.sample(rng))
}

/// A tensor from its own random stream, so that its values do not depend on other tensors.
fn seeded(name: &str, shape: &[usize], seed: u64, mut value: impl FnMut(&mut ChaCha8Rng) -> f32) -> Result<Tensor> {
    let mut rng = stream(seed, name);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| value(&mut rng)).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// The generator for `(seed, name)`, keyed by the seed and the name's FNV-1a hash.
fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mut key = ChaCha8Rng::seed_from_u64(seed);
    key.set_stream(hash);
    ChaCha8Rng::seed_from_u64(key.next_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(tensor: &Tensor) -> (f32, f32, f32) {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt();
        (mean, deviation, values.iter().fold(0f32, |max, v| max.max(v.abs())))
    }

    #[test]
    fn seeded_tensors_have_pytorchs_distributions() {
        let conv = resnet_default("CNN_encoder.layer1.0.conv1.weight", &[64, 64, 3, 3], 1).unwrap();
        let (mean, deviation, _) = statistics(&conv);
        let expected = (2.0f32 / (64.0 * 9.0)).sqrt();
        assert!(mean.abs() < expected * 0.02 && (deviation / expected - 1.0).abs() < 0.02, "{mean} {deviation}");

        let shapes: HashMap<&str, &[usize]> = HashMap::from([("a.layers.0.weight", [256usize, 256].as_slice())]);
        let (mean, deviation, max) = statistics(&decoder_default("a.layers.0.weight", &[256, 256], &shapes, 1).unwrap());
        assert!(mean.abs() < 1e-3 && max <= 1.0 / 16.0 && (deviation / (1.0 / 16.0 / 3f32.sqrt()) - 1.0).abs() < 0.02);
        let (_, _, max) = statistics(&decoder_default("a.layers.0.bias", &[256], &shapes, 1).unwrap());
        assert!(max <= 1.0 / 16.0 && max > 0.05);

        let (mean, deviation, _) = statistics(&decoder_default("mask_tokens.weight", &[9, 256], &shapes, 1).unwrap());
        assert!(mean.abs() < 0.08 && (deviation - 1.0).abs() < 0.05);
    }

    #[test]
    fn streams_differ_by_seed_and_by_name_and_repeat() {
        let first = |seed, name: &str| stream(seed, name).next_u64();
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(2, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
    }
}
