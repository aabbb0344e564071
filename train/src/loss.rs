//! The paper's equation (4): L = (1 - λ)·CE + λ·Dice, on the low-resolution logits; and what a run may minimise in its place.

use candle_core::{Device, Result, Tensor, bail};
pub use sam_ladder_ops::LossParts;
use sam_ladder_ops::{Region, SegmentationLoss, dice_ce, segmentation_loss};
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::regions::ClassRegion;
use sam_ladder_schemas::tables::SliceRow;
use sam_ladder_schemas::train::TrainConfig;
use sam_ladder_schemas::train_choices::{ClassWeights, LossKind};

/// Keeps Dice defined for a class that is in neither the prediction nor the reference.
const SMOOTH: f64 = 1e-5;

/// The published loss of `logits` `[b, C, h, w]` against `labels` `[b, h, w]` (u8 or u32, below C).
///
/// Dice is computed per class over the whole batch, background included, with squared denominators:
/// 1 - (2·Σ p·t + 1e-5) / (Σ p² + Σ t² + 1e-5), where p is the softmax of the logits (the published `DiceLoss`). On a GPU a label outside
/// the classes makes the losses NaN.
///
/// # Errors
/// Shapes that do not match, labels of another type, and on the CPU a label outside the classes.
pub fn ladder_loss(logits: &Tensor, labels: &Tensor, num_classes: usize, lambda: f64) -> Result<LossParts> {
    let (_, classes, _, _) = logits.dims4()?;
    if classes != num_classes {
        bail!("logits have {classes} classes, expected {num_classes}");
    }
    dice_ce(logits, labels, lambda, SMOOTH)
}

/// The loss of a run.
#[derive(Debug, Clone)]
pub struct LadderLoss {
    lambda: f64,
    /// `None` for the published one.
    other: Option<SegmentationLoss>,
}

impl LadderLoss {
    /// The published one, [`ladder_loss`].
    pub fn published(lambda: f64) -> Self {
        LadderLoss { lambda, other: None }
    }

    /// The loss that a run's settings name, with class weights by class from background on, for labels of a store and models on `device`. Labels of
    /// the store's ignored class take no part. If it has regions, B is over these and background, instead of over the classes.
    ///
    /// # Errors
    /// Those of the device.
    pub fn of_run(config: &TrainConfig, weights: Option<&[f64]>, store: &PrecomputeConfig, device: &Device) -> Result<Self> {
        let (lambda, ignore, num_classes) = (config.lambda, store.ignored_class(), store.num_classes());
        if config.loss == LossKind::Published && weights.is_none() && ignore.is_none() && store.regions.is_empty() {
            return Ok(LadderLoss::published(lambda));
        }
        let weights: Vec<f32> = match weights {
            Some(weights) => weights.iter().map(|&weight| weight as f32).collect(),
            None => vec![1.0; num_classes],
        };
        let region = match config.loss {
            LossKind::Published | LossKind::Focal => Region::Dice,
            LossKind::Tversky => Region::Tversky { alpha: config.tversky_alpha, beta: config.tversky_beta },
            LossKind::GeneralisedDice => Region::GeneralisedDice,
        };
        let gamma = if config.loss == LossKind::Focal { config.focal_gamma } else { 0.0 };
        let weights = Tensor::from_vec(weights, num_classes, device)?;
        let unions = unions(&store.regions, num_classes, device)?;
        Ok(LadderLoss {
            lambda,
            other: Some(SegmentationLoss { lambda, gamma, region, smooth: SMOOTH, weights, ignore, unions }),
        })
    }

    /// Loss and gradient of `logits` `[b, C, h, w]` against `labels` `[b, h, w]`, as [`ladder_loss`].
    ///
    /// # Errors
    /// As [`ladder_loss`].
    pub fn of(&self, logits: &Tensor, labels: &Tensor, num_classes: usize) -> Result<LossParts> {
        match &self.other {
            None => ladder_loss(logits, labels, num_classes, self.lambda),
            Some(other) if logits.dim(1)? == num_classes => segmentation_loss(logits, labels, other),
            Some(_) => bail!("logits have {} classes, expected {num_classes}", logits.dim(1)?),
        }
    }
}

/// Background and the regions as `[1 + regions, classes]`, 1 where the class belongs to it; `None` without regions.
fn unions(regions: &[ClassRegion], num_classes: usize, device: &Device) -> Result<Option<Tensor>> {
    if regions.is_empty() {
        return Ok(None);
    }
    let belongs = |row: usize, class: usize| if row == 0 { class == 0 } else { regions[row - 1].has(class as u8) };
    let of_row = |row: usize| (0..num_classes).map(move |class| f32::from(u8::from(belongs(row, class)))).collect::<Vec<_>>();
    let values: Vec<f32> = (0..=regions.len()).flat_map(of_row).collect();
    Ok(Some(Tensor::from_vec(values, (regions.len() + 1, num_classes), device)?))
}

/// The weights of the classes, background first; `None` where all are 1.
pub fn class_weights(weights: &ClassWeights, slices: &[&SliceRow]) -> Option<Vec<f64>> {
    match weights {
        ClassWeights::None => None,
        ClassWeights::Numbers(numbers) => Some(numbers.clone()),
        ClassWeights::InverseFrequency => {
            let organs = slices.iter().map(|slice| slice.voxels.len()).max().unwrap_or(0);
            let organ = |at: usize| slices.iter().filter_map(|slice| slice.voxels.get(at)).sum::<u64>() as f64;
            let organs: Vec<f64> = (0..organs).map(organ).collect();
            let all: f64 = slices.iter().map(|slice| slice.size.iter().map(|&side| f64::from(side)).product::<f64>()).sum();
            let background = (all - organs.iter().sum::<f64>()).max(0.0);
            let voxels: Vec<f64> = [background].into_iter().chain(organs).collect();
            let occur = voxels.iter().filter(|&&voxels| voxels > 0.0).count() as f64;
            Some(voxels.iter().map(|&voxels| if voxels > 0.0 { all / (occur * voxels) } else { 0.0 }).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    /// scikit-learn's `compute_class_weight("balanced", …)` of 32 voxels, of which 24, 6 and 2 are of three classes, and a fourth never occurs.
    #[test]
    fn rare_classes_weigh_by_the_inverse_of_their_frequency() {
        let slice = |voxels: [u64; 3]| SliceRow {
            row: 0,
            case: "a".into(),
            slice_index: 0,
            spacing_mm: None,
            size: [4, 4],
            voxels: voxels.to_vec(),
            source: String::new(),
            source_sha256: String::new(),
        };
        let slices = [slice([4, 2, 0]), slice([2, 0, 0])];
        let slices: Vec<&SliceRow> = slices.iter().collect();
        let found = class_weights(&ClassWeights::InverseFrequency, &slices).unwrap();
        for (found, expected) in found.iter().zip([32.0 / 72.0, 32.0 / 18.0, 32.0 / 6.0, 0.0]) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        assert_eq!(class_weights(&ClassWeights::None, &slices), None);
        assert_eq!(class_weights(&ClassWeights::Numbers(vec![1.0, 2.0]), &slices), Some(vec![1.0, 2.0]));
    }

    /// Bit for bit: the default goes the way that it always went.
    #[test]
    fn default_settings_are_the_published_loss() -> Result<()> {
        let logits = Tensor::arange(0f32, 48.0, &Device::Cpu)?.sin()?.reshape((1, 3, 4, 4))?;
        let labels = Tensor::full(1u8, (1, 4, 4), &Device::Cpu)?;
        let config = TrainConfig::default();
        let published = ladder_loss(&logits, &labels, 3, config.lambda)?;
        let store = PrecomputeConfig { class_names: vec!["liver".into(), "spleen".into()], ..PrecomputeConfig::default() };
        let found = LadderLoss::of_run(&config, None, &store, &Device::Cpu)?;
        assert!(found.other.is_none());
        assert_eq!(found.of(&logits, &labels, 3)?.read()?, published.read()?);
        // With weights of 1 it is the same loss by the other way.
        let other = LadderLoss::of_run(&config, Some(&[1.0; 3]), &store, &Device::Cpu)?.of(&logits, &labels, 3)?;
        for (found, expected) in other.read()?.into_iter().zip(published.read()?) {
            assert!((found - expected).abs() < 2e-6, "{found} {expected}");
        }
        // Each class as a region of its own is the published loss, too, and a union of both another.
        let region = |name: &str, classes: &[u8]| ClassRegion { name: name.into(), classes: classes.to_vec() };
        let with = |regions: Vec<ClassRegion>| PrecomputeConfig { regions, ..store.clone() };
        let of =
            |store: &PrecomputeConfig| LadderLoss::of_run(&config, None, store, &Device::Cpu)?.of(&logits, &labels, 3)?.read();
        let alone = of(&with(vec![region("a", &[1]), region("b", &[2])]))?;
        for (found, expected) in alone.into_iter().zip(published.read()?) {
            assert!((found - expected).abs() < 2e-6, "{found} {expected}");
        }
        let nested = of(&with(vec![region("a", &[1, 2]), region("b", &[2])]))?;
        assert!((nested[1] - alone[1]).abs() < 1e-6 && (nested[2] - alone[2]).abs() > 1e-3, "{nested:?} {alone:?}");
        Ok(())
    }

    #[test]
    fn lambda_weighs_cross_entropy_against_dice() -> Result<()> {
        let logits = Tensor::arange(0f32, 48.0, &Device::Cpu)?.sin()?.reshape((1, 3, 4, 4))?;
        let labels = Tensor::full(1u8, (1, 4, 4), &Device::Cpu)?;
        for lambda in [0.0, 0.8, 1.0] {
            let [total, ce, dice] = ladder_loss(&logits, &labels, 3, lambda)?.read()?;
            let want = (1.0 - lambda as f32) * ce + lambda as f32 * dice;
            assert!((total - want).abs() < 1e-6 && ce > 0.0 && dice > 0.0, "{total} {want}");
        }
        Ok(())
    }

    #[test]
    fn labels_may_be_u32_and_must_be_classes() -> Result<()> {
        let logits = Tensor::arange(0f32, 48.0, &Device::Cpu)?.sin()?.reshape((1, 3, 4, 4))?;
        let labels = Tensor::full(2u8, (1, 4, 4), &Device::Cpu)?;
        let wide = ladder_loss(&logits, &labels.to_dtype(DType::U32)?, 3, 0.8)?.read()?;
        assert_eq!(wide, ladder_loss(&logits, &labels, 3, 0.8)?.read()?);
        let wrong = Tensor::full(3u8, (1, 4, 4), &Device::Cpu)?;
        let error = ladder_loss(&logits, &wrong, 3, 0.8).unwrap_err().to_string();
        assert!(error.contains("label 3 is no class"), "{error}");
        assert!(ladder_loss(&logits, &labels.to_dtype(DType::F32)?, 3, 0.8).is_err());
        assert!(ladder_loss(&logits, &labels.narrow(1, 0, 2)?, 3, 0.8).is_err());
        assert!(ladder_loss(&logits, &labels, 4, 0.8).unwrap_err().to_string().contains("expected 4"));
        Ok(())
    }
}
