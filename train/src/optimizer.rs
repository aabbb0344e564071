//! AdamW, Adam and SGD as in PyTorch. A variable without a gradient does not change, not even by weight decay.
//!
//! g is the gradient (for Adam and SGD with decay·value added), β = (0.9, 0.999), t the number of updates:
//!
//! | optimizer | moments | update |
//! | --- | --- | --- |
//! | AdamW | m ← β₁·m + (1 - β₁)·g, v ← β₂·v + (1 - β₂)·g² | value ← (1 - lr·decay)·value - lr·m̂ / (√v̂ + 1e-8) |
//! | Adam | the same | value ← value - lr·m̂ / (√v̂ + 1e-8) |
//! | SGD | m ← 0.9·m + g | value ← value - lr·m |
//!
//! m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ). [`sam_ladder_ops::update`] computes it.

use std::collections::{BTreeMap, HashMap};

use crate::average::Average;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use sam_ladder_ops::{Gradients, Slot as UpdateSlot, UpdateRule, update};
use sam_ladder_schemas::train::OptimizerKind;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;
const MOMENTUM: f64 = 0.9;

/// Suffixes of the state's entries after the variable's name, as in PyTorch's optimizers.
const STEP: &str = "step";
const FIRST: &str = "exp_avg";
const SECOND: &str = "exp_avg_sq";
const MOMENTUM_BUFFER: &str = "momentum_buffer";

/// An optimizer over named variables.
pub struct Optimizer {
    kind: OptimizerKind,
    weight_decay: f64,
    slots: Vec<Slot>,
    /// What follows the variables after each update.
    average: Option<Average>,
}

/// A variable and what the optimizer remembers of its gradients.
struct Slot {
    name: String,
    var: Var,
    /// Updates made; 0 until the first gradient.
    steps: i64,
    /// First moment, or SGD's momentum.
    first: Tensor,
    /// Second moment, which SGD lacks.
    second: Option<Tensor>,
}

impl Slot {
    fn new(kind: OptimizerKind, name: &str, var: &Var) -> Result<Self> {
        // Each has its own memory, because they are updated in place.
        let zeros = || Tensor::zeros(var.shape(), DType::F32, var.device());
        let second = if kind == OptimizerKind::Sgd { None } else { Some(zeros()?) };
        Ok(Slot { name: name.to_owned(), var: var.clone(), steps: 0, first: zeros()?, second })
    }

    fn forget(&mut self, kind: OptimizerKind) -> Result<()> {
        *self = Slot::new(kind, &self.name, &self.var)?;
        Ok(())
    }
}

impl Optimizer {
    /// An optimizer with fresh state.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn new(kind: OptimizerKind, weight_decay: f64, variables: &[(String, Var)]) -> Result<Self> {
        let slots = variables.iter().map(|(name, var)| Slot::new(kind, name, var)).collect::<Result<_>>()?;
        Ok(Optimizer { kind, weight_decay, slots, average: None })
    }

    /// The same optimizer, each of whose updates is followed by one of this average.
    pub fn averaging(self, average: Option<Average>) -> Self {
        Optimizer { average, ..self }
    }

    /// One update of every variable that has a gradient.
    ///
    /// # Errors
    /// A gradient of another shape than its variable.
    pub fn step(&mut self, gradients: &Gradients, lr: f64) -> Result<()> {
        self.step_unless_diverged(gradients, lr, None)
    }

    /// As [`Self::step`]; updates nothing if a number in `losses` is not finite. On a GPU the host does not read them.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_unless_diverged(&mut self, gradients: &Gradients, lr: f64, losses: Option<&Tensor>) -> Result<()> {
        // Variables with the same number of updates share the numbers of the next one.
        let mut by_steps: BTreeMap<i64, Vec<(usize, Tensor)>> = BTreeMap::new();
        for (index, gradient) in self.gradients(gradients)? {
            self.slots[index].steps += 1;
            by_steps.entry(self.slots[index].steps).or_default().push((index, gradient));
        }
        for (steps, updated) in by_steps {
            update(&self.update_slots(&updated), &self.rule(lr, steps), losses, None)?;
        }
        self.follow(losses)
    }

    fn follow(&self, losses: Option<&Tensor>) -> Result<()> {
        self.average.as_ref().map_or(Ok(()), |average| average.update(losses))
    }

    /// The device's part of an update, for a CUDA graph. Reads the numbers that change from step to step from `moving` (see [`Self::moving`]),
    /// and counts no update (see [`Self::count_update`]).
    ///
    /// # Errors
    /// As [`Self::step`], and a variable that has had no update yet.
    pub fn update_in_graph(&self, gradients: &Gradients, losses: &Tensor, moving: &Tensor) -> Result<()> {
        let updated = self.gradients(gradients)?;
        if let Some((index, _)) = updated.iter().find(|(index, _)| self.slots[*index].steps == 0) {
            bail!("`{}` has had no update yet", self.slots[*index].name);
        }
        update(&self.update_slots(&updated), &self.rule(0.0, 1), Some(losses), Some(moving))?;
        self.follow(Some(losses))
    }

    /// The numbers that [`Self::update_in_graph`] reads, for the variables' last counted update with this learning rate.
    ///
    /// # Errors
    /// Variables with different numbers of updates, which a single launch cannot update.
    pub fn moving(&self, lr: f64) -> Result<[f32; 4]> {
        let mut updates = self.slots.iter().map(|slot| slot.steps).filter(|&steps| steps > 0);
        let steps = updates.next().unwrap_or(1);
        if let Some(other) = updates.find(|&other| other != steps) {
            bail!("some variables have had {steps} updates, some {other}");
        }
        Ok(self.rule(lr, steps).moving())
    }

    /// Counts an update of every variable that already has one.
    pub fn count_update(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| slot.steps > 0) {
            slot.steps += 1;
        }
    }

    /// The moments, and what follows the variables, sharing their memory.
    pub fn moments(&self) -> Vec<Tensor> {
        let moments = self.slots.iter().flat_map(|slot| [Some(&slot.first), slot.second.as_ref()]).flatten().cloned();
        moments.chain(self.average.iter().flat_map(Average::averages)).collect()
    }

    /// The numbers of a variable's `steps`-th update.
    fn rule(&self, lr: f64, steps: i64) -> UpdateRule {
        let decoupled = self.kind == OptimizerKind::AdamW;
        UpdateRule {
            sgd: self.kind == OptimizerKind::Sgd,
            lr: lr as f32,
            keep: (if decoupled { 1.0 - lr * self.weight_decay } else { 1.0 }) as f32,
            l2: (if decoupled { 0.0 } else { self.weight_decay }) as f32,
            step_size: (lr / (1.0 - BETA1.powf(steps as f64))) as f32,
            correction2_sqrt: (1.0 - BETA2.powf(steps as f64)).sqrt() as f32,
            rest1: (1.0 - BETA1) as f32,
            beta2: BETA2 as f32,
            rest2: (1.0 - BETA2) as f32,
            eps: EPS as f32,
            momentum: MOMENTUM as f32,
        }
    }

    /// The gradients by slot, contiguous.
    fn gradients(&self, gradients: &Gradients) -> Result<Vec<(usize, Tensor)>> {
        let mut found = Vec::with_capacity(self.slots.len());
        for (index, slot) in self.slots.iter().enumerate() {
            let Some(gradient) = gradients.get(slot.var.as_tensor()) else { continue };
            if gradient.dims() != slot.var.dims() {
                bail!("gradient of `{}` has shape {:?}, expected {:?}", slot.name, gradient.dims(), slot.var.dims());
            }
            found.push((index, gradient.contiguous()?));
        }
        Ok(found)
    }

    fn update_slots<'a>(&'a self, updated: &'a [(usize, Tensor)]) -> Vec<UpdateSlot<'a>> {
        let slot = |(index, gradient): &'a (usize, Tensor)| {
            let Slot { var, first, second, .. } = &self.slots[*index];
            UpdateSlot { value: var.as_tensor(), gradient, first, second: second.as_ref() }
        };
        updated.iter().map(slot).collect()
    }

    /// The optimizer's state: `<variable>.step` (i64 scalar), `<variable>.exp_avg`, `<variable>.exp_avg_sq` (AdamW, Adam) or
    /// `<variable>.momentum_buffer` (SGD). A variable that never had a gradient has no entry.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::new();
        for Slot { name, steps, first, second, .. } in self.slots.iter().filter(|slot| slot.steps > 0) {
            state.push((format!("{name}.{STEP}"), Tensor::new(*steps, &Device::Cpu)?));
            match second {
                None => state.push((format!("{name}.{MOMENTUM_BUFFER}"), first.copy()?)),
                Some(second) => {
                    state.push((format!("{name}.{FIRST}"), first.copy()?));
                    state.push((format!("{name}.{SECOND}"), second.copy()?));
                }
            }
        }
        Ok(state)
    }

    /// Replaces the state by that of another optimizer of the same kind and variables (see [`Self::state`]).
    ///
    /// # Errors
    /// Names an entry that is missing, superfluous or of another shape.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        let mut entries: HashMap<&str, &Tensor> = state.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let kind = self.kind;
        for slot in &mut self.slots {
            slot.forget(kind)?;
            let Some(steps) = entries.remove(format!("{}.{STEP}", slot.name).as_str()) else { continue };
            slot.steps = steps.to_dtype(DType::I64)?.to_scalar::<i64>()?;
            let mut take = |suffix: &str| -> Result<Tensor> {
                let name = format!("{}.{suffix}", slot.name);
                let Some(tensor) = entries.remove(name.as_str()) else {
                    candle_core::bail!("optimizer state `{name}` is missing")
                };
                if tensor.dims() != slot.var.dims() {
                    candle_core::bail!("optimizer state `{name}` has shape {:?}, expected {:?}", tensor.dims(), slot.var.dims());
                }
                // Copied, so that the caller's tensors stay unchanged.
                tensor.to_dtype(DType::F32)?.to_device(slot.var.device())?.force_contiguous()
            };
            (slot.first, slot.second) = match kind {
                OptimizerKind::Sgd => (take(MOMENTUM_BUFFER)?, None),
                OptimizerKind::Adam | OptimizerKind::AdamW => (take(FIRST)?, Some(take(SECOND)?)),
            };
        }
        match entries.keys().min() {
            Some(name) => candle_core::bail!("optimizer state `{name}` does not belong to this optimizer and model"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [OptimizerKind; 3] = [OptimizerKind::AdamW, OptimizerKind::Adam, OptimizerKind::Sgd];

    fn variables() -> Vec<(String, Var)> {
        let var = |values: &[f32]| Var::from_slice(values, values.len(), &Device::Cpu).unwrap();
        vec![("a".to_string(), var(&[1.0, -2.0, 0.5])), ("b".to_string(), var(&[3.0]))]
    }

    /// Gradient 2·(a - 1); `b` has none.
    fn gradients(variables: &[(String, Var)]) -> Gradients {
        let mut gradients = Gradients::default();
        gradients.insert(&variables[0].1, ((variables[0].1.as_detached_tensor() - 1.0).unwrap() * 2.0).unwrap());
        gradients
    }

    fn values(var: &Var) -> Vec<f32> {
        var.to_vec1().unwrap()
    }

    /// Two updates in f64, written out from the papers' definitions.
    #[test]
    fn two_updates_are_those_of_the_definitions() -> Result<()> {
        let (lr, decay) = (0.1f64, 0.01f64);
        for kind in KINDS {
            let variables = variables();
            let mut optimizer = Optimizer::new(kind, decay, &variables)?;
            let mut expected = [1.0f64, -2.0, 0.5].map(|x| (x, 0.0f64, 0.0f64));
            for step in 1..=2 {
                optimizer.step(&gradients(&variables), lr)?;
                for (x, m, v) in &mut expected {
                    let mut g = 2.0 * (*x - 1.0);
                    if kind != OptimizerKind::AdamW {
                        g += decay * *x;
                    }
                    if kind == OptimizerKind::Sgd {
                        *m = 0.9 * *m + g;
                        *x -= lr * *m;
                        continue;
                    }
                    *m = 0.9 * *m + 0.1 * g;
                    *v = 0.999 * *v + 0.001 * g * g;
                    if kind == OptimizerKind::AdamW {
                        *x -= lr * decay * *x;
                    }
                    let (m_hat, v_hat) = (*m / (1.0 - 0.9f64.powi(step)), *v / (1.0 - 0.999f64.powi(step)));
                    *x -= lr * m_hat / (v_hat.sqrt() + 1e-8);
                }
            }
            for (ours, (expected, ..)) in values(&variables[0].1).iter().zip(expected) {
                assert!((f64::from(*ours) - expected).abs() < 1e-6, "{kind:?}: {ours} {expected}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_variable_without_gradient_stays_and_has_no_state() -> Result<()> {
        for kind in KINDS {
            let variables = variables();
            let mut optimizer = Optimizer::new(kind, 0.1, &variables)?;
            optimizer.step(&gradients(&variables), 0.1)?;
            assert_eq!(values(&variables[1].1), [3.0]);
            assert!(optimizer.state()?.iter().all(|(name, _)| name.starts_with("a.")));
        }
        Ok(())
    }

    #[test]
    fn continues_from_its_state_bit_for_bit() -> Result<()> {
        for kind in KINDS {
            let (ours, theirs) = (variables(), variables());
            let mut first = Optimizer::new(kind, 0.1, &ours)?;
            first.step(&gradients(&ours), 0.1)?;
            theirs[0].1.set(&ours[0].1)?;
            let mut second = Optimizer::new(kind, 0.1, &theirs)?;
            second.load_state(&first.state()?)?;
            first.step(&gradients(&ours), 0.05)?;
            second.step(&gradients(&theirs), 0.05)?;
            assert_eq!(values(&ours[0].1), values(&theirs[0].1));
        }
        Ok(())
    }

    #[test]
    fn foreign_state_is_refused_by_name() -> Result<()> {
        let variables = variables();
        let mut optimizer = Optimizer::new(OptimizerKind::AdamW, 0.1, &variables)?;
        optimizer.step(&gradients(&variables), 0.1)?;
        let mut state = optimizer.state()?;
        state.push(("c.exp_avg".to_string(), Tensor::new(0f32, &Device::Cpu)?));
        let error = optimizer.load_state(&state).unwrap_err().to_string();
        assert!(error.contains("`c.exp_avg`"), "{error}");
        state.retain(|(name, _)| name == "a.step");
        let error = optimizer.load_state(&state).unwrap_err().to_string();
        assert!(error.contains("`a.exp_avg` is missing"), "{error}");
        Ok(())
    }
}
