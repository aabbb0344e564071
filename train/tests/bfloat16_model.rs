//! Models whose activations are bfloat16 on the CPU, next to the same in float32.

use candle_core::{DType, Device, Result, Tensor, Var};
use sam_ladder_ops::to_format;
use sam_ladder_schemas::rungs::Rungs;
use sam_ladder_schemas::train::{Arm, GateKind, SideNetworkKind};
use sam_ladder_schemas::train_choices::DecoderKind;
use sam_ladder_train::ladder_loss;
use sam_ladder_train::model::{LadderSam, ModelConfig, OfSam};

#[path = "../examples/made_up/mod.rs"]
mod made_up;

use made_up::noise;

const SIZE: usize = 128;
const GRID: usize = SIZE / 16;

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Random numbers that both formats represent exactly.
fn random(shape: &[usize], seed: u64) -> Result<Tensor> {
    let values = Tensor::from_vec(noise(shape.iter().product(), seed), shape, &Device::Cpu)?;
    to_format(&to_format(&values, DType::BF16)?, DType::F32)
}

/// Logits by the running statistics and by the batch's, and the gradients of all that is trained.
struct Passed {
    before: Tensor,
    logits: Tensor,
    gradients: Vec<(String, Tensor)>,
}

fn passed(config: &ModelConfig, dtype: DType) -> Result<Passed> {
    let channels = config.ladder.map_or(0, |rungs| rungs.channels());
    let slices: &[usize] = if config.neighbours { &[3] } else { &[] };
    let of = |shape: &[usize], seed| to_format(&random(shape, seed)?, dtype);
    let (images, embeddings) = (of(&[2, 1, SIZE, SIZE], 1)?, of(&[&[2][..], slices, &[256, GRID, GRID]].concat(), 2)?);
    let rungs = config.ladder.map(|_| of(&[2, 4, channels, GRID, GRID], 5)).transpose()?;
    let of_sam = OfSam { embeddings: &embeddings, rungs: rungs.as_ref() };
    let model = LadderSam::new(config, &made_up::weights(config).unwrap(), &Device::Cpu).unwrap();
    let before = model.forward(&images, of_sam)?;
    let pass = model.forward_train(&images, of_sam)?;
    let logits = pass.low_res_logits.clone();
    let side = logits.dim(2)?;
    let labels = noise(2 * side * side, 6).iter().map(|x| ((x + 1.0) * 4.5) as u8).collect::<Vec<_>>();
    let loss = ladder_loss(&logits, &Tensor::from_vec(labels, (2, side, side), &Device::Cpu)?, 9, 0.8)?;
    assert_eq!(loss.gradient.dtype(), dtype);
    let found = pass.backward(loss.gradient)?;
    let of = |(name, var): &(String, Var)| (name.clone(), found.get(var).unwrap().clone());
    Ok(Passed { before, logits, gradients: model.trainable().iter().map(of).collect() })
}

/// Runs each gate, decoder and residual network at least once, with rungs, neighbours and trained tokens. Gradients must have about float32's norm and, on
/// average, its direction. This tests the wiring; the golden step tests the accuracy.
#[test]
fn every_model_in_bfloat16_follows_the_one_in_float32() -> Result<()> {
    use DecoderKind::{Plain, Skips, SkipsHalf};
    use SideNetworkKind::{Resnet18, Resnet34, Resnet50};
    // The deeper a network with random weights, the more rounding changes the direction of its gradients. The mean cosine of unrelated gradients is 0.
    for (side_network, gate, decoder, channels, all_options, least_cosine) in [
        (Resnet18, GateKind::Scalar, SkipsHalf, 256, false, 0.95),
        (Resnet18, GateKind::Pixel, Plain, 0, true, 0.95),
        (Resnet34, GateKind::Channel, Plain, 64, true, 0.8),
        (Resnet50, GateKind::Scalar, Skips, 64, false, 0.3),
    ] {
        let config = ModelConfig {
            side_network,
            gate,
            decoder,
            ladder: Rungs::new(&[2, 5, 8, 11], channels).filter(|_| channels > 0),
            neighbours: all_options,
            train_mask_tokens: all_options,
            train_hypernetworks: all_options,
            ..ModelConfig::published(SIZE, 9, Arm::Full)
        };
        let (exact, near) = (passed(&config, DType::F32)?, passed(&config, DType::BF16)?);
        for (exact, near) in [(&exact.before, &near.before), (&exact.logits, &near.logits)] {
            assert_eq!(near.dtype(), DType::BF16);
            let cosine = cosine(&values(exact), &values(near));
            assert!(cosine > 0.995, "{side_network:?}: logits have a cosine of {cosine}");
        }
        let mut cosines = Vec::new();
        for ((name, exact), (_, near)) in exact.gradients.iter().zip(&near.gradients) {
            // That of a gate's α or bias is one number, a sum that may be near zero.
            if exact.elem_count() > 1 {
                let (exact, near) = (values(exact), values(near));
                let ratio = (dot(&near, &near) / dot(&exact, &exact)).sqrt();
                assert!((0.7..1.4).contains(&ratio), "{side_network:?}, {gate:?}: {name}'s gradient is {ratio} times as large");
                cosines.push(cosine(&exact, &near));
            }
        }
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        assert!(mean > least_cosine, "{side_network:?}, {gate:?}: gradients have a mean cosine of {mean}");
    }
    Ok(())
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
