//! Weights given to a run and taken from one: `--init`, `--cnn-checkpoint`, export, predictions.

mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/run.rs"]
mod run;
#[path = "common/store.rs"]
mod store;
#[path = "common/train_args.rs"]
mod train_args;

use candle_core::safetensors::load;
use candle_core::{DType, Device, Tensor};
use run::{export_args, predict, tensors, words, workplace};
use sam_ladder_formats::state_dict::{save_pth, save_safetensors};
use sam_ladder_schemas::train::CHECKPOINT;
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::run::{TrainArgs, read_record, train};
use sam_ladder_train::{ExportArgs, PredictedMask, RunCheckpoint, WeightSource, export};
use std::collections::HashMap;
use store::{NUM_CLASSES, SCAN_SIZE, TEST_CASE};

#[test]
fn init_takes_what_export_wrote() {
    let (folder, mut args) = workplace();
    args.config.max_steps = Some(2);
    train(&args).unwrap();
    let trained = tensors(&args.run.join(CHECKPOINT));
    let encoder = vec![("image_encoder.pos_embed".to_string(), Tensor::zeros((1, 4, 4, 768), DType::F32, &Device::Cpu).unwrap())];
    for (name, image_encoder) in [("m.safetensors", None), ("m.pth", None), ("whole.pth", Some(encoder))] {
        let out = folder.path().join(name);
        export(&ExportArgs { image_encoder, ..export_args(&args.run, out.clone()) }).unwrap();
        let error = words(&export(&export_args(&args.run, out.clone())).unwrap_err());
        assert!(error.contains(name) && error.contains("--force"), "{error}");
        let mut taken = TrainArgs { run: folder.path().join(format!("from-{name}")), init: Some(out), ..args.clone() };
        taken.config.max_steps = Some(0);
        train(&taken).unwrap();
        assert_eq!(tensors(&taken.run.join(CHECKPOINT)), trained, "{name}");
        assert_eq!(read_record(&taken.run).unwrap().inputs.init.unwrap().name, name);
    }
    let error = export(&export_args(&args.run, folder.path().join("m.bin"))).unwrap_err().to_string();
    assert!(error.contains("m.bin") && error.contains(".pth"), "{error}");
}

#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    let (folder, mut args) = workplace();
    args.config.max_steps = Some(0);
    train(&args).unwrap();
    let whole: Vec<(String, Tensor)> = load(args.run.join(CHECKPOINT), &Device::Cpu).unwrap().into_iter().collect();
    let attempt = |file: &str, tensors: Vec<(String, Tensor)>, cnn: bool| {
        let path = folder.path().join(file);
        save_safetensors(&path, &tensors).unwrap();
        let (cnn_checkpoint, init) = if cnn { (Some(path), None) } else { (None, Some(path)) };
        train(&TrainArgs { run: folder.path().join(format!("run-{file}")), cnn_checkpoint, init, ..args.clone() })
    };
    let key = "sam.mask_decoder.iou_token.weight";
    let zeros = |n: usize| Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap();

    let missing = whole.iter().filter(|(name, _)| name != key).cloned().collect();
    let error = attempt("missing.safetensors", missing, false).unwrap_err().to_string();
    assert!(error.contains("missing.safetensors") && error.contains(key), "{error}");

    let mut extra = whole.clone();
    extra.push(("sam.surprise".into(), zeros(1)));
    let error = attempt("extra.safetensors", extra, false).unwrap_err().to_string();
    assert!(error.contains("extra.safetensors") && error.contains("sam.surprise"), "{error}");

    let shaped = whole.iter().map(|(name, tensor)| (name.clone(), if name == key { zeros(7) } else { tensor.clone() })).collect();
    let error = attempt("shape.safetensors", shaped, false).unwrap_err().to_string();
    assert!(error.contains(key) && error.contains("[7]") && error.contains("[1, 256]"), "{error}");

    // With the prefix `module.` and the parts that stage two does not use, it is accepted.
    let mut wrapped: Vec<(String, Tensor)> =
        whole.iter().map(|(name, tensor)| (format!("module.{name}"), tensor.clone())).collect();
    for name in
        ["sam.image_encoder.pos_embed", "sam_encoder.pos_embed", "CNN_encoder.layer4.0.conv1.weight", "CNN_encoder.fc.bias"]
    {
        wrapped.push((format!("module.{name}"), zeros(3)));
    }
    attempt("wrapped.safetensors", wrapped, false).unwrap();

    // torchvision's names, as in an older checkpoint without step counters.
    let cnn = |scale: f64| -> Vec<(String, Tensor)> {
        let parts = whole.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("CNN_encoder.")?.to_string(), tensor)));
        let parts = parts.filter(|(name, _)| !name.ends_with("num_batches_tracked"));
        let mut parts: Vec<_> = parts.map(|(name, tensor)| (name, (tensor * scale).unwrap())).collect();
        parts.push(("layer4.0.conv1.weight".into(), zeros(1)));
        parts.push(("fc.bias".into(), zeros(1)));
        parts
    };
    save_pth(folder.path().join("resnet18.pth"), &cnn(0.5)).unwrap();
    let taken = TrainArgs {
        run: folder.path().join("with-cnn"),
        cnn_checkpoint: Some(folder.path().join("resnet18.pth")),
        ..args.clone()
    };
    train(&taken).unwrap();
    let [plain, taken] = [&args.run, &taken.run].map(|run| load(run.join(CHECKPOINT), &Device::Cpu).unwrap());
    let first = |tensors: &HashMap<String, Tensor>| {
        tensors["CNN_encoder.conv1.weight"].flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
    };
    assert_eq!(first(&taken), 0.5 * first(&plain));

    let mut deeper = cnn(1.0);
    deeper.push(("layer1.2.conv1.weight".into(), zeros(1)));
    let error = attempt("resnet34.safetensors", deeper, true).unwrap_err().to_string();
    assert!(error.contains("resnet34.safetensors") && error.contains("layer1.2.conv1.weight"), "{error}");
}

#[test]
fn predictions_have_the_scans_shape_and_do_not_depend_on_the_batch() {
    let (folder, mut args) = workplace();
    args.config.epochs = 16;
    args.config.augment = Some(AugmentPolicy::None);
    train(&args).unwrap();
    let run = || WeightSource::Run { folder: args.run.clone(), checkpoint: RunCheckpoint::BestOrLast };
    let masks = predict(&args.store, run(), 1).unwrap();
    assert_eq!(masks.len(), 1);
    let PredictedMask { case, mask, shape, spacing_mm, .. } = &masks[0];
    assert_eq!(*spacing_mm, Some([3.0, 0.8, 0.7]));
    assert_eq!(case, TEST_CASE.0);
    assert_eq!(*shape, [TEST_CASE.1, SCAN_SIZE[0] as usize, SCAN_SIZE[1] as usize]);
    assert_eq!(mask.len(), shape.iter().product::<usize>());
    assert!(mask.iter().all(|&class| (class as usize) < NUM_CLASSES));
    assert!(mask.iter().any(|&class| class > 0), "the trained model finds nothing");
    assert_eq!(masks, predict(&args.store, run(), 2).unwrap());

    let out = folder.path().join("m.pth");
    export(&export_args(&args.run, out.clone())).unwrap();
    assert_eq!(masks, predict(&args.store, WeightSource::Checkpoint(out), 2).unwrap());

    let arm = sam_ladder_schemas::train::Arm::SamOnly;
    let untrained = predict(&args.store, WeightSource::ZeroShot { seed: 1, arm }, 2).unwrap();
    assert_ne!(untrained, masks);
    let nowhere = WeightSource::Run { folder: folder.path().join("nowhere"), checkpoint: RunCheckpoint::Last };
    assert!(predict(&args.store, nowhere, 2).unwrap_err().to_string().contains("nowhere"));
}
