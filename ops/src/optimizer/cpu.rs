//! The optimizers' updates on the CPU: one pass over a variable, its gradient and its moments.

use std::cell::Cell;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::{Slot, UpdateRule};
use crate::cpu::with_f32;

/// Elements per task.
const CHUNK: usize = 1 << 15;

/// As [`super::update`].
pub(super) fn update(slots: &[Slot<'_>], rule: &UpdateRule, guard: Option<&Tensor>, moving: Option<&Tensor>) -> Result<()> {
    if let Some(guard) = guard
        && guard.flatten_all()?.to_vec1::<f32>()?.iter().any(|number| !number.is_finite())
    {
        return Ok(());
    }
    let mut rule = *rule;
    if let Some(moving) = moving
        && let &[lr, keep, step_size, correction2_sqrt] = moving.to_vec1::<f32>()?.as_slice()
    {
        rule = UpdateRule { lr, keep, step_size, correction2_sqrt, ..rule };
    }
    for slot in slots {
        with_f32(&slot.gradient.to_dtype(DType::F32)?, "optimizer", |gradient| {
            with_mut(slot.value, |value| {
                with_mut(slot.first, |first| match slot.second {
                    Some(second) => with_mut(second, |second| {
                        adam(&rule, value, gradient, (first, second));
                        Ok(())
                    }),
                    None => {
                        sgd(&rule, value, gradient, first);
                        Ok(())
                    }
                })
            })
        })?;
    }
    Ok(())
}

fn adam(rule: &UpdateRule, value: &mut [f32], gradient: &[f32], (first, second): (&mut [f32], &mut [f32])) {
    let UpdateRule { keep, l2, step_size, correction2_sqrt, rest1, beta2, rest2, eps, .. } = *rule;
    let runs = value.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
    runs.zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK))).for_each(|((value, gradient), (first, second))| {
        for (((value, &gradient), first), second) in value.iter_mut().zip(gradient).zip(first).zip(second) {
            let gradient = gradient + l2 * *value;
            *first += rest1 * (gradient - *first);
            *second = beta2 * *second + rest2 * gradient * gradient;
            *value = keep * *value - step_size * (*first / (second.sqrt() / correction2_sqrt + eps));
        }
    });
}

fn sgd(rule: &UpdateRule, value: &mut [f32], gradient: &[f32], first: &mut [f32]) {
    let UpdateRule { lr, l2, momentum, .. } = *rule;
    let runs = value.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
    runs.zip(first.par_chunks_mut(CHUNK)).for_each(|((value, gradient), first)| {
        for ((value, &gradient), first) in value.iter_mut().zip(gradient).zip(first) {
            *first = momentum * *first + (gradient + l2 * *value);
            *value -= lr * *first;
        }
    });
}

/// Calls `f` with the mutable elements of a contiguous float32 tensor on the CPU.
fn with_mut(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    tensor.inplace_op1(&InPlace(Cell::new(Some(f))))
}

struct InPlace<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "optimizer"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match (storage, layout.contiguous_offsets(), self.0.take()) {
            (CpuStorage::F32(data), Some((start, end)), Some(f)) => f(&mut data[start..end]),
            _ => bail!("optimizer: expected a contiguous float32 tensor on the CPU, found {layout:?}"),
        }
    }
}
