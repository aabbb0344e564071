//! The update of an exponential moving average: average ← average + (1 - decay)·(value - average), for each tensor.
//!
//! It is one update by the optimizers' operation, all tensors in one launch on a GPU and part of a recorded step: SGD without momentum whose
//! gradient is the value and whose decay is -1 computes value - average, and the learning rate -(1 - decay) adds that share of it.

use candle_core::{Result, Tensor};
use sam_ladder_ops::{Slot, UpdateRule, update};

/// Tensors that follow others.
pub struct Average {
    rule: UpdateRule,
    tensors: Vec<Averaged>,
}

struct Averaged {
    /// Shares its memory with what is averaged.
    value: Tensor,
    /// Shares its memory with the average.
    average: Tensor,
    /// Memory for the difference of the two.
    difference: Tensor,
}

impl Average {
    /// Of pairs (what is averaged, its average) of float32 tensors, which are updated in place.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn new(decay: f64, pairs: Vec<(Tensor, Tensor)>) -> Result<Self> {
        let rule = UpdateRule {
            sgd: true,
            lr: -(1.0 - decay) as f32,
            keep: 1.0,
            l2: -1.0,
            step_size: 0.0,
            correction2_sqrt: 1.0,
            rest1: 0.0,
            beta2: 0.0,
            rest2: 0.0,
            eps: 0.0,
            momentum: 0.0,
        };
        let averaged = |(value, average): (Tensor, Tensor)| Ok(Averaged { difference: average.zeros_like()?, value, average });
        Ok(Average { rule, tensors: pairs.into_iter().map(averaged).collect::<Result<_>>()? })
    }

    /// One update, unless a number in `losses` is not finite. On a GPU the host does not wait.
    ///
    /// # Errors
    /// Tensors whose shapes do not match.
    pub fn update(&self, losses: Option<&Tensor>) -> Result<()> {
        let slots = self.tensors.iter().map(|Averaged { value, average, difference }| {
            // Named as the operation knows them.
            Slot { value: average, gradient: value, first: difference, second: None }
        });
        update(&slots.collect::<Vec<_>>(), &self.rule, losses, None)
    }

    /// The averages, sharing their memory.
    pub fn averages(&self) -> impl Iterator<Item = Tensor> {
        self.tensors.iter().map(|of| of.average.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// The recursion of timm's `ModelEmaV2`, in float64.
    #[test]
    fn averages_follow_the_recursion() -> Result<()> {
        let start = [1.0f32, -2.0, 0.25];
        let value = Var::from_slice(&start, 3, &Device::Cpu)?;
        let average = Tensor::new(&start, &Device::Cpu)?.force_contiguous()?;
        let follow = Average::new(0.9, vec![(value.as_detached_tensor(), average.clone())])?;
        let mut expected = start.map(f64::from);
        for step in 1..=5 {
            let now = start.map(|x| x + step as f32 * 0.5);
            value.set(&Tensor::new(&now, &Device::Cpu)?)?;
            follow.update(None)?;
            for (expected, now) in expected.iter_mut().zip(now) {
                *expected = 0.9 * *expected + 0.1 * f64::from(now);
            }
        }
        for (found, expected) in average.to_vec1::<f32>()?.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
        }
        // A step that diverged changes no variable, and no average.
        let before = average.to_vec1::<f32>()?;
        follow.update(Some(&Tensor::new(&[1.0f32, f32::NAN], &Device::Cpu)?))?;
        assert_eq!(average.to_vec1::<f32>()?, before);
        follow.update(Some(&Tensor::new(&[1.0f32, 2.0], &Device::Cpu)?))?;
        assert_ne!(average.to_vec1::<f32>()?, before);
        Ok(())
    }
}
