//! The weights that the model is made of, by their names in the published state dict.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use thiserror::Error;

use super::gate::gate_names;
use super::side_network::side_network_names;
use super::{ModelConfig, PATCH_SIZE};

/// Channels of SAM's image embeddings and width of the mask decoder's tokens.
pub const EMBED_DIM: usize = 256;
/// Hidden width of the two-way transformer's MLP.
pub const MLP_DIM: usize = 2048;
/// Layers of the two-way transformer.
pub const TRANSFORMER_DEPTH: usize = 2;

/// Why a model cannot be made of the weights given.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The model needs a tensor that the weights lack.
    #[error("weight `{0}` is missing; the model needs every tensor of the published state dict but the image encoder's")]
    Missing(String),
    /// The weights hold a tensor that the model has no place for.
    #[error("weight `{0}` is not one of the model's; leave out what belongs to the image encoder or to the CNN beyond layer3")]
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
    /// A setting that no model can have.
    #[error("{0}")]
    Config(String),
    /// An error of the tensor library.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Name → tensor, in the published state-dict names: `sam.alpha`, `sam.mask_decoder.…`, `sam.prompt_encoder.…`, `CNN_encoder.…`.
#[derive(Debug, Clone, Default)]
pub struct ModelWeights(pub BTreeMap<String, Tensor>);

impl ModelWeights {
    /// Every tensor that [`LadderSam`](super::LadderSam) needs, by name and shape, in the published model's order. A choice that is
    /// not the published one has names of its own for what the published model lacks.
    ///
    /// Names that end in `num_batches_tracked` are i64 scalars, everything else is f32.
    pub fn expected(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let mut list = Names::default();
        gate_names(&mut list, config.gate);
        prompt_encoder_names(&mut list);
        mask_decoder_names(&mut list, config.num_classes);
        side_network_names(&mut list, config.side_network, config.image_size / PATCH_SIZE);
        list.0
    }

    /// Checks that the names and shapes are exactly those of [`Self::expected`].
    ///
    /// # Errors
    /// The first name that is missing, superfluous or of another shape.
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

    /// A tensor as contiguous f32 on `device`, in storage of its own.
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

fn prompt_encoder_names(list: &mut Names) {
    let p = "sam.prompt_encoder";
    list.add(format!("{p}.pe_layer.positional_encoding_gaussian_matrix"), &[2, EMBED_DIM / 2]);
    for i in 0..4 {
        list.add(format!("{p}.point_embeddings.{i}.weight"), &[1, EMBED_DIM]);
    }
    list.add(format!("{p}.not_a_point_embed.weight"), &[1, EMBED_DIM]);
    list.add_affine(&format!("{p}.mask_downscaling.0"), &[4, 1, 2, 2]);
    list.add_affine(&format!("{p}.mask_downscaling.1"), &[4]);
    list.add_affine(&format!("{p}.mask_downscaling.3"), &[16, 4, 2, 2]);
    list.add_affine(&format!("{p}.mask_downscaling.4"), &[16]);
    list.add_affine(&format!("{p}.mask_downscaling.6"), &[EMBED_DIM, 16, 1, 1]);
    list.add(format!("{p}.no_mask_embed.weight"), &[1, EMBED_DIM]);
}

fn attention_names(list: &mut Names, prefix: &str, internal: usize) {
    for projection in ["q_proj", "k_proj", "v_proj"] {
        list.add_affine(&format!("{prefix}.{projection}"), &[internal, EMBED_DIM]);
    }
    list.add_affine(&format!("{prefix}.out_proj"), &[EMBED_DIM, internal]);
}

fn mask_decoder_names(list: &mut Names, num_classes: usize) {
    let p = "sam.mask_decoder";
    for i in 0..TRANSFORMER_DEPTH {
        let layer = format!("{p}.transformer.layers.{i}");
        attention_names(list, &format!("{layer}.self_attn"), EMBED_DIM);
        list.add_affine(&format!("{layer}.norm1"), &[EMBED_DIM]);
        attention_names(list, &format!("{layer}.cross_attn_token_to_image"), EMBED_DIM / 2);
        list.add_affine(&format!("{layer}.norm2"), &[EMBED_DIM]);
        list.add_affine(&format!("{layer}.mlp.lin1"), &[MLP_DIM, EMBED_DIM]);
        list.add_affine(&format!("{layer}.mlp.lin2"), &[EMBED_DIM, MLP_DIM]);
        list.add_affine(&format!("{layer}.norm3"), &[EMBED_DIM]);
        list.add_affine(&format!("{layer}.norm4"), &[EMBED_DIM]);
        attention_names(list, &format!("{layer}.cross_attn_image_to_token"), EMBED_DIM / 2);
    }
    attention_names(list, &format!("{p}.transformer.final_attn_token_to_image"), EMBED_DIM / 2);
    list.add_affine(&format!("{p}.transformer.norm_final_attn"), &[EMBED_DIM]);
    list.add(format!("{p}.iou_token.weight"), &[1, EMBED_DIM]);
    list.add(format!("{p}.mask_tokens.weight"), &[num_classes, EMBED_DIM]);
    // Transposed convolutions: [in, out, 2, 2], with a bias of the second axis.
    list.add(format!("{p}.output_upscaling.0.weight"), &[EMBED_DIM, EMBED_DIM / 4, 2, 2]);
    list.add(format!("{p}.output_upscaling.0.bias"), &[EMBED_DIM / 4]);
    list.add_affine(&format!("{p}.output_upscaling.1"), &[EMBED_DIM / 4]);
    list.add(format!("{p}.output_upscaling.3.weight"), &[EMBED_DIM / 4, EMBED_DIM / 8, 2, 2]);
    list.add(format!("{p}.output_upscaling.3.bias"), &[EMBED_DIM / 8]);
    for i in 0..num_classes {
        let mlp = format!("{p}.output_hypernetworks_mlps.{i}.layers");
        list.add_affine(&format!("{mlp}.0"), &[EMBED_DIM, EMBED_DIM]);
        list.add_affine(&format!("{mlp}.1"), &[EMBED_DIM, EMBED_DIM]);
        list.add_affine(&format!("{mlp}.2"), &[EMBED_DIM / 8, EMBED_DIM]);
    }
    let iou = format!("{p}.iou_prediction_head.layers");
    list.add_affine(&format!("{iou}.0"), &[EMBED_DIM, EMBED_DIM]);
    list.add_affine(&format!("{iou}.1"), &[EMBED_DIM, EMBED_DIM]);
    list.add_affine(&format!("{iou}.2"), &[num_classes, EMBED_DIM]);
}
