//! Several runs trained on the same batches: each batch is read, decompressed and turned into tensors once, and every model takes its step on them.
//!
//! A run's arithmetic is that of a lone one ([`Trainee::step`]), on tensors of the same values, so on the CPU it ends in the same bytes.

use crate::error::{Result, TrainError};
use crate::run::for_each_batch;
use crate::run::training_run::Trainee;
use crate::run::step::{BatchTensors, batch_tensors};
use sam_ladder_cache::Reader;
use sam_ladder_schemas::tables::EpochRow;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Batches that wait for a model, beside the one that it works on.
const AHEAD: usize = 1;

/// A run beside others.
pub(crate) struct Member {
    pub(crate) trainee: Trainee,
    /// Epochs that it is to have behind it.
    pub(crate) until: u32,
    /// Why it ended before that.
    pub(crate) error: Option<TrainError>,
}

impl Member {
    fn is_under_way(&self) -> bool {
        self.error.is_none() && self.trainee.position().epoch < self.until
    }
}

/// What all groups of a sweep share.
pub(crate) struct Together<'a> {
    pub(crate) reader: &'a Reader,
    /// Set from outside: stop after the steps in flight.
    pub(crate) stop: &'a AtomicBool,
    /// Runs that are being trained, over all groups: they divide the machine's time.
    pub(crate) live: &'a AtomicUsize,
    /// Called with a member's index and each epoch that it closes.
    pub(crate) on_epoch: &'a (dyn Fn(usize, &EpochRow) + Sync),
}

/// A batch of an epoch, or of the validation after it.
#[derive(Clone)]
enum Sent {
    Train(Arc<BatchTensors>),
    Validate(Arc<(BatchTensors, Vec<u8>)>),
}

impl Together<'_> {
    /// Trains the members on, epoch by epoch, to where each is to go, and writes their states. They stand at the same step of the same epoch and
    /// draw the same batches. One whose step fails keeps its error and leaves the others to go on; so does one that panics.
    pub(crate) fn train(&self, members: &mut [Member]) {
        while !self.stopping() && members.iter().any(Member::is_under_way) {
            if let Err(error) = self.epoch(members) {
                // Reading failed, and so for each that waits for the batch.
                let reason = error.to_string();
                let waiting = members.iter_mut().filter(|member| member.is_under_way());
                waiting.for_each(|member| member.error = Some(TrainError::Input(reason.clone())));
            }
        }
        for member in members.iter_mut().filter(|member| member.error.is_none()) {
            member.error = guarded(|| member.trainee.save()).err();
        }
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn epoch(&self, members: &mut [Member]) -> Result<()> {
        let mut active: Vec<(usize, &mut Member)> =
            members.iter_mut().enumerate().filter(|(_, member)| member.is_under_way()).collect();
        let Some((_, first)) = active.first() else { return Ok(()) };
        let items = first.trainee.epoch_items();
        let batches = first.trainee.batches_left(&items);
        let validation = first.trainee.plan().validation.clone();
        let (geometry, device) = (first.trainee.plan().geometry, first.trainee.plan().device.clone());
        let count = active.len();
        self.live.fetch_add(count, Ordering::Relaxed);
        let outcome = std::thread::scope(|scope| {
            let mut senders: Vec<Option<SyncSender<Sent>>> = Vec::with_capacity(count);
            for (index, member) in active.iter_mut() {
                let (sender, receiver) = sync_channel(AHEAD);
                senders.push(Some(sender));
                let index = *index;
                scope.spawn(move || {
                    let outcome = guarded(|| self.member_epoch(index, &mut member.trainee, &receiver));
                    self.live.fetch_sub(1, Ordering::Relaxed);
                    member.error = outcome.err();
                });
            }
            // A member whose thread has ended takes nothing more; where all have, nothing more is read.
            let mut send = |batch: Sent| {
                for sender in &mut senders {
                    if sender.as_ref().is_some_and(|to| to.send(batch.clone()).is_err()) {
                        *sender = None;
                    }
                }
                let on = senders.iter().any(Option::is_some) && !self.stopping();
                if on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            let mut stopped = false;
            for_each_batch(self.reader, &batches, |_, items, batch| {
                let tensors = batch_tensors(batch, items.len(), geometry, &device)?;
                let flow = send(Sent::Train(Arc::new(tensors)));
                stopped |= flow.is_break();
                Ok(flow)
            })?;
            if let Some(validation) = validation.filter(|_| !stopped) {
                for_each_batch(self.reader, &validation.batches(), |_, items, batch| {
                    let tensors = batch_tensors(batch, items.len(), geometry, &device)?;
                    Ok(send(Sent::Validate(Arc::new((tensors, batch.labels.clone())))))
                })?;
            }
            Ok(())
        });
        drop(active);
        outcome
    }

    /// What one model does with the batches of an epoch, until no more come.
    fn member_epoch(&self, index: usize, trainee: &mut Trainee, batches: &Receiver<Sent>) -> Result<()> {
        trainee.start_clock(self.live.load(Ordering::Relaxed));
        let validation = trainee.plan().validation.clone();
        let mut pass = validation.as_ref().map(|validation| trainee.validation_pass(validation));
        for batch in batches {
            match (batch, &mut pass) {
                (Sent::Train(tensors), _) => trainee.step(&tensors)?,
                (Sent::Validate(batch), Some(pass)) => trainee.score(pass, &batch.0, &batch.1)?,
                (Sent::Validate(_), None) => {}
            }
        }
        // Where it was stopped within the validation, the epoch is not closed: the run goes on by validating again.
        if trainee.epoch_is_whole() && pass.as_ref().is_none_or(|pass| pass.is_whole()) {
            let row = trainee.close_epoch(pass.map(|pass| pass.scores()).unwrap_or_default())?;
            (self.on_epoch)(index, &row);
        }
        Ok(())
    }
}

/// Turns a panic into an error: what one trial stumbles over must not end the sweep.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        Err(TrainError::Input(format!("the program stumbled: {}", text.unwrap_or_else(|| "a panic without a text".into()))))
    })
}
