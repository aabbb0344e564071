//! What an epoch takes a run that has the machine to itself: the measure of what training beside one another saves.

use crate::error::Result;
use crate::init::{InitSources, initial_weights};
use crate::model::{LadderSam, ModelConfig};
use crate::optimizer::Optimizer;
use crate::run::training_run::RunPlan;
use crate::run::step::{StepSettings, batch_tensors, train_step};
use crate::run::{for_each_batch, sampler::Item};
use sam_ladder_cache::{ReadMode, TrainingSplit};
use std::ops::ControlFlow;
use std::time::Instant;

/// Batches that are timed, after one that is not.
const TIMED: usize = 3;

/// Seconds of an epoch with its validation, from a few steps of a model that is thrown away, which reads its batches from the store alone.
///
/// # Errors
/// Those of reading and of the tensor operations.
pub(crate) fn epoch_seconds(plan: &RunPlan, store: &TrainingSplit) -> Result<f64> {
    let config = ModelConfig::of_run(&plan.config, plan.geometry.image_size, plan.geometry.num_classes);
    let sources = InitSources { sam_decoder: store.decoder_path(), cnn_checkpoint: None, init: None, seed: plan.config.seed };
    let model = LadderSam::new(&config, &initial_weights(&config, &sources)?, &plan.device)?;
    let mut optimizer = Optimizer::new(plan.config.optimizer, plan.config.weight_decay, model.trainable())?;
    let items = plan.sampler.epoch(0);
    let batches: Vec<&[Item]> = items.chunks(plan.config.batch_size).collect();
    let settings = StepSettings { lambda: plan.config.lambda, lr: 1e-6 };
    let step = seconds_a_batch(&batches, plan, store, |tensors| train_step(&model, &mut optimizer, tensors, settings).map(drop))?;
    let mut seconds = step * batches.len() as f64;
    if let Some(validation) = &plan.validation {
        let batches = validation.batches();
        let pass = seconds_a_batch(&batches, plan, store, |tensors| {
            model.forward(&tensors.images, &tensors.embeddings)?;
            Ok(())
        })?;
        seconds += pass * batches.len() as f64;
    }
    Ok(seconds)
}

fn seconds_a_batch(
    batches: &[&[Item]],
    plan: &RunPlan,
    store: &TrainingSplit,
    mut work: impl FnMut(&crate::run::step::BatchTensors) -> Result<()>,
) -> Result<f64> {
    let reader = store.reader(ReadMode::Stream);
    // Where an epoch has few batches they come again; a short last one is left out.
    let whole: Vec<&[Item]> = batches.iter().copied().filter(|batch| batch.len() == batches[0].len()).collect();
    let timed: Vec<&[Item]> = whole.iter().copied().cycle().take(1 + TIMED).collect();
    let mut start = Instant::now();
    for_each_batch(&reader, &timed, |index, items, batch| {
        let tensors = batch_tensors(batch, items.len(), plan.geometry, &plan.device)?;
        work(&tensors)?;
        if index == 0 {
            start = Instant::now();
        }
        Ok(ControlFlow::Continue(()))
    })?;
    plan.device.synchronize()?;
    Ok(start.elapsed().as_secs_f64() / TIMED as f64)
}
