//! Each choice beyond the paper (side networks, gates, skips, neighbours, ladders, trained tokens and hypernetworks) against PyTorch,
//! torchvision and timm: forward passes, loss, every gradient, batch norm's running statistics (`data/side_networks.json`, which
//! `data/make_side_networks.py` writes).

mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/model.rs"]
mod model;
#[path = "common/summary.rs"]
mod summary;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use common::{rule_values, rule_weight};
use sam_ladder_ops::image::bicubic::resize_bicubic_antialiased;
use sam_ladder_schemas::rungs::Rungs;
use sam_ladder_schemas::train::{Arm, GateKind, SideNetworkKind};
use sam_ladder_schemas::train_choices::DecoderKind;
use sam_ladder_train::ladder_loss;
use sam_ladder_train::model::{LadderSam, ModelConfig, ModelWeights, OfSam};
use summary::{Summary, assert_summary};

/// Norm of the difference over the norm, float32 against PyTorch's float64.
const FORWARD_F32: f64 = 1e-5;
const GRADIENT_F32: f64 = 1e-4;
const SIZE: usize = 48;

#[derive(serde::Deserialize)]
struct Expected {
    /// By the grid's side: timm's resized table of positions.
    positions: BTreeMap<usize, Summary>,
    cases: BTreeMap<String, Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    /// Name of the inputs.
    inputs: String,
    choice: Choice,
    loss: f64,
    cnn_embeddings: Summary,
    low_res_logits: Summary,
    /// The logits by the running statistics.
    evaluated: Summary,
    gradients: BTreeMap<String, Summary>,
    /// Running statistics.
    after: BTreeMap<String, Summary>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Choice {
    arm: Option<Arm>,
    decoder: DecoderKind,
    neighbours: u32,
    ladder: Option<Rungs>,
    side_network: SideNetworkKind,
    gate: GateKind,
    tokens: bool,
    hypernetworks: bool,
    embed_channels: Option<usize>,
}

fn expected() -> Expected {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/side_networks.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn build(choice: &Choice) -> (ModelConfig, LadderSam) {
    let config = ModelConfig {
        side_network: choice.side_network,
        gate: choice.gate,
        decoder: choice.decoder,
        neighbours: choice.neighbours > 0,
        embed_channels: choice.embed_channels.unwrap_or(256),
        ladder: choice.ladder,
        train_mask_tokens: choice.tokens,
        train_hypernetworks: choice.hypernetworks,
        ..ModelConfig::published(SIZE, 9, choice.arm.unwrap_or(Arm::Full))
    };
    let weights = ModelWeights::expected(&config).into_iter().map(|(name, shape)| {
        let values = match (name.as_str(), choice.gate) {
            // The rule's only α is 0; a gate per channel needs different values.
            ("sam.alpha", GateKind::Channel) => rule_values("gate.alpha", 256),
            // And so do the rungs.
            (name, _) if name.starts_with("CNN_encoder.ladder.") && name.ends_with(".alpha") => {
                rule_values(name, 1).into_iter().map(|u| 2.0 * u).collect()
            }
            _ => rule_weight(name.strip_prefix("sam.").unwrap_or(&name), &shape),
        };
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        // A bottleneck's last norm, like a basic block's in the rule, is a quarter, so that rounding does not grow from block to block.
        let quartered = name.contains(".bn3.") && (name.ends_with("weight") || name.ends_with("bias"));
        let tensor = if quartered { (tensor / 4.0).unwrap() } else { tensor };
        let tensor = if name.ends_with("num_batches_tracked") { tensor.to_dtype(DType::I64).unwrap() } else { tensor };
        (name, tensor)
    });
    let model = LadderSam::new(&config, &ModelWeights(weights.collect()), &device::device()).unwrap();
    (config, model)
}

fn check(case: &str) {
    let expected = &expected().cases[case];
    let mut batch = model::rule_batch_of(&expected.inputs, 2, SIZE).unwrap();
    if expected.choice.decoder == DecoderKind::SkipsHalf {
        batch.labels = model::twice(&batch.labels).unwrap();
    }
    let (channels, grid) = (expected.choice.embed_channels.unwrap_or(256), SIZE / 16);
    if expected.choice.neighbours > 0 || channels != 256 {
        let shape = match expected.choice.neighbours {
            0 => vec![2, channels, grid, grid],
            _ => vec![2, 3, channels, grid, grid],
        };
        let values = rule_values(&format!("{}.embeddings", expected.inputs), shape.iter().product());
        batch.embeddings = Tensor::from_vec(values, shape, &device::device()).unwrap();
    }
    let rungs = expected.choice.ladder.map(|rungs| {
        let dims = [2, rungs.count(), rungs.channels(), SIZE / 16, SIZE / 16];
        let values = rule_values(&format!("{}.rungs", expected.inputs), dims.iter().product());
        Tensor::from_vec(values, &dims[..], &device::device()).unwrap()
    });
    let of_sam = OfSam { embeddings: &batch.embeddings, rungs: rungs.as_ref() };
    let (_, model) = build(&expected.choice);
    let evaluated = model.forward(&batch.images, of_sam).unwrap();
    assert_summary(case, "evaluated", &evaluated, &expected.evaluated, FORWARD_F32);
    let cnn = build(&expected.choice).1.cnn_embeddings(&batch.images, rungs.as_ref()).unwrap();
    assert_summary(case, "cnn_embeddings", &cnn, &expected.cnn_embeddings, FORWARD_F32);

    let pass = model.forward_train(&batch.images, of_sam).unwrap();
    assert_summary(case, "low_res_logits", &pass.low_res_logits, &expected.low_res_logits, FORWARD_F32);
    let loss = ladder_loss(&pass.low_res_logits, &batch.labels, 9, 0.8).unwrap();
    assert!((f64::from(loss.read().unwrap()[0]) / expected.loss - 1.0).abs() < FORWARD_F32);
    let gradients = pass.backward(loss.gradient).unwrap();
    // Without x_sam there is nothing to mix.
    let used: Vec<_> =
        model.trainable().iter().filter(|(name, _)| expected.choice.arm.is_none() || name != "sam.alpha").collect();
    assert_eq!(used.len(), expected.gradients.len());
    for (name, var) in used {
        let name = name.strip_prefix("sam.").unwrap_or(name);
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
        assert_eq!(gradient.dims(), var.dims());
        assert_summary(case, name, gradient, &expected.gradients[name], GRADIENT_F32);
    }
    let mut compared = 0;
    for (name, tensor) in model.state_dict().unwrap() {
        if let Some(expected) = expected.after.get(&name) {
            assert_summary(case, &name, &tensor, expected, FORWARD_F32);
            compared += 1;
        }
    }
    assert_eq!(compared, expected.after.len());
}

#[test]
fn a_gate_of_channels_equals_pytorch() {
    check("channel");
}

#[test]
fn a_gate_of_pixels_equals_pytorch() {
    check("pixel");
}

#[test]
fn trained_tokens_equal_pytorch() {
    check("tokens");
}

#[test]
fn trained_hypernetworks_equal_pytorch() {
    check("hypernetworks");
}

#[test]
fn resnet34_equals_torchvision() {
    check("resnet34");
}

#[test]
fn resnet50_equals_torchvision() {
    check("resnet50");
}

#[test]
fn vit_tiny_equals_timm() {
    check("vit-tiny");
}

#[test]
fn neighbours_equal_pytorch() {
    check("neighbours");
}

#[test]
fn a_projection_of_other_embeddings_equals_pytorch() {
    check("wide");
    check("wide-neighbours");
}

#[test]
fn a_ladder_equals_pytorch() {
    check("ladder");
}

#[test]
fn a_ladder_as_wide_as_its_stage_equals_pytorch() {
    check("ladder-wide");
}

#[test]
fn a_ladder_with_skips_and_neighbours_equals_pytorch() {
    check("ladder-resnet50");
}

#[test]
fn a_ladder_of_vit_tiny_equals_pytorch() {
    check("ladder-vit-tiny");
}

#[test]
fn skips_to_the_decoder_equal_pytorch() {
    check("skips");
}

#[test]
fn skips_of_a_bottleneck_network_without_sam_equal_pytorch() {
    check("skips-resnet50");
}

#[test]
fn logits_at_half_the_image_equal_pytorch() {
    check("skips-half");
}

#[test]
fn logits_at_half_the_image_with_a_bottleneck_network_equal_pytorch() {
    check("skips-half-resnet50");
}

#[test]
fn positions_are_resized_as_by_timm() -> Result<()> {
    let table = Tensor::from_vec(rule_values("pos_embed", 197 * 192), (197, 192), &Device::Cpu)?;
    let grid = table.narrow(0, 1, 196)?.t()?.flatten_all()?.to_vec1::<f32>()?; // [192, 14, 14]
    for (side, expected) in expected().positions {
        let resized = resize_bicubic_antialiased(&grid, [14, 14], [side, side]);
        let resized = Tensor::from_vec(resized, (192, side * side), &Device::Cpu)?.t()?.contiguous()?;
        let resized = Tensor::cat(&[&table.narrow(0, 0, 1)?, &resized], 0)?;
        assert_summary("positions", "resized", &resized, &expected, 1e-6);
    }
    Ok(())
}
