//! Each file of a store is truncated, changed by a bit, and deleted: `verify` finds it, the repair restores the same bytes from the sources
//! and computes nothing else, and training never runs on a damaged file without noticing.

mod cli;
mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/folders.rs"]
mod folders;
#[path = "common/stage_one.rs"]
mod stage_one;
#[path = "common/store.rs"]
mod store;
#[path = "common/train_args.rs"]
mod train_args;

use cli::{assert_refused, program, succeed};
use folders::{assert_same_files, files};
use sam_ladder_cache::{Part, VerifyReport, verify};
use sam_ladder_precompute::error::Result;
use sam_ladder_precompute::pipeline::{FillOptions, Loaded, Plan, Summary, repair};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::observer::Silent;
use sam_ladder_schemas::precompute::{Compression, PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::train::{CHECKPOINT, SliceOrder, TrainConfig};
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::run::train;
use stage_one::{Formula, config, fill_whole, loaded, write_scan, write_scans};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use train_args::train_args;

/// What happens to a file.
#[derive(Debug, Clone, Copy)]
enum Harm {
    Cut,
    Flip,
    Delete,
}

const HARMS: [Harm; 3] = [Harm::Cut, Harm::Flip, Harm::Delete];

fn harm(path: &Path, bytes: &[u8], harm: Harm) {
    match harm {
        Harm::Cut => fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
        Harm::Flip => {
            let mut flipped = bytes.to_vec();
            flipped[bytes.len() / 2] ^= 0x20;
            fs::write(path, flipped).unwrap();
        }
        Harm::Delete => fs::remove_file(path).unwrap(),
    }
}

fn check(store: &Path) -> VerifyReport {
    verify(store, &|_, _| {}).unwrap()
}

fn mend(scans: &Path, store: &Path, report: &VerifyReport, encoder: Formula<'_>) -> Result<Option<Summary>> {
    repair(
        store,
        report,
        &FillOptions::whole(4, &Silent),
        || Plan::new(scans, &report.attributes.config, &Silent),
        || loaded(encoder),
    )
}

#[test]
fn every_damage_to_every_file_is_found_and_repaired() {
    every_damage_is_mended(&config(AugmentPolicy::Flips, 1));
}

/// Scales and offsets have their own files, and the chunks are compressed.
#[test]
fn every_damage_to_an_8_bit_store_is_found_and_repaired() {
    let eight_bits =
        PrecomputeConfig { dtype: StoreDtype::Q8, compression: Compression::Zstd, ..config(AugmentPolicy::Flips, 1) };
    every_damage_is_mended(&eight_bits);
}

fn every_damage_is_mended(config: &PrecomputeConfig) {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store) = (folder.path().join("scans"), folder.path().join("s.zarr"));
    write_scans(&scans);
    fill_whole(&scans, &store, config);
    let whole = files(&store);
    assert!(check(&store).damage.is_empty());
    assert_eq!(check(&store).files as usize, whole.len());
    for (name, bytes) in &whole {
        for kind in HARMS {
            let what = format!("{kind:?} of {}", name.display());
            harm(&store.join(name), bytes, kind);
            let report = check(&store);
            assert!(!report.damage.is_empty(), "{what} was not found");
            for damage in &report.damage {
                assert_eq!(&damage.path, name, "{what}: {damage}");
            }
            let images = AtomicUsize::new(0);
            mend(&scans, &store, &report, Formula { images: Some(&images), ..Formula::default() }).unwrap();
            assert_same_files(&store, &whole, &what);
            assert!(check(&store).damage.is_empty(), "{what}");
            // Only the lost variants are encoded: all of a slice, or the one whose chunk was changed.
            // A scale goes with its embeddings.
            let name = name.to_str().unwrap();
            let lost = match kind {
                _ if !(name.contains("embeddings/c.") || name.contains("quantization/c.")) => 0,
                Harm::Cut | Harm::Delete if name.starts_with("train/") => 5,
                _ => 1,
            };
            assert_eq!(images.load(Ordering::SeqCst), lost, "{what}");
        }
    }
}

#[test]
fn much_damage_at_once_is_reported_and_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store) = (folder.path().join("scans"), folder.path().join("s.zarr"));
    write_scans(&scans);
    fill_whole(&scans, &store, &config(AugmentPolicy::Flips, 1));
    let whole = files(&store);
    // Every file but one copy of the manifest.
    for (i, (name, bytes)) in whole.iter().filter(|(name, _)| *name != Path::new("manifest.json")).enumerate() {
        harm(&store.join(name), bytes, HARMS[i % 3]);
    }
    let report = check(&store);
    // Each of the three masks, whose shapes are no longer known, is reported once, for its `zarr.json`.
    assert!(report.damage.len() >= whole.len() - 4, "{} of {}", report.damage.len(), whole.len());
    // Two power losses during the repair: it resumes each time.
    for fails_after in [0, 7] {
        let images = AtomicUsize::new(0);
        let report = if fails_after == 0 { check(&store) } else { VerifyReport::of_unfinished(&store).unwrap() };
        let encoder = Formula { fails_after: Some(fails_after), images: Some(&images), ..Formula::default() };
        let error = mend(&scans, &store, &report, encoder).unwrap_err().to_string();
        assert!(error.contains("the power went"), "{error}");
        assert!(verify(&store, &|_, _| {}).unwrap_err().to_string().contains("is incomplete"));
    }
    mend(&scans, &store, &VerifyReport::of_unfinished(&store).unwrap(), Formula::default()).unwrap();
    assert_same_files(&store, &whole, "all but one file damaged");
}

#[test]
fn damage_is_reported_by_array_slice_and_variant() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store) = (folder.path().join("scans"), folder.path().join("s.zarr"));
    write_scans(&scans);
    fill_whole(&scans, &store, &config(AugmentPolicy::Flips, 1));
    let shard = store.join("train/images/c.3.0.0.0");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[3] ^= 1;
    fs::write(&shard, &bytes).unwrap();
    fs::remove_file(store.join("test/labels/c.1.0.0.0")).unwrap();
    let told: Vec<String> = check(&store).damage.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("train/images: case 0007, slice 1 of it (row 3), variant identity: the chunk has checksum"),
        "{}",
        told[0]
    );
    assert_eq!(
        told[1],
        "test/labels: case 0001, slice 1 of it (row 1), all variants: its file is missing (test/labels/c.1.0.0.0)"
    );

    // Files that do not belong there are reported and kept; surplus bytes after a shard's chunks are damage.
    fs::write(store.join("train/notes.txt"), b"mine").unwrap();
    let appended = [&fs::read(store.join("train/labels/c.0.0.0.0")).unwrap()[..], b"x"].concat();
    fs::write(store.join("train/labels/c.0.0.0.0"), appended).unwrap();
    let report = check(&store);
    assert_eq!(report.unexpected, [Path::new("train/notes.txt")]);
    assert!(report.damage.iter().any(|damage| damage.path == Path::new("train/labels/c.0.0.0.0")));
    mend(&scans, &store, &report, Formula::default()).unwrap();
    assert_eq!(fs::read(store.join("train/notes.txt")).unwrap(), b"mine");
    assert!(check(&store).damage.is_empty());

    // A mask made from other voxels, whose own checksums are right.
    let other = folder.path().join("other.zarr");
    write_scan(&folder.path().join("others"), 1, 2);
    let labels = folder.path().join("others/RawData/Training/label/label0001.nii.gz");
    let image = cli::nifti([8, 9, 2], &[0.0; 144]);
    cli::write_pair(&folder.path().join("others"), 1, &image, &image);
    assert!(labels.exists());
    fill_whole(&folder.path().join("others"), &other, &config(AugmentPolicy::Flips, 1));
    fs::copy(other.join("test/masks/0001/c.0.0.0"), store.join("test/masks/0001/c.0.0.0")).unwrap();
    let damage = check(&store).damage;
    assert!(
        damage[0].part == Part::Mask { split: Split::Test, case: "0001".into() }
            && damage[0].reason.contains("another chunk's values"),
        "{}",
        damage[0]
    );
}

#[test]
fn scans_that_have_changed_repair_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store) = (folder.path().join("scans"), folder.path().join("s.zarr"));
    write_scans(&scans);
    fill_whole(&scans, &store, &config(AugmentPolicy::Flips, 1));
    fs::remove_file(store.join("train/images/c.0.0.0.0")).unwrap();
    let before = files(&store);
    write_scan(&scans, 7, 4);
    let error = mend(&scans, &store, &check(&store), Formula::default()).unwrap_err().to_string();
    assert!(error.contains("cannot be repaired from these scans") && error.contains("img0007.nii.gz: store \""), "{error}");
    assert_same_files(&store, &before, "not repaired");
    // With both copies of the manifest gone there is nothing to check against.
    for name in ["zarr.json", "manifest.json"] {
        fs::write(store.join(name), b"{}").unwrap();
    }
    assert!(verify(&store, &|_, _| {}).is_err());
}

#[test]
fn training_never_runs_unawares_on_a_damaged_file() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store) = (folder.path().join("scans"), folder.path().join("s.zarr"));
    write_scan(&scans, 5, 2);
    write_scan(&scans, 1, 1);
    let decoder = store::decoder_bytes(&folder.path().join("decoder"));
    let config = config(AugmentPolicy::None, 1);
    let load = || Ok(Loaded { encoder: Formula::default(), decoder });
    sam_ladder_precompute::pipeline::fill_store(Plan::new(&scans, &config, &Silent).unwrap(), &store, 4, load).unwrap();
    let run = |name: &str| {
        let config = TrainConfig { epochs: 1, batch_size: 2, warmup: 0, order: SliceOrder::Sequential, ..TrainConfig::default() };
        train_args(&store, folder.path().join(name), config)
    };
    train(&run("undamaged")).unwrap();
    let expected = fs::read(folder.path().join("undamaged").join(CHECKPOINT)).unwrap();
    let mut unread = Vec::new();
    for (i, (name, bytes)) in files(&store).iter().enumerate() {
        harm(&store.join(name), bytes, HARMS[i % 3]);
        let args = run(&format!("{i}"));
        match train(&args) {
            Err(error) => {
                assert!(
                    error.to_string().contains(name.to_str().unwrap()) && error.hint().unwrap().contains("verify --repair"),
                    "{}: {error}",
                    name.display()
                );
            }
            Ok(_) => {
                assert!(fs::read(args.run.join(CHECKPOINT)).unwrap() == expected, "{}", name.display());
                unread.push(name.to_str().unwrap().to_string());
            }
        }
        fs::remove_dir_all(&args.run).ok();
        fs::write(store.join(name), bytes).unwrap();
    }
    // Training does not read these; what reads them, and `verify`, finds the damage.
    for name in &unread {
        let unread = ["test/", "train/masks/"].iter().any(|below| name.starts_with(below));
        assert!(name == "manifest.json" || unread, "{name} was damaged and nobody noticed");
    }
}

#[test]
fn the_command_finds_and_repairs() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store) = (folder.path().join("scans"), folder.path().join("s.zarr"));
    write_scan(&scans, 5, 2);
    write_scan(&scans, 1, 1);
    let precompute = |more: &[&str]| {
        let mut command = program(&["precompute", "--random-encoder", "3", "--image-size", "16", "--data-size", "16"]);
        command.args(["--augment", "none"]).arg("--scans").arg(&scans).arg("--store").arg(&store).args(more);
        command
    };
    let told = succeed(precompute(&["--dry-run"]));
    assert!(told.contains("3 images to encode: about 0 h 00 min") && told.contains("train: 1 scan, 2 slices"), "{told}");
    assert!(!store.exists());
    succeed(precompute(&["--worker", "2/2"]));
    succeed(precompute(&["--worker", "1/2"]));
    let whole = files(&store);
    let verify = |more: &[&str]| {
        let mut command = program(&["verify", "--store"]);
        command.arg(&store).args(more);
        command
    };
    succeed(verify(&[]));
    fs::remove_file(store.join("train/embeddings/c.1.0.0.0.0")).unwrap();
    fs::write(store.join("sam_decoder.safetensors"), b"not a decoder").unwrap();
    let output = verify(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("damaged: the decoder's weights: its SHA-256 is"), "{told}");
    assert!(
        told.contains("damaged: train/embeddings: case 0005, slice 1 of it (row 1), all variants: its file is missing"),
        "{told}"
    );
    let error = assert_refused(verify(&["--repair"]));
    assert!(error.contains("pass --scans DIR"), "{error}");
    succeed(verify(&["--repair", "--scans", scans.to_str().unwrap()]));
    assert_same_files(&store, &whole, "repaired by the command");
    // f32 is another number format: the store's and the requested one are named.
    let error = assert_refused(precompute(&["--dtype", "f32"]));
    assert!(error.contains("config.dtype: store \"f16\", requested \"f32\""), "{error}");
}

/// Where a chunk's bytes lie in a shard that is not compressed: `len` values bytes and their checksum.
fn chunk(index: usize, len: usize) -> std::ops::Range<usize> {
    index * (len + 4)..(index + 1) * (len + 4)
}

#[test]
fn values_in_anothers_place_are_damage() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store) = (folder.path().join("scans"), folder.path().join("s.zarr"));
    let config = config(AugmentPolicy::Flips, 1);
    write_scans(&scans);
    write_scan(&scans, 2, 2);
    fill_whole(&scans, &store, &config);
    let whole = files(&store);
    // A store of the same shape, of other scans.
    let (others, foreign) = (folder.path().join("others"), folder.path().join("foreign.zarr"));
    write_scans(&others);
    write_scan(&others, 2, 2);
    for case in [5, 7, 1, 2] {
        let from = if case == 7 { 7 } else { 3 };
        let depth = if case == 7 { 3 } else { 2 };
        write_scan(&others.join("aside"), from + 10, depth);
        for kind in ["img", "label"] {
            let path = |folder: &Path, case: u32| folder.join(format!("RawData/Training/{kind}/{kind}{case:04}.nii.gz"));
            fs::copy(path(&others.join("aside"), from + 10), path(&others, case)).unwrap();
        }
    }
    fs::remove_dir_all(others.join("aside")).unwrap();
    fill_whole(&others, &foreign, &config);

    let read = |path: &Path, name: &str| fs::read(path.join(name)).unwrap();
    let swap = |a: &str, b: &str| vec![(a.to_string(), read(&store, b)), (b.to_string(), read(&store, a))];
    let take = |name: &str| vec![(name.to_string(), read(&foreign, name))];
    let swap_variants = |name: &str, len: usize| {
        let bytes = read(&store, name);
        let mut swapped = bytes.clone();
        swapped[chunk(0, len)].copy_from_slice(&bytes[chunk(3, len)]);
        swapped[chunk(3, len)].copy_from_slice(&bytes[chunk(0, len)]);
        vec![(name.to_string(), swapped)]
    };
    let harms = [
        ("shards", swap("train/embeddings/c.0.0.0.0.0", "train/embeddings/c.3.0.0.0.0"), "train/embeddings: case 0005, slice 0"),
        ("images", swap("train/images/c.1.0.0.0", "train/images/c.4.0.0.0"), "train/images: case 0005, slice 1"),
        ("test slices", swap("test/labels/c.0.0.0.0", "test/labels/c.2.0.0.0"), "test/labels: case 0001, slice 0"),
        ("masks", swap("test/masks/0001/c.0.0.0", "test/masks/0002/c.0.0.0"), "mask of test case 0001: slice 0"),
        ("training masks", swap("train/masks/0005/c.0.0.0", "test/masks/0001/c.0.0.0"), "mask of train case 0005: slice 0"),
        (
            "variants",
            swap_variants("train/embeddings/c.2.0.0.0.0", 256 * 4 * 2),
            "case 0007, slice 0 of it (row 2), variant identity",
        ),
        ("variants of images", swap_variants("train/images/c.0.0.0.0", 32 * 32 * 2), "train/images: case 0005, slice 0"),
        ("foreign embeddings", take("train/embeddings/c.1.0.0.0.0"), "train/embeddings: case 0005, slice 1"),
        ("foreign labels", take("train/labels/c.2.0.0.0"), "train/labels: case 0007, slice 0"),
        ("foreign masks", take("test/masks/0002/c.0.0.0"), "mask of test case 0002: slice 0"),
        ("foreign training masks", take("train/masks/0007/c.0.0.0"), "mask of train case 0007: slice 0"),
        ("a foreign table", take("checksums.parquet"), "table of checksums"),
    ];
    for (what, harmed, place) in harms {
        for (name, bytes) in &harmed {
            assert!(*bytes != whole[Path::new(name)], "{what}: the harm changes {name}");
            fs::write(store.join(name), bytes).unwrap();
        }
        let report = check(&store);
        let told: Vec<String> = report.damage.iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|damage| damage.contains(place)), "{what}: {told:#?}");
        if what != "a foreign table" {
            assert!(told.iter().all(|damage| damage.contains("it holds another chunk's values (checksum ")), "{what}: {told:#?}");
        }
        let error = read_whole(&store).unwrap_err();
        assert!(error.hint().unwrap().contains("verify --repair"), "{what}: {error}");
        mend(&scans, &store, &report, Formula::default()).unwrap();
        assert_same_files(&store, &whole, what);
    }
}

/// Reads every slice, variant and mask.
fn read_whole(path: &Path) -> std::result::Result<(), sam_ladder_cache::Error> {
    let store = sam_ladder_cache::Store::open(path)?;
    for split in Split::ALL {
        for row in 0..store.slices(split).len() as u32 {
            for variant in 0..store.variants(split).len() as u32 {
                store.read_batch(split, &[(row, variant)], &mut sam_ladder_cache::Batch::default())?;
            }
        }
    }
    Split::ALL.into_iter().try_for_each(|split| store.cases(split).iter().try_for_each(|case| store.mask(split, case).map(drop)))
}

/// The table is made again of the chunks, if they prove what it held; if not, everything is computed again.
#[test]
fn a_damaged_table_of_checksums_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store) = (folder.path().join("scans"), folder.path().join("s.zarr"));
    write_scans(&scans);
    fill_whole(&scans, &store, &config(AugmentPolicy::Flips, 1));
    let whole = files(&store);
    for harmed_too in [None, Some("train/images/c.0.0.0.0")] {
        fs::write(store.join("checksums.parquet"), b"PAR1").unwrap();
        if let Some(name) = harmed_too {
            // Another's values: without the table nothing tells.
            fs::copy(store.join("train/images/c.1.0.0.0"), store.join(name)).unwrap();
        }
        let report = check(&store);
        assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
        assert_eq!(report.damage[0].part, Part::Checksums { proven: harmed_too.is_none() });
        let images = AtomicUsize::new(0);
        mend(&scans, &store, &report, Formula { images: Some(&images), ..Formula::default() }).unwrap();
        assert_eq!(images.load(Ordering::SeqCst), if harmed_too.is_none() { 0 } else { 5 * 5 + 2 });
        assert_same_files(&store, &whole, "the table of checksums");
    }
}
