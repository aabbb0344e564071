//! Softmax over the rows of a matrix, in place.

use crate::cpu::simd::{exp, madd, max, multiversion, sum_by};

multiversion! {
    /// Softmax of every row of `cols` scores, in place; the largest is subtracted before the exponential.
    pub(super) fn softmax_rows(scores: &mut [f32], cols: usize) {
        for row in scores.chunks_exact_mut(cols.max(1)) {
            let largest = max(row);
            for score in row.iter_mut() {
                *score = exp::<FMA>(*score - largest);
            }
            let inverse_sum = 1.0 / sum_by(row, |v| v);
            for score in row.iter_mut() {
                *score *= inverse_sum;
            }
        }
    }
}

multiversion! {
    /// Backward of [`softmax_rows`]: replaces the probabilities' gradient in `grad` by that of the scores.
    pub(super) fn softmax_rows_backward(grad: &mut [f32], probabilities: &[f32], cols: usize) {
        for (grad, probabilities) in grad.chunks_exact_mut(cols.max(1)).zip(probabilities.chunks_exact(cols.max(1))) {
            let mut dot = [0f32; 16];
            for (grad, probabilities) in grad.chunks(16).zip(probabilities.chunks(16)) {
                for (i, (&grad, &p)) in grad.iter().zip(probabilities).enumerate() {
                    dot[i] = madd::<FMA>(grad, p, dot[i]);
                }
            }
            let dot = dot.iter().sum::<f32>();
            for (grad, &p) in grad.iter_mut().zip(probabilities) {
                *grad = p * (*grad - dot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_sum_to_one_and_follow_the_definition() {
        let mut scores: Vec<f32> = (0..3 * 37).map(|i| ((i * 7919) % 113) as f32 / 9.0 - 5.0).collect();
        let original = scores.clone();
        softmax_rows(&mut scores, 37);
        for (row, original) in scores.chunks(37).zip(original.chunks(37)) {
            let sum: f64 = original.iter().map(|&v| f64::from(v).exp()).sum();
            for (&p, &score) in row.iter().zip(original) {
                assert!((f64::from(p) - f64::from(score).exp() / sum).abs() < 2e-7);
            }
        }
        softmax_rows(&mut [], 37);
    }
}
