//! `log.txt`: what a run says, with times, in its folder.

use sam_ladder_schemas::observer::{Observer, Phase, Progress};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Passes everything on, and writes every line to a file.
#[derive(Debug, Clone)]
pub(super) struct Log {
    observer: Arc<dyn Observer>,
    /// `None` if it could not be opened: a run does not end if it has no log.
    file: Option<Arc<Mutex<File>>>,
}

impl Log {
    /// Appends to the file `path`.
    pub(super) fn new(path: &Path, observer: Arc<dyn Observer>) -> Self {
        let file = OpenOptions::new().append(true).create(true).open(path).ok();
        Log { observer, file: file.map(|file| Arc::new(Mutex::new(file))) }
    }

    /// Writes a line that is shown in another way.
    pub(super) fn write(&self, text: &str) {
        let Some(file) = &self.file else { return };
        let line = format!("{} {text}\n", humantime::format_rfc3339_seconds(SystemTime::now()));
        // On a full disk the next checkpoint says so.
        file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes()).ok();
    }
}

impl Observer for Log {
    fn message(&self, text: &str) {
        self.write(text);
        self.observer.message(text);
    }

    fn begin(&self, phase: Phase<'_>) -> Box<dyn Progress> {
        Box::new(Logged { log: self.clone(), progress: self.observer.begin(phase) })
    }
}

/// A phase whose notes are logged.
#[derive(Debug)]
struct Logged {
    log: Log,
    progress: Box<dyn Progress>,
}

impl Progress for Logged {
    fn advance(&self, units: u64) {
        self.progress.advance(units);
    }

    fn describe(&self, text: &str) {
        self.progress.describe(text);
    }

    fn note(&self, text: &str) {
        self.log.write(text);
        self.progress.note(text);
    }
}
