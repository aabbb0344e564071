//! Model checkpoints and the resume state, as safetensors files with one line of JSON in their metadata, which has their checksum, too.
//!
//! The resume state is one file, written atomically, so that model, optimizer and position in the epoch always belong together, whatever
//! interrupts a run. The model's file is for the run's users; resuming never reads it.

use crate::checksum;
use crate::error::{Result, TrainError, io, unwritable};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use sam_ladder_formats::atomic::{sync_folder, write_atomic};
use sam_ladder_schemas::encoder::EMBED_CHANNELS;
use sam_ladder_schemas::rungs::Rungs;
use sam_ladder_schemas::train::{Arm, GateKind, SideNetworkKind};
use sam_ladder_schemas::train_choices::DecoderKind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Key of the metadata entry.
const METADATA_KEY: &str = "sam_ladder";
/// Prefix of the model's tensors in the resume state.
const MODEL_PREFIX: &str = "model/";
/// Prefix of the optimizer's tensors in the resume state.
const OPTIMIZER_PREFIX: &str = "optimizer/";

/// Prefix of the averages' tensors in the resume state.
const AVERAGE_PREFIX: &str = "average/";

/// Metadata of a model checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    /// Pixels along the side of the network's input.
    pub image_size: usize,
    /// Classes including background.
    pub num_classes: usize,
    /// Channels of the images; 1 in checkpoints of older versions, which lack the entry.
    #[serde(default = "one_channel")]
    pub channels: usize,
    /// Arm that was trained.
    pub arm: Arm,
    /// Side network; like the gate, the published one in checkpoints of older versions, which lack the entry.
    #[serde(default)]
    pub side_network: SideNetworkKind,
    /// Gate.
    #[serde(default)]
    pub gate: GateKind,
    /// Decoder; left out where it is the published one.
    #[serde(default, skip_serializing_if = "DecoderKind::is_plain")]
    pub decoder: DecoderKind,
    /// Slices on each side whose embeddings it takes; left out where there are none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub neighbours: u32,
    /// Channels of the embeddings; left out where they are those of SAM's encoders.
    #[serde(default = "sams_channels", skip_serializing_if = "is_sams_channels")]
    pub embed_channels: usize,
    /// Rungs that its side network takes; left out where it takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ladder: Option<Rungs>,
    /// SHA-256 of the projection that made these rungs; left out where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rung_projection: Option<String>,
    /// `cache_id` of the store.
    pub cache_id: String,
    /// Optimizer steps taken.
    pub steps: u64,
    /// Whole epochs trained.
    pub epochs: u32,
    /// Validation Dice of the last whole epoch, if there was one.
    pub val_dice: Option<f64>,
    /// Decay of the exponential moving average that the model is; `None` for a model as the optimizer left it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn one_channel() -> usize {
    1
}

fn sams_channels() -> usize {
    EMBED_CHANNELS
}

fn is_sams_channels(channels: &usize) -> bool {
    *channels == EMBED_CHANNELS
}

/// A run's position between two steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// `cache_id` of the store.
    pub cache_id: String,
    /// Optimizer steps taken.
    pub steps: u64,
    /// Current epoch, from 0.
    pub epoch: u32,
    /// Finished batches of that epoch.
    pub batch: usize,
    /// Seconds that the epoch has taken so far.
    pub epoch_seconds: f64,
}

/// Writes a model checkpoint in the published state-dict names.
///
/// # Errors
/// The operating system's, naming the file; an older checkpoint at `path` is then unchanged.
pub fn save_model(path: &Path, state_dict: &[(String, Tensor)], info: &CheckpointInfo) -> Result<()> {
    write_durable(path, &encode(state_dict, info)?)
}

/// Metadata of the checkpoint at `path`; `None` for weights from elsewhere.
///
/// # Errors
/// The operating system's, naming the file.
pub fn read_info(path: &Path) -> Result<Option<CheckpointInfo>> {
    use std::io::Read;
    let mut file = std::fs::File::open(path).map_err(io(path))?;
    let length = file.metadata().map_err(io(path))?.len();
    let mut start = [0u8; 8];
    if length < 8 {
        return Ok(None);
    }
    file.read_exact(&mut start).map_err(io(path))?;
    let header = u64::from_le_bytes(start);
    if header > length - 8 || header > 100 << 20 {
        return Ok(None);
    }
    let mut json = vec![0u8; header as usize];
    file.read_exact(&mut json).map_err(io(path))?;
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(&json) else { return Ok(None) };
    Ok(json["__metadata__"][METADATA_KEY].as_str().and_then(|text| serde_json::from_str(text).ok()))
}

/// All that is needed to resume a run.
pub struct ResumeState {
    /// The run's position.
    pub position: Position,
    /// The model, in the published state-dict names.
    pub model: BTreeMap<String, Tensor>,
    /// The optimizer's tensors, under its own names.
    pub optimizer: Vec<(String, Tensor)>,
    /// The averages of the model's tensors, under their names; empty in a run without.
    pub averages: BTreeMap<String, Tensor>,
}

/// Tensors by name that [`ResumeState::save`] writes.
#[derive(Debug, Clone, Copy)]
pub struct StateTensors<'a> {
    /// The model's.
    pub model: &'a [(String, Tensor)],
    /// The optimizer's.
    pub optimizer: &'a [(String, Tensor)],
    /// The averages'.
    pub averages: &'a [(String, Tensor)],
}

impl ResumeState {
    /// Writes the state.
    ///
    /// # Errors
    /// The operating system's, naming the file; an older state at `path` is then unchanged.
    pub fn save(path: &Path, position: &Position, tensors: StateTensors<'_>) -> Result<()> {
        let StateTensors { model, optimizer, averages } = tensors;
        let prefixed =
            |prefix: &'static str| move |(name, tensor): &(String, Tensor)| (format!("{prefix}{name}"), tensor.clone());
        let parts = [(MODEL_PREFIX, model), (OPTIMIZER_PREFIX, optimizer), (AVERAGE_PREFIX, averages)];
        let tensors: Vec<_> = parts.into_iter().flat_map(|(prefix, part)| part.iter().map(prefixed(prefix))).collect();
        write_durable(path, &encode(&tensors, position)?)
    }

    /// Reads what [`Self::save`] wrote, onto the CPU.
    ///
    /// # Errors
    /// [`TrainError::RunDamaged`] if it is not such a file.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(io(path))?;
        checksum::check(path, &bytes)?;
        let (tensors, position) =
            decode::<Position>(&bytes).map_err(|reason| TrainError::RunDamaged { path: path.to_path_buf(), reason })?;
        let mut model = BTreeMap::new();
        let (mut optimizer, mut averages) = (Vec::new(), BTreeMap::new());
        for (name, tensor) in tensors {
            if let Some(name) = name.strip_prefix(MODEL_PREFIX) {
                model.insert(name.to_string(), tensor);
            } else if let Some(name) = name.strip_prefix(OPTIMIZER_PREFIX) {
                optimizer.push((name.to_string(), tensor));
            } else if let Some(name) = name.strip_prefix(AVERAGE_PREFIX) {
                averages.insert(name.to_string(), tensor);
            }
        }
        Ok(ResumeState { position, model, optimizer, averages })
    }
}

/// Writes atomically, and flushes the folder: after the return, the file survives a power loss.
fn write_durable(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, bytes)?;
    Ok(path.parent().map_or(Ok(()), sync_folder)?)
}

/// The bytes of a safetensors file; equal tensors and metadata give equal bytes.
fn encode(tensors: &[(String, Tensor)], metadata: &impl Serialize) -> Result<Vec<u8>> {
    let on_cpu: Vec<(String, Tensor)> = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.clone(), tensor.to_device(&Device::Cpu)?.contiguous()?)))
        .collect::<Result<_>>()?;
    let mut metadata = serde_json::to_value(metadata).map_err(unwritable("a checkpoint's metadata"))?;
    metadata[checksum::KEY] = checksum::ZEROS.into();
    let metadata = HashMap::from([(METADATA_KEY.to_string(), metadata.to_string())]);
    let tensors = on_cpu.iter().map(|(name, tensor)| (name, tensor));
    let mut bytes = safetensors::serialize(tensors, Some(metadata)).map_err(unwritable("a checkpoint"))?;
    checksum::seal(&mut bytes);
    Ok(bytes)
}

/// Inverse of [`encode`]; the error is in words.
fn decode<M: DeserializeOwned>(bytes: &[u8]) -> std::result::Result<(HashMap<String, Tensor>, M), String> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| format!("not a whole safetensors file ({error})"))?;
    let metadata =
        header.metadata().as_ref().and_then(|entries| entries.get(METADATA_KEY)).ok_or("it was not written by this program")?;
    let other = |error| format!("metadata of another version ({error})");
    let mut metadata: serde_json::Value = serde_json::from_str(metadata).map_err(other)?;
    if let Some(entries) = metadata.as_object_mut() {
        entries.remove(checksum::KEY);
    }
    let metadata = serde_json::from_value(metadata).map_err(other)?;
    let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|error| format!("damaged ({error})"))?;
    Ok((tensors, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_and_a_cut_one_is_refused() {
        let folder = std::env::temp_dir().join(format!("sam-ladder-checkpoint-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("state.safetensors");
        let position = Position { cache_id: "x".into(), steps: 3, epoch: 1, batch: 2, epoch_seconds: 0.1 };
        let tensor = Tensor::new(&[1f32, f32::MIN_POSITIVE, 3.3], &Device::Cpu).unwrap();
        let count = Tensor::new(5i64, &Device::Cpu).unwrap();
        let model = [("a".into(), tensor.clone()), ("n".into(), count)];
        let (optimizer, averages) = ([("a.m".into(), tensor.clone())], [("a".into(), tensor)]);
        let tensors = StateTensors { model: &model, optimizer: &optimizer, averages: &averages };
        ResumeState::save(&path, &position, tensors).unwrap();
        let state = ResumeState::load(&path).unwrap();
        assert_eq!(state.position, position);
        assert_eq!(state.model["a"].to_vec1::<f32>().unwrap(), [1.0, f32::MIN_POSITIVE, 3.3]);
        assert_eq!(state.model["n"].to_scalar::<i64>().unwrap(), 5);
        assert_eq!((state.optimizer.len(), state.averages.len()), (1, 1));
        assert_eq!(state.averages["a"].to_vec1::<f32>().unwrap(), [1.0, f32::MIN_POSITIVE, 3.3]);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let error = ResumeState::load(&path).err().unwrap();
        assert!(error.to_string().contains("state.safetensors"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// The length and the JSON of a header of safetensors, and its data.
    fn file(metadata: &str) -> Vec<u8> {
        let header = format!(r#"{{"__metadata__":{{{metadata}}},"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &1f32.to_le_bytes()].concat()
    }

    #[test]
    fn every_flipped_bit_is_found_and_files_of_others_are_not_checked() {
        let path = Path::new("m.safetensors");
        let position = Position { cache_id: "x".into(), steps: 3, epoch: 1, batch: 2, epoch_seconds: 0.1 };
        let bytes = encode(&[("a".into(), Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap())], &position).unwrap();
        checksum::check(path, &bytes).unwrap();
        let key = bytes.windows(6).position(|window| window == b"crc32c").unwrap();
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            let whole = checksum::check(path, &other).is_ok() && decode::<Position>(&other).is_ok();
            assert!(!whole, "byte {at} of {}, the checksum's key is at {key}", bytes.len());
        }
        let mut other = bytes.clone();
        *other.last_mut().unwrap() ^= 1;
        let error = checksum::check(path, &other).unwrap_err().to_string();
        assert!(error.starts_with("m.safetensors: is damaged: its CRC-32C is ") && error.contains(", expected "), "{error}");
        for metadata in ["", r#""format":"pt""#, r#""sam_ladder":"{}""#] {
            checksum::check(path, &file(metadata)).unwrap();
        }
        // The known sum of "123456789" (RFC 3720 has CRC-32C's; this one is in the catalogue of parametrised CRC algorithms).
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        checksum::check(path, b"short").unwrap();
    }
}
