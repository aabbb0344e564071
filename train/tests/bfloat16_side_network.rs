//! Side networks whose activations are bfloat16 on the CPU, next to the same in float32.

use candle_core::{DType, Device, Result, Tensor, Var};
use sam_ladder_ops::F32Math;
use sam_ladder_schemas::rungs::Rungs;
use sam_ladder_schemas::train::{Arm, SideNetworkKind};
use sam_ladder_schemas::train_choices::DecoderKind;
use sam_ladder_train::model::{LadderSam, ModelConfig, OfSam};

#[path = "../examples/made_up/mod.rs"]
mod made_up;

use made_up::noise;

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A model on the CPU whose side network has bfloat16 activations takes and gives float32 everywhere else: with rungs, a projection and every skip, all
/// gradients have the direction that float32's have.
#[test]
fn activations_in_bfloat16_stay_in_the_side_network() -> Result<()> {
    let (size, grid) = (128, 8);
    let random = |shape: &[usize], seed| Tensor::from_vec(noise(shape.iter().product(), seed), shape, &Device::Cpu);
    let (images, embeddings) = (random(&[2, 1, size, size], 1)?, random(&[2, 256, grid, grid], 2)?);
    // Rounding turns gradients the more, the deeper a network with random weights is; a cosine of numbers that have nothing to do with each other is 0.
    for (side_network, decoder, channels, least) in [
        (SideNetworkKind::Resnet18, DecoderKind::SkipsHalf, 256, 0.95),
        (SideNetworkKind::Resnet34, DecoderKind::Plain, 64, 0.7),
        (SideNetworkKind::Resnet50, DecoderKind::Skips, 64, 0.2),
    ] {
        let ladder = Rungs::new(&[2, 5, 8, 11], channels);
        let exact = ModelConfig { side_network, decoder, ladder, ..ModelConfig::published(size, 9, Arm::Full) };
        let rungs = random(&[2, 4, channels, grid, grid], 5)?;
        let of_sam = OfSam { embeddings: &embeddings, rungs: Some(&rungs) };
        let all = made_up::weights(&exact).unwrap();
        let passed = |math: F32Math| -> Result<_> {
            let model = LadderSam::new(&ModelConfig { math, ..exact }, &all, &Device::Cpu).unwrap();
            let before = model.forward(&images, of_sam)?;
            let pass = model.forward_train(&images, of_sam)?;
            let logits = pass.low_res_logits.clone();
            let found = pass.backward(random(logits.dims(), 6)?)?;
            let of = |(name, var): &(String, Var)| (name.clone(), values(found.get(var).unwrap()));
            Ok((before, logits, model.trainable().iter().map(of).collect::<Vec<_>>()))
        };
        let ((before, logits, gradients), (near_before, near_logits, near)) = (passed(F32Math::Exact)?, passed(F32Math::Bf16)?);
        for (exact, near) in [(&before, &near_before), (&logits, &near_logits)] {
            assert_eq!(near.dtype(), DType::F32);
            let cosine = cosine(&values(exact), &values(near));
            assert!(cosine > 0.995, "{side_network:?}: logits have a cosine of {cosine}");
        }
        for ((name, exact), (_, near)) in gradients.iter().zip(&near) {
            let cosine = cosine(exact, near);
            // That of a gate is one number, a sum that may be near zero.
            assert!(exact.len() == 1 || cosine > least, "{side_network:?}: {name}'s gradients have a cosine of {cosine}");
        }
    }
    Ok(())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
