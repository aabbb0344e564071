//! Exports a run's model to a file that the published code's `load_state_dict` accepts.

use crate::error::{Result, TrainError};
use crate::init::{CNN_PREFIX, resnet_default, whole_model};
use crate::model::ModelConfig;
use crate::run::{read_info, read_record};
use crate::trained_model::{RunCheckpoint, run_checkpoint};
use candle_core::Tensor;
use sam_ladder_formats::outputs::{self, Origin, is_regular_file};
use sam_ladder_formats::state_dict::{is_ours, save_pth, save_safetensors};
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
    /// The file to write, `.safetensors` or `.pth`.
    pub out: PathBuf,
    /// Replace an existing file.
    pub force: bool,
    /// SAM's image encoder (`image_encoder.…`), with position tables for the run's image size. With it the file is the published model's
    /// whole state dict; without it, the file lacks `sam.image_encoder.…`, its alias `sam_encoder.…`, and the ResNet beyond layer3.
    pub image_encoder: Option<Vec<(String, Tensor)>>,
}

/// Writes a run's model under the published state-dict names and returns the number of tensors.
///
/// A whole state dict also has the ResNet's `layer4` and `fc`, which the published model has but never uses. They are filled with random
/// values, since `load_state_dict` requires them.
///
/// # Errors
/// A run without a checkpoint, an output that exists (with `force`: that is no earlier export) or has another extension, a full disk.
pub fn export(args: &ExportArgs) -> Result<usize> {
    let format = Format::of(&args.out)?;
    let origin = |path: &Path| Origin::ours_if(is_regular_file(path) && is_ours(path));
    outputs::may_write(std::slice::from_ref(&args.out), args.force, "a model exported by sam-ladder", origin)?;
    let record = read_record(&args.run)?;
    let config = ModelConfig::of_run(&record.config, record.image_size, record.num_classes);
    if !config.has_published_names() {
        return Err(TrainError::NoPublishedNames {
            run: args.run.clone(),
            side_network: config.side_network.name(),
            gate: config.gate.name(),
            checkpoint: run_checkpoint(&args.run, args.checkpoint),
        });
    }
    let path = run_checkpoint(&args.run, args.checkpoint);
    if read_info(&path)?.is_none() {
        let reason = "it was not written by this program".to_string();
        return Err(TrainError::RunDamaged { path, reason });
    }
    let mut tensors: Vec<(String, Tensor)> = whole_model(&config, &path)?.0.into_iter().collect();
    if let Some(encoder) = &args.image_encoder {
        tensors.extend(image_encoder_names(encoder)?);
        tensors.extend(unread_resnet()?);
    }
    match format {
        Format::Safetensors => save_safetensors(&args.out, &tensors)?,
        Format::Pth => save_pth(&args.out, &tensors)?,
    }
    Ok(tensors.len())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Safetensors,
    Pth,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("safetensors") => Ok(Format::Safetensors),
            Some("pth" | "pt") => Ok(Format::Pth),
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
