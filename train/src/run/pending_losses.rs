//! Steps whose losses are still on the device. The host reads a GPU's some steps later, all together, so that it never waits within a step. The
//! records are still exact, and a step whose loss is not finite changes no variable (see [`sam_ladder_ops::update`]).

use super::step::StepLosses;
use crate::error::{Result, internal};
use crate::model::LadderSam;
use candle_core::Tensor;
use sam_ladder_ops::device::queues_work;
use sam_ladder_schemas::tables::StepRow;
use sam_ladder_schemas::train::Arm;

/// Number of steps after which the losses are read.
const READ_EVERY: usize = 50;

/// Steps in the order in which they were taken.
#[derive(Debug, Default)]
pub(super) struct PendingLosses(Vec<(TakenStep, Numbers)>);

/// What is known about a step before its losses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TakenStep {
    pub(super) step: u64,
    pub(super) epoch: u32,
    pub(super) lr: f64,
}

#[derive(Debug)]
enum Numbers {
    /// Losses, α and the gate.
    Known(StepLosses, f32, f32),
    /// `[4]`: the losses and α, on the GPU; `[5]` with the mean of a gate that is not one number.
    OnDevice(Tensor),
}

impl PendingLosses {
    /// Adds a step that was just taken, with its losses `[3]`.
    pub(super) fn push(&mut self, taken: TakenStep, losses: Tensor, model: &LadderSam) -> Result<()> {
        let numbers = if queues_work(losses.device()) {
            // `cat` copies, which is needed because the variables will change.
            Numbers::OnDevice(Tensor::cat(&[&losses, &model.gate_numbers()?.to_dtype(losses.dtype())?], 0)?)
        } else {
            Numbers::Known(StepLosses::read(&losses)?, model.alpha()?, model.gate()?)
        };
        self.0.push((taken, numbers));
        Ok(())
    }

    /// Whether the losses should be read now; on the CPU always.
    pub(super) fn is_due(&self) -> bool {
        self.0.len() >= READ_EVERY || matches!(self.0.last(), Some((_, Numbers::Known(..))))
    }

    /// Reads all losses in one copy: one row per step.
    pub(super) fn read(&mut self, arm: Arm) -> Result<Vec<StepRow>> {
        let on_device: Vec<&Tensor> = self
            .0
            .iter()
            .filter_map(|(_, numbers)| match numbers {
                Numbers::OnDevice(numbers) => Some(numbers),
                Numbers::Known(..) => None,
            })
            .collect();
        let mut copied =
            if on_device.is_empty() { Vec::new() } else { Tensor::stack(&on_device, 0)?.to_vec2::<f32>()? }.into_iter();
        let mut rows = Vec::with_capacity(self.0.len());
        for (TakenStep { step, epoch, lr }, numbers) in self.0.drain(..) {
            let (losses, alpha, gate) = match numbers {
                Numbers::Known(losses, alpha, gate) => (losses, alpha, gate),
                Numbers::OnDevice(_) => match copied.next().as_deref() {
                    Some(&[total, ce, dice, alpha]) => (StepLosses { total, ce, dice }, alpha, gate(arm, sigmoid(alpha))),
                    Some(&[total, ce, dice, alpha, mean]) => (StepLosses { total, ce, dice }, alpha, gate(arm, mean)),
                    other => return Err(internal(format!("a step's numbers are {other:?}, expected four or five"))),
                },
            };
            rows.push(StepRow { step, epoch, lr, loss: losses.total, ce: losses.ce, dice: losses.dice, alpha, gate });
        }
        Ok(rows)
    }
}

fn sigmoid(alpha: f32) -> f32 {
    1.0 / (1.0 + (-alpha).exp())
}

/// The weight of x_sam, as in [`LadderSam::gate`].
fn gate(arm: Arm, value: f32) -> f32 {
    match arm {
        Arm::Full => value,
        Arm::CnnOnly => 0.0,
        Arm::SamOnly => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn losses_on_the_device_are_read_together_and_in_order() -> Result<()> {
        let mut pending = PendingLosses::default();
        for step in 0..3u64 {
            let numbers = Tensor::new(&[1.0f32, 2.0, 3.0 + step as f32, 0.0], &Device::Cpu)?;
            pending.0.push((TakenStep { step, epoch: 0, lr: 0.1 }, Numbers::OnDevice(numbers)));
        }
        assert!(!pending.is_due());
        let losses = StepLosses { total: 9.0, ce: 8.0, dice: 7.0 };
        pending.0.push((TakenStep { step: 3, epoch: 0, lr: 0.1 }, Numbers::Known(losses, 1.0, 0.25)));
        assert!(pending.is_due());
        let rows = pending.read(Arm::Full)?;
        let found: Vec<(u64, f32, f32)> = rows.iter().map(|row| (row.step, row.dice, row.gate)).collect();
        assert_eq!(found, [(0, 3.0, 0.5), (1, 4.0, 0.5), (2, 5.0, 0.5), (3, 7.0, 0.25)]);
        assert!(pending.read(Arm::Full)?.is_empty());
        Ok(())
    }

    /// Of a gate that is not one number, the mean comes as a fifth number, which is not sigmoid(α).
    #[test]
    fn a_gate_that_is_not_one_number_has_its_own() -> Result<()> {
        for (arm, gate) in [(Arm::Full, 0.25), (Arm::CnnOnly, 0.0), (Arm::SamOnly, 1.0)] {
            let mut pending = PendingLosses::default();
            for step in 0..2u64 {
                let numbers = Tensor::new(&[1.0f32 + step as f32, 2.0, 3.0, -4.0, 0.25], &Device::Cpu)?;
                pending.0.push((TakenStep { step, epoch: 0, lr: 0.1 }, Numbers::OnDevice(numbers)));
            }
            let rows = pending.read(arm)?;
            let found: Vec<[f32; 5]> = rows.iter().map(|row| [row.loss, row.ce, row.dice, row.alpha, row.gate]).collect();
            assert_eq!(found, [[1.0, 2.0, 3.0, -4.0, gate], [2.0, 2.0, 3.0, -4.0, gate]]);
        }
        Ok(())
    }
}
