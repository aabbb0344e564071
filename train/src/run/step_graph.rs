//! The training step as a CUDA graph: recorded once, then launched once per step.
//!
//! Batches of the first batch's size use the graph; others (an epoch's last) run without it. Before the graph is used, one step is taken
//! both ways from the same state and on the same batch; if the results differ, the run continues without the graph.

use super::step::{StepSettings, start_step};
use super::tensors::BatchTensors;
use crate::error::Result;
use crate::loss::LadderLoss;
use crate::model::LadderSam;
use crate::optimizer::Optimizer;
use candle_core::{DType, Tensor};
use sam_ladder_ops::device::{Graph, capture, prepare};
use sam_ladder_schemas::observer::Observer;
use std::sync::Arc;

/// Plain steps before the recording: they fill the caches that later steps use (algorithms, uploads, constants).
const WARM_UP: usize = 2;
/// Largest relative difference allowed between updates, of all tensors together and of each one. Libraries may sum in another order each
/// time; a step that reads or writes the wrong memory is completely wrong.
const MOST_DIFFERENT: f64 = 0.05;
const MOST_DIFFERENT_TENSOR: f64 = 0.5;
/// Largest relative difference allowed between losses.
const MOST_DIFFERENT_LOSS: f64 = 1e-2;

/// Takes steps, through a graph if possible.
pub struct StepGraph {
    state: State,
    observer: Arc<dyn Observer>,
}

enum State {
    /// Number of plain steps so far, and their batch size.
    Warming(usize, usize),
    Captured(Captured),
    GivenUp,
}

/// A recorded step, and the memory through which the host exchanges numbers with it.
struct Captured {
    graph: Graph,
    inputs: BatchTensors,
    /// `[4]`: input of the optimizer, see [`Optimizer::moving`].
    moving: Tensor,
    /// `[3]`: total loss, cross-entropy, Dice loss.
    losses: Tensor,
}

impl StepGraph {
    /// For a run that starts or resumes; `observer` learns whether the graph is used.
    pub fn new(observer: Arc<dyn Observer>) -> Self {
        StepGraph { state: State::Warming(0, 0), observer }
    }

    /// As [`start_step`], on a GPU that no other thread uses.
    ///
    /// # Errors
    /// As [`start_step`]. A step that cannot be recorded is not an error.
    pub fn step(
        &mut self,
        model: &LadderSam,
        optimizer: &mut Optimizer,
        batch: &BatchTensors,
        settings: StepSettings<'_>,
    ) -> Result<Tensor> {
        let count = batch.images.dim(0)?;
        match &mut self.state {
            State::Captured(captured) if captured.fits(batch) => {
                optimizer.count_update();
                model.count_batch()?;
                captured.launch(optimizer, batch, settings.lr)
            }
            State::Warming(steps, first) if *steps < WARM_UP => {
                if *steps == 0 || count == *first {
                    (*steps, *first) = (*steps + 1, count);
                }
                prepare(&batch.images.device().clone(), || start_step(model, optimizer, batch, settings))
            }
            State::Warming(_, first) if count == *first => {
                let (losses, tried) = Captured::compared(model, optimizer, batch, settings)?;
                self.state = match tried {
                    Ok(captured) => {
                        self.observer.message("the training step is a CUDA graph; one step taken both ways agrees");
                        State::Captured(captured)
                    }
                    Err(reason) => {
                        self.observer.message(&format!("no CUDA graph, training continues step by step: {reason}"));
                        State::GivenUp
                    }
                };
                Ok(losses)
            }
            _ => start_step(model, optimizer, batch, settings),
        }
    }
}

impl Captured {
    /// Takes a plain step, whose result is kept, and then the same step from the same state through a graph, for comparison. Returns the graph,
    /// or why there is none.
    fn compared(
        model: &LadderSam,
        optimizer: &mut Optimizer,
        batch: &BatchTensors,
        settings: StepSettings<'_>,
    ) -> Result<(Tensor, std::result::Result<Self, String>)> {
        let before = Copies::of(model, optimizer)?;
        let losses = start_step(model, optimizer, batch, settings)?;
        let after = Copies::of(model, optimizer)?;
        before.restore(model, optimizer)?;
        let through_graph = Self::record(model, optimizer, batch, settings)
            .and_then(|captured| Ok((captured.launch(optimizer, batch, settings.lr)?, captured)))
            .and_then(|(losses, captured)| Ok((losses, Copies::of(model, optimizer)?, captured)));
        after.restore(model, optimizer)?;
        let tried = match through_graph {
            Err(error) => Err(error.to_string()),
            Ok((by_graph, state, captured)) => {
                let [plain, other] = [&losses, &by_graph].map(Tensor::to_vec1::<f32>);
                let updates = after.differences(&before, &state)?;
                agree(&plain?, &other?, &updates).map(|()| captured)
            }
        };
        Ok((losses, tried))
    }

    /// Records a step without executing it.
    fn record(model: &LadderSam, optimizer: &Optimizer, batch: &BatchTensors, settings: StepSettings<'_>) -> Result<Self> {
        let device = batch.images.device().clone();
        let inputs = BatchTensors {
            images: batch.images.force_contiguous()?,
            embeddings: batch.embeddings.force_contiguous()?,
            labels: batch.labels.force_contiguous()?,
        };
        let moving = Tensor::zeros(4, DType::F32, &device)?;
        let losses = Tensor::zeros(3, DType::F32, &device)?;
        let graph = capture(&device, || device_step(model, optimizer, &inputs, settings.loss, &moving, &losses))?;
        Ok(Captured { graph, inputs, moving, losses })
    }

    fn fits(&self, batch: &BatchTensors) -> bool {
        let same = |a: &Tensor, b: &Tensor| a.dims() == b.dims() && a.dtype() == b.dtype();
        same(&self.inputs.images, &batch.images)
            && same(&self.inputs.embeddings, &batch.embeddings)
            && same(&self.inputs.labels, &batch.labels)
    }

    /// Runs the device's part of the step that the optimizer counted last.
    fn launch(&self, optimizer: &Optimizer, batch: &BatchTensors, lr: f64) -> Result<Tensor> {
        let _step = tracing::trace_span!("step").entered();
        let device = self.losses.device();
        for (to, from) in [
            (&self.inputs.images, &batch.images),
            (&self.inputs.embeddings, &batch.embeddings),
            (&self.inputs.labels, &batch.labels),
        ] {
            to.slice_set(&from.contiguous()?, 0, 0)?;
        }
        self.moving.slice_set(&Tensor::new(&optimizer.moving(lr)?, device)?, 0, 0)?;
        self.graph.launch()?;
        // Copied, because they are read later and the next launch overwrites them.
        Ok(self.losses.copy()?)
    }
}

/// The device's part of [`start_step`]; the losses go to `losses`.
fn device_step(
    model: &LadderSam,
    optimizer: &Optimizer,
    batch: &BatchTensors,
    loss: &LadderLoss,
    moving: &Tensor,
    losses: &Tensor,
) -> candle_core::Result<()> {
    let pass = model.forward_train_uncounted(&batch.images, &batch.embeddings)?;
    let loss = loss.of(&pass.low_res_logits, &batch.labels, model.config().num_classes)?;
    let gradients = pass.backward(loss.gradient)?;
    optimizer.update_in_graph(&gradients, &loss.numbers, moving)?;
    losses.slice_set(&loss.numbers, 0, 0)
}

/// Copies of all tensors that a step changes on the device.
struct Copies(Vec<Tensor>);

impl Copies {
    fn originals(model: &LadderSam, optimizer: &Optimizer) -> Vec<Tensor> {
        let mut originals = model.moving();
        originals.extend(optimizer.moments());
        originals
    }

    fn of(model: &LadderSam, optimizer: &Optimizer) -> Result<Self> {
        Ok(Copies(Self::originals(model, optimizer).iter().map(Tensor::copy).collect::<candle_core::Result<_>>()?))
    }

    fn restore(&self, model: &LadderSam, optimizer: &Optimizer) -> Result<()> {
        for (to, from) in Self::originals(model, optimizer).iter().zip(&self.0) {
            to.slice_set(from, 0, 0)?;
        }
        Ok(())
    }

    /// For each tensor, the sums of squares of its change since `before` and of its difference from `other`.
    fn differences(&self, before: &Copies, other: &Copies) -> Result<Vec<(f64, f64)>> {
        let squares = |a: &Tensor, b: &Tensor| -> Result<f64> {
            let difference = (a.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?;
            Ok(f64::from(difference.sqr()?.sum_all()?.to_scalar::<f32>()?))
        };
        let three = self.0.iter().zip(&before.0).zip(&other.0);
        three.map(|((after, before), other)| Ok((squares(after, before)?, squares(after, other)?))).collect()
    }
}

/// Whether a step gave the same result both ways; takes the losses, and for each tensor the sums of squares of its update and of the
/// difference.
fn agree(losses: &[f32], by_graph: &[f32], updates: &[(f64, f64)]) -> std::result::Result<(), String> {
    for (a, b) in losses.iter().zip(by_graph) {
        // Two NaN losses count as equal: they end the run elsewhere.
        if !((a - b).abs() <= MOST_DIFFERENT_LOSS as f32 * a.abs().max(1e-3) || (a.is_nan() && b.is_nan())) {
            return Err(format!("a step's losses are {losses:?}, through the graph {by_graph:?}"));
        }
    }
    let (update, difference) = updates.iter().fold((0.0, 0.0), |(a, b), (update, difference)| (a + update, b + difference));
    let of_all = (difference / f64::max(update, f64::MIN_POSITIVE)).sqrt();
    // The update of a tensor that hardly changes compared to the others may be only rounding.
    let moved = updates.iter().filter(|(own, _)| *own > 1e-8 * update);
    let of_one = moved.map(|(own, difference)| (difference / own).sqrt()).fold(0.0, f64::max);
    if of_all <= MOST_DIFFERENT && of_one <= MOST_DIFFERENT_TENSOR {
        return Ok(());
    }
    Err(format!("a step's update differs through the graph, by {of_all:.1e} of itself, of one tensor by {of_one:.1e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_agree_but_for_the_rounding_of_sums() {
        let losses = [1.5f32, 1.0, 0.75];
        let updates = [(1.0, 1e-8), (1e-3, 1e-9), (1e-12, 1e-12)];
        assert!(agree(&losses, &[1.5001, 1.0, 0.75], &updates).is_ok());
        let why = |by_graph: &[f32], updates: &[(f64, f64)]| agree(&losses, by_graph, updates).unwrap_err();
        assert!(why(&[1.6, 1.0, 0.75], &updates).contains("losses"));
        assert!(why(&[f32::NAN, 1.0, 0.75], &updates).contains("losses"));
        // No tensor was updated; and one of many was left out.
        assert!(why(&losses, &[(1.0, 1.0), (1e-3, 1e-3)]).contains("update"));
        assert!(why(&losses, &[(1.0, 1e-8), (1e-5, 1e-5)]).contains("one tensor"));
        assert!(why(&losses, &[(1.0, f64::NAN)]).contains("update"));
    }
}
