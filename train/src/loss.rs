//! The paper's equation (4): L = (1 - λ)·CE + λ·Dice, on the low-resolution logits.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, D, DType, Device, Layout, Result, Shape, Tensor};
use candle_nn::ops::log_softmax;
use rayon::prelude::*;
use sam_ladder_ops::dice_ce::{dice_ce, has_dice_ce};

/// Keeps Dice defined for a class that neither the prediction nor the reference has.
const SMOOTH: f64 = 1e-5;
/// Pixels that are brought through the softmax together.
const BLOCK: usize = 64;

/// A loss and its two terms, f32 scalars.
#[derive(Debug, Clone)]
pub struct LossParts {
    /// (1 - λ)·CE + λ·Dice; carries the graph.
    pub total: Tensor,
    /// Cross-entropy, mean over all pixels of the batch; detached.
    pub ce: Tensor,
    /// 1 - Dice, mean over the classes; detached.
    pub dice: Tensor,
}

/// The published loss of `logits` `[b, C, h, w]` against `labels` `[b, h, w]` (u8 or u32, below C).
///
/// Dice is taken per class over the whole batch, with squared denominators and the background among the classes:
/// 1 - (2·Σ p·t + 1e-5) / (Σ p² + Σ t² + 1e-5), p the softmax of the logits (the published `DiceLoss`).
///
/// On the CPU value and gradient come of one pass over the logits, on a GPU of two kernels that the host does not wait for; there a label that is
/// no class makes the losses NaN.
///
/// # Errors
/// Shapes that do not fit, labels of another type, and on the CPU a label that is no class.
pub fn ladder_loss(logits: &Tensor, labels: &Tensor, num_classes: usize, lambda: f64) -> Result<LossParts> {
    let (b, c, h, w) = logits.dims4()?;
    if c != num_classes {
        candle_core::bail!("logits have {c} classes, expected {num_classes}");
    }
    if labels.dims() != [b, h, w] {
        candle_core::bail!("labels have shape {:?}, expected {:?} to go with the logits", labels.dims(), [b, h, w]);
    }
    if has_dice_ce(logits) {
        let (total, parts) = dice_ce(logits, labels, lambda, SMOOTH)?;
        return Ok(LossParts { total, ce: parts.get(1)?, dice: parts.get(2)? });
    }
    if matches!(logits.device(), Device::Cpu) && logits.dtype() == DType::F32 {
        fused(logits, labels, lambda)
    } else {
        composed(logits, labels, lambda)
    }
}

/// The loss as a composition of tensor operations: the reference for [`fused`], and the path of more classes than the GPU's kernels take.
fn composed(logits: &Tensor, labels: &Tensor, lambda: f64) -> Result<LossParts> {
    let classes = logits.dim(1)?;
    let log_p = log_softmax(logits, 1)?; // [b, C, h, w]
    let labels = labels.to_dtype(DType::U32)?.unsqueeze(1)?; // [b, 1, h, w]
    let targets = (0..classes as u32).map(|class| labels.eq(class)?.to_dtype(logits.dtype())).collect::<Result<Vec<_>>>()?;
    let targets = Tensor::cat(&targets, 1)?; // [b, C, h, w]
    let pixels = labels.elem_count() as f64;
    let ce = ((&log_p * &targets)?.sum_all()? * (-1.0 / pixels))?;
    let p = log_p.exp()?;
    let per_class = |x: Tensor| x.transpose(0, 1)?.contiguous()?.reshape((classes, ()))?.sum(D::Minus1); // [C]
    let intersection = ((per_class((&p * &targets)?)? * 2.0)? + SMOOTH)?;
    let union = ((per_class(p.sqr()?)? + per_class(targets)?)? + SMOOTH)?;
    let dice = (1.0 - (intersection / union)?.mean_all()?)?;
    let total = ((&ce * (1.0 - lambda))? + (&dice * lambda)?)?;
    Ok(LossParts { total, ce: ce.detach(), dice: dice.detach() })
}

/// The loss and, where the logits carry a graph, its gradient.
fn fused(logits: &Tensor, labels: &Tensor, lambda: f64) -> Result<LossParts> {
    let (b, c, h, w) = logits.dims4()?;
    let labels = label_bytes(labels, c)?;
    let probabilities = {
        let logits = logits.contiguous()?;
        let (storage, layout) = logits.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { candle_core::bail!("ladder_loss: logits are not on the CPU") };
        let offset = layout.start_offset();
        softmax_and_sums(&storage.as_slice::<f32>()?[offset..offset + b * c * h * w], &labels, c, h * w)
    };
    let (mut p, sums) = probabilities;
    let pixels = (b * h * w) as f64;
    let ce = sums.log_likelihood / -pixels;
    let numerator = |class: usize| 2.0 * sums.intersection[class] + SMOOTH;
    let denominator = |class: usize| sums.squares[class] + sums.count[class] + SMOOTH;
    let dice = 1.0 - (0..c).map(|class| numerator(class) / denominator(class)).sum::<f64>() / c as f64;
    let total = (1.0 - lambda) * ce + lambda * dice;
    let scalar = |value: f64| Tensor::new(value as f32, &Device::Cpu);
    let total = if logits.track_op() {
        // dDice/dp = toward·t + away·p
        let toward: Vec<f32> = (0..c).map(|class| (-2.0 * lambda / c as f64 / denominator(class)) as f32).collect();
        let away: Vec<f32> =
            (0..c).map(|class| (2.0 * lambda / c as f64 * numerator(class) / denominator(class).powi(2)) as f32).collect();
        let weights = GradientWeights { ce: ((1.0 - lambda) / pixels) as f32, toward, away };
        probabilities_to_gradient(&mut p, &labels, h * w, &weights);
        let gradient = Tensor::from_vec(p, (b, c, h, w), &Device::Cpu)?;
        logits.apply_op1(KnownGradient { value: total as f32, gradient: Mutex::new(Some(gradient)) })?
    } else {
        scalar(total)?
    };
    Ok(LossParts { total, ce: scalar(ce)?, dice: scalar(dice)? })
}

/// `[b, h, w]` labels as bytes, each checked to be a class.
fn label_bytes(labels: &Tensor, classes: usize) -> Result<Vec<u8>> {
    let labels: Vec<u32> = match labels.dtype() {
        DType::U8 => labels.flatten_all()?.to_vec1::<u8>()?.into_iter().map(u32::from).collect(),
        DType::U32 => labels.flatten_all()?.to_vec1::<u32>()?,
        other => candle_core::bail!("labels are {other:?}, expected u8 or u32"),
    };
    if classes > 256 {
        candle_core::bail!("the loss knows up to 256 classes, got {classes}");
    }
    match labels.iter().find(|&&label| label as usize >= classes) {
        Some(label) => candle_core::bail!("label {label} is no class, expected a value below {classes}"),
        None => Ok(labels.into_iter().map(|label| label as u8).collect()),
    }
}

/// What the loss needs to know of all pixels together.
#[derive(Clone)]
struct Sums {
    /// Σ log p of each pixel's own class.
    log_likelihood: f64,
    /// Σ p·t, by class.
    intersection: Vec<f64>,
    /// Σ p², by class.
    squares: Vec<f64>,
    /// Σ t, by class.
    count: Vec<f64>,
}

impl Sums {
    fn new(classes: usize) -> Self {
        Sums { log_likelihood: 0.0, intersection: vec![0.0; classes], squares: vec![0.0; classes], count: vec![0.0; classes] }
    }

    fn add(&mut self, other: &Sums) {
        self.log_likelihood += other.log_likelihood;
        for (mine, theirs) in
            [(&mut self.intersection, &other.intersection), (&mut self.squares, &other.squares), (&mut self.count, &other.count)]
        {
            mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
        }
    }
}

/// Softmax over the classes of `[b, C, pixels]`, and the sums; summed image by image in order, so the result does not depend on
/// the number of threads.
fn softmax_and_sums(logits: &[f32], labels: &[u8], classes: usize, pixels: usize) -> (Vec<f32>, Sums) {
    let mut p = vec![0.0f32; logits.len()];
    let by_image: Vec<Sums> = p
        .par_chunks_mut(classes * pixels)
        .zip(logits.par_chunks(classes * pixels))
        .zip(labels.par_chunks(pixels))
        .map(|((p, logits), labels)| softmax_image(p, logits, labels, classes))
        .collect();
    let mut sums = Sums::new(classes);
    by_image.iter().for_each(|image| sums.add(image));
    (p, sums)
}

/// One image of [`softmax_and_sums`]: `[C, pixels]`.
fn softmax_image(p: &mut [f32], logits: &[f32], labels: &[u8], classes: usize) -> Sums {
    let pixels = labels.len();
    let mut sums = Sums::new(classes);
    for start in (0..pixels).step_by(BLOCK) {
        let n = BLOCK.min(pixels - start);
        let mut max = [f32::NEG_INFINITY; BLOCK];
        for class in 0..classes {
            let row = &logits[class * pixels + start..][..n];
            max.iter_mut().zip(row).for_each(|(max, &x)| *max = max.max(x));
        }
        let mut total = [0.0f32; BLOCK];
        for class in 0..classes {
            let row = &logits[class * pixels + start..][..n];
            let out = &mut p[class * pixels + start..][..n];
            for i in 0..n {
                out[i] = (row[i] - max[i]).exp();
                total[i] += out[i];
            }
        }
        for class in 0..classes {
            let out = &mut p[class * pixels + start..][..n];
            let mut squares = 0.0f32;
            for i in 0..n {
                out[i] /= total[i];
                squares += out[i] * out[i];
            }
            sums.squares[class] += f64::from(squares);
        }
        for i in 0..n {
            let own = usize::from(labels[start + i]);
            let at = own * pixels + start + i;
            sums.intersection[own] += f64::from(p[at]);
            sums.count[own] += 1.0;
            sums.log_likelihood += f64::from(logits[at] - max[i]) - f64::from(total[i].ln());
        }
    }
    sums
}

/// Factors of the gradient, see [`fused`].
struct GradientWeights {
    ce: f32,
    toward: Vec<f32>,
    away: Vec<f32>,
}

/// Overwrites the probabilities `[b, C, pixels]` with the loss's gradient for the logits.
fn probabilities_to_gradient(p: &mut [f32], labels: &[u8], pixels: usize, weights: &GradientWeights) {
    let classes = weights.away.len();
    p.par_chunks_mut(classes * pixels).zip(labels.par_chunks(pixels)).for_each(|(p, labels)| {
        for start in (0..pixels).step_by(BLOCK) {
            let n = BLOCK.min(pixels - start);
            // Σ over the classes of p·dDice/dp
            let mut inner = [0.0f32; BLOCK];
            for class in 0..classes {
                let row = &p[class * pixels + start..][..n];
                for i in 0..n {
                    inner[i] += weights.away[class] * row[i] * row[i];
                }
            }
            let mut own = [0.0f32; BLOCK];
            for i in 0..n {
                let class = usize::from(labels[start + i]);
                own[i] = p[class * pixels + start + i];
                inner[i] += weights.toward[class] * own[i];
            }
            for class in 0..classes {
                let row = &mut p[class * pixels + start..][..n];
                for i in 0..n {
                    row[i] *= weights.ce + weights.away[class] * row[i] - inner[i];
                }
            }
            for i in 0..n {
                let class = usize::from(labels[start + i]);
                p[class * pixels + start + i] += weights.toward[class] * own[i] - weights.ce;
            }
        }
    });
}

/// A scalar whose gradient is already known.
struct KnownGradient {
    value: f32,
    gradient: Mutex<Option<Tensor>>,
}

impl CustomOp1 for KnownGradient {
    fn name(&self) -> &'static str {
        "ladder-loss"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let gradient = self.gradient.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let Some(gradient) = gradient else { candle_core::bail!("ladder_loss: its gradient is gone") };
        let scale = grad.to_scalar::<f32>()?;
        Ok(Some(if scale == 1.0 { gradient } else { (gradient * f64::from(scale))? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    /// Deterministic values in [-1, 1).
    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn case(b: usize, c: usize, h: usize, w: usize) -> (Var, Tensor) {
        let logits = noise(b * c * h * w, 1).iter().map(|x| 4.0 * x).collect();
        let logits = Var::from_vec(logits, (b, c, h, w), &Device::Cpu).unwrap();
        // The last class never occurs.
        let labels: Vec<u8> = noise(b * h * w, 2).iter().map(|x| ((x + 1.0) / 2.0 * (c as f32 - 1.0)) as u8).collect();
        (logits, Tensor::from_vec(labels, (b, h, w), &Device::Cpu).unwrap())
    }

    #[test]
    fn fused_equals_composed_in_value_and_gradient() -> Result<()> {
        for (b, c, h, w) in [(2, 9, 14, 14), (1, 2, 3, 5), (3, 4, 8, 9)] {
            let (logits, labels) = case(b, c, h, w);
            for lambda in [0.0, 0.8, 1.0] {
                let ours = fused(&logits, &labels, lambda)?;
                let reference = composed(&logits, &labels, lambda)?;
                for (a, b) in [(&ours.total, &reference.total), (&ours.ce, &reference.ce), (&ours.dice, &reference.dice)] {
                    assert!((a.to_scalar::<f32>()? - b.to_scalar::<f32>()?).abs() < 2e-6, "{a} {b}");
                }
                let ours = ours.total.backward()?;
                let reference = reference.total.backward()?;
                let (ours, reference) = (ours.get(&logits).unwrap(), reference.get(&logits).unwrap());
                let difference = (ours - reference)?.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
                let norm = reference.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
                assert!(difference < 1e-5 * norm, "{difference} of {norm}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() -> Result<()> {
        const STEP: f64 = 1e-6;
        let (logits, labels) = case(2, 5, 6, 7);
        let loss = fused(&logits, &labels, 0.8)?;
        let got = loss.total.backward()?.get(&logits).unwrap().flatten_all()?.to_vec1::<f32>()?;
        let values = logits.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let largest = got.iter().fold(0.0, |m: f32, g| m.max(g.abs()));
        for element in (0..values.len()).step_by(37) {
            let at = |step: f64| -> Result<f64> {
                let mut values = values.clone();
                values[element] += step;
                let logits = Tensor::from_vec(values, logits.shape(), &Device::Cpu)?;
                composed(&logits, &labels, 0.8)?.total.to_scalar()
            };
            let want = (at(STEP)? - at(-STEP)?) / (2.0 * STEP);
            let error = (f64::from(got[element]) - want).abs() / f64::from(largest);
            assert!(error < 1e-5, "element {element} is off by {error}");
        }
        Ok(())
    }

    /// Against numbers that PyTorch made (`ops/tests/data/make_ops.py`).
    #[test]
    fn value_and_gradient_are_pytorchs() -> Result<()> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/tests/data/ops_pytorch.safetensors");
        let golden = candle_core::safetensors::load(path, &Device::Cpu)?;
        let logits = Var::from_tensor(&golden["loss/logits"])?;
        let labels = golden["loss/labels"].to_dtype(DType::U8)?;
        let total = ladder_loss(&logits, &labels, 5, 0.8)?.total;
        let want = golden["loss/result"].to_scalar::<f32>()?;
        assert!((total.to_scalar::<f32>()? - want).abs() < 2e-6 * want);
        let upstream = f64::from(golden["loss/grad_result"].to_scalar::<f32>()?);
        let grads = (total * upstream)?.backward()?;
        let want = &golden["loss/grad_logits"];
        let norm = |t: Tensor| -> Result<f32> { t.sqr()?.sum_all()?.sqrt()?.to_scalar() };
        let error = norm((grads.get(&logits).unwrap() - want)?)? / norm(want.clone())?;
        assert!(error < 3e-6, "the gradient differs by {error:e}");
        Ok(())
    }

    #[test]
    fn the_gradient_follows_the_upstream_scale() -> Result<()> {
        let (logits, labels) = case(1, 3, 4, 4);
        let one = ladder_loss(&logits, &labels, 3, 0.8)?.total.backward()?;
        let three = (ladder_loss(&logits, &labels, 3, 0.8)?.total * 3.0)?.backward()?;
        let difference =
            (three.get(&logits).unwrap() - (one.get(&logits).unwrap() * 3.0)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(difference < 1e-7);
        Ok(())
    }

    #[test]
    fn a_confident_right_answer_costs_nothing() -> Result<()> {
        let labels = Tensor::new(&[[[0u8, 1], [2, 1]]], &Device::Cpu)?;
        let logits: Vec<f32> =
            (0..3).flat_map(|class| [0, 1, 2, 1].map(|label| if label == class { 50.0 } else { -50.0 })).collect();
        let logits = Tensor::from_vec(logits, (1, 3, 2, 2), &Device::Cpu)?;
        let parts = ladder_loss(&logits, &labels, 3, 0.5)?;
        assert!(parts.total.to_scalar::<f32>()?.abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn labels_may_be_u32_and_must_be_classes() -> Result<()> {
        let (logits, labels) = case(1, 3, 4, 4);
        let wide = ladder_loss(&logits, &labels.to_dtype(DType::U32)?, 3, 0.8)?.total.to_scalar::<f32>()?;
        assert_eq!(wide, ladder_loss(&logits, &labels, 3, 0.8)?.total.to_scalar::<f32>()?);
        let wrong = Tensor::full(3u8, (1, 4, 4), &Device::Cpu)?;
        let error = ladder_loss(&logits, &wrong, 3, 0.8).unwrap_err().to_string();
        assert!(error.contains("label 3 is no class"), "{error}");
        assert!(ladder_loss(&logits, &labels.to_dtype(DType::F32)?, 3, 0.8).is_err());
        assert!(ladder_loss(&logits, &labels.narrow(1, 0, 2)?, 3, 0.8).is_err());
        Ok(())
    }
}
