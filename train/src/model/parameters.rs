//! Gives the parts of the model their weights, and keeps these by name for the optimizer and the checkpoint.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Result, Tensor, Var};
use sam_ladder_ops::{F32Math, Tape, Value, convert_all, to_format};

use super::error::ModelError;
use super::weights::ModelWeights;

/// A trainable tensor.
#[derive(Clone)]
pub(super) struct Trainable {
    var: Var,
    /// In another number format, as of the last [`convert`].
    converted: Arc<OnceLock<Tensor>>,
}

/// Converts trainable tensors to a number format, all together, for [`Trainable::converted`]. On the CPU convolutions round weights themselves.
pub(super) fn convert(all: &[Trainable], dtype: DType) -> Result<()> {
    if dtype == DType::F32 || all.first().is_none_or(|first| first.var.device().is_cpu()) {
        return Ok(());
    }
    let pair = |of: &Trainable| -> Result<(Tensor, Tensor)> {
        let from = of.tensor();
        if of.converted.get().is_none() {
            of.converted.set(Tensor::zeros(from.shape(), dtype, from.device())?).ok();
        }
        let Some(to) = of.converted.get() else { candle_core::bail!("no memory for a converted weight") };
        Ok((from, to.clone()))
    };
    convert_all(&all.iter().map(pair).collect::<Result<Vec<_>>>()?)
}

impl Trainable {
    fn new(var: Var) -> Self {
        Trainable { var, converted: Arc::default() }
    }

    /// The variable, for its gradient.
    pub(super) fn var(&self) -> &Var {
        &self.var
    }

    /// Its tensor, without a graph.
    pub(super) fn tensor(&self) -> Tensor {
        self.var.as_detached_tensor()
    }

    /// The weight of a convolution whose input has this number format: in it, as of the last [`convert`] to it; on the CPU in float32.
    pub(super) fn converted(&self, dtype: DType) -> Result<Tensor> {
        if self.var.device().is_cpu() {
            return Ok(self.tensor());
        }
        match self.converted.get().filter(|_| dtype != DType::F32) {
            Some(converted) if converted.dtype() == dtype => Ok(converted.clone()),
            _ => to_format(&self.tensor(), dtype),
        }
    }

    /// A leaf of the tape, or a constant if there is none.
    pub(super) fn on(&self, tape: Option<&Tape>) -> Value {
        match tape {
            Some(tape) => tape.leaf(&self.var),
            None => self.tensor().into(),
        }
    }
}

/// A tensor that training does not change.
pub(super) struct Frozen {
    tensor: Tensor,
    /// In the number format in which it is used.
    cast: OnceLock<Tensor>,
}

impl Frozen {
    pub(super) fn new(tensor: Tensor) -> Self {
        Frozen { tensor, cast: OnceLock::new() }
    }

    /// In the number format of `like`, converted only once.
    pub(super) fn like(&self, like: &Value) -> Result<Tensor> {
        let dtype = like.tensor().dtype();
        if self.tensor.dtype() == dtype {
            return Ok(self.tensor.clone());
        }
        if let Some(cast) = self.cast.get().filter(|cast| cast.dtype() == dtype) {
            return Ok(cast.clone());
        }
        let cast = self.tensor.to_dtype(dtype)?;
        // If another format is kept already, this one is converted each time.
        self.cast.set(cast.clone()).ok();
        Ok(cast)
    }
}

/// The model's tensors by name.
pub(super) struct Parameters {
    weights: ModelWeights,
    device: Device,
    math: F32Math,
    trainable: Vec<(String, Var)>,
    /// Frozen tensors and running statistics. The model updates the storage of the latter in place, through a `Var`.
    held: HashMap<String, Tensor>,
    buffers: HashMap<String, Var>,
    /// The buffers that count batches.
    counters: Vec<Var>,
}

impl Parameters {
    /// Starts with all of `weights`; no part has received any yet.
    pub(super) fn new(weights: &ModelWeights, device: &Device, math: F32Math) -> Self {
        Parameters {
            weights: weights.clone(),
            device: device.clone(),
            math,
            trainable: Vec::new(),
            held: HashMap::new(),
            buffers: HashMap::new(),
            counters: Vec::new(),
        }
    }

    /// The model's device.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// How a GPU rounds the factors of the model's products.
    pub(super) fn math(&self) -> F32Math {
        self.math
    }

    /// A tensor that training does not change.
    pub(super) fn frozen(&mut self, name: &str) -> std::result::Result<Tensor, ModelError> {
        let tensor = self.weights.tensor(name, &self.device)?;
        self.held.insert(name.to_string(), tensor.clone());
        Ok(tensor)
    }

    /// A tensor that the optimizer updates.
    pub(super) fn trainable_tensor(&mut self, name: &str) -> std::result::Result<Trainable, ModelError> {
        let var = Var::from_tensor(&self.weights.tensor(name, &self.device)?)?;
        self.trainable.push((name.to_string(), var.clone()));
        Ok(Trainable::new(var))
    }

    /// A tensor without gradient that the forward pass updates.
    pub(super) fn buffer(&mut self, name: &str) -> std::result::Result<Var, ModelError> {
        let var = Var::from_tensor(&self.weights.tensor(name, &self.device)?)?;
        self.buffers.insert(name.to_string(), var.clone());
        Ok(var)
    }

    /// An i64 scalar that [`Self::count_batch`] increments; it stays on the CPU.
    pub(super) fn counter(&mut self, name: &str) -> std::result::Result<(), ModelError> {
        let tensor = self.weights.0.get(name).ok_or_else(|| ModelError::Missing(name.to_string()))?;
        let var = Var::from_tensor(&tensor.to_device(&Device::Cpu)?.to_dtype(DType::I64)?.force_contiguous()?)?;
        self.buffers.insert(name.to_string(), var.clone());
        self.counters.push(var);
        Ok(())
    }

    /// Counts a batch in training mode.
    pub(super) fn count_batch(&self) -> Result<()> {
        self.counters.iter().try_for_each(|counter| counter.set(&(counter.as_detached_tensor() + 1.0)?))
    }

    /// The tensors that a training step changes on the device (variables and running statistics), sharing their memory.
    pub(super) fn moving(&self) -> Vec<Tensor> {
        let variables = self.trainable.iter().map(|(_, var)| var);
        let statistics = self.buffers.values().filter(|buffer| buffer.dtype() != DType::I64);
        variables.chain(statistics).map(Var::as_detached_tensor).collect()
    }

    /// Called once all parts are made: what no part took is kept as frozen.
    pub(super) fn seal(&mut self, expected: impl IntoIterator<Item = String>) -> std::result::Result<(), ModelError> {
        for name in expected {
            let known = self.held.contains_key(&name)
                || self.buffers.contains_key(&name)
                || self.trainable.iter().any(|(n, _)| *n == name);
            if !known {
                self.frozen(&name)?;
            }
        }
        self.weights = ModelWeights::default();
        Ok(())
    }

    /// See [`LadderSam::trainable`](super::LadderSam::trainable).
    pub(super) fn trainable(&self) -> &[(String, Var)] {
        &self.trainable
    }

    /// See [`LadderSam::state_dict`](super::LadderSam::state_dict).
    pub(super) fn state_dict(&self, expected: impl IntoIterator<Item = String>) -> Result<Vec<(String, Tensor)>> {
        let trainable: HashMap<&str, &Var> = self.trainable.iter().map(|(name, var)| (name.as_str(), var)).collect();
        expected
            .into_iter()
            .map(|name| {
                let tensor = match (trainable.get(name.as_str()), self.buffers.get(&name), self.held.get(&name)) {
                    (Some(var), _, _) => var.as_detached_tensor(),
                    (_, Some(var), _) => var.as_detached_tensor(),
                    (_, _, Some(tensor)) => tensor.clone(),
                    _ => candle_core::bail!("weight `{name}` was never loaded"),
                };
                Ok((name, tensor))
            })
            .collect()
    }
}
