//! Steps whose losses are still on the device. The host reads a GPU's some steps later, all together, so that it never waits within a step. The
//! records are still exact, and a step whose loss is not finite changes no variable (see [`sam_ladder_ops::update`]).

use super::step::StepLosses;
use crate::error::{Result, internal};
use crate::model::LadderSam;
use candle_core::{DType, Tensor};
use sam_ladder_ops::device::{copy_into, queues_work};
use sam_ladder_schemas::rungs::Rungs;
use sam_ladder_schemas::tables::StepRow;
use sam_ladder_schemas::train::Arm;

/// Number of steps after which the losses are read.
const READ_EVERY: usize = 50;

/// Steps in the order in which they were taken.
#[derive(Debug, Default)]
pub(super) struct PendingLosses {
    steps: Vec<(TakenStep, Numbers)>,
    /// `[READ_EVERY, 4]` on a GPU: of each step in order its losses and α; `[READ_EVERY, 5]` with the mean of a gate that is not one number; and then
    /// α of each rung. The memory stays, so a step allocates nothing for them.
    on_device: Option<Tensor>,
    /// Number of rungs.
    rungs: usize,
}

/// A step whose numbers are known.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RecordedStep {
    pub(super) row: StepRow,
    /// The gate of each rung after the step; empty without a ladder.
    pub(super) rung_gates: Vec<f32>,
}

/// What is known about a step before its losses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TakenStep {
    pub(super) step: u64,
    pub(super) epoch: u32,
    pub(super) lr: f64,
}

#[derive(Debug)]
enum Numbers {
    /// Losses, α, the gate, and those of the rungs.
    Known(StepLosses, f32, f32, Vec<f32>),
    /// In the next row of the GPU's memory.
    OnDevice,
}

impl PendingLosses {
    /// Adds a step that was just taken, with its losses `[3]`, which are copied: the next step may overwrite them.
    pub(super) fn push(&mut self, taken: TakenStep, losses: &Tensor, model: &LadderSam) -> Result<()> {
        self.rungs = model.config().ladder.map_or(0, Rungs::count);
        if queues_work(losses.device()) {
            return self.keep(taken, losses, &model.gate_numbers()?);
        }
        self.steps.push((taken, Numbers::Known(StepLosses::read(losses)?, model.alpha()?, model.gate()?, model.rung_gates()?)));
        Ok(())
    }

    /// Adds a step whose losses `[3]` and [gate numbers](LadderSam::gate_numbers) stay on the device.
    fn keep(&mut self, taken: TakenStep, losses: &Tensor, gate: &[Tensor]) -> Result<()> {
        let numbers = || std::iter::once(losses).chain(gate);
        let width = numbers().map(Tensor::elem_count).sum::<usize>();
        let rows = match &mut self.on_device {
            Some(rows) => rows,
            none => none.insert(Tensor::zeros((READ_EVERY, width), DType::F32, losses.device())?),
        };
        let row = rows.get(self.steps.len())?;
        let mut at = 0;
        for numbers in numbers() {
            copy_into(&row.narrow(0, at, numbers.elem_count())?, numbers)?;
            at += numbers.elem_count();
        }
        self.steps.push((taken, Numbers::OnDevice));
        Ok(())
    }

    /// Whether the losses should be read now; on the CPU always.
    pub(super) fn is_due(&self) -> bool {
        self.steps.len() >= READ_EVERY || matches!(self.steps.last(), Some((_, Numbers::Known(..))))
    }

    /// Reads all losses in one copy: one row per step.
    pub(super) fn read(&mut self, arm: Arm) -> Result<Vec<RecordedStep>> {
        let copied = match &self.on_device {
            Some(rows) if !self.steps.is_empty() => rows.narrow(0, 0, self.steps.len())?.to_vec2::<f32>()?,
            _ => Vec::new(),
        };
        let mut recorded = Vec::with_capacity(self.steps.len());
        for (index, (TakenStep { step, epoch, lr }, numbers)) in self.steps.drain(..).enumerate() {
            let (losses, alpha, gate, rung_gates) = match numbers {
                Numbers::Known(losses, alpha, gate, rung_gates) => (losses, alpha, gate, rung_gates),
                Numbers::OnDevice => {
                    let row = copied.get(index).map_or(&[][..], Vec::as_slice);
                    let (numbers, alphas) = row.split_at(row.len().saturating_sub(self.rungs));
                    let rung_gates = alphas.iter().map(|&alpha| sigmoid(alpha)).collect();
                    match numbers {
                        &[total, ce, dice, alpha] => {
                            (StepLosses { total, ce, dice }, alpha, gate(arm, sigmoid(alpha)), rung_gates)
                        }
                        &[total, ce, dice, alpha, mean] => (StepLosses { total, ce, dice }, alpha, gate(arm, mean), rung_gates),
                        other => return Err(internal(format!("a step's numbers are {other:?}, expected four or five"))),
                    }
                }
            };
            let row = StepRow { step, epoch, lr, loss: losses.total, ce: losses.ce, dice: losses.dice, alpha, gate };
            recorded.push(RecordedStep { row, rung_gates });
        }
        Ok(recorded)
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

    fn taken(step: u64) -> TakenStep {
        TakenStep { step, epoch: 0, lr: 0.1 }
    }

    /// The memory of the losses is used again by the next ones.
    #[test]
    fn losses_on_the_device_are_read_together_and_in_order() -> Result<()> {
        let mut pending = PendingLosses::default();
        let losses = Tensor::zeros(3, DType::F32, &Device::Cpu)?;
        for round in [0u64, 10] {
            for step in round..round + 3 {
                copy_into(&losses, &Tensor::new(&[1.0f32, 2.0, 3.0 + step as f32], &Device::Cpu)?)?;
                pending.keep(taken(step), &losses, &[Tensor::new(&[0f32], &Device::Cpu)?])?;
            }
            assert!(!pending.is_due());
            let known = StepLosses { total: 9.0, ce: 8.0, dice: 7.0 };
            pending.steps.push((taken(round + 3), Numbers::Known(known, 1.0, 0.25, Vec::new())));
            assert!(pending.is_due());
            let rows = pending.read(Arm::Full)?;
            let found: Vec<(u64, f32, f32)> =
                rows.iter().map(|RecordedStep { row, .. }| (row.step, row.dice, row.gate)).collect();
            let dice = 3.0 + round as f32;
            let expected = [(0, dice, 0.5), (1, dice + 1.0, 0.5), (2, dice + 2.0, 0.5), (3, 7.0, 0.25)];
            assert_eq!(found, expected.map(|(step, dice, gate)| (round + step, dice, gate)));
            assert!(pending.read(Arm::Full)?.is_empty());
        }
        Ok(())
    }

    /// Of a gate that is not one number, the mean comes as a fifth number, which is not sigmoid(α).
    #[test]
    fn a_gate_that_is_not_one_number_has_its_own() -> Result<()> {
        for (arm, gate) in [(Arm::Full, 0.25), (Arm::CnnOnly, 0.0), (Arm::SamOnly, 1.0)] {
            let mut pending = PendingLosses::default();
            for step in 0..2u64 {
                let losses = Tensor::new(&[1.0f32 + step as f32, 2.0, 3.0], &Device::Cpu)?;
                pending.keep(taken(step), &losses, &[Tensor::new(&[-4.0f32, 0.25], &Device::Cpu)?])?;
            }
            let rows = pending.read(arm)?;
            let numbers = |RecordedStep { row, .. }: &RecordedStep| [row.loss, row.ce, row.dice, row.alpha, row.gate];
            let found: Vec<[f32; 5]> = rows.iter().map(numbers).collect();
            assert_eq!(found, [[1.0, 2.0, 3.0, -4.0, gate], [2.0, 2.0, 3.0, -4.0, gate]]);
        }
        Ok(())
    }

    /// α of the rungs comes last, after one number of the gate or two.
    #[test]
    fn the_gates_of_rungs_come_last() -> Result<()> {
        for (numbers, gate) in [(vec![0f32, 1.0, -1.0], 0.5), (vec![-4.0, 0.25, 1.0, -1.0], 0.25)] {
            let mut pending = PendingLosses { rungs: 2, ..PendingLosses::default() };
            let numbers = Tensor::new(numbers, &Device::Cpu)?;
            pending.keep(taken(0), &Tensor::new(&[1.0f32, 2.0, 3.0], &Device::Cpu)?, &[numbers])?;
            let rows = pending.read(Arm::Full)?;
            assert_eq!((rows[0].row.dice, rows[0].row.gate), (3.0, gate));
            // σ(1) and σ(-1).
            let [first, second] = rows[0].rung_gates[..] else { panic!("{rows:?}") };
            assert!((first - 0.731_058_6).abs() < 1e-6 && (second - 0.268_941_4).abs() < 1e-6, "{rows:?}");
        }
        Ok(())
    }
}
