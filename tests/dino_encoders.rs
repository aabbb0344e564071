//! DINOv2's and DINOv3's encoders against timm in float64, with the rule's weights in timm's names and in their publishers'
//! (`data/dino.json`, which `data/make_dino.py` writes); which files are taken; and the resizing of images against PyTorch.

mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/summary.rs"]
mod summary;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::{rule_values, rule_weight, with_hint};
use sam_ladder_formats::state_dict::{StateDict, save_pth, save_safetensors};
use sam_ladder_ops::image::bicubic::resize_bicubic_antialiased;
use sam_ladder_precompute::encoder::{EncoderArch, ImageEncoder, Taps, detect_encoder};
use sam_ladder_precompute::pipeline::{Encode, SamEncoder};
use summary::{Summary, assert_summary};

/// Norm of the difference over the norm, float32 against float64.
const FORWARD_F32: f64 = 1e-5;

#[derive(serde::Deserialize)]
struct Expected {
    cases: BTreeMap<String, Case>,
    /// By the side of the image: two planes, resized to 14/16 of it.
    resized: BTreeMap<usize, Summary>,
}

#[derive(serde::Deserialize)]
struct Case {
    grid: usize,
    embeddings: Summary,
    /// After some blocks.
    tokens: BTreeMap<usize, Summary>,
    /// timm's names and shapes, of the blocks only the first.
    names: BTreeMap<String, Vec<usize>>,
}

fn expected() -> Expected {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/dino.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn arch_of(case: &str) -> EncoderArch {
    let name = case.trim_end_matches("_biased");
    EncoderArch::ALL.into_iter().find(|arch| arch.name() == name).unwrap()
}

/// The rule's weights in timm's names.
fn timms(case: &str, names: &BTreeMap<String, Vec<usize>>) -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    for (name, shape) in names {
        let count = if name.starts_with("blocks.0.") { arch_of(case).depth() } else { 1 };
        for block in 0..count {
            let name = name.replacen("blocks.0.", &format!("blocks.{block}."), 1);
            let is_scale = ["gamma", "gamma_1", "gamma_2"].iter().any(|end| name.ends_with(end));
            let values = match is_scale {
                true => {
                    rule_values(&name, shape.iter().product()).into_iter().map(|u| (0.5 + f64::from(u) / 4.0) as f32).collect()
                }
                false => rule_weight(&name, shape),
            };
            tensors.insert(name, Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap());
        }
    }
    tensors
}

/// The same weights in the names of the publisher's files, with what these hold in addition.
fn publishers(case: &str, mut tensors: HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    let arch = arch_of(case);
    let width = arch.embed_dim();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    tensors.insert("mask_token".into(), zeros(&[1, width]));
    let registers = tensors.remove("reg_token");
    if case.starts_with("dinov2") {
        if let Some(registers) = registers {
            tensors.insert("register_tokens".into(), registers);
            // The class token's position is apart; here it is the first of the patches', so that the sum in float32 is that of timm's conversion.
            let position = tensors["pos_embed"].narrow(1, 0, 1).unwrap();
            let positions = Tensor::cat(&[&position, &tensors["pos_embed"]], 1).unwrap();
            tensors.insert("pos_embed".into(), positions);
        }
        return tensors;
    }
    tensors.insert("storage_tokens".into(), registers.unwrap());
    // As in the files, rounded to bfloat16.
    let d = width / arch.num_heads();
    let periods: Vec<f32> = (0..d / 4).map(|k| 100f32.powf(4.0 * k as f32 / d as f32)).collect();
    let periods = Tensor::from_vec(periods, d / 4, &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
    tensors.insert("rope_embed.periods".into(), periods);
    for block in 0..arch.depth() {
        let name = |end: &str| format!("blocks.{block}.{end}");
        for (ours, timms) in [("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2")] {
            let scale = tensors.remove(&name(timms)).unwrap();
            tensors.insert(name(ours), scale);
        }
        let mut part = |end: &str| tensors.remove(&name(end)).unwrap_or_else(|| zeros(&[width]));
        let (queries, values) = (part("attn.q_bias"), part("attn.v_bias"));
        // The keys' bias is masked, whatever it is.
        let keys = Tensor::from_vec(rule_values("masked", width), width, &Device::Cpu).unwrap();
        tensors.insert(name("attn.qkv.bias"), Tensor::cat(&[&queries, &keys, &values], 0).unwrap());
        let ones = zeros(&[width]).ones_like().unwrap();
        tensors.insert(name("attn.qkv.bias_mask"), Tensor::cat(&[&ones, &zeros(&[width]), &ones], 0).unwrap());
    }
    tensors
}

fn images(case: &str, side: usize) -> Tensor {
    let pixels: Vec<f32> =
        rule_values(&format!("{case}.images"), 2 * 3 * side * side).into_iter().map(|u| (u + 1.0) / 2.0).collect();
    Tensor::from_vec(pixels, (2, 3, side, side), &Device::Cpu).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Embeddings of the case's images, and the tokens after some blocks.
fn encode(state: &StateDict, case: &str, grid: usize, blocks: &[usize]) -> (Tensor, Vec<Tensor>) {
    let arch = arch_of(case);
    assert_eq!(detect_encoder(state).unwrap(), arch);
    let encoder = ImageEncoder::load(state, arch, grid * 16, &device::device()).unwrap();
    assert_eq!((encoder.grid(), encoder.image_size()), (grid, grid * arch.patch()));
    let images = images(case, encoder.image_size());
    let mut tokens = Vec::new();
    let mut visit = |_: usize, x: &Tensor| {
        tokens.push(x.to_device(&Device::Cpu)?.copy()?);
        Ok(())
    };
    let embeddings = encoder.forward_tapped(&images, Some(Taps { blocks, visit: &mut visit })).unwrap();
    let plain = encoder.forward(&images).unwrap();
    assert!(bits(&plain) == bits(&embeddings), "{case}: looking at tokens changes embeddings");
    (embeddings.to_device(&Device::Cpu).unwrap(), tokens)
}

fn check(case: &str) {
    let expected = &expected().cases[case];
    let state = StateDict::from_tensors(case, timms(case, &expected.names)).unwrap();
    let blocks: Vec<usize> = expected.tokens.keys().copied().collect();
    let (embeddings, tokens) = encode(&state, case, expected.grid, &blocks);
    assert_eq!(embeddings.dims(), [2, arch_of(case).embed_channels(), expected.grid, expected.grid]);
    assert_summary(case, "embeddings", &embeddings, &expected.embeddings, FORWARD_F32);
    assert_eq!(tokens.len(), blocks.len());
    for (found, (block, expected)) in tokens.iter().zip(&expected.tokens) {
        assert_summary(case, &format!("tokens.{block}"), found, expected, FORWARD_F32);
    }
}

#[test]
fn dinov2_equals_timm() {
    check("dinov2_vits14");
    check("dinov2_vitb14");
}

#[test]
fn dinov2_with_registers_equals_timm() {
    check("dinov2_vits14_reg");
    check("dinov2_vitl14_reg");
}

#[test]
fn dinov3_equals_timm() {
    check("dinov3_vits16");
    check("dinov3_vits16_biased");
    check("dinov3_vitb16");
    check("dinov3_vitl16");
}

#[test]
fn publishers_files_and_timms_load_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    for case in ["dinov2_vits14", "dinov2_vits14_reg", "dinov3_vits16", "dinov3_vits16_biased"] {
        let expected = &expected().cases[case];
        let timms_own = timms(case, &expected.names);
        let publishers_own = publishers(case, timms_own.clone());
        let mut timms_file = timms_own;
        if case == "dinov2_vits14_reg" {
            // What timm's conversion makes of the publisher's class token and its position.
            let position = timms_file["pos_embed"].narrow(1, 0, 1).unwrap();
            let token = (&timms_file["cls_token"] + position).unwrap();
            timms_file.insert("cls_token".into(), token);
        }
        let list = |tensors: HashMap<String, Tensor>| tensors.into_iter().collect::<Vec<_>>();
        let (safetensors, pth) = (folder.path().join("timm.safetensors"), folder.path().join("publisher.pth"));
        save_safetensors(&safetensors, &list(timms_file)).unwrap();
        save_pth(&pth, &list(publishers_own)).unwrap();
        let [timms, publishers] = [safetensors, pth].map(|path| encode(&StateDict::open(path).unwrap(), case, 3, &[]).0);
        assert!(bits(&timms) == bits(&publishers), "{case}");
    }
}

#[test]
fn what_is_missing_foreign_or_of_another_encoder_is_refused() {
    let dino = expected();
    let own = |case: &str| timms(case, &dino.cases[case].names);
    let said = |tensors: HashMap<String, Tensor>, arch| {
        let state = StateDict::from_tensors("dino.pth", tensors).unwrap();
        let found = ImageEncoder::load(&state, arch, 48, &Device::Cpu);
        found.map_or_else(|error| with_hint(&error, error.hint()), |_| "taken".into())
    };
    let (plain, rotary) = (EncoderArch::Dinov2Vits14, EncoderArch::Dinov3Vits16);
    assert_eq!(said(own("dinov2_vits14"), plain), "taken");
    assert_eq!(
        said(own("dinov2_vits14"), EncoderArch::Dinov2Vits14Reg),
        "dino.pth is a dinov2_vits14 checkpoint, expected dinov2_vits14_reg; pass --encoder dinov2_vits14 or a checkpoint of dinov2_vits14_reg"
    );
    let changed = |case: &str, change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut tensors = own(case);
        change(&mut tensors);
        tensors
    };
    let one = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let missing = changed("dinov2_vits14", &|tensors| drop(tensors.remove("blocks.3.ls2.gamma")));
    assert!(said(missing, plain).contains("the key blocks.3.ls2.gamma is missing"));
    let head = changed("dinov2_vits14", &|tensors| drop(tensors.insert("head.weight".into(), one(&[10, 384]))));
    assert_eq!(
        said(head, plain),
        "dino.pth: the key head.weight is not one of dinov2_vits14's; pass the pretrained backbone as its publisher or timm publishes it, without heads"
    );
    let positions = changed("dinov2_vits14", &|tensors| drop(tensors.insert("pos_embed".into(), one(&[1, 1369, 384]))));
    assert!(said(positions, plain).contains("pos_embed has shape [1, 1369, 384], expected [1, 1 + n·n, 384]"));
    let shape = changed("dinov3_vits16", &|tensors| drop(tensors.insert("norm.weight".into(), one(&[385]))));
    assert!(said(shape, rotary).contains("norm.weight has shape [385], expected [384]"));
    let unmasked = changed("dinov3_vits16", &|tensors| drop(tensors.insert("blocks.0.attn.qkv.bias".into(), one(&[3 * 384]))));
    assert!(said(unmasked, rotary).contains("the key blocks.0.attn.qkv.bias_mask is missing"));
    let periods = changed("dinov3_vits16", &|tensors| drop(tensors.insert("rope_embed.periods".into(), one(&[16]))));
    assert!(said(periods, rotary).contains("rope_embed.periods are not those of DINOv3"));
    for (name, shape, expected) in [
        ("image_encoder.pos_embed", &[1, 4, 4, 768][..], "it looks like SAM; pass it with --sam-checkpoint"),
        ("layer1.0.conv1.weight", &[64, 64, 3, 3], "it looks like a ResNet"),
        (
            "blocks.0.attn.qkv.weight",
            &[6, 2],
            "not a checkpoint of DINOv2's or DINOv3's ViT-S, B or L; pass the pretrained backbone",
        ),
    ] {
        let said = said(HashMap::from([(name.to_owned(), one(shape))]), plain);
        assert!(said.contains(expected), "{name}: {said}");
    }
}

#[test]
fn an_image_is_resized_as_by_pytorch_so_that_the_grid_is_sams() {
    for (size, expected) in expected().resized {
        let own = size / 16 * 14;
        let planes = rule_values(&format!("resized.{size}"), 2 * size * size);
        let resized = resize_bicubic_antialiased(&planes, [size, size], [own, own]);
        let tensor = Tensor::from_vec(resized.clone(), (1, 2, own, own), &Device::Cpu).unwrap();
        assert_summary("image", "resized", &tensor, &expected, 1e-6);

        // What stage one encodes is that image, of any number of images at a time.
        let arch = EncoderArch::Dinov2Vits14;
        let encoder = || ImageEncoder::random(arch, size, 5, &Device::Cpu).unwrap();
        let third = Tensor::zeros((1, 1, own, own), DType::F32, &Device::Cpu).unwrap();
        let want = bits(&encoder().forward(&Tensor::cat(&[&tensor, &third], 1).unwrap()).unwrap());
        let stage_one = SamEncoder::new(encoder(), &Device::Cpu).unwrap();
        let found = stage_one.encode(&planes, 1, size).unwrap();
        assert!(found == want);
        assert_eq!(found.len(), 384 * (size / 16).pow(2));
        let both = stage_one.encode(&[&planes[..], &planes[..]].concat(), 2, size).unwrap();
        assert!(both == [&want[..], &want[..]].concat());
    }
}
