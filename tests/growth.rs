//! Stores filled by several workers, and finished stores to which scans and variants are added, have the bytes of a store made in one go.

mod cli;
#[path = "common/folders.rs"]
mod folders;
#[path = "common/stage_one.rs"]
mod stage_one;

use folders::{assert_same_files, files};
use sam_ladder_cache::Store;
use sam_ladder_precompute::error::Error;
use sam_ladder_precompute::pipeline::{FillOptions, Plan, Share, fill_part};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::observer::Silent;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::variants::{AugmentPolicy, variants};
use stage_one::{Formula, config, fill, fill_whole, loaded, write_scan, write_scans};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The flips of two training cases and a test case: 27 images.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_scans(&folder.path().join("scans"));
    folder
}

#[test]
fn workers_make_the_bytes_of_one_in_any_order() {
    let folder = workplace();
    let (scans, config) = (folder.path().join("scans"), config(AugmentPolicy::Flips, 1));
    let whole = folder.path().join("whole.zarr");
    fill_whole(&scans, &whole, &config);
    let expected = files(&whole);
    for order in [vec![1, 2], vec![3, 1, 2], vec![4, 7, 2, 1, 6, 5, 3]] {
        let store = folder.path().join(format!("{}.zarr", order.len()));
        let images = AtomicUsize::new(0);
        for (i, index) in order.iter().enumerate() {
            let share = format!("{index}/{}", order.len());
            // The first one dies and is run again, last.
            let fails_after = (i == 0).then_some(1);
            let outcome = fill(
                &scans,
                &store,
                &config,
                &share,
                Formula { fails_after, images: (i == 0).then_some(&images), ..Formula::default() },
            );
            assert_eq!(outcome.is_err(), i == 0, "worker {share}");
            assert!(outcome.is_err() || !outcome.unwrap().complete, "worker {share}: the first one's part is missing");
        }
        let again = fill(&scans, &store, &config, &format!("{}/{}", order[0], order.len()), Formula::default()).unwrap();
        assert!(again.complete && !again.already_complete);
        assert_same_files(&store, &expected, &format!("{} workers", order.len()));
    }
}

#[test]
fn workers_at_the_same_time_finish_one_store() {
    let folder = workplace();
    let (scans, config) = (folder.path().join("scans"), config(AugmentPolicy::Flips, 1));
    let whole = folder.path().join("whole.zarr");
    fill_whole(&scans, &whole, &config);
    let store = folder.path().join("s.zarr");
    let summaries: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..=4)
            .map(|index| {
                let (scans, store, config) = (&scans, &store, &config);
                scope.spawn(move || fill(scans, store, config, &format!("{index}/4"), Formula::default()).unwrap())
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert_eq!(summaries.iter().map(|summary| summary.images_encoded).sum::<usize>(), 27);
    assert!(summaries.iter().any(|summary| summary.complete));
    assert_same_files(&store, &files(&whole), "four workers at once");
}

#[test]
fn reflections_of_test_slices_are_added_to_a_finished_store() {
    let folder = workplace();
    let (scans, without) = (folder.path().join("scans"), config(AugmentPolicy::Flips, 1));
    let with = PrecomputeConfig { test_augment: AugmentPolicy::Flips, ..without.clone() };
    let whole = folder.path().join("whole.zarr");
    fill_whole(&scans, &whole, &with);
    let store = folder.path().join("s.zarr");
    fill_whole(&scans, &store, &without);
    let before = Store::open(&store).unwrap();
    assert_eq!(before.variants(Split::Test).len(), 1);
    // Four reflections of two test slices, and nothing else.
    let summary = fill(&scans, &store, &with, "1/1", Formula::default()).unwrap();
    assert_eq!((summary.complete, summary.images_encoded), (true, 8));
    assert_same_files(&store, &files(&whole), "a store that grew by reflections of test slices");
    let after = Store::open(&store).unwrap();
    assert_ne!(before.attributes().cache_id, after.attributes().cache_id);
    assert_eq!(after.variants(Split::Test), variants(AugmentPolicy::Flips, 1));
    assert_eq!(after.variants(Split::Train), before.variants(Split::Train));
    // Without them it would be another store.
    assert!(fill(&scans, &store, &without, "1/1", Formula::default()).is_err());
}

#[test]
fn a_stopped_run_keeps_what_is_finished_and_resumes() {
    let folder = workplace();
    let (scans, config) = (folder.path().join("scans"), config(AugmentPolicy::Flips, 1));
    let whole = folder.path().join("whole.zarr");
    fill_whole(&scans, &whole, &config);
    let store = folder.path().join("s.zarr");
    let plan = Plan::new(&scans, &config, &Silent).unwrap();
    let stop = AtomicBool::new(true);
    let options = FillOptions { batch_size: 4, share: Share::ALL, stop: &stop, observer: &Silent };
    let error = fill_part(&plan, &store, &options, || loaded(Formula::default())).unwrap_err();
    assert!(matches!(error, Error::Stopped { done: 0, total: 7, .. }), "{error}");
    assert_eq!(error.hint().as_deref(), Some("run the same command again to continue"));
    fill_whole(&scans, &store, &config);
    assert_same_files(&store, &files(&whole), "stopped");
}

/// Grows a finished store in every way, interrupted after each number of images; returns the number of images that an uninterrupted growth
/// encodes.
fn assert_grows(folder: &Path, name: &str, from: &Path, to: (AugmentPolicy, u32)) -> usize {
    let scans = folder.join("scans");
    let config = config(to.0, to.1);
    let anew = folder.join(format!("{name}-anew.zarr"));
    fill_whole(&scans, &anew, &config);
    let expected = files(&anew);
    let mut needed = 0;
    for fails_after in [None, Some(0), Some(3), Some(9)] {
        let store = folder.join(format!("{name}-{fails_after:?}.zarr"));
        copy_folder(from, &store);
        let images = AtomicUsize::new(0);
        let outcome = fill(&scans, &store, &config, "1/1", Formula { fails_after, images: Some(&images), ..Formula::default() });
        match fails_after {
            None => {
                outcome.unwrap();
                needed = images.load(Ordering::SeqCst);
            }
            Some(_) => {
                assert!(outcome.is_err(), "{name} {fails_after:?}");
                assert!(sam_ladder_cache::Store::open(&store).unwrap_err().to_string().contains("is incomplete"));
                fill_whole(&scans, &store, &config);
            }
        }
        assert_same_files(&store, &expected, &format!("{name} {fails_after:?}"));
    }
    // Two workers, too.
    let store = folder.join(format!("{name}-workers.zarr"));
    copy_folder(from, &store);
    for share in ["2/2", "1/2"] {
        fill(&scans, &store, &config, share, Formula::default()).unwrap();
    }
    assert_same_files(&store, &expected, &format!("{name} by two workers"));
    needed
}

fn copy_folder(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn scans_are_added_to_a_finished_store() {
    let folder = workplace();
    let small = folder.path().join("small.zarr");
    fill_whole(&folder.path().join("scans"), &small, &config(AugmentPolicy::Flips, 1));
    // One training case between the others, so that rows move, and one test case.
    write_scan(&folder.path().join("scans"), 6, 2);
    write_scan(&folder.path().join("scans"), 2, 1);
    let encoded = assert_grows(folder.path(), "scans", &small, (AugmentPolicy::Flips, 1));
    assert_eq!(encoded, 2 * 5 + 1);
}

#[test]
fn variants_are_added_to_a_finished_store() {
    let folder = workplace();
    let scans = folder.path().join("scans");
    for (name, from, to, new) in [
        ("flips", (AugmentPolicy::None, 1), (AugmentPolicy::Flips, 1), 4),
        ("rotations", (AugmentPolicy::Flips, 1), (AugmentPolicy::Reference, 5), 7),
        ("angles", (AugmentPolicy::Reference, 10), (AugmentPolicy::Reference, 5), 4),
    ] {
        let small = folder.path().join(format!("{name}-small.zarr"));
        fill_whole(&scans, &small, &config(from.0, from.1));
        assert_eq!(assert_grows(folder.path(), name, &small, to), 5 * new, "{name}");
    }
}

#[test]
fn scans_and_variants_are_added_together() {
    let folder = workplace();
    let small = folder.path().join("small.zarr");
    fill_whole(&folder.path().join("scans"), &small, &config(AugmentPolicy::None, 1));
    write_scan(&folder.path().join("scans"), 6, 3);
    let encoded = assert_grows(folder.path(), "both", &small, (AugmentPolicy::Flips, 1));
    assert_eq!(encoded, 5 * 4 + 3 * 5);
}

#[test]
fn a_damaged_chunk_is_not_taken_over() {
    let folder = workplace();
    let (scans, store, anew) = (folder.path().join("scans"), folder.path().join("s.zarr"), folder.path().join("anew.zarr"));
    fill_whole(&scans, &store, &config(AugmentPolicy::None, 1));
    fill_whole(&scans, &anew, &config(AugmentPolicy::Flips, 1));
    let shard = store.join("train/embeddings/c.3.0.0.0.0");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[20] ^= 4;
    fs::write(&shard, bytes).unwrap();
    let images = AtomicUsize::new(0);
    fill(&scans, &store, &config(AugmentPolicy::Flips, 1), "1/1", Formula { images: Some(&images), ..Formula::default() })
        .unwrap();
    assert_eq!(images.load(Ordering::SeqCst), 5 * 4 + 1);
    assert_same_files(&store, &files(&anew), "grown from a damaged store");
}

#[test]
fn nothing_is_ever_taken_away_from_a_store() {
    let folder = workplace();
    let (scans, store) = (folder.path().join("scans"), folder.path().join("s.zarr"));
    fill_whole(&scans, &store, &config(AugmentPolicy::Flips, 1));
    let before = files(&store);
    let refused = |config| {
        let error = fill(&scans, &store, &config, "1/1", Formula::default()).unwrap_err();
        format!("{error}\nhint: {}", error.hint().unwrap())
    };
    let error = refused(config(AugmentPolicy::None, 1));
    assert!(error.contains("config.augment: store \"flips\", requested \"none\"") && error.contains("can be added"), "{error}");
    let mut other = config(AugmentPolicy::Reference, 1);
    other.data_size = 24;
    let error = refused(other);
    assert!(error.contains("config.data_size: store 16, requested 24"), "{error}");
    for kind in ["img", "label"] {
        fs::remove_file(scans.join(format!("RawData/Training/{kind}/{kind}0005.nii.gz"))).unwrap();
    }
    let error = refused(config(AugmentPolicy::Reference, 1));
    assert!(error.contains("img0005.nii.gz: store \"") && error.contains("requested nothing"), "{error}");
    assert_same_files(&store, &before, "refused");
}
