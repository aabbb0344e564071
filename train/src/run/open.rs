//! Opens a run that starts or resumes, from its folder, the store and the settings.

use super::TrainArgs;
use super::checkpoint::{Position, ResumeState, read_info};
use super::ema::Ema;
use super::gpu::set_up;
use super::records::Records;
use super::resume::{Wanted, check_same_run, held_out_case, input_file, read_record, whole_path, write_record};
use super::sampler::{Sampler, VariantDraws, identity_index};
use super::slice_draws::SliceDraws;
use super::state::RunState;
use super::store_parts::{check_parts, parts_of};
use super::tensors::BatchShape;
use super::trained_cases::trained_cases;
use super::training_run::{Checkpoints, Run, RunSetup};
use super::validation::{Hd95, HeldOutSlices, check_cases, groups_of};
use crate::average::Average;
use crate::error::{Result, TrainError, io};
use crate::groups::Groups;
use crate::init::{InitSources, initial_weights};
use crate::lock::Lock;
use crate::loss::{LadderLoss, class_weights};
use crate::model::{LadderSam, ModelConfig, ModelWeights};
use crate::optimizer::Optimizer;
use candle_core::Tensor;
use sam_ladder_cache::TrainingSplit;
use sam_ladder_formats::atomic::{is_temporary_of, tidy, write_atomic};
use sam_ladder_formats::hash::sha256_hex;
use sam_ladder_formats::outputs::is_regular_file;
use sam_ladder_formats::rows::{read_rows, read_rows_with};
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::rungs::Rungs;
use sam_ladder_schemas::store::RUNG_PROJECTION;
use sam_ladder_schemas::tables::{EpochRow, RUNG_GATE, SliceRow, StepRow, ValueRange, VolumeRange};
use sam_ladder_schemas::train::{
    CHECKPOINT, EPOCHS_TABLE, InputFile, RESUME_STATE, RUN_CONFIG, RUN_LOCK, RUN_LOG, RunInputs, RunRecord, STEPS_TABLE,
};
use sam_ladder_schemas::train_choices::LadderKind;
use std::collections::BTreeMap;
use std::path::Path;

/// Opens a run that starts or resumes, ready for its next step.
pub(crate) fn open_run(args: &TrainArgs, store: &TrainingSplit, checkpoints: Checkpoints, hd95: Option<Hd95>) -> Result<Run> {
    args.config.validate()?;
    if store.config().unlabelled {
        return Err(TrainError::Unlabelled(args.store.clone()));
    }
    check_cases(store, &args.config.val_cases)?;
    let resumed = if args.resume { Some(read_record(&args.run)?) } else { None };
    let groups = args.groups.clone().map_or_else(|| groups_of(&args.config, resumed.as_ref(), store), Ok)?;
    groups.check_whole(&store.cases(), &args.config.val_cases)?;
    let precompute = store.config();
    let neighbours = args.config.neighbours > 0;
    check_parts(parts_of(&args.config), store)?;
    let rungs = store.config().stored_rungs().filter(|_| args.config.ladder == LadderKind::Gated);
    let logits_stride = args.config.decoder.logits_stride();
    let precision = set_up(&args.device, &args.config)?;
    let shape = BatchShape { precision, logits_stride, neighbours, rungs, ..BatchShape::of(precompute) };
    let draws = VariantDraws::new(store.variants(), args.config.augment, precompute.rotation_step)?;
    if neighbours && draws.move_slices_apart(store.variants()) {
        return Err(TrainError::NeighboursApart(args.store.clone()));
    }
    let trained_cases = trained_cases(store, &args.config)?;
    let slices: Vec<&SliceRow> = store.slices().iter().filter(|slice| trained_cases.contains(&slice.case)).collect();
    let slice_draws = SliceDraws::new(args.config.sampling, &slices, args.config.batch_size)?;
    let rows = slices.iter().map(|slice| slice.row).collect();
    let sampler = Sampler::new(rows, draws, args.config.order, args.config.seed).drawing(slice_draws);
    let loss = loss_of(args, &slices, store.config())?;
    let identity = identity_index(store.variants(), store.path())?;
    let validation = HeldOutSlices::new(store, &args.config.val_cases, identity, args.config.batch_size);
    let state = if args.resume {
        resume_run(args, store, shape, checkpoints)?
    } else {
        start_run(args, store, shape, checkpoints, &StartFacts { groups: &groups, trained_cases: &trained_cases })?
    };
    let (folder, config) = (args.run.clone(), args.config.clone());
    Run::new(RunSetup { folder, config, shape, trained_cases, sampler, loss, validation, hd95, checkpoints }, state)
}

/// The rungs' projection of the store, and its record, for a run with a ladder; `None` without one, and if rungs are the tokens as they are.
fn rung_projection(args: &TrainArgs, store: &TrainingSplit) -> Result<Option<(InputFile, Vec<u8>)>> {
    let wanted = args.config.ladder == LadderKind::Gated;
    let Some(bytes) = wanted.then(|| store.rung_projection()).transpose()?.flatten() else { return Ok(None) };
    let path = Some(whole_path(&args.store).join(RUNG_PROJECTION));
    Ok(Some((InputFile { name: RUNG_PROJECTION.into(), sha256: sha256_hex(&bytes), path }, bytes)))
}

/// The loss that the settings name.
///
/// # Errors
/// Class weights of another number than the classes.
fn loss_of(args: &TrainArgs, slices: &[&SliceRow], store: &PrecomputeConfig) -> Result<LadderLoss> {
    let weights = class_weights(&args.config.class_weights, slices);
    if let Some(found) = weights.as_ref().map(Vec::len).filter(|&found| found != store.num_classes()) {
        return Err(TrainError::ClassWeights { found, classes: store.num_classes() });
    }
    Ok(LadderLoss::of_run(&args.config, weights.as_deref(), store, &args.device)?)
}

/// What the start of a run records, in addition to its settings.
struct StartFacts<'a> {
    groups: &'a Groups,
    trained_cases: &'a [String],
}

/// The optimizer with what follows it: the averaged model of a run with `--ema`. `averages` are those of a run that resumes.
fn followed(
    args: &TrainArgs,
    model: &LadderSam,
    averages: Option<BTreeMap<String, Tensor>>,
) -> Result<(Optimizer, Option<(Ema, f64)>)> {
    let optimizer = Optimizer::new(args.config.optimizer, args.config.weight_decay, model.trainable())?;
    let decay = args.config.ema;
    if decay == 0.0 {
        return Ok((optimizer, None));
    }
    let ema = Ema::new(model, averages, &args.device)?;
    let average = Average::new(decay, ema.pairs(model)?)?;
    Ok((optimizer.averaging(Some(average)), Some((ema, decay))))
}

/// Configuration of the model that a run trains.
fn model_config(args: &TrainArgs, shape: BatchShape) -> ModelConfig {
    let of_run = ModelConfig::of_run(&args.config, shape.image_size, shape.num_classes, shape.rungs);
    ModelConfig { embed_channels: shape.embed_channels, ..of_run }
}

/// Makes the run directory. Its `config.json` is written last: a directory that has one can be resumed.
fn start_run(
    args: &TrainArgs,
    store: &TrainingSplit,
    shape: BatchShape,
    checkpoints: Checkpoints,
    facts: &StartFacts<'_>,
) -> Result<RunState> {
    refuse_existing(&args.run)?;
    let sources = InitSources {
        sam_decoder: store.decoder_path(),
        cnn_checkpoint: args.cnn_checkpoint.clone(),
        init: args.init.clone(),
        seed: args.config.seed,
    };
    let config = model_config(args, shape);
    let model = LadderSam::new(&config, &initial_weights(&config, &sources)?, &args.device)?;
    let (optimizer, ema) = followed(args, &model, None)?;
    let projection = rung_projection(args, store)?;
    let inputs = RunInputs {
        sam_decoder: input_file(&sources.sam_decoder)?,
        cnn_checkpoint: sources.cnn_checkpoint.as_deref().map(input_file).transpose()?,
        init: sources.init.as_deref().map(input_file).transpose()?,
        rung_projection: projection.as_ref().map(|(file, _)| file.clone()),
    };
    let cache_id = store.attributes().cache_id.clone();
    let is_trained_on = |case: &str| facts.trained_cases.iter().any(|trained| trained == case);
    let limited = !args.config.train_cases.is_empty() || args.config.train_fraction < 1.0;
    let record = RunRecord {
        program: args.program.clone(),
        cache_id: cache_id.clone(),
        store: store.config().clone(),
        image_size: shape.image_size,
        num_classes: shape.num_classes,
        config: args.config.clone(),
        inputs,
        groups: facts.groups.to_record(),
        training_values: ValueRange::of(store.scans()),
        training_volumes: VolumeRange::of(store.slices(), store.config().class_names.len(), is_trained_on),
        held_out: args.config.val_cases.iter().map(|case| held_out_case(store.attributes(), case)).collect(),
        trained_cases: if limited { facts.trained_cases.to_vec() } else { Vec::new() },
        stopped_early: None,
        store_path: Some(whole_path(&args.store)),
    };
    std::fs::create_dir_all(&args.run).map_err(io(&args.run))?;
    let lock = lock_run(args)?;
    // Another process may have started it since.
    refuse_existing(&args.run)?;
    tidy(&args.run)?;
    let position = Position { cache_id, steps: 0, epoch: 0, batch: 0, epoch_seconds: 0.0 };
    let records = Records::new(&args.run, shape.rungs.into_iter().flat_map(Rungs::blocks));
    let rung_projection = record.inputs.rung_projection.as_ref().map(|file| file.sha256.clone());
    let state = RunState { model, optimizer, ema, records, position, channels: shape.channels, rung_projection, _lock: lock };
    if checkpoints.models {
        if let Some((_, bytes)) = projection {
            write_atomic(&args.run.join(RUNG_PROJECTION), &bytes)?;
        }
        state.save(&args.run, true)?;
    }
    write_record(&args.run, &record)?;
    Ok(state)
}

/// Reads back a run's state, after checking that its settings and inputs are the same.
fn resume_run(args: &TrainArgs, store: &TrainingSplit, shape: BatchShape, checkpoints: Checkpoints) -> Result<RunState> {
    read_record(&args.run)?;
    let lock = lock_run(args)?;
    let mut record = read_record(&args.run)?;
    let wanted = Wanted {
        config: &args.config,
        store: store.attributes(),
        cnn_checkpoint: args.cnn_checkpoint.as_deref().map(input_file).transpose()?,
        init: args.init.as_deref().map(input_file).transpose()?,
        rung_projection: store.rung_projection_sha256(),
    };
    check_same_run(&args.run, &record, &wanted)?;
    tidy(&args.run)?;
    let path = args.run.join(RESUME_STATE);
    let ResumeState { position, model, optimizer: optimizer_state, averages } = ResumeState::load(&path)?;
    if position.cache_id != record.cache_id {
        let reason = format!("is of another run, its store is {}, expected {}", position.cache_id, record.cache_id);
        return Err(TrainError::RunDamaged { path, reason });
    }
    let blocks = shape.rungs.into_iter().flat_map(Rungs::blocks);
    let records = Records::resume(&args.run, blocks, (position.steps, position.epoch))?;
    let model = LadderSam::new(&model_config(args, shape), &ModelWeights(model), &args.device)?;
    let (mut optimizer, ema) = followed(args, &model, Some(averages))?;
    optimizer.load_state(&optimizer_state)?;
    let store_path = Some(whole_path(&args.store));
    if record.config.max_steps != args.config.max_steps || record.store_path != store_path {
        (record.config.max_steps, record.store_path) = (args.config.max_steps, store_path);
        write_record(&args.run, &record)?;
    }
    let rung_projection = record.inputs.rung_projection.as_ref().map(|file| file.sha256.clone());
    let state = RunState { model, optimizer, ema, records, position, channels: shape.channels, rung_projection, _lock: lock };
    // A run that was killed between the two files of its checkpoint has a model older than its state, and may have no step left that
    // would write another.
    let model = read_info(&args.run.join(CHECKPOINT)).ok().flatten();
    if checkpoints.models && model.is_none_or(|info| (info.steps, info.epochs) != (state.position.steps, state.position.epoch)) {
        state.save_model(&args.run.join(CHECKPOINT))?;
    }
    Ok(state)
}

/// Locks the run directory for this process.
fn lock_run(args: &TrainArgs) -> Result<Lock> {
    let Some(lock) = Lock::attempt(&args.run.join(RUN_LOCK))? else {
        return Err(TrainError::RunBusy(args.run.clone()));
    };
    lock.say_if_lacking(&args.run, &*args.observer);
    Ok(lock)
}

/// Refuses a directory that exists, unless it is empty or holds only what a start that was interrupted before its `config.json` leaves: the
/// first checkpoint, of no step, or its beginning.
fn refuse_existing(run: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(run) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io(run))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(io(run))?.file_name().to_string_lossy().into_owned();
        let begun = [STEPS_TABLE, EPOCHS_TABLE, RESUME_STATE, CHECKPOINT, RUNG_PROJECTION, RUN_LOCK, RUN_LOG];
        let aside = |of: &&str| is_temporary_of(&name, of);
        let is_known = begun.contains(&&*name) && is_regular_file(&run.join(&name));
        if !is_known && !begun.iter().any(aside) && !aside(&RUN_CONFIG) {
            return Err(TrainError::RunExists(run.to_path_buf()));
        }
        names.push(name);
    }
    let has = |name: &str| names.iter().any(|found| found == name);
    let of_no_step = |name: &str| match name {
        STEPS_TABLE => read_rows_with::<StepRow>(&run.join(name), RUNG_GATE).is_ok_and(|(rows, _)| rows.is_empty()),
        EPOCHS_TABLE => read_rows::<EpochRow>(&run.join(name)).is_ok_and(|rows| rows.is_empty()),
        RESUME_STATE => ResumeState::load(&run.join(name)).is_ok_and(|state| state.position.steps == 0),
        // It is written after the state.
        _ => has(RESUME_STATE) && read_info(&run.join(name)).ok().flatten().is_some_and(|info| info.steps == 0),
    };
    let begun = [STEPS_TABLE, EPOCHS_TABLE, RESUME_STATE, CHECKPOINT];
    if begun.into_iter().all(|name| !has(name) || of_no_step(name)) {
        return Ok(());
    }
    Err(TrainError::RunExists(run.to_path_buf()))
}
