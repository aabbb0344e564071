//! Trains runs of trials on the store: those that draw the same batches together.

use super::folder::{Folder, can_resume};
use super::said_once::SaidOnce;
use super::{SweepArgs, train_args};
use crate::error::{Result, TrainError, guarded};
use crate::groups::Groups;
use crate::run::{
    BatchSource, Checkpoints, Control, DeviceItems, Report, Run, Sampler, StepKind, VariantDraws, open_run, parts_of,
    records_steps, reserve, train_group,
};
use rayon::prelude::*;
use sam_ladder_cache::{BatchParts, ReadMode, Reader, TrainingSplit};
use sam_ladder_ops::device::queues_work;
use sam_ladder_schemas::observer::{Observer, Progress};
use sam_ladder_schemas::sweep::{Domain, Objective, SweepConfig, SweepRecord};
use sam_ladder_schemas::train::{SliceOrder, TrainConfig};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// A run's state is written at the end of an epoch if the last one is this old, and whenever its trial waits or ends.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(60);

/// A trial of which one run is to be trained.
#[derive(Debug, Clone)]
pub(super) struct Task {
    /// Index of the trial.
    pub(super) trial: usize,
    /// The trial's id.
    pub(super) id: String,
    /// Its searched settings.
    pub(super) searched: Map<String, Value>,
    /// Its settings except seed and validation cases, which are the run's.
    pub(super) config: TrainConfig,
    /// Epochs that the run has afterwards.
    pub(super) until: u32,
    pub(super) progress: Option<Arc<dyn Progress>>,
}

/// Trains runs of trials.
pub(super) trait Trainer {
    /// Trains the run `run` (seed and fold) of each task's trial, and leaves its epochs in the run's folder. Returns the errors of those that
    /// failed.
    fn train(&mut self, run: (u64, u32), tasks: &[Task], stop: &AtomicBool) -> Vec<(usize, TrainError)>;
}

/// Trains on a store.
pub(super) struct StoreTrainer<'a> {
    args: &'a SweepArgs,
    store: &'a TrainingSplit,
    record: &'a SweepRecord,
    folder: Folder,
    reader: Arc<Reader>,
    /// The store's items in a GPU's memory, for all trials.
    items: Option<Arc<DeviceItems>>,
    /// Whether steps are recorded, and who learns what became of it, once for all trials.
    records: bool,
    said: Arc<dyn Observer>,
}

/// Runs that draw the same batches, with their trials' indices.
#[derive(Default)]
struct Group {
    trials: Vec<usize>,
    runs: Vec<Run>,
    /// Error that ended all of them: their batches could not be read.
    error: Option<TrainError>,
}

impl<'a> StoreTrainer<'a> {
    pub(super) fn new(args: &'a SweepArgs, store: &'a TrainingSplit, record: &'a SweepRecord) -> Result<Self> {
        let records = records_steps(&args.device, args.cuda_graph)?;
        let image_size = store.config().image_size;
        let parts = parts_of_any(&record.config);
        let largest = largest_steps(&record.config).iter().map(|config| reserve(config, image_size, records)).max();
        let resident = (&args.device, args.device_store, largest.unwrap_or(0));
        Ok(StoreTrainer {
            args,
            store,
            record,
            folder: Folder::new(&args.out),
            reader: Arc::new(store.reader_with(args.read_mode, parts)?),
            items: DeviceItems::load(
                &store.reader_with(ReadMode::Stream, parts)?,
                || all_items(store),
                resident,
                &*args.observer,
            )?,
            records,
            said: Arc::new(SaidOnce::new(args.observer.clone())),
        })
    }

    /// Opens a run of each task's trial, and groups those that draw the same batches; on a device that queues work each is its own group,
    /// since sharing would save nothing there. Also returns the errors of those that cannot be opened.
    fn open_groups(&self, run: (u64, u32), tasks: &[Task]) -> (Vec<Group>, Vec<(usize, TrainError)>) {
        let opened: Vec<Result<Run>> = tasks.par_iter().map(|task| guarded(|| self.open(task, run))).collect();
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        let mut errors = Vec::new();
        for (task, opened) in tasks.iter().zip(opened) {
            match opened {
                Err(error) => errors.push((task.trial, error)),
                Ok(opened) => {
                    let apart = if queues_work(&self.args.device) { format!(" {:09}", task.trial) } else { String::new() };
                    let group = groups.entry(group_key(&opened) + &apart).or_default();
                    group.trials.push(task.trial);
                    group.runs.push(opened);
                }
            }
        }
        (groups.into_values().collect(), errors)
    }

    /// The run of a task's trial, resumed if it has a state. One whose records are damaged is kept aside, and starts again.
    fn open(&self, task: &Task, run: (u64, u32)) -> Result<Run> {
        let folder = self.folder.run(&task.id, run.0, run.1);
        match self.try_open(task, run) {
            Err(error) if error.is_damage() && can_resume(&folder) => {
                let aside = self.folder.set_aside(&folder)?;
                let message = format!("{error}; the run is kept in {} and trained again", aside.display());
                self.args.observer.message(&message);
                self.try_open(task, run)
            }
            other => other,
        }
    }

    fn try_open(&self, task: &Task, (seed, fold): (u64, u32)) -> Result<Run> {
        let folder = self.folder.run(&task.id, seed, fold);
        let val_cases = self.record.folds[fold as usize - 1].clone();
        let config = TrainConfig { seed, val_cases, group_by: self.record.config.group_by.clone(), ..task.config.clone() };
        let groups = Some(Groups::recorded(&self.record.groups));
        let hd95 = self.record.config.objectives.contains(&Objective::Hd95).then(|| self.args.hd95.clone());
        let checkpoints = Checkpoints { every_steps: None, epochs_after: CHECKPOINT_AFTER, models: false };
        let mut opened = open_run(&train_args(self.args, &folder, config, groups), self.store, checkpoints, hd95)?;
        if opened.position().steps == 0 {
            opened.write_settings(&task.searched, &task.id)?;
        }
        let report = task.progress.as_ref().map_or(Report::Nothing, |progress| Report::Epochs(progress.clone()));
        Ok(opened.until(task.until).reporting(report))
    }
}

impl Trainer for StoreTrainer<'_> {
    fn train(&mut self, run: (u64, u32), tasks: &[Task], stop: &AtomicBool) -> Vec<(usize, TrainError)> {
        let (mut groups, mut errors) = self.open_groups(run, tasks);
        let control = Control::new(stop);
        let train = |group: &mut Group| {
            let mut steps = StepKind::new(self.records, &self.said);
            let source = BatchSource::new(self.reader.clone(), &self.args.device, self.items.clone());
            group.error = source.and_then(|mut source| train_group(&mut group.runs, &mut source, &mut steps, &control)).err();
        };
        if queues_work(&self.args.device) {
            // It works on one thing at a time anyway.
            groups.iter_mut().for_each(train);
        } else {
            std::thread::scope(|scope| {
                for group in &mut groups {
                    let train = &train;
                    scope.spawn(move || train(group));
                }
            });
        }
        for mut group in groups {
            let reason = group.error.as_ref().map(TrainError::to_string);
            for (trial, mut trained) in group.trials.into_iter().zip(group.runs) {
                let unfinished = reason.clone().filter(|_| !trained.is_finished());
                // The first one gets the error itself, the others its words.
                let unread = unfinished.map(|reason| group.error.take().unwrap_or(TrainError::BatchUnread(reason)));
                errors.extend(trained.take_error().or(unread).map(|error| (trial, error)));
            }
        }
        errors
    }
}

/// What a trial may take of the store. The others then read it, too, since all of a sweep have one reader.
pub(super) fn parts_of_any(config: &SweepConfig) -> BatchParts {
    largest_steps(config).iter().map(parts_of).fold(BatchParts::default(), BatchParts::union)
}

/// Number of resolutions at which trials may be validated.
pub(super) fn resolutions_of(config: &SweepConfig) -> usize {
    largest_steps(config).iter().map(|config| config.decoder.logits_stride()).collect::<BTreeSet<_>>().len()
}

/// Settings on which the memory of a step depends, in every combination that a trial may have.
fn largest_steps(config: &SweepConfig) -> Vec<TrainConfig> {
    let mut combinations = vec![Map::new()];
    for setting in &config.settings {
        if !["batch_size", "side_network", "precision", "decoder", "neighbours", "ladder"].contains(&setting.name.as_str()) {
            continue;
        }
        let values = match &setting.domain {
            Domain::Fixed(value) => vec![value.clone()],
            Domain::List(values) => values.clone(),
            Domain::Range { max, .. } => vec![Value::from(*max as u64)],
        };
        let with = |before: &Map<String, Value>, value: &Value| {
            let mut after = before.clone();
            after.insert(setting.name.clone(), value.clone());
            after
        };
        combinations = combinations.iter().flat_map(|before| values.iter().map(|value| with(before, value))).collect();
    }
    combinations.iter().filter_map(|settings| TrainConfig::with(settings).ok()).collect()
}

/// Every item that a trial may draw, the likeliest first.
fn all_items(store: &TrainingSplit) -> Vec<(u32, u32)> {
    let rows = store.slices().iter().map(|slice| slice.row).collect();
    let draws = VariantDraws::new(store.variants(), None, store.config().rotation_step);
    draws.map_or(Vec::new(), |draws| Sampler::new(rows, draws, SliceOrder::Sequential, 0).items())
}

/// Runs of one seed and fold with the same key will draw the same batches.
fn group_key(run: &Run) -> String {
    let TrainConfig { batch_size, order, augment, precision, sampling, neighbours, ladder, decoder, .. } = &run.setup().config;
    let cases = run.setup().trained_cases.join(" ");
    let position = run.position();
    let order = if *order == SliceOrder::Shuffled { "shuffled" } else { "sequential" };
    let at = format!("{} {}", position.epoch, position.batch);
    format!(
        "{at} {batch_size} {order} {augment:?} {precision:?} {sampling:?} {neighbours} {ladder:?} {} {cases}",
        decoder.logits_stride()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::sweep::parse_sweep;

    /// Both lists and ranges count, other settings do not.
    #[test]
    fn the_reserve_of_a_sweep_knows_its_largest_step() {
        let rest = "[search]\nmethod = \"random\"\n[validation]\nfolds = 2\n[budget]\ntrials = 4\n";
        let parse = |settings: &str| parse_sweep("s.toml", &format!("[settings]\n{settings}lr = [1e-3, 1e-4]\n{rest}")).unwrap();
        let config = parse("batch_size = { min = 8, max = 32 }\nside_network = [\"resnet18\", \"resnet50\"]\n");
        let found = largest_steps(&config);
        let sizes: Vec<(usize, &str)> = found.iter().map(|config| (config.batch_size, config.side_network.name())).collect();
        assert_eq!(sizes, [(32, "resnet18"), (32, "resnet50")]);
        assert_eq!(largest_steps(&parse("")), [TrainConfig::default()]);
    }
}
