//! The optimizers' updates on a GPU, all variables in one launch.

use candle_core::{DType, Result, Tensor, bail};

use super::{Slot, UpdateRule};
use crate::device::{Arg, Gpu, Grid, Input};

const MODULE: &str = "optimizer";
/// Variables of one launch, as in the source.
const VARIABLES: usize = 80;
/// Elements of one block, as in the source.
const CHUNK: usize = 4096;
/// 32-bit numbers of the source's `Table` after its pointers: the lengths, the first blocks and one past the last, the formats, the count.
const SMALL: usize = 3 * VARIABLES + 2;
/// Words of the source's `Table`: four pointers per variable, then these numbers.
const TABLE_WORDS: usize = 4 * VARIABLES + SMALL / 2;

/// As [`super::update`].
pub(super) fn update(slots: &[Slot<'_>], rule: &UpdateRule, guard: Option<&Tensor>, moving: Option<&Tensor>) -> Result<()> {
    let Some(first) = slots.first() else { return Ok(()) };
    let gpu = Gpu::of(first.value);
    let (pointer, guarded) = match guard {
        Some(guard) => (Input::new(guard)?.pointer(), guard.elem_count()),
        None => (0, 0),
    };
    let moving = moving.map(Input::new).transpose()?.map_or(0, |moving| moving.pointer());
    let rule = words(rule);
    for slots in slots.chunks(VARIABLES) {
        let (table, blocks) = table(slots)?;
        let guard = [Arg::Pointer(pointer), Arg::Int(guarded as i32)];
        let args = [Arg::LongWords(&table), Arg::Words(&rule), guard[0], guard[1], Arg::Pointer(moving)];
        // SAFETY: the table's tensors have the lengths that it gives, `guard` as many numbers as it says, `moving` four: just checked.
        unsafe { gpu.launch(MODULE, "optimizer_step", Grid::blocks([blocks, 1, 1]), &args)? };
    }
    Ok(())
}

/// The source's `Table`, and how many blocks it takes.
fn table(slots: &[Slot<'_>]) -> Result<([u64; TABLE_WORDS], u32)> {
    let mut table = [0u64; TABLE_WORDS];
    let mut small = [0u32; SMALL];
    let mut blocks = 0;
    for (i, slot) in slots.iter().enumerate() {
        let tensors = [slot.value, slot.gradient, slot.first, slot.second.unwrap_or(slot.first)];
        for (part, tensor) in tensors.into_iter().enumerate() {
            table[part * VARIABLES + i] = Input::new(tensor)?.pointer();
        }
        let len = slot.value.elem_count();
        small[i] = len as u32;
        small[VARIABLES + i] = blocks;
        small[2 * VARIABLES + 1 + i] = match slot.gradient.dtype() {
            DType::F32 => 0,
            DType::BF16 => 1,
            DType::F16 => 2,
            other => bail!("optimizer: a gradient is {other:?}"),
        };
        blocks += len.div_ceil(CHUNK) as u32;
    }
    small[VARIABLES + slots.len()] = blocks;
    small[SMALL - 1] = slots.len() as u32;
    for (word, pair) in table[4 * VARIABLES..].iter_mut().zip(small.chunks_exact(2)) {
        *word = u64::from(pair[0]) | u64::from(pair[1]) << 32;
    }
    Ok((table, blocks))
}

/// The source's `Rule`.
fn words(rule: &UpdateRule) -> [u32; 11] {
    let UpdateRule { sgd, lr, keep, l2, step_size, correction2_sqrt, rest1, beta2, rest2, eps, momentum } = *rule;
    let numbers = [lr, keep, l2, step_size, correction2_sqrt, rest1, beta2, rest2, eps, momentum].map(f32::to_bits);
    std::array::from_fn(|i| if i == 0 { u32::from(!sgd) } else { numbers[i - 1] })
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use candle_core::{Result, Tensor};

    use super::super::{Slot, UpdateRule, update};
    use crate::testing::kernels::{FORMATS, on_device, to_cpu};
    use crate::testing::uniform;

    #[test]
    fn the_optimizers_update_all_variables_or_none() -> Result<()> {
        let adam = UpdateRule {
            sgd: false,
            lr: 1e-2,
            keep: 0.999,
            l2: 0.01,
            step_size: 0.1,
            correction2_sqrt: 0.05,
            rest1: 0.1,
            beta2: 0.999,
            rest2: 0.001,
            eps: 1e-8,
            momentum: 0.9,
        };
        // More variables than one launch takes, and some longer than a block.
        let lens: Vec<usize> = (0..90).map(|i| if i % 30 == 7 { 9000 } else { 1 + i * 3 }).collect();
        let sgd = UpdateRule { sgd: true, ..adam };
        // The last takes what changes from step to step from memory, and its launch has other numbers.
        for (rule, guard, in_memory) in
            [(adam, Some(0.5), false), (sgd, None, false), (adam, Some(f32::NAN), false), (adam, None, true)]
        {
            on_device(|device| {
                let make = |seed: usize, scale: f64| -> Result<Vec<Tensor>> {
                    lens.iter()
                        .enumerate()
                        .map(|(i, &n)| (uniform(&[n], (seed * 100 + i) as u64)? * scale)?.to_device(device)?.copy())
                        .collect()
                };
                let (values, gradients, firsts) = (make(1, 1.0)?, make(2, 1.0)?, make(3, 0.1)?);
                let gradients = gradients.iter().zip(FORMATS.iter().cycle()).map(|(gradient, &dtype)| gradient.to_dtype(dtype));
                let gradients = gradients.collect::<Result<Vec<_>>>()?;
                let seconds: Vec<Tensor> = make(4, 0.1)?.iter().map(Tensor::sqr).collect::<Result<_>>()?;
                let before: Vec<Vec<Vec<f32>>> = (0..lens.len())
                    .map(|i| {
                        [&values[i], &gradients[i], &firsts[i], &seconds[i]]
                            .map(|t| to_cpu(t)?.to_vec1::<f32>())
                            .into_iter()
                            .collect()
                    })
                    .collect::<Result<_>>()?;
                let slots: Vec<Slot<'_>> = (0..lens.len())
                    .map(|i| Slot {
                        value: &values[i],
                        gradient: &gradients[i],
                        first: &firsts[i],
                        second: (!rule.sgd).then_some(&seconds[i]),
                    })
                    .collect();
                let guard = guard.map(|g| Tensor::new(&[1.0f32, g], device)).transpose()?;
                let moving = Tensor::new(&rule.moving(), device)?;
                match in_memory {
                    true => {
                        update(&slots, &UpdateRule { lr: 9.0, keep: 9.0, step_size: 9.0, ..rule }, guard.as_ref(), Some(&moving))?
                    }
                    false => update(&slots, &rule, guard.as_ref(), None)?,
                }
                let frozen =
                    guard.as_ref().is_some_and(|g| to_cpu(g).and_then(|g| g.to_vec1::<f32>()).is_ok_and(|g| g[1].is_nan()));
                for (i, old) in before.iter().enumerate() {
                    let (value, first) = (to_cpu(&values[i])?.to_vec1::<f32>()?, to_cpu(&firsts[i])?.to_vec1::<f32>()?);
                    for j in 0..lens[i] {
                        let [v, g, m, s] = [0, 1, 2, 3].map(|part: usize| f64::from(old[part][j]));
                        let g = g + f64::from(rule.l2) * v;
                        let (want_m, want_v) = if frozen {
                            (m, v)
                        } else if rule.sgd {
                            let m = 0.9 * m + g;
                            (m, v - f64::from(rule.lr) * m)
                        } else {
                            let (m, s) = (m + 0.1 * (g - m), 0.999 * s + 0.001 * g * g);
                            (m, 0.999 * v - 0.1 * m / (s.sqrt() / 0.05 + 1e-8))
                        };
                        let close = |a: f32, b: f64| (f64::from(a) - b).abs() < 2e-5 * b.abs().max(1.0);
                        assert!(
                            close(value[j], want_v) && close(first[j], want_m),
                            "variable {i}, element {j}: {} {want_v}",
                            value[j]
                        );
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
