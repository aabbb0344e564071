//! Workers that share a sweep's folder. They take turns to decide: a worker that decides holds a lock on the folder, reads what all have
//! recorded, and writes down what it will train (its plan) before it lets the next one decide. So no point and no number is taken twice.
//! Each worker holds a lock on its own place, too, so that the others know whether it lives.

use super::folder::Folder;
use crate::error::{Result, TrainError, io};
use crate::lock::Lock;
use sam_ladder_schemas::observer::Observer;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Name of the lock of the worker that decides.
const TURN: &str = "turn";
/// Ending of a worker's plan.
const PLAN: &str = "json";
/// Without locks: pause between two looks at the file of a turn.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Without locks: age at which a turn's file is one that a killed worker has left. A turn takes seconds at most.
const ABANDONED: Duration = Duration::from_secs(120);

/// A part of a trial that a worker trains: up to `until` epochs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Planned {
    /// The trial's id.
    pub(super) trial: String,
    /// Epochs that each of its runs has afterwards.
    pub(super) until: u32,
}

/// A worker's place among those of a sweep.
#[derive(Debug)]
pub(super) struct Workers {
    folder: Folder,
    /// `2-of-8`.
    name: String,
    /// Whether it works by itself, so that on a file system without locks plans of others are ones that they left.
    is_single: bool,
    _place: Lock,
}

/// The right to decide, while it lives.
#[derive(Debug)]
pub(super) enum Turn {
    Locked {
        _lock: Lock,
    },
    /// On a file system without locks: a file that only one worker can create.
    File(PathBuf),
}

impl Workers {
    /// Takes the place of worker `worker.0` of `worker.1`.
    ///
    /// # Errors
    /// [`TrainError::WorkerBusy`] if another process has it; the operating system's, naming the file.
    pub(super) fn join(folder: &Folder, worker: (u32, u32), observer: &dyn Observer) -> Result<Self> {
        let name = format!("{}-of-{}", worker.0, worker.1);
        // Others look for a moment whether this place is taken, but only in their turn.
        let _turn = turn(folder)?;
        let Some(place) = Lock::attempt(&folder.workers().join(&name))? else {
            return Err(TrainError::WorkerBusy { out: folder.path().into(), worker: format!("{}/{}", worker.0, worker.1) });
        };
        place.say_if_lacking(folder.path(), observer);
        Ok(Workers { folder: folder.clone(), name, is_single: worker.1 == 1, _place: place })
    }

    /// The option that starts this worker again.
    pub(super) fn option(&self) -> String {
        if self.is_single { String::new() } else { format!(" --worker {}", self.name.replace("-of-", "/")) }
    }

    /// Waits until this worker may decide.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn turn(&self) -> Result<Turn> {
        turn(&self.folder)
    }

    /// What the other workers that live are training. To be called in this worker's turn.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn others(&self) -> Result<Vec<Planned>> {
        let folder = self.folder.workers();
        let mut planned = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(io(&folder))? {
            let path = entry.map_err(io(&folder))?.path();
            let is_plan = path.extension().is_some_and(|ending| ending == PLAN);
            if !is_plan || path.file_stem().is_some_and(|name| *name == *self.name) {
                continue;
            }
            let lives = match Lock::attempt(&path.with_extension(""))? {
                None => true,
                Some(lock) => !lock.is_real() && !self.is_single,
            };
            if lives {
                planned.extend(self.read(&path)?);
            }
        }
        Ok(planned)
    }

    /// What this worker was training when it was interrupted.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn own(&self) -> Result<Vec<Planned>> {
        self.read(&self.plan_path())
    }

    /// Writes down what this worker will train.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn plan(&self, planned: &[Planned]) -> Result<()> {
        self.folder.write_plan(&self.plan_path(), planned)
    }

    fn plan_path(&self) -> PathBuf {
        self.folder.workers().join(format!("{}.{PLAN}", self.name))
    }

    /// A plan that is damaged counts as none: its trials are open, and trained as any others.
    fn read(&self, path: &Path) -> Result<Vec<Planned>> {
        match std::fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            other => Ok(serde_json::from_slice(&other.map_err(io(path))?).unwrap_or_default()),
        }
    }
}

/// Waits for the turn to decide in a sweep's folder.
///
/// # Errors
/// The operating system's, naming the file.
pub(super) fn turn(folder: &Folder) -> Result<Turn> {
    std::fs::create_dir_all(folder.workers()).map_err(io(&folder.workers()))?;
    let path = folder.workers().join(TURN);
    let lock = Lock::wait(&path)?;
    if lock.is_real() { Ok(Turn::Locked { _lock: lock }) } else { turn_by_file(path.with_extension("taken")) }
}

fn turn_by_file(path: PathBuf) -> Result<Turn> {
    loop {
        match std::fs::File::create_new(&path) {
            Ok(_) => return Ok(Turn::File(path)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io(&path)(error)),
        }
        let written = std::fs::metadata(&path).and_then(|file| file.modified());
        let age = written.ok().and_then(|written| SystemTime::now().duration_since(written).ok());
        if age.is_some_and(|age| age > ABANDONED) {
            std::fs::remove_file(&path).ok();
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Turn::File(path) = self {
            // What cannot be removed is taken for abandoned later.
            std::fs::remove_file(path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::observer::silent;

    #[test]
    fn a_place_is_taken_once_and_a_plan_counts_while_its_worker_lives() {
        let out = tempfile::tempdir().unwrap();
        let folder = Folder::new(out.path());
        let join = |index| Workers::join(&folder, (index, 2), &*silent());
        let (first, second) = (join(1).unwrap(), join(2).unwrap());
        let error = join(2).unwrap_err();
        assert!(error.to_string().contains("another process is worker 2/2"), "{error}");
        let plan = [Planned { trial: "a".into(), until: 3 }];
        first.plan(&plan).unwrap();
        assert_eq!((second.others().unwrap(), first.others().unwrap()), (plan.to_vec(), vec![]));
        drop(first);
        assert_eq!(second.others().unwrap(), []);
        let first = join(1).unwrap();
        assert_eq!(first.own().unwrap(), plan);
        first.plan(&[]).unwrap();
        assert_eq!(first.own().unwrap(), []);
    }

    #[test]
    fn one_decides_at_a_time_with_and_without_locks() {
        let out = tempfile::tempdir().unwrap();
        let folder = Folder::new(out.path());
        drop(turn(&folder).unwrap());
        let file = out.path().join("count");
        for locks in [true, false] {
            std::fs::write(&file, "0").unwrap();
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..5 {
                            let taken = folder.workers().join("taken");
                            let _turn = if locks { turn(&folder).unwrap() } else { turn_by_file(taken).unwrap() };
                            let count: u32 = std::fs::read_to_string(&file).unwrap().parse().unwrap();
                            std::fs::write(&file, (count + 1).to_string()).unwrap();
                        }
                    });
                }
            });
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "20", "locks: {locks}");
        }
    }
}
