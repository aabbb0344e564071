//! Checkpoints as people save them with PyTorch (`data/make.py`): what `torch.load(weights_only=True)` reads is read, with the same values.

use candle_core::Device;
use sam_ladder_formats::state_dict::StateDict;
use std::path::{Path, PathBuf};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn open(name: &str) -> StateDict {
    StateDict::open(path(name)).unwrap_or_else(|error| panic!("{error}"))
}

fn values(state: &StateDict, name: &str) -> Vec<f32> {
    state.tensor(name, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Asserts that a file holds the two tensors that all of them hold, besides others.
fn assert_holds(name: &str, others: &[&str]) {
    let state = open(name);
    let mut names = [&["a.weight", "a.bias"], others].concat();
    names.sort_unstable();
    assert_eq!(state.names().collect::<Vec<_>>(), names, "{name}");
    let weight = state.expect("a.weight", &[2, 3], &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(weight, [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], "{name}");
    assert_eq!(values(&state, "a.bias"), [0.5, -1.5], "{name}");
}

#[test]
fn weights_next_to_other_things_are_found() {
    for name in [
        "best_acc1.pth",
        "model_loss.pth",
        "legacy_optimizer.pth",
        "legacy_odd.pth",
        "model_state_dict.pth",
        "net.pth",
        "model_state.pth",
        "ema.pth",
        // Those of the model, not their running mean, which is zero there.
        "model_and_ema.pth",
        "parameters.pth",
    ] {
        assert_holds(name, &[]);
    }
}

#[test]
fn what_wrappers_put_before_names_is_removed_and_said() {
    for prefix in ["module", "model", "_orig_mod", "backbone", "_orig_mod.module"] {
        let name = format!("prefix_{prefix}.pth");
        assert_holds(&name, &[]);
        assert_eq!(open(&name).removed_prefix(), Some(&*format!("{prefix}.")));
    }
    assert_holds("backbone_and_head.pth", &["head.weight"]);
    assert_eq!(open("parameters.pth").removed_prefix(), None);
}

#[test]
fn an_expanded_tensor_repeats_its_elements() {
    assert_holds("expanded.pth", &["rows", "wide"]);
    let state = open("expanded.pth");
    assert_eq!((state.shape("wide"), values(&state, "wide")), (Some(vec![4, 3]), vec![2.0; 12]));
    assert_eq!((state.shape("rows"), values(&state, "rows")), (Some(vec![3, 2]), [1.0, 2.0].repeat(3)));
}

#[test]
fn what_is_not_read_is_passed_over_until_it_is_needed() {
    let odd = ["count", "double", "freqs", "scale"];
    assert_holds("passed_over.pth", &odd);
    let state = open("passed_over.pth");
    assert_eq!(values(&state, "count"), [1.0, 40000.0], "uint16");
    for name in &odd[1..] {
        let error = state.tensor(name, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}: its values are complex, quantised or 8-bit floats")), "{error}");
    }
}

#[test]
fn compressed_archives_and_names_of_any_length_are_read() {
    assert_holds("deflated.pth", &[]);
    assert_holds("twenty_one_characters.pth", &[]);
    // The same of our own files.
    let folder = tempfile::tempdir().unwrap();
    for length in 1..40 {
        let path = folder.path().join("x".repeat(length) + ".pth");
        let one = candle_core::Tensor::new(&[0.5f32], &Device::Cpu).unwrap();
        sam_ladder_formats::state_dict::save_pth(&path, &[("a".into(), one)]).unwrap();
        assert_eq!(values(&StateDict::open(&path).unwrap(), "a"), [0.5], "{length} characters");
    }
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let state = open("nan.pth");
    let error = state.expect("a.weight", &[2, 3], &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("a.weight holds NaN (value 4 of 6)"), "{error}");
    assert!(error.hint().unwrap().contains("earlier checkpoint"));
    assert!(state.expect("a.bias", &[2], &Device::Cpu).is_ok());
}

#[test]
fn a_matrix_that_is_no_weight_is_named() {
    for (name, said, hint) in [
        ("int8.pth", "a.weight holds whole numbers (int8), expected floating-point weights", "was quantised"),
        ("zeros.pth", "a.weight holds only zeros", "saved before they were loaded or trained"),
    ] {
        let state = open(name);
        let error = state.expect("a.weight", &[2, 3], &Device::Cpu).unwrap_err();
        assert!(error.to_string().contains(said) && error.hint().unwrap().contains(hint), "{name}: {error}");
        assert!(state.expect("a.bias", &[2], &Device::Cpu).is_ok(), "{name}: a bias may be zero");
    }
    // The same as .safetensors.
    let whole = candle_core::Tensor::new(&[[1u8, 2]], &Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("whole.safetensors");
    candle_core::safetensors::save(&std::collections::HashMap::from([("a.weight", whole)]), &file).unwrap();
    let error = StateDict::open(&file).unwrap().expect("a.weight", &[1, 2], &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("whole numbers (uint8)"), "{error}");
}

#[test]
fn tensors_in_other_places_and_of_other_kinds_are_named() {
    let error = StateDict::open(path("teacher.pth")).unwrap_err();
    assert!(
        error.to_string().contains("its tensors stand under `student`, `teacher`, expected at the top or under one of"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("torch.save(torch.load(file)[key], new)"));
    assert_holds("not_plain.pth", &[]);
    for name in ["sparse", "meta"] {
        let error = open("not_plain.pth").check(name, &[2, 2]).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with(&format!("{name} is there, but not as a plain tensor: it is quantised, sparse or without data"))
        );
        assert_eq!(error.hint().as_deref(), Some("save its tensors as dense float32"));
    }
    let error = open("not_plain.pth").check("absent", &[2, 2]).unwrap_err().to_string();
    assert!(error.contains("the key absent is missing"), "{error}");
}

#[test]
fn which_of_several_models_is_read_is_said() {
    let notes = open("model_and_ema.pth").notes();
    assert!(
        notes.len() == 1 && notes[0].ends_with("model_and_ema.pth: its weights under `model` are taken, not those under `ema`"),
        "{notes:?}"
    );
    assert_eq!(open("model_loss.pth").notes(), [""; 0]);
    assert!(open("prefix_module.pth").notes()[0].ends_with("module. is removed from the names of its tensors"));
}
