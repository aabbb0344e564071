//! Launches `optimizer.cu`.

use candle_core::{Result, Tensor, bail};

use crate::device::{Arg, Gpu, Grid, Input};
use crate::optimizer::{Slot, UpdateRule};

const MODULE: &str = "optimizer";
/// Variables of one launch, as in the source.
const VARIABLES: usize = 80;
/// Elements of one block, as in the source.
const CHUNK: usize = 4096;
/// Words of the source's `Table`: four pointers a variable, then its length, the first blocks and one more, and the count.
const TABLE_WORDS: usize = 4 * VARIABLES + (VARIABLES + VARIABLES + 1).div_ceil(2);

/// As [`crate::optimizer::step`].
pub(crate) fn step(slots: &[Slot<'_>], rule: &UpdateRule, guard: Option<&Tensor>, moving: Option<&Tensor>) -> Result<()> {
    let Some(first) = slots.first() else { return Ok(()) };
    let gpu = Gpu::of(first.value);
    let (pointer, guarded) = match guard {
        Some(guard) => (Input::new(guard)?.pointer(), guard.elem_count()),
        None => (0, 0),
    };
    let moving = moving.map(Input::new).transpose()?.map_or(0, |moving| moving.pointer());
    for slots in slots.chunks(VARIABLES) {
        let mut table = [0u64; TABLE_WORDS];
        // Behind the pointers, 32-bit numbers: the lengths, the first block of each variable, one past the last, the count.
        let mut small = [0u32; 2 * VARIABLES + 2];
        let mut blocks = 0;
        for (i, slot) in slots.iter().enumerate() {
            let len = slot.value.elem_count();
            if slot.gradient.elem_count() != len || slot.first.elem_count() != len {
                bail!(
                    "optimizer: variable, gradient and moments of {len}, {} and {} elements",
                    slot.gradient.elem_count(),
                    slot.first.elem_count()
                );
            }
            for (part, tensor) in [slot.value, slot.gradient, slot.first, slot.second].into_iter().enumerate() {
                table[part * VARIABLES + i] = Input::new(tensor)?.pointer();
            }
            small[i] = len as u32;
            small[VARIABLES + i] = blocks;
            blocks += len.div_ceil(CHUNK) as u32;
        }
        small[VARIABLES + slots.len()] = blocks;
        small[2 * VARIABLES + 1] = slots.len() as u32;
        for (word, pair) in table[4 * VARIABLES..].iter_mut().zip(small.chunks_exact(2)) {
            *word = u64::from(pair[0]) | u64::from(pair[1]) << 32;
        }
        let guard = [Arg::Pointer(pointer), Arg::Int(guarded as i32)];
        let args = [Arg::Table(&table), Arg::Rule(rule.words()), guard[0], guard[1], Arg::Pointer(moving)];
        gpu.launch(MODULE, "optimizer_step", Grid::blocks([blocks, 1, 1]), &args)?;
    }
    Ok(())
}
