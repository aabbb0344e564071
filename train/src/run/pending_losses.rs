//! Steps whose numbers are still on the GPU. The host reads them some steps late, all at once, so that it never waits within a step; what is
//! recorded is exact all the same, and a step whose loss is not finite has left the variables alone (see [`sam_ladder_ops::optimizer::step`]).

use crate::error::Result;
use crate::model::LadderSam;
use crate::run::step::{StepLosses, StepNumbers};
use candle_core::Tensor;
use sam_ladder_schemas::train::Arm;

/// Steps after which their numbers are read.
const READ_EVERY: usize = 50;

/// What is known of a step before its losses are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Taken {
    pub(super) step: u64,
    pub(super) epoch: u32,
    pub(super) lr: f64,
}

/// A step with its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ReadStep {
    pub(super) taken: Taken,
    pub(super) losses: StepLosses,
    pub(super) alpha: f32,
    pub(super) gate: f32,
}

/// Steps in the order in which they were taken.
#[derive(Debug, Default)]
pub(super) struct Unread(Vec<(Taken, Waiting)>);

#[derive(Debug)]
enum Waiting {
    /// Losses, α and the gate.
    Known(StepLosses, f32, f32),
    /// `[4]`: the losses and α, on the GPU.
    OnDevice(Tensor),
}

impl Unread {
    /// Adds a step that was just taken.
    pub(super) fn push(&mut self, taken: Taken, numbers: StepNumbers, model: &LadderSam) -> Result<()> {
        let waiting = match numbers {
            StepNumbers::Read(losses) => Waiting::Known(losses, model.alpha()?, model.gate()?),
            StepNumbers::OnDevice(losses) => {
                let alpha = model.trainable().iter().find(|(name, var)| name == "sam.alpha" && var.elem_count() == 1);
                match alpha {
                    // `cat` copies: the variable goes on to change.
                    Some((_, alpha)) => {
                        let alpha = alpha.as_detached_tensor().flatten_all()?.to_dtype(losses.dtype())?;
                        Waiting::OnDevice(Tensor::cat(&[&losses, &alpha], 0)?)
                    }
                    // A gate of another kind says itself what it stands at.
                    None => Waiting::Known(StepLosses::read(&losses)?, model.alpha()?, model.gate()?),
                }
            }
        };
        self.0.push((taken, waiting));
        Ok(())
    }

    /// Whether the steps are to be read now: those of the CPU at once.
    pub(super) fn is_due(&self) -> bool {
        self.0.len() >= READ_EVERY || matches!(self.0.last(), Some((_, Waiting::Known(..))))
    }

    /// Reads all of them, in one copy.
    pub(super) fn read(&mut self, arm: Arm) -> Result<Vec<ReadStep>> {
        let on_device: Vec<&Tensor> = self
            .0
            .iter()
            .filter_map(|(_, waiting)| match waiting {
                Waiting::OnDevice(numbers) => Some(numbers),
                Waiting::Known(..) => None,
            })
            .collect();
        let mut rows =
            if on_device.is_empty() { Vec::new() } else { Tensor::stack(&on_device, 0)?.to_vec2::<f32>()? }.into_iter();
        let mut read = Vec::with_capacity(self.0.len());
        for (taken, waiting) in self.0.drain(..) {
            let (losses, alpha, gate) = match waiting {
                Waiting::Known(losses, alpha, gate) => (losses, alpha, gate),
                Waiting::OnDevice(_) => match rows.next().as_deref() {
                    Some(&[total, ce, dice, alpha]) => (StepLosses { total, ce, dice }, alpha, gate(arm, alpha)),
                    other => return Err(candle_core::Error::Msg(format!("a step's numbers are {other:?}, expected four")).into()),
                },
            };
            read.push(ReadStep { taken, losses, alpha, gate });
        }
        Ok(read)
    }
}

/// The weight that x_sam has, as [`LadderSam::gate`] says it.
fn gate(arm: Arm, alpha: f32) -> f32 {
    match arm {
        Arm::Full => 1.0 / (1.0 + (-alpha).exp()),
        Arm::CnnOnly => 0.0,
        Arm::SamOnly => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn numbers_on_the_device_are_read_together_and_in_order() -> Result<()> {
        let mut unread = Unread::default();
        for step in 0..3u64 {
            let numbers = Tensor::new(&[1.0f32, 2.0, 3.0 + step as f32, 0.0], &Device::Cpu)?;
            unread.0.push((Taken { step, epoch: 0, lr: 0.1 }, Waiting::OnDevice(numbers)));
        }
        assert!(!unread.is_due());
        let losses = StepLosses { total: 9.0, ce: 8.0, dice: 7.0 };
        unread.0.push((Taken { step: 3, epoch: 0, lr: 0.1 }, Waiting::Known(losses, 1.0, 0.25)));
        assert!(unread.is_due());
        let read = unread.read(Arm::Full)?;
        let told: Vec<(u64, f32, f32)> = read.iter().map(|r| (r.taken.step, r.losses.dice, r.gate)).collect();
        assert_eq!(told, [(0, 3.0, 0.5), (1, 4.0, 0.5), (2, 5.0, 0.5), (3, 7.0, 0.25)]);
        assert!(unread.read(Arm::Full)?.is_empty());
        Ok(())
    }
}
