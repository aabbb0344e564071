//! The update of all variables of a model: PyTorch's AdamW, Adam and SGD.

mod cpu;
mod cuda;

use candle_core::{DType, Result, Tensor, bail};

use crate::dispatch::{Path, path};

/// A variable with its gradient and its moments, contiguous. Variable and moments are float32 and updated in place.
#[derive(Debug, Clone, Copy)]
pub struct Slot<'a> {
    /// The variable.
    pub value: &'a Tensor,
    /// Its gradient, float32, bfloat16 or float16.
    pub gradient: &'a Tensor,
    /// First moment, or SGD's momentum.
    pub first: &'a Tensor,
    /// Second moment, which SGD lacks.
    pub second: Option<&'a Tensor>,
}

/// The numbers of one update, shared by all variables of a launch: PyTorch's Adam, AdamW and SGD.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateRule {
    /// SGD with momentum, otherwise Adam or AdamW.
    pub sgd: bool,
    /// Learning rate.
    pub lr: f32,
    /// Factor of the value before the update: 1 - lr·decay for AdamW.
    pub keep: f32,
    /// Decay that is added to the gradient: Adam and SGD.
    pub l2: f32,
    /// lr over the first moment's bias correction.
    pub step_size: f32,
    /// Root of the second moment's bias correction.
    pub correction2_sqrt: f32,
    /// 1 - β₁
    pub rest1: f32,
    /// β₂
    pub beta2: f32,
    /// 1 - β₂
    pub rest2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// SGD's momentum.
    pub momentum: f32,
}

impl UpdateRule {
    /// The numbers that change between updates, as [`update`] reads them from memory: `lr`, `keep`, `step_size`, `correction2_sqrt`.
    pub fn moving(&self) -> [f32; 4] {
        [self.lr, self.keep, self.step_size, self.correction2_sqrt]
    }
}

/// Updates every variable. With g the gradient plus `l2` times the value,
///
/// - Adam and AdamW: first += rest1·(g - first); second = beta2·second + rest2·g²;
///   value = keep·value - step_size·first / (√second / correction2_sqrt + eps),
/// - SGD: first = momentum·first + g; value -= lr·first.
///
/// If a float32 number of `guard` is not finite, nothing is updated. So the losses of a step can guard its update without the host reading
/// them from a GPU. `moving` replaces the rule's [`UpdateRule::moving`], and is read when the update runs.
///
/// # Errors
/// Tensors that are not of these formats, contiguous and on one device, or whose shapes do not match.
pub fn update(slots: &[Slot<'_>], rule: &UpdateRule, guard: Option<&Tensor>, moving: Option<&Tensor>) -> Result<()> {
    if let Some(moving) = moving
        && (moving.dims() != [4] || moving.dtype() != DType::F32)
    {
        bail!("optimizer: expected four float32 numbers that move, found {:?} of {:?}", moving.dims(), moving.dtype());
    }
    for slot in slots {
        slot.check(rule)?;
    }
    let values: Vec<&Tensor> = slots.iter().map(|slot| slot.value).collect();
    match path(&values) {
        Path::Cuda => cuda::update(slots, rule, guard, moving),
        Path::Cpu => cpu::update(slots, rule, guard, moving),
        Path::Composed => bail!("optimizer: expected variables on one device, the CPU or a GPU"),
    }
}

impl Slot<'_> {
    fn check(&self, rule: &UpdateRule) -> Result<()> {
        let Slot { value, gradient, first, second } = *self;
        if !matches!(gradient.dtype(), DType::F32 | DType::BF16 | DType::F16) {
            bail!("optimizer: expected a gradient of float32, bfloat16 or float16, found {:?}", gradient.dtype());
        }
        let all = [Some(value), Some(gradient), Some(first), second];
        for (i, tensor) in all.into_iter().flatten().enumerate() {
            let is_gradient = i == 1;
            if (tensor.dtype() != DType::F32 && !is_gradient)
                || !tensor.is_contiguous()
                || !tensor.device().same_device(value.device())
            {
                bail!(
                    "optimizer: expected contiguous float32 on {:?}, found {tensor:?} on {:?}",
                    value.device(),
                    tensor.device()
                );
            }
            if tensor.elem_count() != value.elem_count() {
                bail!("optimizer: a variable of {} elements with {} of another part", value.elem_count(), tensor.elem_count());
            }
        }
        if second.is_none() != rule.sgd {
            bail!("optimizer: Adam has a second moment, and only Adam");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// The update composed of tensor operations: (value, first, second).
    fn composed(rule: &UpdateRule, slot: &Slot<'_>) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let of = f64::from;
        let gradient = (slot.gradient + (slot.value * of(rule.l2))?)?;
        let Some(second) = slot.second else {
            let first = ((slot.first * of(rule.momentum))? + gradient)?;
            return Ok(((slot.value - (&first * of(rule.lr))?)?, first, None));
        };
        let first = (slot.first + ((&gradient - slot.first)? * of(rule.rest1))?)?;
        let second = ((second * of(rule.beta2))? + (gradient.sqr()? * of(rule.rest2))?)?;
        let denominator = ((second.sqrt()? / of(rule.correction2_sqrt))? + of(rule.eps))?;
        let value = ((slot.value * of(rule.keep))? - ((&first / denominator)? * of(rule.step_size))?)?;
        Ok((value, first, Some(second)))
    }

    const ADAM: UpdateRule = UpdateRule {
        sgd: false,
        lr: 1e-2,
        keep: 0.999,
        l2: 0.01,
        step_size: 0.1,
        correction2_sqrt: 0.05,
        rest1: 0.1,
        beta2: 0.999,
        rest2: 0.001,
        eps: 1e-8,
        momentum: 0.9,
    };

    fn tensors() -> Result<[Tensor; 4]> {
        let tensor = |x: [f32; 3]| Tensor::new(&x, &Device::Cpu);
        Ok([tensor([1.0, -0.3, 0.0])?, tensor([0.5, -2.0, 1e-3])?, tensor([0.1, 0.2, 0.0])?, tensor([0.3, 0.1, 0.0])?])
    }

    #[test]
    fn the_update_equals_the_composition() -> Result<()> {
        for sgd in [false, true] {
            let rule = UpdateRule { sgd, ..ADAM };
            let [value, gradient, first, second] = tensors()?;
            let slot = Slot { value: &value, gradient: &gradient, first: &first, second: (!sgd).then_some(&second) };
            let (want, want_first, want_second) = composed(&rule, &slot)?;
            update(&[slot], &rule, None, None)?;
            for (got, want) in [(&value, Some(want)), (&first, Some(want_first)), (&second, want_second)] {
                let Some(want) = want else { continue };
                for (got, want) in got.to_vec1::<f32>()?.iter().zip(want.to_vec1::<f32>()?) {
                    assert!((got - want).abs() < 1e-6, "sgd {sgd}: {got} {want}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_guard_that_is_not_finite_stops_it_and_moving_numbers_are_read() -> Result<()> {
        let run = |rule: &UpdateRule, guard: Option<f32>, moving: Option<[f32; 4]>| -> Result<Vec<f32>> {
            let [value, gradient, first, second] = tensors()?;
            let slot = Slot { value: &value, gradient: &gradient, first: &first, second: Some(&second) };
            let guard = guard.map(|guard| Tensor::new(&[1.0, guard], &Device::Cpu)).transpose()?;
            let moving = moving.map(|moving| Tensor::new(&moving, &Device::Cpu)).transpose()?;
            update(&[slot], rule, guard.as_ref(), moving.as_ref())?;
            value.to_vec1()
        };
        assert_eq!(run(&ADAM, Some(f32::NAN), None)?, tensors()?[0].to_vec1::<f32>()?);
        let plain = run(&ADAM, Some(0.5), None)?;
        assert_eq!(run(&UpdateRule { lr: 9.0, keep: 9.0, step_size: 9.0, ..ADAM }, None, Some(ADAM.moving()))?, plain);
        assert_ne!(plain, tensors()?[0].to_vec1::<f32>()?);
        Ok(())
    }
}
