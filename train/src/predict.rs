//! From a model and a store to masks at the scans' own resolution.

use crate::segment::masks_of_logits;
use crate::error::{Result, TrainError};
use crate::init::{InitSources, initial_weights, whole_model};
use crate::model::{LadderSam, ModelConfig};
use crate::run::checkpoint::read_info;
use crate::run::step::{Geometry, input_tensors};
use crate::run::{check_same_encoder, read_record};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use sam_ladder_cache::{Batch, Store};
use sam_ladder_ops::precision::Precision;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::train::{Arm, BEST_CHECKPOINT, CHECKPOINT};
use sam_ladder_schemas::variants::{Variant, VariantKind};
use std::path::{Path, PathBuf};

/// Which of a run's models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunCheckpoint {
    /// The best on the validation cases where the run had some, else the last.
    #[default]
    BestOrLast,
    /// The last.
    Last,
}

/// Where a model's weights come from.
#[derive(Debug, Clone)]
pub enum WeightSource {
    /// A run directory.
    Run {
        /// The directory.
        folder: PathBuf,
        /// Which of its models.
        checkpoint: RunCheckpoint,
    },
    /// A file in the published names: a run's checkpoint, an export, or the published code's own.
    Checkpoint(PathBuf),
    /// No training: SAM's decoder from the store, the rest random, as a run of this seed and arm starts.
    ZeroShot {
        /// Seed of the random weights.
        seed: u64,
        /// [`Arm::SamOnly`] asks what SAM knows without the side network.
        arm: Arm,
    },
}

/// File of the model that `checkpoint` means in a run directory.
pub fn run_checkpoint(folder: &Path, checkpoint: RunCheckpoint) -> PathBuf {
    let best = folder.join(BEST_CHECKPOINT);
    if checkpoint == RunCheckpoint::BestOrLast && best.exists() { best } else { folder.join(CHECKPOINT) }
}

/// The model for a store's images.
///
/// # Errors
/// Weights that cannot be read, do not fit, or were trained for another image size, number of classes or of channels, or a run on
/// another encoder's tensors.
pub fn load_model(source: &WeightSource, store: &Store, device: &Device) -> Result<LadderSam> {
    let geometry = Geometry::of(store.config());
    match source {
        WeightSource::ZeroShot { seed, arm } => {
            let config = ModelConfig::published(geometry.image_size, geometry.num_classes, *arm);
            let sources = InitSources { sam_decoder: store.decoder_path(), cnn_checkpoint: None, init: None, seed: *seed };
            Ok(LadderSam::new(&config, &initial_weights(&config, &sources)?, device)?)
        }
        trained => {
            if let WeightSource::Run { folder, .. } = trained {
                check_same_encoder(folder, &read_record(folder)?, store)?;
            }
            load_trained(trained, geometry, device)
        }
    }
}

/// A trained model for images of this geometry, without a store.
///
/// # Errors
/// Weights that cannot be read, do not fit, or were trained for another image size, number of classes or of channels;
/// [`WeightSource::ZeroShot`], which needs a store.
pub fn load_trained(source: &WeightSource, geometry: Geometry, device: &Device) -> Result<LadderSam> {
    let path = match source {
        WeightSource::Run { folder, checkpoint } => {
            read_record(folder)?;
            run_checkpoint(folder, *checkpoint)
        }
        WeightSource::Checkpoint(path) => path.clone(),
        WeightSource::ZeroShot { .. } => {
            return Err(TrainError::Input("an untrained model needs a store for SAM's decoder".into()));
        }
    };
    let info = read_info(&path)?;
    if let Some(info) = &info {
        let differs = |what: &str, trained: usize, wanted: usize| {
            let message =
                format!("{}: trained for {what} {trained}, the images have {wanted}: use a store of that kind", path.display());
            Err(TrainError::Input(message))
        };
        if info.image_size != geometry.image_size {
            return differs("image size", info.image_size, geometry.image_size);
        }
        if info.num_classes != geometry.num_classes {
            return differs("number of classes", info.num_classes, geometry.num_classes);
        }
        if info.channels != geometry.channels {
            return differs("number of channels", info.channels, geometry.channels);
        }
    }
    let arm = info.as_ref().map_or(Arm::Full, |info| info.arm);
    let published = ModelConfig::published(geometry.image_size, geometry.num_classes, arm);
    let config = info.map_or(published, |info| ModelConfig { side_network: info.side_network, gate: info.gate, ..published });
    Ok(LadderSam::new(&config, &whole_model(&config, &path)?, device)?)
}

/// What to predict.
#[derive(Debug, Clone)]
pub struct PredictArgs {
    /// The store.
    pub store: PathBuf,
    /// The model's weights.
    pub weights: WeightSource,
    /// Split of the cases.
    pub split: Split,
    /// Which cases; `None` means all of the split.
    pub cases: Option<Vec<String>>,
    /// Slices that go through the network together.
    pub batch_size: usize,
    /// Where the model lives.
    pub device: Device,
}

/// The mask of one case.
#[derive(Debug, Clone, PartialEq)]
pub struct CasePrediction {
    /// Case, as in the store.
    pub case: String,
    /// Classes, `[d, h, w]` in C order.
    pub mask: Vec<u8>,
    /// Depth, height and width.
    pub shape: [usize; 3],
    /// Distance between voxel centres along depth, height and width.
    pub spacing_mm: [f64; 3],
}

/// Predicts case by case and hands each mask to `visit`, so that one case is held at a time.
///
/// # Errors
/// A store, weights or case that is not there; whatever `visit` returns.
pub fn predict_cases(args: &PredictArgs, mut visit: impl FnMut(CasePrediction) -> Result<()>) -> Result<()> {
    let store = Store::open(&args.store)?;
    let model = load_model(&args.weights, &store, &args.device)?;
    let cases = args.cases.clone().unwrap_or_else(|| store.cases(args.split));
    for case in &cases {
        let request = CaseRequest { split: args.split, case, batch_size: args.batch_size };
        visit(predict_case(&model, &store, request)?)?;
    }
    Ok(())
}

/// Which case, and how.
#[derive(Debug, Clone, Copy)]
pub struct CaseRequest<'a> {
    /// Split of the case.
    pub split: Split,
    /// The case, as in the store.
    pub case: &'a str,
    /// Slices that go through the network together.
    pub batch_size: usize,
}

/// Predicts one case of a store at the scan's own resolution, on the model's device.
///
/// # Errors
/// A case that is not in the split, or a damaged store.
pub fn predict_case(model: &LadderSam, store: &Store, request: CaseRequest) -> Result<CasePrediction> {
    predict_case_with(model, store, request, |_| ())
}

/// As [`predict_case`]; `done` is told how many slices went through the network, batch by batch.
///
/// # Errors
/// As [`predict_case`].
pub fn predict_case_with(
    model: &LadderSam,
    store: &Store,
    request: CaseRequest,
    mut done: impl FnMut(usize),
) -> Result<CasePrediction> {
    let CaseRequest { split, case, batch_size } = request;
    let rows: Vec<u32> = store.case_rows(split, case)?.collect();
    let identity = identity_variant(store, split)?;
    let Some(slice) = rows.first().map(|&row| &store.slices(split)[row as usize]) else {
        return Err(TrainError::Input(format!("case {case} of {} has no slices", store.path().display())));
    };
    let [h, w] = slice.size.map(|side| side as usize);
    let mut mask = Vec::with_capacity(rows.len() * h * w);
    let mut batch = Batch::default();
    for rows in rows.chunks(batch_size.max(1)) {
        let picks: Vec<(u32, u32)> = rows.iter().map(|&row| (row, identity)).collect();
        store.read_batch(split, &picks, &mut batch)?;
        mask.extend(predict_slices(model, &batch, rows.len(), [h, w])?);
        done(rows.len());
    }
    Ok(CasePrediction { case: case.to_string(), mask, shape: [rows.len(), h, w], spacing_mm: slice.spacing_mm })
}

/// Index of the unaugmented variant.
///
/// # Errors
/// When the store has none.
pub fn identity_variant(store: &Store, split: Split) -> Result<u32> {
    identity_index(store.variants(split), store.path())
}

/// Index of the unaugmented one of the variants that the store at `path` has.
pub(crate) fn identity_index(variants: &[Variant], path: &Path) -> Result<u32> {
    let found = variants.iter().position(|variant| variant.kind == VariantKind::Identity);
    let missing = || TrainError::Input(format!("{} has no identity variant: run precompute again", path.display()));
    found.map(|index| index as u32).ok_or_else(missing)
}

/// Masks of `count` slices: network, bilinear to the network's resolution, arg-max, order 0 to `[h, w]`
/// (`test_single_volume` of the published `utils.py`); `[count, h, w]`.
///
/// `batch` holds images `[count, c, s, s]` and embeddings `[count, 256, g, g]`; its labels are not looked at.
///
/// # Errors
/// Buffers of another size.
pub fn predict_slices(model: &LadderSam, batch: &Batch, count: usize, size: [usize; 2]) -> Result<Vec<u8>> {
    let s = model.config().image_size;
    let channels = batch.images.len() / (count * s * s).max(1);
    let geometry = Geometry { image_size: s, num_classes: model.config().num_classes, channels, precision: Precision::F32 };
    let (images, embeddings) = input_tensors(batch, count, geometry, model.image_pe().device())?;
    masks_of_logits(&[model.forward(&images, &embeddings)?], s, size)
}

/// The class of the highest logit of each pixel, the first of equals as `torch.argmax` has it: `[b, C, h, w]` → `[b, h, w]`.
///
/// # Errors
/// A tensor of another rank.
pub fn argmax_classes(logits: &Tensor) -> Result<Vec<u8>> {
    let (b, c, h, w) = logits.dims4()?;
    let pixels = h * w;
    let values: Vec<f32> = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let mut classes = vec![0u8; b * pixels];
    classes.par_chunks_mut(pixels).zip(values.par_chunks(c * pixels)).for_each(|(classes, values)| {
        let mut best = values[..pixels].to_vec();
        for class in 1..c {
            let row = &values[class * pixels..][..pixels];
            for ((class_here, best), &value) in classes.iter_mut().zip(&mut best).zip(row) {
                if value > *best {
                    *best = value;
                    *class_here = class as u8;
                }
            }
        }
    });
    Ok(classes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argmax_takes_the_first_of_equals() {
        // [1, 3, 1, 3]: a tie of all, a tie of the last two, a clear middle.
        let logits = Tensor::new(&[[[[1f32, 0.0, 0.0]], [[1.0, 2.0, 5.0]], [[1.0, 2.0, 4.0]]]], &Device::Cpu).unwrap();
        assert_eq!(argmax_classes(&logits).unwrap(), [0, 1, 1]);
    }
}
