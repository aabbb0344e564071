//! The paper's equation (4): L = (1 - λ)·CE + λ·Dice, on the low-resolution logits.

use candle_core::{Result, Tensor, bail};
pub use sam_ladder_ops::LossParts;
use sam_ladder_ops::dice_ce;

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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

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
