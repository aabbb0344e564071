//! Stores of another encoder than SAM's, and runs on them: what `precompute`, `train`, `eval`, `predict` and `export` make of its embeddings.

mod cli;
#[path = "common/folders.rs"]
mod folders;

use candle_core::{Device, Tensor};
use cli::{assert_refused, on, succeed};
use folders::{assert_same_files, files};
use sam_ladder_cache::{Batch, Store};
use sam_ladder_formats::state_dict::{StateDict, save_pth, save_safetensors};
use sam_ladder_precompute::encoder::{EncoderArch, ImageEncoder, random_decoder_weights, random_encoder_tensors, random_tensor};
use sam_ladder_precompute::pipeline::{Encode, SamEncoder};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::PixelNormalisation;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SIZES: &str = "--image-size 32 --data-size 40";

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn phantom(at: &Path) {
    succeed(on(at, "phantom --out @scans --cases 3 --size 48 --depth 3 --seed 3"));
}

/// `precompute` of the phantom with a random encoder.
fn precompute(at: &Path, store: &str, words: &str) {
    succeed(on(at, &format!("precompute --scans @scans --store @{store} --random-encoder 3 {SIZES} {words}")));
}

fn whole(store: &Store, split: Split) -> Batch {
    let rows: Vec<(u32, u32)> = (0..store.slices(split).len() as u32).map(|row| (row, 0)).collect();
    let mut batch = Batch::with_rungs();
    store.read_batch(split, &rows, &mut batch).unwrap();
    batch
}

/// Stored embeddings and rungs are the encoder's of the stored images, in float32 bit for bit, and otherwise up to the format's rounding.
#[test]
fn a_store_holds_the_encoders_embeddings_and_tokens_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    phantom(at);
    for (name, arch) in [("dinov2_vits14_reg", EncoderArch::Dinov2Vits14Reg), ("dinov3_vits16", EncoderArch::Dinov3Vits16)] {
        let own = ImageEncoder::random(arch, 32, 3, &Device::Cpu).unwrap();
        let encoder = SamEncoder::new(own, &Device::Cpu).unwrap().normalising(PixelNormalisation::Sam).unwrap();
        for (dtype, wrong) in [("f32", 0.0), ("f16", 1e-3), ("bf16", 1e-2), ("q8", 1e-2)] {
            let store = format!("{name}-{dtype}.zarr");
            let words = "--augment none --pixel-normalisation imagenet --rungs 0,11 --rung-projection none";
            precompute(at, &store, &format!("--encoder {name} --dtype {dtype} {words}"));
            let opened = Store::open(at.join(&store)).unwrap();
            let (config, batch) = (opened.config(), whole(&opened, Split::Train));
            assert_eq!((config.encoder, config.embed_channels(), config.grid_size()), (arch, 384, 2));
            let images = batch.images.to_vec();
            let count = images.len() / (32 * 32);
            assert_eq!(batch.embeddings.len(), count * 384 * 4);
            let mut pairs = vec![(batch.embeddings.to_vec(), encoder.encode(&images, count, 32).unwrap())];
            let tokens = encoder.tokens(&images, count, 32, &[0, 11]).unwrap();
            let rungs = batch.rungs.unwrap().to_vec();
            for (rung, tokens) in tokens.iter().enumerate() {
                // [image, rung, c, pixel] and [image, pixel, c]
                let stored = (0..tokens.len()).map(|i| {
                    let (image, pixel, c) = (i / (4 * 384), i / 384 % 4, i % 384);
                    rungs[((image * 2 + rung) * 384 + c) * 4 + pixel]
                });
                pairs.push((stored.collect(), tokens.clone()));
            }
            for (found, want) in pairs {
                assert_eq!(found.len(), want.len());
                let scale = want.iter().fold(0f32, |most, value| most.max(value.abs()));
                // With float32 images the encoder sees what it saw; rounded images change its embeddings as much as their own rounding does.
                let allowed = if dtype == "f32" { 1e-6 } else { 30.0 * wrong };
                let worst = found.iter().zip(&want).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(worst <= allowed * scale, "{store}: off by {worst} of {scale}");
            }
            if dtype == "f32" {
                let again = encoder.encode(&images, count, 32).unwrap();
                assert!(batch.embeddings.to_vec() == again, "{store}");
            }
            let array = json_of(&at.join(&store).join("train/embeddings/zarr.json"));
            assert_eq!(array["shape"], json!([count, 1, 384, 2, 2]));
            let facts = &array["attributes"];
            assert_eq!((&facts["encoder"], &facts["channels"]), (&json!(name), &json!(384)));
            let patch = arch.patch();
            assert_eq!([&facts["patch"], &facts["stride"], &facts["grid"], &facts["encoder_size"]], [patch, 16, 2, 2 * patch]);
            if dtype == "q8" {
                let quantization = json_of(&at.join(&store).join("train/quantization/zarr.json"));
                assert_eq!(quantization["shape"], json!([count, 1, 384 + 1 + 2 * 384, 2]));
            }
            succeed(on(at, &format!("verify --store @{store}")));
        }
    }
    // Of SAM's encoders nothing is said there.
    precompute(at, "sam.zarr", "--augment none");
    let array = json_of(&at.join("sam.zarr/train/embeddings/zarr.json"));
    assert!(array["attributes"].as_object().is_none_or(|attributes| !attributes.contains_key("encoder")), "{array}");
}

#[test]
fn shared_grown_and_repaired_stores_have_the_bytes_of_one_made_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    phantom(at);
    let words = "--encoder dinov2_vits14 --rungs 3 --rung-channels 5";
    precompute(at, "whole.zarr", &format!("{words} --augment flips"));
    let expected = files(&at.join("whole.zarr"));
    for worker in ["2/2", "1/2", "2/2"] {
        precompute(at, "shared.zarr", &format!("{words} --augment flips --worker {worker}"));
    }
    assert_same_files(&at.join("shared.zarr"), &expected, "two workers");
    precompute(at, "grown.zarr", &format!("{words} --augment none --batch-size 3"));
    precompute(at, "grown.zarr", &format!("{words} --augment flips --batch-size 2"));
    assert_same_files(&at.join("grown.zarr"), &expected, "grown");
    let shard = at.join("grown.zarr/train/embeddings/c.1.0.0.0.0");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[100] ^= 1;
    fs::write(&shard, bytes).unwrap();
    fs::remove_file(at.join("grown.zarr/sam_decoder.safetensors")).unwrap();
    assert!(assert_refused(on(at, "verify --store @grown.zarr")).contains("damaged part"));
    succeed(on(at, "verify --store @grown.zarr --repair --scans @scans"));
    assert_same_files(&at.join("grown.zarr"), &expected, "repaired");
}

/// Starts a command, and signals it once a file is there.
fn interrupt(mut command: Command, signal: &str, once: &Path) -> Option<i32> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !once.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "{} does not appear", once.display());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    child.wait().unwrap().code()
}

#[test]
fn a_killed_and_a_stopped_precompute_end_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    phantom(at);
    for encoder in ["dinov2_vits14_reg", "dinov3_vits16"] {
        let words =
            format!("--encoder {encoder} --rungs 3,11 --rung-channels 5 --augment reference --rotation-step 2 --dtype q8");
        precompute(at, "whole.zarr", &words);
        let line = format!("precompute --scans @scans --store @s.zarr --random-encoder 3 {SIZES} {words}");
        let shard = |row: u32| at.join(format!("s.zarr/train/embeddings/c.{row}.0.0.0.0"));
        assert_eq!(interrupt(on(at, &line), "-KILL", &shard(0)), None, "{encoder}: it was not killed, but ended before");
        assert!(Store::open(at.join("s.zarr")).is_err(), "{encoder}");
        assert_eq!(interrupt(on(at, &line), "-INT", &shard(2)), Some(130), "{encoder}");
        assert!(Store::open(at.join("s.zarr")).is_err() && !shard(5).exists(), "{encoder}");
        succeed(on(at, &line));
        assert_same_files(&at.join("s.zarr"), &files(&at.join("whole.zarr")), encoder);
        ["s.zarr", "whole.zarr"].iter().for_each(|store| fs::remove_dir_all(at.join(store)).unwrap());
    }
}

/// The model's tensors of a run.
fn tensor(run: &Path, name: &str) -> Tensor {
    StateDict::open(run.join("checkpoint.safetensors")).unwrap().tensor(name, &Device::Cpu).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_run_brings_the_embeddings_to_sams_channels_and_predicts_what_it_evaluates() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    phantom(at);
    for (encoder, options) in [
        ("dinov2_vits14_reg", ""),
        ("dinov3_vits16", "--neighbours 1 --gate channel --ema 0.5"),
        ("dinov3_vitb16", "--arm sam-only"),
    ] {
        let store = format!("{encoder}.zarr");
        precompute(at, &store, &format!("--encoder {encoder} --augment none --dtype q8"));
        let train = |run: &str, words: &str| {
            let settings = format!("--epochs 2 --batch-size 3 --warmup 0 --seed 5 {options}");
            succeed(on(at, &format!("train --store @{store} --run @{run} {settings} {words}")));
        };
        let [start, run, resumed] = ["start", "run", "resumed"].map(|name| format!("{encoder}-{name}"));
        train(&start, "--max-steps 1 --lr 1e-30");
        train(&run, "--max-steps 100");
        train(&resumed, "--max-steps 2");
        succeed(on(at, &format!("train --store @{store} --run @{resumed} --resume --max-steps 100")));
        for file in ["checkpoint.safetensors", "steps.parquet"] {
            let [straight, twice] = [&run, &resumed].map(|run| fs::read(at.join(run).join(file)).unwrap());
            assert!(straight == twice, "{encoder}: {file}");
        }
        let name = "sam.embedding_projection";
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let channels = if encoder.contains("vitb") { 768 } else { 384 };
        let [before, after] = [&start, &run].map(|run| tensor(&at.join(run), &weight));
        assert_eq!(before.dims(), [256, channels, 1, 1]);
        // PyTorch's default: uniform within 1/√fan-in.
        let (values, bound) = (bits(&before), 1.0 / (channels as f32).sqrt());
        let deviation = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
        assert!(values.iter().all(|value| value.abs() <= bound) && (deviation / bound * 3f32.sqrt() - 1.0).abs() < 0.02);
        assert!(bits(&before) != bits(&after), "{encoder}: the projection is trained");
        assert!(bits(&tensor(&at.join(&start), &bias)) != bits(&tensor(&at.join(&run), &bias)));

        succeed(on(at, &format!("eval --store @{store} --run @{run} --out @{encoder}-eval --save-nifti --scans @scans")));
        let scan = "@scans/RawData/Training/img/img0001.nii.gz";
        let mask = |words: &str, out: &str| {
            succeed(on(at, &format!("predict --scan {scan} --run @{run} --out @{out} {words}")));
            let mut read = flate2::read::GzDecoder::new(fs::File::open(at.join(out)).unwrap());
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut read, &mut bytes).unwrap();
            bytes
        };
        let expected = {
            let mut read =
                flate2::read::GzDecoder::new(fs::File::open(at.join(format!("{encoder}-eval/masks/0001.nii.gz"))).unwrap());
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut read, &mut bytes).unwrap();
            bytes
        };
        assert!(mask("", &format!("{encoder}.nii.gz")) == expected, "{encoder}");
        let stored = format!("predict --scan {scan} --run @{run} --out @{encoder}-stored.nii.gz --store @{encoder}-new.zarr");
        succeed(on(at, &stored));

        let refused = assert_refused(on(at, &format!("export --run @{run} --out @{encoder}.safetensors")));
        assert!(refused.contains(&format!("the channels of its embeddings {channels}, but")), "{refused}");
        let refused = assert_refused(on(at, &format!("export --run @{run} --out @{encoder}.onnx --with-encoder")));
        assert!(refused.contains(&format!("only if it is SAM's, and this run's is {encoder}")), "{refused}");
        succeed(on(at, &format!("export --run @{run} --out @{encoder}.onnx")));
    }
    let runs = "--run @dinov2_vits14_reg-run --run @dinov3_vits16-run";
    let scan = "--scan @scans/RawData/Training/img/img0001.nii.gz";
    let refused = assert_refused(on(at, &format!("predict {scan} {runs} --out @both.nii.gz")));
    assert!(refused.contains("trained on images of different kinds") && refused.contains("encoder"), "{refused}");
    let refused = assert_refused(on(at, &format!("eval --store @dinov2_vits14_reg.zarr {runs} --out @both")));
    assert!(refused.contains("dinov3_vits16"), "{refused}");
    let alone = "--checkpoint @dinov2_vits14_reg-run/checkpoint.safetensors";
    let refused = assert_refused(on(at, &format!("predict {scan} {alone} --out @both.nii.gz")));
    assert!(refused.contains("does not name the encoder") && refused.contains("pass --run too"), "{refused}");
}

/// Files of SAM and of DINOv3, both of random weights, in their own names.
fn checkpoints(at: &Path) {
    let sam = random_encoder_tensors(EncoderArch::VitB, 64, 1).unwrap().into_iter().chain(random_decoder_weights(2).unwrap());
    save_pth(at.join("sam.pth"), &sam.collect::<Vec<_>>()).unwrap();
    let mut dino = Vec::new();
    let c = 384;
    let mut add = |name: &str, shape: &[usize]| {
        let tensor = random_tensor(7, name, shape).unwrap();
        dino.push((name.to_owned(), tensor));
    };
    add("cls_token", &[1, 1, c]);
    add("storage_tokens", &[1, 4, c]);
    add("patch_embed.proj.weight", &[c, 3, 16, 16]);
    add("patch_embed.proj.bias", &[c]);
    for block in 0..12 {
        let mut add = |name: &str, shape: &[usize]| add(&format!("blocks.{block}.{name}"), shape);
        for (name, out, inner) in [("attn.qkv", 3 * c, c), ("attn.proj", c, c), ("mlp.fc1", 4 * c, c), ("mlp.fc2", c, 4 * c)] {
            add(&format!("{name}.weight"), &[out, inner]);
            add(&format!("{name}.bias"), &[out]);
        }
        add("attn.qkv.bias_mask", &[3 * c]);
        for name in ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"] {
            add(name, &[c]);
        }
    }
    add("norm.weight", &[c]);
    add("norm.bias", &[c]);
    save_safetensors(at.join("dino.safetensors"), &dino).unwrap();
}

/// The same tensors as those of a file of `save_pth`, as training scripts save them: below `model`, next to an optimizer's state and a number.
fn save_below_model(plain: &Path, path: &Path) {
    let string = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let mut archive = zip::ZipArchive::new(fs::File::open(plain).unwrap()).unwrap();
    let mut written = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let name = entry.name().unwrap().into_owned();
        if !name.ends_with("/data.pkl") {
            written.raw_copy_file(entry).unwrap();
            continue;
        }
        let mut pickle = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut pickle).unwrap();
        // The opcodes between the protocol and the end make the dict of tensors: here it is the value of a key.
        let [protocol, inner] = [&pickle[..2], &pickle[2..pickle.len() - 1]];
        let nested =
            [protocol, b"}(", &string("model"), inner, &string("optimizer"), b"}", &string("epoch"), b"K\x05", b"u."].concat();
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        written.start_file(name, stored).unwrap();
        std::io::Write::write_all(&mut written, &nested).unwrap();
    }
    written.finish().unwrap();
}

/// SAM that was trained further, in the layouts in which MedSAM (its published file is a plain state dict; its training saves one below `model`) and
/// SAM-Med2D (below `model`) are saved: the same embeddings as of the plain file. SAM-Med2D's adapters are no layers of SAM's encoder.
#[test]
fn files_of_sam_that_was_trained_further_give_the_same_embeddings() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    phantom(at);
    let encoder = random_encoder_tensors(EncoderArch::VitB, 64, 1).unwrap();
    let mut sam: Vec<(String, Tensor)> = encoder.into_iter().chain(random_decoder_weights(2).unwrap()).collect();
    save_pth(at.join("plain.pth"), &sam).unwrap();
    save_below_model(&at.join("plain.pth"), &at.join("below_model.pth"));
    let line = |file: &str| {
        format!("precompute --scans @scans --store @{file}.zarr {SIZES} --augment none --dtype f32 --sam-checkpoint @{file}")
    };
    let arrays = |file: &str| -> Vec<_> {
        let is_of_arrays = |name: &Path| name.to_string_lossy().contains("/c.") || name == Path::new("sam_decoder.safetensors");
        files(&at.join(format!("{file}.zarr"))).into_iter().filter(|(name, _)| is_of_arrays(name)).collect()
    };
    succeed(on(at, &line("plain.pth")));
    let expected = arrays("plain.pth");
    assert!(expected.len() > 3 * 9, "{}", expected.len());
    succeed(on(at, &line("below_model.pth")));
    assert!(arrays("below_model.pth") == expected, "below model");
    fs::remove_file(at.join("below_model.pth")).unwrap();
    let parallel: Vec<(String, Tensor)> = sam.iter().map(|(name, tensor)| (format!("module.{name}"), tensor.clone())).collect();
    save_pth(at.join("parallel.pth"), &parallel).unwrap();
    succeed(on(at, &line("parallel.pth")));
    assert!(arrays("parallel.pth") == expected, "of several GPUs");

    sam.push(("image_encoder.blocks.0.Adapter.channel.0.weight".into(), random_tensor(3, "adapter", &[192, 768]).unwrap()));
    save_pth(at.join("flat.pth"), &sam).unwrap();
    save_below_model(&at.join("flat.pth"), &at.join("adapters.pth"));
    let refused = assert_refused(on(at, &line("adapters.pth")));
    assert!(
        refused.contains("adapters.pth: the key image_encoder.blocks.0.Adapter.channel.0.weight is not one of SAM's vit_b"),
        "{refused}"
    );
    assert!(!at.join("adapters.pth.zarr").exists());
}

#[test]
fn an_encoders_checkpoint_goes_with_sams_for_the_decoder() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    phantom(at);
    checkpoints(at);
    let precompute =
        |store: &str, words: &str| on(at, &format!("precompute --scans @scans --store @{store} {SIZES} --augment none {words}"));
    let both = "--encoder-checkpoint @dino.safetensors --sam-checkpoint @sam.pth";
    succeed(precompute("dino.zarr", both));
    let config = Store::open(at.join("dino.zarr")).unwrap().config().clone();
    assert_eq!(config.encoder, EncoderArch::Dinov3Vits16);
    let hash = |file: &str| sam_ladder_formats::hash::sha256_hex(&fs::read(at.join(file)).unwrap());
    let source = |file: &str| json!({"source": "checkpoint", "sha256": hash(file)});
    assert_eq!(json!(config.weights), source("dino.safetensors"));
    assert_eq!(json!(config.decoder_weights), source("sam.pth"));
    // The decoder is that of SAM's file.
    succeed(precompute("sam.zarr", "--sam-checkpoint @sam.pth"));
    let decoder = |store: &str| fs::read(at.join(store).join("sam_decoder.safetensors")).unwrap();
    assert!(decoder("dino.zarr") == decoder("sam.zarr"));

    for (words, expected) in [
        ("--encoder-checkpoint @dino.safetensors", "--sam-checkpoint"),
        ("--sam-checkpoint @dino.safetensors", "it looks like dinov3_vits16, an encoder without a mask decoder"),
        ("--encoder-checkpoint @sam.pth --sam-checkpoint @sam.pth", "it looks like SAM"),
        (
            "--sam-checkpoint @sam.pth --encoder dinov3_vits16",
            "pass the checkpoint of dinov3_vits16 with --encoder-checkpoint, too",
        ),
        (&format!("{both} --encoder dinov3_vitb16"), "is a dinov3_vits16 checkpoint, expected dinov3_vitb16 as in --encoder"),
    ] {
        let output = precompute("refused.zarr", words).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(expected), "{words}: {said}");
    }

    succeed(on(at, "train --store @dino.zarr --run @run --epochs 1 --max-steps 1 --batch-size 3 --warmup 0"));
    let predict = |words: &str| on(at, &format!("predict --scan @scans/RawData/Training/img/img0001.nii.gz --run @run {words}"));
    succeed(predict("--encoder-checkpoint @dino.safetensors --out @mask.nii.gz"));
    succeed(predict(&format!("{both} --store @new.zarr --out @stored.nii.gz")));
    for (words, expected) in [
        ("", "pass that file with --encoder-checkpoint"),
        ("--sam-checkpoint @sam.pth", "pass that file with --encoder-checkpoint"),
        ("--encoder-checkpoint @dino.safetensors --store @no.zarr", "--store needs SAM's checkpoint too"),
    ] {
        let refused = assert_refused(predict(&format!("{words} --out @refused.nii.gz")));
        assert!(refused.contains(expected), "{words}: {refused}");
    }
    // A damaged store is mended with both.
    fs::remove_file(at.join("dino.zarr/sam_decoder.safetensors")).unwrap();
    fs::write(at.join("dino.zarr/train/embeddings/c.0.0.0.0.0"), b"no shard").unwrap();
    let repair = |words: &str| on(at, &format!("verify --store @dino.zarr --repair --scans @scans {words}"));
    assert!(assert_refused(repair("--encoder-checkpoint @dino.safetensors")).contains("--sam-checkpoint"));
    succeed(repair(both));
    assert!(decoder("dino.zarr") == decoder("sam.zarr"));
}
