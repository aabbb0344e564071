//! The ladder in the store: tokens after some blocks, brought to few channels by a map that a store keeps from its beginning.

mod cli;
#[path = "common/folders.rs"]
mod folders;
#[path = "common/same_stores.rs"]
mod same_stores;
#[path = "common/stage_one.rs"]
mod stage_one;

use cli::{assert_refused, on, succeed};
use folders::{assert_same_files, copy_folder, files};
use sam_ladder_cache::{Batch, BatchParts, Error as StoreError, Part, ReadMode, Reader, Store, verify};
use sam_ladder_precompute::error::{Error, Result};
use sam_ladder_precompute::pipeline::{FillOptions, Plan, repair};
use sam_ladder_precompute::rungs::RungMaps;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::observer::Silent;
use sam_ladder_schemas::precompute::{PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::rungs::RungProjection;
use sam_ladder_schemas::store::RUNG_PROJECTION;
use sam_ladder_schemas::variants::AugmentPolicy;
use same_stores::{assert_filled_alike, assert_same_content};
use stage_one::{Formula, config, fill, fill_failing, fill_whole, loaded, rungs_of, write_scan, write_scans};
use std::fs;
use std::path::Path;
use std::sync::Arc;

const RUNGS: [usize; 2] = [2, 11];
const CHANNELS: usize = 3;

fn with(projection: RungProjection, config: PrecomputeConfig) -> PrecomputeConfig {
    let rung_channels = if projection == RungProjection::None { config.rung_channels } else { CHANNELS };
    PrecomputeConfig { rungs: RUNGS.to_vec(), rung_projection: projection, rung_channels, dtype: StoreDtype::F32, ..config }
}

fn flips(projection: RungProjection) -> PrecomputeConfig {
    with(projection, config(AugmentPolicy::Flips, 1))
}

fn read(store: &Store, split: Split, row: u32, variant: u32) -> Batch {
    let mut batch = Batch::with_rungs();
    store.read_batch(split, &[(row, variant)], &mut batch).unwrap();
    batch
}

/// Image and rungs of every item.
fn all_rungs(store: &Store) -> Vec<(Vec<f32>, Vec<f32>)> {
    let items = Split::ALL.into_iter().flat_map(|split| {
        let (rows, variants) = (store.slices(split).len() as u32, store.variants(split).len() as u32);
        (0..rows).flat_map(move |row| (0..variants).map(move |variant| (split, row, variant)))
    });
    let batch = |(split, row, variant)| read(store, split, row, variant);
    items.map(batch).map(|batch| (batch.images.to_vec(), batch.rungs.unwrap().to_vec())).collect()
}

fn maps_of(store: &Path, config: &PrecomputeConfig) -> RungMaps {
    RungMaps::from_safetensors(config, fs::read(store.join(RUNG_PROJECTION)).unwrap()).unwrap()
}

#[test]
fn rungs_are_the_tokens_mapped_as_the_stores_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let scans = folder.path().join("scans");
    write_scans(&scans);
    let plain = folder.path().join("plain.zarr");
    let without = PrecomputeConfig { dtype: StoreDtype::F32, ..config(AugmentPolicy::Flips, 1) };
    fill_whole(&scans, &plain, &without);
    assert!(!plain.join(RUNG_PROJECTION).exists() && !plain.join("train/rungs").exists());
    for projection in [RungProjection::Pca, RungProjection::Random] {
        let (store, config) = (folder.path().join(format!("{projection:?}.zarr")), flips(projection));
        fill_whole(&scans, &store, &config);
        let maps = maps_of(&store, &config);
        assert_eq!((&maps.blocks[..], maps.channels, maps.width), (&RUNGS[..], CHANNELS, 768));
        let opened = Store::open(&store).unwrap();
        for (image, rungs) in all_rungs(&opened) {
            assert_eq!(rungs, rungs_of(&image, 32, &maps));
        }
        // All else is as without rungs, byte for byte.
        let others = |path: &Path| {
            let of_arrays = |name: &Path| {
                name.to_string_lossy().contains("/c.") && !name.starts_with("train/rungs") && !name.starts_with("test/rungs")
            };
            files(path).into_iter().filter(|(name, _)| of_arrays(name)).collect::<Vec<_>>()
        };
        assert!(others(&store) == others(&plain), "{projection:?}");
    }
    let (store, config) = (folder.path().join("none.zarr"), flips(RungProjection::None));
    fill_whole(&scans, &store, &config);
    assert!(!store.join(RUNG_PROJECTION).exists());
    let maps = RungMaps { blocks: RUNGS.to_vec(), width: 768, channels: 768, maps: None };
    for (image, rungs) in all_rungs(&Store::open(&store).unwrap()) {
        assert_eq!(rungs, rungs_of(&image, 32, &maps));
    }
    let zarr: serde_json::Value = serde_json::from_slice(&fs::read(store.join("train/rungs/zarr.json")).unwrap()).unwrap();
    assert_eq!(zarr["shape"], serde_json::json!([5, 5, 2, 768, 2, 2]));
    assert_eq!(zarr["dimension_names"], serde_json::json!(["slice", "variant", "rung", "rung_channel", "grid_y", "grid_x"]));
}

/// Of a small store every training slice is sampled: over the identity's tokens the channels have mean 0, are uncorrelated, and descend.
#[test]
fn a_projection_is_onto_the_principal_components_of_the_training_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store, config) = (folder.path().join("scans"), folder.path().join("s.zarr"), flips(RungProjection::Pca));
    write_scans(&scans);
    fill_whole(&scans, &store, &config);
    let store = Store::open(&store).unwrap();
    assert_eq!(store.attributes().rung_sample.len(), 5);
    for rung in 0..RUNGS.len() {
        let mut channels = vec![Vec::new(); CHANNELS];
        for row in 0..5 {
            let rungs = read(&store, Split::Train, row, 0).rungs.unwrap().to_vec();
            for (channel, values) in channels.iter_mut().enumerate() {
                values.extend_from_slice(&rungs[(rung * CHANNELS + channel) * 4..][..4]);
            }
        }
        let moment = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>() / a.len() as f64;
        let first = moment(&channels[0], &channels[0]);
        assert!(first > 1e-3, "the tokens vary");
        for (i, a) in channels.iter().enumerate() {
            let mean = a.iter().sum::<f32>() / a.len() as f32;
            assert!(f64::from(mean).abs() < 1e-4 * first.sqrt(), "{rung} {i}: mean {mean}");
            for b in &channels[..i] {
                assert!(moment(a, b).abs() < 1e-4 * first, "{rung} {i}");
                assert!(moment(a, a) < moment(b, b), "{rung} {i}");
            }
        }
        // The formula's tokens lie in a plane around their mean.
        assert!(moment(&channels[2], &channels[2]) < 1e-6 * first);
    }
}

#[test]
fn interrupted_shared_and_grown_stores_have_the_bytes_of_one_made_at_once() {
    for projection in [RungProjection::Pca, RungProjection::Random, RungProjection::None] {
        let folder = tempfile::tempdir().unwrap();
        let (scans, at) = (folder.path().join("scans"), |name: &str| folder.path().join(name));
        write_scans(&scans);
        let flips = flips(projection);
        assert_filled_alike(folder.path(), &flips, &with(projection, config(AugmentPolicy::Reference, 10)));
        std::thread::scope(|scope| {
            for index in 1..=3 {
                let (scans, store, config) = (&scans, at("at once.zarr"), &flips);
                scope.spawn(move || fill(scans, &store, config, &format!("{index}/3"), Formula::default()).unwrap());
            }
        });
        assert_same_files(&at("at once.zarr"), &files(&at("whole.zarr")), "three workers at once");
    }
}

/// A store that grows keeps the map of its beginning: its old rungs stay, and the new ones are of the same map.
#[test]
fn a_store_keeps_the_projection_that_it_was_begun_with() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, at) = (folder.path().join("scans"), |name: &str| folder.path().join(name));
    write_scans(&scans);
    let pca = flips(RungProjection::Pca);
    fill_whole(&scans, &at("s.zarr"), &pca);
    let before = files(&at("s.zarr"));
    write_scan(&scans, 6, 3);
    fill_failing(&scans, &at("s.zarr"), &pca, 4);
    fill_whole(&scans, &at("s.zarr"), &pca);
    let after = files(&at("s.zarr"));
    for (name, bytes) in
        before.iter().filter(|(name, _)| name.ends_with(RUNG_PROJECTION) || name.to_string_lossy().contains("rungs/c."))
    {
        assert!(after[name] == *bytes, "{} has changed", name.display());
    }
    let (maps, store) = (maps_of(&at("s.zarr"), &pca), Store::open(at("s.zarr")).unwrap());
    assert_eq!(store.slices(Split::Train).len(), 8);
    assert!(store.attributes().rung_sample.iter().all(|sampled| sampled.case != "0006"));
    for (image, rungs) in all_rungs(&store) {
        assert_eq!(rungs, rungs_of(&image, 32, &maps));
    }
    // Begun with all three, it is another map.
    fill_whole(&scans, &at("anew.zarr"), &pca);
    assert_ne!(maps_of(&at("anew.zarr"), &pca), maps);
    assert_same_content_but_rungs(&at("s.zarr"), &at("anew.zarr"));
    // A repair of a store that has grown makes the file again that it had.
    fs::remove_file(at("s.zarr").join(RUNG_PROJECTION)).unwrap();
    mend(&scans, &at("s.zarr"), &pca);
    assert_same_files(&at("s.zarr"), &after, "repaired");
}

/// Reads without rungs.
fn assert_same_content_but_rungs(found: &Path, expected: &Path) {
    assert_same_content(found, expected, "but for the rungs");
}

fn mend(scans: &Path, store: &Path, config: &PrecomputeConfig) {
    let report = verify(store, &|_, _| {}).unwrap();
    assert!(!report.damage.is_empty());
    let plan = || Plan::new(scans, config, &Silent);
    repair(store, &report, &FillOptions::whole(4, &Silent), plan, || loaded(Formula::default())).unwrap();
    assert!(verify(store, &|_, _| {}).unwrap().damage.is_empty());
}

#[test]
fn damage_to_rungs_and_their_projection_is_found_and_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, whole) = (folder.path().join("scans"), folder.path().join("whole.zarr"));
    write_scans(&scans);
    let config = PrecomputeConfig { dtype: StoreDtype::Q8, ..flips(RungProjection::Pca) };
    fill_whole(&scans, &whole, &config);
    let expected = files(&whole);
    assert!(verify(&whole, &|_, _| {}).unwrap().damage.is_empty() && verify(&whole, &|_, _| {}).unwrap().unexpected.is_empty());
    let damaged: Vec<_> = expected.keys().filter(|name| name.to_string_lossy().contains("rung")).cloned().collect();
    // A projection, an array's metadata in each split, seven slices.
    assert_eq!(damaged.len(), 1 + 2 + 7, "{damaged:?}");
    for name in damaged {
        for cut in [false, true] {
            let store = folder.path().join("s.zarr");
            copy_folder(&whole, &store);
            let mut bytes = expected[&name].clone();
            if cut {
                bytes.truncate(bytes.len() / 2);
            } else {
                let middle = bytes.len() / 3;
                bytes[middle] ^= 4;
            }
            fs::write(store.join(&name), bytes).unwrap();
            let report = verify(&store, &|_, _| {}).unwrap();
            let found: Vec<_> = report.damage.iter().map(|damage| &damage.path).collect();
            assert_eq!(found, [&name], "cut {cut}");
            let is_projection = name.ends_with(RUNG_PROJECTION);
            assert_eq!(report.damage[0].part == Part::RungProjection, is_projection);
            assert_eq!(Store::open(&store).is_err(), is_projection || name.ends_with("zarr.json"), "{}", name.display());
            mend(&scans, &store, &config);
            assert_same_files(&store, &expected, &name.display().to_string());
            fs::remove_dir_all(&store).unwrap();
        }
    }
}

#[test]
fn rungs_are_read_in_every_number_format_if_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let scans = folder.path().join("scans");
    write_scans(&scans);
    let path = |dtype: StoreDtype| {
        let path = folder.path().join(format!("{dtype:?}.zarr"));
        if !path.exists() {
            fill_whole(&scans, &path, &PrecomputeConfig { dtype, ..flips(RungProjection::Random) });
        }
        path
    };
    let exact = Store::open(path(StoreDtype::F32)).unwrap();
    let picks = [(3, 2), (0, 0), (4, 4)];
    for dtype in [StoreDtype::F16, StoreDtype::Bf16, StoreDtype::Q8, StoreDtype::F32] {
        let store = Arc::new(Store::open(path(dtype)).unwrap());
        let mut with = Batch::with_rungs();
        store.read_batch(Split::Train, &picks, &mut with).unwrap();
        let (rungs, mut without) = (with.rungs.clone().unwrap(), Batch::default());
        store.read_batch(Split::Train, &picks, &mut without).unwrap();
        assert!(without.rungs.is_none());
        assert_eq!((&without.embeddings, &without.images, &without.labels), (&with.embeddings, &with.images, &with.labels));
        for mode in [ReadMode::Stream, ReadMode::Resident] {
            let reader =
                Reader::with(store.clone(), Split::Train, mode, BatchParts { rungs: true, ..BatchParts::default() }).unwrap();
            for _ in 0..2 {
                let mut batch = Batch::default();
                reader.read_batch(&picks, &mut batch).unwrap();
                assert!(batch == with, "{dtype:?} {mode:?}");
            }
            let mut batch = Batch::with_rungs();
            Reader::new(store.clone(), Split::Train, mode).read_batch(&picks, &mut batch).unwrap();
            assert!(batch == without, "{dtype:?} {mode:?}");
        }
        let values = rungs.to_vec();
        assert_eq!(values.len(), picks.len() * RUNGS.len() * CHANNELS * 4);
        let expected: Vec<f32> =
            picks.iter().flat_map(|&(row, variant)| read(&exact, Split::Train, row, variant).rungs.unwrap().to_vec()).collect();
        // Half a step: of 11 and 8 bits, and of 255 steps between the least and the largest value of each channel.
        for (found, expected) in values.chunks(4).zip(expected.chunks(4)) {
            let spread =
                |values: &[f32]| values.iter().fold(f32::MIN, |a, b| a.max(*b)) - values.iter().fold(f32::MAX, |a, b| a.min(*b));
            for (found, value) in found.iter().zip(expected) {
                let step = match dtype {
                    StoreDtype::F32 => 0.0,
                    StoreDtype::F16 => value.abs() / 2048.0,
                    StoreDtype::Bf16 => value.abs() / 256.0,
                    StoreDtype::Q8 => spread(expected) / 510.0 + 1e-6 * value.abs(),
                };
                assert!((found - value).abs() <= 1.001 * step, "{dtype:?}: {found} {value}");
            }
        }
    }
    fill_whole(&scans, &folder.path().join("plain.zarr"), &config(AugmentPolicy::Flips, 1));
    let plain = Arc::new(Store::open(folder.path().join("plain.zarr")).unwrap());
    let error = plain.read_batch(Split::Train, &picks, &mut Batch::with_rungs()).unwrap_err();
    assert!(matches!(&error, StoreError::Absent { what, .. } if what == "rungs"), "{error}");
    assert!(error.hint().unwrap().contains("precompute --rungs"));
    assert!(Reader::with(plain, Split::Train, ReadMode::Stream, BatchParts { rungs: true, ..BatchParts::default() }).is_err());
}

fn refused(scans: &Path, store: &Path, config: &PrecomputeConfig) -> Error {
    let filled: Result<_> = fill(scans, store, config, "1/1", Formula::default());
    filled.unwrap_err()
}

#[test]
fn a_sample_that_cannot_be_taken_is_said_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store, pca) = (folder.path().join("scans"), folder.path().join("s.zarr"), flips(RungProjection::Pca));
    write_scans(&scans);
    let image = scans.join("RawData/Training/img/img0005.nii.gz");
    let good = fs::read(&image).unwrap();
    fs::write(&image, &good[..good.len() - 9]).unwrap();
    let error = refused(&scans, &store, &pca);
    assert!(matches!(&error, Error::SampledScan { case, .. } if case == "0005"), "{error}");
    assert!(error.hint().unwrap().contains("good copy") && !store.exists());
    // Of random numbers nothing is sampled: the other scans are stored, as ever.
    assert!(matches!(refused(&scans, &store, &flips(RungProjection::Random)), Error::BadScans { .. }));
    fs::remove_dir_all(&store).unwrap();
    fs::write(&image, &good).unwrap();

    // What is stored was made with the tokens of every case: none of them may be left out.
    fill_failing(&scans, &store, &pca, 9);
    let aside = folder.path().join("aside");
    fs::create_dir(&aside).unwrap();
    for kind in ["img", "label"] {
        fs::rename(scans.join(format!("RawData/Training/{kind}/{kind}0005.nii.gz")), aside.join(kind)).unwrap();
    }
    let before = files(&store);
    let error = refused(&scans, &store, &pca);
    assert!(matches!(&error, Error::Store(StoreError::OtherConfig { .. })), "{error}");
    assert_same_files(&store, &before, "refused");
    // A scan may be added: the map stays.
    for kind in ["img", "label"] {
        fs::rename(aside.join(kind), scans.join(format!("RawData/Training/{kind}/{kind}0005.nii.gz"))).unwrap();
    }
    write_scan(&scans, 6, 2);
    let map = fs::read(store.join(RUNG_PROJECTION)).unwrap();
    fill_whole(&scans, &store, &pca);
    assert!(fs::read(store.join(RUNG_PROJECTION)).unwrap() == map);

    let only_test = folder.path().join("test");
    write_scan(&only_test, 1, 2);
    let error = refused(&only_test, &folder.path().join("t.zarr"), &pca);
    assert!(matches!(error, Error::NoSample) && error.hint().unwrap().contains("random"), "{error}");
}

#[test]
fn the_command_line_stores_rungs_and_refuses_what_has_no_effect() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write_scans(&at.join("scans"));
    let words = "precompute --scans @scans --random-encoder 0 --image-size 32 --data-size 32 --augment none --store";
    let refused = |options: &str| assert_refused(on(at, &format!("{words} @no.zarr {options}")));
    assert!(refused("--rungs 12").contains("blocks from 0 to 11"));
    assert!(refused("--rungs 5,2").contains("ascending"));
    assert!(refused("--rungs 2,2").contains("different blocks"));
    assert!(refused("--rung-channels 8").contains("rung_channels: it has no effect without rungs"));
    assert!(refused("--rungs 2 --rung-projection none --rung-channels 8").contains("no effect"));
    assert!(refused("--rungs 2 --rung-channels 0").contains("rung_channels"));
    assert!(!at.join("no.zarr").exists());

    let dry =
        "precompute --scans @scans --random-encoder 0 --preset native224 --augment none --dtype f32 --store @s.zarr --dry-run";
    let said = succeed(on(at, &format!("{dry} --rungs 2,11")));
    // Seven slices of float32: 256·14² embeddings, 224² pixels, 2·64·14² of rungs, 56² labels; 504 voxels of masks.
    let megabytes = (7.0 * (4.0 * (50176.0 + 50176.0 + 25088.0) + 3136.0) + 504.0) / 1e6;
    assert!(said.contains(&format!("at most {megabytes:.1} MB of tensors")), "{said}: {megabytes}");
    succeed(on(at, &format!("{words} @s.zarr --rungs 2,11 --rung-channels 8")));
    succeed(on(at, "verify --store @s.zarr"));
    let store = Store::open(at.join("s.zarr")).unwrap();
    assert_eq!(read(&store, Split::Train, 0, 0).rungs.unwrap().len(), 2 * 8 * 4);
    assert_eq!((store.config().rungs.as_slice(), store.config().rung_channels), (&[2, 11][..], 8));
}
