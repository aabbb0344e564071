//! Faults of a bucket's server: answers that are cut, torn or lost, connections that break, and a server that hangs or is away.

#[path = "common/bucket.rs"]
mod bucket;
mod cli;
mod common;
#[path = "common/folders.rs"]
mod folders;
#[path = "common/s3.rs"]
mod s3;
#[path = "common/stage_one.rs"]
mod stage_one;
#[path = "common/store.rs"]
mod store;

use bucket::{STORE, assert_same_objects, small_and_grown, train, upload};
use cli::{assert_refused, program, succeed};
use folders::files;
use s3::{Asked, Fault, Server, child_folder};
use sam_ladder_schemas::precompute::StoreDtype;
use sam_ladder_schemas::train::CHECKPOINT;
use sam_ladder_schemas::variants::AugmentPolicy;
use stage_one::{Formula, config, fill, fill_whole, write_scan, write_scans};
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Whether this is one of every `every` requests for which it is asked.
fn one_in(count: &AtomicUsize, every: usize) -> bool {
    count.fetch_add(1, Ordering::SeqCst) % every == every - 1
}

/// Listings and objects are cut and connections reset: the store is the same.
#[test]
fn faults_on_the_way_change_no_byte() {
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let (_, whole) = small_and_grown(&server, base.path());
    let counts: [AtomicUsize; 3] = Default::default();
    let met = std::sync::Arc::new(Mutex::new(std::collections::BTreeMap::<String, usize>::new()));
    let seen = met.clone();
    // What failed succeeds the next time: the first request to a bucket is tried for a few seconds only.
    let failed = Mutex::new(std::collections::HashSet::new());
    server.break_by(move |asked: &Asked| {
        let request = (asked.method.clone(), asked.target.clone());
        if failed.lock().unwrap().remove(&request) {
            return None;
        }
        let fault = match asked.method.as_str() {
            "GET" if asked.is_listing() && one_in(&counts[0], 3) => Some(Fault::Cut),
            "GET" if !asked.is_listing() && one_in(&counts[1], 4) => Some(Fault::Cut),
            _ if one_in(&counts[2], 13) => Some(Fault::Reset),
            _ => None,
        };
        if let Some(fault) = fault {
            failed.lock().unwrap().insert(request);
            *seen.lock().unwrap().entry(format!("{fault:?} {}", asked.method)).or_default() += 1;
        }
        fault
    });
    server.run_child("grown_by_two_workers", base.path());
    let met = met.lock().unwrap().clone();
    assert!(met.contains_key("Cut GET") && met.contains_key("Reset PUT"), "{met:?}");
    assert_same_objects(&server, STORE, &whole, "grown over a bad line");
}

#[test]
#[ignore = "a child on a server"]
fn grown_by_two_workers() {
    let (scans, config) = (child_folder().join("scans"), config(AugmentPolicy::Flips, 1));
    let fill = |share| fill(&scans, Path::new(STORE), &config, share, Formula::default()).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| fill("2/2"));
        fill("1/2");
        other.join().unwrap();
    });
    assert!(fill("1/1").complete);
}

#[test]
#[ignore = "a child on a server"]
fn made() {
    let (scans, config) = (child_folder().join("scans"), config(AugmentPolicy::None, 1));
    assert!(fill(&scans, Path::new(STORE), &config, "1/1", Formula::default()).unwrap().complete);
}

#[test]
#[ignore = "a child on a server"]
fn stopped() {
    let (scans, config) = (child_folder().join("scans"), config(AugmentPolicy::Flips, 1));
    let images = AtomicUsize::new(0);
    let stops = Formula { fails_after: Some(12), images: Some(&images), ..Formula::default() };
    assert!(fill(&scans, Path::new(STORE), &config, "1/1", stops).is_err());
}

#[test]
#[ignore = "a child on a server"]
fn resumed() {
    let (scans, config) = (child_folder().join("scans"), config(AugmentPolicy::Flips, 1));
    assert!(fill(&scans, Path::new(STORE), &config, "1/1", Formula::default()).unwrap().complete);
}

/// Objects of an unfinished store that are cut, empty, zeroed or another slice's are written again.
#[test]
fn a_harmed_object_of_an_unfinished_store_is_written_again() {
    let base = tempfile::tempdir().unwrap();
    let (scans, whole) = (base.path().join("scans"), base.path().join("whole.zarr"));
    write_scans(&scans);
    fill_whole(&scans, &whole, &config(AugmentPolicy::Flips, 1));
    let shards = ["embeddings/c.0.0.0.0.0", "images/c.0.0.0.0", "labels/c.0.0.0.0"];
    for round in 0..5 {
        let server = Server::start();
        server.run_child("stopped", base.path());
        for (i, name) in shards.into_iter().enumerate() {
            let object = server.folder(STORE).join("train").join(name);
            let bytes = fs::read(&object).unwrap();
            let harmed = match (round + i) % 5 {
                0 => bytes[..bytes.len() / 2].to_vec(),
                1 => bytes[..1].to_vec(),
                2 => vec![],
                3 => vec![0; bytes.len()],
                _ => fs::read(whole.join("train").join(name.replace("c.0", "c.1"))).unwrap(),
            };
            fs::write(&object, harmed).unwrap();
        }
        server.run_child("resumed", base.path());
        assert_same_objects(&server, STORE, &whole, &format!("round {round}"));
    }
}

/// The server creates the manifest and its answer is lost: the object that the next attempt finds is the process's own.
#[test]
fn a_lost_answer_to_a_conditional_put_is_no_other_process() {
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let (scans, whole) = (base.path().join("scans"), base.path().join("whole.zarr"));
    write_scans(&scans);
    fill_whole(&scans, &whole, &config(AugmentPolicy::None, 1));
    let lost = std::sync::Arc::new(AtomicUsize::new(0));
    let count = lost.clone();
    server.break_by(move |asked: &Asked| {
        let first = asked.method == "PUT" && asked.is_conditional && count.fetch_add(1, Ordering::SeqCst) == 0;
        first.then_some(Fault::AnswerLost)
    });
    server.run_child("made", base.path());
    assert!(lost.load(Ordering::SeqCst) > 1, "a second attempt was made");
    assert_same_objects(&server, STORE, &whole, "made over a bad line");
}

/// Every fifth chunk or index arrives torn, and the server is away for longer than a few quick attempts: training ends with the same bytes.
#[test]
fn training_outlasts_torn_chunks_and_an_outage() {
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let local = base.path().join("train.zarr");
    store::write_store(&local, StoreDtype::F16, AugmentPolicy::Flips, 1);
    upload(&server, &local, STORE);
    let expected = base.path().join("expected");
    succeed(train(&server, local.to_str().unwrap(), &expected, &[]));
    let (ranges, torn, begun) = (AtomicUsize::new(0), std::sync::Arc::new(AtomicUsize::new(0)), Mutex::new(None::<Instant>));
    let asked_before = Mutex::new(std::collections::HashSet::new());
    let count = torn.clone();
    server.break_by(move |asked: &Asked| {
        let range = asked.range.clone()?;
        let number = ranges.fetch_add(1, Ordering::SeqCst);
        let away = number > 20 && begun.lock().unwrap().get_or_insert_with(Instant::now).elapsed() < Duration::from_secs(25);
        if away {
            return Some(if number % 2 == 0 { Fault::Reset } else { Fault::Refused });
        }
        // What is torn once arrives whole the next time.
        let is_first = asked_before.lock().unwrap().insert((asked.target.clone(), range));
        (is_first && number % 5 == 4).then(|| {
            count.fetch_add(1, Ordering::SeqCst);
            Fault::Torn
        })
    });
    let cache = base.path().join("cache");
    let run = base.path().join("run");
    let started = Instant::now();
    succeed(train(&server, STORE, &run, &["--cache-dir", cache.to_str().unwrap()]));
    assert!(started.elapsed() > Duration::from_secs(25) && torn.load(Ordering::SeqCst) > 5);
    assert!(fs::read(run.join(CHECKPOINT)).unwrap() == fs::read(expected.join(CHECKPOINT)).unwrap());
}

#[test]
fn a_server_that_hangs_is_reported_soon() {
    let server = Server::start();
    server.break_by(|_| Some(Fault::Hangs));
    let mut command = program(&["verify", "--store", STORE]);
    server.tell(&mut command);
    let started = Instant::now();
    let error = assert_refused(command);
    assert!(started.elapsed() < Duration::from_secs(30), "after {:?}", started.elapsed());
    assert!(error.contains("cannot use s3://lab/some/s.zarr") && error.contains("timed out"), "{error}");
}

/// The server answers, and hangs later: whether it never answers or stops within an answer, reading or writing, the request is made once more on
/// another connection, and then the command ends. The time is a variable's, as that of half a minute is a default.
#[test]
fn a_server_that_hangs_in_the_middle_of_the_work_is_reported_soon() {
    const SILENCE: &str = "5 seconds";
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let local = base.path().join("train.zarr");
    store::write_store(&local, StoreDtype::F16, AugmentPolicy::Flips, 1);
    upload(&server, &local, STORE);
    let scans = base.path().join("scans");
    write_scans(&scans);
    for (fault, writes) in [(Fault::Hangs, false), (Fault::Stalls, false), (Fault::Hangs, true)] {
        let hung = std::sync::Arc::new(Mutex::new(std::collections::BTreeMap::<String, usize>::new()));
        let (seen, passed) = (hung.clone(), AtomicUsize::new(0));
        server.break_by(move |asked: &Asked| {
            let concerned = if writes { asked.method == "PUT" } else { asked.range.is_some() };
            (concerned && passed.fetch_add(1, Ordering::SeqCst) >= 8).then(|| {
                *seen.lock().unwrap().entry(format!("{} {:?}", asked.target, asked.range)).or_default() += 1;
                fault
            })
        });
        let run = base.path().join(format!("{fault:?} {writes}"));
        let mut command = match writes {
            false => train(&server, STORE, &run, &["--cache-dir", base.path().join("cache").to_str().unwrap()]),
            true => {
                let sizes = ["--image-size", "16", "--data-size", "16", "--augment", "flips", "--store", "s3://lab/new.zarr"];
                let mut command = program(&["precompute", "--random-encoder", "3"]);
                command.args(sizes).arg("--scans").arg(&scans);
                server.tell(&mut command);
                command
            }
        };
        command.env("AWS_READ_TIMEOUT", SILENCE);
        fs::remove_dir_all(base.path().join("cache")).ok();
        let started = Instant::now();
        let error = assert_refused(command);
        assert!(error.contains("the server does not answer (the request timed out)"), "{fault:?}: {error}");
        // Several times what it takes, and less than two minutes of attempts.
        assert!(started.elapsed() < Duration::from_secs(30), "{fault:?}: after {:?}", started.elapsed());
        let hung = hung.lock().unwrap();
        // The slices of a batch may need one index at the same time.
        assert!(hung.values().any(|&attempts| attempts == 2) && hung.values().all(|&attempts| attempts <= 2 * 3), "{hung:?}");
    }
}

/// Every object and part of one arrives torn when it is requested for the first time: the store is whole, and an evaluation reads what is there.
#[test]
fn whatever_arrives_torn_is_read_once_more() {
    let (server, base) = (Server::start(), tempfile::tempdir().unwrap());
    let scans = base.path().join("scans");
    write_scan(&scans, 5, 2);
    write_scan(&scans, 1, 3);
    let local = base.path().join("s.zarr");
    let mut precompute = program(&["precompute", "--random-encoder", "3", "--image-size", "16", "--data-size", "16"]);
    precompute.args(["--augment", "none", "--scans"]).arg(&scans).arg("--store").arg(&local);
    succeed(precompute);
    upload(&server, &local, STORE);
    let evaluate = |place: &str, out: &Path| {
        let mut command = program(&["eval", "--zero-shot", "--store", place, "--out"]);
        command.arg(out).arg("--cache-dir").arg(base.path().join(out.file_name().unwrap()).with_extension("cache"));
        server.tell(&mut command);
        succeed(command);
        fs::read(out.join("cases.parquet")).unwrap()
    };
    let expected = evaluate(local.to_str().unwrap(), &base.path().join("of-folder"));
    let torn = std::sync::Arc::new(AtomicUsize::new(0));
    let tear = || {
        let (asked_before, count) = (Mutex::new(std::collections::HashSet::new()), torn.clone());
        server.break_by(move |asked: &Asked| {
            let is_object = asked.method == "GET" && !asked.is_listing();
            let is_first = is_object && asked_before.lock().unwrap().insert((asked.target.clone(), asked.range.clone()));
            is_first.then(|| {
                count.fetch_add(1, Ordering::SeqCst);
                Fault::Torn
            })
        });
    };
    tear();
    let mut verified = program(&["verify", "--store", STORE]);
    server.tell(&mut verified);
    succeed(verified);
    let objects = files(&local).len();
    assert!(torn.swap(0, Ordering::SeqCst) >= objects, "each of {objects} objects arrived torn");
    tear();
    assert!(evaluate(STORE, &base.path().join("of-bucket")) == expected);
    assert!(torn.load(Ordering::SeqCst) > 8);
}
