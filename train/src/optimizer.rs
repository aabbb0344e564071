//! AdamW, Adam and SGD with PyTorch's arithmetic. A variable without a gradient is left alone, weight decay included.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Shape, Tensor, Var};
use rayon::prelude::*;
use sam_ladder_ops::optimizer::{Slot as DeviceSlot, UpdateRule, has_step, step};
use sam_ladder_schemas::train::OptimizerKind;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;
const MOMENTUM: f64 = 0.9;
/// Elements that one thread updates in a run.
const CHUNK: usize = 1 << 15;

/// An optimizer over named variables.
pub struct Optimizer {
    kind: OptimizerKind,
    weight_decay: f64,
    slots: Vec<Slot>,
}

/// A variable and what the optimizer remembers of its gradients.
struct Slot {
    name: String,
    var: Var,
    /// Updates made; 0 until the first gradient.
    steps: i64,
    memory: Memory,
}

/// First and second moments; SGD's momentum has the first alone.
enum Memory {
    Cpu { first: Vec<f32>, second: Vec<f32> },
    Device { first: Tensor, second: Tensor },
}

/// Names of the state's entries behind the variable's name, as in PyTorch's optimizers.
const STEP: &str = "step";
const FIRST: &str = "exp_avg";
const SECOND: &str = "exp_avg_sq";
const MOMENTUM_BUFFER: &str = "momentum_buffer";

impl Optimizer {
    /// An optimizer without memory. Betas (0.9, 0.999), eps 1e-8; SGD has momentum 0.9.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn new(kind: OptimizerKind, weight_decay: f64, variables: &[(String, Var)]) -> Result<Self> {
        let slots = variables
            .iter()
            .map(|(name, var)| {
                let var = var.clone();
                Ok(Slot { name: name.clone(), steps: 0, memory: Memory::new(kind, &var)?, var })
            })
            .collect::<Result<_>>()?;
        Ok(Optimizer { kind, weight_decay, slots })
    }

    /// One update of every variable that has a gradient.
    ///
    /// # Errors
    /// A gradient of another shape than its variable.
    pub fn step(&mut self, gradients: &GradStore, lr: f64) -> Result<()> {
        self.step_unless_diverged(gradients, lr, None)
    }

    /// As [`Self::step`]; on a GPU nothing is updated where one of the numbers of `losses` is not finite, without the host having read them.
    /// On the CPU `losses` is not looked at.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_unless_diverged(&mut self, gradients: &GradStore, lr: f64, losses: Option<&Tensor>) -> Result<()> {
        if self.slots.first().is_some_and(|slot| has_step(slot.var.as_tensor())) {
            return self.step_on_device(gradients, lr, losses);
        }
        for slot in &mut self.slots {
            let Some(gradient) = gradients.get(slot.var.as_tensor()) else { continue };
            if gradient.dims() != slot.var.dims() {
                candle_core::bail!("gradient of `{}` has shape {:?}, expected {:?}", slot.name, gradient.dims(), slot.var.dims());
            }
            slot.steps += 1;
            let rule = Rule::new(self.kind, self.weight_decay, lr, slot.steps);
            match &mut slot.memory {
                Memory::Cpu { first, second } => {
                    let update = CpuUpdate { rule, memory: RefCell::new((first, second)) };
                    slot.var.inplace_op2(&gradient.contiguous()?, &update)?;
                }
                Memory::Device { first, second } => {
                    let (value, new_first, new_second) =
                        rule.compose(&slot.var.as_detached_tensor(), &gradient.detach(), first, second)?;
                    slot.var.set(&value)?;
                    (*first, *second) = (new_first, new_second);
                }
            }
        }
        Ok(())
    }

    /// All variables in one launch, or one for each number of updates made.
    fn step_on_device(&mut self, gradients: &GradStore, lr: f64, losses: Option<&Tensor>) -> Result<()> {
        let mut by_steps: BTreeMap<i64, Vec<(usize, Tensor)>> = BTreeMap::new();
        for (index, gradient) in self.device_gradients(gradients)? {
            self.slots[index].steps += 1;
            by_steps.entry(self.slots[index].steps).or_default().push((index, gradient));
        }
        for (steps, updated) in by_steps {
            let rule = Rule::new(self.kind, self.weight_decay, lr, steps).on_device();
            step(&self.device_slots(&updated)?, &rule, losses, None)?;
        }
        Ok(())
    }

    /// The gradients as the kernel takes them, by slot.
    fn device_gradients(&self, gradients: &GradStore) -> Result<Vec<(usize, Tensor)>> {
        let mut found = Vec::with_capacity(self.slots.len());
        for (index, slot) in self.slots.iter().enumerate() {
            let Some(gradient) = gradients.get(slot.var.as_tensor()) else { continue };
            if gradient.dims() != slot.var.dims() {
                candle_core::bail!("gradient of `{}` has shape {:?}, expected {:?}", slot.name, gradient.dims(), slot.var.dims());
            }
            found.push((index, gradient.detach().to_dtype(DType::F32)?.contiguous()?));
        }
        Ok(found)
    }

    fn device_slots<'a>(&'a self, updated: &'a [(usize, Tensor)]) -> Result<Vec<DeviceSlot<'a>>> {
        updated
            .iter()
            .map(|(index, gradient)| {
                let slot = &self.slots[*index];
                let Memory::Device { first, second } = &slot.memory else {
                    candle_core::bail!("the moments of `{}` are not on its device", slot.name)
                };
                let second = if self.kind == OptimizerKind::Sgd { first } else { second };
                Ok(DeviceSlot { value: slot.var.as_tensor(), gradient, first, second })
            })
            .collect()
    }

    /// The device's part of an update alone, for a CUDA graph: what changes from step to step is read from `moving`, and no update is counted.
    /// See [`Self::moving`] and [`Self::count_update`].
    ///
    /// # Errors
    /// As [`Self::step`], and a variable whose first update this would be.
    pub fn update_in_graph(&self, gradients: &GradStore, losses: &Tensor, moving: &Tensor) -> Result<()> {
        let updated = self.device_gradients(gradients)?;
        if let Some((index, _)) = updated.iter().find(|(index, _)| self.slots[*index].steps == 0) {
            candle_core::bail!("`{}` has had no update yet", self.slots[*index].name);
        }
        let rule = Rule::new(self.kind, self.weight_decay, 0.0, 1).on_device();
        step(&self.device_slots(&updated)?, &rule, Some(losses), Some(moving))
    }

    /// The numbers of the variables' last update, were it made with this learning rate, as [`Self::update_in_graph`] reads them.
    ///
    /// # Errors
    /// Variables that have had different numbers of updates, which no one launch can update.
    pub fn moving(&self, lr: f64) -> Result<[f32; 4]> {
        let mut updates = self.slots.iter().map(|slot| slot.steps).filter(|&steps| steps > 0);
        let steps = updates.next().unwrap_or(1);
        if let Some(other) = updates.find(|&other| other != steps) {
            candle_core::bail!("some variables have had {steps} updates, some {other}");
        }
        Ok(Rule::new(self.kind, self.weight_decay, lr, steps).on_device().moving())
    }

    /// Counts an update of every variable that has had one before.
    pub fn count_update(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| slot.steps > 0) {
            slot.steps += 1;
        }
    }

    /// The moments that live on a device, sharing their memory.
    pub fn device_moments(&self) -> Vec<Tensor> {
        let moments = self.slots.iter().filter_map(|slot| match &slot.memory {
            Memory::Device { first, second } => Some([first.clone(), second.clone()]),
            Memory::Cpu { .. } => None,
        });
        moments.flatten().filter(|moment| moment.elem_count() > 0).collect()
    }

    /// What the optimizer remembers, by `<variable>.step` (i64 scalar), `<variable>.exp_avg`, `<variable>.exp_avg_sq` (AdamW, Adam) or
    /// `<variable>.momentum_buffer` (SGD). A variable that never had a gradient has no entry.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::new();
        for slot in self.slots.iter().filter(|slot| slot.steps > 0) {
            state.push((format!("{}.{STEP}", slot.name), Tensor::new(slot.steps, &Device::Cpu)?));
            let (first, second) = slot.memory.tensors(slot.var.as_tensor())?;
            if self.kind == OptimizerKind::Sgd {
                state.push((format!("{}.{MOMENTUM_BUFFER}", slot.name), first));
            } else {
                state.push((format!("{}.{FIRST}", slot.name), first));
                state.push((format!("{}.{SECOND}", slot.name), second));
            }
        }
        Ok(state)
    }

    /// Takes over what [`Self::state`] of an optimizer of the same kind and variables gave; what it remembered before is forgotten.
    ///
    /// # Errors
    /// An entry that is missing, superfluous or of another shape, by name.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        let mut entries: HashMap<&str, &Tensor> = state.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let kind = self.kind;
        for slot in &mut self.slots {
            slot.memory = Memory::new(kind, &slot.var)?;
            slot.steps = 0;
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
                tensor.to_dtype(DType::F32)?.to_device(slot.var.device())
            };
            let (first, second) = match kind {
                OptimizerKind::Sgd => (take(MOMENTUM_BUFFER)?, None),
                OptimizerKind::Adam | OptimizerKind::AdamW => (take(FIRST)?, Some(take(SECOND)?)),
            };
            slot.memory.set(first, second)?;
        }
        match entries.keys().min() {
            Some(name) => candle_core::bail!("optimizer state `{name}` does not belong to this optimizer and model"),
            None => Ok(()),
        }
    }
}

impl Memory {
    fn new(kind: OptimizerKind, var: &Var) -> Result<Self> {
        let has_second = kind != OptimizerKind::Sgd;
        if matches!(var.device(), Device::Cpu) && !has_step(var.as_tensor()) {
            let n = var.elem_count();
            return Ok(Memory::Cpu { first: vec![0.0; n], second: if has_second { vec![0.0; n] } else { Vec::new() } });
        }
        // Each its own memory: they are updated in place.
        let zeros = || Tensor::zeros(var.shape(), DType::F32, var.device());
        let second = if has_second { zeros()? } else { Tensor::zeros(0, DType::F32, var.device())? };
        Ok(Memory::Device { first: zeros()?, second })
    }

    /// Both moments as tensors; SGD's second is empty.
    fn tensors(&self, like: &Tensor) -> Result<(Tensor, Tensor)> {
        let on_cpu = |values: &Vec<f32>| {
            let shape = if values.is_empty() { Shape::from(0) } else { like.shape().clone() };
            Tensor::from_slice(values, shape, &Device::Cpu)
        };
        match self {
            Memory::Cpu { first, second } => Ok((on_cpu(first)?, on_cpu(second)?)),
            Memory::Device { first, second } => Ok((first.clone(), second.clone())),
        }
    }

    fn set(&mut self, new_first: Tensor, new_second: Option<Tensor>) -> Result<()> {
        match self {
            Memory::Cpu { first, second } => {
                *first = new_first.flatten_all()?.to_vec1()?;
                if let Some(new_second) = new_second {
                    *second = new_second.flatten_all()?.to_vec1()?;
                }
            }
            Memory::Device { first, second } => {
                // Copied: whoever gave the state keeps his own.
                *first = new_first.force_contiguous()?;
                if let Some(new_second) = new_second {
                    *second = new_second.force_contiguous()?;
                }
            }
        }
        Ok(())
    }
}

/// The numbers of one update.
#[derive(Clone, Copy)]
struct Rule {
    kind: OptimizerKind,
    lr: f64,
    /// Factor of the value before the update: 1 - lr·decay for AdamW.
    keep: f64,
    /// Decay that is added to the gradient: Adam and SGD.
    l2: f64,
    /// lr over the first moment's bias correction.
    step_size: f64,
    /// Root of the second moment's bias correction.
    correction2_sqrt: f64,
}

impl Rule {
    fn new(kind: OptimizerKind, weight_decay: f64, lr: f64, steps: i64) -> Self {
        let steps = steps as f64;
        let decoupled = kind == OptimizerKind::AdamW;
        Rule {
            kind,
            lr,
            keep: if decoupled { 1.0 - lr * weight_decay } else { 1.0 },
            l2: if decoupled { 0.0 } else { weight_decay },
            step_size: lr / (1.0 - BETA1.powf(steps)),
            correction2_sqrt: (1.0 - BETA2.powf(steps)).sqrt(),
        }
    }

    /// The same numbers for the kernel.
    fn on_device(&self) -> UpdateRule {
        UpdateRule {
            sgd: self.kind == OptimizerKind::Sgd,
            lr: self.lr as f32,
            keep: self.keep as f32,
            l2: self.l2 as f32,
            step_size: self.step_size as f32,
            correction2_sqrt: self.correction2_sqrt as f32,
            rest1: (1.0 - BETA1) as f32,
            beta2: BETA2 as f32,
            rest2: (1.0 - BETA2) as f32,
            eps: EPS as f32,
            momentum: MOMENTUM as f32,
        }
    }

    /// The update of a run of elements.
    fn update(&self, value: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let (keep, l2) = (self.keep as f32, self.l2 as f32);
        if self.kind == OptimizerKind::Sgd {
            let (momentum, lr) = (MOMENTUM as f32, self.lr as f32);
            for ((value, &gradient), first) in value.iter_mut().zip(gradient).zip(first) {
                *first = momentum * *first + (gradient + l2 * *value);
                *value -= lr * *first;
            }
            return;
        }
        let (rest1, beta2, rest2) = ((1.0 - BETA1) as f32, BETA2 as f32, (1.0 - BETA2) as f32);
        let (step_size, correction, eps) = (self.step_size as f32, self.correction2_sqrt as f32, EPS as f32);
        for (((value, &gradient), first), second) in value.iter_mut().zip(gradient).zip(first).zip(second) {
            let gradient = gradient + l2 * *value;
            *first += rest1 * (gradient - *first);
            *second = beta2 * *second + rest2 * gradient * gradient;
            *value = keep * *value - step_size * (*first / (second.sqrt() / correction + eps));
        }
    }

    /// The same as [`Self::update`] as a composition of tensor operations: (value, first, second).
    fn compose(&self, value: &Tensor, gradient: &Tensor, first: &Tensor, second: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let gradient = if self.l2 == 0.0 { gradient.clone() } else { (gradient + (value * self.l2)?)? };
        if self.kind == OptimizerKind::Sgd {
            let first = ((first * MOMENTUM)? + gradient)?;
            return Ok(((value - (&first * self.lr)?)?, first, second.clone()));
        }
        let first = (first + ((gradient.clone() - first)? * (1.0 - BETA1))?)?;
        let second = ((second * BETA2)? + (gradient.sqr()? * (1.0 - BETA2))?)?;
        let denominator = ((second.sqrt()? / self.correction2_sqrt)? + EPS)?;
        let value = ((value * self.keep)? - ((&first / denominator)? * self.step_size)?)?;
        Ok((value, first, second))
    }
}

/// One pass over a variable, its gradient and its moments, in place.
struct CpuUpdate<'a> {
    rule: Rule,
    memory: RefCell<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
}

impl InplaceOp2 for CpuUpdate<'_> {
    fn name(&self) -> &'static str {
        "optimizer-step"
    }

    fn cpu_fwd(
        &self,
        value: &mut CpuStorage,
        value_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<()> {
        let (Some((start, end)), Some((g_start, g_end))) =
            (value_layout.contiguous_offsets(), gradient_layout.contiguous_offsets())
        else {
            candle_core::bail!("optimizer-step: variable and gradient must be contiguous");
        };
        let CpuStorage::F32(value) = value else { candle_core::bail!("optimizer-step: variables must be f32") };
        let value = &mut value[start..end];
        let gradient = &gradient.as_slice::<f32>()?[g_start..g_end];
        let mut memory = self.memory.borrow_mut();
        let (first, second) = &mut *memory;
        let rule = self.rule;
        if second.is_empty() {
            value
                .par_chunks_mut(CHUNK)
                .zip(gradient.par_chunks(CHUNK))
                .zip(first.par_chunks_mut(CHUNK))
                .for_each(|((value, gradient), first)| rule.update(value, gradient, first, &mut []));
        } else {
            value
                .par_chunks_mut(CHUNK)
                .zip(gradient.par_chunks(CHUNK))
                .zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)))
                .for_each(|((value, gradient), (first, second))| rule.update(value, gradient, first, second));
        }
        Ok(())
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

    /// Gradient 2·(a - 1)·weight; `b` has none.
    fn gradients(variables: &[(String, Var)]) -> GradStore {
        (variables[0].1.as_tensor() - 1.0).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap()
    }

    fn values(var: &Var) -> Vec<f32> {
        var.to_vec1().unwrap()
    }

    /// Two updates in f64, written out from the definitions of the papers.
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
    fn the_composition_equals_the_fused_update() -> Result<()> {
        for kind in KINDS {
            let rule = Rule::new(kind, 0.1, 0.01, 3);
            let mut value = vec![1.0f32, -0.3, 0.0];
            let gradient = vec![0.5f32, -2.0, 1e-3];
            let (mut first, mut second) = (vec![0.1f32, 0.2, 0.0], vec![0.3f32, 0.1, 0.0]);
            let tensor = |x: &Vec<f32>| Tensor::new(x.as_slice(), &Device::Cpu);
            let (composed, ..) = rule.compose(&tensor(&value)?, &tensor(&gradient)?, &tensor(&first)?, &tensor(&second)?)?;
            rule.update(&mut value, &gradient, &mut first, &mut second);
            for (fused, composed) in value.iter().zip(composed.to_vec1::<f32>()?) {
                assert!((fused - composed).abs() < 1e-6, "{kind:?}: {fused} {composed}");
            }
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
