//! Stores filled by several workers have the bytes of a store made in one go. Finished stores to which scans and variants are added hold what
//! such a store holds: rows keep their numbers, and what is new comes after them.

mod cli;
mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/folders.rs"]
mod folders;
#[path = "common/same_stores.rs"]
mod same_stores;
#[path = "common/stage_one.rs"]
mod stage_one;
#[path = "common/store.rs"]
mod store;
#[path = "common/train_args.rs"]
mod train_args;

use cli::{nifti, write_pair};
use folders::{assert_same_files, copy_folder, files};
use sam_ladder_cache::{Store, verify};
use sam_ladder_precompute::error::Error;
use sam_ladder_precompute::pipeline::{FillOptions, Loaded, Plan, Share, fill_part, fill_store, repair};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::observer::Silent;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::train::{CHECKPOINT, TrainConfig};
use sam_ladder_schemas::variants::{AugmentPolicy, variants};
use sam_ladder_train::run::TrainArgs;
use same_stores::{assert_same_content, read_all};
use stage_one::{Formula, config, fill, fill_failing, fill_whole, loaded, write_scan, write_scans};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use train_args::train_args;

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
    let mut expected = files(&anew);
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
                assert_same_content(&store, &anew, name);
                expected = files(&store);
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

#[test]
fn scans_are_added_to_a_finished_store() {
    let folder = workplace();
    let small = folder.path().join("small.zarr");
    fill_whole(&folder.path().join("scans"), &small, &config(AugmentPolicy::Flips, 1));
    // One training case between the others by its name, and one test case.
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
    assert!(error.contains("img0005.nii.gz: store \"") && error.contains("requested none"), "{error}");
    assert_same_files(&store, &before, "refused");
}

#[test]
fn a_reader_reads_on_while_scans_are_added() {
    let folder = workplace();
    let (scans, store, config) = (folder.path().join("scans"), folder.path().join("s.zarr"), config(AugmentPolicy::Flips, 1));
    fill_whole(&scans, &store, &config);
    let [before, unread] = [(); 2].map(|()| Store::open(&store).unwrap());
    let expected = read_all(&before).unwrap();
    write_scan(&scans, 6, 2);
    write_scan(&scans, 2, 1);
    fill_failing(&scans, &store, &config, 4);
    assert!(read_all(&before).unwrap() == expected, "while it grows");
    fill_whole(&scans, &store, &config);
    assert!(read_all(&before).unwrap() == expected, "when it has grown");
    assert!(read_all(&unread).unwrap() == expected, "without having read before");
    assert_eq!(Store::open(&store).unwrap().slices(Split::Train).len(), before.slices(Split::Train).len() + 2);
}

#[test]
fn a_reader_reads_on_or_stops_while_variants_are_added() {
    let folder = workplace();
    let scans = folder.path().join("scans");
    for (from, to) in
        [((AugmentPolicy::None, 1), (AugmentPolicy::Flips, 1)), ((AugmentPolicy::Reference, 10), (AugmentPolicy::Reference, 5))]
    {
        let store = folder.path().join(format!("{from:?}.zarr"));
        fill_whole(&scans, &store, &config(from.0, from.1));
        let [before, unread] = [(); 2].map(|()| Store::open(&store).unwrap());
        let expected = read_all(&before).unwrap();
        fill_failing(&scans, &store, &config(to.0, to.1), 9);
        let mut stopped = 0;
        let mut check = |store: &Store, when: &str| match read_all(store) {
            Ok(found) => assert!(found == expected, "{from:?} {when}"),
            Err(error) => {
                assert!(matches!(error, sam_ladder_cache::Error::Changed { .. }), "{from:?} {when}: {error}");
                assert!(error.to_string().contains("has changed since it was opened"), "{error}");
                assert!(error.hint().unwrap().contains("resume with the same command"));
                stopped += 1;
            }
        };
        check(&before, "while it grows");
        check(&unread, "while it grows, without having read before");
        fill_whole(&scans, &store, &config(to.0, to.1));
        check(&before, "when it has grown");
        check(&unread, "when it has grown, without having read before");
        assert!(stopped >= 2, "{from:?}: an index that was never read is of another length");
    }
}

#[test]
fn a_run_on_a_store_that_grew_is_a_run_on_one_made_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, grown, anew) = (folder.path().join("scans"), folder.path().join("grown.zarr"), folder.path().join("anew.zarr"));
    let decoder = store::decoder_bytes(&folder.path().join("decoder"));
    let fill = |store: &Path, augment| {
        let load = || Ok(Loaded { encoder: Formula::default(), decoder: decoder.clone() });
        fill_store(Plan::new(&scans, &config(augment, 1), &Silent).unwrap(), store, 4, load).unwrap();
    };
    for (case, depth) in [(7, 2), (9, 2), (1, 1)] {
        write_scan(&scans, case, depth);
    }
    fill(&grown, AugmentPolicy::None);
    write_scan(&scans, 5, 2);
    fill(&grown, AugmentPolicy::Flips);
    fill(&anew, AugmentPolicy::Flips);
    assert_same_content(&grown, &anew, "grown");
    assert_eq!(Store::open(&grown).unwrap().case_rows(Split::Train, "0005").unwrap(), 4..6, "what is new comes last");
    let checkpoint = |store: &Path| {
        let run = store.with_extension("run");
        let train = |resume: bool, max_steps| {
            let config = TrainConfig {
                epochs: 2,
                batch_size: 2,
                warmup: 0,
                max_steps,
                val_cases: vec!["0009".into()],
                ..Default::default()
            };
            sam_ladder_train::run::train(&TrainArgs { resume, ..train_args(store, &run, config) }).unwrap();
        };
        train(false, Some(1));
        train(true, None);
        fs::read(run.join(CHECKPOINT)).unwrap()
    };
    assert!(checkpoint(&grown) == checkpoint(&anew));
    // The record is the same too, so that a run can be moved from one to the other.
    let moved = folder.path().join("moved.run");
    copy_folder(&grown.with_extension("run"), &moved);
    let config = TrainConfig { epochs: 2, batch_size: 2, warmup: 0, val_cases: vec!["0009".into()], ..Default::default() };
    sam_ladder_train::run::train(&TrainArgs { resume: true, ..train_args(&anew, &moved, config) }).unwrap();
}

#[test]
fn any_number_of_workers_may_begin_to_grow_a_store_at_once() {
    let folder = workplace();
    let (scans, small) = (folder.path().join("scans"), folder.path().join("small.zarr"));
    let (before, after) = (config(AugmentPolicy::None, 1), config(AugmentPolicy::Flips, 1));
    fill_whole(&scans, &small, &before);
    write_scan(&scans, 6, 2);
    let whole = folder.path().join("whole.zarr");
    copy_folder(&small, &whole);
    fill_whole(&scans, &whole, &after);
    let expected = files(&whole);
    for round in 0..8 {
        for workers in [3, 6] {
            let store = folder.path().join(format!("{round}-{workers}.zarr"));
            // In turn: a finished store that grows, and a new one.
            if round % 2 == 0 {
                copy_folder(&small, &store);
            }
            std::thread::scope(|scope| {
                for index in 1..=workers {
                    let (scans, store, after) = (&scans, &store, &after);
                    scope.spawn(move || fill(scans, store, after, &format!("{index}/{workers}"), Formula::default()).unwrap());
                }
            });
            assert!(Store::open(&store).is_ok(), "round {round}, {workers} workers: the last one finishes it");
            match round % 2 {
                0 => assert_same_files(&store, &expected, &format!("round {round}, {workers} workers")),
                _ => assert_same_content(&store, &whole, &format!("round {round}, {workers} workers")),
            }
        }
    }
}

#[test]
fn of_two_configs_that_race_for_a_new_store_one_is_refused() {
    let folder = workplace();
    let scans = folder.path().join("scans");
    let one = config(AugmentPolicy::None, 1);
    let other = PrecomputeConfig { data_size: 24, ..one.clone() };
    for round in 0..20 {
        let store = folder.path().join(format!("{round}.zarr"));
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let racers = [&one, &other, &one, &other].map(|config| {
                let (scans, store) = (&scans, &store);
                scope.spawn(move || fill(scans, store, config, "1/1", Formula::default()))
            });
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let refused: Vec<&Error> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert_eq!(refused.len(), 2, "round {round}: {refused:?}");
        assert!(refused.iter().all(|error| error.to_string().contains("config.data_size: store ")), "{refused:?}");
        assert!(verify(&store, &|_, _| {}).unwrap().damage.is_empty());
    }
}

#[test]
fn a_bad_new_scan_leaves_a_finished_store_as_it_is() {
    let folder = workplace();
    let (scans, store, config) = (folder.path().join("scans"), folder.path().join("s.zarr"), config(AugmentPolicy::Flips, 1));
    fill_whole(&scans, &store, &config);
    let before = files(&store);
    let bad = |image: f32, label: f32| write_pair(&scans, 6, &nifti([8, 9, 1], &[image; 72]), &nifti([8, 9, 1], &[label; 72]));
    // Labels are checked before anything else is done.
    bad(0.0, 99.0);
    let error = fill(&scans, &store, &config, "1/1", Formula::default()).unwrap_err().to_string();
    assert!(error.contains("label0006.nii.gz: label 99 in slice 0"), "{error}");
    assert_same_files(&store, &before, &error);
    bad(f32::NAN, 1.0);
    let error = fill(&scans, &store, &config, "1/1", Formula::default()).unwrap_err();
    let (hint, error) = (error.hint().unwrap(), error.to_string());
    assert!(error.starts_with("1 of 1 new scan cannot be used: case 0006: ") && error.contains("NaN in slice 0"), "{error}");
    assert!(error.ends_with("s.zarr is unchanged") && hint.contains("or move these scans out of the folder"), "{error} {hint}");
    assert_same_files(&store, &before, &error);
    // Both advices work: left out, there is nothing to do; a good copy is added.
    let files_of_6 = ["img", "label"].map(|kind| scans.join(format!("RawData/Training/{kind}/{kind}0006.nii.gz")));
    files_of_6.iter().for_each(|path| fs::remove_file(path).unwrap());
    assert!(fill(&scans, &store, &config, "1/1", Formula::default()).unwrap().already_complete);
    write_scan(&scans, 6, 2);
    fill_whole(&scans, &store, &config);
}

#[test]
fn a_bad_scan_may_be_left_out_of_a_new_store() {
    let folder = workplace();
    let (scans, store, config) = (folder.path().join("scans"), folder.path().join("s.zarr"), config(AugmentPolicy::Flips, 1));
    let without = folder.path().join("without.zarr");
    fill_whole(&scans, &without, &config);
    write_pair(&scans, 6, &nifti([8, 9, 1], &[f32::NAN; 72]), &nifti([8, 9, 1], &[0.0; 72]));
    let error = fill(&scans, &store, &config, "1/1", Formula::default()).unwrap_err();
    assert!(error.to_string().starts_with("1 of 4 scans cannot be used: case 0006"), "{error}");
    for kind in ["img", "label"] {
        fs::remove_file(scans.join(format!("RawData/Training/{kind}/{kind}0006.nii.gz"))).unwrap();
    }
    let images = AtomicUsize::new(0);
    let done = fill(&scans, &store, &config, "1/1", Formula { images: Some(&images), ..Formula::default() }).unwrap();
    assert!(done.complete && images.load(Ordering::SeqCst) == 0, "what was finished of the others is kept");
    assert_same_files(&store, &files(&without), "without the bad scan");
}

#[test]
fn what_changes_while_it_is_read_is_not_stored() {
    let folder = workplace();
    let (scans, config) = (folder.path().join("scans"), config(AugmentPolicy::Flips, 1));
    let (whole, store) = (folder.path().join("whole.zarr"), folder.path().join("s.zarr"));
    fill_whole(&scans, &whole, &config);
    for kind in ["img", "label"] {
        for case in ["0005", "0001"] {
            let path = scans.join(format!("RawData/Training/{kind}/{kind}{case}.nii.gz"));
            let good = fs::read(&path).unwrap();
            let plan = Plan::new(&scans, &config, &Silent).unwrap();
            // Another scan of the same shape, after the hashes were taken.
            let other =
                scans.join(format!("RawData/Training/{kind}/{kind}{}.nii.gz", if case == "0005" { "0001" } else { "0005" }));
            fs::copy(other, &path).unwrap();
            let options = FillOptions::whole(4, &Silent);
            let error = fill_part(&plan, &store, &options, || loaded(Formula::default())).unwrap_err().to_string();
            assert!(error.contains(&format!("{kind}{case}.nii.gz: has changed since the program started")), "{error}");
            assert!(Store::open(&store).is_err(), "{kind} {case}");
            fs::write(&path, good).unwrap();
            fill_whole(&scans, &store, &config);
            assert_same_files(&store, &files(&whole), &format!("{kind} {case}"));
            // Nor does a repair take it.
            let shard = store.join(if case == "0005" { "train/masks/0005/c.0.0.0" } else { "test/masks/0001/c.0.0.0" });
            fs::remove_file(shard).unwrap();
            let report = verify(&store, &|_, _| {}).unwrap();
            let plan = Plan::new(&scans, &config, &Silent).unwrap();
            let good = fs::read(&path).unwrap();
            let other =
                scans.join(format!("RawData/Training/{kind}/{kind}{}.nii.gz", if case == "0005" { "0001" } else { "0005" }));
            fs::copy(other, &path).unwrap();
            let error = repair(&store, &report, &options, || Ok(plan), || loaded(Formula::default())).unwrap_err().to_string();
            assert!(error.contains("has changed since the program started"), "{error}");
            fs::write(&path, good).unwrap();
            fs::remove_dir_all(&store).unwrap();
        }
    }
}

#[test]
fn a_checkpoint_that_is_refused_leaves_no_store_and_no_unfinished_one() {
    let folder = workplace();
    let (scans, store) = (folder.path().join("scans"), folder.path().join("s.zarr"));
    let refused = |augment| {
        let plan = Plan::new(&scans, &config(augment, 1), &Silent).unwrap();
        let load = || -> sam_ladder_precompute::error::Result<Loaded<Formula>> { Err(Error::NoCheckpoint("--sam-checkpoint")) };
        fill_part(&plan, &store, &FillOptions::whole(4, &Silent), load).unwrap_err()
    };
    assert!(matches!(refused(AugmentPolicy::None), Error::NoCheckpoint(_)));
    assert!(!store.exists());
    fill_whole(&scans, &store, &config(AugmentPolicy::None, 1));
    let before = files(&store);
    assert!(matches!(refused(AugmentPolicy::Flips), Error::NoCheckpoint(_)));
    assert_same_files(&store, &before, "not grown");
}

#[test]
fn a_harmed_decoder_of_an_unfinished_store_is_written_again() {
    let folder = workplace();
    let (scans, config) = (folder.path().join("scans"), config(AugmentPolicy::Flips, 1));
    let (whole, store) = (folder.path().join("whole.zarr"), folder.path().join("s.zarr"));
    fill_whole(&scans, &whole, &config);
    fill_failing(&scans, &store, &config, 9);
    fs::write(store.join("sam_decoder.safetensors"), b"another").unwrap();
    fill_whole(&scans, &store, &config);
    assert_same_files(&store, &files(&whole), "with another decoder in between");
}
