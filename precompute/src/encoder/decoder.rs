//! Names and shapes of what a SAM checkpoint holds beside the encoder: the prompt encoder and the mask decoder with its 4 mask tokens
//! (`modeling/prompt_encoder.py`, `modeling/mask_decoder.py`, `modeling/transformer.py`).

use sam_ladder_schemas::encoder::EMBED_CHANNELS;

/// Mask tokens of SAM's own decoder: one mask, and three for ambiguous prompts.
const MASK_TOKENS: usize = 4;
/// Hidden width of the decoder's transformer MLP.
const MLP_WIDTH: usize = 2048;
/// Blocks of the two-way transformer.
const TRANSFORMER_DEPTH: usize = 2;

/// Names and shapes, in no particular order; the same for all three encoders.
pub(super) fn sam_decoder_tensors() -> Vec<(String, Vec<usize>)> {
    let c = EMBED_CHANNELS;
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| tensors.push((name, shape.to_vec()));

    add("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix".to_owned(), &[2, c / 2]);
    (0..4).for_each(|i| add(format!("prompt_encoder.point_embeddings.{i}.weight"), &[1, c]));
    add("prompt_encoder.not_a_point_embed.weight".to_owned(), &[1, c]);
    add("prompt_encoder.no_mask_embed.weight".to_owned(), &[1, c]);
    // two strided convolutions to 4 and 16 channels, each with a norm, then one to the embeddings' width
    let downscaling: [(usize, &[usize]); 5] =
        [(0, &[4, 1, 2, 2]), (1, &[4]), (3, &[16, 4, 2, 2]), (4, &[16]), (6, &[c, 16, 1, 1])];
    for (i, shape) in downscaling {
        add(format!("prompt_encoder.mask_downscaling.{i}.weight"), shape);
        add(format!("prompt_encoder.mask_downscaling.{i}.bias"), &shape[..1]);
    }

    let mut layer = |name: String, shape: &[usize], biases: usize| {
        add(format!("{name}.weight"), shape);
        add(format!("{name}.bias"), &[biases]);
    };
    let attention = |name: &str, inner: usize, layer: &mut dyn FnMut(String, &[usize], usize)| {
        for projection in ["q_proj", "k_proj", "v_proj"] {
            layer(format!("{name}.{projection}"), &[inner, c], inner);
        }
        layer(format!("{name}.out_proj"), &[c, inner], c);
    };
    let transformer = "mask_decoder.transformer";
    for i in 0..TRANSFORMER_DEPTH {
        let block = format!("{transformer}.layers.{i}");
        attention(&format!("{block}.self_attn"), c, &mut layer);
        attention(&format!("{block}.cross_attn_token_to_image"), c / 2, &mut layer);
        attention(&format!("{block}.cross_attn_image_to_token"), c / 2, &mut layer);
        (1..=4).for_each(|norm| layer(format!("{block}.norm{norm}"), &[c], c));
        layer(format!("{block}.mlp.lin1"), &[MLP_WIDTH, c], MLP_WIDTH);
        layer(format!("{block}.mlp.lin2"), &[c, MLP_WIDTH], c);
    }
    attention(&format!("{transformer}.final_attn_token_to_image"), c / 2, &mut layer);
    layer(format!("{transformer}.norm_final_attn"), &[c], c);
    layer("mask_decoder.output_upscaling.0".to_owned(), &[c, c / 4, 2, 2], c / 4);
    layer("mask_decoder.output_upscaling.1".to_owned(), &[c / 4], c / 4);
    layer("mask_decoder.output_upscaling.3".to_owned(), &[c / 4, c / 8, 2, 2], c / 8);
    for (head, outputs) in (0..MASK_TOKENS)
        .map(|i| (format!("mask_decoder.output_hypernetworks_mlps.{i}"), c / 8))
        .chain([("mask_decoder.iou_prediction_head".to_owned(), MASK_TOKENS)])
    {
        layer(format!("{head}.layers.0"), &[c, c], c);
        layer(format!("{head}.layers.1"), &[c, c], c);
        layer(format!("{head}.layers.2"), &[outputs, c], outputs);
    }
    add("mask_decoder.iou_token.weight".to_owned(), &[1, c]);
    add("mask_decoder.mask_tokens.weight".to_owned(), &[MASK_TOKENS, c]);
    tensors
}
