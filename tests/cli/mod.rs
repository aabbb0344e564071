//! Runs the program from tests, and makes its small inputs.

#![allow(dead_code)] // each test crate uses a part of it

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The program with arguments, its output captured and without colours.
pub fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sam-ladder"));
    command.args(arguments);
    command
}

/// The program with words for arguments, of which those that start with `@` are paths in a folder.
pub fn on(folder: &Path, words: &str) -> Command {
    let mut command = program(&[]);
    for word in words.split_whitespace() {
        match word.strip_prefix('@') {
            Some(name) => command.arg(folder.join(name)),
            None => command.arg(word),
        };
    }
    command
}

fn run(command: &mut Command) -> (Output, String) {
    let output = command.output().expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, stderr)
}

/// Runs a command that must succeed; returns its standard output.
pub fn succeed(mut command: Command) -> String {
    let (output, stderr) = run(&mut command);
    assert!(output.status.success(), "{command:?} failed with {}:\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8 output")
}

/// Runs a command that must fail by itself, with one line of error, at most one hint after it, and without a panic; returns both.
pub fn assert_refused(mut command: Command) -> String {
    let (output, stderr) = run(&mut command);
    let code = output.status.code().unwrap_or_else(|| panic!("{command:?} was killed: {}\n{stderr}", output.status));
    assert!(code != 0, "{command:?} succeeded, and should have been refused");
    assert!(!stderr.contains("panicked"), "{command:?} panicked:\n{stderr}");
    let errors: Vec<usize> = stderr.match_indices("error: ").map(|(at, _)| at).filter(|&at| starts_line(&stderr, at)).collect();
    assert_eq!(errors.len(), 1, "{command:?} must print one line of error:\n{stderr}");
    let lines: Vec<&str> = stderr[errors[0]..].trim_end().lines().collect();
    assert!(lines.len() == 1 || lines.len() == 2 && lines[1].starts_with("hint: "), "error and hint come last:\n{stderr}");
    lines.join("\n")
}

fn starts_line(text: &str, at: usize) -> bool {
    at == 0 || text.as_bytes()[at - 1] == b'\n'
}

/// Output of a refused command, with `DIR` in place of its folder, for a snapshot.
pub fn refusal(command: Command, folder: &Path) -> String {
    let printed = assert_refused(command);
    let canonical = folder.canonicalize().expect("a folder that is there");
    printed.replace(&*canonical.to_string_lossy(), "DIR").replace(&*folder.to_string_lossy(), "DIR")
}

/// A NIfTI-1 file of float32 voxels, first axis fastest, spacing 1 × 1 × 3 mm.
pub fn nifti(shape: [i16; 3], voxels: &[f32]) -> Vec<u8> {
    assert_eq!(shape.iter().map(|&n| n as usize).product::<usize>(), voxels.len());
    let mut bytes = vec![0u8; 352];
    bytes[0..4].copy_from_slice(&348i32.to_le_bytes());
    for (index, extent) in [3, shape[0], shape[1], shape[2], 1, 1, 1, 1].into_iter().enumerate() {
        bytes[40 + 2 * index..42 + 2 * index].copy_from_slice(&extent.to_le_bytes());
    }
    bytes[70..72].copy_from_slice(&16i16.to_le_bytes()); // DT_FLOAT32
    bytes[72..74].copy_from_slice(&32i16.to_le_bytes());
    for (index, size) in [1f32, 1.0, 1.0, 3.0].into_iter().enumerate() {
        bytes[76 + 4 * index..80 + 4 * index].copy_from_slice(&size.to_le_bytes());
    }
    bytes[108..112].copy_from_slice(&352f32.to_le_bytes());
    bytes[344..348].copy_from_slice(b"n+1\0");
    bytes.extend(voxels.iter().flat_map(|voxel| voxel.to_le_bytes()));
    bytes
}

/// Compresses and writes image and label of a case in the raw Synapse layout.
pub fn write_pair(folder: &Path, case: u32, image: &[u8], label: &[u8]) {
    for (kind, bytes) in [("img", image), ("label", label)] {
        let below = folder.join("RawData/Training").join(kind);
        fs::create_dir_all(&below).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        fs::write(below.join(format!("{kind}{case:04}.nii.gz")), encoder.finish().unwrap()).unwrap();
    }
}
