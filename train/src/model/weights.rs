//! The model's weights, by their names in the published state dict.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::error::ModelError;

/// Name → tensor, in the published state-dict names: `sam.alpha`, `sam.mask_decoder.…`, `sam.prompt_encoder.…`, `CNN_encoder.…`.
#[derive(Debug, Clone, Default)]
pub struct ModelWeights(pub BTreeMap<String, Tensor>);

impl ModelWeights {
    /// A tensor as contiguous f32 on `device`, in storage of its own.
    pub(super) fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, ModelError> {
        let tensor = self.0.get(name).ok_or_else(|| ModelError::Missing(name.to_string()))?;
        Ok(tensor.to_dtype(DType::F32)?.to_device(device)?.force_contiguous()?.detach())
    }
}
