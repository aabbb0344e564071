//! Sweeps on a made-up store: trials trained together equal single runs, test scans cannot be read, failures are recorded, and a sweep that is
//! killed at random moments ends with the same table as an undisturbed one.
//!
//! `SAM_LADDER_KILLS` sets the number of kills; `make soak-sweep` sets it high. The child is this test binary.

mod cli;
mod common;
#[path = "common/device.rs"]
mod device;
#[path = "common/said.rs"]
mod said;
#[path = "common/store.rs"]
mod store;
#[path = "common/train_args.rs"]
mod train_args;

use said::Said;
use sam_ladder_cache::ReadMode;
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::observer::silent;
use sam_ladder_schemas::precompute::StoreDtype;
use sam_ladder_schemas::sweep::{CURVES_TABLE, CurveRow, FINAL_EVAL, FINAL_RUN, TRIALS_TABLE, TrialRow, TrialStatus, run_dir};
use sam_ladder_schemas::tables::{EpochRow, StepRow};
use sam_ladder_schemas::train::{EPOCHS_TABLE, STEPS_TABLE, TrainConfig};
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::TrainError;
use sam_ladder_train::run::{CudaGraph, DeviceStore, train};
use sam_ladder_train::sweep::{SweepArgs, sweep, sweep_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use store::{write_store, write_store_with, write_store_with_rungs};
use tempfile::TempDir;
use train_args::train_args;

/// Default number of kills.
const KILLS: usize = 3;

/// Four trials of three epochs on two folds.
const GRID: &str = r#"
[settings]
epochs = 3
batch_size = 3
warmup = 2
lr = [1e-3, 3e-3]
lambda = [0.2, 0.8]
[search]
method = "grid"
[validation]
folds = 2
"#;

/// Successive halving over what TPE suggests.
const TPE: &str = r#"
[settings]
epochs = 4
batch_size = 3
warmup = 2
lr = { min = 1e-4, max = 1e-2, scale = "log" }
lambda = { min = 0.0, max = 1.0 }
[search]
method = "tpe"
startup = 3
[pruning]
method = "asha"
reduction = 2
[validation]
fold = "1/3"
[budget]
trials = 6
"#;

fn workplace() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_store(&folder.path().join("store.zarr"), StoreDtype::F32, AugmentPolicy::Flips, 1);
    folder
}

fn args(folder: &Path, out: &str, config: &str) -> SweepArgs {
    let path = folder.join(format!("{out}.toml"));
    fs::write(&path, config).unwrap();
    SweepArgs {
        store: folder.join("store.zarr"),
        out: folder.join(out),
        config: Some(path),
        resume: folder.join(out).join("sweep.json").exists(),
        jobs: None,
        worker: (1, 1),
        cnn_checkpoint: None,
        init: None,
        device: device::device(),
        read_mode: ReadMode::Resident,
        cache: None,
        device_store: Default::default(),
        cuda_graph: CudaGraph::Off,
        // The distance between the means of predicted and reference classes: a stand-in that depends on both.
        hd95: Arc::new(|volume, class| {
            let count = |voxels: &[u8]| voxels.iter().filter(|&&voxel| voxel == class).count() as f64;
            let (predicted, reference) = (count(volume.predicted), count(volume.reference));
            (predicted > 0.0 && reference > 0.0).then(|| (predicted - reference).abs() * volume.spacing_mm[1])
        }),
        program: "test".into(),
        observer: silent(),
    }
}

/// The table's content except times.
fn table(out: &Path) -> Vec<TrialRow> {
    let mut rows = read_rows::<TrialRow>(&out.join(TRIALS_TABLE)).unwrap();
    for row in &mut rows {
        row.seconds = 0.0;
    }
    rows
}

fn curves(out: &Path) -> Vec<sam_ladder_schemas::sweep::CurveRow> {
    let mut rows = read_rows::<CurveRow>(&out.join(CURVES_TABLE)).unwrap();
    rows.iter_mut().for_each(|row| row.seconds = 0.0);
    rows
}

#[test]
fn trials_trained_together_equal_single_runs() {
    let folder = workplace();
    let args = SweepArgs { jobs: Some(3), ..args(folder.path(), "s", GRID) };
    let summary = sweep(&args).unwrap();
    assert_eq!(summary.trials.len(), 4);
    assert!(summary.trials.iter().all(|row| row.status == TrialStatus::Finished && row.epochs == 3 && row.runs == 2));
    assert_eq!(summary.trials.iter().map(|row| row.rank).collect::<Vec<_>>(), [1, 2, 3, 4].map(Some));
    assert!(summary.trials.windows(2).all(|pair| pair[0].dice > pair[1].dice), "{summary:?}");
    assert!(summary.trials.iter().all(|row| row.seconds > 0.0));
    for row in &summary.trials {
        let settings: serde_json::Value = serde_json::from_str(&row.settings).unwrap();
        let mut dice = Vec::new();
        for (fold, cases) in [(1, vec!["0005", "0007"]), (2, vec!["0006"])] {
            let config = TrainConfig {
                epochs: 3,
                batch_size: 3,
                warmup: 2,
                lr: settings["lr"].as_f64().unwrap(),
                lambda: settings["lambda"].as_f64().unwrap(),
                val_cases: cases.into_iter().map(String::from).collect(),
                ..TrainConfig::default()
            };
            let lone = train_args(&args.store, folder.path().join(format!("lone-{}-{fold}", row.trial)), config);
            train(&lone).unwrap();
            let beside = args.out.join(run_dir(&row.trial, 1234, fold));
            let [lone_bytes, bytes] = [&lone.run, &beside].map(|run| fs::read(run.join(STEPS_TABLE)).unwrap());
            assert!(lone_bytes == bytes, "trial {}, fold {fold}: the steps differ", row.settings);
            let [lone, beside] = [&lone.run, &beside].map(|run| {
                read_rows::<EpochRow>(&run.join(EPOCHS_TABLE))
                    .unwrap()
                    .iter()
                    .map(|row| (row.loss, row.val_dice, row.gate))
                    .collect::<Vec<_>>()
            });
            assert_eq!(lone, beside);
            dice.push(beside.last().unwrap().1.unwrap());
        }
        assert_eq!(row.dice, Some((dice[0] + dice[1]) / 2.0));
        let deviation = ((dice[0] - dice[1]) / 2.0).abs() * 2f64.sqrt();
        assert!((row.dice_std.unwrap() - deviation).abs() < 1e-12);
    }
    assert_eq!(curves(&args.out).len(), 4 * 2 * 3);
}

/// The bytes of each trial's steps, which are those of a single run with its settings.
fn steps_as_of_single_runs(folder: &Path, args: &SweepArgs, trials: &[TrialRow]) -> Vec<Vec<u8>> {
    let steps = |row: &TrialRow| {
        let settings: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&row.settings).unwrap();
        let of_trial = TrainConfig::with(&settings).unwrap();
        let config = TrainConfig { epochs: 1, batch_size: 3, warmup: 0, val_cases: vec!["0006".into()], ..of_trial };
        let lone = train_args(&args.store, folder.join(format!("lone-{}", row.trial)), config);
        train(&lone).unwrap();
        let of_sweep = args.out.join(run_dir(&row.trial, 1234, 1));
        let [lone, of_sweep] = [&lone.run, &of_sweep].map(|run| fs::read(run.join(STEPS_TABLE)).unwrap());
        assert!(lone == of_sweep, "trial {}: the steps differ", row.settings);
        of_sweep
    };
    trials.iter().map(steps).collect()
}

/// Trials with and without neighbours, skips and logits at half the image's side, one after another or side by side: each has the steps of a single run.
#[test]
fn trials_of_other_models_have_batches_of_their_own() {
    let folder = workplace();
    let grid = "[settings]\nepochs = 1\nbatch_size = 3\nwarmup = 0\nneighbours = [0, 1]\n\
                decoder = [\"plain\", \"skips\", \"skips-half\"]\n\
                [search]\nmethod = \"grid\"\n[validation]\ncases = [\"0006\"]\n";
    let refused = sweep(&args(folder.path(), "refused", grid)).unwrap_err();
    assert!(refused.to_string().contains("has no labels at half") && !folder.path().join("refused").exists(), "{refused}");
    fs::remove_dir_all(folder.path().join("store.zarr")).unwrap();
    let augment = [AugmentPolicy::Flips, AugmentPolicy::None];
    write_store_with(&folder.path().join("store.zarr"), StoreDtype::F32, augment, 1, (&[], true));
    let args = SweepArgs { jobs: Some(4), ..args(folder.path(), "s", grid) };
    let summary = sweep(&args).unwrap();
    assert_eq!(summary.trials.len(), 6);
    let mut all = steps_as_of_single_runs(folder.path(), &args, &summary.trials);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 6, "each model takes other steps");
}

/// Trials with and without a ladder read one store, with its rungs: each has the steps of a single run. Without rungs, nothing is begun.
#[test]
fn a_sweep_searches_over_the_ladder() {
    let folder = workplace();
    let grid = "[settings]\nepochs = 1\nbatch_size = 3\nwarmup = 0\nladder = [\"none\", \"gated\"]\n\
                [search]\nmethod = \"grid\"\n[validation]\ncases = [\"0006\"]\n";
    let refused = sweep(&args(folder.path(), "refused", grid)).unwrap_err();
    assert!(refused.to_string().contains("has no rungs") && !folder.path().join("refused").exists(), "{refused}");
    fs::remove_dir_all(folder.path().join("store.zarr")).unwrap();
    let augment = [AugmentPolicy::Flips, AugmentPolicy::None];
    write_store_with_rungs(&folder.path().join("store.zarr"), StoreDtype::F32, augment, 1, &[2, 11]);
    let args = SweepArgs { jobs: Some(2), ..args(folder.path(), "s", grid) };
    let summary = sweep(&args).unwrap();
    let all = steps_as_of_single_runs(folder.path(), &args, &summary.trials);
    assert!(all.len() == 2 && all[0] != all[1]);
}

/// Fills the files of every array below `folder` with other bytes.
fn damage(folder: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count += damage(&path);
        } else if path.file_name().unwrap() != "zarr.json" && path.extension().is_none_or(|end| end != "parquet") {
            let length = fs::metadata(&path).unwrap().len() as usize;
            fs::write(&path, vec![0xffu8; length]).unwrap();
            count += 1;
        }
    }
    count
}

#[test]
fn a_sweep_cannot_read_the_test_scans() {
    let folder = workplace();
    sweep(&args(folder.path(), "whole", TPE)).unwrap();
    assert!(damage(&folder.path().join("store.zarr/test")) > 3);
    sweep(&args(folder.path(), "blind", TPE)).unwrap();
    assert_eq!(table(&folder.path().join("whole")), table(&folder.path().join("blind")));
    assert_eq!(curves(&folder.path().join("whole")), curves(&folder.path().join("blind")));
    let named = GRID.replace("folds = 2", "cases = [\"0001\"]");
    let error = sweep(&args(folder.path(), "test-case", &named)).unwrap_err().to_string();
    assert!(error.contains("case 0001 is a test case and cannot be used for validation"), "{error}");
    assert!(!folder.path().join("test-case").exists());
}

#[test]
fn a_trial_that_diverges_is_recorded_and_the_sweep_continues() {
    let folder = workplace();
    let config = GRID.replace("lr = [1e-3, 3e-3]", "optimizer = \"sgd\"\nlr = [1e-3, 1e30]").replace("warmup = 2", "warmup = 0");
    let args = args(folder.path(), "s", &config);
    sweep(&args).unwrap();
    let rows = table(&args.out);
    let statuses: Vec<TrialStatus> = rows.iter().map(|row| row.status).collect();
    assert_eq!(statuses, [TrialStatus::Finished, TrialStatus::Finished, TrialStatus::Diverged, TrialStatus::Diverged]);
    for row in &rows[2..] {
        let reason = row.reason.as_ref().unwrap();
        assert!(reason.contains("learning rate 1e30") && reason.contains("step"), "{reason}");
        assert_eq!((row.rank, row.failures), (None, 0));
    }
    // It is not tried again: the same seed would end the same way.
    let steps =
        |row: &TrialRow| read_rows::<StepRow>(&args.out.join(run_dir(&row.trial, 1234, 1)).join(STEPS_TABLE)).unwrap().len();
    let before = steps(&rows[2]);
    sweep(&SweepArgs { resume: true, ..args.clone() }).unwrap();
    assert_eq!((table(&args.out), steps(&rows[2])), (rows, before));
}

#[test]
fn a_trial_that_fails_is_tried_again_within_the_limit() {
    let folder = workplace();
    // Both folds of each trial read case 0006, so both trials fail.
    let shard = folder.path().join("store.zarr/train/embeddings/c.3.0.0.0.0");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, vec![0xff; whole.len()]).unwrap();
    let config = GRID.replace("lambda = [0.2, 0.8]", "").replace("folds = 2", "fold = \"1/2\"");
    let mut args = args(folder.path(), "s", &config);
    sweep(&args).unwrap();
    let failures = |out: &Path| table(out).iter().map(|row| (row.status, row.failures)).collect::<Vec<_>>();
    assert_eq!(failures(&args.out), [(TrialStatus::Failed, 1); 2]);
    let reason = table(&args.out)[0].reason.clone().unwrap();
    assert!(reason.contains("0006") && reason.contains("embeddings"), "{reason}");
    args.resume = true;
    sweep(&args).unwrap();
    assert_eq!(failures(&args.out), [(TrialStatus::Failed, 2); 2]);
    // One retry is the limit that the file has by default.
    fs::write(&shard, &whole).unwrap();
    sweep(&args).unwrap();
    assert_eq!(failures(&args.out), [(TrialStatus::Failed, 2); 2]);
    // The limit may be raised, as the budget may.
    fs::write(args.config.as_ref().unwrap(), format!("{config}[failures]\nretries = 2\n")).unwrap();
    sweep(&args).unwrap();
    assert_eq!(failures(&args.out), [(TrialStatus::Finished, 2); 2]);

    fs::write(args.config.as_ref().unwrap(), config.replace("1e-3", "2e-3")).unwrap();
    let error = sweep(&args).unwrap_err().to_string();
    assert!(error.contains("cannot resume") && error.contains("settings"), "{error}");
    args.resume = false;
    let error = sweep(&args).unwrap_err();
    assert!(matches!(error, TrainError::SweepExists(_)) && error.hint().unwrap().contains("--resume"), "{error}");
}

#[test]
fn a_stopped_sweep_resumes_where_it_was() {
    let folder = workplace();
    let straight = args(folder.path(), "straight", TPE);
    sweep(&straight).unwrap();
    let stopped = args(folder.path(), "stopped", TPE);
    let error = sweep_until(&stopped, &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(error, TrainError::SweepStopped { .. }) && error.hint().unwrap().contains("--resume"), "{error}");
    sweep(&SweepArgs { resume: true, ..stopped.clone() }).unwrap();
    assert_eq!(table(&straight.out), table(&stopped.out));
    // A finished sweep is not changed; more trials may follow.
    sweep(&SweepArgs { resume: true, ..stopped.clone() }).unwrap();
    assert_eq!(table(&straight.out), table(&stopped.out));
    fs::write(stopped.config.as_ref().unwrap(), TPE.replace("trials = 6", "trials = 8")).unwrap();
    let more = sweep(&SweepArgs { resume: true, ..stopped.clone() }).unwrap();
    assert_eq!(more.trials.len(), 8);
    let points = |rows: &[TrialRow]| rows.iter().map(|row| row.trial.clone()).collect::<Vec<_>>();
    assert_eq!(points(&table(&stopped.out))[..6], points(&table(&straight.out)));
}

/// The place of items and the kind of step do not change a sweep. (On the CPU a graph is refused. `make test-cuda-host-whole` and `make
/// gpu-check` record one.)
#[test]
fn a_sweep_through_graphs_is_the_sweep() {
    let folder = workplace();
    let graphed = SweepArgs {
        cuda_graph: CudaGraph::On,
        device_store: DeviceStore::Bytes(1 << 30),
        ..args(folder.path(), "graphed", GRID)
    };
    if !sam_ladder_ops::device::has_kernels(&graphed.device) {
        let error = sweep(&graphed).unwrap_err();
        assert!(matches!(&error, TrainError::NeedsGpu { option, .. } if option == "--cuda-graph"), "{error}");
        assert!(!graphed.out.exists());
        return;
    }
    let plain = SweepArgs { device_store: DeviceStore::Off, jobs: Some(2), ..args(folder.path(), "plain", GRID) };
    sweep(&plain).unwrap();
    sweep(&graphed).unwrap();
    assert_eq!((table(&plain.out), curves(&plain.out)), (table(&graphed.out), curves(&graphed.out)));
}

/// A budget of hours counts recorded hours, so a resumed sweep ends at the same point.
#[test]
fn hours_end_a_sweep_and_a_resume_decides_the_same() {
    let folder = workplace();
    let config = format!("{GRID}[budget]\nhours = 1e-9\n");
    let args = args(folder.path(), "s", &config);
    assert_eq!(sweep(&args).unwrap().trials.len(), 1);
    let before = (table(&args.out), curves(&args.out));
    for _ in 0..2 {
        let again = sweep(&SweepArgs { resume: true, ..args.clone() }).unwrap();
        assert_eq!((table(&args.out), curves(&args.out)), before);
        assert_eq!(again.best().len(), 1, "--final has a trial to train");
    }
    // With more hours the search continues.
    fs::write(args.config.as_ref().unwrap(), config.replace("1e-9", "9")).unwrap();
    assert_eq!(sweep(&SweepArgs { resume: true, ..args.clone() }).unwrap().trials.len(), 4);
}

#[test]
fn workers_share_a_folder() {
    let folder = workplace();
    let alone = args(folder.path(), "alone", GRID);
    sweep(&alone).unwrap();
    let mut worker = args(folder.path(), "shared", GRID);
    sam_ladder_train::sweep::prepare(&worker).unwrap();
    worker.resume = true;
    std::thread::scope(|scope| {
        for index in 1..=2 {
            let worker = SweepArgs { worker: (index, 2), config: None, ..worker.clone() };
            scope.spawn(move || sweep(&worker).unwrap());
        }
    });
    assert_eq!((table(&worker.out), curves(&worker.out)), (table(&alone.out), curves(&alone.out)));
    let place = sweep(&SweepArgs { worker: (2, 2), config: None, ..worker.clone() });
    assert_eq!(place.unwrap().trials.len(), 4, "a place is free again");
}

#[test]
fn a_damaged_trial_is_named_kept_aside_and_run_again() {
    let folder = workplace();
    let args = args(folder.path(), "s", &format!("{GRID}[budget]\ntrials = 3\n"));
    sweep(&args).unwrap();
    let before = (table(&args.out), curves(&args.out));
    let path = |row: usize, fold| args.out.join(run_dir(&before.0[row].trial, 1234, fold)).join(EPOCHS_TABLE);
    let bytes = fs::read(path(0, 1)).unwrap();
    fs::write(path(0, 1), &bytes[..bytes.len() / 2]).unwrap();
    let rows = read_rows::<EpochRow>(&path(1, 2)).unwrap();
    sam_ladder_formats::rows::write_rows(&path(1, 2), &rows[..1]).unwrap();
    fs::write(args.out.join("trials").join(&before.0[2].trial).join("trial.parquet"), "").unwrap();
    let said = Arc::new(Said::default());
    // Also with a budget that would not have reached them.
    fs::write(args.config.as_ref().unwrap(), format!("{GRID}[budget]\ntrials = 1\n")).unwrap();
    let summary = sweep(&SweepArgs { resume: true, observer: said.clone(), ..args.clone() }).unwrap();
    assert_eq!(summary.trials.len(), 3);
    assert_eq!((table(&args.out), curves(&args.out)), before);
    assert_eq!(fs::read_dir(args.out.join("set-aside")).unwrap().count(), 2);
    let said = said.take().join("\n");
    for part in
        ["trial 0, ", "seed-1234-fold-1", "not a readable Parquet file", "trial 1, ", "has 1 epochs, its trial's record says 3"]
    {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    assert!(said.contains("trial.parquet") && said.contains("is written again from the sweep's table"), "{said}");
}

#[test]
fn a_resumed_sweep_takes_its_files_from_its_record() {
    let folder = workplace();
    let config = TrainConfig { max_steps: Some(0), ..TrainConfig::default() };
    let base = train_args(folder.path().join("store.zarr"), folder.path().join("base"), config);
    train(&base).unwrap();
    let grid = GRID.replace("lambda = [0.2, 0.8]", "").replace("folds = 2", "fold = \"1/2\"");
    let init = base.run.join("checkpoint.safetensors");
    let args = SweepArgs { init: Some(init.clone()), ..args(folder.path(), "s", &grid) };
    sweep_until(&args, &AtomicBool::new(true)).unwrap_err();
    let resumed = SweepArgs { init: None, resume: true, config: None, ..args.clone() };
    sweep(&resumed).unwrap();
    let run = sam_ladder_train::run::read_record(&args.out.join(run_dir(&table(&args.out)[1].trial, 1234, 1))).unwrap();
    assert_eq!(run.inputs.init.unwrap().path.as_ref(), Some(&init));
    fs::remove_file(init).unwrap();
    let error = sweep(&resumed).unwrap_err().to_string();
    assert!(error.contains("checkpoint.safetensors"), "{error}");
}

#[test]
fn a_place_among_workers_is_taken_once() {
    let folder = workplace();
    let args = args(folder.path(), "s", GRID);
    sam_ladder_train::sweep::prepare(&args).unwrap();
    let place = args.out.join("workers/1-of-1");
    let file = fs::File::create(&place).unwrap();
    file.lock().unwrap();
    let resumed = SweepArgs { resume: true, config: None, ..args.clone() };
    let error = sweep(&resumed).unwrap_err();
    assert!(matches!(error, TrainError::WorkerBusy { .. }) && error.hint().unwrap().contains("--worker 2/2"), "{error}");
    drop(file);
    assert_eq!(sweep(&resumed).unwrap().trials.len(), 4);
}

/// Interrupts a program once `begun` is there; returns the command that it prints for resuming.
#[cfg(unix)]
fn printed_command(mut command: Command, begun: &Path) -> String {
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    while !begun.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{text}");
    text.rsplit('`').nth(1).unwrap_or_else(|| panic!("no command in\n{text}")).to_string()
}

/// Runs a printed command in a shell, in another working directory.
#[cfg(unix)]
fn run_printed(printed: &str, more: &str) {
    let program = cli::program(&[]).get_program().to_str().unwrap().to_string();
    let line = format!("{} {more}", printed.replacen("sam-ladder", &program, 1));
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(unix)]
#[test]
fn the_command_printed_for_resuming_works_as_it_is() {
    let folder = workplace();
    let at = |name: &str| folder.path().join(name);
    let mut start = cli::program(&["train", "--epochs", "9999", "--batch-size", "2"]);
    start.arg("--store").arg("store.zarr").arg("--run").arg(at("a run")).current_dir(folder.path());
    let printed = printed_command(start, &at("a run/config.json"));
    assert!(printed.contains("train --resume --run '") && !printed.contains("--store"), "{printed}");
    run_printed(&printed, "--max-steps 1");
    let config = GRID
        .replace("epochs = 3", "epochs = 10")
        .replace("lr = [1e-3, 3e-3]", "lr = 1e-3")
        .replace("folds = 2", "fold = \"1/2\"");
    fs::write(at("sweep.toml"), config).unwrap();
    let mut start = cli::program(&["sweep", "--config", "sweep.toml", "--store", "store.zarr"]);
    start.arg("--out").arg(at("a sweep")).current_dir(folder.path());
    let printed = printed_command(start, &at("a sweep/workers/1-of-1.json"));
    run_printed(&printed, "");
    assert!(table(&at("a sweep")).iter().all(|row| row.status == TrialStatus::Finished));
    // The store has moved.
    fs::rename(at("store.zarr"), at("moved.zarr")).unwrap();
    let mut resumed = cli::program(&["sweep", "--resume", "--out"]);
    resumed.arg(at("a sweep"));
    let error = cli::assert_refused(resumed);
    assert!(error.contains("store.zarr, which is not there now") && error.contains("pass --store"), "{error}");
    let mut moved = cli::program(&["sweep", "--resume", "--out"]);
    moved.arg(at("a sweep")).arg("--store").arg(at("moved.zarr"));
    cli::succeed(moved);
    assert_eq!(sam_ladder_train::sweep::store_of(&at("a sweep")).unwrap(), Some(at("moved.zarr")));
}

#[test]
fn two_objectives_make_a_front() {
    let folder = workplace();
    let args = args(folder.path(), "s", &format!("{GRID}[objective]\nmetric = [\"dice\", \"hd95\"]\n"));
    let summary = sweep(&args).unwrap();
    assert!(summary.trials.iter().all(|row| row.hd95.is_some_and(|hd95| hd95 >= 0.0) && row.hd95_std.is_some()));
    for row in &summary.trials {
        let beaten = summary
            .trials
            .iter()
            .any(|other| other.dice >= row.dice && other.hd95 <= row.hd95 && (other.dice > row.dice || other.hd95 < row.hd95));
        assert_eq!(beaten, row.rank != Some(1), "{row:?}");
    }
}

fn program(folder: &Path, more: &[&str]) -> Command {
    let mut command = cli::program(&["sweep"]);
    command.arg("--store").arg(folder.join("store.zarr")).arg("--out").arg(folder.join("s")).args(more);
    command
}

#[test]
fn the_program_searches_and_evaluates_the_best_once() {
    let folder = workplace();
    let path = folder.path().join("sweep.toml");
    let config = GRID.replace("lr = [1e-3, 3e-3]", "lr = 3e-3").replace("folds = 2", "fold = \"1/2\"");
    fs::write(&path, config.replace("epochs = 3", "epochs = 0")).unwrap();
    let typed = ["--config", path.to_str().unwrap()];
    let error = cli::assert_refused(program(folder.path(), &typed));
    assert!(error.contains("sweep.toml:3:1: settings.epochs"), "{error}");
    fs::write(&path, &config).unwrap();
    let printed = cli::succeed(program(folder.path(), &typed));
    assert!(printed.lines().any(|line| line.trim_start().starts_with("1 ")) && printed.contains("lambda"), "{printed}");
    let out = folder.path().join("s");
    assert!(!out.join(FINAL_RUN).exists());
    cli::assert_refused(program(folder.path(), &typed));
    cli::succeed(program(folder.path(), &["--final"]));
    let run = sam_ladder_train::run::read_record(&out.join(FINAL_RUN)).unwrap();
    let best = table(&out).into_iter().find(|row| row.rank == Some(1)).unwrap();
    assert!(run.config.val_cases.is_empty());
    let settings: serde_json::Value = serde_json::from_str(&best.settings).unwrap();
    assert_eq!(settings["lambda"].as_f64(), Some(run.config.lambda));
    let result = fs::read(out.join(FINAL_EVAL).join("summary.parquet")).unwrap();
    let error = cli::assert_refused(program(folder.path(), &["--final"]));
    assert!(error.contains("evaluated only once") && error.contains(&best.trial), "{error}");
    assert_eq!(fs::read(out.join(FINAL_EVAL).join("summary.parquet")).unwrap(), result);
}

fn child_folder() -> PathBuf {
    std::env::var_os("SAM_LADDER_FOLDER").expect("only run as a child of the campaign").into()
}

#[test]
#[ignore = "a child of the campaign"]
fn sweep_child() {
    let folder = child_folder();
    let config = if std::env::var("SAM_LADDER_KIND").unwrap() == "grid" { GRID } else { TPE };
    sweep(&args(&folder, "s", config)).unwrap();
}

fn child(folder: &Path, kind: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "sweep_child", "--ignored", "--test-threads=1"]);
    command.env("SAM_LADDER_FOLDER", folder).env("SAM_LADDER_KIND", kind);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn a_killed_sweep_ends_in_the_same_table() {
    let folder = workplace();
    let kills = std::env::var("SAM_LADDER_KILLS").map_or(KILLS, |text| text.parse().expect("SAM_LADDER_KILLS is a number"));
    let mut seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut moment = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as f64 / (1u64 << 31) as f64
    };
    let (mut killed, mut sweeps) = (0, 0);
    let mut straight = Vec::new();
    for (kind, config) in [("grid", GRID), ("tpe", TPE)] {
        let whole = args(folder.path(), kind, config);
        let start = Instant::now();
        sweep(&whole).unwrap();
        straight.push((kind, whole.out, start.elapsed()));
    }
    let out = folder.path().join("s");
    while killed < kills {
        let (kind, whole, time) = &straight[sweeps % 2];
        fs::remove_dir_all(&out).ok();
        loop {
            let mut child = child(folder.path(), kind).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(50) + time.mul_f64(0.6 * moment()));
            let ended = child.try_wait().unwrap().is_some();
            if !ended {
                child.kill().unwrap();
                killed += 1;
            }
            let status = child.wait().unwrap();
            assert!(status.code().is_none_or(|code| code == 0), "a resumed child failed by itself: {status}");
            if ended || status.code() == Some(0) {
                break;
            }
        }
        assert_eq!(table(&out), table(whole), "{kind} sweep {sweeps} after {killed} kills");
        assert_eq!(curves(&out), curves(whole), "{kind} sweep {sweeps} after {killed} kills");
        sweeps += 1;
    }
    println!("{killed} kills, {sweeps} sweeps");
}
