//! Resizing, rotating and flipping against SciPy and NumPy: `augment.safetensors` (the published calls on two images) and
//! `chain.json` (more shapes, all 44 variants, and the whole chain from slice to network input).

mod common;

use common::{golden, rule_values};
use safetensors::SafeTensors;
use sam_ladder_ops::image::ndimage::{flip, rot90, rotate_nearest, zoom_cubic, zoom_nearest};
use sam_ladder_precompute::preprocess::DataSlice;
use sam_ladder_schemas::variants::{AugmentPolicy, variants};

/// Tolerance of `zoom`; everything else agrees bit for bit.
const ZOOM_TOLERANCE_F32: f32 = 1e-5;

/// (u + 1) / 2 of a name.
fn image(name: &str, [h, w]: [usize; 2]) -> Vec<f32> {
    rule_values(name, h * w).into_iter().map(|u| ((f64::from(u) + 1.0) / 2.0) as f32).collect()
}

/// floor((u + 1) / 2 * 9) of a name.
fn label(name: &str, [h, w]: [usize; 2]) -> Vec<u8> {
    rule_values(name, h * w).into_iter().map(|u| ((f64::from(u) + 1.0) / 2.0 * 9.0) as u8).collect()
}

/// FNV-1a 64 in hexadecimal.
fn hash(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

fn shape_of(value: &serde_json::Value) -> [usize; 2] {
    [0, 1].map(|axis| value[axis].as_u64().expect("a length") as usize)
}

fn chain() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(golden("chain.json")).expect("chain.json reads")).expect("chain.json is JSON")
}

#[test]
fn every_array_of_the_golden_file() {
    let file = std::fs::read(golden("augment.safetensors")).expect("the golden file reads");
    let tensors = SafeTensors::deserialize(&file).expect("the golden file is safetensors");
    let mut checked = 0;
    for (name, expected) in tensors.tensors() {
        let [source, operation, what] = name.split('/').collect::<Vec<_>>().try_into().expect("three parts a name");
        let shape = if source == "a" { [64, 64] } else { [37, 53] };
        let (pixels, classes) =
            (image(&format!("augment.{source}.image"), shape), label(&format!("augment.{source}.label"), shape));
        let is_label = what == "label";
        let mut tolerance = 0.0;
        let mut got_shape = shape;
        let (got_image, got_label) = if let Some(target) = operation.strip_prefix("zoom") {
            let (h, w) = target.split_once('x').expect("HxW");
            got_shape = [h.parse().expect("a height"), w.parse().expect("a width")];
            tolerance = ZOOM_TOLERANCE_F32;
            (zoom_cubic(&pixels, shape, got_shape), zoom_nearest(&classes, shape, got_shape))
        } else if let Some(angle) = operation.strip_prefix("rotate") {
            let angle = angle.parse().expect("an angle");
            (rotate_nearest(&pixels, shape, angle), rotate_nearest(&classes, shape, angle))
        } else {
            let (k, axis) = operation.strip_prefix("rot").and_then(|rest| rest.split_once("_flip")).expect("rotK_flipA");
            let (k, axis) = (k.parse().expect("turns"), axis.parse().expect("an axis"));
            let (turned, turned_shape) = rot90(&pixels, shape, k);
            let (turned_label, _) = rot90(&classes, shape, k);
            got_shape = turned_shape;
            (flip(&turned, turned_shape, axis), flip(&turned_label, turned_shape, axis))
        };
        assert_eq!(expected.shape(), got_shape, "{name}");
        if is_label {
            assert_eq!(expected.data(), got_label, "{name}");
        } else {
            for (got, bytes) in got_image.iter().zip(expected.data().chunks_exact(4)) {
                let expected = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
                assert!((got - expected).abs() <= tolerance, "{name}: {got} is not {expected}");
            }
        }
        checked += 1;
    }
    assert_eq!(checked, 68, "arrays in augment.safetensors");
}

#[test]
fn all_angles_at_even_odd_and_oblong_shapes() {
    let chain = chain();
    for case in chain["rotate"].as_array().expect("cases") {
        let shape = shape_of(&case["shape"]);
        let classes = label(&format!("chain.label.{}x{}", shape[0], shape[1]), shape);
        let hashes = case["hash_by_angle"].as_object().expect("hashes");
        assert_eq!(hashes.len(), 40);
        for (angle, expected) in hashes {
            let rotated = rotate_nearest(&classes, shape, angle.parse().expect("an angle"));
            assert_eq!(hash(&rotated), *expected, "{shape:?} by {angle} degrees");
        }
    }
}

#[test]
fn nearest_zooms_whose_grid_ends_just_outside() {
    let chain = chain();
    for case in chain["zoom_nearest"].as_array().expect("cases") {
        let (from, to) = (shape_of(&case["from"]), shape_of(&case["to"]));
        let classes = label(&format!("chain.label.{}x{}", from[0], from[1]), from);
        assert_eq!(hash(&zoom_nearest(&classes, from, to)), case["hash"], "{from:?} to {to:?}");
    }
}

#[test]
fn the_whole_chain_for_all_44_variants() {
    let chain = chain();
    let sizes = &chain["chain_sizes"];
    let size = |name: &str| sizes[name].as_u64().expect("a size") as usize;
    let shape = shape_of(&sizes["slice"]);
    let name = |what: &str| format!("chain.{what}.{}x{}", shape[0], shape[1]);
    let slice = DataSlice::new(&image(&name("image"), shape), &label(&name("label"), shape), shape, size("data_size"));
    let cases = chain["chain"].as_array().expect("cases");
    let variants = variants(AugmentPolicy::Reference, 1);
    assert_eq!(variants.len(), cases.len());
    for (variant, case) in variants.iter().zip(cases) {
        assert_eq!(variant.name(), case["variant"]);
        let tensors = slice.variant(variant.kind, size("image_size"));
        assert_eq!(hash(&tensors.label), case["label_hash"], "labels of {}", variant.name());
        let expected = case["every_8191st_pixel"].as_array().expect("pixels");
        let got: Vec<f32> = tensors.image.iter().copied().step_by(8191).collect();
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            let expected = expected.as_f64().expect("a number") as f32;
            assert!((got - expected).abs() <= ZOOM_TOLERANCE_F32, "{}: {got} is not {expected}", variant.name());
        }
    }
}
