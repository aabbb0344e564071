//! Labels at half the image's side: what a store holds of them, how one without them gets them, and runs with logits there.

mod cli;
#[path = "common/folders.rs"]
mod folders;
#[path = "common/same_stores.rs"]
mod same_stores;
#[path = "common/stage_one.rs"]
mod stage_one;

use cli::{assert_refused, nifti, on, succeed, write_pair};
use folders::{assert_same_files, copy_folder, files};
use sam_ladder_cache::{Batch, BatchParts, Error as StoreError, Part, ReadMode, Reader, Store, verify};
use sam_ladder_precompute::error::Error;
use sam_ladder_precompute::pipeline::{FillOptions, Plan, Share, Space, fill_part, repair};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::observer::Silent;
use sam_ladder_schemas::precompute::{PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::variants::AugmentPolicy;
use same_stores::assert_filled_alike;
use stage_one::{Formula, config, fill, fill_whole, loaded, write_scans};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const PARTS: BatchParts = BatchParts { rungs: false, half_labels: true };

fn without() -> PrecomputeConfig {
    config(AugmentPolicy::Flips, 1)
}

fn with() -> PrecomputeConfig {
    PrecomputeConfig { half_labels: true, ..without() }
}

/// `scipy.ndimage.zoom(order=0, mode="nearest")` by its definition: the nearest pixel of a grid whose ends are those of the image.
fn zoom(labels: &[u8], from: usize, to: usize) -> Vec<u8> {
    let nearest = |at: usize| (at as f64 * (from - 1) as f64 / (to - 1) as f64).round() as usize;
    (0..to * to).map(|pixel| labels[nearest(pixel / to) * from + nearest(pixel % to)]).collect()
}

fn half_labels(store: &Store, split: Split, row: u32, variant: u32) -> Vec<u8> {
    let mut batch = Batch::with(PARTS);
    store.read_batch(split, &[(row, variant)], &mut batch).unwrap();
    batch.half_labels.unwrap()
}

/// A scan whose labels are known at data size: 16 pixels, as large as the scan, so that only the network's size and its half are zoomed to.
#[test]
fn they_are_the_labels_at_network_size_brought_to_half_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store) = (folder.path().join("scans"), folder.path().join("s.zarr"));
    let label: Vec<f32> = (0..512).map(|i| ((i / 3 + i / 40) % 9) as f32).collect();
    let image: Vec<f32> = (0..512).map(|i| ((i * 37) % 400) as f32 - 125.0).collect();
    for case in [1, 5] {
        write_pair(&scans, case, &nifti([16, 16, 2], &image), &nifti([16, 16, 2], &label));
    }
    let config = PrecomputeConfig { augment: AugmentPolicy::None, ..with() };
    fill_whole(&scans, &store, &config);
    let opened = Store::open(&store).unwrap();
    for (split, row) in [(Split::Train, 0), (Split::Train, 1), (Split::Test, 0)] {
        let mut batch = Batch::with(PARTS);
        opened.read_batch(split, &[(row, 0)], &mut batch).unwrap();
        let mask = opened.mask(split, &opened.cases(split)[0]).unwrap();
        assert_eq!(mask.shape, [2, 16, 16]);
        let network = zoom(&mask.labels[row as usize * 256..][..256], 16, 32);
        assert_eq!(batch.labels, zoom(&network, 32, 8));
        assert_eq!(batch.half_labels.unwrap(), zoom(&network, 32, 16));
    }
    let zarr: serde_json::Value = serde_json::from_slice(&fs::read(store.join("train/labels_half/zarr.json")).unwrap()).unwrap();
    assert_eq!((&zarr["shape"], &zarr["data_type"]), (&serde_json::json!([2, 1, 16, 16]), &serde_json::json!("uint8")));
    assert_eq!(zarr["dimension_names"], serde_json::json!(["slice", "variant", "half_y", "half_x"]));
}

/// All else of a store has the bytes that it has without them, and their readers find it.
#[test]
fn they_change_nothing_else_and_are_read_only_where_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, plain, path) = (folder.path().join("scans"), folder.path().join("plain.zarr"), folder.path().join("half.zarr"));
    write_scans(&scans);
    for dtype in [StoreDtype::F16, StoreDtype::Q8] {
        fill_whole(&scans, &plain, &PrecomputeConfig { dtype, ..without() });
        fill_whole(&scans, &path, &PrecomputeConfig { dtype, ..with() });
        let shards = |path: &Path| {
            let is_other =
                |name: &Path| name.to_string_lossy().contains("/c.") && !name.to_string_lossy().contains("labels_half");
            files(path).into_iter().filter(|(name, _)| is_other(name)).collect::<Vec<_>>()
        };
        assert!(shards(&plain) == shards(&path));
        let store = Arc::new(Store::open(&path).unwrap());
        let picks = [(0, 1), (4, 0), (2, 3)];
        let mut usual = Batch::default();
        store.read_batch(Split::Train, &picks, &mut usual).unwrap();
        assert_eq!(usual.half_labels, None);
        let expected: Vec<u8> =
            picks.iter().flat_map(|&(row, variant)| half_labels(&store, Split::Train, row, variant)).collect();
        assert!(expected.iter().any(|&class| class > 0));
        for mode in [ReadMode::Stream, ReadMode::Resident] {
            let reader = Reader::with(store.clone(), Split::Train, mode, PARTS).unwrap();
            for _ in 0..2 {
                let mut batch = Batch::default();
                reader.read_batch(&picks, &mut batch).unwrap();
                assert_eq!(batch.half_labels.as_ref(), Some(&expected));
                assert!(Batch { half_labels: None, ..batch } == usual);
            }
            // A reader without them takes them off a batch that has some.
            let mut batch = Batch::with(PARTS);
            Reader::new(store.clone(), Split::Train, mode).read_batch(&picks, &mut batch).unwrap();
            assert!(batch == usual);
        }
        let plain = Arc::new(Store::open(&plain).unwrap());
        let error = plain.read_batch(Split::Train, &picks, &mut Batch::with(PARTS)).unwrap_err();
        assert!(matches!(&error, StoreError::Absent { what, .. } if what == "labels at half the image's side"), "{error}");
        assert!(Reader::with(plain, Split::Train, ReadMode::Stream, PARTS).is_err());
        fs::remove_dir_all(&path).unwrap();
        fs::remove_dir_all(folder.path().join("plain.zarr")).unwrap();
    }
}

#[test]
fn interrupted_shared_and_grown_stores_have_the_bytes_of_one_made_at_once() {
    let folder = tempfile::tempdir().unwrap();
    write_scans(&folder.path().join("scans"));
    let rotations = PrecomputeConfig { half_labels: true, ..config(AugmentPolicy::Reference, 10) };
    assert_filled_alike(folder.path(), &with(), &rotations);
}

/// Scans are read and prepared again, but nothing is encoded.
#[test]
fn a_store_without_them_gets_them_and_encodes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, at) = (folder.path().join("scans"), |name: &str| folder.path().join(name));
    write_scans(&scans);
    fill_whole(&scans, &at("whole.zarr"), &with());
    fill_whole(&scans, &at("plain.zarr"), &without());
    let before = Store::open(at("plain.zarr")).unwrap().attributes().cache_id.clone();
    let (run, stop) = (AtomicBool::new(false), AtomicBool::new(true));
    let options = FillOptions { batch_size: 4, share: Share::ALL, stop: &run, observer: &Silent };
    let plan = Plan::new(&scans, &with(), &Silent).unwrap();
    // 27 images of 16 × 16 labels, and nothing else, are left to write.
    let left = Space::of(&plan, &at("plain.zarr")).unwrap().needed;
    assert_eq!(left, (27.0 * 256.0 * 1.01) as u64);
    let summary = fill_part(&plan, &at("plain.zarr"), &options, || loaded(Formula::default())).unwrap();
    assert_eq!((summary.complete, summary.images_encoded), (true, 0));
    assert_same_files(&at("plain.zarr"), &files(&at("whole.zarr")), "a store that grew by labels");
    assert_ne!(Store::open(at("plain.zarr")).unwrap().attributes().cache_id, before);
    // Without them it would be another store, and it stays.
    let error = fill(&scans, &at("plain.zarr"), &without(), "1/1", Formula::default()).unwrap_err().to_string();
    assert!(error.contains("half_labels"), "{error}");
    assert_same_files(&at("plain.zarr"), &files(&at("whole.zarr")), "refused");
    // Stopped in the middle, it resumes.
    fill_whole(&scans, &at("stopped.zarr"), &without());
    let stopping = FillOptions { stop: &stop, ..options };
    let error = fill_part(&plan, &at("stopped.zarr"), &stopping, || loaded(Formula::default()));
    assert!(matches!(error, Err(Error::Stopped { .. })));
    fill_whole(&scans, &at("stopped.zarr"), &with());
    assert_same_files(&at("stopped.zarr"), &files(&at("whole.zarr")), "stopped and resumed");
}

#[test]
fn damage_is_found_and_repaired_without_encoding() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, whole, store) = (folder.path().join("scans"), folder.path().join("whole.zarr"), folder.path().join("s.zarr"));
    write_scans(&scans);
    fill_whole(&scans, &whole, &with());
    copy_folder(&whole, &store);
    let shard = store.join("train/labels_half/c.1.0.0.0");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[300] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let report = verify(&store, &|_, _| {}).unwrap();
    let [damage] = &report.damage[..] else { panic!("{:?}", report.damage) };
    assert!(matches!(&damage.part, Part::Shard { array, row: 1, .. } if array == "train/labels_half"), "{damage:?}");
    let images = AtomicUsize::new(0);
    let encoder = || loaded(Formula { images: Some(&images), ..Formula::default() });
    let plan = || Plan::new(&scans, &with(), &Silent);
    repair(&store, &report, &FillOptions::whole(4, &Silent), plan, encoder).unwrap();
    assert_eq!(images.load(Ordering::SeqCst), 0);
    assert_same_files(&store, &files(&whole), "repaired");
}

/// The command line; prediction is in `predict.rs`, sweeps in `sweep.rs`.
#[test]
fn a_run_learns_from_them_and_one_without_them_is_told_how_to_get_them() {
    let folder = tempfile::tempdir().unwrap();
    let at = |words: &str| on(folder.path(), words);
    succeed(at("phantom --out @scans --cases 4 --size 48 --depth 4 --seed 3"));
    let precompute =
        "precompute --scans @scans --store @s.zarr --image-size 64 --data-size 48 --augment flips --random-encoder 1";
    succeed(at(precompute));
    let train = "train --store @s.zarr --run @run --decoder skips-half --epochs 1 --batch-size 4 --warmup 0 --fold 1/2";
    let error = assert_refused(at(train));
    assert!(
        error.contains("has no labels at half the image's side") && error.contains("precompute command again with --half-labels"),
        "{error}"
    );
    assert!(!folder.path().join("run").exists());
    // A run that was begun before resumes, in the same bits.
    let plain = "train --store @s.zarr --epochs 2 --batch-size 4 --warmup 0 --fold 1/2";
    succeed(at(&format!("{plain} --run @whole")));
    succeed(at(&format!("{plain} --run @begun --max-steps 2")));
    succeed(at(&format!("{precompute} --half-labels")));
    succeed(at("train --store @s.zarr --run @begun --resume --max-steps 100"));
    let model = |run: &str| fs::read(folder.path().join(run).join("steps.parquet")).unwrap();
    assert!(model("whole") == model("begun"));
    succeed(at(train));
    succeed(at("eval --store @s.zarr --run @run --out @evaluation"));
    succeed(at("export --run @run --out @model.onnx"));
    let error = assert_refused(at("export --run @run --out @model.pth"));
    assert!(error.contains("its decoder skips-half"), "{error}");
}
