//! Embeds an image made by the golden rule with a SAM ViT-B checkpoint: `embed_golden CHECKPOINT IMAGE_NAME SIZE OUT.safetensors`, for example
//! `embed_golden sam_vit_b_rule.pth embed_224 224 out.safetensors`. The output's `image_embeddings` are to be compared with
//! `tests/golden/embed_224.safetensors`. An existing output is replaced.

use candle_core::{Device, Tensor};
use sam_ladder_formats::state_dict::{StateDict, save_safetensors};
use sam_ladder_precompute::encoder::{EncoderArch, ImageEncoder};

#[path = "../../tests/common/mod.rs"]
mod common;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, name, size, out] = arguments.as_slice() else {
        return Err("usage: embed_golden CHECKPOINT IMAGE_NAME SIZE OUT.safetensors".into());
    };
    let size: usize = size.parse()?;
    let encoder = ImageEncoder::load(&StateDict::open(checkpoint)?, EncoderArch::VitB, size, &Device::Cpu)?;
    let pixels: Vec<f32> = common::rule_values(name, size * size).into_iter().map(|u| (u + 1.0) / 2.0).collect();
    let embeddings = encoder.forward(&Tensor::from_vec(pixels, (1, 1, size, size), &Device::Cpu)?)?;
    save_safetensors(out, &[("image_embeddings".to_owned(), embeddings)])?;
    Ok(())
}
