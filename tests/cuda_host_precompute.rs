//! Stage one of the CUDA build on the host's driver (`tests/cuda_host/`): uploads, encoding, downloads and writing overlap.
//!
//! `make test-cuda-host-whole` runs it; it needs the driver in place of NVIDIA's.
#![cfg(feature = "cuda")]

mod cli;
#[path = "common/folders.rs"]
mod folders;

use cli::{nifti, write_pair};
use folders::{assert_same_files, files};
use sam_ladder_cache::{Batch, Store};
use sam_ladder_precompute::rungs::RungMaps;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::store::RUNG_PROJECTION;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// Slices of the only scan.
const SLICES: usize = 10;
/// Images that go through the encoder together.
const BATCH: usize = 2;
/// Bytes of a batch's images, `[2, 1, 32, 32]` of float32, and of its embeddings, `[2, 256, 2, 2]`.
const BATCH_BYTES: usize = 8192;

fn workplace() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let voxels = 8 * 9 * SLICES;
    let image: Vec<f32> = (0..voxels).map(|i| ((i * 37) % 400) as f32 - 125.0).collect();
    let label: Vec<f32> = (0..voxels).map(|i| ((i / 5) % 12) as f32).collect();
    let size = [8, 9, SLICES as i16];
    write_pair(folder.path(), 5, &nifti(size, &image), &nifti(size, &label));
    folder
}

/// `precompute` into a store.
fn precompute(folder: &Path, store: &str, device: &str) -> Command {
    let words = "--scans @RawData --random-encoder 1 --image-size 32 --data-size 16 --augment none --dtype f32";
    let mut command = cli::on(folder, &format!("precompute {words} --batch-size {BATCH} --device {device} --store @{store}"));
    command.env("SAM_LADDER_CUDA_CALLS", folder.join(format!("{store}.calls.csv")));
    command
}

/// A line of the driver's list of calls.
#[derive(Debug, PartialEq)]
enum Call {
    Upload {
        pinned: bool,
        bytes: usize,
        stream: String,
    },
    Download {
        pinned: bool,
        bytes: usize,
        stream: String,
    },
    /// The host waits for this stream, on which work is left.
    Wait(String),
}

/// The copies and waits of each thread, in order.
fn calls_of(folder: &Path, store: &str) -> Vec<(usize, Call)> {
    let text = fs::read_to_string(folder.join(format!("{store}.calls.csv"))).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("kind,name,thread,stream,grid,block,shared_bytes,parameter_bytes,bytes,shape"));
    let call = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        let [kind, _, thread, stream, _, _, _, _, bytes, shape] = cells[..] else { panic!("{line}") };
        let (stream, bytes) = (stream.to_owned(), bytes.parse().unwrap());
        let call = match (kind, shape) {
            ("to_device", from) => Call::Upload { pinned: from == "from=pinned", bytes, stream },
            ("to_host", to) => Call::Download { pinned: to == "to=pinned", bytes, stream },
            ("wait", "done=no") => Call::Wait(stream),
            _ => return None,
        };
        Some((thread.parse().unwrap(), call))
    };
    lines.filter_map(call).collect()
}

/// Places in the list of the copies of batches from pinned memory to the device, or into it from there, and their stream.
fn copies(calls: &[(usize, Call)], upload: bool) -> (Vec<usize>, String) {
    let of_batch = calls.iter().enumerate().filter_map(|(place, (_, call))| match call {
        Call::Upload { pinned: true, bytes: BATCH_BYTES, stream } if upload => Some((place, stream.clone())),
        Call::Download { pinned: true, bytes: BATCH_BYTES, stream } if !upload => Some((place, stream.clone())),
        _ => None,
    });
    let (places, mut streams): (Vec<usize>, Vec<String>) = of_batch.unzip();
    assert_eq!(places.len(), SLICES / BATCH, "each batch is copied once, from and to pinned memory: {calls:?}");
    streams.dedup();
    assert_eq!(streams.len(), 1, "the copies of one direction have a stream");
    (places, streams.remove(0))
}

/// Batch n+1 is on its way to the device before batch n is waited for, and the thread that queues work waits for no result.
#[test]
fn the_next_batch_is_queued_before_one_is_waited_for() {
    let folder = workplace();
    cli::succeed(precompute(folder.path(), "s.zarr", "cuda:0"));
    let calls = calls_of(folder.path(), "s.zarr");
    let ((uploads, up), (downloads, down)) = (copies(&calls, true), copies(&calls, false));
    assert_ne!(up, down, "uploads and downloads have streams of their own");
    let queueing = calls[uploads[0]].0;
    assert!(uploads.iter().chain(&downloads).all(|&place| calls[place].0 == queueing), "one thread queues all work");

    let waits = |own: bool| -> Vec<(usize, &str)> {
        let since = calls.iter().enumerate().skip(uploads[0]);
        let found = since.filter_map(|(place, (thread, call))| match call {
            Call::Wait(what) if (*thread == queueing) == own => Some((place, what.as_str())),
            _ => None,
        });
        found.collect()
    };
    let fetching = waits(false);
    assert_eq!(fetching.len(), uploads.len(), "one wait for each batch: {fetching:?}");
    for (n, (place, stream)) in fetching.into_iter().enumerate() {
        assert_eq!(stream, down, "batch {n}");
        assert!(place > downloads[n], "batch {n} is waited for before its download is queued");
        assert!(
            uploads.get(n + 1).is_none_or(|&next| next < place),
            "batch {n} is waited for before the next is queued: {calls:?}"
        );
    }
    // There are two buffers for uploads: each but the first two waits until the one two before is done.
    let queued = waits(true);
    assert!(queued.len() <= uploads.len() - 2, "{queued:?}");
    assert!(queued.iter().all(|(_, stream)| *stream == up), "{queued:?}, and uploads are on {up}");

    // Shapes of strided tensors are uploaded for the first batch and kept.
    let pageable = |call: &Call| matches!(call, Call::Upload { pinned: false, .. } | Call::Download { pinned: false, .. });
    let late: Vec<_> = calls[uploads[1]..].iter().filter(|(_, call)| pageable(call)).collect();
    assert!(late.is_empty(), "copies of pageable memory after the first batch: {late:?}");
}

/// The store is the same in whatever order the device does what nothing else orders, and the CPU's up to rounding.
#[test]
fn the_store_does_not_depend_on_when_copies_are_done() {
    let folder = workplace();
    cli::succeed(precompute(folder.path(), "late.zarr", "cuda:0"));
    let late = files(&folder.path().join("late.zarr"));
    for order in ["eager", "copies-first"] {
        let mut command = precompute(folder.path(), &format!("{order}.zarr"), "cuda:0");
        cli::succeed({
            command.env("SAM_LADDER_CUDA_ORDER", order);
            command
        });
        assert_same_files(&folder.path().join(format!("{order}.zarr")), &late, order);
    }
    cli::succeed(precompute(folder.path(), "cpu.zarr", "cpu"));
    let [found, expected] = ["late.zarr", "cpu.zarr"].map(|store| embeddings(&folder.path().join(store)));
    let scale = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!((found - expected).abs() < 1e-3 * scale, "value {i}: {found}, on the CPU {expected}");
    }
}

/// Embeddings of 16 bits are float32's up to rounding: the largest difference, over the largest value, is within what `make gpu-check` allows.
#[test]
fn sixteen_bits_are_near_float32() {
    let folder = workplace();
    let encode = |precision: &str| {
        let store = format!("{precision}.zarr");
        let mut command = precompute(folder.path(), &store, "cuda:0");
        command.args(["--precision", precision]);
        cli::succeed(command);
        embeddings(&folder.path().join(store))
    };
    let expected = encode("f32");
    let scale = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    for (precision, wrong) in [("bf16", 8e-2), ("f16", 1.5e-2)] {
        for (i, (found, expected)) in encode(precision).iter().zip(&expected).enumerate() {
            // Not `>`, which is false of NaN.
            let near = (found - expected).abs() <= wrong * scale;
            assert!(near, "{precision}, value {i}: {found}, in float32 {expected} of at most {scale}");
        }
    }
}

/// Tokens that are taken on the way are the CPU's up to rounding, brought to the channels of a rung by the map in the store's own file; the
/// embeddings keep their bits.
#[test]
fn rungs_are_those_of_the_cpu() {
    let folder = workplace();
    cli::succeed(precompute(folder.path(), "plain.zarr", "cuda:0"));
    let plain = embeddings(&folder.path().join("plain.zarr"));
    let fill = |projection: &str, device: &str| {
        let store = format!("{projection}-{}.zarr", &device[..3]);
        let mut command = precompute(folder.path(), &store, device);
        command.args(["--rungs", "0,11", "--rung-projection", projection]);
        command.args(if projection == "none" { &[][..] } else { &["--rung-channels", "8"] });
        cli::succeed(command);
        folder.path().join(store)
    };
    let rungs = |store: &Path| whole(store, Batch::with_rungs()).rungs.unwrap().to_vec();
    let tokens = rungs(&fill("none", "cpu"));
    // A random map takes the way of the principal components.
    for projection in ["none", "pca"] {
        let store = fill(projection, "cuda:0");
        assert!(embeddings(&store) == plain, "{projection}");
        let (found, expected) = (rungs(&store), if projection == "none" { tokens.clone() } else { mapped(&tokens, &store) });
        let scale = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // Not `>`, which is false of NaN.
            let near = (found - expected).abs() <= 1e-3 * scale;
            assert!(near, "{projection}, value {i}: {found}, expected {expected} of at most {scale}");
        }
    }
}

/// Embeddings and tokens of DINO's encoders, with tokens before the patches, rotary positions and images of another size, are the CPU's up to rounding;
/// in 16 bits they are near these.
#[test]
fn other_encoders_are_those_of_the_cpu() {
    let folder = workplace();
    for (encoder, precisions) in [
        ("dinov2_vits14", &[("f32", 1e-3)][..]),
        ("dinov2_vits14_reg", &[("f32", 1e-3), ("f16", 1.5e-2)]),
        ("dinov3_vits16", &[("f32", 1e-3), ("bf16", 8e-2)]),
    ] {
        let fill = |device: &str, precision: &str| {
            let store = format!("{encoder}-{}-{precision}.zarr", &device[..3]);
            let mut command = precompute(folder.path(), &store, device);
            command.args(["--encoder", encoder, "--rungs", "0,11", "--rung-projection", "none", "--precision", precision]);
            command.args(["--pixel-normalisation", "imagenet"]);
            cli::succeed(command);
            let batch = whole(&folder.path().join(store), Batch::with_rungs());
            [batch.embeddings.to_vec(), batch.rungs.unwrap().to_vec()]
        };
        let expected = fill("cpu", "f32");
        for &(precision, wrong) in precisions {
            for (found, expected) in fill("cuda:0", precision).iter().zip(&expected) {
                let scale = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
                assert_eq!(found.len(), expected.len());
                for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                    // Not `>`, which is false of NaN.
                    let near = (found - expected).abs() <= wrong * scale;
                    assert!(near, "{encoder}, {precision}, value {i}: {found}, expected {expected} of at most {scale}");
                }
            }
        }
    }
}

/// Tokens `[slice, rung, C, g, g]` through the maps of a store: `[slice, rung, c, g, g]`.
fn mapped(tokens: &[f32], store: &Path) -> Vec<f32> {
    let config = Store::open(store).unwrap().config().clone();
    let maps = RungMaps::from_safetensors(&config, fs::read(store.join(RUNG_PROJECTION)).unwrap()).unwrap();
    let (each, pixels) = (maps.maps.as_ref().unwrap(), config.grid_size().pow(2));
    let mut planes = Vec::new();
    for (at, rung) in tokens.chunks(maps.width * pixels).enumerate() {
        let map = &each[at % each.len()];
        for row in map.components.chunks(maps.width) {
            let terms = |pixel: usize| (0..maps.width).map(move |c| row[c] * (rung[c * pixels + pixel] - map.mean[c]));
            planes.extend((0..pixels).map(|pixel| terms(pixel).sum::<f32>()));
        }
    }
    planes
}

fn embeddings(store: &Path) -> Vec<f32> {
    whole(store, Batch::default()).embeddings.to_vec()
}

/// All slices of a store.
fn whole(store: &Path, mut batch: Batch) -> Batch {
    let store = Store::open(store).unwrap();
    let rows: Vec<(u32, u32)> = (0..SLICES as u32).map(|row| (row, 0)).collect();
    store.read_batch(Split::Train, &rows, &mut batch).unwrap();
    batch
}

/// Whatever call fails, the work ends with an error, what is finished is kept, and the same command goes on to the same bytes.
#[test]
fn a_call_that_fails_loses_no_finished_slice() {
    let folder = workplace();
    cli::succeed(precompute(folder.path(), "whole.zarr", "cuda:0"));
    let whole = files(&folder.path().join("whole.zarr"));
    // The download of the fourth batch, pinned memory for the first, the copy of the third within the device.
    for (fault, finished) in [("cuMemcpyDtoHAsync:4=700", 6), ("cuMemHostAlloc:2=2", 0), ("cuMemcpyDtoDAsync:3=700", 4)] {
        let store = format!("{}.zarr", fault.split(':').next().unwrap());
        let mut command = precompute(folder.path(), &store, "cuda:0");
        command.env("SAM_LADDER_CUDA_FAIL", fault);
        let told = cli::assert_refused(command);
        assert!(told.contains(&format!("{finished} of {SLICES} slices finished and kept")), "{fault}: {told}");
        cli::succeed(precompute(folder.path(), &store, "cuda:0"));
        assert_same_files(&folder.path().join(&store), &whole, fault);
    }
}
