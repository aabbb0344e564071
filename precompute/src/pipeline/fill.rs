//! Filling a store: what the reading thread prepares is encoded and written, until nothing is missing or the user stops it.

use super::encode::Encode;
use super::plan::Plan;
use super::prepare::{CaseEnd, Group, Prepared, Work, read};
use super::share::{GroupRange, Share, groups_of};
use super::space;
use crate::error::{Error, Result};
use crate::scans::{CaseEntry, ScanError};
use rayon::prelude::*;
use sam_ladder_cache::{CaseLayout, Opened, SliceTensors, StoreWriter, Survey, survey};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::encoder::EMBED_CHANNELS;
use sam_ladder_schemas::observer::{Observer, Phase, Progress, Silent, Unit};
use sam_ladder_schemas::setting::Problem;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

/// Groups of slices that may wait for the encoder.
const READ_AHEAD: usize = 1;
/// Passes over what is missing, if finished slices are found harmed at the end.
const PASSES: usize = 3;
/// Encoded groups that may wait to be written.
const WRITE_BEHIND: usize = 1;

/// What stage one did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Whether the store was complete before, so that there was nothing to do.
    pub already_complete: bool,
    /// Whether the store is complete now; if not, other workers have something left to do.
    pub complete: bool,
    /// Slices that this run wrote.
    pub slices_written: usize,
    /// Slices of the store.
    pub slices_total: usize,
    /// Images that this run encoded.
    pub images_encoded: usize,
    /// Wall time of this run in seconds.
    pub seconds: f64,
}

/// An encoder and the bytes of the store's decoder file.
pub struct Loaded<E> {
    /// Encodes images.
    pub encoder: E,
    /// SAM's prompt encoder and mask decoder as a safetensors file.
    pub decoder: Vec<u8>,
}

/// How a store is filled.
#[derive(Debug, Clone, Copy)]
pub struct FillOptions<'a> {
    /// Images that go through the encoder together.
    pub batch_size: usize,
    /// Which part of the work is this process's.
    pub share: Share,
    /// Once it is set, the shards in flight are finished and the run stops.
    pub stop: &'a AtomicBool,
    /// Gets progress and messages.
    pub observer: &'a dyn Observer,
}

impl<'a> FillOptions<'a> {
    /// All of the work, until it is done.
    pub fn whole(batch_size: usize, observer: &'a dyn Observer) -> Self {
        static NEVER: AtomicBool = AtomicBool::new(false);
        FillOptions { batch_size, share: Share::ALL, stop: &NEVER, observer }
    }
}

/// Makes, continues or grows the store of a plan in silence, with any encoder. The encoder is loaded when there is something to encode or the
/// decoder is not stored yet.
///
/// # Errors
/// As [`super::run`].
pub fn fill_store<E: Encode>(
    plan: Plan,
    store: &Path,
    batch_size: usize,
    load: impl FnOnce() -> Result<Loaded<E>>,
) -> Result<Summary> {
    fill_part(&plan, store, &FillOptions::whole(batch_size, &Silent), load)
}

/// As [`fill_store`], but only one worker's part, and until it is stopped. The worker that finds nothing missing any more
/// finishes the store.
///
/// # Errors
/// As [`super::run`], and [`Error::Stopped`].
pub fn fill_part<E: Encode>(
    plan: &Plan,
    store: &Path,
    options: &FillOptions,
    load: impl FnOnce() -> Result<Loaded<E>>,
) -> Result<Summary> {
    if options.batch_size == 0 {
        return Err(Problem::expected("a whole number of at least 1", 0).with("batch-size").into());
    }
    let mut lazy = Lazy { load: Some(load), loaded: None };
    if let Some(warning) = space::check(plan, store)? {
        options.observer.message(&warning);
    }
    let resumed = look_before(plan, store, &mut lazy)?;
    let mut summary = Summary {
        already_complete: true,
        complete: true,
        slices_written: 0,
        slices_total: Split::ALL.into_iter().map(|split| plan.layout.num_slices(split)).sum(),
        images_encoded: 0,
        seconds: 0.0,
    };
    let writer = match StoreWriter::open_or_create(store, plan.layout.clone())? {
        Opened::Writer(writer) => *writer,
        Opened::Complete(_) => return Ok(summary),
    };
    let start = Instant::now();
    // The store's rows may have another order than the plan's.
    let groups = groups_of(writer.layout(), options.batch_size, options.share);
    if resumed {
        check_stored(options.observer, &writer, &groups);
    }
    let progress = begin(options.observer, &writer, &groups);
    summary.already_complete = false;
    Run { plan, writer: &writer, lazy, options, groups: &groups, progress, bad: Vec::new() }
        .fill_and_finish(store, &mut summary)?;
    summary.seconds = start.elapsed().as_secs_f64();
    Ok(summary)
}

/// Looks for what would stop the work, before anything is written: a checkpoint that is refused leaves no empty store, and no finished one
/// incomplete; nor does a scan that cannot be read. Returns whether there is an unfinished store.
fn look_before<E, F>(plan: &Plan, store: &Path, lazy: &mut Lazy<E, F>) -> Result<bool>
where
    F: FnOnce() -> Result<Loaded<E>>,
{
    match survey(store, &plan.layout)? {
        Survey::New => lazy.get().map(|_| false),
        Survey::Grows(new) => {
            check_new_scans(plan, store, &new)?;
            lazy.get().map(|_| false)
        }
        Survey::Complete => Ok(false),
        Survey::Begun => Ok(true),
    }
}

/// Reads the scans by which a finished store would grow, as they will be read again later, before anything of the store is touched.
fn check_new_scans(plan: &Plan, store: &Path, new: &[CaseLayout]) -> Result<()> {
    let is_new = |entry: &&CaseEntry| new.iter().any(|case| (case.split, &case.case) == (entry.split, &entry.case));
    let bad = plan.source.cases().iter().filter(is_new);
    let bad: Vec<(String, ScanError)> =
        bad.filter_map(|entry| Some((entry.case.clone(), read(&plan.source, entry, &plan.layout).err()?))).collect();
    if bad.is_empty() { Ok(()) } else { Err(Error::BadNewScans { bad, total: new.len(), store: store.into() }) }
}

/// Reads a worker's slices that an earlier run has stored; what is damaged is made again.
fn check_stored(observer: &dyn Observer, writer: &StoreWriter, groups: &[GroupRange]) {
    let slices = groups.iter().flat_map(|group| group.rows.clone().map(|row| (group.split, row)));
    let stored: Vec<(Split, usize)> = slices.filter(|&(split, row)| writer.is_slice_done(split, row)).collect();
    if stored.is_empty() {
        return;
    }
    let progress = observer.begin(Phase::new("checking what is stored", Unit::Slices, stored.len() as u64));
    stored.par_iter().for_each(|&(split, row)| {
        writer.check_slice(split, row);
        progress.advance(1);
    });
}

/// An encoder that is loaded when it is first needed.
struct Lazy<E, F> {
    load: Option<F>,
    loaded: Option<Loaded<E>>,
}

impl<E, F: FnOnce() -> Result<Loaded<E>>> Lazy<E, F> {
    fn get(&mut self) -> Result<&Loaded<E>> {
        if let Some(load) = self.load.take() {
            self.loaded = Some(load()?);
        }
        self.loaded.as_ref().ok_or(Error::EncoderNotLoaded)
    }
}

/// One pass over what is missing.
struct Run<'a, E, F> {
    plan: &'a Plan,
    writer: &'a StoreWriter,
    lazy: Lazy<E, F>,
    options: &'a FillOptions<'a>,
    groups: &'a [GroupRange],
    progress: Arc<dyn Progress>,
    bad: Vec<(String, ScanError)>,
}

impl<E: Encode, F: FnOnce() -> Result<Loaded<E>>> Run<'_, E, F> {
    /// Makes all that is missing and finishes the store, unless other workers have something left to do.
    fn fill_and_finish(&mut self, store: &Path, summary: &mut Summary) -> Result<()> {
        let (total, done_before) = (summary.slices_total, num_done(self.writer));
        for pass in 1.. {
            let outcome = self.all();
            let bad = std::mem::take(&mut self.bad);
            let done = num_done(self.writer);
            let interrupted = |source: Error| Error::Interrupted { source: Box::new(source), store: store.into(), done, total };
            let Some(images_encoded) = outcome.map_err(interrupted)? else {
                return Err(Error::Stopped { store: store.into(), done, total });
            };
            if !bad.is_empty() {
                return Err(Error::BadScans { bad, total: self.plan.source.cases().len(), store: store.into() });
            }
            summary.images_encoded += images_encoded;
            summary.slices_written = done.saturating_sub(done_before);
            summary.complete = !self.options.share.is_part() || self.writer.missing()?.is_none();
            if !summary.complete {
                break;
            }
            match self.writer.finish() {
                // What was harmed since it was written is written again.
                Err(sam_ladder_cache::Error::Incomplete { .. }) if pass < PASSES => {}
                finished => return finished.map(drop).map_err(|e| interrupted(e.into())),
            }
        }
        Ok(())
    }

    /// Encodes and writes all that is missing; the number of images encoded, or `None` when it was stopped before.
    fn all(&mut self) -> Result<Option<usize>> {
        if !self.writer.has_decoder()? {
            self.writer.write_decoder(&self.lazy.get()?.decoder)?;
        }
        let (sender, receiver) = sync_channel(READ_AHEAD);
        let work = Work { source: &self.plan.source, writer: self.writer, groups: self.groups };
        let (to_write, encoded) = sync_channel(WRITE_BEHIND);
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || work.send_all(&sender));
            let (store, progress) = (self.writer, self.progress.clone());
            let writer = scope.spawn(move || write_all(store, &*progress, &encoded));
            let outcome = self.encode_all(receiver, to_write);
            // All that was encoded is written, whatever came after it. If the writer failed, its error is the reason and the encoder's
            // only a consequence.
            match writer.join() {
                Ok(written) => written?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
            let Some(images_encoded) = outcome? else { return Ok(None) };
            match reader.join() {
                Ok(outcome) => outcome?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
            Ok(Some(images_encoded))
        })
    }

    /// Encodes what comes and passes it on; the number of images, or `None` when it was stopped before.
    fn encode_all(&mut self, prepared: Receiver<Prepared>, to_write: SyncSender<Encoded>) -> Result<Option<usize>> {
        let mut images_encoded = 0;
        for prepared in prepared {
            if self.options.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let encoded = match prepared {
                Prepared::Group(group) => {
                    let (embeddings, count) = self.encode_group(&group)?;
                    images_encoded += count;
                    Encoded::Group(group, embeddings)
                }
                Prepared::CaseEnd(end) => Encoded::CaseEnd(end),
                Prepared::Note(note) => {
                    self.options.observer.message(&note);
                    continue;
                }
                Prepared::Bad { case, error } => {
                    self.options.observer.message(&format!("warning: case {case} is left out: {error}"));
                    self.bad.push((case, error));
                    continue;
                }
            };
            // A writer that hung up has failed, and says why itself.
            if to_write.send(encoded).is_err() {
                break;
            }
        }
        Ok(Some(images_encoded))
    }

    /// The embeddings that are wanted of a group, and of how many images.
    fn encode_group(&mut self, group: &Group) -> Result<(Vec<f32>, usize)> {
        let config = &self.writer.layout().attributes().config;
        let image_len = config.image_len();
        let embedding_len = EMBED_CHANNELS * config.grid_size().pow(2);
        let embeddings = self.encode(&group.to_encode(image_len), (config.image_size, image_len), embedding_len)?;
        let count = embeddings.len() / embedding_len;
        Ok((embeddings, count))
    }

    /// Embeddings of images, batch by batch.
    fn encode(&mut self, images: &[f32], (size, image_len): (usize, usize), embedding_len: usize) -> Result<Vec<f32>> {
        let mut embeddings = Vec::with_capacity(images.len() / image_len * embedding_len);
        for images in images.chunks(self.options.batch_size * image_len) {
            let batch = images.len() / image_len;
            let encoder = &self.lazy.get()?.encoder;
            let encoded = tracing::trace_span!("encode", batch).in_scope(|| encoder.encode(images, batch, size))?;
            if encoded.len() != batch * embedding_len {
                return Err(Error::EncoderShape { batch, expected: batch * embedding_len, found: encoded.len() });
            }
            embeddings.extend_from_slice(&encoded);
            self.progress.advance(batch as u64);
        }
        Ok(embeddings)
    }
}

/// What the encoding thread hands to the writing one.
enum Encoded {
    /// A group with the embeddings that are wanted of it.
    Group(Group, Vec<f32>),
    /// All slices of a case were handed over before this.
    CaseEnd(CaseEnd),
}

/// Writes all that comes, in its order, until the sender hangs up.
fn write_all(writer: &StoreWriter, progress: &dyn Progress, encoded: &Receiver<Encoded>) -> Result<()> {
    for encoded in encoded {
        match encoded {
            Encoded::Group(group, embeddings) => {
                write_group(writer, &group, &embeddings)?;
                progress.describe(&counted(num_done(writer), "slice"));
            }
            Encoded::CaseEnd(CaseEnd { split, scan, rows, mask }) => writer.write_case(split, &scan, &rows, &mask)?,
        }
    }
    Ok(())
}

fn write_group(writer: &StoreWriter, group: &Group, embeddings: &[f32]) -> Result<()> {
    let config = &writer.layout().attributes().config;
    let (image_len, label_len) = (config.image_len(), config.low_res_size().pow(2));
    let embedding_len = EMBED_CHANNELS * config.grid_size().pow(2);
    let (mut images, mut labels, mut encoded) = (&group.images[..], &group.labels[..], embeddings);
    for (row, wanted) in &group.rows {
        let tensors = SliceTensors {
            images: take(&mut images, wanted.variants.len() * image_len),
            labels: take(&mut labels, wanted.variants.len() * label_len),
            embeddings: take(&mut encoded, wanted.embeddings.len() * embedding_len),
        };
        let _span = tracing::trace_span!("write slice", row).entered();
        writer.write_wanted(group.split, *row, wanted, &tensors)?;
    }
    Ok(())
}

/// The next `len` values.
fn take<'a, T>(values: &mut &'a [T], len: usize) -> &'a [T] {
    let (head, tail) = values.split_at(len);
    *values = tail;
    head
}

/// Slices of both splits that are finished.
fn num_done(writer: &StoreWriter) -> usize {
    let done = |split| (0..writer.layout().num_slices(split)).filter(move |&row| writer.is_slice_done(split, row));
    Split::ALL.into_iter().map(|split| done(split).count()).sum()
}

/// Begins the phase of a worker's images, with those that are done.
fn begin(observer: &dyn Observer, writer: &StoreWriter, groups: &[GroupRange]) -> Arc<dyn Progress> {
    let (mut images, mut done) = (0, 0);
    for group in groups {
        let variants = writer.layout().num_variants(group.split);
        images += group.rows.len() * variants;
        done += group.rows.clone().filter(|&row| writer.is_slice_done(group.split, row)).count() * variants;
    }
    observer.begin(Phase { done: done as u64, ..Phase::new("reading", Unit::Images, images as u64) }).into()
}
