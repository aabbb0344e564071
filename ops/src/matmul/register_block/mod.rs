//! The register blocks of matrix products in float32, for AVX2 with FMA and for AVX-512: a few rows of a few panels of sixteen columns.
//!
//! A sum's terms are added in their order, one fused multiply-add each, whatever the block. So an element's bits do not depend on the processor's
//! instructions.

pub(super) mod avx2;
mod avx512;

/// Columns of a panel.
pub(crate) const COLUMNS: usize = 16;
/// Rows of a packed group.
pub(crate) const ROWS: usize = 6;

/// Whether the processor supports these kernels.
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Whether it supports the wider blocks, too.
pub(super) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
}

/// A factor read one element at a time: element (row, k) is at `row * row_stride + k * k_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) data: *const f32,
    pub(crate) row_stride: usize,
    pub(crate) k_stride: usize,
}

impl Left {
    fn at_row(self, row: usize) -> Self {
        Self { data: self.data.wrapping_add(row * self.row_stride), ..self }
    }
}

/// Panels of sixteen columns, `stride` apart; the rows of a panel follow one another.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    pub(crate) data: *const f32,
    pub(crate) stride: usize,
    pub(crate) count: usize,
}

impl Panels {
    /// At most `count` from `panel` on.
    pub(crate) fn part(self, panel: usize, count: usize) -> Self {
        Self { data: self.data.wrapping_add(panel * self.stride), count: count.min(self.count - panel), ..self }
    }

    /// The first `P` from `panel` on.
    fn at<const P: usize>(&self, panel: usize) -> [*const f32; P] {
        std::array::from_fn(|p| self.data.wrapping_add((panel + p) * self.stride))
    }
}

/// Destination of a block: rows `stride` apart, replaced or added to.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) data: *mut f32,
    pub(crate) stride: usize,
    pub(crate) accumulate: bool,
}

impl Target {
    fn at(self, row: usize, column: usize) -> Self {
        Self { data: self.data.wrapping_add(row * self.stride + column), ..self }
    }
}

/// `target[r][c] = Σ_k a(r, k)·b[k][c]` for all rows of `a` and all panels of `b`.
///
/// # Safety
/// The processor has AVX2 and FMA; all elements of both factors and of the target are there, and the target's belong to this thread.
pub(crate) unsafe fn product(k: usize, (a, rows): (Left, usize), b: Panels, target: Target) {
    // SAFETY: the caller's promise, and that AVX-512 is there where its blocks are called.
    unsafe {
        if !has_avx512() {
            for panel in 0..b.count {
                let [data] = b.at(panel);
                each_block(rows, ROWS, |row, n| avx2::rows(n, k, a.at_row(row), data, target.at(row, panel * COLUMNS)));
            }
            return;
        }
        for panel in (0..b.count).step_by(2) {
            let last = panel + 1 == b.count;
            each_block(rows, avx512::MOST_ROWS, |row, n| {
                let (a, target) = (a.at_row(row), target.at(row, panel * COLUMNS));
                if last {
                    avx512::rows::<1>(n, k, a, b.at(panel), target)
                } else {
                    avx512::rows::<2>(n, k, a, b.at(panel), target)
                }
            });
        }
    }
}

/// Cuts rows into blocks of at most `most`, of nearly equal sizes: calls `f` with the first row and the number of each.
fn each_block(rows: usize, most: usize, mut f: impl FnMut(usize, usize)) {
    let blocks = rows.div_ceil(most);
    for block in 0..blocks {
        let first = block * rows / blocks;
        f(first, (block + 1) * rows / blocks - first);
    }
}

/// `target[r][c] = Σ_k a[k][r]·b[offsets[k] + c]` for `groups` packed groups of six rows, `group` apart, and `columns` columns, a multiple of sixteen.
///
/// # Safety
/// As for [`product`], with `columns` elements of `b` from each offset on.
pub(crate) unsafe fn product_from_offsets(
    (a, group, groups): (*const f32, usize, usize),
    b: *const f32,
    offsets: &[usize],
    columns: usize,
    target: Target,
) {
    let wide = has_avx512();
    let (at_once, width) = if wide { (2, 2 * COLUMNS) } else { (1, COLUMNS) };
    for column in (0..columns).step_by(width) {
        let b = b.wrapping_add(column);
        for first in (0..groups).step_by(at_once) {
            let (a, target) = (a.wrapping_add(first * group), target.at(first * ROWS, column));
            let both = [a, a.wrapping_add(group)];
            // SAFETY: the caller's promise; AVX-512 is there if `wide` says so.
            unsafe {
                match (wide, groups - first >= 2, columns - column >= width) {
                    (false, ..) => avx2::block_from_offsets(a, b, offsets, target),
                    (true, true, true) => avx512::block_from_offsets::<2, 2>(both, b, offsets, target),
                    (true, true, false) => avx512::block_from_offsets::<2, 1>(both, b, offsets, target),
                    (true, false, true) => avx512::block_from_offsets::<1, 2>([a], b, offsets, target),
                    (true, false, false) => avx512::block_from_offsets::<1, 1>([a], b, offsets, target),
                }
            }
        }
    }
}

/// `target[r][c] = Σ_k a[offsets[r] + k]·b[k][c]` for groups of six rows and all panels of `b`.
///
/// # Safety
/// As for [`product`], with `k` elements of `a` from each offset on.
pub(crate) unsafe fn product_of_runs(k: usize, a: *const f32, groups: &[[usize; ROWS]], b: Panels, target: Target) {
    let wide = has_avx512();
    let at_once = if wide { avx512::MOST_PANELS } else { 1 };
    for panel in (0..b.count).step_by(at_once) {
        for (group, offsets) in groups.iter().enumerate() {
            let target = target.at(group * ROWS, panel * COLUMNS);
            // SAFETY: the caller's promise; AVX-512 is there if `wide` says so.
            unsafe {
                match b.count - panel {
                    _ if !wide => avx2::block_of_runs(k, a, offsets, b.at::<1>(panel)[0], target),
                    1 => avx512::block_of_runs::<1>(k, a, offsets, b.at(panel), target),
                    2 => avx512::block_of_runs::<2>(k, a, offsets, b.at(panel), target),
                    3 => avx512::block_of_runs::<3>(k, a, offsets, b.at(panel), target),
                    _ => avx512::block_of_runs::<4>(k, a, offsets, b.at(panel), target),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    /// By definition, a fused multiply-add per term.
    fn expected(
        k: usize,
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
        target: &[f32],
        at: (usize, usize),
    ) -> f32 {
        let (row, column) = at;
        (0..k).fold(target[row * 80 + column], |sum, k| a(row, k).mul_add(b(k, column), sum))
    }

    #[test]
    fn every_block_has_the_bits_of_the_definition() {
        if !available() {
            return;
        }
        let (k, start) = (37, values(30 * 80, 3));
        for rows in 1..=30 {
            for count in 1..=5 {
                let (a, b) = (values(rows * k, 1), values(count * k * COLUMNS, 2));
                let mut out = start.clone();
                let left = Left { data: a.as_ptr(), row_stride: k, k_stride: 1 };
                let panels = Panels { data: b.as_ptr(), stride: k * COLUMNS, count };
                // SAFETY: the factors have these elements, and `out` 30 rows of 80.
                unsafe { product(k, (left, rows), panels, Target { data: out.as_mut_ptr(), stride: 80, accumulate: true }) };
                for (at, got) in out.iter().enumerate() {
                    let (row, column) = (at / 80, at % 80);
                    let inside = row < rows && column < count * COLUMNS;
                    let right = |k: usize, c: usize| b[(c / COLUMNS * 37 + k) * COLUMNS + c % COLUMNS];
                    let want = if inside { expected(k, |r, k| a[r * 37 + k], right, &start, (row, column)) } else { start[at] };
                    assert_eq!(got.to_bits(), want.to_bits(), "{rows} rows, {count} panels: row {row}, column {column}");
                }
            }
        }
    }

    #[test]
    fn blocks_that_read_in_place_have_the_bits_of_the_definition() {
        if !available() {
            return;
        }
        let (k, start, source) = (29, values(30 * 80, 3), values(400, 4));
        let offsets: Vec<usize> = (0..k).map(|k| k * 7 % 53).collect();
        for groups in 1..=5 {
            for count in 1..=5 {
                let (rows, columns) = (groups * ROWS, count * COLUMNS);
                let (a, b) = (values(rows * k, 1), values(count * k * COLUMNS, 2));
                let run = |row: usize| row * 11 % 47;
                let runs: Vec<[usize; ROWS]> = (0..groups).map(|group| std::array::from_fn(|r| run(group * ROWS + r))).collect();
                let (mut out, mut of_runs) = (start.clone(), start.clone());
                let target = |out: &mut [f32]| Target { data: out.as_mut_ptr(), stride: 80, accumulate: true };
                // SAFETY: the factors have these elements, and the targets 30 rows of 80.
                unsafe {
                    product_from_offsets((a.as_ptr(), k * ROWS, groups), source.as_ptr(), &offsets, columns, target(&mut out));
                    let panels = Panels { data: b.as_ptr(), stride: k * COLUMNS, count };
                    product_of_runs(k, source.as_ptr(), &runs, panels, target(&mut of_runs));
                }
                for at in 0..start.len() {
                    let (row, column) = (at / 80, at % 80);
                    let inside = row < rows && column < columns;
                    let left = |r: usize, k: usize| a[(r / ROWS * 29 + k) * ROWS + r % ROWS];
                    let in_place = |k: usize, c: usize| source[offsets[k] + c];
                    let want = if inside { expected(k, left, in_place, &start, (row, column)) } else { start[at] };
                    assert_eq!(out[at].to_bits(), want.to_bits(), "offsets, {groups} groups, {count} panels: {row}, {column}");
                    let right = |k: usize, c: usize| b[(c / COLUMNS * 29 + k) * COLUMNS + c % COLUMNS];
                    let want =
                        if inside { expected(k, |r, k| source[run(r) + k], right, &start, (row, column)) } else { start[at] };
                    assert_eq!(of_runs[at].to_bits(), want.to_bits(), "runs, {groups} groups, {count} panels: {row}, {column}");
                }
            }
        }
    }
}
