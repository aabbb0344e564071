//! One pass over what is missing. Five stages, each on a thread of its own, pass it on in order:
//!
//! ```text
//! read scans ──▶ make images ──▶ encode ──▶ fetch ──▶ write
//! ```
//!
//! Each queue is bounded, so memory is, too: at most two scans (one is read while images are made of the other), twice the groups whose images are
//! made at once, and four groups on their way through the encoder to the disk. On a GPU the encoder has three batches in its queue.

use super::encode::Encode;
use super::fetch::{Begun, Fetcher};
use super::lazy::{Lazy, Loaded};
use super::prepare::{Group, Prepared, Work};
use super::share::GroupRange;
use super::write::write_all;
use crate::error::Result;
use crate::scans::{ScanError, ScanSource};
use sam_ladder_cache::StoreWriter;
use sam_ladder_schemas::observer::{Observer, Progress};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// Encoded groups that may wait to be written.
const WRITE_BEHIND: usize = 1;

/// What to make, and where it goes.
pub(super) struct Pass<'a> {
    pub(super) source: &'a ScanSource,
    pub(super) writer: &'a StoreWriter,
    pub(super) groups: &'a [GroupRange],
    /// Images that go through the encoder together.
    pub(super) batch_size: usize,
    /// Once it is set, what was encoded is written and the pass ends.
    pub(super) stop: &'a AtomicBool,
    pub(super) observer: &'a dyn Observer,
    pub(super) progress: &'a dyn Progress,
}

/// What a pass did.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) images_encoded: usize,
    /// Whether it was stopped before its end.
    pub(super) stopped: bool,
    /// How long the encoder waited for images, without the first.
    pub(super) waited: Duration,
    /// Cases that could not be read.
    pub(super) bad: Vec<(String, ScanError)>,
}

impl Pass<'_> {
    /// Makes all that is missing, or until it is stopped. What was encoded before an error is written.
    pub(super) fn run<E: Encode, F>(&self, lazy: &mut Lazy<E, F>) -> Result<Outcome>
    where
        F: FnOnce() -> Result<Loaded<E>>,
    {
        let work = &Work { source: self.source, writer: self.writer, groups: self.groups };
        // A scan waits in the hands of the thread that read it.
        let (read, cases) = sync_channel(0);
        let (made, prepared) = sync_channel(work.most_groups_at_once());
        let (begun, to_fetch) = sync_channel(0);
        let (encoded, to_write) = sync_channel(WRITE_BEHIND);
        let config = &self.writer.layout().attributes().config;
        let fetcher = Fetcher::new([config.embeddings_len(), config.rungs_len()], self.progress, encoded);
        let (writer, progress) = (self.writer, self.progress);
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || work.read_all(&read));
            let making = scope.spawn(move || work.make_all(&cases, &made));
            let fetching = scope.spawn(move || fetcher.fetch_all(&to_fetch));
            let writing = scope.spawn(move || write_all(writer, progress, &to_write));
            let outcome = self.encode_all(lazy, prepared, begun);
            // Later stages first: where one failed, its error is the reason, and those before it only found nobody listening.
            joined(writing)?;
            let images_encoded = joined(fetching)?;
            let outcome = Outcome { images_encoded, ..outcome? };
            joined(making)?;
            joined(reading)?;
            Ok(outcome)
        })
    }

    /// Encodes what comes and passes it on. The channels are closed at its end, whatever it is.
    fn encode_all<E: Encode, F>(
        &self,
        lazy: &mut Lazy<E, F>,
        prepared: Receiver<Prepared>,
        begun: SyncSender<Begun>,
    ) -> Result<Outcome>
    where
        F: FnOnce() -> Result<Loaded<E>>,
    {
        let mut outcome = Outcome::default();
        let mut encoded_some = false;
        loop {
            let start = Instant::now();
            let Ok(next) = tracing::trace_span!("wait for images").in_scope(|| prepared.recv()) else { break };
            if encoded_some {
                outcome.waited += start.elapsed();
            }
            if self.stop.load(Ordering::Relaxed) {
                outcome.stopped = true;
                break;
            }
            let listens = match next {
                Prepared::Group(group) => {
                    encoded_some = true;
                    self.begin_group(&lazy.get()?.encoder, group, &begun)?
                }
                Prepared::CaseEnd(end) => begun.send(Begun::CaseEnd(end)).is_ok(),
                Prepared::Note(note) => {
                    self.observer.message(&note);
                    true
                }
                Prepared::Bad { case, error } => {
                    self.observer.message(&format!("warning: case {case} is left out: {error}"));
                    outcome.bad.push((case, error));
                    true
                }
            };
            if !listens {
                break;
            }
        }
        Ok(outcome)
    }

    /// Begins the embeddings that are wanted of a group, batch by batch; whether the fetching thread still listens.
    fn begin_group<E: Encode>(&self, encoder: &E, group: Group, begun: &SyncSender<Begun>) -> Result<bool> {
        let config = &self.writer.layout().attributes().config;
        let image_len = config.image_len();
        for images in group.to_encode(image_len).chunks(self.batch_size * image_len) {
            let batch = images.len() / image_len;
            let encode = || encoder.begin(images, batch, config.image_size);
            let embeddings = tracing::trace_span!("encode", batch).in_scope(encode)?;
            if begun.send(Begun::Batch { embeddings, images: batch }).is_err() {
                return Ok(false);
            }
        }
        Ok(begun.send(Begun::Group(group)).is_ok())
    }
}

/// What a stage gave; its panic goes on here.
fn joined<T, E>(stage: ScopedJoinHandle<'_, Result<T, E>>) -> Result<T>
where
    crate::error::Error: From<E>,
{
    match stage.join() {
        Ok(outcome) => Ok(outcome?),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
