//! Reads the batch that comes next while the model works on the one before.

use crate::error::{Result, TrainError};
use crate::run::sampler::Item;
use sam_ladder_cache::{Batch, Reader};
use std::ops::ControlFlow;
use std::sync::mpsc::sync_channel;

/// Calls `visit` with each batch of `plan` in its order. One batch is read ahead on a thread of its own, and two buffers go round,
/// so what is held is two batches whatever the store's size. Of a store in a bucket, another thread fetches some batches more onto
/// the local disk.
///
/// # Errors
/// The first of reading or of `visit`; the rest of the plan is not read then.
pub fn for_each_batch(
    reader: &Reader,
    plan: &[&[Item]],
    mut visit: impl FnMut(usize, &[Item], &Batch) -> Result<ControlFlow<()>>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (full_sender, full) = sync_channel::<Result<Batch>>(1);
        let (empty_sender, empty) = sync_channel::<Batch>(2);
        let ahead = reader.batches_ahead(plan.first().map_or(0, |items| items.len()));
        // As many batches as this holds are fetched and not read yet.
        let (fetched_sender, fetched) = sync_channel::<()>(ahead);
        if ahead > 0 {
            scope.spawn(move || {
                // What cannot be fetched is met again, and told, by the thread that reads it.
                for items in plan {
                    if fetched_sender.send(()).is_err() || reader.fetch_ahead(items).is_err() {
                        return;
                    }
                }
            });
        }
        scope.spawn(move || {
            for (index, items) in plan.iter().enumerate() {
                let mut buffer = if index < 2 {
                    Batch::default()
                } else {
                    match empty.recv() {
                        Ok(buffer) => buffer,
                        Err(_) => return,
                    }
                };
                let _span = tracing::trace_span!("read batch", slices = items.len()).entered();
                let read = reader.read_batch(items, &mut buffer).map(|()| buffer).map_err(TrainError::from);
                if ahead > 0 {
                    let _ = fetched.recv();
                }
                // A closed channel means that the visitor has stopped.
                if full_sender.send(read).is_err() {
                    return;
                }
            }
        });
        for (index, items) in plan.iter().enumerate() {
            let batch = full.recv().map_err(|_| TrainError::Input("the thread that reads the store has stopped".into()))??;
            if visit(index, items, &batch)?.is_break() {
                break;
            }
            let _ = empty_sender.send(batch);
        }
        Ok(())
    })
}
