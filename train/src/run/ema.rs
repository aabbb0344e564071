//! The averaged model of a run with `--ema`: an exponential moving average of the trained weights and the running statistics, as timm's
//! `ModelEmaV2` has it. It starts as the model and follows it after every step (see [`crate::average`]). Whole numbers (how many batches a norm has
//! seen) are the model's own, as in timm's `ModelEmaV3`.

use crate::error::{Result, TrainError};
use crate::model::{LadderSam, ModelWeights};
use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, HashSet};

/// The averaged model.
pub(super) struct Ema {
    model: LadderSam,
}

impl Ema {
    /// As the model is now, on its device, with `averages` by name in place of its tensors where a run resumes.
    ///
    /// # Errors
    /// An average that is missing (named) or superfluous.
    pub(super) fn new(model: &LadderSam, averages: Option<BTreeMap<String, Tensor>>, device: &Device) -> Result<Self> {
        let mut weights: BTreeMap<String, Tensor> = model.state_dict()?.into_iter().collect();
        if let Some(mut averages) = averages {
            for (name, tensor) in moving(model)? {
                let found = averages.remove(&name).filter(|found| found.dims() == tensor.dims());
                weights.insert(name.clone(), found.ok_or_else(|| TrainError::AverageMissing(name))?);
            }
        }
        Ok(Ema { model: LadderSam::new(model.config(), &ModelWeights(weights), device)? })
    }

    /// The averaged model.
    pub(super) fn model(&self) -> &LadderSam {
        &self.model
    }

    /// Each tensor of the model that a step changes, and its average; both share memory with what they are of.
    pub(super) fn pairs(&self, of: &LadderSam) -> Result<Vec<(Tensor, Tensor)>> {
        let (values, averages) = (moving(of)?, moving(&self.model)?);
        Ok(values.into_iter().zip(averages).map(|((_, value), (_, average))| (value, average)).collect())
    }

    /// The averages by name, for the resume state.
    pub(super) fn averages(&self) -> Result<Vec<(String, Tensor)>> {
        moving(&self.model)
    }

    /// All tensors of the averaged model, in the published names and order.
    pub(super) fn state_dict(&self, of: &LadderSam) -> Result<Vec<(String, Tensor)>> {
        let own = of.state_dict()?.into_iter().filter(|(_, tensor)| tensor.dtype() != DType::F32);
        let counters: BTreeMap<String, Tensor> = own.collect();
        let tensor = |(name, tensor): (String, Tensor)| {
            let counter = counters.get(&name).cloned();
            (name, counter.unwrap_or(tensor))
        };
        Ok(self.model.state_dict()?.into_iter().map(tensor).collect())
    }
}

/// The tensors that a step changes on the device, by name: trained weights and running statistics.
fn moving(model: &LadderSam) -> Result<Vec<(String, Tensor)>> {
    let trained: HashSet<&str> = model.trainable().iter().map(|(name, _)| name.as_str()).collect();
    let is_moving = |name: &str| trained.contains(name) || name.ends_with(".running_mean") || name.ends_with(".running_var");
    Ok(model.state_dict()?.into_iter().filter(|(name, _)| is_moving(name)).collect())
}
