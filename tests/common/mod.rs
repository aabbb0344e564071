//! Helpers for the golden tests: the golden files' paths, and the rule that remakes their inputs and weights
//! (`tests/golden/README.md`).
#![allow(dead_code)] // each test binary compiles this file anew and uses only a part of it

use std::path::{Path, PathBuf};

/// Path of a golden file, for example `golden("embed_224.safetensors")`.
pub fn golden(path: impl AsRef<Path>) -> PathBuf {
    // Cargo sets it at run time; for a test binary on another machine, the caller sets it.
    let root = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join("tests/golden").join(path)
}

/// An error as a user sees it: message and hint.
pub fn with_hint(error: impl std::fmt::Display, hint: Option<String>) -> String {
    hint.map_or_else(|| error.to_string(), |hint| format!("{error}; {hint}"))
}

/// FNV-1a, 64 bits, of the name's UTF-8 bytes.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The first `n` values of the tensor called `name`, in [-1, 1), C order: `u(name, 1..=n)` of the rule.
pub fn rule_values(name: &str, n: usize) -> Vec<f32> {
    let hash = fnv1a(name);
    (1..=n as u64)
        .map(|i| {
            let mut z = hash.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            (z >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// The weight tensor with the PyTorch state-dict key `key` (SAM's keys, torchvision's after `CNN_encoder.`), by the rule's table: the first
/// matching line wins.
pub fn rule_weight(key: &str, shape: &[usize]) -> Vec<f32> {
    let n = shape.iter().product();
    let map = |scale: f64, offset: f64| -> Vec<f32> {
        rule_values(key, n).into_iter().map(|u| (f64::from(u) * scale + offset) as f32).collect()
    };
    let bn2 = if key.contains(".bn2.") { 0.25 } else { 1.0 };
    if key.ends_with("num_batches_tracked") || key.ends_with("alpha") {
        vec![0.0; n]
    } else if key.ends_with("running_var") {
        map(0.25, 1.0)
    } else if key.ends_with("running_mean") {
        map(0.125, 0.0)
    } else if key.contains("pos_embed") || key.contains("rel_pos") {
        map(0.25, 0.0)
    } else if ["gaussian_matrix", "_token.weight", "_tokens.weight", "_embed.weight"].iter().any(|end| key.ends_with(end))
        || key.contains("point_embeddings")
    {
        map(1.0, 0.0)
    } else if shape.len() == 1 && key.ends_with("weight") {
        map(0.125 * bn2, bn2)
    } else if shape.len() == 1 {
        map(bn2 / 16.0, 0.0)
    } else {
        let fan_in: usize = if key.contains("output_upscaling") { shape[0] } else { shape[1..].iter().product() };
        let gain = if key.contains("q_proj") || key.contains("k_proj") { 0.25 } else { 1.0 };
        map(gain * (3.0 / fan_in as f64).sqrt(), 0.0)
    }
}
