//! The frozen encoder against the published implementation (`tests/golden/README.md`): rule-made ViT-B weights in the native 1024 px
//! layout, written as a `.pth`, loaded at 224 and 512.

mod common;
#[path = "common/device.rs"]
mod device;

use candle_core::{Device, Tensor};
use common::{golden, rule_values, rule_weight};
use sam_ladder_formats::state_dict::{StateDict, save_pth};
use sam_ladder_precompute::encoder::{EncoderArch, ImageEncoder, decoder_weights, detect_arch, random_decoder_weights};

/// The whole of SAM with ViT-B at 1024 px, every tensor by the rule.
fn rule_checkpoint() -> Vec<(String, Tensor)> {
    let native = sam_ladder_precompute::encoder::VitConfig::new(EncoderArch::VitB, 1024);
    let encoder = native.tensors().into_iter().map(|(name, shape)| (format!("image_encoder.{name}"), shape));
    // the random decoder's tensors have SAM's names and shapes
    let decoder = random_decoder_weights(0).unwrap().into_iter().map(|(name, tensor)| (name, tensor.dims().to_vec()));
    let by_rule = |(name, shape): (String, Vec<usize>)| {
        let tensor = Tensor::from_vec(rule_weight(&name, &shape), shape, &Device::Cpu).unwrap();
        (name, tensor)
    };
    encoder.chain(decoder).map(by_rule).collect()
}

/// Largest absolute difference over the largest absolute value.
fn relative_error(got: &Tensor, want: &Tensor) -> f32 {
    let got = got.to_device(&Device::Cpu).unwrap();
    let difference = (&got - want).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    difference / want.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

#[test]
fn embeddings_equal_the_published_ones() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("sam_vit_b_rule.pth");
    save_pth(&checkpoint, &rule_checkpoint()).unwrap();
    let state = StateDict::open(&checkpoint).unwrap();
    assert_eq!(detect_arch(&state).unwrap(), EncoderArch::VitB);
    assert_eq!(decoder_weights(&state).unwrap().len(), 137);
    for size in [224, 512] {
        let name = format!("embed_{size}");
        let encoder = ImageEncoder::load(&state, EncoderArch::VitB, size, &device::device()).unwrap();
        let pixels: Vec<f32> = rule_values(&name, size * size).into_iter().map(|u| (u + 1.0) / 2.0).collect();
        let grey = Tensor::from_vec(pixels, (1, 1, size, size), &Device::Cpu).unwrap();
        let tensors = candle_core::safetensors::load(golden(format!("{name}.safetensors")), &Device::Cpu).unwrap();
        let want = &tensors["image_embeddings"];
        let error = relative_error(&encoder.forward(&grey).unwrap(), want);
        println!("{name}: {error:.2e}");
        assert!(error < 1e-5, "{name}, grey: {error}");
        if size == 224 {
            let colour = grey.repeat((1, 3, 1, 1)).unwrap();
            let error = relative_error(&encoder.forward(&colour).unwrap(), want);
            assert!(error < 1e-5, "{name}, three channels: {error}");
        }
    }
}
