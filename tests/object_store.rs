//! Stores in an S3 bucket: the same bytes as in a folder, whatever interrupts the work, and training that reads them through a bounded cache.
//! The server runs in this process on loopback; its clients are child processes, of the program or of this binary.

#[path = "common/bucket.rs"]
mod bucket;
mod cli;
mod common;
#[path = "common/folders.rs"]
mod folders;
#[path = "common/s3.rs"]
mod s3;
#[path = "common/same_stores.rs"]
mod same_stores;
#[path = "common/stage_one.rs"]
mod stage_one;
#[path = "common/store.rs"]
mod store;

use bucket::{STORE, assert_same_objects, small_and_grown, train, upload};
use cli::{assert_refused, program, succeed};
use folders::files;
use s3::{Server, child_folder};
use sam_ladder_cache::{Error as StoreError, Store, verify};
use sam_ladder_precompute::pipeline::{FillOptions, Plan, repair};
use sam_ladder_schemas::observer::Silent;
use sam_ladder_schemas::precompute::{PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::train::CHECKPOINT;
use sam_ladder_schemas::variants::AugmentPolicy;
use same_stores::read_all;
use stage_one::{Formula, config, fill, fill_failing, fill_whole, loaded, write_scan, write_scans};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Settings of a store with every kind of file.
fn with_rungs() -> PrecomputeConfig {
    PrecomputeConfig { half_labels: true, rungs: vec![2], rung_channels: 4, ..config(AugmentPolicy::Flips, 1) }
}

#[test]
fn a_bucket_holds_the_bytes_of_a_folder() {
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let (scans, whole) = (base.path().join("scans"), base.path().join("whole.zarr"));
    write_scans(&scans);
    fill_whole(&scans, &whole, &with_rungs());
    // Every ninth request is refused: each is tried again.
    server.refuse_every.store(9, Ordering::SeqCst);
    server.run_child("interrupted_and_shared", base.path());
    assert_same_objects(&server, STORE, &whole, "interrupted, then filled by three workers");
}

#[test]
#[ignore = "a child on a server"]
fn interrupted_and_shared() {
    let scans = child_folder().join("scans");
    let config = with_rungs();
    let images = AtomicUsize::new(0);
    let fill = |share, fails_after| {
        images.store(0, Ordering::SeqCst);
        let encoder = Formula { fails_after, images: Some(&images), ..Formula::default() };
        fill(&scans, Path::new(STORE), &config, share, encoder)
    };
    let error = fill("1/1", Some(9)).unwrap_err().to_string();
    assert!(error.contains("the power went") && error.contains("kept in s3://lab/some/s.zarr"), "{error}");
    let error = sam_ladder_cache::Store::open(STORE).unwrap_err().to_string();
    assert!(error.contains("s3://lab/some/s.zarr is incomplete"), "{error}");
    for share in ["3/3", "1/3"] {
        assert!(!fill(share, None).unwrap().complete);
    }
    assert!(fill("2/3", None).unwrap().complete);
    assert!(fill("1/1", Some(0)).unwrap().already_complete);
    assert!(verify(Path::new(STORE), &|_, _| {}).unwrap().damage.is_empty());
}

#[test]
fn a_store_in_a_bucket_grows() {
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let (scans, whole) = small_and_grown(&server, base.path());
    server.run_child("grown_by_two_workers", base.path());
    assert_same_objects(&server, STORE, &whole, "grown by variants and a scan");
    // If only a scan is added, whole shards are taken over.
    write_scan(&scans, 9, 1);
    write_scan(&scans, 2, 1);
    fill_whole(&scans, &whole, &config(AugmentPolicy::Flips, 1));
    server.run_child("grown_by_scans", base.path());
    assert_same_objects(&server, STORE, &whole, "grown by scans");
}

#[test]
#[ignore = "a child on a server"]
fn grown_by_two_workers() {
    let scans = child_folder().join("scans");
    let config = config(AugmentPolicy::Flips, 1);
    let images = AtomicUsize::new(0);
    let fill = |share, fails_after| {
        let encoder = Formula { fails_after, images: Some(&images), ..Formula::default() };
        fill(&scans, Path::new(STORE), &config, share, encoder)
    };
    fill("1/2", Some(4)).unwrap_err();
    let before = images.swap(0, Ordering::SeqCst);
    assert!(sam_ladder_cache::Store::open(STORE).is_err());
    std::thread::scope(|scope| {
        let other = scope.spawn(|| fill("2/2", None).unwrap());
        fill("1/2", None).unwrap();
        other.join().unwrap();
    });
    assert!(fill("1/1", None).unwrap().complete);
    // 7 train slices of 5 variants and 2 test slices, less the 5 + 2 identities that were stored; at most a group of 4 twice.
    let all = 7 * 5 + 2 - (5 + 2);
    let computed = images.load(Ordering::SeqCst);
    assert!((all - before..=all + 4).contains(&computed), "{before} and {computed} images, expected {all}");
}

#[test]
#[ignore = "a child on a server"]
fn grown_by_scans() {
    let (scans, images) = (child_folder().join("scans"), AtomicUsize::new(0));
    let encoder = Formula { images: Some(&images), ..Formula::default() };
    assert!(fill(&scans, Path::new(STORE), &config(AugmentPolicy::Flips, 1), "1/1", encoder).unwrap().complete);
    // Case 2 is a test case, whose only variant is the identity.
    assert_eq!(images.load(Ordering::SeqCst), 5 + 1);
}

#[test]
fn a_reader_reads_on_or_stops_while_a_store_in_a_bucket_grows() {
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    write_scans(&base.path().join("scans"));
    server.run_child("read_while_it_grows", base.path());
}

#[test]
#[ignore = "a child on a server"]
fn read_while_it_grows() {
    let (scans, place) = (child_folder().join("scans"), Path::new(STORE));
    let (small, more) = (config(AugmentPolicy::Flips, 1), config(AugmentPolicy::Reference, 10));
    fill_whole(&scans, place, &small);
    let [before, unread] = [(); 2].map(|()| Store::open(place).unwrap());
    let expected = read_all(&before).unwrap();
    write_scan(&scans, 6, 2);
    fill_failing(&scans, place, &small, 4);
    assert!(read_all(&before).unwrap() == expected, "while scans are added");
    fill_whole(&scans, place, &small);
    assert!(read_all(&before).unwrap() == expected && read_all(&unread).unwrap() == expected, "when scans were added");
    let [before, unread] = [(); 2].map(|()| Store::open(place).unwrap());
    let expected = read_all(&before).unwrap();
    fill_failing(&scans, place, &more, 9);
    for when in ["while", "after"] {
        for store in [&before, &unread] {
            match read_all(store) {
                Ok(found) => assert!(found == expected, "{when} variants are added"),
                Err(error) => assert!(matches!(error, StoreError::Changed { .. }), "{when} variants are added: {error}"),
            }
        }
        fill_whole(&scans, place, &more);
    }
    assert!(matches!(read_all(&unread), Err(StoreError::Changed { .. })));
}

#[test]
fn damaged_and_missing_objects_are_found_and_repaired() {
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let (scans, whole) = (base.path().join("scans"), base.path().join("whole.zarr"));
    write_scans(&scans);
    fill_whole(&scans, &whole, &config(AugmentPolicy::Flips, 1));
    upload(&server, &whole, STORE);
    for (i, (name, bytes)) in files(&whole).iter().filter(|(name, _)| *name != Path::new("manifest.json")).enumerate() {
        // Two of three objects; every third one stays undamaged.
        let object = server.folder(STORE).join(name);
        match i % 3 {
            0 => fs::remove_file(object).unwrap(),
            1 => fs::write(object, bytes.iter().rev().copied().collect::<Vec<_>>()).unwrap(),
            _ => {}
        }
    }
    server.run_child("mended", base.path());
    assert_same_objects(&server, STORE, &whole, "mended");
}

#[test]
#[ignore = "a child on a server"]
fn mended() {
    let (scans, place) = (child_folder().join("scans"), Path::new(STORE));
    let report = verify(place, &|_, _| {}).unwrap();
    let told: Vec<String> = report.damage.iter().map(ToString::to_string).collect();
    assert!(report.damage.len() > 15, "{told:#?}");
    assert!(told.iter().any(|damage| damage.contains("its file is missing")), "{told:#?}");
    let plan = || Plan::new(&scans, &report.attributes.config, &Silent);
    repair(place, &report, &FillOptions::whole(4, &Silent), plan, || loaded(Formula::default())).unwrap();
    assert!(verify(place, &|_, _| {}).unwrap().damage.is_empty());
}

/// Peak size of a folder's files during `work`.
fn most_bytes<T>(folder: &Path, work: impl FnOnce() -> T) -> (u64, T) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::SeqCst) {
                most = most.max(bytes_of(folder));
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
            most.max(bytes_of(folder))
        });
        let outcome = work();
        done.store(true, Ordering::SeqCst);
        (watch.join().unwrap(), outcome)
    })
}

/// A file that is removed meanwhile counts as 0.
fn bytes_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

#[test]
fn training_from_a_bucket_makes_the_bytes_of_training_from_a_folder() {
    const ROOM: u64 = 200 << 10;
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let local = base.path().join("train.zarr");
    store::write_store(&local, StoreDtype::F16, AugmentPolicy::Flips, 1);
    upload(&server, &local, STORE);
    // Several times the cache.
    assert!(bytes_of(&local.join("train")) > 3 * ROOM, "{}", bytes_of(&local.join("train")));
    let expected = base.path().join("expected");
    succeed(train(&server, local.to_str().unwrap(), &expected, &[]));
    let expected = fs::read(expected.join(CHECKPOINT)).unwrap();
    let cache = base.path().join("cache");
    let caching = ["--cache-dir", cache.to_str().unwrap(), "--cache-size", "200K"];
    let (run, other) = (base.path().join("run"), base.path().join("other"));
    server.refuse_every.store(23, Ordering::SeqCst);
    // Two runs share the cache. Damaged copies, and those left by a killed process, do no harm.
    let (most, ()) = most_bytes(&cache, || {
        std::thread::scope(|scope| {
            scope.spawn(|| succeed(train(&server, STORE, &other, &caching)));
            succeed(train(&server, STORE, &run, &caching));
        });
    });
    server.refuse_every.store(0, Ordering::SeqCst);
    assert!(most > ROOM / 2 && most <= ROOM, "the cache took {most} bytes of {ROOM}");
    for run in [&run, &other] {
        assert!(fs::read(run.join(CHECKPOINT)).unwrap() == expected, "{}", run.display());
    }

    // A cache that holds everything: the second run requests only the store's metadata and the shards' indexes.
    let cache = base.path().join("large");
    let caching = ["--cache-dir", cache.to_str().unwrap(), "--cache-size", "1G"];
    succeed(train(&server, STORE, &base.path().join("cold"), &caching));
    let before = server.requests();
    succeed(train(&server, STORE, &base.path().join("warm"), &caching));
    let warm = server.requests() - before;
    assert!(warm < 80, "{warm} requests with a warm cache");
    let mut damaged = 0;
    for store in fs::read_dir(&cache).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        for (i, copy) in fs::read_dir(store.path()).unwrap().flatten().enumerate() {
            let bytes = fs::read(copy.path()).unwrap();
            match i % 3 {
                0 => fs::write(copy.path(), &bytes[..bytes.len() / 2]).unwrap(),
                1 => fs::write(copy.path(), vec![0; bytes.len()]).unwrap(),
                _ => fs::write(copy.path(), b"").unwrap(),
            }
            damaged += 1;
        }
    }
    assert!(damaged > 30, "{damaged} copies");
    let run = base.path().join("damaged");
    succeed(train(&server, STORE, &run, &caching));
    assert!(fs::read(run.join(CHECKPOINT)).unwrap() == expected);

    // With the embeddings of the slices around, through a small cache and a large one.
    let around = base.path().join("around");
    succeed(train(&server, local.to_str().unwrap(), &around, &["--neighbours", "1"]));
    for size in ["200K", "1G"] {
        let (run, cache) = (base.path().join(format!("around-{size}")), base.path().join(format!("cache-{size}")));
        let options = ["--neighbours", "1", "--cache-dir", cache.to_str().unwrap(), "--cache-size", size];
        succeed(train(&server, STORE, &run, &options));
        let [found, expected] = [&run, &around].map(|run| fs::read(run.join(CHECKPOINT)).unwrap());
        assert!(found == expected, "{size}");
    }

    // With rungs, too; the run keeps the bucket's projection.
    let (ladder, address) = (base.path().join("ladder.zarr"), "s3://lab/some/ladder.zarr");
    store::write_store_with_rungs(&ladder, StoreDtype::Q8, [AugmentPolicy::Flips, AugmentPolicy::None], 1, &[2, 11]);
    upload(&server, &ladder, address);
    let climbing = ["--ladder", "gated", "--neighbours", "1"];
    let from_folder = base.path().join("climbing");
    succeed(train(&server, ladder.to_str().unwrap(), &from_folder, &climbing));
    for size in ["200K", "1G"] {
        let (run, cache) = (base.path().join(format!("climbing-{size}")), base.path().join(format!("rungs-{size}")));
        let options = [&climbing[..], &["--cache-dir", cache.to_str().unwrap(), "--cache-size", size]].concat();
        succeed(train(&server, address, &run, &options));
        for file in [CHECKPOINT, "rung_projection.safetensors"] {
            let [found, expected] = [&run, &from_folder].map(|run| fs::read(run.join(file)).unwrap());
            assert!(found == expected, "{size}: {file}");
        }
    }

    // A chunk that is damaged in the bucket is named.
    let object = server.folder(STORE).join("train/images/c.2.0.0.0");
    let mut bytes = fs::read(&object).unwrap();
    bytes.iter_mut().take(40_000).for_each(|byte| *byte ^= 1);
    fs::write(&object, bytes).unwrap();
    let caching = ["--cache-dir", base.path().join("third").to_str().unwrap(), "--cache-size", "1G"].map(String::from);
    let caching: Vec<&str> = caching.iter().map(String::as_str).collect();
    let error = assert_refused(train(&server, STORE, &base.path().join("stopped"), &caching));
    assert!(error.contains("train/images of slice 2 (case 0005, slice 2 of it, variant "), "{error}");
    assert!(
        error.contains("in s3://lab/some/s.zarr/train/images/c.2.0.0.0\nhint: repair it with `sam-ladder verify --repair`"),
        "{error}"
    );
}

#[test]
fn the_commands_take_a_bucket_and_say_what_is_wrong_with_it() {
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let scans = base.path().join("scans");
    write_scan(&scans, 5, 2);
    write_scan(&scans, 1, 1);
    let command = |words: &[&str], place: &str| {
        let mut command = program(words);
        command.args(["--store", place]);
        server.tell(&mut command);
        command
    };
    let precompute = |place: &str| {
        let words =
            ["precompute", "--random-encoder", "3", "--image-size", "16", "--data-size", "16", "--augment", "none", "--scans"];
        command(&[&words[..], &[scans.to_str().unwrap()]].concat(), place)
    };
    let local = base.path().join("s.zarr");
    succeed(precompute(local.to_str().unwrap()));
    let mut dry = precompute(STORE);
    assert!(
        succeed({
            dry.arg("--dry-run");
            dry
        })
        .contains("3 images to encode")
    );
    succeed(precompute(STORE));
    assert_same_objects(&server, STORE, &local, "by the command");
    succeed(command(&["verify"], STORE));
    fs::remove_file(server.folder(STORE).join("test/masks/0001/c.0.0.0")).unwrap();
    let output = command(&["verify"], STORE).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("damaged: mask of test case 0001: its file is missing"));
    succeed(command(&["verify", "--repair", "--scans", scans.to_str().unwrap()], STORE));
    assert_same_objects(&server, STORE, &local, "repaired by the command");
    let out = base.path().join("eval");
    succeed(command(
        &["eval", "--zero-shot", "--out", out.to_str().unwrap(), "--cache-dir", base.path().join("cache").to_str().unwrap()],
        STORE,
    ));
    assert!(out.join("table.md").is_file());

    let wrong = |place: &str, name: &str, value: &str| {
        let mut command = command(&["verify"], place);
        command.env(name, value);
        assert_refused(command)
    };
    let error = wrong(STORE, "AWS_SECRET_ACCESS_KEY", "another");
    assert!(error.contains("cannot use s3://lab/some/s.zarr: HTTP status 403 SignatureDoesNotMatch"), "{error}");
    assert!(error.contains("check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), "{error}");
    let error = wrong("s3://nowhere/s.zarr", "AWS_REGION", "us-east-1");
    assert!(error.contains("cannot use s3://nowhere/s.zarr: HTTP status 404 NoSuchBucket"), "{error}");
    assert!(error.contains("hint: make the bucket, or correct --store or AWS_ENDPOINT_URL"), "{error}");
    let error = wrong(STORE, "AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    assert!(error.contains("hint: check AWS_ENDPOINT_URL") && error.contains("the server cannot be reached"), "{error}");
    let error = wrong("s3://lab/none.zarr", "AWS_REGION", "us-east-1");
    assert!(error.contains("s3://lab/none.zarr is not a sam-ladder store: there is nothing below that key"), "{error}");
    let error = wrong("s3://lab", "AWS_REGION", "us-east-1");
    assert!(error.contains("expected s3://BUCKET/KEY, such as s3://lab/synapse.zarr, found s3://lab"), "{error}");
}

#[test]
fn variables_are_taken_as_they_are_meant() {
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let local = base.path().join("train.zarr");
    store::write_store(&local, StoreDtype::F16, AugmentPolicy::None, 1);
    upload(&server, &local, STORE);
    let with = |variables: &[(&str, &str)]| {
        let mut command = program(&["status", "--store", STORE]);
        server.tell(&mut command);
        command.envs(variables.iter().copied());
        command
    };
    succeed(with(&[("AWS_REGION", "us-east-1\n"), ("AWS_SECRET_ACCESS_KEY", "a secret of the tests\r\n")]));
    succeed(with(&[("AWS_ENDPOINT_URL", "http://127.0.0.1:1"), ("AWS_ENDPOINT_URL_S3", server.address())]));
    let mut only_s3 = with(&[("AWS_ENDPOINT_URL_S3", &format!("{}/\n", server.address()))]);
    only_s3.env_remove("AWS_ENDPOINT_URL");
    succeed(only_s3);
    for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"] {
        let error = assert_refused(with(&[(name, "http://someone:hunter2@127.0.0.1:1")]));
        assert!(error.contains(name) && !error.contains("hunter2") && !error.contains("someone"), "{error}");
    }
    let error = assert_refused(with(&[("AWS_REGION", "us-\neast-1")]));
    assert!(error.contains("AWS_REGION holds a character that it cannot have"), "{error}");
}

/// Folders, keys and cases of names that must be escaped somewhere, from precompute to eval.
#[test]
fn names_of_any_letters_work_in_folders_and_buckets() {
    const NAME: &str = "über (2) a+b 100%25 #1 @c:d ∂";
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let folder = base.path().join(NAME);
    let scans = folder.join("scans");
    for (number, case) in [(0, format!("{NAME} 1")), (1, format!("{NAME} 2"))] {
        let voxels: Vec<f32> = (0..512).map(|at| ((at * 7 + number * 5) % 50) as f32).collect();
        let labels: Vec<f32> = (0..512).map(|at| f32::from(u8::from(at % 16 > 9))).collect();
        for (kind, name, values) in [("images", format!("{case}_0000"), &voxels), ("labels", case, &labels)] {
            let half = if number == 0 { "Tr" } else { "Ts" };
            fs::create_dir_all(scans.join(format!("{kind}{half}"))).unwrap();
            fs::write(scans.join(format!("{kind}{half}/{name}.nii")), cli::nifti([16, 16, 2], values)).unwrap();
        }
    }
    let json =
        r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 1, "file_ending": ".nii"}"#;
    fs::write(scans.join("dataset.json"), json).unwrap();
    let local = folder.join("s.zarr");
    for (place, kind) in [(local.to_str().unwrap().to_string(), "folder"), (format!("s3://lab/{NAME}/s.zarr"), "bucket")] {
        let run = |words: &[&str], paths: &[(&str, &Path)]| {
            let mut command = program(words);
            command.args(["--store", &place]);
            for (option, path) in paths {
                command.arg(option).arg(path);
            }
            server.tell(&mut command);
            succeed(command)
        };
        let sizes = ["--random-encoder", "0", "--image-size", "32", "--data-size", "32", "--augment", "none"];
        run(&[&["precompute"], &sizes[..]].concat(), &[("--scans", &scans)]);
        run(&["verify"], &[]);
        let (trained, evaluated) = (folder.join(format!("run {kind}")), folder.join(format!("eval {kind}")));
        let cache = folder.join("cache");
        run(&["train", "--max-steps", "1", "--batch-size", "2"], &[("--run", &trained), ("--cache-dir", &cache)]);
        run(&["eval", "--save-nifti"], &[("--run", &trained), ("--out", &evaluated), ("--cache-dir", &cache)]);
        assert!(evaluated.join(format!("masks/{NAME} 2.nii.gz")).is_file(), "{kind}");
    }
    assert_same_objects(&server, &format!("s3://lab/{NAME}/s.zarr"), &local, "names");
}

/// DINO's embeddings, of other channels than SAM's, with rungs: precompute by two workers, verify, train through a cache, eval.
#[test]
fn another_encoders_store_in_a_bucket_is_that_of_a_folder() {
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let at = base.path();
    succeed(cli::on(at, "phantom --out @scans --cases 4 --size 40 --depth 3 --seed 3"));
    let local = at.join("whole.zarr");
    let run = |place: &str, words: &str| {
        let mut command = cli::on(at, &format!("{words} --store {place}"));
        server.tell(&mut command);
        succeed(command)
    };
    let made = "precompute --scans @scans --encoder dinov3_vits16 --random-encoder 3 --image-size 32 --data-size 32 --augment flips \
                --rungs 3,11 --rung-channels 5";
    let places = [(local.to_str().unwrap(), "folder"), (STORE, "bucket")];
    run(places[0].0, made);
    run(STORE, &format!("{made} --worker 2/2"));
    run(STORE, &format!("{made} --worker 1/2"));
    assert_same_objects(&server, STORE, &local, "another encoder");
    for (place, kind) in places {
        run(place, "verify");
        let train = "train --epochs 2 --batch-size 3 --warmup 0 --ladder gated --read stream --cache-dir @cache";
        run(place, &format!("{train} --run @{kind}"));
        run(place, &format!("eval --save-nifti --cache-dir @cache --run @{kind} --out @{kind}/eval"));
    }
    for file in [CHECKPOINT, "eval/masks/0001.nii.gz"] {
        let [folder, bucket] = ["folder", "bucket"].map(|kind| fs::read(at.join(kind).join(file)).unwrap());
        assert!(folder == bucket, "{file}");
    }
}

#[test]
fn a_cache_folder_of_another_origin_is_refused() {
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let local = base.path().join("train.zarr");
    store::write_store(&local, StoreDtype::F16, AugmentPolicy::None, 1);
    upload(&server, &local, STORE);
    let photos = base.path().join("photos");
    fs::create_dir_all(photos.join("2024")).unwrap();
    fs::write(photos.join("2024/1.jpg"), vec![1; 4000]).unwrap();
    fs::write(photos.join("ledger"), "of an accountant").unwrap();
    let command =
        train(&server, STORE, &base.path().join("run"), &["--cache-dir", photos.to_str().unwrap(), "--cache-size", "1K"]);
    let error = assert_refused(command);
    assert!(error.contains("photos") && error.contains("hint: pass --cache-dir a folder of its own"), "{error}");
    assert_eq!(fs::read(photos.join("ledger")).unwrap(), b"of an accountant");
    assert_eq!(fs::read(photos.join("2024/1.jpg")).unwrap().len(), 4000);
}
