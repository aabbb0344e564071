//! The fault campaign: precompute and training are killed at random moments and resumed, and writes fail half-way. The results are byte for
//! byte those of undisturbed runs.
//!
//! `SAM_LADDER_KILLS` sets the number of kills of each kind of work; `make soak` sets it high. A child process is this test binary, running
//! one of the two otherwise ignored tests.

#![cfg(unix)]

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

use folders::{assert_same_files, copy_folder, files};
use sam_ladder_cache::verify;
use sam_ladder_schemas::precompute::StoreDtype;
use sam_ladder_schemas::train::{CHECKPOINT, RESUME_STATE, RUN_CONFIG, STEPS_TABLE, TrainConfig};
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::run::{TrainArgs, train};
use stage_one::{Formula, config, fill, fill_whole, write_scan, write_scans};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use train_args::train_args;

/// Default number of kills of precompute.
const PRECOMPUTE_KILLS: usize = 20;
/// Default number of kills of training; each costs making a model.
const TRAIN_KILLS: usize = 6;
/// Time of the children's encoder per batch, so that there is something to interrupt.
const PAUSE: Duration = Duration::from_millis(4);

fn kills(unless_told: usize) -> usize {
    std::env::var("SAM_LADDER_KILLS").map_or(unless_told, |text| text.parse().expect("SAM_LADDER_KILLS is a number"))
}

/// A child that runs `test` of this binary in `folder`.
fn child(test: &str, folder: &Path, share: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--test-threads=1"]);
    command.env("SAM_LADDER_FOLDER", folder).env("SAM_LADDER_SHARE", share);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn child_folder() -> std::path::PathBuf {
    std::env::var_os("SAM_LADDER_FOLDER").expect("only run as a child of the campaign").into()
}

#[test]
#[ignore = "a child of the campaign"]
fn precompute_child() {
    let folder = child_folder();
    let share = std::env::var("SAM_LADDER_SHARE").unwrap();
    let encoder = Formula { pause: PAUSE, ..Formula::default() };
    fill(&folder.join("scans"), &folder.join("s.zarr"), &config(AugmentPolicy::Flips, 1), &share, encoder).unwrap();
}

#[test]
#[ignore = "a child of the campaign"]
fn train_child() {
    let folder = child_folder();
    let run = folder.join("run");
    train(&resumed(&folder, &run)).unwrap();
}

/// Starts the run, or resumes it.
fn resumed(folder: &Path, run: &Path) -> TrainArgs {
    let config = TrainConfig { epochs: 1, batch_size: 2, warmup: 2, ..TrainConfig::default() };
    let resume = run.join(RUN_CONFIG).exists();
    TrainArgs { resume, checkpoint_every: Some(1), ..train_args(folder.join("train.zarr"), run, config) }
}

/// Random moments, different in each run: the seed is the time, and is printed on failure.
struct Moments(u64);

impl Moments {
    fn new() -> Self {
        let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        println!("seed {seed}");
        Moments(seed)
    }

    /// In [0, 1).
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / (1u64 << 31) as f64
    }
}

/// Kills the children after `after`; returns whether all of them had already succeeded. None may have failed.
fn kill_after(children: &mut [Child], after: Duration) -> bool {
    std::thread::sleep(after);
    let mut all = true;
    for child in children {
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            all = false;
        }
        let status = child.wait().unwrap();
        assert!(status.code().is_none_or(|code| code == 0), "a resumed child failed by itself: {status}");
    }
    all
}

/// Time of an undisturbed child.
fn undisturbed(mut command: Command) -> Duration {
    let start = Instant::now();
    assert!(command.status().unwrap().success());
    start.elapsed()
}

#[test]
fn killed_precompute_ends_in_the_same_bytes() {
    let base = tempfile::tempdir().unwrap();
    let mut moments = Moments::new();
    let scans = base.path().join("scans");
    write_scans(&scans);
    let small = base.path().join("small.zarr");
    fill_whole(&scans, &small, &config(AugmentPolicy::None, 1));
    write_scan(&scans, 6, 2);
    let whole = base.path().join("whole.zarr");
    fill_whole(&scans, &whole, &config(AugmentPolicy::Flips, 1));
    let expected = files(&whole);
    let grown = base.path().join("grown.zarr");
    copy_folder(&small, &grown);
    fill_whole(&scans, &grown, &config(AugmentPolicy::Flips, 1));
    // The case that was added has the last rows.
    let expected_grown = files(&grown);
    let time = undisturbed(child("precompute_child", base.path(), "1/1"));
    let store = base.path().join("s.zarr");
    let (mut killed, mut stores) = (0, 0);
    while killed < kills(PRECOMPUTE_KILLS) {
        fs::remove_dir_all(&store).ok();
        // In turn: from nothing, a finished store that grows, two workers at once.
        if stores % 3 == 1 {
            copy_folder(&small, &store);
        }
        let shares: &[&str] = if stores % 3 == 2 { &["1/2", "2/2"] } else { &["1/1"] };
        loop {
            let mut children: Vec<Child> =
                shares.iter().map(|share| child("precompute_child", base.path(), share).spawn().unwrap()).collect();
            if kill_after(&mut children, time.mul_f64(moments.next())) {
                break;
            }
            killed += 1;
            // Now and then it is not killed, so that each store is finished at some time.
            if moments.next() < 0.15 {
                let mut children: Vec<Child> =
                    shares.iter().map(|share| child("precompute_child", base.path(), share).spawn().unwrap()).collect();
                children.iter_mut().for_each(|child| assert!(child.wait().unwrap().success()));
                break;
            }
        }
        let expected = if stores % 3 == 1 { &expected_grown } else { &expected };
        assert_same_files(&store, expected, &format!("store {stores} after {killed} kills"));
        stores += 1;
    }
    assert!(verify(&whole, &|_, _| {}).unwrap().damage.is_empty());
    println!("{killed} kills of precompute, {stores} stores");
}

#[test]
fn killed_training_ends_in_the_same_bytes() {
    let base = tempfile::tempdir().unwrap();
    let mut moments = Moments::new();
    store::write_store(&base.path().join("train.zarr"), StoreDtype::F32, AugmentPolicy::Flips, 1);
    let run = base.path().join("run");
    let straight = base.path().join("straight");
    train(&resumed(base.path(), &straight)).unwrap();
    let time = undisturbed(child("train_child", base.path(), ""));
    let (mut killed, mut runs) = (0, 0);
    while killed < kills(TRAIN_KILLS) {
        fs::remove_dir_all(&run).unwrap();
        loop {
            if kill_after(&mut [child("train_child", base.path(), "").spawn().unwrap()], time.mul_f64(moments.next())) {
                break;
            }
            killed += 1;
        }
        for file in [CHECKPOINT, RESUME_STATE, STEPS_TABLE] {
            let [found, expected] = [&run, &straight].map(|run| fs::read(run.join(file)).unwrap());
            assert!(found == expected, "{file} differs in run {runs} after {killed} kills");
        }
        let aside = fs::read_dir(&run).unwrap().filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|e| e == "tmp"));
        assert_eq!(aside.count(), 0, "a finished run has nothing left aside");
        runs += 1;
    }
    println!("{killed} kills of training, {runs} runs");
}

/// `command` with files limited to `blocks` blocks of 512 bytes: a longer write fails with an error (the signal is ignored), as on a full
/// disk.
fn limited(command: &Command, blocks: usize) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\""), "sh"]);
    limited.arg(command.get_program()).args(command.get_args()).stdout(Stdio::null()).stderr(Stdio::null());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited
}

#[test]
fn failed_writes_leave_what_resumes() {
    let base = tempfile::tempdir().unwrap();
    let mut moments = Moments::new();
    let scans = base.path().join("scans");
    write_scans(&scans);
    let whole = base.path().join("whole.zarr");
    fill_whole(&scans, &whole, &config(AugmentPolicy::Flips, 1));
    let expected = files(&whole);
    let largest = expected.values().map(Vec::len).max().unwrap() / 512;
    let store = base.path().join("s.zarr");
    for _ in 0..2 {
        fs::remove_dir_all(&store).ok();
        // Three disks that are too small at random, then one that is not.
        for _ in 0..3 {
            let blocks = 1 + (moments.next() * (largest - 1) as f64) as usize;
            let status = limited(&child("precompute_child", base.path(), "1/1"), blocks).status().unwrap();
            assert_eq!(status.code(), Some(101), "files of {blocks} blocks suffice nobody, and nobody is killed by them");
            assert!(sam_ladder_cache::Store::open(&store).is_err());
        }
        assert!(child("precompute_child", base.path(), "1/1").status().unwrap().success());
        assert_same_files(&store, &expected, "after failed writes");
    }

    store::write_store(&base.path().join("train.zarr"), StoreDtype::F32, AugmentPolicy::Flips, 1);
    let (run, straight) = (base.path().join("run"), base.path().join("straight"));
    train(&resumed(base.path(), &straight)).unwrap();
    let sizes: Vec<usize> =
        [CHECKPOINT, RESUME_STATE].iter().map(|file| fs::metadata(straight.join(file)).unwrap().len() as usize / 512).collect();
    // Too small for the state, for the model, and for any file.
    for blocks in [sizes[1] - 1, sizes[0] - 1, 1] {
        let status = limited(&child("train_child", base.path(), ""), blocks).status().unwrap();
        assert_eq!(status.code(), Some(101), "{blocks} blocks");
    }
    assert!(child("train_child", base.path(), "").status().unwrap().success());
    for file in [CHECKPOINT, RESUME_STATE, STEPS_TABLE] {
        assert!(fs::read(run.join(file)).unwrap() == fs::read(straight.join(file)).unwrap(), "{file}");
    }
}

/// Waits for a file, then interrupts the program as Ctrl-C does; its exit status and standard error.
fn interrupt(mut command: Command, once_there: &Path, times: usize) -> (Option<i32>, String) {
    let child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !once_there.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "{} does not appear", once_there.display());
        std::thread::sleep(Duration::from_millis(2));
    }
    for _ in 0..times {
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn an_interrupted_program_says_how_to_resume() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, store, run) = (folder.path().join("scans"), folder.path().join("s.zarr"), folder.path().join("run"));
    write_scan(&scans, 5, 12);
    let precompute = || {
        let mut command = cli::program(&["precompute", "--random-encoder", "1", "--image-size", "32", "--data-size", "16"]);
        command.args(["--augment", "flips"]).arg("--scans").arg(&scans).arg("--store").arg(&store);
        command
    };
    let shard = |row: usize| store.join(format!("train/embeddings/c.{row}.0.0.0.0"));
    let (status, told) = interrupt(precompute(), &shard(0), 1);
    assert_eq!(status, Some(130), "{told}");
    assert!(told.contains("slices finished and kept in") && told.contains("run the same command again to continue"), "{told}");
    assert!(!told.contains("error:") && shard(0).exists() && !shard(11).exists(), "{told}");
    // A file that does not exist yet: it shows that the program has begun its work.
    let next = (1..12).find(|&row| !shard(row).exists()).unwrap();
    let (status, told) = interrupt(precompute(), &shard(next), 2);
    assert_eq!(status, Some(130), "{told}");
    cli::succeed(precompute());
    cli::succeed({
        let mut command = cli::program(&["verify", "--store"]);
        command.arg(&store);
        command
    });

    let train = |more: &[&str]| {
        let mut command = cli::program(&["train"]);
        command.arg("--store").arg(&store).arg("--run").arg(&run).args(more);
        command
    };
    let (status, told) = interrupt(train(&["--epochs", "10000", "--batch-size", "2"]), &run.join(RUN_CONFIG), 1);
    assert_eq!(status, Some(130), "{told}");
    let said = told.lines().find_map(|line| line.strip_prefix("stopped as requested after step ")).expect(&told);
    assert!(told.contains("hint: continue with `sam-ladder train --resume"), "{told}");
    let steps: usize = said.split(',').next().unwrap().parse().unwrap();
    cli::succeed(train(&["--resume", "--max-steps", &(steps + 1).to_string()]));
    let rows = sam_ladder_formats::rows::read_rows::<sam_ladder_schemas::tables::StepRow>(&run.join(STEPS_TABLE)).unwrap();
    assert_eq!(rows.len(), steps + 1);
}
