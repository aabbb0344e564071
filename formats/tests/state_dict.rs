//! Checkpoint files: what is written is read back, and files that are truncated, damaged or of another format give one line that names
//! the file, never a panic.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use sam_ladder_formats::state_dict::{StateDict, save_pth, save_safetensors};

fn tensors() -> Vec<(String, Tensor)> {
    let counted = |shape: &[usize]| {
        let n: usize = shape.iter().product();
        Tensor::arange(0f32, n as f32, &Device::Cpu).unwrap().reshape(shape).unwrap()
    };
    vec![
        ("module.layer.weight".to_owned(), counted(&[2, 3, 4])),
        ("module.layer.bias".to_owned(), counted(&[4]).affine(-0.5, 0.25).unwrap()),
        ("alpha".to_owned(), Tensor::new(0.75f32, &Device::Cpu).unwrap()),
        ("empty".to_owned(), Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap()),
    ]
}

fn values(state: &StateDict, name: &str) -> Vec<f32> {
    state.tensor(name, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Both formats in a folder.
fn write_both(folder: &Path) -> [PathBuf; 2] {
    let paths = [folder.join("weights.pth"), folder.join("weights.safetensors")];
    save_pth(&paths[0], &tensors()).unwrap();
    save_safetensors(&paths[1], &tensors()).unwrap();
    paths
}

#[test]
fn both_formats_hold_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    for path in write_both(folder.path()) {
        let state = StateDict::open(&path).unwrap();
        assert_eq!(state.names().collect::<Vec<_>>(), ["alpha", "empty", "layer.bias", "layer.weight"]);
        assert_eq!(state.shape("layer.weight"), Some(vec![2, 3, 4]));
        assert_eq!(values(&state, "layer.weight"), (0..24).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(values(&state, "layer.bias"), [0.25, -0.25, -0.75, -1.25]);
        assert_eq!(state.shape("alpha"), Some(vec![]));
        assert_eq!(values(&state, "alpha"), [0.75]);
        assert!(values(&state, "empty").is_empty());
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "files written aside must be gone");
}

#[test]
fn missing_and_wrong_shaped_keys_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for path in write_both(folder.path()) {
        let state = StateDict::open(&path).unwrap();
        let missing = state.expect("layer.scale", &[4], &Device::Cpu).unwrap_err().to_string();
        assert_eq!(missing, format!("{}: the key layer.scale is missing (expected a tensor of shape [4])", path.display()));
        let shape = state.expect("layer.bias", &[5], &Device::Cpu).unwrap_err().to_string();
        assert_eq!(shape, format!("{}: layer.bias has shape [4], expected [5]", path.display()));
    }
}

#[test]
fn truncation_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for path in write_both(folder.path()) {
        let whole = std::fs::read(&path).unwrap();
        for len in (0..whole.len()).step_by(3) {
            std::fs::write(&path, &whole[..len]).unwrap();
            let message = StateDict::open(&path).expect_err("a truncated file was opened").to_string();
            assert!(message.contains(&path.display().to_string()) && !message.contains('\n'), "{message}");
        }
    }
}

#[test]
fn damage_gives_an_error_or_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [path, _] = write_both(folder.path());
    let whole = std::fs::read(&path).unwrap();
    let read = |path: &Path| -> Result<Vec<Vec<f32>>, String> {
        let state = StateDict::open(path).map_err(|e| e.to_string())?;
        let names: Vec<String> = state.names().map(str::to_owned).collect();
        let one = |name: &String| state.tensor(name, &Device::Cpu).map_err(|e| e.to_string());
        names.iter().map(|name| Ok(one(name)?.flatten_all().unwrap().to_vec1::<f32>().unwrap())).collect()
    };
    let undamaged = read(&path).unwrap();
    for at in (0..whole.len()).step_by(2) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&path, &damaged).unwrap();
        match read(&path) {
            // Some bytes of a zip file mean nothing here (times, versions).
            Ok(values) => assert_eq!(values, undamaged, "byte {at} was changed and nobody noticed"),
            Err(message) => assert!(message.contains("weights.pth") || message.contains("damaged"), "{message}"),
        }
    }
}

#[test]
fn other_files_say_what_they_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let message = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = StateDict::open(&path).unwrap_err();
        format!("{error}\nhint: {}", error.hint().unwrap_or_default())
    };
    assert!(
        message("a.pth", b"hello, this is text")
            .contains("PyTorch or .safetensors file: its first bytes are those of another kind")
    );
    assert!(message("empty.pth", b"").contains("another kind"));
    // A header that claims more bytes than any machine has.
    let mut huge = u64::MAX.to_le_bytes().to_vec();
    huge.extend(b"{\"a\":1}");
    assert!(message("b.safetensors", &huge).contains("truncated or damaged"));
    assert!(StateDict::open(folder.path().join("not-there.pth")).unwrap_err().to_string().contains("not-there.pth"));
    assert!(StateDict::open(folder.path()).unwrap_err().to_string().contains("is a folder"));
}
