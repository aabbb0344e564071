//! The CUDA build on a driver of the host's (`tests/cuda_host/`): what a run calls, and what it does when a call fails.
//!
//! `make test-cuda-host-whole` runs it; it needs the driver in place of NVIDIA's.
#![cfg(feature = "cuda")]

mod cli;
mod common;
#[path = "common/store.rs"]
mod store;

use sam_ladder_schemas::precompute::StoreDtype;
use sam_ladder_schemas::variants::AugmentPolicy;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use store::write_store;
use tempfile::TempDir;

fn workplace() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_store(&folder.path().join("store.zarr"), StoreDtype::F32, AugmentPolicy::Flips, 1);
    folder
}

/// `train` into the folder `run` on the driver; the store has 8 slices.
fn train(folder: &Path, run: &str, words: &str) -> Command {
    let mut command = cli::on(folder, &format!("train --store @store.zarr --run @{run} --warmup 2 --device cuda:0 {words}"));
    command.env("SAM_LADDER_CUDA_REPORT", report_path(folder, run));
    command
}

fn report_path(folder: &Path, run: &str) -> PathBuf {
    folder.join(format!("{run}.report.json"))
}

/// A number of the driver's report on a run; 0 if nothing was counted.
fn counted(folder: &Path, run: &str, what: &str) -> i64 {
    let text = fs::read_to_string(report_path(folder, run)).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    report["counts"][what].as_i64().unwrap_or(0)
}

/// The bytes of a finished run's model and steps.
fn result(folder: &Path, run: &str) -> [Vec<u8>; 2] {
    ["checkpoint.safetensors", "steps.parquet"].map(|file| fs::read(folder.join(run).join(file)).unwrap())
}

/// A recorded step does what a plain one does, for every gate: without memory that the graph frees and did not allocate, without memory for
/// cuBLAS in the graph, and with the pool given back before.
#[test]
fn every_gate_goes_through_a_graph() {
    let folder = workplace();
    for gate in ["scalar", "channel", "pixel"] {
        let [plain, graphed] = [format!("plain-{gate}"), format!("graphed-{gate}")];
        cli::succeed(train(folder.path(), &plain, &format!("--epochs 4 --batch-size 4 --gate {gate}")));
        cli::succeed(train(folder.path(), &graphed, &format!("--epochs 4 --batch-size 4 --gate {gate} --cuda-graph")));
        assert!(counted(folder.path(), &graphed, "graph launches") >= 4, "{gate}");
        for mistake in ["cuBLAS workspaces that a graph allocates", "recordings that begin while the pool keeps freed memory"] {
            assert_eq!(counted(folder.path(), &graphed, mistake), 0, "{gate}: {mistake}");
        }
        assert!(result(folder.path(), &plain) == result(folder.path(), &graphed), "{gate}: the graph's run is another one");
    }
}

/// Steps do not wait for the device: an epoch of four steps waits as often as one of two.
#[test]
fn a_step_does_not_wait() {
    let folder = workplace();
    for gate in ["scalar", "channel", "pixel"] {
        let [few, many] = [4, 2].map(|batch| {
            let run = format!("{gate}-{batch}");
            let words = format!("--epochs 2 --batch-size {batch} --gate {gate} --device-store 1G");
            cli::succeed(train(folder.path(), &run, &words));
            counted(folder.path(), &run, "waits of the host")
        });
        assert_eq!(few, many, "{gate}");
    }
}

/// One handle of each library, however many threads and epochs.
#[test]
fn a_device_has_one_handle_of_each_library() {
    let folder = workplace();
    cli::succeed(train(folder.path(), "run", "--epochs 3 --batch-size 4 --val-cases 0007"));
    assert_eq!(counted(folder.path(), "run", "call: cudnnCreate"), 1);
    assert_eq!(counted(folder.path(), "run", "call: cublasCreate"), 1);
}

/// `--device-store auto` leaves memory for the graph too: of 16 GiB a plain run takes what 10 leave for its items, a recorded one nothing.
#[test]
fn auto_leaves_memory_for_a_recorded_step() {
    let folder = workplace();
    for (run, words, place) in [("plain", "", "all in the GPU's memory"), ("graphed", "--cuda-graph", "read batch by batch")] {
        let mut command = train(folder.path(), run, &format!("--epochs 1 --batch-size 4 {words}"));
        let output = command.env("SAM_LADDER_CUDA_MEMORY", (16u64 << 30).to_string()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains(place), "{run}: {said}");
    }
}

/// SGD has no second moment, and asks for no memory of length 0.
#[test]
fn every_optimizer_trains() {
    let folder = workplace();
    for optimizer in ["adamw", "adam", "sgd"] {
        cli::succeed(train(folder.path(), optimizer, &format!("--epochs 2 --batch-size 4 --optimizer {optimizer}")));
        cli::succeed(train(
            folder.path(),
            &format!("{optimizer}-graph"),
            &format!("--epochs 4 --batch-size 4 --optimizer {optimizer} --cuda-graph"),
        ));
        assert!(counted(folder.path(), &format!("{optimizer}-graph"), "graph launches") > 0, "{optimizer}");
    }
}

/// A recording that fails is ended, and the run goes on step by step from the state before.
#[test]
fn a_recording_that_fails_leaves_a_plain_run() {
    let folder = workplace();
    cli::succeed(train(folder.path(), "plain", "--epochs 4 --batch-size 4"));
    let faults = [
        "cuStreamEndCapture:1=901",
        "cuGraphInstantiate:1=801",
        "cuGraphUpload:1=2",
        "cuGraphLaunch:1=700",
        "cuStreamBeginCapture:1=401",
        // Within the recording: an error that is returned, and one that the binding keeps for its next call.
        "record/cuLaunchKernel:20=701",
        "record/cuMemFreeAsync:20=1",
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        let run = format!("failed-{index}");
        let mut command = train(folder.path(), &run, "--epochs 4 --batch-size 4 --cuda-graph");
        command.env("SAM_LADDER_CUDA_FAIL", fault);
        cli::succeed(command);
        assert_eq!(counted(folder.path(), &run, "left: recordings"), 0, "{fault}");
        assert!(fs::read_to_string(folder.path().join(&run).join("log.txt")).unwrap().contains("no CUDA graph"), "{fault}");
        assert!(result(folder.path(), "plain") == result(folder.path(), &run), "{fault}: the run is another one");
    }
}

/// Whatever call fails, the run ends with an error that says so, and the next one resumes it.
#[test]
fn a_call_that_fails_ends_with_an_error() {
    let folder = workplace();
    cli::succeed(train(folder.path(), "plain", "--epochs 2 --batch-size 4"));
    let late = |call: &str| counted(folder.path(), "plain", &format!("call: {call}")) * 3 / 4;
    let faults = [
        ("cuInit", 1, 999),
        ("cuDevicePrimaryCtxRetain", 1, 2),
        ("cuMemAllocAsync", late("cuMemAllocAsync"), 2),
        ("cuLaunchKernel", late("cuLaunchKernel"), 701),
        ("cuMemcpyHtoDAsync", late("cuMemcpyHtoDAsync"), 1),
        ("cuMemcpyDtoHAsync", late("cuMemcpyDtoHAsync"), 700),
        ("cuModuleLoadData", 1, 222),
        ("cuMemFreeAsync", late("cuMemFreeAsync"), 700),
        ("cublasGemmStridedBatchedEx", late("cublasGemmStridedBatchedEx"), 13),
        ("cudnnCreate", 1, 1001),
        ("cudnnConvolutionForward", late("cudnnConvolutionForward"), 5000),
        ("cudnnConvolutionBackwardFilter", late("cudnnConvolutionBackwardFilter"), 5000),
    ];
    for (call, nth, code) in faults {
        assert!(nth > 0, "{call} is never made");
        let run = format!("failed-{call}");
        let mut command = train(folder.path(), &run, "--epochs 2 --batch-size 4");
        command.env("SAM_LADDER_CUDA_FAIL", format!("{call}:{nth}={code}"));
        cli::assert_refused(command);
        // An error of freeing memory may come when all is done.
        let resume = if folder.path().join(&run).join("config.json").exists() { "--resume" } else { "" };
        cli::succeed(train(folder.path(), &run, &format!("--epochs 2 --batch-size 4 {resume}")));
        assert!(result(folder.path(), "plain") == result(folder.path(), &run), "{call}: the resumed run is another one");
    }
}
