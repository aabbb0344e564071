//! `--precision bf16` on the CPU, in both stages: where the processor multiplies bfloat16 numbers, and what others say.

mod cli;
#[path = "common/folders.rs"]
mod folders;

use std::path::Path;
use std::process::Command;

use cli::{nifti, write_pair};
use folders::{assert_same_files, files};
use sam_ladder_cache::{Batch, Store};
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::tables::StepRow;
use sam_ladder_schemas::train::STEPS_TABLE;

/// Two training cases of four slices.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for case in [5, 7] {
        let voxels = 8 * 9 * 4;
        let image: Vec<f32> = (0..voxels).map(|i| ((i * 37 + case * 101) % 400) as f32 - 125.0).collect();
        let label: Vec<f32> = (0..voxels).map(|i| ((i / 5 + case) % 12) as f32).collect();
        write_pair(folder.path(), case as u32, &nifti([8, 9, 4], &image), &nifti([8, 9, 4], &label));
    }
    folder
}

fn precompute(folder: &Path, store: &str, more: &str) -> Command {
    let words = "--scans @RawData --random-encoder 1 --image-size 64 --data-size 64 --augment none --dtype f32 --device cpu";
    cli::on(folder, &format!("precompute {words} --store @{store} {more}"))
}

fn train(folder: &Path, run: &str, more: &str) -> Command {
    let words = "--store @f32.zarr --epochs 2 --batch-size 4 --warmup 2 --device cpu";
    cli::on(folder, &format!("train {words} --run @{run} {more}"))
}

fn embeddings(store: &Path) -> Vec<f32> {
    let store = Store::open(store).unwrap();
    let picks: Vec<(u32, u32)> = (0..store.slices(Split::Train).len() as u32).map(|row| (row, 0)).collect();
    let mut batch = Batch::default();
    store.read_batch(Split::Train, &picks, &mut batch).unwrap();
    batch.embeddings.to_vec()
}

#[test]
fn both_stages_compute_in_bfloat16_or_name_the_instruction() {
    let folder = workplace();
    let at = |name: &str| folder.path().join(name);
    cli::succeed(precompute(folder.path(), "f32.zarr", ""));
    if sam_ladder_ops::bf16_instructions().is_none() {
        for command in
            [precompute(folder.path(), "bf16.zarr", "--precision bf16"), train(folder.path(), "run", "--precision bf16")]
        {
            let said = cli::assert_refused(command);
            assert!(said.contains("AVX512-BF16") && said.contains("hint: pass --precision f32"), "{said}");
        }
        assert!(!at("bf16.zarr").exists() && !at("run").exists());
        return;
    }
    // The store: near float32's, part of its identity, and the same bytes whatever is batched together.
    cli::succeed(precompute(folder.path(), "bf16.zarr", "--precision bf16 --batch-size 8"));
    let [exact, rounded] = ["f32.zarr", "bf16.zarr"].map(|store| embeddings(&at(store)));
    let largest = exact.iter().fold(0f32, |most, v| most.max(v.abs()));
    let error = exact.iter().zip(&rounded).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest;
    assert!(error > 1e-5 && error < 5e-2, "{error}");
    cli::succeed(precompute(folder.path(), "by-three.zarr", "--precision bf16 --batch-size 3"));
    assert_same_files(&at("by-three.zarr"), &files(&at("bf16.zarr")), "batches of three");
    let said = cli::assert_refused(precompute(folder.path(), "bf16.zarr", ""));
    assert!(said.contains("precision"), "{said}");

    // Training: near float32's losses, and a run that stopped and resumed has the same bytes.
    let losses =
        |run: &str| -> Vec<f32> { read_rows::<StepRow>(&at(run).join(STEPS_TABLE)).unwrap().iter().map(|r| r.loss).collect() };
    cli::succeed(train(folder.path(), "exact", ""));
    cli::succeed(train(folder.path(), "rounded", "--precision bf16"));
    let [exact, rounded] = ["exact", "rounded"].map(losses);
    assert_ne!(exact, rounded);
    for (exact, rounded) in exact.iter().zip(&rounded) {
        assert!((exact - rounded).abs() < 2e-2 * exact, "{rounded}, in float32 {exact}");
    }
    cli::succeed(train(folder.path(), "stopped", "--precision bf16 --max-steps 3"));
    cli::succeed(cli::on(folder.path(), "train --store @f32.zarr --run @stopped --device cpu --resume --max-steps 4"));
    for file in ["checkpoint.safetensors", STEPS_TABLE] {
        let [whole, resumed] = ["rounded", "stopped"].map(|run| std::fs::read(at(run).join(file)).unwrap());
        assert!(whole == resumed, "{file} differs");
    }
}
