//! Names and shapes of the prompt encoder's and the mask decoder's tensors in a SAM checkpoint.

use crate::encoder::EMBED_CHANNELS;

/// A tensor's name and shape.
pub type NamedShape = (String, Vec<usize>);

/// Mask tokens of SAM's decoder: one for a single mask, three for ambiguous prompts.
pub const SAM_MASK_TOKENS: usize = 4;
/// Layers of the two-way transformer.
pub const TRANSFORMER_DEPTH: usize = 2;
/// Hidden width of the two-way transformer's perceptron.
const MLP_DIM: usize = 2048;

/// A growing list.
struct Names(Vec<NamedShape>);

impl Names {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push((name.into(), shape.to_vec()));
    }

    /// `weight` of this shape and `bias` of its first axis.
    fn layer(&mut self, prefix: &str, shape: &[usize]) {
        self.add(format!("{prefix}.weight"), shape);
        self.add(format!("{prefix}.bias"), &shape[..1]);
    }
}

/// Name and shape of every tensor of the prompt encoder (`modeling/prompt_encoder.py`), in the order of PyTorch's state dict.
pub fn prompt_encoder_tensors() -> Vec<NamedShape> {
    let mut list = Names(Vec::new());
    let p = "prompt_encoder";
    list.add(format!("{p}.pe_layer.positional_encoding_gaussian_matrix"), &[2, EMBED_CHANNELS / 2]);
    for i in 0..4 {
        list.add(format!("{p}.point_embeddings.{i}.weight"), &[1, EMBED_CHANNELS]);
    }
    list.add(format!("{p}.not_a_point_embed.weight"), &[1, EMBED_CHANNELS]);
    list.layer(&format!("{p}.mask_downscaling.0"), &[4, 1, 2, 2]);
    list.layer(&format!("{p}.mask_downscaling.1"), &[4]);
    list.layer(&format!("{p}.mask_downscaling.3"), &[16, 4, 2, 2]);
    list.layer(&format!("{p}.mask_downscaling.4"), &[16]);
    list.layer(&format!("{p}.mask_downscaling.6"), &[EMBED_CHANNELS, 16, 1, 1]);
    list.add(format!("{p}.no_mask_embed.weight"), &[1, EMBED_CHANNELS]);
    list.0
}

fn attention(list: &mut Names, prefix: &str, internal: usize) {
    for projection in ["q_proj", "k_proj", "v_proj"] {
        list.layer(&format!("{prefix}.{projection}"), &[internal, EMBED_CHANNELS]);
    }
    list.layer(&format!("{prefix}.out_proj"), &[EMBED_CHANNELS, internal]);
}

/// Name and shape of every tensor of the mask decoder (`modeling/mask_decoder.py`, `modeling/transformer.py`), in the order of PyTorch's
/// state dict. Each mask token gives one mask; SAM has [`SAM_MASK_TOKENS`].
pub fn mask_decoder_tensors(mask_tokens: usize) -> Vec<NamedShape> {
    let mut list = Names(Vec::new());
    let p = "mask_decoder";
    for i in 0..TRANSFORMER_DEPTH {
        let layer = format!("{p}.transformer.layers.{i}");
        attention(&mut list, &format!("{layer}.self_attn"), EMBED_CHANNELS);
        list.layer(&format!("{layer}.norm1"), &[EMBED_CHANNELS]);
        attention(&mut list, &format!("{layer}.cross_attn_token_to_image"), EMBED_CHANNELS / 2);
        list.layer(&format!("{layer}.norm2"), &[EMBED_CHANNELS]);
        list.layer(&format!("{layer}.mlp.lin1"), &[MLP_DIM, EMBED_CHANNELS]);
        list.layer(&format!("{layer}.mlp.lin2"), &[EMBED_CHANNELS, MLP_DIM]);
        list.layer(&format!("{layer}.norm3"), &[EMBED_CHANNELS]);
        list.layer(&format!("{layer}.norm4"), &[EMBED_CHANNELS]);
        attention(&mut list, &format!("{layer}.cross_attn_image_to_token"), EMBED_CHANNELS / 2);
    }
    attention(&mut list, &format!("{p}.transformer.final_attn_token_to_image"), EMBED_CHANNELS / 2);
    list.layer(&format!("{p}.transformer.norm_final_attn"), &[EMBED_CHANNELS]);
    list.add(format!("{p}.iou_token.weight"), &[1, EMBED_CHANNELS]);
    list.add(format!("{p}.mask_tokens.weight"), &[mask_tokens, EMBED_CHANNELS]);
    // Transposed convolutions: weight [in, out, 2, 2], bias [out].
    list.add(format!("{p}.output_upscaling.0.weight"), &[EMBED_CHANNELS, EMBED_CHANNELS / 4, 2, 2]);
    list.add(format!("{p}.output_upscaling.0.bias"), &[EMBED_CHANNELS / 4]);
    list.layer(&format!("{p}.output_upscaling.1"), &[EMBED_CHANNELS / 4]);
    list.add(format!("{p}.output_upscaling.3.weight"), &[EMBED_CHANNELS / 4, EMBED_CHANNELS / 8, 2, 2]);
    list.add(format!("{p}.output_upscaling.3.bias"), &[EMBED_CHANNELS / 8]);
    for i in 0..mask_tokens {
        let mlp = format!("{p}.output_hypernetworks_mlps.{i}.layers");
        list.layer(&format!("{mlp}.0"), &[EMBED_CHANNELS, EMBED_CHANNELS]);
        list.layer(&format!("{mlp}.1"), &[EMBED_CHANNELS, EMBED_CHANNELS]);
        list.layer(&format!("{mlp}.2"), &[EMBED_CHANNELS / 8, EMBED_CHANNELS]);
    }
    let iou = format!("{p}.iou_prediction_head.layers");
    list.layer(&format!("{iou}.0"), &[EMBED_CHANNELS, EMBED_CHANNELS]);
    list.layer(&format!("{iou}.1"), &[EMBED_CHANNELS, EMBED_CHANNELS]);
    list.layer(&format!("{iou}.2"), &[mask_tokens, EMBED_CHANNELS]);
    list.0
}
