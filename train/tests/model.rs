//! Which tensors are trained, which are kept, and what each arm of the ablation computes.

use std::collections::HashSet;

use candle_core::{DType, Device, Result, Tensor};
use sam_ladder_schemas::rungs::Rungs;
use sam_ladder_schemas::train::{Arm, GateKind, OptimizerKind, SideNetworkKind};
use sam_ladder_schemas::train_choices::DecoderKind;
use sam_ladder_train::model::{LadderSam, ModelConfig, ModelError, ModelWeights, OfSam, upsample_masks};
use sam_ladder_train::{Optimizer, ladder_loss};

#[path = "../examples/made_up/mod.rs"]
mod made_up;

use made_up::noise;

const SIZE: usize = 32;

fn config(arm: Arm) -> ModelConfig {
    ModelConfig::published(SIZE, 9, arm)
}

fn weights(config: &ModelConfig) -> ModelWeights {
    made_up::weights(config).unwrap()
}

fn model(arm: Arm) -> LadderSam {
    LadderSam::new(&config(arm), &weights(&config(arm)), &Device::Cpu).unwrap()
}

/// Images, embeddings, labels for a batch of two.
fn batch() -> Result<(Tensor, Tensor, Tensor)> {
    let (grid, low) = (SIZE / 16, SIZE / 4);
    let images = Tensor::from_vec(noise(2 * SIZE * SIZE, 1), (2, 1, SIZE, SIZE), &Device::Cpu)?;
    let embeddings = Tensor::from_vec(noise(2 * 256 * grid * grid, 2), (2, 256, grid, grid), &Device::Cpu)?;
    let labels: Vec<u8> = noise(2 * low * low, 3).iter().map(|x| ((x + 1.0) * 4.5) as u8).collect();
    Ok((images, embeddings, Tensor::from_vec(labels, (2, low, low), &Device::Cpu)?))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// Logits, and the gradient of the CNN's first weight, `[64, 3, 7, 7]`.
fn stem_gradient(images: &Tensor) -> Result<(Vec<f32>, Tensor)> {
    let model = model(Arm::CnnOnly);
    let (_, embeddings, labels) = batch()?;
    let pass = model.forward_train(images, &embeddings)?;
    let (logits, loss) = (values(&pass.low_res_logits), ladder_loss(&pass.low_res_logits, &labels, 9, 0.8)?);
    let gradients = pass.backward(loss.gradient)?;
    let (_, stem) = model.trainable().iter().find(|(name, _)| name == "CNN_encoder.conv1.weight").unwrap();
    Ok((logits, gradients.get(stem).unwrap().clone()))
}

fn assert_close(what: &str, got: &[f32], want: &[f32]) {
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let difference = got.iter().zip(want).fold(0f32, |m, (g, w)| m.max((g - w).abs()));
    assert!(got.len() == want.len() && difference <= 1e-4 * largest, "{what}: {difference} of {largest}");
}

#[test]
fn one_channel_is_repeated_to_three_and_two_are_padded_with_zeros() -> Result<()> {
    let grey = batch()?.0;
    let (logits, gradient) = stem_gradient(&grey)?;
    let (repeated, of_three) = stem_gradient(&grey.expand((2, 3, SIZE, SIZE))?.contiguous()?)?;
    assert_close("logits of grey images", &logits, &repeated);
    assert_close("gradient of grey images", &values(&gradient), &values(&of_three));

    let two = Tensor::from_vec(noise(2 * 2 * SIZE * SIZE, 5), (2, 2, SIZE, SIZE), &Device::Cpu)?;
    let (logits, gradient) = stem_gradient(&two)?;
    let (padded, of_three) = stem_gradient(&two.pad_with_zeros(1, 0, 1)?)?;
    assert_close("logits of two channels", &logits, &padded);
    assert_close("gradient of two channels", &values(&gradient), &values(&of_three));
    assert!(values(&gradient.narrow(1, 2, 1)?).iter().all(|&g| g == 0.0));
    assert!(values(&gradient.narrow(1, 1, 1)?).iter().any(|&g| g != 0.0));

    let four = Tensor::zeros((2, 4, SIZE, SIZE), DType::F32, &Device::Cpu)?;
    assert!(model(Arm::Full).forward(&four, &batch()?.1).is_err());
    Ok(())
}

#[test]
fn exactly_the_cnn_alpha_and_output_upscaling_are_trained() {
    for arm in [Arm::Full, Arm::CnnOnly, Arm::SamOnly] {
        let model = model(arm);
        let trained: HashSet<String> = model.trainable().iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(trained.len(), model.trainable().len());
        let buffer = |name: &str| ["running_mean", "running_var", "num_batches_tracked"].iter().any(|end| name.ends_with(end));
        let expected: HashSet<String> = ModelWeights::expected(&config(arm))
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| {
                name == "sam.alpha" || name.contains(".output_upscaling.") || (name.starts_with("CNN_encoder.") && !buffer(name))
            })
            .collect();
        assert_eq!(trained, expected);
        assert!(!trained.iter().any(|name| name.contains("layer4") || name.contains(".fc.")));
    }
}

#[test]
fn each_option_trains_what_it_says_in_addition() {
    let published = config(Arm::Full);
    let trained = |config: &ModelConfig| -> HashSet<String> {
        let model = LadderSam::new(config, &weights(config), &Device::Cpu).unwrap();
        let state: Vec<String> = model.state_dict().unwrap().into_iter().map(|(name, _)| name).collect();
        let expected: Vec<String> = ModelWeights::expected(config).into_iter().map(|(name, _)| name).collect();
        assert_eq!(state, expected);
        model.trainable().iter().map(|(name, _)| name.clone()).collect()
    };
    let base = trained(&published);
    let gained = |config: ModelConfig| -> Vec<String> {
        let now = trained(&config);
        let mut gained: Vec<String> = now.difference(&base).cloned().collect();
        gained.sort();
        let lost: Vec<&String> = base.difference(&now).filter(|name| !name.starts_with("CNN_encoder.")).collect();
        assert!(lost.is_empty() || (config.gate == GateKind::Pixel && lost == ["sam.alpha"]), "{lost:?}");
        gained
    };
    assert!(gained(ModelConfig { gate: GateKind::Channel, ..published }).is_empty());
    assert_eq!(gained(ModelConfig { gate: GateKind::Pixel, ..published }), ["sam.alpha.bias", "sam.alpha.weight"]);
    assert_eq!(gained(ModelConfig { train_mask_tokens: true, ..published }), ["sam.mask_decoder.mask_tokens.weight"]);
    let hypernetworks = gained(ModelConfig { train_hypernetworks: true, ..published });
    assert_eq!(hypernetworks.len(), 9 * 3 * 2);
    assert!(hypernetworks.iter().all(|name| name.starts_with("sam.mask_decoder.output_hypernetworks_mlps.")));
    let skips = ["sam.mask_decoder.conv_s0.weight", "sam.mask_decoder.conv_s1.weight"];
    assert_eq!(gained(ModelConfig { decoder: DecoderKind::Skips, ..published }), skips);
    assert_eq!(gained(ModelConfig { neighbours: true, ..published }), ["sam.neighbours.weight"]);
    let projection = ["sam.embedding_projection.bias", "sam.embedding_projection.weight"];
    assert_eq!(gained(ModelConfig { embed_channels: 384, ..published }), projection);
    let names = |channels| {
        let ladder = Rungs::new(&[2, 11], channels);
        gained(ModelConfig { ladder, ..published })
    };
    let of =
        |block: u32| ["alpha", "projection.bias", "projection.weight"].map(|end| format!("CNN_encoder.ladder.{block}.{end}"));
    assert_eq!(names(64), [of(11), of(2)].concat());
    // As wide as layer3: nothing to project.
    assert_eq!(names(256), [11, 2].map(|block| format!("CNN_encoder.ladder.{block}.alpha")));
    // Every tensor of a side network is trained except the statistics of its batch norms.
    for side_network in [SideNetworkKind::Resnet34, SideNetworkKind::Resnet50, SideNetworkKind::VitTiny] {
        let config = ModelConfig { side_network, ..published };
        let all = ModelWeights::expected(&config).into_iter().map(|(name, _)| name);
        let buffer = |name: &str| name.contains(".running_") || name.ends_with("num_batches_tracked");
        let expected: HashSet<String> = all.filter(|name| name.starts_with("CNN_encoder.") && !buffer(name)).collect();
        let found: HashSet<String> = trained(&config).into_iter().filter(|name| name.starts_with("CNN_encoder.")).collect();
        assert_eq!(found, expected);
        let projected = found.contains("CNN_encoder.projection.weight");
        assert_eq!(projected, side_network != SideNetworkKind::Resnet34);
    }
}

#[test]
fn every_gate_starts_where_the_published_one_does() -> Result<()> {
    let (images, embeddings, _) = batch()?;
    let published_config = config(Arm::Full);
    let logits = |gate: GateKind| {
        let config = ModelConfig { gate, ..published_config };
        let mut weights = weights(&published_config);
        weights.0.remove("sam.alpha");
        for (name, shape) in ModelWeights::expected(&config).into_iter().filter(|(name, _)| name.starts_with("sam.alpha")) {
            weights.0.insert(name, Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
        }
        let model = LadderSam::new(&config, &weights, &Device::Cpu).unwrap();
        let logits = values(&model.forward(&images, &embeddings).unwrap());
        assert_eq!((model.alpha().unwrap(), model.gate().unwrap()), (0.0, 0.5));
        logits
    };
    let published = logits(GateKind::Scalar);
    assert_eq!(published, logits(GateKind::Channel));
    assert_eq!(published, logits(GateKind::Pixel));
    Ok(())
}

/// Hand-made weights: of a slice only, the model is the one without neighbours; of the slice before only, the one of that slice; and otherwise that
/// of the sums by channel.
#[test]
fn neighbours_are_summed_by_their_weights() -> Result<()> {
    let (images, own, _) = batch()?;
    let grid = SIZE / 16;
    let other = |seed| Tensor::from_vec(noise(2 * 256 * grid * grid, seed), (2, 256, grid, grid), &Device::Cpu);
    let (before, after) = (other(11)?, other(12)?);
    let three = Tensor::stack(&[&before, &own, &after], 1)?;
    for arm in [Arm::Full, Arm::SamOnly] {
        let plain_weights = weights(&config(arm));
        let plain = LadderSam::new(&config(arm), &plain_weights, &Device::Cpu).unwrap();
        let around = |weight: Tensor| -> Result<Vec<f32>> {
            let mut weights = plain_weights.clone();
            weights.0.insert("sam.neighbours.weight".into(), weight);
            let model = LadderSam::new(&ModelConfig { neighbours: true, ..config(arm) }, &weights, &Device::Cpu).unwrap();
            assert!(model.forward(&images, &own).is_err(), "one slice's embeddings");
            Ok(values(&model.forward(&images, &three)?))
        };
        let of_all = |weights: [f32; 3]| Tensor::new(&weights, &Device::Cpu)?.broadcast_as((256, 3))?.contiguous();
        assert_eq!(around(of_all([0.0, 1.0, 0.0])?)?, values(&plain.forward(&images, &own)?));
        assert_eq!(around(of_all([1.0, 0.0, 0.0])?)?, values(&plain.forward(&images, &before)?));
        assert_eq!(around(of_all([0.0, 0.0, 1.0])?)?, values(&plain.forward(&images, &after)?));
        // Channel c takes c/256 of the slice before, twice its own and -½ of the slice after.
        let by_channel: Vec<f32> = (0..256).flat_map(|c| [c as f32 / 256.0, 2.0, -0.5]).collect();
        let share = Tensor::from_vec((0..256).map(|c| c as f32 / 256.0).collect(), (1, 256, 1, 1), &Device::Cpu)?;
        let sum = ((before.broadcast_mul(&share)? + (&own * 2.0)?)? - (&after * 0.5)?)?;
        let found = around(Tensor::from_vec(by_channel, (256, 3), &Device::Cpu)?)?;
        assert_close("sums by channel", &found, &values(&plain.forward(&images, &sum)?));
    }
    let cnn_only = ModelConfig { neighbours: true, ..config(Arm::CnnOnly) };
    let error = LadderSam::new(&cnn_only, &weights(&cnn_only), &Device::Cpu).err().unwrap();
    assert!(matches!(error, ModelError::NoNeighbours), "{error}");
    Ok(())
}

/// Four rungs as wide as layer3, without a projection; and images, embeddings and labels.
fn ladder_inputs() -> Result<(Tensor, [Tensor; 4], Tensor, Tensor, Tensor)> {
    let (images, embeddings, labels) = batch()?;
    let grid = SIZE / 16;
    // Not negative, so that they pass a ReLU.
    let rung = |seed| Tensor::from_vec(noise(2 * 256 * grid * grid, seed), (2, 256, grid, grid), &Device::Cpu)?.abs();
    let rungs = [rung(21)?, rung(22)?, rung(23)?, rung(24)?];
    Ok((Tensor::stack(&rungs, 1)?, rungs, images, embeddings, labels))
}

/// A model with rungs after the encoder's blocks 2, 5, 8 and 11, with these α, of which a large one lets only the rung through, and a large
/// negative one nothing of it.
fn climbing(side_network: SideNetworkKind, alphas: [f32; 4], change: impl Fn(&mut ModelWeights)) -> LadderSam {
    let config = ModelConfig { ladder: Rungs::new(&[2, 5, 8, 11], 256), side_network, ..config(Arm::Full) };
    let mut all = weights(&config);
    for (block, alpha) in [2, 5, 8, 11].into_iter().zip(alphas) {
        let alpha = Tensor::new(&[alpha], &Device::Cpu).unwrap();
        all.0.insert(format!("CNN_encoder.ladder.{block}.alpha"), alpha);
    }
    change(&mut all);
    LadderSam::new(&config, &all, &Device::Cpu).unwrap()
}

/// Hand-made weights: where every block of layer3 after the first does nothing, x_cnn is what the rungs' formula makes of them, in the order of the
/// encoder's depth. Where every gate is closed, the model is the one without a ladder.
#[test]
fn rungs_are_mixed_in_the_order_of_their_depth() -> Result<()> {
    let (all, rungs, images, embeddings, _) = ladder_inputs()?;
    let of_sam = OfSam { embeddings: &embeddings, rungs: Some(&all) };
    for (network, depth) in [(SideNetworkKind::Resnet18, 2), (SideNetworkKind::Resnet34, 6)] {
        let idle = |all: &mut ModelWeights| {
            for block in 1..depth {
                for end in ["weight", "bias"] {
                    let name = format!("CNN_encoder.layer3.{block}.bn2.{end}");
                    let zeros = all.0[&name].zeros_like().unwrap();
                    all.0.insert(name, zeros);
                }
            }
        };
        // The first rung takes the place of what came before; the others have gates that differ.
        let alphas = [200.0, 0.7, -1.1, 0.3];
        let found = climbing(network, alphas, idle).cnn_embeddings(&images, Some(&all))?;
        let mut expected = rungs[0].clone();
        for (rung, alpha) in rungs[1..].iter().zip(&alphas[1..]) {
            let gate = 1.0 / (1.0 + (-f64::from(*alpha)).exp());
            expected = ((rung * gate)? + (expected * (1.0 - gate))?)?;
        }
        assert_close("x_cnn", &values(&found), &values(&expected));

        let plain_config = ModelConfig { side_network: network, ..config(Arm::Full) };
        let plain = LadderSam::new(&plain_config, &weights(&plain_config), &Device::Cpu).unwrap();
        let closed = climbing(network, [-200.0; 4], |_| ());
        assert_eq!(values(&closed.forward(&images, of_sam)?), values(&plain.forward(&images, &embeddings)?));
    }
    Ok(())
}

/// The block of layer3 after which a rung is mixed in does not reach what comes after a rung that lets nothing else through, and the next one does.
#[test]
fn each_rung_has_its_block() -> Result<()> {
    let (all, _, images, ..) = ladder_inputs()?;
    for (network, depth, places) in [(SideNetworkKind::Resnet18, 2, [0, 0, 1, 1]), (SideNetworkKind::Resnet34, 6, [0, 1, 3, 4])] {
        for (at, place) in places.into_iter().enumerate() {
            let mut alphas = [-200.0; 4];
            alphas[at] = 200.0;
            let with_other = |block: Option<usize>| -> Result<Vec<f32>> {
                let change = |all: &mut ModelWeights| {
                    if let Some(block) = block {
                        let name = format!("CNN_encoder.layer3.{block}.bn2.bias");
                        let other = (&all.0[&name] + 1.0).unwrap();
                        all.0.insert(name, other);
                    }
                };
                Ok(values(&climbing(network, alphas, change).cnn_embeddings(&images, Some(&all))?))
            };
            let expected = with_other(None)?;
            let change = |block: usize| -> Result<f32> {
                let pairs = with_other(Some(block))?.into_iter().zip(expected.iter().copied()).collect::<Vec<_>>();
                Ok(pairs.into_iter().fold(0.0, |most: f32, (a, b)| most.max((a - b).abs())))
            };
            // Rounding only, in b + 1·(a - b).
            assert!(change(place)? < 1e-4, "rung {at}: {}", change(place)?);
            if place + 1 < depth {
                assert!(change(place + 1)? > 0.1, "rung {at}: {}", change(place + 1)?);
            }
        }
    }
    Ok(())
}

#[test]
fn rungs_that_are_missing_superfluous_or_others_are_refused() -> Result<()> {
    let (all, _, images, embeddings, _) = ladder_inputs()?;
    let climbing = climbing(SideNetworkKind::Resnet18, [0.0; 4], |_| ());
    let plain = model(Arm::Full);
    let attempt = |model: &LadderSam, rungs: Option<&Tensor>| {
        model.forward(&images, OfSam { embeddings: &embeddings, rungs }).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(attempt(&climbing, None).contains("takes rungs"));
    assert!(attempt(&plain, Some(&all)).contains("takes no rungs"));
    assert!(attempt(&climbing, Some(&all.narrow(1, 0, 3)?)).contains("expected 4 rungs of 256 channels"));
    assert_eq!(climbing.rung_gates()?, [0.5; 4]);
    assert!(plain.rung_gates()?.is_empty());
    for arm in [Arm::CnnOnly, Arm::SamOnly] {
        let config = ModelConfig { ladder: Rungs::new(&[2], 64), ..config(arm) };
        let error = LadderSam::new(&config, &weights(&config), &Device::Cpu).err().unwrap();
        assert!(matches!(error, ModelError::NoLadder), "{error}");
    }
    Ok(())
}

/// Skips start at zero: then logits and gradients are those of the plain decoder, and only the skips' own are there in addition.
#[test]
fn skips_begin_as_the_plain_decoder() -> Result<()> {
    let (images, embeddings, labels) = batch()?;
    for (arm, side_network) in [(Arm::Full, SideNetworkKind::Resnet18), (Arm::CnnOnly, SideNetworkKind::Resnet50)] {
        let plain_config = ModelConfig { side_network, ..config(arm) };
        let skips_config = ModelConfig { decoder: DecoderKind::Skips, ..plain_config };
        let plain_weights = weights(&plain_config);
        let mut skips_weights = plain_weights.clone();
        for (name, shape) in ModelWeights::expected(&skips_config).into_iter().filter(|(name, _)| name.contains(".conv_s")) {
            skips_weights.0.insert(name, Tensor::zeros(shape, DType::F32, &Device::Cpu)?);
        }
        let plain = LadderSam::new(&plain_config, &plain_weights, &Device::Cpu).unwrap();
        let skips = LadderSam::new(&skips_config, &skips_weights, &Device::Cpu).unwrap();
        assert_eq!(values(&plain.forward(&images, &embeddings)?), values(&skips.forward(&images, &embeddings)?));
        let gradients = |model: &LadderSam| -> Result<Vec<(String, Option<Tensor>)>> {
            let pass = model.forward_train(&images, &embeddings)?;
            let loss = ladder_loss(&pass.low_res_logits, &labels, 9, 0.8)?;
            let found = pass.backward(loss.gradient)?;
            Ok(model.trainable().iter().map(|(name, var)| (name.clone(), found.get(var).cloned())).collect())
        };
        let of_plain: std::collections::HashMap<_, _> = gradients(&plain)?.into_iter().collect();
        let of_skips = gradients(&skips)?;
        assert_eq!(of_skips.len(), of_plain.len() + 2);
        for (name, gradient) in of_skips {
            match of_plain.get(&name) {
                Some(expected) => assert_eq!(gradient.as_ref().map(values), expected.as_ref().map(values), "{name}"),
                None => assert!(values(&gradient.unwrap()).iter().any(|&g| g != 0.0), "{name}"),
            }
        }
    }
    Ok(())
}

/// Both stages reach the logits, and a stage's gradient reaches what made it, also where nothing else does: layer1 through its skip only, with
/// every other way from it closed.
#[test]
fn skips_look_at_their_stages() -> Result<()> {
    let (images, embeddings, labels) = batch()?;
    let config = ModelConfig { decoder: DecoderKind::Skips, ..config(Arm::Full) };
    for (closed, kept) in [("CNN_encoder.layer2.", "layer1"), ("CNN_encoder.layer3.", "layer2")] {
        let mut weights = weights(&config);
        // What comes after the stage is zero whatever the stage is.
        for (name, tensor) in &mut weights.0 {
            if name.starts_with(closed) && tensor.rank() == 4 {
                *tensor = tensor.zeros_like()?;
            }
        }
        let model = LadderSam::new(&config, &weights, &Device::Cpu).unwrap();
        let other = model.forward(&(&images * 0.5)?, &embeddings)?;
        assert_ne!(values(&model.forward(&images, &embeddings)?), values(&other), "{kept}");
        let pass = model.forward_train(&images, &embeddings)?;
        let loss = ladder_loss(&pass.low_res_logits, &labels, 9, 0.8)?;
        let found = pass.backward(loss.gradient)?;
        let name = format!("CNN_encoder.{kept}.1.conv2.weight");
        let (_, var) = model.trainable().iter().find(|(other, _)| *other == name).unwrap();
        assert!(values(found.get(var).unwrap()).iter().any(|&g| g != 0.0), "{name}");
    }
    Ok(())
}

#[test]
fn skips_from_nowhere_are_refused() {
    let published = config(Arm::Full);
    for config in [
        ModelConfig { decoder: DecoderKind::Skips, arm: Arm::SamOnly, ..published },
        ModelConfig { decoder: DecoderKind::Skips, side_network: SideNetworkKind::VitTiny, ..published },
    ] {
        let error = LadderSam::new(&config, &weights(&config), &Device::Cpu).err().unwrap();
        assert!(matches!(error, ModelError::NoStages), "{error}");
    }
}

/// What a GPU's steps record of a gate: α and, unless it is one number, its mean.
#[test]
fn a_gates_numbers_are_its_alpha_and_its_mean() -> Result<()> {
    let (images, embeddings, _) = batch()?;
    for (gate, count) in [(GateKind::Scalar, 1), (GateKind::Channel, 2), (GateKind::Pixel, 2)] {
        let config = ModelConfig { gate, ..config(Arm::Full) };
        let mut weights = weights(&config);
        // Alphas of a gate per channel from -2 to 2; a gate per pixel sees only the embeddings' channel 0, and its bias is ½.
        let alphas: Vec<f32> = (0..256).map(|c| c as f32 / 64.0 - 2.0).collect();
        let mut of_pixel = vec![0f32; 512];
        of_pixel[0] = 3.0;
        for (name, values) in [("sam.alpha", alphas), ("sam.alpha.weight", of_pixel), ("sam.alpha.bias", vec![0.5])] {
            if let Some(tensor) = weights.0.get_mut(name) {
                let shape = tensor.shape().clone();
                *tensor = Tensor::from_vec(values[..shape.elem_count()].to_vec(), shape, &Device::Cpu)?;
            }
        }
        let model = LadderSam::new(&config, &weights, &Device::Cpu).unwrap();
        model.forward(&images, &embeddings)?;
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let mean = |of: Vec<f64>| of.iter().sum::<f64>() / of.len() as f64;
        let expected = match gate {
            GateKind::Scalar => [-2.0, sigmoid(-2.0)],
            GateKind::Channel => {
                let alpha = |c: u32| f64::from(c) / 64.0 - 2.0;
                [mean((0..256).map(alpha).collect()), mean((0..256).map(|c| sigmoid(alpha(c))).collect())]
            }
            GateKind::Pixel => {
                let seen = values(&embeddings.narrow(1, 0, 1)?);
                [0.5, mean(seen.iter().map(|&x| sigmoid(3.0 * f64::from(x) + 0.5)).collect())]
            }
        };
        let numbers = values(&Tensor::cat(&model.gate_numbers()?, 0)?);
        assert_eq!(numbers.len(), count);
        let close = |found: f32, expected: f64| (f64::from(found) - expected).abs() < 1e-6;
        assert!(
            numbers.iter().zip(expected).all(|(&found, expected)| close(found, expected)),
            "{gate:?}: {numbers:?}, {expected:?}"
        );
        assert!(close(model.alpha()?, expected[0]) && close(model.gate()?, expected[1]), "{gate:?}");
    }
    Ok(())
}

#[test]
fn each_arm_has_gradients_for_what_it_runs() -> Result<()> {
    let (images, embeddings, labels) = batch()?;
    for arm in [Arm::Full, Arm::CnnOnly, Arm::SamOnly] {
        let model = model(arm);
        let pass = model.forward_train(&images, &embeddings)?;
        let loss = ladder_loss(&pass.low_res_logits, &labels, 9, 0.8)?;
        let gradients = pass.backward(loss.gradient)?;
        for (name, var) in model.trainable() {
            let expected = match arm {
                Arm::Full => true,
                Arm::CnnOnly => name != "sam.alpha",
                Arm::SamOnly => name.contains("output_upscaling"),
            };
            assert_eq!(gradients.get(var).is_some(), expected, "{name} in {arm:?}");
        }
    }
    Ok(())
}

#[test]
fn arms_look_at_what_they_say() -> Result<()> {
    let (images, embeddings, _) = batch()?;
    let (other_images, other_embeddings) = ((&images * 0.5)?, (&embeddings * 0.5)?);
    for (arm, sees_images, sees_embeddings, gate) in
        [(Arm::Full, true, true, None), (Arm::CnnOnly, true, false, Some(0.0)), (Arm::SamOnly, false, true, Some(1.0))]
    {
        let model = model(arm);
        let run = |images, embeddings| values(&model.forward(images, embeddings).unwrap());
        let logits = run(&images, &embeddings);
        assert_eq!(logits != run(&other_images, &embeddings), sees_images, "{arm:?}");
        assert_eq!(logits != run(&images, &other_embeddings), sees_embeddings, "{arm:?}");
        let alpha = model.alpha()?;
        assert_eq!(model.gate()?, gate.unwrap_or(1.0 / (1.0 + (-alpha).exp())));
    }
    Ok(())
}

#[test]
fn a_step_changes_only_trained_tensors_and_running_statistics() -> Result<()> {
    let (images, embeddings, labels) = batch()?;
    let model = model(Arm::Full);
    let snapshot = || -> Vec<(String, Vec<f32>)> {
        model.state_dict().unwrap().into_iter().map(|(name, tensor)| (name, values(&tensor))).collect()
    };
    let before = snapshot();
    let names: Vec<String> = ModelWeights::expected(&config(Arm::Full)).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        before.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(),
        names,
        "the state dict lists every weight in order"
    );
    let mut optimizer = Optimizer::new(OptimizerKind::AdamW, 0.1, model.trainable())?;
    let pass = model.forward_train(&images, &embeddings)?;
    let loss = ladder_loss(&pass.low_res_logits, &labels, 9, 0.8)?;
    optimizer.step(&pass.backward(loss.gradient)?, 1e-3)?;
    let trained: HashSet<&str> = model.trainable().iter().map(|(name, _)| name.as_str()).collect();
    for ((name, before), (_, after)) in before.iter().zip(snapshot()) {
        let buffer = name.contains("running_") || name.ends_with("num_batches_tracked");
        assert_eq!(*before != after, buffer || trained.contains(name.as_str()), "{name}");
    }
    Ok(())
}

#[test]
fn evaluation_changes_nothing_and_keeps_no_graph() -> Result<()> {
    let (images, embeddings, _) = batch()?;
    let model = model(Arm::Full);
    let first = model.forward(&images, &embeddings)?;
    assert!(!first.track_op());
    assert_eq!(values(&first), values(&model.forward(&images, &embeddings)?));
    assert_eq!(first.dims(), [2, 9, SIZE / 4, SIZE / 4]);
    assert_eq!(upsample_masks(&first, SIZE)?.dims(), [2, 9, SIZE, SIZE]);
    Ok(())
}

#[test]
fn a_model_made_from_a_state_dict_is_the_same_model() -> Result<()> {
    let (images, embeddings, _) = batch()?;
    let first = model(Arm::Full);
    first.forward_train(&images, &embeddings)?;
    let weights = ModelWeights(first.state_dict()?.into_iter().collect());
    let second = LadderSam::new(&config(Arm::Full), &weights, &Device::Cpu).unwrap();
    let logits = |model: &LadderSam| values(&model.forward(&images, &embeddings).unwrap());
    assert_eq!(logits(&first), logits(&second));
    // The second model has its own storage.
    second.forward_train(&images, &embeddings)?;
    assert_ne!(logits(&first), logits(&second));
    Ok(())
}

#[test]
fn wrong_weights_are_refused_by_name() {
    let config = config(Arm::Full);
    let name = "CNN_encoder.layer2.0.downsample.0.weight";
    let refuse = |weights: ModelWeights| LadderSam::new(&config, &weights, &Device::Cpu).err().unwrap();

    let mut missing = weights(&config);
    missing.0.remove(name);
    assert!(matches!(refuse(missing), ModelError::Missing(found) if found == name));

    let mut extra = weights(&config);
    extra.0.insert("CNN_encoder.fc.bias".to_string(), Tensor::zeros(1000, DType::F32, &Device::Cpu).unwrap());
    assert!(matches!(refuse(extra), ModelError::Extra(found) if found == "CNN_encoder.fc.bias"));

    let mut shape = weights(&config);
    shape.0.insert(name.to_string(), Tensor::zeros((128, 64, 3, 3), DType::F32, &Device::Cpu).unwrap());
    let message = refuse(shape).to_string();
    assert_eq!(message, format!("weight `{name}` has shape [128, 64, 3, 3], expected [128, 64, 1, 1]"));
}

#[test]
fn impossible_settings_are_refused() {
    for (image_size, num_classes) in [(0, 9), (40, 9), (32, 1)] {
        let config = ModelConfig::published(image_size, num_classes, Arm::Full);
        assert!(matches!(
            LadderSam::new(&config, &weights(&config), &Device::Cpu),
            Err(ModelError::ImageSize(_) | ModelError::Classes(_))
        ));
    }
}
