//! The training step as a CUDA graph: recorded once, then launched once per step.
//!
//! Batches of the largest size use the graph; others (an epoch's last) run without it. Before the graph is used, one step is taken both ways
//! from the same state and on the same batch; unless the results have the same bits, the run continues without the graph.

use super::step::{StepSettings, start_step};
use super::tensors::BatchTensors;
use crate::error::Result;
use crate::loss::LadderLoss;
use crate::model::LadderSam;
use crate::optimizer::Optimizer;
use candle_core::{DType, Device, Tensor, TensorId};
use sam_ladder_ops::device::{Graph, capture, copy_into, overwrite, prepare};
use sam_ladder_schemas::observer::Observer;
use std::sync::Arc;

/// Plain steps before the recording: they fill the caches that later steps use (algorithms, uploads, constants).
const WARM_UP: usize = 2;

/// Takes steps, through a graph if possible.
pub struct StepGraph {
    state: State,
    observer: Arc<dyn Observer>,
}

enum State {
    Warming(WarmUp),
    Captured(Captured),
    GivenUp,
}

/// Plain steps so far with batches of the largest size.
#[derive(Default)]
struct WarmUp {
    steps: usize,
    batch_size: usize,
    /// The tensors of the last of these batches.
    last: Option<Vec<TensorId>>,
}

/// A recorded step, and the memory through which the host exchanges numbers with it.
struct Captured {
    graph: Graph,
    /// Where it reads its batch.
    inputs: BatchTensors,
    /// Whether each batch comes in these tensors, and need not be copied there.
    in_place: bool,
    /// `[4]`: input of the optimizer, see [`Optimizer::moving`].
    moving: Tensor,
    /// `[3]`: total loss, cross-entropy, Dice loss.
    losses: Tensor,
}

impl StepGraph {
    /// For a run that starts or resumes; `observer` learns whether the graph is used.
    pub fn new(observer: Arc<dyn Observer>) -> Self {
        StepGraph { state: State::Warming(WarmUp::default()), observer }
    }

    /// As [`start_step`], on a GPU that no other thread uses. The next step may overwrite the losses.
    ///
    /// If the batches come in the same tensors each time, the graph reads them there. Otherwise each is copied.
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
        match &mut self.state {
            State::Captured(captured) if captured.fits(batch) => {
                optimizer.count_update();
                model.count_batch()?;
                captured.launch(optimizer, batch, settings.lr)
            }
            State::Warming(warm_up) if !warm_up.is_done(batch)? => {
                warm_up.count(batch)?;
                prepare(&batch.images.device().clone(), || start_step(model, optimizer, batch, settings))
            }
            State::Warming(warm_up) => {
                let in_place = warm_up.last == Some(batch.ids());
                let (losses, tried) = Captured::compared(model, optimizer, batch, settings, in_place)?;
                self.state = match tried {
                    Ok(captured) => {
                        self.observer.message("the training step is a CUDA graph; taken both ways, it has the same bits");
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

impl WarmUp {
    /// Whether the next step can be recorded on this batch.
    fn is_done(&self, batch: &BatchTensors) -> Result<bool> {
        Ok(self.steps >= WARM_UP && batch.images.dim(0)? == self.batch_size)
    }

    /// Counts a step; a larger batch than before starts again, a smaller one does not count.
    fn count(&mut self, batch: &BatchTensors) -> Result<()> {
        let size = batch.images.dim(0)?;
        if size > self.batch_size {
            *self = WarmUp { batch_size: size, ..Self::default() };
        }
        if size == self.batch_size {
            (self.steps, self.last) = (self.steps + 1, Some(batch.ids()));
        }
        Ok(())
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
        in_place: bool,
    ) -> Result<(Tensor, std::result::Result<Self, String>)> {
        let before = Copies::of(model, optimizer)?;
        let losses = start_step(model, optimizer, batch, settings)?;
        let after = Copies::of(model, optimizer)?;
        before.restore(model, optimizer)?;
        let through_graph = Self::record(model, optimizer, batch, settings, in_place)
            .and_then(|captured| Ok((captured.launch(optimizer, batch, settings.lr)?, captured)))
            .and_then(|(losses, captured)| Ok((losses, Copies::of(model, optimizer)?, captured)));
        after.restore(model, optimizer)?;
        let tried = match through_graph {
            Err(error) => Err(error.to_string()),
            Ok((by_graph, state, captured)) => {
                let [plain, other] = [&losses, &by_graph].map(Tensor::to_vec1::<f32>);
                agree(&plain?, &other?, after.differences(&state)?).map(|()| captured)
            }
        };
        Ok((losses, tried))
    }

    /// Records a step without executing it.
    fn record(
        model: &LadderSam,
        optimizer: &Optimizer,
        batch: &BatchTensors,
        settings: StepSettings<'_>,
        in_place: bool,
    ) -> Result<Self> {
        let device = batch.images.device().clone();
        let inputs = if in_place { batch.clone() } else { batch.copied()? };
        let moving = Tensor::zeros(4, DType::F32, &device)?;
        let losses = Tensor::zeros(3, DType::F32, &device)?;
        let graph = capture(&device, || device_step(model, optimizer, &inputs, settings.loss, &moving, &losses))?;
        Ok(Captured { graph, inputs, in_place, moving, losses })
    }

    fn fits(&self, batch: &BatchTensors) -> bool {
        if self.in_place {
            return self.inputs.ids() == batch.ids();
        }
        let same = |a: &Tensor, b: &Tensor| a.dims() == b.dims() && a.dtype() == b.dtype();
        self.inputs.parts().into_iter().zip(batch.parts()).all(|(input, part)| same(input, part))
    }

    /// Runs the device's part of the step that the optimizer counted last.
    fn launch(&self, optimizer: &Optimizer, batch: &BatchTensors, lr: f64) -> Result<Tensor> {
        let _step = tracing::trace_span!("step").entered();
        if !self.in_place {
            for (to, from) in self.inputs.parts().into_iter().zip(batch.parts()) {
                copy_into(to, &from.contiguous()?)?;
            }
        }
        overwrite(&self.moving, &optimizer.moving(lr)?)?;
        self.graph.launch()?;
        Ok(self.losses.clone())
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
    let pass = model.forward_train_uncounted(&batch.images, batch.of_sam())?;
    let loss = loss.of(&pass.low_res_logits, &batch.labels, model.config().num_classes)?;
    let gradients = pass.backward(loss.gradient)?;
    optimizer.update_in_graph(&gradients, &loss.numbers, moving)?;
    copy_into(losses, &loss.numbers)
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
            copy_into(to, from)?;
        }
        Ok(())
    }

    /// How many numbers differ from those of `other` in any bit, and how many there are.
    fn differences(&self, other: &Copies) -> Result<(usize, usize)> {
        let (mut different, mut all) = (0, 0);
        for (a, b) in self.0.iter().zip(&other.0) {
            let [a, b] = [a, b].map(|t| t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>());
            let (a, b) = (a?, b?);
            all += a.len();
            different += a.iter().zip(&b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        }
        Ok((different, all))
    }
}

/// Whether a step gave the same bits both ways; takes the losses, and how many of all numbers of the state differ.
fn agree(losses: &[f32], by_graph: &[f32], (different, all): (usize, usize)) -> std::result::Result<(), String> {
    if losses.iter().zip(by_graph).any(|(a, b)| a.to_bits() != b.to_bits()) {
        return Err(format!("a step's losses are {losses:?}, through the graph {by_graph:?}"));
    }
    if different > 0 {
        return Err(format!("after a step, {different} of {all} numbers of its state have other bits through the graph"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_agree_in_every_bit_or_not_at_all() {
        let losses = [1.5f32, 1.0, 0.75];
        assert!(agree(&losses, &losses, (0, 9)).is_ok());
        // A loss that is not a number ends the run elsewhere.
        assert!(agree(&[f32::NAN, 1.0, 0.75], &[f32::NAN, 1.0, 0.75], (0, 9)).is_ok());
        let next = f32::from_bits(losses[1].to_bits() + 1);
        let reason = agree(&losses, &[1.5, next, 0.75], (0, 9)).unwrap_err();
        assert!(reason.contains("losses are [1.5, 1.0, 0.75], through the graph [1.5, 1.0000001, 0.75]"), "{reason}");
        assert!(agree(&losses, &losses, (1, 9)).unwrap_err().contains("1 of 9 numbers"));
    }

    #[test]
    fn bits_are_counted_over_all_tensors() -> Result<()> {
        let of = |values: [f32; 2]| Tensor::new(&values, &Device::Cpu);
        let one = Copies(vec![of([1.0, 0.0])?, of([2.0, 3.0])?]);
        // -0 equals 0, but has another bit.
        let other = Copies(vec![of([1.0, -0.0])?, of([2.0, 3.5])?]);
        assert_eq!((one.differences(&one)?, one.differences(&other)?), ((0, 4), (2, 4)));
        Ok(())
    }

    #[test]
    fn the_largest_batches_are_recorded_after_two_steps() -> Result<()> {
        let batch = |size: usize| -> Result<BatchTensors> {
            let tensor = Tensor::zeros((size, 1), DType::F32, &Device::Cpu)?;
            Ok(BatchTensors { images: tensor.clone(), embeddings: tensor.clone(), labels: tensor, rungs: None })
        };
        let (small, large, other) = (batch(2)?, batch(3)?, batch(3)?);
        let mut warm_up = WarmUp::default();
        // A run that resumes at the last, smaller batch of an epoch records the whole ones.
        for (batch, done) in [(&small, false), (&large, false), (&small, false), (&other, false), (&large, true)] {
            assert_eq!(warm_up.is_done(batch)?, done);
            warm_up.count(batch)?;
        }
        assert!(!warm_up.is_done(&small)?);
        assert!(warm_up.last == Some(large.ids()) && large.ids() != other.ids());
        Ok(())
    }
}
