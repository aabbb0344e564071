//! Weighted sum of cross-entropy and Dice of the softmax: the loss of the paper's equation (4), with its gradient.

mod cpu;
mod cuda;

use candle_core::{D, DType, Result, Tensor, Var, bail};

use crate::convert::to_format;
use crate::dispatch::{Path, path};

/// A loss, its two terms and its gradient.
#[derive(Debug, Clone)]
pub struct LossParts {
    /// `[3]`, float32: the total (1 - λ)·CE + λ·Dice; cross-entropy, the mean over all pixels of the batch; 1 - Dice, the mean over the classes.
    pub numbers: Tensor,
    /// The total's gradient with respect to the logits, in their shape and number format.
    pub gradient: Tensor,
}

impl LossParts {
    /// With the gradient in this number format.
    pub(crate) fn in_format(self, dtype: DType) -> Result<Self> {
        Ok(LossParts { gradient: to_format(&self.gradient, dtype)?, ..self })
    }

    /// Total, cross-entropy and Dice loss. Waits for the device.
    ///
    /// # Errors
    /// Any error on the device since the last wait.
    pub fn read(&self) -> Result<[f32; 3]> {
        match *self.numbers.to_vec1::<f32>()? {
            [total, ce, dice] => Ok([total, ce, dice]),
            ref other => bail!("expected the three numbers of a loss, found {other:?}"),
        }
    }
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
/// logits `[b, C, h, w]`, labels `[b, h, w]` (u8 or u32, below C)
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
        Path::Cpu => cpu::dice_ce(&to_format(logits, DType::F32)?, labels, lambda, smooth)?.in_format(logits.dtype()),
        Path::Cuda | Path::Composed => dice_ce_composed(logits, labels, lambda, smooth),
    }
}

/// [`dice_ce`] composed of candle's operations: the tests' reference, and used for more classes than the GPU's kernel supports.
fn dice_ce_composed(logits: &Tensor, labels: &Tensor, lambda: f64, smooth: f64) -> Result<LossParts> {
    let leaf = Var::from_tensor(logits)?;
    let parts = loss_composed(leaf.as_tensor(), labels, lambda, smooth)?;
    let Some(gradient) = parts[0].backward()?.remove(&leaf) else { bail!("dice_ce: no gradient") };
    Ok(LossParts { numbers: Tensor::stack(&parts, 0)?.detach().to_dtype(DType::F32)?, gradient })
}

/// Total, cross-entropy and Dice loss, on candle's graph.
fn loss_composed(logits: &Tensor, labels: &Tensor, lambda: f64, smooth: f64) -> Result<[Tensor; 3]> {
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
    Ok([total, ce, dice])
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    use crate::testing::values as noise;

    const SMOOTH: f64 = 1e-5;

    fn case(b: usize, c: usize, h: usize, w: usize) -> (Tensor, Tensor) {
        let logits: Vec<f32> = noise(b * c * h * w, 1).iter().map(|x| 4.0 * x).collect();
        let logits = Tensor::from_vec(logits, (b, c, h, w), &Device::Cpu).unwrap();
        // The last class never occurs.
        let labels: Vec<u8> = noise(b * h * w, 2).iter().map(|x| ((x + 1.0) / 2.0 * (c as f32 - 1.0)) as u8).collect();
        (logits, Tensor::from_vec(labels, (b, h, w), &Device::Cpu).unwrap())
    }

    fn norm(t: &Tensor) -> Result<f32> {
        t.sqr()?.sum_all()?.sqrt()?.to_scalar()
    }

    #[test]
    fn one_pass_equals_the_composition_in_value_and_gradient() -> Result<()> {
        for (b, c, h, w) in [(2, 9, 14, 14), (1, 2, 3, 5), (3, 4, 8, 9)] {
            let (logits, labels) = case(b, c, h, w);
            for lambda in [0.0, 0.8, 1.0] {
                let ours = cpu::dice_ce(&logits, &labels, lambda, SMOOTH)?;
                let reference = dice_ce_composed(&logits, &labels, lambda, SMOOTH)?;
                for (a, b) in ours.read()?.into_iter().zip(reference.read()?) {
                    assert!((a - b).abs() < 2e-6, "{a} {b}");
                }
                let (difference, norm) = (norm(&(ours.gradient - &reference.gradient)?)?, norm(&reference.gradient)?);
                assert!(difference < 1e-5 * norm, "{difference} of {norm}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() -> Result<()> {
        const STEP: f64 = 1e-6;
        let (logits, labels) = case(2, 5, 6, 7);
        let got = cpu::dice_ce(&logits, &labels, 0.8, SMOOTH)?.gradient.flatten_all()?.to_vec1::<f32>()?;
        let values = logits.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let largest = got.iter().fold(0.0, |m: f32, g| m.max(g.abs()));
        for element in (0..values.len()).step_by(37) {
            let at = |step: f64| -> Result<f64> {
                let mut values = values.clone();
                values[element] += step;
                let logits = Tensor::from_vec(values, logits.shape(), &Device::Cpu)?;
                loss_composed(&logits, &labels, 0.8, SMOOTH)?[0].to_scalar()
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
        let labels = golden["loss/labels"].to_dtype(DType::U8)?;
        let loss = dice_ce(&golden["loss/logits"], &labels, 0.8, SMOOTH)?;
        let want = golden["loss/result"].to_scalar::<f32>()?;
        assert!((loss.read()?[0] - want).abs() < 2e-6 * want);
        // PyTorch's is of the loss times this.
        let upstream = f64::from(golden["loss/grad_result"].to_scalar::<f32>()?);
        let want = &golden["loss/grad_logits"];
        let error = norm(&((loss.gradient * upstream)? - want)?)? / norm(want)?;
        assert!(error < 3e-6, "the gradient differs by {error:e}");
        Ok(())
    }

    #[test]
    fn a_confident_right_answer_costs_nothing() -> Result<()> {
        let labels = Tensor::new(&[[[0u8, 1], [2, 1]]], &Device::Cpu)?;
        let logits: Vec<f32> =
            (0..3).flat_map(|class| [0, 1, 2, 1].map(|label| if label == class { 50.0 } else { -50.0 })).collect();
        let logits = Tensor::from_vec(logits, (1, 3, 2, 2), &Device::Cpu)?;
        assert!(dice_ce(&logits, &labels, 0.5, SMOOTH)?.read()?[0].abs() < 1e-6);
        Ok(())
    }
}
