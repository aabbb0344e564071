//! Losses beyond the paper's, with their gradients: class weights, focal, Tversky and generalised Dice, and labels that take no part.
//!
//! The paper's own loss has a path of its own, [`dice_ce`](crate::dice_ce).

mod cpu;
mod cuda;

use candle_core::{D, DType, Result, Tensor, Var, bail};

use crate::convert::to_format;
use crate::dice_ce::LossParts;
use crate::dispatch::{Path, path};

/// The part of the loss that is over classes. The sums are over all pixels of the batch that count; background is a class as any other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Region {
    /// The mean over the classes of 1 - (2·Σ p·t + smooth) / (Σ p² + Σ t² + smooth): the published `DiceLoss`.
    Dice,
    /// The mean over the classes of 1 - (TP + smooth) / (TP + α·FP + β·FN + smooth), with TP = Σ p·t, FP = Σ p·(1 - t), FN = Σ (1 - p)·t: MONAI's
    /// `TverskyLoss(softmax=True, batch=True)`.
    Tversky {
        /// α.
        alpha: f64,
        /// β.
        beta: f64,
    },
    /// 1 - (2·Σ_c w·Σ p·t + smooth) / (Σ_c w·Σ (p + t) + smooth), w = 1/(Σ t)², and the largest such weight for a class that does not occur: MONAI's
    /// `GeneralizedDiceLoss(softmax=True, batch=True)`, after Sudre et al. (2017).
    GeneralisedDice,
}

/// A loss: (1 - λ)·A + λ·B.
///
/// A is Σ w·(1 - p)^γ·(-log p) / Σ w over the pixels that count, with p the probability and w the weight of the pixel's class: for γ = 0 PyTorch's
/// `CrossEntropyLoss(weight, ignore_index)`, for other γ the focal loss of Lin et al. (2017). B is [`Region`]'s.
#[derive(Debug, Clone)]
pub struct SegmentationLoss {
    /// λ.
    pub lambda: f64,
    /// γ, not negative.
    pub gamma: f64,
    /// B.
    pub region: Region,
    /// Keeps B defined for a class that is in neither the prediction nor the reference.
    pub smooth: f64,
    /// `[C]`, float32, on the logits' device.
    pub weights: Tensor,
    /// Pixels with this label take no part.
    pub ignore: Option<u8>,
    /// Unions of classes: `[G, C]`, float32, 1 where the class belongs to the union and else 0, on the logits' device. B is then over these instead
    /// of the classes, with Σ p and Σ t over each union's classes as its p and t.
    pub unions: Option<Tensor>,
}

/// Value and gradient of a loss, see [`SegmentationLoss`]; the numbers are (1 - λ)·A + λ·B, A and B. A batch of which no pixel counts, or whose classes
/// all weigh nothing, has an A of 0.
///
/// On a GPU the host does not wait, and a label outside the classes makes the losses NaN.
///
/// # Shapes
/// logits `[b, C, h, w]`, labels `[b, h, w]` (u8 or u32, below C or `ignore`)
///
/// # Errors
/// Shapes that do not match, labels of another type, and on the CPU a label outside the classes.
pub fn segmentation_loss(logits: &Tensor, labels: &Tensor, loss: &SegmentationLoss) -> Result<LossParts> {
    let (b, classes, h, w) = logits.dims4()?;
    if labels.dims() != [b, h, w] {
        bail!("labels have shape {:?}, expected {:?} to go with the logits", labels.dims(), [b, h, w]);
    }
    if loss.weights.dims() != [classes] {
        bail!("class weights have shape {:?}, expected {:?}", loss.weights.dims(), [classes]);
    }
    if let Some(unions) = loss.unions.as_ref().filter(|unions| unions.dims().get(1) != Some(&classes)) {
        bail!("unions of classes have shape {:?}, expected [G, {classes}]", unions.dims());
    }
    match path(&[logits]) {
        Path::Cuda if classes <= cuda::CLASSES => cuda::segmentation_loss(logits, labels, loss),
        Path::Cpu => cpu::segmentation_loss(&to_format(logits, DType::F32)?, labels, loss)?.in_format(logits.dtype()),
        Path::Cuda | Path::Composed => composed(logits, labels, loss),
    }
}

/// [`segmentation_loss`] composed of candle's operations: the tests' reference, and used for more classes than the GPU's kernel supports.
fn composed(logits: &Tensor, labels: &Tensor, loss: &SegmentationLoss) -> Result<LossParts> {
    let leaf = Var::from_tensor(logits)?;
    let parts = loss_composed(leaf.as_tensor(), labels, loss)?;
    let Some(gradient) = parts[0].backward()?.remove(&leaf) else { bail!("segmentation_loss: no gradient") };
    Ok(LossParts { numbers: Tensor::stack(&parts, 0)?.detach().to_dtype(DType::F32)?, gradient })
}

/// The loss, A and B, on candle's graph.
fn loss_composed(logits: &Tensor, labels: &Tensor, loss: &SegmentationLoss) -> Result<[Tensor; 3]> {
    let (classes, dtype) = (logits.dim(1)?, logits.dtype());
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?; // [b, C, h, w]
    let log_p = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?;
    let p = log_p.exp()?;
    let labels = labels.to_dtype(DType::U32)?.unsqueeze(1)?; // [b, 1, h, w]
    let t = (0..classes as u32).map(|class| labels.eq(class)?.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
    let t = Tensor::cat(&t, 1)?; // [b, C, h, w], 0 throughout for a pixel that does not count
    let counts = match loss.ignore {
        Some(ignore) => labels.ne(u32::from(ignore))?.to_dtype(dtype)?,
        None => labels.ones_like()?.to_dtype(dtype)?,
    };
    let weights = t.broadcast_mul(&loss.weights.to_dtype(dtype)?.reshape((1, classes, 1, 1))?)?;
    let focus = if loss.gamma == 0.0 { p.ones_like()? } else { (1.0 - &p)?.powf(loss.gamma)? };
    let total_weight = weights.sum_all()?.maximum(1e-30)?;
    let a = ((log_p * weights)? * focus)?.sum_all()?.neg()?.div(&total_weight)?;
    let p = p.broadcast_mul(&counts)?;
    let (p, t) = match &loss.unions {
        None => (p, t),
        Some(unions) => (united(unions, &p)?, united(unions, &t)?),
    };
    let classes = p.dim(1)?;
    let per_class = |x: &Tensor| x.transpose(0, 1)?.contiguous()?.reshape((classes, ()))?.sum(D::Minus1); // [C]
    let (both, there) = (per_class(&(&p * &t)?)?, per_class(&t)?);
    let b = match loss.region {
        Region::Dice => {
            let denominator = ((per_class(&p.sqr()?)? + there)? + loss.smooth)?;
            (1.0 - (((both * 2.0)? + loss.smooth)? / denominator)?.mean_all()?)?
        }
        Region::Tversky { alpha, beta } => {
            let (invented, missed) = (((per_class(&p)? - &both)? * alpha)?, ((there - &both)? * beta)?);
            let denominator = (((&both + invented)? + missed)? + loss.smooth)?;
            (1.0 - ((both + loss.smooth)? / denominator)?.mean_all()?)?
        }
        Region::GeneralisedDice => {
            let weights =
                Tensor::from_vec(cpu::volume_weights(&there.to_dtype(DType::F64)?.to_vec1::<f64>()?), classes, logits.device())?;
            let weights = weights.to_dtype(dtype)?;
            let numerator = (((both * &weights)?.sum_all()? * 2.0)? + loss.smooth)?;
            let denominator = (((per_class(&p)? + there)? * &weights)?.sum_all()? + loss.smooth)?;
            (1.0 - (numerator / denominator)?)?
        }
    };
    let total = ((&a * (1.0 - loss.lambda))? + (&b * loss.lambda)?)?;
    Ok([total, a, b])
}

/// The sums over the classes of each union: `[b, C, h, w]` → `[b, G, h, w]`.
fn united(unions: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (b, classes, h, w) = x.dims4()?;
    let sums = unions.to_dtype(x.dtype())?.broadcast_matmul(&x.reshape((b, classes, h * w))?)?;
    sums.reshape((b, (), h, w))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::collections::HashMap;

    use crate::testing::values as noise;

    const SMOOTH: f64 = 1e-5;

    /// Of every kind, with and without weights and pixels that do not count: name, loss.
    pub(super) fn losses(classes: usize) -> Vec<(&'static str, SegmentationLoss)> {
        let weights = |weighed: bool| {
            let weights: Vec<f32> = (0..classes).map(|class| if weighed { 0.25 + class as f32 } else { 1.0 }).collect();
            Tensor::from_vec(weights, classes, &Device::Cpu).unwrap()
        };
        let loss = |lambda, gamma, region, weighed, ignore| SegmentationLoss {
            lambda,
            gamma,
            region,
            smooth: SMOOTH,
            weights: weights(weighed),
            ignore,
            unions: None,
        };
        let tversky = Region::Tversky { alpha: 0.3, beta: 0.7 };
        // Background, all that is not, and each class from the second to the last with those after it.
        let belongs = |union: usize, class: usize| if union == 0 { class == 0 } else { class >= union };
        let unions: Vec<f32> =
            (0..classes).flat_map(|union| (0..classes).map(move |class| f32::from(u8::from(belongs(union, class))))).collect();
        let unions = Tensor::from_vec(unions, (classes, classes), &Device::Cpu).unwrap();
        let united = |loss: SegmentationLoss| SegmentationLoss { unions: Some(unions.clone()), ..loss };
        vec![
            ("dice", loss(0.8, 0.0, Region::Dice, false, None)),
            ("weighed", loss(0.3, 0.0, Region::Dice, true, Some(255))),
            ("focal", loss(0.0, 2.0, Region::Dice, false, None)),
            ("focal_weighed", loss(0.2, 0.5, Region::Dice, true, Some(255))),
            ("tversky", loss(1.0, 0.0, tversky, false, Some(255))),
            ("tversky_mixed", loss(0.6, 1.5, tversky, true, None)),
            ("generalised", loss(1.0, 0.0, Region::GeneralisedDice, false, None)),
            ("generalised_ignored", loss(0.7, 0.0, Region::GeneralisedDice, true, Some(255))),
            ("united", united(loss(0.8, 0.0, Region::Dice, false, None))),
            ("united_focal", united(loss(0.4, 2.0, Region::Dice, true, Some(255)))),
            ("united_tversky", united(loss(0.6, 0.0, tversky, true, Some(255)))),
            ("united_generalised", united(loss(0.7, 0.0, Region::GeneralisedDice, false, None))),
        ]
    }

    /// Labels below `classes - 1`, so that the last class never occurs; every seventh is 255 if `ignored`.
    pub(super) fn labels(count: usize, classes: usize, ignored: bool) -> Vec<u8> {
        let class = |x: f32| ((x + 1.0) / 2.0 * (classes as f32 - 1.0)) as u8;
        let of = |(at, x): (usize, f32)| if ignored && at % 7 == 3 { 255 } else { class(x) };
        noise(count, 2).into_iter().enumerate().map(of).collect()
    }

    fn case(b: usize, c: usize, h: usize, w: usize, ignored: bool) -> (Tensor, Tensor) {
        let logits: Vec<f32> = noise(b * c * h * w, 1).iter().map(|x| 4.0 * x).collect();
        let labels = labels(b * h * w, c, ignored);
        (
            Tensor::from_vec(logits, (b, c, h, w), &Device::Cpu).unwrap(),
            Tensor::from_vec(labels, (b, h, w), &Device::Cpu).unwrap(),
        )
    }

    fn norm(t: &Tensor) -> Result<f32> {
        t.to_dtype(DType::F32)?.sqr()?.sum_all()?.sqrt()?.to_scalar()
    }

    fn assert_same(name: &str, ours: &LossParts, numbers: &[f32], gradient: &Tensor) -> Result<()> {
        for (ours, want) in ours.read()?.iter().zip(numbers) {
            assert!((ours - want).abs() < 3e-6 * want.abs().max(1.0), "{name}: {ours} {want}");
        }
        let (off, of) = (norm(&(&ours.gradient - gradient)?)?, norm(gradient)?);
        assert!(off < 1e-5 * of, "{name}: the gradient is off by {off} of {of}");
        Ok(())
    }

    #[test]
    fn one_pass_equals_the_composition() -> Result<()> {
        for (b, c, h, w) in [(2, 9, 14, 14), (1, 2, 3, 5), (3, 4, 8, 9)] {
            for (name, loss) in losses(c) {
                let (logits, labels) = case(b, c, h, w, loss.ignore.is_some());
                let reference = composed(&logits, &labels, &loss)?;
                assert_same(name, &cpu::segmentation_loss(&logits, &labels, &loss)?, &reference.read()?, &reference.gradient)?;
            }
        }
        Ok(())
    }

    /// Against values and gradients that PyTorch made in float64 (`tests/data/make_losses.py`).
    #[test]
    fn values_and_gradients_are_pytorchs() -> Result<()> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/losses_pytorch.safetensors");
        let golden: HashMap<String, Tensor> = candle_core::safetensors::load(path, &Device::Cpu)?;
        for (name, loss) in losses(4) {
            let labels = if loss.ignore.is_some() { "labels_ignored" } else { "labels" };
            let labels = golden[labels].to_dtype(DType::U8)?;
            let ours = segmentation_loss(&golden["logits"], &labels, &loss)?;
            let numbers = golden[&format!("{name}/numbers")].to_vec1::<f32>()?;
            assert_same(name, &ours, &numbers, &golden[&format!("{name}/gradient")])?;
        }
        Ok(())
    }

    #[test]
    fn gradients_are_those_of_finite_differences() -> Result<()> {
        const STEP: f64 = 1e-6;
        for (name, loss) in losses(5) {
            let (logits, labels) = case(2, 5, 6, 7, loss.ignore.is_some());
            let got = cpu::segmentation_loss(&logits, &labels, &loss)?.gradient.flatten_all()?.to_vec1::<f32>()?;
            let values = logits.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
            let largest = got.iter().fold(0.0, |m: f32, g| m.max(g.abs()));
            for element in (0..values.len()).step_by(37) {
                let at = |step: f64| -> Result<f64> {
                    let mut values = values.clone();
                    values[element] += step;
                    let logits = Tensor::from_vec(values, logits.shape(), &Device::Cpu)?;
                    loss_composed(&logits, &labels, &loss)?[0].to_scalar()
                };
                let want = (at(STEP)? - at(-STEP)?) / (2.0 * STEP);
                let error = (f64::from(got[element]) - want).abs() / f64::from(largest);
                assert!(error < 1e-5, "{name}: element {element} is off by {error}");
            }
        }
        Ok(())
    }

    /// What does not count has no gradient, whatever the logits there, and changes no number.
    #[test]
    fn pixels_that_do_not_count_change_nothing() -> Result<()> {
        for (name, loss) in losses(4).into_iter().filter(|(_, loss)| loss.ignore.is_some()) {
            let (logits, labels) = case(1, 4, 6, 7, true);
            let found = cpu::segmentation_loss(&logits, &labels, &loss)?;
            let out: Vec<bool> = labels.flatten_all()?.to_vec1::<u8>()?.iter().map(|&label| label == 255).collect();
            assert!(out.contains(&true));
            let gradient = found.gradient.flatten_all()?.to_vec1::<f32>()?;
            assert!(gradient.iter().enumerate().all(|(at, g)| (*g == 0.0) == out[at % 42]), "{name}");
            let moved = logits.flatten_all()?.to_vec1::<f32>()?;
            let moved: Vec<f32> = moved.iter().enumerate().map(|(at, x)| if out[at % 42] { x * 9.0 } else { *x }).collect();
            let moved = Tensor::from_vec(moved, logits.shape(), &Device::Cpu)?;
            assert_eq!(cpu::segmentation_loss(&moved, &labels, &loss)?.read()?, found.read()?, "{name}");
            let none = Tensor::full(255u8, labels.shape(), &Device::Cpu)?;
            let of_none = cpu::segmentation_loss(&logits, &none, &loss)?;
            assert!(of_none.read()?.iter().all(|number| number.is_finite()), "{name}: {:?}", of_none.read()?);
            assert_eq!(norm(&of_none.gradient)?, 0.0, "{name}");
        }
        Ok(())
    }

    #[test]
    fn sure_answers_have_finite_gradients_and_labels_must_be_classes() -> Result<()> {
        for (name, loss) in losses(3) {
            for scale in [200.0f32, -200.0] {
                let logits: Vec<f32> =
                    (0..3).flat_map(|class| [0, 1, 2, 1].map(|label| if label == class { scale } else { -scale })).collect();
                let logits = Tensor::from_vec(logits, (1, 3, 2, 2), &Device::Cpu)?;
                let labels = Tensor::new(&[[[0u8, 1], [2, 1]]], &Device::Cpu)?;
                let found = cpu::segmentation_loss(&logits, &labels, &loss)?;
                let numbers = found.read()?;
                assert!(numbers.iter().all(|number| number.is_finite()), "{name}, {scale}: {numbers:?}");
                assert!(norm(&found.gradient)?.is_finite(), "{name}, {scale}");
                assert!(scale < 0.0 || numbers[0].abs() < 1e-6, "{name}: a right answer costs {}", numbers[0]);
            }
        }
        let (logits, _) = case(1, 3, 2, 2, false);
        let wrong = Tensor::new(&[[[0u8, 1], [3, 1]]], &Device::Cpu)?;
        let error = segmentation_loss(&logits, &wrong, &losses(3)[0].1).unwrap_err().to_string();
        assert!(error.contains("label 3 is no class"), "{error}");
        Ok(())
    }
}
