//! Exports a run's model to a file that the published code's `load_state_dict` accepts, or to ONNX.

use crate::error::{Result, TrainError, internal};
use crate::init::{CNN_PREFIX, resnet_default, whole_model};
use crate::model::{ModelConfig, ModelWeights};
use crate::onnx::{OnnxEncoder, onnx_graph};
use crate::run::{CheckpointInfo, read_info, read_projection, read_record};
use crate::trained_model::{RunCheckpoint, run_checkpoint};
use candle_core::Tensor;
use sam_ladder_formats::onnx;
use sam_ladder_formats::outputs::{self, Origin, is_regular_file};
use sam_ladder_formats::state_dict::{StateDict, is_ours, save_pth, save_safetensors};
use sam_ladder_schemas::store::RUNG_PROJECTION;
use sam_ladder_schemas::train::RunRecord;
use std::path::{Path, PathBuf};

/// Prefix of SAM's image encoder in SAM's own checkpoint.
const IMAGE_ENCODER: &str = "image_encoder.";

/// What to export.
#[derive(Debug, Clone)]
pub struct ExportArgs {
    /// The run directory.
    pub run: PathBuf,
    /// Which of the run's models.
    pub checkpoint: RunCheckpoint,
    /// The file to write, `.safetensors`, `.pth` or `.onnx`.
    pub out: PathBuf,
    /// Replace an existing file.
    pub force: bool,
    /// SAM's image encoder (`image_encoder.…`), with position tables for the run's image size. With it a state dict is the published
    /// model's whole one; without it, it lacks `sam.image_encoder.…`, its alias `sam_encoder.…`, and the ResNet beyond layer3. An ONNX model
    /// with it takes images only.
    pub image_encoder: Option<Vec<(String, Tensor)>>,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Number of the model's tensors.
    pub tensors: usize,
    /// The files: more than one only if an ONNX model's weights do not fit into its own.
    pub files: Vec<PathBuf>,
}

/// Writes a run's model: a state dict under the published names, or a graph in ONNX, whose inputs and output `onnx` describes.
///
/// A whole state dict also has the ResNet's `layer4` and `fc`, which the published model has but never uses. They are filled with random
/// values, since `load_state_dict` requires them.
///
/// # Errors
/// A run without a checkpoint, an output that exists (with `force`: that is no earlier export) or has another extension, a full disk.
pub fn export(args: &ExportArgs) -> Result<Exported> {
    let format = Format::of(&args.out)?;
    let origin = |path: &Path| Origin::ours_if(is_regular_file(path) && (is_ours(path) || onnx::is_ours(path)));
    outputs::may_write(std::slice::from_ref(&args.out), args.force, "a model exported by sam-ladder", origin)?;
    let record = read_record(&args.run)?;
    let of_run = ModelConfig::of_run(&record.config, record.image_size, record.num_classes, record.store.stored_rungs());
    let config = ModelConfig { embed_channels: record.store.embed_channels(), ..of_run };
    if format != Format::Onnx && !config.has_published_names() {
        return Err(TrainError::NoPublishedNames {
            run: args.run.clone(),
            side_network: config.side_network.name(),
            gate: config.gate.name(),
            decoder: config.decoder.name(),
            neighbours: u32::from(config.neighbours),
            embed_channels: config.embed_channels,
            ladder: record.config.ladder.name(),
            checkpoint: run_checkpoint(&args.run, args.checkpoint),
        });
    }
    if args.image_encoder.is_some() && !record.store.encoder.is_sam() {
        return Err(TrainError::OnnxOfEncoder { run: args.run.clone(), encoder: record.store.encoder.name() });
    }
    let path = run_checkpoint(&args.run, args.checkpoint);
    let Some(info) = read_info(&path)? else {
        let reason = "it was not written by this program".to_string();
        return Err(TrainError::RunDamaged { path, reason });
    };
    let weights = whole_model(&config, &path)?;
    if format == Format::Onnx {
        return export_onnx(args, &record, &info, (&config, &weights));
    }
    let mut tensors: Vec<(String, Tensor)> = weights.0.into_iter().collect();
    if let Some(encoder) = &args.image_encoder {
        tensors.extend(image_encoder_names(encoder)?);
        tensors.extend(unread_resnet()?);
    }
    match format {
        Format::Safetensors => save_safetensors(&args.out, &tensors)?,
        Format::Pth | Format::Onnx => save_pth(&args.out, &tensors)?,
    }
    Ok(Exported { tensors: tensors.len(), files: vec![args.out.clone()] })
}

/// Writes the model as ONNX. Its metadata says what it was trained for: the entry `sam_ladder` of a checkpoint, and what images and classes
/// are.
fn export_onnx(
    args: &ExportArgs,
    record: &RunRecord,
    info: &CheckpointInfo,
    (config, weights): (&ModelConfig, &ModelWeights),
) -> Result<Exported> {
    let encoder = args.image_encoder.as_deref();
    if encoder.is_some() && config.neighbours {
        return Err(TrainError::EncoderOfNeighbours(args.run.clone()));
    }
    let normalisation = record.store.pixel_normalisation;
    let projection = match encoder {
        Some(_) => run_projection(&args.run, record)?,
        None => None,
    };
    let projection = projection.as_ref();
    let with_encoder = encoder.map(|weights| OnnxEncoder { weights, normalisation, projection });
    let graph = onnx_graph(config, weights, with_encoder, info.channels)?;
    let class_names: Vec<&str> =
        std::iter::once("background").chain(record.store.class_names.iter().map(String::as_str)).collect();
    let json = |what: serde_json::Result<String>| what.map_err(|source| internal(source.to_string()));
    let metadata = [
        ("sam_ladder", json(serde_json::to_string(info))?),
        ("class_names", json(serde_json::to_string(&class_names))?),
        ("regions", json(serde_json::to_string(&record.store.regions))?),
        ("preprocessing", json(serde_json::to_string(&record.store.preprocessing))?),
        ("data_size", record.store.data_size.to_string()),
        ("pixel_normalisation", json(serde_json::to_string(&normalisation))?),
    ];
    let files = graph.save(&args.out, &record.program, &metadata)?;
    Ok(Exported { tensors: weights.0.len() + encoder.map_or(0, <[_]>::len), files })
}

/// The rungs' projection that a run keeps; `None` if it has no ladder, or rungs are the tokens as they are.
///
/// # Errors
/// A file that is missing, or not the recorded one.
fn run_projection(run: &Path, record: &RunRecord) -> Result<Option<StateDict>> {
    let Some(bytes) = read_projection(run, record)? else { return Ok(None) };
    Ok(Some(StateDict::from_safetensors(run.join(RUNG_PROJECTION).display().to_string(), bytes)?))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Safetensors,
    Pth,
    Onnx,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        match path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).as_deref() {
            Some("safetensors") => Ok(Format::Safetensors),
            Some("pth" | "pt") => Ok(Format::Pth),
            Some("onnx") => Ok(Format::Onnx),
            _ => Err(TrainError::Ending(path.into())),
        }
    }
}

/// The encoder under both of its names in the published model: `sam.image_encoder.…` and `sam_encoder.…`.
fn image_encoder_names(encoder: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>> {
    let mut out = Vec::with_capacity(2 * encoder.len());
    for (name, tensor) in encoder {
        let Some(rest) = name.strip_prefix(IMAGE_ENCODER) else {
            return Err(TrainError::NotOfTheEncoder(name.clone()));
        };
        out.push((format!("sam.{name}"), tensor.clone()));
        out.push((format!("sam_encoder.{rest}"), tensor.clone()));
    }
    Ok(out)
}

/// The ResNet's `layer4` and `fc`.
fn unread_resnet() -> Result<Vec<(String, Tensor)>> {
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut conv = |name: &str, shape: [usize; 4], norm: &str| {
        shapes.push((format!("layer4.{name}.weight"), shape.to_vec()));
        for part in ["weight", "bias", "running_mean", "running_var"] {
            shapes.push((format!("layer4.{norm}.{part}"), vec![512]));
        }
        shapes.push((format!("layer4.{norm}.num_batches_tracked"), vec![]));
    };
    conv("0.conv1", [512, 256, 3, 3], "0.bn1");
    conv("0.conv2", [512, 512, 3, 3], "0.bn2");
    conv("0.downsample.0", [512, 256, 1, 1], "0.downsample.1");
    conv("1.conv1", [512, 512, 3, 3], "1.bn1");
    conv("1.conv2", [512, 512, 3, 3], "1.bn2");
    shapes.push(("fc.weight".into(), vec![1000, 512]));
    shapes.push(("fc.bias".into(), vec![1000]));
    let filled = shapes.into_iter().map(|(name, shape)| {
        let name = format!("{CNN_PREFIX}{name}");
        let tensor = resnet_default(&name, &shape, 0)?;
        Ok((name, tensor))
    });
    filled.collect()
}
