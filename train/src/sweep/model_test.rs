//! A sweep's folder under random commands: start, kill at any write, resume, another budget, several workers, damage, the choice of the
//! final run. After each, the table has every trial that was ever recorded, no finished trial has lost its result, and no number and no
//! point is there twice. Training is a formula.
//!
//! `SAM_LADDER_MODEL_SECONDS` sets how long (`make soak` sets minutes), `SAM_LADDER_MODEL_SEED` repeats one sweep.

use super::final_run::choose;
use super::folder::Folder;
use super::ledger::Ledger;
use super::trainer::{Task, Trainer};
use super::trials::Trials;
use super::workers::Workers;
use super::writes::Writes;
use super::{SweepSummary, workers};
use crate::error::{Result, TrainError};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sam_ladder_formats::rows::{read_rows, write_rows};
use sam_ladder_schemas::observer::silent;
use sam_ladder_schemas::sweep::{
    Budget, SweepRecord, TRIAL_RECORD, TRIALS_DIR, TRIALS_TABLE, TrialRow, TrialStatus, parse_sweep,
};
use sam_ladder_schemas::tables::EpochRow;
use sam_ladder_schemas::train::{EPOCHS_TABLE, InputFile, RESUME_STATE, RUN_CONFIG, RunInputs};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long the model is tried unless the variable says.
const SECONDS: u64 = 6;
/// Epochs of a whole trial of each run.
const EPOCHS: u32 = 4;
/// Commands of each sweep.
const COMMANDS: usize = 9;

/// A number in [0, 1) that stands for a trial.
fn luck(id: &str, salt: u64) -> f64 {
    let hash = id.bytes().fold(salt ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (hash.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11) as f64 / (1u64 << 53) as f64
}

/// Validation Dice of a run after an epoch.
fn dice(id: &str, fold: u32, epoch: u32) -> f64 {
    luck(id, 1) * (1.0 - 0.5 / f64::from(epoch + 2)) + 0.01 * luck(id, u64::from(fold) + 7)
}

/// Epochs that were trained: trial and run.
type Log = Arc<Mutex<Vec<(String, u32)>>>;

struct Formula {
    folder: Folder,
    /// Whether some trials fail.
    fails: bool,
    /// Epochs that fit on the disk.
    space: usize,
    log: Log,
}

impl Formula {
    fn task(&self, (seed, fold): (u64, u32), task: &Task) -> Result<Option<TrainError>> {
        let run = self.folder.run(&task.id, seed, fold);
        let mut epochs = self.folder.read_run(&task.id, seed, fold)?;
        for epoch in epochs.len() as u32..task.until {
            if self.fails && luck(&task.id, 3) < 0.15 && epoch == 1 {
                return Ok(Some(TrainError::BatchUnread("a bad chunk".into())));
            }
            self.folder.may_write()?;
            if self.log.lock().unwrap().len() >= self.space {
                let full = sam_ladder_formats::Error::io("write", &run)(std::io::ErrorKind::StorageFull.into());
                return Ok(Some(full.into()));
            }
            std::fs::create_dir_all(&run).unwrap();
            for file in [RUN_CONFIG, RESUME_STATE] {
                std::fs::write(run.join(file), "").unwrap();
            }
            let (steps, value) = (u64::from(epoch), Some(dice(&task.id, fold, epoch)));
            let row = EpochRow {
                epoch,
                steps,
                loss: 1.0,
                ce: 1.0,
                dice: 1.0,
                val_dice: value,
                val_hd95: None,
                gate: 0.5,
                seconds: 900.0,
            };
            epochs.push(row);
            write_rows(&run.join(EPOCHS_TABLE), &epochs).unwrap();
            self.log.lock().unwrap().push((task.id.clone(), fold));
        }
        Ok(None)
    }
}

impl Trainer for Formula {
    fn train(&mut self, run: (u64, u32), tasks: &[Task], _: &AtomicBool) -> Vec<(usize, TrainError)> {
        let error = |task: &Task| self.task(run, task).unwrap_or_else(Some).map(|error| (task.trial, error));
        tasks.iter().filter_map(error).collect()
    }
}

fn record(search: &str, pruning: &str, jobs: u32) -> SweepRecord {
    let text = format!(
        "[settings]\nepochs = {EPOCHS}\nlr = {{ min = 1e-4, max = 1e-1, scale = \"log\", points = 4 }}\nlambda = [0.2, 0.4, 0.8]\n[search]\n\
         method = \"{search}\"\n[pruning]\n{pruning}\n[validation]\nfolds = 2\n[budget]\ntrials = 6\n"
    );
    let file = InputFile { name: "d".into(), sha256: "0".into(), path: None };
    SweepRecord {
        program: "test".into(),
        cache_id: "x".into(),
        config: parse_sweep("s.toml", &text).unwrap(),
        jobs,
        folds: vec![vec!["a".into()], vec!["b".into()]],
        groups: Default::default(),
        inputs: RunInputs { sam_decoder: file, cnn_checkpoint: None, init: None, rung_projection: None },
        store_path: None,
    }
}

/// Works as one worker until the sweep's end or until the worker is killed.
fn work(out: &Path, record: &SweepRecord, worker: (u32, u32), writes: Writes, fails: bool, log: &Log) -> Result<Vec<TrialRow>> {
    let mut folder = Folder::new(out);
    folder.writes = writes;
    let place = Workers::join(&folder, worker, &*silent())?;
    let ledger = Ledger::new(folder.clone(), record, silent())?;
    let trainer = Formula { folder, fails, space: usize::MAX, log: log.clone() };
    Trials::new(record, ledger, place, trainer, silent()).run(&AtomicBool::new(false))
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(TRIALS_DIR)).unwrap();
    folder
}

/// The table without times.
fn table(out: &Path) -> Vec<TrialRow> {
    let mut rows = read_rows::<TrialRow>(&out.join(TRIALS_TABLE)).unwrap();
    rows.iter_mut().for_each(|row| row.seconds = 0.0);
    rows
}

const KINDS: [(&str, &str); 6] = [
    ("random", ""),
    ("tpe", "method = \"asha\"\nreduction = 2"),
    ("grid", "method = \"asha\"\nreduction = 2"),
    ("random", "method = \"median\"\nstartup = 2"),
    ("tpe", "method = \"median\"\nstartup = 2"),
    ("grid", ""),
];

/// One worker that is killed at any write ends in the table of one that was not.
#[test]
fn a_worker_killed_at_each_write_ends_in_the_same_table() {
    for (kind, jobs) in (0..KINDS.len()).zip([1, 2, 1, 2, 1, 3]) {
        let record = record(KINDS[kind].0, KINDS[kind].1, jobs);
        let whole = folder();
        let log = Log::default();
        work(whole.path(), &record, (1, 1), Writes::default(), false, &log).unwrap();
        let (expected, epochs) = (table(whole.path()), log.lock().unwrap().len());
        let out = folder();
        let log = Log::default();
        let mut kills = 0;
        while work(out.path(), &record, (1, 1), Writes::kill_after(2 + kills * 5 % 11), false, &log).is_err() {
            kills += 1;
            assert!(kills < 2000, "{:?} never ends", KINDS[kind]);
        }
        assert_eq!(table(out.path()), expected, "{:?} after {kills} kills", KINDS[kind]);
        assert!(kills > 5 && log.lock().unwrap().len() == epochs, "an epoch was trained twice");
    }
}

/// A full disk stops the sweep, and is no trial's fault: with space again, it ends as if nothing had been.
#[test]
fn a_full_disk_stops_the_sweep_and_uses_up_no_retries() {
    let record = record("random", "", 2);
    let (whole, out, log) = (folder(), folder(), Log::default());
    work(whole.path(), &record, (1, 1), Writes::default(), false, &log).unwrap();
    let log = Log::default();
    for space in [0, 5, 5, 11] {
        let folder = Folder::new(out.path());
        let place = Workers::join(&folder, (1, 1), &*silent()).unwrap();
        let ledger = Ledger::new(folder.clone(), &record, silent()).unwrap();
        let trainer = Formula { folder, fails: false, space, log: log.clone() };
        let error = Trials::new(&record, ledger, place, trainer, silent()).run(&AtomicBool::new(false)).unwrap_err();
        assert!(error.to_string().contains("cannot write") && error.hint().unwrap().contains("free space"), "{error}");
        assert!(table(out.path()).iter().all(|row| row.failures == 0 && row.status != TrialStatus::Failed));
    }
    work(out.path(), &record, (1, 1), Writes::default(), false, &log).unwrap();
    assert_eq!(table(out.path()), table(whole.path()));
}

/// The records of finished trials are damaged, and the sweep's table is from before their end: the runs say that they have finished.
#[test]
fn damaged_records_of_finished_trials_are_made_again_from_their_runs() {
    let record = record("random", "", 1);
    let (out, log) = (folder(), Log::default());
    work(out.path(), &record, (1, 1), Writes::default(), false, &log).unwrap();
    let (expected, trained) = (table(out.path()), log.lock().unwrap().len());
    let begun = |row: &TrialRow| TrialRow { status: TrialStatus::Running, epochs: 1, dice: Some(0.5), rank: None, ..row.clone() };
    write_rows(&out.path().join(TRIALS_TABLE), &expected.iter().map(begun).collect::<Vec<_>>()).unwrap();
    for row in &expected {
        std::fs::write(out.path().join(TRIALS_DIR).join(&row.trial).join(TRIAL_RECORD), "").unwrap();
    }
    work(out.path(), &record, (1, 1), Writes::default(), false, &log).unwrap();
    assert_eq!(table(out.path()), expected);
    assert_eq!(log.lock().unwrap().len(), trained, "nothing is trained again");
}

/// A worker that could not record the trials that it started, on a full disk, still reads what another one has recorded of them.
#[test]
fn a_worker_that_could_not_record_its_trials_reads_those_of_another() {
    let record = record("random", "", 3);
    let out = folder();
    let start = |writes| {
        let mut folder = Folder::new(out.path());
        folder.writes = writes;
        let mut ledger = Ledger::new(folder, &record, silent()).unwrap();
        ledger.refresh(&[]).unwrap();
        assert_eq!(ledger.scheduler.next_jobs(3, &[]).len(), 3);
        let written = ledger.add_started();
        (ledger, written)
    };
    let (mut stopped, written) = start(Writes::kill_after(0));
    assert!(written.is_err());
    start(Writes::default()).1.unwrap();
    stopped.refresh(&[]).unwrap();
    assert_eq!(stopped.rows().len(), 3);
}

/// Two workers at once: no point is trained twice, no number is lost, and a budget is one for both.
#[test]
fn two_workers_train_each_point_once() {
    for sweep in 0..12 {
        let (search, pruning) = KINDS[sweep % KINDS.len()];
        let mut record = record(search, pruning, 1);
        let whole = 2 * u64::from(EPOCHS);
        if sweep % 2 == 1 {
            record.config.budget = Budget { epochs: Some(3 * whole), ..Budget::default() };
        }
        let (out, log) = (folder(), Log::default());
        std::thread::scope(|scope| {
            for worker in 1..=2 {
                let (out, record, log) = (out.path(), &record, &log);
                scope.spawn(move || work(out, record, (worker, 2), Writes::default(), false, log).unwrap());
            }
        });
        let (rows, log) = (table(out.path()), log.lock().unwrap().clone());
        assert_eq!(rows.iter().map(|row| row.number).collect::<Vec<_>>(), (0..rows.len() as u32).collect::<Vec<_>>());
        assert_eq!(rows.iter().map(|row| &row.trial).collect::<BTreeSet<_>>().len(), rows.len());
        assert!(rows.iter().all(|row| row.status != TrialStatus::Running), "{rows:?}");
        let mut counts: BTreeMap<_, u32> = BTreeMap::new();
        log.iter().for_each(|run| *counts.entry(run).or_default() += 1);
        assert!(counts.values().all(|&epochs| epochs <= EPOCHS), "{search} {pruning}: {counts:?}");
        match record.config.budget.trials {
            Some(trials) => assert_eq!(rows.len(), trials as usize, "{search} {pruning}"),
            None => assert!(log.len() as u64 <= 3 * whole + whole, "{search} {pruning}: {} epochs", log.len()),
        }
    }
}

/// What a test has seen of a sweep.
struct Seen {
    rng: ChaCha8Rng,
    record: SweepRecord,
    /// Every trial that was ever recorded, with the row that it had last.
    rows: BTreeMap<String, TrialRow>,
    log: Log,
}

impl Seen {
    /// A number below `end`.
    fn pick(&mut self, end: usize) -> usize {
        self.rng.random_range(0..end)
    }

    /// The budget grows or shrinks.
    fn change_budget(&mut self) {
        self.record.config.budget = match self.pick(4) {
            0 => Budget { epochs: Some(self.pick(60) as u64 + 1), trials: Some(9), ..Budget::default() },
            1 => Budget { hours: Some(self.pick(60) as f64 * 0.25 + 0.1), trials: Some(9), ..Budget::default() },
            _ => Budget { trials: Some(self.pick(9) as u32 + 1), ..Budget::default() },
        };
    }

    /// Cuts off a table of a trial.
    fn damage(&mut self, out: &Path) {
        let which = self.pick(self.rows.len().max(1));
        let Some(id) = self.rows.keys().nth(which).cloned() else { return };
        let names = ["seed-1234-fold-1/epochs.parquet", "seed-1234-fold-2/epochs.parquet", TRIAL_RECORD];
        let name = names[self.pick(3)];
        let path = out.join(TRIALS_DIR).join(&id).join(name);
        let Ok(bytes) = std::fs::read(&path) else { return };
        if name == TRIAL_RECORD && !self.is_told_elsewhere(out, &id) {
            return;
        }
        match self.pick(2) {
            0 => std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap(),
            _ if name == TRIAL_RECORD => std::fs::write(&path, "").unwrap(),
            _ => {
                let rows = read_rows::<EpochRow>(&path).unwrap();
                write_rows(&path, &rows[..rows.len() / 2]).unwrap();
            }
        }
    }

    /// Whether a trial's record can come back: from the sweep's table or, if the trial finished after it was written, from the runs.
    fn is_told_elsewhere(&self, out: &Path, id: &str) -> bool {
        let table = read_rows::<TrialRow>(&out.join(TRIALS_TABLE)).unwrap_or_default();
        let is_whole = |fold| Folder::new(out).read_run(id, 1234, fold).is_ok_and(|epochs| epochs.len() == EPOCHS as usize);
        table.iter().find(|row| row.trial == id).is_some_and(|row| {
            let had_finished = self.rows[id].status == TrialStatus::Finished;
            !had_finished || row.status == TrialStatus::Finished || is_whole(1) && is_whole(2)
        })
    }

    /// One or two workers, each of which may be killed.
    fn start(&mut self, out: &Path) {
        let count = self.pick(2) as u32 + 1;
        let kills: Vec<Writes> = (0..count)
            .map(|_| if self.pick(2) == 0 { Writes::default() } else { Writes::kill_after(self.pick(50) as i64) })
            .collect();
        let (record, log) = (&self.record, &self.log);
        std::thread::scope(|scope| {
            for (worker, kill) in kills.into_iter().enumerate() {
                scope.spawn(move || match work(out, record, (worker as u32 + 1, count), kill, true, log) {
                    Err(error) if !error.to_string().starts_with("killed: ") => panic!("{error}"),
                    _ => {}
                });
            }
        });
    }

    /// Compares the folder with what was seen before.
    fn check(&mut self, out: &Path) {
        let mut ledger = Ledger::new(Folder::new(out), &self.record, silent()).unwrap();
        ledger.refresh(&[]).unwrap();
        let rows = ledger.rows();
        let numbers: BTreeSet<u32> = rows.iter().map(|row| row.number).collect();
        assert_eq!(numbers.len(), rows.len(), "a number is there twice");
        for (id, before) in &self.rows {
            let now =
                rows.iter().find(|row| row.trial == *id).unwrap_or_else(|| panic!("trial {} has left the table", before.number));
            assert_eq!((now.number, &now.settings), (before.number, &before.settings));
            if before.status == TrialStatus::Finished {
                assert_eq!((now.status, now.dice), (before.status, before.dice), "trial {} has lost its result", now.number);
            }
        }
        for row in rows.iter().filter(|row| row.epochs > 0) {
            let folds = [1, 2].map(|fold| dice(&row.trial, fold, row.epochs - 1));
            assert_eq!(row.dice, Some((folds[0] + folds[1]) / 2.0), "{row:?}");
        }
        self.rows = rows.iter().map(|row| (row.trial.clone(), row.clone())).collect();
        let best = rows.iter().filter(|row| row.status == TrialStatus::Finished).filter_map(|row| row.dice).reduce(f64::max);
        let chosen = choose(&SweepSummary::new(rows), None, false, out).ok().and_then(|row| row.dice);
        assert_eq!(chosen, best, "--final");
    }

    /// An undisturbed start at the end: every trial has ended, and the table says so.
    fn finish(&mut self, out: &Path) {
        self.record.config.budget = Budget { trials: Some(9), ..Budget::default() };
        let rows = work(out, &self.record, (1, 1), Writes::default(), true, &self.log).unwrap();
        assert_eq!(rows, read_rows::<TrialRow>(&out.join(TRIALS_TABLE)).unwrap());
        assert_eq!(rows.iter().map(|row| row.number).collect::<Vec<_>>(), (0..9).collect::<Vec<_>>(), "a number is lost");
        assert!(rows.iter().all(|row| row.status != TrialStatus::Running), "{rows:?}");
        self.check(out);
        // Whole trials are not trained again; those that were damaged are, and others if their state had been removed.
        let before = self.log.lock().unwrap().len();
        let again = work(out, &self.record, (1, 1), Writes::default(), true, &self.log).unwrap();
        let fails = rows.iter().any(|row| row.status == TrialStatus::Failed);
        let trained = self.log.lock().unwrap().split_off(before);
        assert!(fails || trained.is_empty(), "a sweep that had ended has trained {trained:?}: {rows:#?}, then {again:#?}");
    }
}

fn one_sweep(seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (search, pruning) = KINDS[rng.random_range(0..KINDS.len())];
    let jobs = rng.random_range(1..3);
    let (out, record) = (folder(), record(search, pruning, jobs));
    let mut seen = Seen { rng, record, rows: BTreeMap::new(), log: Log::default() };
    let out = out.path();
    for _ in 0..COMMANDS {
        match seen.pick(5) {
            0 => seen.change_budget(),
            1 => seen.damage(out),
            _ => seen.start(out),
        }
        seen.check(out);
    }
    seen.finish(out);
    drop(workers::turn(&Folder::new(out)).unwrap());
}

#[test]
fn no_command_takes_a_trial_from_the_table() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a whole number"));
    if let Some(seed) = number("SAM_LADDER_MODEL_SEED") {
        return one_sweep(seed);
    }
    let time = Duration::from_secs(number("SAM_LADDER_MODEL_SECONDS").unwrap_or(SECONDS));
    let first = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let (start, mut sweeps) = (Instant::now(), 0);
    while start.elapsed() < time {
        println!("SAM_LADDER_MODEL_SEED={}", first + sweeps);
        one_sweep(first + sweeps);
        sweeps += 1;
    }
    println!("{sweeps} sweeps");
}
