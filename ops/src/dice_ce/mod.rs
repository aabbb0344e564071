//! Weighted sum of cross-entropy and Dice of the softmax: the loss of the paper's equation (4), with its gradient.

mod cpu;
mod cuda;

use candle_core::{D, DType, Result, Tensor, bail};

use crate::dispatch::{Path, path};

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

/// Cross-entropy and Dice loss of logits and labels (the published `DiceLoss`): with p the softmax of the logits and t one-hot labels,
///
/// - CE = -mean over all pixels of log p of the pixel's class,
/// - Dice = mean over the classes of 1 - (2·Σ p·t + smooth) / (Σ p² + Σ t² + smooth), sums over the whole batch, background included,
/// - total = (1 - λ)·CE + λ·Dice.
///
/// The CPU computes value and gradient in one pass over the logits. On a GPU the host does not wait, and a label outside the classes makes
/// the losses NaN.
///
/// # Shapes
/// logits `[b, C, h, w]`, labels `[b, h, w]` (u8 or u32, below C) → three scalars, float32
///
/// # Errors
/// Shapes that do not match, labels of another type, and on the CPU a label outside the classes.
pub fn dice_ce(logits: &Tensor, labels: &Tensor, lambda: f64, smooth: f64) -> Result<LossParts> {
    let (b, classes, h, w) = logits.dims4()?;
    if labels.dims() != [b, h, w] {
        bail!("labels have shape {:?}, expected {:?} to go with the logits", labels.dims(), [b, h, w]);
    }
    match path(&[logits]) {
        Path::Cuda if classes <= cuda::CLASSES => cuda::dice_ce(logits, labels, lambda, smooth),
        Path::Cpu => cpu::dice_ce(logits, labels, lambda, smooth),
        Path::Cuda | Path::Composed => dice_ce_composed(logits, labels, lambda, smooth),
    }
}

/// [`dice_ce`] composed of candle's operations: the tests' reference, and used for more classes than the GPU's kernel supports.
fn dice_ce_composed(logits: &Tensor, labels: &Tensor, lambda: f64, smooth: f64) -> Result<LossParts> {
    let classes = logits.dim(1)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?)?; // [b, C, h, w]
    let log_p = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?;
    let labels = labels.to_dtype(DType::U32)?.unsqueeze(1)?; // [b, 1, h, w]
    let targets = (0..classes as u32).map(|class| labels.eq(class)?.to_dtype(logits.dtype())).collect::<Result<Vec<_>>>()?;
    let targets = Tensor::cat(&targets, 1)?; // [b, C, h, w]
    let pixels = labels.elem_count() as f64;
    let ce = ((&log_p * &targets)?.sum_all()? * (-1.0 / pixels))?;
    let p = log_p.exp()?;
    let per_class = |x: Tensor| x.transpose(0, 1)?.contiguous()?.reshape((classes, ()))?.sum(D::Minus1); // [C]
    let intersection = ((per_class((&p * &targets)?)? * 2.0)? + smooth)?;
    let union = ((per_class(p.sqr()?)? + per_class(targets)?)? + smooth)?;
    let dice = (1.0 - (intersection / union)?.mean_all()?)?;
    let total = ((&ce * (1.0 - lambda))? + (&dice * lambda)?)?;
    Ok(LossParts { total, ce: ce.detach(), dice: dice.detach() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    use crate::testing::values as noise;

    const SMOOTH: f64 = 1e-5;

    fn case(b: usize, c: usize, h: usize, w: usize) -> (Var, Tensor) {
        let logits = noise(b * c * h * w, 1).iter().map(|x| 4.0 * x).collect();
        let logits = Var::from_vec(logits, (b, c, h, w), &Device::Cpu).unwrap();
        // The last class never occurs.
        let labels: Vec<u8> = noise(b * h * w, 2).iter().map(|x| ((x + 1.0) / 2.0 * (c as f32 - 1.0)) as u8).collect();
        (logits, Tensor::from_vec(labels, (b, h, w), &Device::Cpu).unwrap())
    }

    #[test]
    fn one_pass_equals_the_composition_in_value_and_gradient() -> Result<()> {
        for (b, c, h, w) in [(2, 9, 14, 14), (1, 2, 3, 5), (3, 4, 8, 9)] {
            let (logits, labels) = case(b, c, h, w);
            for lambda in [0.0, 0.8, 1.0] {
                let ours = cpu::dice_ce(&logits, &labels, lambda, SMOOTH)?;
                let reference = dice_ce_composed(&logits, &labels, lambda, SMOOTH)?;
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
        let loss = cpu::dice_ce(&logits, &labels, 0.8, SMOOTH)?;
        let got = loss.total.backward()?.get(&logits).unwrap().flatten_all()?.to_vec1::<f32>()?;
        let values = logits.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let largest = got.iter().fold(0.0, |m: f32, g| m.max(g.abs()));
        for element in (0..values.len()).step_by(37) {
            let at = |step: f64| -> Result<f64> {
                let mut values = values.clone();
                values[element] += step;
                let logits = Tensor::from_vec(values, logits.shape(), &Device::Cpu)?;
                dice_ce_composed(&logits, &labels, 0.8, SMOOTH)?.total.to_scalar()
            };
            let want = (at(STEP)? - at(-STEP)?) / (2.0 * STEP);
            let error = (f64::from(got[element]) - want).abs() / f64::from(largest);
            assert!(error < 1e-5, "element {element} is off by {error}");
        }
        Ok(())
    }

    /// Against numbers that PyTorch made (`tests/data/make_ops.py`).
    #[test]
    fn value_and_gradient_are_pytorchs() -> Result<()> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ops_pytorch.safetensors");
        let golden = candle_core::safetensors::load(path, &Device::Cpu)?;
        let logits = Var::from_tensor(&golden["loss/logits"])?;
        let labels = golden["loss/labels"].to_dtype(DType::U8)?;
        let total = dice_ce(&logits, &labels, 0.8, SMOOTH)?.total;
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
        let one = dice_ce(&logits, &labels, 0.8, SMOOTH)?.total.backward()?;
        let three = (dice_ce(&logits, &labels, 0.8, SMOOTH)?.total * 3.0)?.backward()?;
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
        let parts = dice_ce(&logits, &labels, 0.5, SMOOTH)?;
        assert!(parts.total.to_scalar::<f32>()?.abs() < 1e-6);
        Ok(())
    }
}
