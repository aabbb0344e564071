//! Statistics of scores: spread, intervals over cases, and tests between two evaluations of the same cases.

mod bootstrap;
mod permutation;
mod wilcoxon;

pub(crate) use bootstrap::FEWEST_CASES;
pub use bootstrap::{Interval, Resampling};
pub use permutation::permutation_test;
pub use wilcoxon::{SignedRank, wilcoxon_signed_rank};

/// Mean of the values; `None` if there are none.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.into_iter().fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// Standard deviation of the values by n - 1; `None` if there are fewer than two.
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    let centre = mean(values.iter().copied())?;
    let squares: f64 = values.iter().map(|value| (value - centre).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// Median of the values, of an even number the mean of the middle two; `None` if there are none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => Some(sorted[middle]),
        _ => Some((sorted.get(middle.checked_sub(1)?)? + sorted[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_deviation() {
        assert_eq!((mean([]), mean([1.0, 2.0])), (None, Some(1.5)));
        // numpy.std([2, 4, 4, 4, 5, 5, 7, 9], ddof=1) is 2.138089935299395.
        let deviation = standard_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert!((deviation - 2.138_089_935_299_395).abs() < 1e-15);
        assert_eq!((standard_deviation(&[]), standard_deviation(&[3.0])), (None, None));
    }

    #[test]
    fn a_median_is_the_middle_of_the_sorted_values() {
        assert_eq!([&[][..], &[3.0], &[9.0, 1.0], &[9.0, 1.0, 2.0]].map(median), [None, Some(3.0), Some(5.0), Some(2.0)]);
    }
}
