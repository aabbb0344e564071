//! Filling a store: passes over what is missing, until nothing is or the user stops it.

use super::encode::Encode;
use super::lazy::{Lazy, Loaded};
use super::plan::Plan;
use super::prepare::read;
use super::rung_sample::Sampled;
use super::share::{GroupRange, Share, groups_of};
use super::space;
use super::stages::{Outcome, Pass};
use super::write::num_done;
use crate::error::{Error, Result};
use crate::rungs::RungMaps;
use crate::scans::{CaseEntry, ScanError};
use rayon::prelude::*;
use sam_ladder_cache::{CaseLayout, Opened, StoreLayout, StoreWriter, Survey, survey};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::observer::{Observer, Phase, Progress, Silent, Unit};
use sam_ladder_schemas::setting::Problem;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Passes over what is missing, if finished slices are found harmed at the end.
const PASSES: usize = 3;

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
    /// Those of them in which the encoder waited for images, after it had begun.
    pub seconds_waiting: f64,
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
    let mut lazy = Lazy::new(load);
    if let Some(warning) = space::check(plan, store)? {
        options.observer.message(&warning);
    }
    let Before { resumed, rungs } = look_before(plan, store, options, &mut lazy)?;
    let mut summary = Summary {
        already_complete: true,
        complete: true,
        slices_written: 0,
        slices_total: Split::ALL.into_iter().map(|split| plan.layout.num_slices(split)).sum(),
        images_encoded: 0,
        seconds: 0.0,
        seconds_waiting: 0.0,
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
    Run { plan, writer: &writer, lazy, options, groups: &groups, progress, rungs }.fill_and_finish(store, &mut summary)?;
    summary.seconds = start.elapsed().as_secs_f64();
    Ok(summary)
}

/// What was found before anything was written.
#[derive(Default)]
struct Before {
    /// Whether there is an unfinished store.
    resumed: bool,
    /// The rungs' maps of a new store, if they are made of its scans.
    rungs: Option<RungMaps>,
}

/// Looks for what would stop the work, before anything is written: a checkpoint that is refused leaves no empty store, and no finished one
/// incomplete; nor does a scan that cannot be read, if it has to be read first.
fn look_before<E: Encode, F>(plan: &Plan, store: &Path, options: &FillOptions, lazy: &mut Lazy<E, F>) -> Result<Before>
where
    F: FnOnce() -> Result<Loaded<E>>,
{
    match survey(store, &plan.layout)? {
        Survey::New => {
            let encoder = &lazy.get()?.encoder;
            let samples = plan.layout.attributes().config.samples_rungs() && plan.rungs.is_none();
            let rungs = samples.then(|| sampled(plan, &plan.layout, store, options, encoder)).transpose()?;
            Ok(Before { resumed: false, rungs })
        }
        Survey::Grows(new) => {
            check_new_scans(plan, store, &new)?;
            lazy.get()?;
            Ok(Before::default())
        }
        Survey::Complete => Ok(Before::default()),
        Survey::Begun => Ok(Before { resumed: true, rungs: None }),
    }
}

/// The rungs' maps, of the training slices that the layout names.
fn sampled<E: Encode>(plan: &Plan, layout: &StoreLayout, store: &Path, options: &FillOptions, encoder: &E) -> Result<RungMaps> {
    let sampled = Sampled { source: &plan.source, layout, stop: options.stop, observer: options.observer };
    let total = Split::ALL.into_iter().map(|split| layout.num_slices(split)).sum();
    sampled.maps(encoder)?.ok_or_else(|| Error::Stopped { store: store.into(), done: 0, total })
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

/// What it takes to make what is missing.
struct Run<'a, E, F> {
    plan: &'a Plan,
    writer: &'a StoreWriter,
    lazy: Lazy<E, F>,
    options: &'a FillOptions<'a>,
    groups: &'a [GroupRange],
    progress: Box<dyn Progress>,
    /// The rungs' maps, if they are made already and not written.
    rungs: Option<RungMaps>,
}

impl<E: Encode, F: FnOnce() -> Result<Loaded<E>>> Run<'_, E, F> {
    /// Makes all that is missing and finishes the store, unless other workers have something left to do.
    fn fill_and_finish(&mut self, store: &Path, summary: &mut Summary) -> Result<()> {
        let (total, done_before) = (summary.slices_total, num_done(self.writer));
        for pass in 1.. {
            let outcome = self.all();
            let done = num_done(self.writer);
            let interrupted = |source: Error| Error::Interrupted { source: Box::new(source), store: store.into(), done, total };
            let outcome = outcome.map_err(interrupted)?;
            if outcome.stopped {
                return Err(Error::Stopped { store: store.into(), done, total });
            }
            if !outcome.bad.is_empty() {
                return Err(Error::BadScans { bad: outcome.bad, total: self.plan.source.cases().len(), store: store.into() });
            }
            summary.images_encoded += outcome.images_encoded;
            summary.seconds_waiting += outcome.waited.as_secs_f64();
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

    /// Encodes and writes all that is missing.
    fn all(&mut self) -> Result<Outcome> {
        if !self.writer.has_decoder()? {
            self.writer.write_decoder(&self.lazy.get()?.decoder)?;
        }
        self.prepare_rungs()?;
        let pass = Pass {
            source: &self.plan.source,
            writer: self.writer,
            groups: self.groups,
            batch_size: self.options.batch_size,
            stop: self.options.stop,
            observer: self.options.observer,
            progress: &*self.progress,
        };
        pass.run(&mut self.lazy)
    }
}

impl<E: Encode, F: FnOnce() -> Result<Loaded<E>>> Run<'_, E, F> {
    /// Gives the encoder the rungs' maps: those that the store has, or those that it gets.
    fn prepare_rungs(&mut self) -> Result<()> {
        let layout = self.writer.layout();
        let config = &layout.attributes().config;
        if config.rungs.is_empty() {
            return Ok(());
        }
        let given = self.plan.rungs.as_ref();
        let maps = match (self.writer.rung_projection()?, given.cloned().or_else(|| RungMaps::without_tokens(config))) {
            (Some(bytes), _) => {
                let stored = RungMaps::from_safetensors(config, bytes)?;
                if given.is_some_and(|given| *given != stored) {
                    return Err(Error::OtherProjection(self.writer.path().into()));
                }
                stored
            }
            (None, maps) => {
                let made =
                    self.rungs.take().filter(|_| layout.attributes().rung_sample == self.plan.layout.attributes().rung_sample);
                let maps = match maps.or(made) {
                    Some(maps) => maps,
                    None => sampled(self.plan, layout, self.writer.path(), self.options, &self.lazy.get()?.encoder)?,
                };
                if config.has_rung_projection() {
                    self.writer.write_rung_projection(&maps.to_safetensors()?)?;
                }
                maps
            }
        };
        self.lazy.set_rungs(maps)
    }
}

/// Begins the phase of a worker's images, with those that are done.
fn begin(observer: &dyn Observer, writer: &StoreWriter, groups: &[GroupRange]) -> Box<dyn Progress> {
    let (mut images, mut done) = (0, 0);
    for group in groups {
        let variants = writer.layout().num_variants(group.split);
        images += group.rows.len() * variants;
        done += group.rows.clone().filter(|&row| writer.is_slice_done(group.split, row)).count() * variants;
    }
    observer.begin(Phase { done: done as u64, ..Phase::new("reading", Unit::Images, images as u64) })
}
