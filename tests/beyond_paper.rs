//! Runs that go beyond the paper: other side networks and gates, skips, neighbours, trained tokens, averages over reflections and over runs.

mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/store.rs"]
mod store;
#[path = "common/train_args.rs"]
mod train_args;

use candle_core::safetensors::load;
use candle_core::{DType, Device, Tensor};
use sam_ladder_cache::{Batch, Store};
use sam_ladder_formats::rows::read_rows;
use sam_ladder_formats::state_dict::save_safetensors;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::StoreDtype;
use sam_ladder_schemas::tables::StepRow;
use sam_ladder_schemas::train::{Arm, CHECKPOINT, GateKind, RESUME_STATE, RUN_CONFIG, STEPS_TABLE, SideNetworkKind, TrainConfig};
use sam_ladder_schemas::train_choices::{DecoderKind, LadderKind};
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::run::{TrainArgs, read_record, train};
use sam_ladder_train::{CaseRequest, Ensemble, ExportArgs, RunCheckpoint, WeightSource, export, load_model, masks_of_logits};
use std::path::Path;
use store::{IMAGE_SIZE, NUM_CLASSES, SCAN_SIZE, TEST_CASE, write_store_of, write_store_with, write_store_with_rungs};
use tempfile::TempDir;
use train_args::train_args;

fn workplace(test_augment: AugmentPolicy) -> (TempDir, TrainArgs) {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store.zarr");
    write_store_with(&store, StoreDtype::F32, [AugmentPolicy::Flips, test_augment], 1, (&[], true));
    let config = TrainConfig { epochs: 1, batch_size: 3, warmup: 0, ..TrainConfig::default() };
    let args = train_args(store, folder.path().join("run"), config);
    (folder, args)
}

fn of_run(run: &Path) -> WeightSource {
    WeightSource::Run { folder: run.into(), checkpoint: RunCheckpoint::Last }
}

const CASE: CaseRequest<'static> = CaseRequest { split: Split::Test, case: TEST_CASE.0, batch_size: 2 };

/// Every choice other than the published one, in as few runs as possible.
fn choices() -> [(&'static str, TrainConfig); 6] {
    let base = TrainConfig { epochs: 1, batch_size: 3, warmup: 0, ..TrainConfig::default() };
    [
        ("vit", TrainConfig { side_network: SideNetworkKind::VitTiny, gate: GateKind::Pixel, ..base.clone() }),
        ("skips", TrainConfig { decoder: DecoderKind::Skips, ema: 0.5, ..base.clone() }),
        ("half", TrainConfig { decoder: DecoderKind::SkipsHalf, val_cases: vec!["0006".into()], ..base.clone() }),
        ("neighbours", TrainConfig { neighbours: 1, arm: Arm::SamOnly, val_cases: vec!["0006".into()], ..base.clone() }),
        ("resnet50", TrainConfig { side_network: SideNetworkKind::Resnet50, train_mask_tokens: true, ..base.clone() }),
        (
            "resnet34",
            TrainConfig {
                side_network: SideNetworkKind::Resnet34,
                gate: GateKind::Channel,
                train_hypernetworks: true,
                train_mask_tokens: true,
                ..base
            },
        ),
    ]
}

#[test]
fn every_choice_trains_resumes_in_the_same_bits_and_predicts() {
    let (folder, base) = workplace(AugmentPolicy::None);
    let store = Store::open(&base.store).unwrap();
    for (name, config) in choices() {
        let straight = TrainArgs { run: folder.path().join(name), config, ..base.clone() };
        train(&straight).unwrap();
        let mut stopped = TrainArgs { run: folder.path().join(format!("{name}-stopped")), ..straight.clone() };
        stopped.config.max_steps = Some(2);
        train(&stopped).unwrap();
        (stopped.config.max_steps, stopped.resume) = (None, true);
        train(&stopped).unwrap();
        for file in [RESUME_STATE, CHECKPOINT, STEPS_TABLE] {
            let [left, right] = [&straight.run, &stopped.run].map(|run| std::fs::read(run.join(file)).unwrap());
            assert!(left == right, "{name}: {file} differs");
        }
        assert_eq!(read_record(&straight.run).unwrap().config, straight.config);
        let rows = read_rows::<StepRow>(&straight.run.join(STEPS_TABLE)).unwrap();
        let half = rows[0].gate > 0.4 && rows[0].gate < 0.6;
        assert!(half || straight.config.arm == Arm::SamOnly, "each gate starts at a half, {}", rows[0].gate);
        let model = load_model(&of_run(&straight.run), &store, &Device::Cpu).unwrap();
        let mask = Ensemble::of_one(model).predict_case(&store, CASE, |_| ()).unwrap();
        assert_eq!(mask.shape, [TEST_CASE.1, SCAN_SIZE[0] as usize, SCAN_SIZE[1] as usize]);

        let mut other = TrainArgs { resume: true, ..straight.clone() };
        other.config.gate = GateKind::Scalar;
        if straight.config.gate != GateKind::Scalar {
            let error = train(&other).unwrap_err().to_string();
            assert!(error.contains("gate differs") && error.contains("scalar"), "{error}");
        }
    }
}

#[test]
fn only_what_the_published_code_has_is_exported() {
    let (folder, base) = workplace(AugmentPolicy::None);
    let attempt = |name: &str, change: fn(&mut TrainConfig)| {
        let mut args = TrainArgs { run: folder.path().join(name), ..base.clone() };
        args.config.max_steps = Some(0);
        change(&mut args.config);
        train(&args).unwrap();
        let (run, out) = (args.run, folder.path().join(format!("{name}.pth")));
        export(&ExportArgs { run, checkpoint: RunCheckpoint::Last, out, force: false, image_encoder: None })
    };
    // The same names and shapes, whatever was trained.
    attempt("tokens", |config| (config.train_mask_tokens, config.train_hypernetworks) = (true, true)).unwrap();
    let error = attempt("gate", |config| config.gate = GateKind::Channel).unwrap_err();
    let error = common::with_hint(&error, error.hint());
    assert!(error.contains("gate channel") && error.contains(CHECKPOINT), "{error}");
    // At the first step the skips are zero, and still weights.
    let error = attempt("skips", |config| config.decoder = DecoderKind::Skips).unwrap_err().to_string();
    assert!(error.contains("its decoder skips"), "{error}");
    load_model(&of_run(&folder.path().join("skips")), &Store::open(&base.store).unwrap(), &Device::Cpu).unwrap();
    let error = attempt("neighbours", |config| config.neighbours = 1).unwrap_err().to_string();
    assert!(error.contains("its neighbours 1"), "{error}");
    let (store, ladder) = (folder.path().join("ladder.zarr"), folder.path().join("ladder"));
    write_store_with_rungs(&store, StoreDtype::F32, [AugmentPolicy::Flips, AugmentPolicy::None], 1, &[2, 5]);
    let climbing = TrainConfig { max_steps: Some(0), ladder: LadderKind::Gated, ..base.config.clone() };
    train(&TrainArgs { store, run: ladder.clone(), config: climbing, ..base.clone() }).unwrap();
    let out = folder.path().join("ladder.pth");
    let args = ExportArgs { run: ladder, checkpoint: RunCheckpoint::Last, out, force: false, image_encoder: None };
    assert!(export(&args).unwrap_err().to_string().contains("its ladder gated"));
    export(&ExportArgs { out: folder.path().join("ladder.onnx"), ..args }).unwrap();
    let error = attempt("network", |config| config.side_network = SideNetworkKind::Resnet34).unwrap_err().to_string();
    assert!(error.contains("resnet34") && !error.contains('\n'), "{error}");
    assert!(!folder.path().join("network.pth").exists());
    // An arm that does not use its gate leaves it at zero; its model is one like any other.
    attempt("unused", |config| (config.gate, config.arm) = (GateKind::Pixel, Arm::CnnOnly)).unwrap_err();
    load_model(&of_run(&folder.path().join("unused")), &Store::open(&base.store).unwrap(), &Device::Cpu).unwrap();
    // ONNX has no published names to keep to.
    let out = folder.path().join("network.onnx");
    let args = ExportArgs {
        run: folder.path().join("network"),
        checkpoint: RunCheckpoint::Last,
        out,
        force: false,
        image_encoder: None,
    };
    assert_eq!(export(&args).unwrap().files, std::slice::from_ref(&args.out));
    let again = export(&args).unwrap_err();
    assert!(common::with_hint(&again, again.hint()).contains("--force"));
    export(&ExportArgs { force: true, ..args }).unwrap();
}

#[test]
fn a_run_of_an_older_version_resumes() {
    let (_folder, mut args) = workplace(AugmentPolicy::None);
    args.config.max_steps = Some(1);
    train(&args).unwrap();
    let path = args.run.join(RUN_CONFIG);
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let config = json["config"].as_object_mut().unwrap();
    for key in ["side_network", "gate", "train_mask_tokens", "train_hypernetworks"] {
        assert!(config.shift_remove(key).is_some());
    }
    assert!(json["store"].get("test_augment").is_none());
    std::fs::write(&path, json.to_string()).unwrap();
    assert_eq!(read_record(&args.run).unwrap().config, args.config);
    (args.config.max_steps, args.resume) = (Some(2), true);
    assert_eq!(train(&args).unwrap().steps, 2);
}

#[test]
fn a_checkpoint_of_the_publisher_starts_its_network() {
    let (folder, mut args) = workplace(AugmentPolicy::None);
    args.config.max_steps = Some(0);
    args.config.side_network = SideNetworkKind::VitTiny;
    train(&args).unwrap();
    let random = load(args.run.join(CHECKPOINT), &Device::Cpu).unwrap();
    // timm's at 224 pixels: a table of 14×14 positions, a classifier and no projection.
    let mut timm: Vec<(String, Tensor)> = random
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("CNN_encoder.")?.to_string(), (tensor + 1.0).unwrap())))
        .filter(|(name, _)| !name.starts_with("projection") && name != "pos_embed")
        .collect();
    timm.push(("pos_embed".into(), Tensor::full(0.5f32, (1, 197, 192), &Device::Cpu).unwrap()));
    timm.push(("head.weight".into(), Tensor::zeros((1000, 192), DType::F32, &Device::Cpu).unwrap()));
    let path = folder.path().join("vit_tiny.safetensors");
    save_safetensors(&path, &timm).unwrap();
    let taken = TrainArgs { run: folder.path().join("taken"), cnn_checkpoint: Some(path.clone()), ..args.clone() };
    train(&taken).unwrap();
    let taken = load(taken.run.join(CHECKPOINT), &Device::Cpu).unwrap();
    let first = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
    for name in ["blocks.3.attn.qkv.weight", "patch_embed.proj.bias", "norm.weight", "cls_token"] {
        let name = format!("CNN_encoder.{name}");
        assert_eq!(first(&taken[&name]), first(&random[&name]) + 1.0, "{name}");
    }
    let positions = &taken["CNN_encoder.pos_embed"];
    assert_eq!(positions.dims(), [1, 1 + (IMAGE_SIZE / 16).pow(2), 192]);
    let positions = positions.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(positions.iter().all(|x| (x - 0.5).abs() < 1e-6));
    let name = "CNN_encoder.projection.weight";
    assert_eq!(first(&taken[name]), first(&random[name]), "the projection comes of the seed");

    // A checkpoint of another network is refused by its keys.
    let mut other = TrainArgs { run: folder.path().join("other"), cnn_checkpoint: Some(path), ..args };
    other.config.side_network = SideNetworkKind::Resnet50;
    let error = train(&other).unwrap_err().to_string();
    assert!(error.contains("vit_tiny.safetensors") && error.contains("blocks.0"), "{error}");
}

#[test]
fn averages_are_those_of_the_reflected_logits_and_of_the_probabilities() {
    let (folder, mut first) = workplace(AugmentPolicy::Flips);
    first.config.epochs = 2;
    let mut second = TrainArgs { run: folder.path().join("second"), ..first.clone() };
    second.config.seed = 5;
    second.config.gate = GateKind::Pixel;
    train(&first).unwrap();
    train(&second).unwrap();
    let store = Store::open(&first.store).unwrap();
    let [one, two] = [&first, &second].map(|args| of_run(&args.run));
    let ensemble = |sources: &[&WeightSource], reflections| {
        let sources: Vec<WeightSource> = sources.iter().map(|&source| source.clone()).collect();
        let ensemble = Ensemble::load(&sources, reflections, &store, &Device::Cpu).unwrap();
        ensemble.predict_case(&store, CASE, |_| ()).unwrap()
    };

    // A single model without reflections: slices read from the store, and slices without a store.
    let model = Ensemble::of_one(load_model(&one, &store, &Device::Cpu).unwrap());
    let mut batch = Batch::default();
    let slices: Vec<(u32, u32)> = store.case_rows(Split::Test, TEST_CASE.0).unwrap().map(|row| (row, 0)).collect();
    store.read_batch(Split::Test, &slices, &mut batch).unwrap();
    let size = SCAN_SIZE.map(|side| side as usize);
    assert_eq!(ensemble(&[&one], None).mask, model.predict_slices(&batch, slices.len(), size).unwrap());

    // The mean over the five variants, each plane put back index by index.
    let low = IMAGE_SIZE / 4;
    let mean_logits = |source: &WeightSource| {
        let model = load_model(source, &store, &Device::Cpu).unwrap();
        let mut mean = vec![0.0f64; TEST_CASE.1 * NUM_CLASSES * low * low];
        for variant in 0..5u32 {
            let rows: Vec<(u32, u32)> = store.case_rows(Split::Test, TEST_CASE.0).unwrap().map(|row| (row, variant)).collect();
            let mut batch = Batch::default();
            store.read_batch(Split::Test, &rows, &mut batch).unwrap();
            let images = Tensor::from_vec(batch.images.to_vec(), (rows.len(), 1, IMAGE_SIZE, IMAGE_SIZE), &Device::Cpu).unwrap();
            let grid = IMAGE_SIZE / 16;
            let embeddings = Tensor::from_vec(batch.embeddings.to_vec(), (rows.len(), 256, grid, grid), &Device::Cpu).unwrap();
            let logits = model.forward(&images, &embeddings).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (mean, plane) in mean.chunks_mut(low * low).zip(logits.chunks(low * low)) {
                for y in 0..low {
                    for x in 0..low {
                        let (ry, rx) = (low - 1 - y, low - 1 - x);
                        // identity, flipped rows, flipped columns, transposed, transposed along the other diagonal
                        let (fy, fx) = [(y, x), (ry, x), (y, rx), (x, y), (rx, ry)][variant as usize];
                        mean[y * low + x] += f64::from(plane[fy * low + fx]) / 5.0;
                    }
                }
            }
        }
        let mean = mean.into_iter().map(|x| x as f32).collect();
        Tensor::from_vec(mean, (TEST_CASE.1, NUM_CLASSES, low, low), &Device::Cpu).unwrap()
    };
    let rows: Vec<u32> = store.case_rows(Split::Test, TEST_CASE.0).unwrap().collect();
    let both = Ensemble::load(&[one.clone(), two.clone()], Some(Split::Test), &store, &Device::Cpu).unwrap();
    let found = both.mean_logits(&store, Split::Test, &rows).unwrap();
    assert_eq!(found.len(), 2);
    for (found, source) in found.iter().zip([&one, &two]) {
        let expected = mean_logits(source);
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let largest = values(&expected).iter().fold(0f32, |most, x| most.max(x.abs()));
        let off = values(found).iter().zip(values(&expected)).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off < 1e-5 * largest, "{off} of {largest}");
    }
    let mask = masks_of_logits(&found, IMAGE_SIZE, size).unwrap();
    assert_eq!(ensemble(&[&one, &two], Some(Split::Test)).mask, mask);
    // Without reflections each model gives its plain logits.
    let alone = Ensemble::load(&[one.clone(), two.clone()], None, &store, &Device::Cpu).unwrap();
    let alone = alone.mean_logits(&store, Split::Test, &rows).unwrap();
    assert_eq!(ensemble(&[&one, &two], None).mask, masks_of_logits(&alone, IMAGE_SIZE, size).unwrap());
    let difference = (&alone[0] - &found[0]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(difference > 0.0);

    // A store without reflections of its test slices says what to do.
    let plain =
        write_store_of(&folder.path().join("plain.zarr"), StoreDtype::F32, [AugmentPolicy::Flips, AugmentPolicy::None], 1);
    let error = Ensemble::load(&[one], Some(Split::Test), &plain, &Device::Cpu).err().unwrap();
    let error = common::with_hint(&error, error.hint());
    assert!(error.contains("plain.zarr") && error.contains("--test-augment flips"), "{error}");
}
