//! A disk that is really full, and files that may not grow: precompute, train, sweep and eval end with an error that names the file and the
//! reason, and once there is space again the same work ends in the same bytes.
//!
//! The limit on a file's size is tried everywhere. The disk is a small tmpfs in a mount namespace of its own, where the system permits one.

#![cfg(target_os = "linux")]

mod cli;
#[path = "common/folders.rs"]
mod folders;

use cli::{assert_refused, on, succeed};
use folders::{assert_same_files, files};
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::sweep::{TRIALS_TABLE, TrialRow, TrialStatus};
use sam_ladder_schemas::tables::EpochRow;
use sam_ladder_schemas::train::{BEST_CHECKPOINT, CHECKPOINT, EPOCHS_TABLE, RESUME_STATE, RUN_CONFIG, STEPS_TABLE};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

// Compressed, since of a store without compression the space is compared before the work.
const PRECOMPUTE: &str =
    "precompute --scans @scans --random-encoder 0 --image-size 32 --data-size 32 --augment flips --compression zstd --device cpu";
const TRAIN: &str = "train --store @store.zarr --epochs 2 --batch-size 4 --warmup 0 --fold 1/2 --checkpoint-every 1 --device cpu";
const SWEEP: &str = "[settings]\nepochs = 2\nbatch_size = 4\nwarmup = 0\nlr = [1e-3, 3e-3]\n[search]\nmethod = \"grid\"\n[validation]\nfold = \"1/2\"\n";
const SWEEP_WORDS: &str = "sweep --store @store.zarr --config @sweep.toml --device cpu";
const EVAL: &str = "eval --store @store.zarr --run @run --save-nifti --device cpu";

/// Ways to a namespace in which this process may mount.
const NAMESPACES: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];

#[test]
fn a_full_disk_is_said_and_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path();
    fs::create_dir(base.join("disk")).unwrap();
    // What an empty disk would hold.
    succeed(on(base, "phantom --out @scans --cases 4 --size 32 --depth 3"));
    succeed(on(base, &format!("{PRECOMPUTE} --store @store.zarr")));
    succeed(on(base, &format!("{TRAIN} --run @run")));
    fs::write(base.join("sweep.toml"), SWEEP).unwrap();
    succeed(on(base, &format!("{SWEEP_WORDS} --out @sweep")));
    succeed(on(base, &format!("{EVAL} --out @eval")));
    work(&Disk::with_limits(base));
    let may_mount = |ways: &&&[&str]| {
        let mount = ["mount", "-t", "tmpfs", "tmpfs"];
        let done = Command::new("unshare").args(**ways).args(mount).arg(base.join("disk")).output();
        done.is_ok_and(|output| output.status.success())
    };
    let Some(ways) = NAMESPACES.iter().find(may_mount) else {
        println!("tried with a limit on the size of files only: nothing may be mounted here");
        return;
    };
    let mut child = Command::new("unshare");
    child.args(*ways).arg(std::env::current_exe().unwrap());
    child.args(["--exact", "on_a_small_disk", "--ignored", "--test-threads=1", "--nocapture"]).env("SAM_LADDER_FOLDER", base);
    let output = child.output().unwrap();
    let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

#[test]
#[ignore = "a child in a namespace of its own"]
fn on_a_small_disk() {
    let base = PathBuf::from(std::env::var_os("SAM_LADDER_FOLDER").expect("only run as a child"));
    work(&Disk::mount(&base));
}

fn work(disk: &Disk) {
    precompute(disk);
    train(disk);
    sweep(disk);
    eval(disk);
}

/// Where the commands write.
struct Disk {
    base: PathBuf,
    path: PathBuf,
    /// Whether it is a file system with a file that fills it; otherwise a folder in which the size of each file is limited.
    is_mounted: bool,
}

impl Disk {
    fn with_limits(base: &Path) -> Self {
        Disk { base: base.into(), path: base.join("disk"), is_mounted: false }
    }

    fn mount(base: &Path) -> Self {
        let path = base.join("disk");
        let mut mount = Command::new("mount");
        let bytes = 6 * fs::metadata(base.join("run").join(RESUME_STATE)).unwrap().len();
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(&path);
        succeed(mount);
        Disk { base: base.into(), path, is_mounted: true }
    }

    /// Leaves so many bytes free.
    fn leave(&self, free: u64) {
        self.empty();
        let mut df = Command::new("df");
        df.args(["--output=avail", "--block-size=1"]).arg(&self.path);
        let available: u64 = succeed(df).lines().nth(1).unwrap().trim().parse().unwrap();
        assert!(available > free, "{available} bytes are free");
        fs::write(self.path.join("ballast"), vec![1; (available - free) as usize]).unwrap();
    }

    /// Frees what can be freed.
    fn empty(&self) {
        fs::remove_file(self.path.join("ballast")).ok();
    }

    /// Runs a command that fails since no more than `free` bytes are left, or a file may have no more.
    fn fails(&self, free: u64, words: &str) {
        let command = on(&self.base, words);
        let (error, reason, advice) = if self.is_mounted {
            self.leave(free);
            (assert_refused(command), "No space left on device", "free space")
        } else {
            (assert_refused(limited(&command, free)), "File too large", "ulimit -f")
        };
        assert!(error.contains(reason), "{free} bytes, {words}: {error}");
        assert!(error.contains(&*self.path.to_string_lossy()), "{free} bytes, {words}: the file is not named: {error}");
        assert!(error.contains("hint: ") && error.contains(advice), "{free} bytes, {words}: {error}");
    }
}

/// The command, to which longer files than of `bytes` are refused.
fn limited(command: &Command, bytes: u64) -> Command {
    let mut limited = Command::new("sh");
    // `ulimit -f` counts blocks of 512 bytes; with the signal ignored, a longer write fails with an error instead.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", bytes / 512);
    limited.args(["-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
    limited
}

fn precompute(disk: &Disk) {
    let words = format!("{PRECOMPUTE} --store @disk/store.zarr");
    if disk.is_mounted {
        disk.leave(0);
        let refused = assert_refused(on(&disk.base, &words.replace("zstd", "none")));
        assert!(refused.contains("store.zarr") && refused.contains(" free"), "{refused}");
    }
    // No space at all; for a few shards; for all but the end of the store.
    for free in [0, 150 << 10, 600 << 10] {
        disk.fails(free, &words);
    }
    disk.empty();
    succeed(on(&disk.base, &words));
    assert_same_files(&disk.path.join("store.zarr"), &files(&disk.base.join("store.zarr")), "made on a full disk");
    fs::remove_dir_all(disk.path.join("store.zarr")).unwrap();
}

fn train(disk: &Disk) {
    let (run, expected) = (disk.path.join("run"), disk.base.join("run"));
    let state = fs::metadata(expected.join(RESUME_STATE)).unwrap().len();
    let words = format!("{TRAIN} --run @disk/run");
    for free in [0, state / 2] {
        disk.fails(free, &words);
        assert!(!run.join(RUN_CONFIG).exists());
    }
    if disk.is_mounted {
        // The first checkpoint fits, a second one next to it does not.
        disk.fails(2 * state, &words);
        assert!(run.join(RUN_CONFIG).exists(), "the run has begun");
        disk.fails(0, "train --run @disk/run --resume");
        disk.empty();
        succeed(on(&disk.base, "train --run @disk/run --resume"));
    } else {
        succeed(on(&disk.base, &words));
    }
    for file in [RESUME_STATE, CHECKPOINT, BEST_CHECKPOINT, STEPS_TABLE] {
        assert!(fs::read(run.join(file)).unwrap() == fs::read(expected.join(file)).unwrap(), "{file}");
    }
    let epochs = |run: &Path| {
        let mut rows: Vec<EpochRow> = read_rows(&run.join(EPOCHS_TABLE)).unwrap();
        rows.iter_mut().for_each(|row| row.seconds = 0.0);
        rows
    };
    assert_eq!(epochs(&run), epochs(&expected));
    fs::remove_dir_all(run).unwrap();
}

/// The table without times.
fn trials(sweep: &Path) -> Vec<TrialRow> {
    let mut rows: Vec<TrialRow> = read_rows(&sweep.join(TRIALS_TABLE)).unwrap();
    rows.iter_mut().for_each(|row| row.seconds = 0.0);
    rows
}

fn sweep(disk: &Disk) {
    let state = fs::metadata(disk.base.join("run").join(RESUME_STATE)).unwrap().len();
    disk.fails(0, &format!("{SWEEP_WORDS} --out @disk/sweep"));
    disk.fails(state / 2, &format!("{SWEEP_WORDS} --out @disk/sweep"));
    disk.fails(state / 3, "sweep --resume --out @disk/sweep");
    disk.empty();
    succeed(on(&disk.base, "sweep --resume --out @disk/sweep"));
    let found = trials(&disk.path.join("sweep"));
    assert!(found.iter().all(|row| row.failures == 0 && row.status == TrialStatus::Finished), "{found:?}");
    assert_eq!(found, trials(&disk.base.join("sweep")));
    fs::remove_dir_all(disk.path.join("sweep")).unwrap();
}

fn eval(disk: &Disk) {
    let (out, expected) = (disk.path.join("eval"), disk.base.join("eval"));
    for free in [0, 4 << 10, 24 << 10] {
        disk.fails(free, &format!("{EVAL} --out @disk/eval"));
    }
    disk.empty();
    succeed(on(&disk.base, &format!("{EVAL} --out @disk/eval")));
    let names = ["cases.parquet", "summary.parquet", "table.md", "masks", "overlays"];
    let of = |folder: &Path| {
        let all = files(folder).into_iter().filter(|(name, _)| names.iter().any(|kept| name.starts_with(kept)));
        all.collect::<Vec<_>>()
    };
    assert!(of(&expected).len() > 5);
    assert!(of(&out) == of(&expected), "the evaluation is another one");
    // Of an earlier, smaller attempt nothing is left.
    let names = |folder: &Path| files(folder).into_keys().collect::<Vec<_>>();
    assert_eq!(names(&out), names(&expected));
}
