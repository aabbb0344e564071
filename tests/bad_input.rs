//! Bad input through the command line: a message that names the file, a hint, a non-zero exit status, no panic, no finished work lost.

mod cli;

use cli::{assert_refused, nifti, program, succeed, write_pair};
use std::fs;
use std::path::Path;

/// `precompute` at the encoder's smallest size, so that bad input is refused quickly.
fn precompute(scans: &Path, store: &Path) -> std::process::Command {
    let mut command =
        program(&["precompute", "--random-encoder", "0", "--image-size", "16", "--data-size", "16", "--augment", "none"]);
    command.arg("--scans").arg(scans).arg("--store").arg(store);
    command
}

#[test]
fn an_empty_folder() {
    let folder = tempfile::tempdir().unwrap();
    let error = assert_refused(precompute(folder.path(), &folder.path().join("s.zarr")));
    assert!(error.contains(&folder.path().display().to_string()), "{error}");
    assert!(!folder.path().join("s.zarr").exists(), "a refused input must leave no store behind");
}

/// Labels of a scan of 8 × 8 × 2 voxels, all of the first class.
fn labels() -> Vec<u8> {
    nifti([8, 8, 2], &[1.0; 128])
}

#[test]
fn a_folder_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let error = assert_refused(precompute(&folder.path().join("nowhere"), &folder.path().join("s.zarr")));
    assert!(error.contains("nowhere"), "{error}");
}

#[test]
fn a_file_that_is_not_nifti() {
    let folder = tempfile::tempdir().unwrap();
    write_pair(folder.path(), 5, &nifti([8, 8, 2], &[0.0; 128]), &nifti([8, 8, 2], &[0.0; 128]));
    fs::write(folder.path().join("RawData/Training/img/img0005.nii.gz"), b"this is a text file, not a scan").unwrap();
    let error = assert_refused(precompute(folder.path(), &folder.path().join("s.zarr")));
    assert!(error.contains("img0005.nii.gz"), "{error}");
}

#[test]
fn a_truncated_scan() {
    let folder = tempfile::tempdir().unwrap();
    let whole = nifti([8, 8, 2], &[0.0; 128]);
    write_pair(folder.path(), 5, &whole[..whole.len() - 100], &labels());
    let error = assert_refused(precompute(folder.path(), &folder.path().join("s.zarr")));
    assert!(error.contains("img0005.nii.gz"), "{error}");
}

#[test]
fn a_header_that_claims_the_impossible() {
    let folder = tempfile::tempdir().unwrap();
    let mut huge = nifti([8, 8, 2], &[0.0; 128]);
    for axis in 1..=3 {
        huge[40 + 2 * axis..42 + 2 * axis].copy_from_slice(&i16::MAX.to_le_bytes());
    }
    write_pair(folder.path(), 5, &huge, &huge);
    let error = assert_refused(precompute(folder.path(), &folder.path().join("s.zarr")));
    assert!(error.contains("0005.nii.gz"), "{error}");
}

#[test]
fn image_and_label_of_different_shapes() {
    let folder = tempfile::tempdir().unwrap();
    write_pair(folder.path(), 5, &nifti([8, 8, 2], &[0.0; 128]), &nifti([8, 8, 3], &[0.0; 192]));
    let error = assert_refused(precompute(folder.path(), &folder.path().join("s.zarr")));
    assert!(error.contains("0005.nii.gz"), "{error}");
}

#[test]
fn a_label_out_of_range() {
    let folder = tempfile::tempdir().unwrap();
    let mut labels = [0.0; 128];
    labels[77] = 14.0;
    write_pair(folder.path(), 5, &nifti([8, 8, 2], &[0.0; 128]), &nifti([8, 8, 2], &labels));
    let error = assert_refused(precompute(folder.path(), &folder.path().join("s.zarr")));
    assert!(error.contains("label0005.nii.gz") && error.contains("14"), "{error}");
}

#[test]
fn nan_in_a_scan() {
    let folder = tempfile::tempdir().unwrap();
    let mut voxels = [0.0; 128];
    voxels[100] = f32::NAN;
    write_pair(folder.path(), 5, &nifti([8, 8, 2], &voxels), &labels());
    let error = assert_refused(precompute(folder.path(), &folder.path().join("s.zarr")));
    assert!(error.contains("img0005.nii.gz"), "{error}");
}

#[test]
fn an_image_without_a_label() {
    let folder = tempfile::tempdir().unwrap();
    let scan = nifti([8, 8, 2], &[0.0; 128]);
    write_pair(folder.path(), 5, &scan, &labels());
    write_pair(folder.path(), 6, &scan, &scan);
    fs::remove_file(folder.path().join("RawData/Training/label/label0006.nii.gz")).unwrap();
    let error = assert_refused(precompute(folder.path(), &folder.path().join("s.zarr")));
    assert!(error.contains("0006.nii.gz"), "{error}");
}

#[test]
fn a_checkpoint_of_another_kind() {
    let folder = tempfile::tempdir().unwrap();
    let scan = nifti([8, 8, 2], &[0.0; 128]);
    write_pair(folder.path(), 5, &scan, &labels());
    let checkpoint = folder.path().join("resnet.safetensors");
    let values = [0u8; 16];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![4], &values).unwrap();
    safetensors::serialize_to_file([("conv1.weight", view)], None, &checkpoint).unwrap();
    let mut command = program(&["precompute", "--image-size", "16", "--data-size", "16"]);
    command
        .arg("--scans")
        .arg(folder.path())
        .arg("--store")
        .arg(folder.path().join("s.zarr"))
        .arg("--sam-checkpoint")
        .arg(&checkpoint);
    let error = assert_refused(command);
    assert!(error.contains("resnet.safetensors"), "{error}");
}

#[test]
fn a_damaged_pth() {
    let folder = tempfile::tempdir().unwrap();
    let scan = nifti([8, 8, 2], &[0.0; 128]);
    write_pair(folder.path(), 5, &scan, &labels());
    let checkpoint = folder.path().join("sam_vit_b.pth");
    for damaged in [&b""[..], b"PK\x03\x04 and then nothing that a zip file has", b"\x80\x02}q\x00."] {
        fs::write(&checkpoint, damaged).unwrap();
        let mut command = program(&["precompute", "--image-size", "16", "--data-size", "16"]);
        command.arg("--scans").arg(folder.path()).arg("--store").arg(folder.path().join("s.zarr"));
        command.arg("--sam-checkpoint").arg(&checkpoint);
        let error = assert_refused(command);
        assert!(error.contains("sam_vit_b.pth"), "{error}");
    }
}

#[test]
fn an_existing_output_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let scans = folder.path().join("scans");
    let scan = nifti([8, 8, 2], &[0.0; 128]);
    write_pair(&scans, 5, &scan, &labels());
    let taken = folder.path().join("thesis");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("chapter1.tex"), "years of work").unwrap();
    let error = assert_refused(precompute(&scans, &taken));
    assert!(error.contains("thesis"), "{error}");
    assert_eq!(fs::read_to_string(taken.join("chapter1.tex")).unwrap(), "years of work");
    assert_eq!(fs::read_dir(&taken).unwrap().count(), 1);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_gpu_in_a_cpu_build() {
    let folder = tempfile::tempdir().unwrap();
    let scan = nifti([8, 8, 2], &[0.0; 128]);
    write_pair(folder.path(), 5, &scan, &labels());
    let mut command = precompute(folder.path(), &folder.path().join("s.zarr"));
    command.args(["--device", "cuda:0"]);
    let error = assert_refused(command);
    assert!(error.contains("feature `cuda`"), "{error}");
}

/// A bad scan does not affect the good ones: they are encoded, and the same command finishes once the bad one is replaced.
#[test]
fn a_bad_scan_loses_nothing_finished() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store) = (folder.path().join("scans"), folder.path().join("s.zarr"));
    let scan = nifti([8, 8, 2], &[10.0; 128]);
    write_pair(&scans, 5, &scan, &scan_of_labels());
    write_pair(&scans, 1, &scan, &scan_of_labels());
    let mut nan = [0.0; 128];
    nan[3] = f32::NAN;
    write_pair(&scans, 6, &nifti([8, 8, 2], &nan), &scan_of_labels());
    let error = assert_refused(precompute(&scans, &store));
    assert!(error.contains("img0006.nii.gz"), "{error}");
    let train = || {
        let mut command = program(&["train", "--epochs", "1", "--batch-size", "2"]);
        command.arg("--store").arg(&store).arg("--run").arg(folder.path().join("run"));
        command
    };
    let error = assert_refused(train());
    assert!(error.contains("s.zarr"), "{error}");

    write_pair(&scans, 6, &scan, &scan_of_labels());
    succeed(precompute(&scans, &store));
    succeed(train());
}

fn scan_of_labels() -> Vec<u8> {
    let mut labels = [0.0; 128];
    labels[20..40].fill(6.0);
    nifti([8, 8, 2], &labels)
}
