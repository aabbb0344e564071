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
use store::write_store_with;
use tempfile::TempDir;

fn workplace() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let augment = [AugmentPolicy::Flips, AugmentPolicy::None];
    write_store_with(&folder.path().join("store.zarr"), StoreDtype::F32, augment, 1, (&[2, 11], true));
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

/// Every gate, and with one of them all that else changes a step's operations.
const GATES: [&str; 4] =
    ["scalar --decoder skips-half", "channel", "pixel", "scalar --decoder skips --neighbours 1 --ladder gated"];

/// A recorded step does what a plain one does, for every gate: without memory that the graph frees and did not allocate, without memory for
/// cuBLAS in the graph, and with the pool given back before.
#[test]
fn every_gate_goes_through_a_graph() {
    let folder = workplace();
    for gate in GATES {
        let [plain, graphed] = ["plain", "graphed"].map(|way| format!("{way}-{}", gate.replace(' ', "")));
        cli::succeed(train(folder.path(), &plain, &format!("--epochs 4 --batch-size 4 --gate {gate} --cuda-graph off")));
        cli::succeed(train(folder.path(), &graphed, &format!("--epochs 4 --batch-size 4 --gate {gate} --cuda-graph")));
        assert_eq!(counted(folder.path(), &plain, "graph launches"), 0, "{gate}");
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
    for gate in GATES {
        let [few, many] = [4, 2].map(|batch| {
            let run = format!("{}-{batch}", gate.replace(' ', ""));
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

/// `--device-store auto` leaves 2 GiB for the libraries and what steps of this size take, which is little: of 3 GiB the items get what they need,
/// of 2 GiB nothing.
#[test]
fn auto_leaves_memory_for_training() {
    let folder = workplace();
    for (run, gib, place) in [("roomy", 3u64, "all in the GPU's memory"), ("tight", 2, "read batch by batch")] {
        let mut command = train(folder.path(), run, "--epochs 2 --batch-size 4");
        let output = command.env("SAM_LADDER_CUDA_MEMORY", (gib << 30).to_string()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains(place), "{run}: {said}");
        assert!(said.contains("has the same bits"), "{run}: {said}");
    }
}

/// A graph that leaves out a kernel changes nothing: it is compared with a plain step, and not used.
#[test]
fn a_graph_that_computes_something_else_is_not_used() {
    let folder = workplace();
    cli::succeed(train(folder.path(), "plain", "--epochs 3 --batch-size 4 --cuda-graph off"));
    for kernel in ["7", "60"] {
        let run = format!("without-{kernel}");
        let mut command = train(folder.path(), &run, "--epochs 3 --batch-size 4");
        command.env("SAM_LADDER_CUDA_GRAPH_LEAVES_OUT", kernel);
        cli::succeed(command);
        assert_eq!(counted(folder.path(), &run, "graph launches"), 1, "kernel {kernel}");
        assert!(
            fs::read_to_string(folder.path().join(&run).join("log.txt")).unwrap().contains("no CUDA graph"),
            "kernel {kernel}"
        );
        assert!(result(folder.path(), "plain") == result(folder.path(), &run), "kernel {kernel}: the run is another one");
    }
}

/// A recorded step is five calls and its launch, and allocates nothing: the indices of the batch and the optimizer's numbers are written to the
/// graph's memory, the batch is gathered there, and losses and gate are copied to where the host reads them later. Of a gate per channel the means are
/// computed there, of a gate per pixel bias and mean are two copies, and of a ladder there is one for each of two rungs, which are gathered, too.
#[test]
fn a_recorded_step_allocates_nothing() {
    let folder = workplace();
    for (run, words, launches, copies) in [
        ("resident", "--device-store 1G", 3, 2),
        ("read", "--device-store off", 3, 2),
        ("channel", "--device-store 1G --gate channel", 4, 2),
        ("pixel", "--device-store 1G --gate pixel", 3, 3),
        ("ladder", "--device-store 1G --decoder skips --neighbours 1 --ladder gated", 4, 4),
    ] {
        let calls = folder.path().join(format!("{run}.calls.csv"));
        let mut command = train(folder.path(), run, &format!("--epochs 2 --batch-size 1 {words}"));
        command.env("SAM_LADDER_CUDA_CALLS", &calls);
        cli::succeed(command);
        let text = fs::read_to_string(&calls).unwrap();
        let kinds: Vec<&str> = text.lines().map(|line| line.split(',').next().unwrap()).collect();
        let steps: Vec<&[&str]> = kinds.split(|kind| *kind == "graph").collect();
        // Before the first graph lies all the rest, after the last too; the end of an epoch reads numbers.
        let within: Vec<&&[&str]> = steps[1..steps.len() - 1].iter().filter(|calls| !calls.contains(&"to_host")).collect();
        assert!(within.len() >= 8, "{run}: {} steps lie between two graphs", within.len());
        for calls in within {
            let number = |kind: &str| calls.iter().filter(|call| **call == kind).count();
            assert_eq!(number("allocate") + number("free") + number("fill"), 0, "{run}: {calls:?}");
            assert_eq!((number("launch"), number("within_device")), (launches, copies), "{run}: {calls:?}");
        }
    }
}

/// A trial of a sweep makes the calls of a lone run and no more: its steps go through a graph of its own, and the items are uploaded once for all.
#[test]
fn a_trial_costs_what_a_lone_run_costs() {
    let folder = workplace();
    let fixed = "epochs = 4\nbatch_size = 3\nwarmup = 2\nlr = [1e-3, 2e-3]\n";
    let file = format!("[settings]\n{fixed}[search]\nmethod = \"grid\"\n[validation]\ncases = [\"0007\"]\n");
    fs::write(folder.path().join("s.toml"), file).unwrap();
    let mut command = cli::on(folder.path(), "sweep --store @store.zarr --config @s.toml --out @sweep --device cuda:0");
    let output = command.env("SAM_LADDER_CUDA_REPORT", report_path(folder.path(), "sweep")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.matches("the training step is a CUDA graph").count() == 1, "{said}");
    let lone = ["1e-3", "2e-3"].map(|lr| {
        let run = format!("lone-{lr}");
        cli::succeed(train(folder.path(), &run, &format!("--epochs 4 --batch-size 3 --val-cases 0007 --lr {lr}")));
        run
    });
    let of_both = |what: &str| lone.iter().map(|run| counted(folder.path(), run, what)).sum::<i64>();
    for what in ["graph launches", "graphs recorded", "cuBLAS products", "call: cudnnConvolutionForward"] {
        assert!(of_both(what) > 0, "{what}");
        assert_eq!(counted(folder.path(), "sweep", what), of_both(what), "{what}");
    }
    for what in ["launches", "call: cuMemcpyHtoDAsync", "call: cuMemAllocAsync", "waits of the host"] {
        let (sweep, lone) = (counted(folder.path(), "sweep", what), of_both(what));
        assert!(sweep <= lone, "{what}: {sweep} in the sweep, {lone} alone");
    }
}

/// Our modules are loaded as machine code where the build has that of the card's family. If it lacks it, or the driver refuses it, the PTX is loaded,
/// with the same result.
#[test]
fn modules_are_machine_code_where_it_fits() {
    let folder = workplace();
    let table = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ops/kernels.csv")).unwrap();
    let ours: Vec<&str> = table.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
    let loaded = |run: &str| -> [usize; 2] {
        let report: Value = serde_json::from_str(&fs::read_to_string(report_path(folder.path(), run)).unwrap()).unwrap();
        let counts: Vec<&String> = report["counts"].as_object().unwrap().keys().collect();
        ["module as machine code: ", "module as PTX: "].map(|prefix| {
            counts.iter().filter_map(|what| what.strip_prefix(prefix)).filter(|kernel| ours.contains(kernel)).count()
        })
    };
    let start = |run: &str, card: &str, fault: Option<&str>| {
        let mut command = train(folder.path(), run, "--epochs 1 --batch-size 4");
        command.env("SAM_LADDER_CUDA_CARD", card);
        if let Some(fault) = fault {
            command.env("SAM_LADDER_CUDA_FAIL", fault);
        }
        cli::succeed(command);
        loaded(run)
    };
    let found = ["a100", "rtx4090", "h100"].map(|card| (card, start(card, card, None)));
    for (card, [machine_code, ptx]) in found {
        assert!((machine_code > 8) != (ptx > 8) && machine_code.min(ptx) == 0, "{card}: {machine_code} and {ptx} modules");
        assert!(result(folder.path(), card) == result(folder.path(), "a100"), "{card}: the run is another one");
    }
    let (card, [all, _]) =
        found.into_iter().find(|(_, [machine_code, _])| *machine_code > 0).expect("code for 8.0 or 9.0 is built");
    assert_eq!(start("refused", card, Some("load machine code:2=209")), [all - 1, 1]);
    assert!(result(folder.path(), "refused") == result(folder.path(), "a100"), "the run is another one");
}

/// Each residual network takes activations in 16 bits, up to the projection of the largest.
#[test]
fn every_residual_network_trains_in_16_bits() {
    let folder = workplace();
    for network in ["resnet18", "resnet34", "resnet50"] {
        let words = format!("--epochs 2 --batch-size 4 --precision bf16 --side-network {network}");
        cli::succeed(train(folder.path(), network, &words));
        assert!(counted(folder.path(), network, "graph launches") > 0, "{network}");
    }
}

/// SGD has no second moment, and asks for no memory of length 0.
#[test]
fn every_optimizer_trains() {
    let folder = workplace();
    for optimizer in ["adamw", "adam", "sgd"] {
        let words = format!("--epochs 4 --batch-size 4 --optimizer {optimizer}");
        cli::succeed(train(folder.path(), &format!("{optimizer}-plain"), &format!("{words} --cuda-graph off")));
        cli::succeed(train(folder.path(), optimizer, &words));
        assert!(counted(folder.path(), optimizer, "graph launches") > 0, "{optimizer}");
        assert!(result(folder.path(), &format!("{optimizer}-plain")) == result(folder.path(), optimizer), "{optimizer}");
    }
}

/// A recording that fails is ended, and the run goes on step by step from the state before.
#[test]
fn a_recording_that_fails_leaves_a_plain_run() {
    let folder = workplace();
    cli::succeed(train(folder.path(), "plain", "--epochs 4 --batch-size 4 --cuda-graph off"));
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
        let mut command = train(folder.path(), &run, "--epochs 4 --batch-size 4");
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
    cli::succeed(train(folder.path(), "plain", "--epochs 2 --batch-size 4 --cuda-graph off"));
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
        // Machine code that cannot be loaded is followed by the PTX.
        let again = if call == "cuModuleLoadData" { format!(",{call}:{}={code}", nth + 1) } else { String::new() };
        let mut command = train(folder.path(), &run, "--epochs 2 --batch-size 4 --cuda-graph off");
        command.env("SAM_LADDER_CUDA_FAIL", format!("{call}:{nth}={code}{again}"));
        cli::assert_refused(command);
        // An error of freeing memory may come when all is done.
        let resume = if folder.path().join(&run).join("config.json").exists() { "--resume" } else { "" };
        cli::succeed(train(folder.path(), &run, &format!("--epochs 2 --batch-size 4 --cuda-graph off {resume}")));
        assert!(result(folder.path(), "plain") == result(folder.path(), &run), "{call}: the resumed run is another one");
    }
}
