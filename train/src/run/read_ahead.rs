//! Reads the next batch while the model works on the current one.

use super::sampler::Item;
use crate::error::{Result, TrainError};
use sam_ladder_cache::{Batch, Reader};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Number of reused buffers: memory holds two batches, whatever the store's size.
const BUFFERS: usize = 2;

/// What is read for a batch.
#[derive(Debug, Clone, Default)]
pub(super) struct ToRead {
    /// Items of which everything is read.
    pub(super) items: Vec<Item>,
    /// Items of which the embeddings are read, as those around others.
    pub(super) around: Vec<Item>,
}

impl ToRead {
    fn fetch(&self, reader: &Reader) -> sam_ladder_cache::Result<()> {
        reader.fetch_ahead(&self.items)?;
        if self.around.is_empty() { Ok(()) } else { reader.fetch_embeddings_ahead(&self.around) }
    }

    fn read(&self, reader: &Reader, batch: &mut Batch) -> sam_ladder_cache::Result<()> {
        reader.read_batch(&self.items, batch)?;
        if self.around.is_empty() { Ok(()) } else { reader.read_embeddings(&self.around, &mut batch.around) }
    }
}

/// Batches of a plan, in order, read on a separate thread. For a store in a bucket, another thread fetches more batches ahead to the local
/// disk.
pub(super) struct ReadAhead {
    full: Option<Receiver<Result<Batch>>>,
    empty: Option<SyncSender<Batch>>,
    threads: Vec<JoinHandle<()>>,
}

impl ReadAhead {
    /// Begins to read.
    pub(super) fn start(reader: &Arc<Reader>, plan: Vec<ToRead>) -> Self {
        let (full_sender, full) = sync_channel::<Result<Batch>>(1);
        let (empty, empty_receiver) = sync_channel::<Batch>(BUFFERS);
        let ahead = reader.batches_ahead(plan.first().map_or(0, |first| first.items.len() + first.around.len()));
        // Its capacity limits the batches that are fetched but not yet read.
        let (fetched_sender, fetched) = sync_channel::<()>(ahead);
        let plan = Arc::new(plan);
        let mut threads = Vec::new();
        if ahead > 0 {
            let (reader, plan) = (reader.clone(), plan.clone());
            threads.push(std::thread::spawn(move || {
                // A fetch error occurs again in the thread that reads the batch, which reports it.
                for batch in plan.iter() {
                    if fetched_sender.send(()).is_err() || batch.fetch(&reader).is_err() {
                        return;
                    }
                }
            }));
        }
        let reader = reader.clone();
        threads.push(std::thread::spawn(move || {
            for (index, batch) in plan.iter().enumerate() {
                let buffer = if index < BUFFERS { Ok(Batch::default()) } else { empty_receiver.recv() };
                let Ok(mut buffer) = buffer else { return };
                let _span = tracing::trace_span!("read batch", slices = batch.items.len()).entered();
                let read = batch.read(&reader, &mut buffer).map(|()| buffer).map_err(TrainError::from);
                if ahead > 0 {
                    let _ = fetched.recv();
                }
                // A closed channel means that the receiver is gone.
                if full_sender.send(read).is_err() {
                    return;
                }
            }
        }));
        ReadAhead { full: Some(full), empty: Some(empty), threads }
    }

    /// The next batch of the plan.
    ///
    /// # Errors
    /// Those of reading; after one, nothing more can be read.
    pub(super) fn next_batch(&mut self) -> Result<Batch> {
        self.full.as_ref().and_then(|full| full.recv().ok()).ok_or(TrainError::ReaderStopped)?
    }

    /// Returns a buffer for reuse.
    pub(super) fn give_back(&mut self, batch: Batch) {
        if let Some(empty) = &self.empty {
            let _ = empty.send(batch);
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        // Closing the channels ends the threads.
        (self.full, self.empty) = (None, None);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
