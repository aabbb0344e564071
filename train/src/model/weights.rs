//! The model's weights, by their names in the published state dict.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use sam_ladder_schemas::sam_names::{mask_decoder_tensors, prompt_encoder_tensors};
use thiserror::Error;

use super::gate::gate_names;
use super::side_network::side_network_names;
use super::{ModelConfig, PATCH_SIZE};

/// Channels of SAM's image embeddings; also the width of the mask decoder's tokens.
pub(super) use sam_ladder_schemas::encoder::EMBED_CHANNELS as EMBED_DIM;
pub(super) use sam_ladder_schemas::sam_names::TRANSFORMER_DEPTH;

/// Why a model cannot be made from the given weights.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The model needs a tensor that the weights lack.
    #[error("weight `{0}` is missing")]
    Missing(String),
    /// The weights have a tensor that the model lacks.
    #[error("weight `{0}` is not one of the model's")]
    Extra(String),
    /// A tensor of another shape.
    #[error("weight `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// The shape that the model needs.
        expected: Vec<usize>,
        /// The shape of the tensor given.
        found: Vec<usize>,
    },
    /// An image size that is not a multiple of the patch size.
    #[error("image size must be a positive multiple of 16, got {0}")]
    ImageSize(usize),
    /// Too few classes.
    #[error("the number of classes must be at least 2 with the background, got {0}")]
    Classes(usize),
    /// An error of the tensor library.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            ModelError::Missing(_) => {
                Some("the model needs every tensor of the published state dict but the image encoder's".into())
            }
            ModelError::Extra(_) => Some("leave out what belongs to the image encoder or to the CNN beyond layer3".into()),
            ModelError::Shape { .. } | ModelError::ImageSize(_) | ModelError::Classes(_) | ModelError::Tensor(_) => None,
        }
    }
}

/// Name → tensor, in the published state-dict names: `sam.alpha`, `sam.mask_decoder.…`, `sam.prompt_encoder.…`, `CNN_encoder.…`.
#[derive(Debug, Clone, Default)]
pub struct ModelWeights(pub BTreeMap<String, Tensor>);

impl ModelWeights {
    /// Name and shape of every tensor that [`LadderSam`](super::LadderSam) needs, in the published model's order. Other side networks and
    /// gates have additional names for what the published model lacks.
    ///
    /// Names that end in `num_batches_tracked` are i64 scalars, everything else is f32.
    pub fn expected(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let mut list = Names::default();
        gate_names(&mut list, config.gate);
        let sam = prompt_encoder_tensors().into_iter().chain(mask_decoder_tensors(config.num_classes));
        list.0.extend(sam.map(|(name, shape)| (format!("sam.{name}"), shape)));
        side_network_names(&mut list, config.side_network, config.image_size / PATCH_SIZE);
        list.0
    }

    /// Checks that the names and shapes are exactly those of [`Self::expected`].
    ///
    /// # Errors
    /// The first tensor that is missing, superfluous or of another shape.
    pub fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        let expected = Self::expected(config);
        for (name, shape) in &expected {
            let tensor = self.0.get(name).ok_or_else(|| ModelError::Missing(name.clone()))?;
            if tensor.dims() != shape.as_slice() {
                return Err(ModelError::Shape { name: name.clone(), expected: shape.clone(), found: tensor.dims().to_vec() });
            }
        }
        if self.0.len() != expected.len() {
            let known: std::collections::HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
            if let Some(extra) = self.0.keys().find(|name| !known.contains(name.as_str())) {
                return Err(ModelError::Extra(extra.clone()));
            }
        }
        Ok(())
    }

    /// A tensor as contiguous f32 on `device`, with its own storage.
    pub(super) fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, ModelError> {
        let tensor = self.0.get(name).ok_or_else(|| ModelError::Missing(name.to_string()))?;
        Ok(tensor.to_dtype(DType::F32)?.to_device(device)?.force_contiguous()?.detach())
    }
}

/// A growing list of names and shapes.
#[derive(Default)]
pub(super) struct Names(Vec<(String, Vec<usize>)>);

impl Names {
    pub(super) fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push((name.into(), shape.to_vec()));
    }

    /// `weight` of this shape and `bias` of its first axis.
    pub(super) fn add_affine(&mut self, prefix: &str, shape: &[usize]) {
        self.add(format!("{prefix}.weight"), shape);
        self.add(format!("{prefix}.bias"), &shape[..1]);
    }
}
