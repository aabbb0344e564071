//! A perceptron of two layers, whose hidden layer is kept as bfloat16, a part of its columns at a time.

use super::{COLUMNS, FactorFormat, Left, Line, ROWS, Right, STEP, lines, pack, with_lines};
use crate::cpu::with_scratch;
use crate::gelu::cpu::bias_gelu_rows;

/// Steps of an MLP's hidden layer at a time: with those of its input, a tile's lines fit a second-level cache.
const HIDDEN_STEPS: usize = 24;

/// `y += gelu(x·first + bias)·second`. The hidden layer is kept as bfloat16, a part of its columns at a time.
///
/// # Shapes
/// x `[rows, first.inner]`, a bias `[first.columns]`, y `[rows, second.columns]`
pub(crate) fn add_mlp<T: FactorFormat>((first, bias): (&Right, &[f32]), second: &Right, x: &[T], y: &mut [f32]) {
    let (rows, out) = (x.len() / first.inner, second.columns);
    assert!(x.len() == rows * first.inner && y.len() == rows * out, "rows of other widths than the layers'");
    assert!(bias.len() == first.columns && second.inner == first.columns, "layers of other widths");
    if rows == 0 {
        return;
    }
    let hidden_lines = lines(rows, (HIDDEN_STEPS * STEP).min(first.columns));
    with_lines(hidden_lines + lines(rows, first.inner), |scratch| {
        let (hidden, packed) = scratch.split_at_mut(hidden_lines);
        let left = first.pack_left((x, first.inner), rows, packed);
        let _tiles = first.tiles();
        for from in (0..second.steps()).step_by(HIDDEN_STEPS) {
            let steps = from..second.steps().min(from + HIDDEN_STEPS);
            let hidden = &mut hidden[..rows.div_ceil(ROWS) * steps.len() * ROWS];
            for step in steps.clone() {
                let columns = step * STEP..first.columns.min((step + 1) * STEP);
                // SAFETY: the tiles are configured; the hidden layer's lines are there.
                unsafe { first.hidden_step(left, columns, bias, (hidden, steps.len(), step - from)) };
            }
            for panel in (0..out.div_ceil(COLUMNS)).step_by(2) {
                let columns = (out - panel * COLUMNS).min(2 * COLUMNS);
                let target = (y.as_mut_ptr().wrapping_add(panel * COLUMNS), out);
                // SAFETY: `y` has `rows` rows of `out`.
                unsafe { second.two_panels(Left { lines: hidden, rows }, steps.clone(), panel, target, columns, true) };
            }
        }
    });
}

impl Right {
    /// One step of a hidden layer, `gelu(left·self + bias)` of up to 32 columns, as step `to.2` of `to.1` steps of a left factor.
    ///
    /// # Safety
    /// The result of [`Self::tiles`] is alive; the lines are there.
    unsafe fn hidden_step(&self, left: Left<'_>, columns: std::ops::Range<usize>, bias: &[f32], to: (&mut [Line], usize, usize)) {
        let (rows, width) = (left.rows, columns.len());
        with_scratch(rows * width, |strip| {
            // SAFETY: the strip has room; a strip of 32 columns is one step.
            unsafe {
                let target = (strip.as_mut_ptr(), width);
                self.two_panels(left, 0..self.steps(), columns.start / COLUMNS, target, width, false);
                bias_gelu(strip, &bias[columns]);
                pack::one_step(strip, width, rows, to);
            }
        });
    }
}

/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
unsafe fn bias_gelu(x: &mut [f32], bias: &[f32]) {
    bias_gelu_rows::<true>(x, bias);
}

#[cfg(test)]
mod tests {
    use super::super::{instructions, tests::each_kind};
    use super::*;
    use crate::matmul::Output;
    use crate::testing::values;

    #[test]
    fn the_mlp_is_its_two_products() {
        if instructions().is_none() {
            return;
        }
        for (rows, width, hidden) in [(1, 8, 24), (21, 48, 192), (50, 33, 70)] {
            let (x, bias) = (values(rows * width, 1), values(hidden, 2));
            let (w1, w2) = (values(hidden * width, 3), values(width * hidden, 4));
            let (first, second) = (Right::of_weight(&w1, hidden, width), Right::of_weight(&w2, width, hidden));
            for (first, second) in each_kind(&first).into_iter().zip(each_kind(&second)) {
                let mut want = values(rows * width, 5);
                let mut got = want.clone();
                let mut between = vec![0.0; rows * hidden];
                first.product(&x, rows, &mut between, Output::BiasGelu(&bias));
                second.product(&between, rows, &mut want, Output::Add);
                add_mlp((&first, &bias), &second, &x, &mut got);
                assert_eq!(got, want, "{rows}·{width}·{hidden}");
            }
        }
    }
}
