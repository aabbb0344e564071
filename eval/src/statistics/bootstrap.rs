//! Bootstrap intervals over cases (Efron and Tibshirani 1993, chapter 13: percentile intervals).

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Resamples for an interval.
const RESAMPLES: usize = 10_000;
/// Seed of the resamples: the same cases give the same interval.
const SEED: u64 = 0;
/// Share of the resamples' values within an interval.
const COVERAGE: f64 = 0.95;

/// Fewest cases of an interval: five draw so few different means that their percentiles say nothing.
pub(crate) const FEWEST_CASES: usize = 6;

/// Ends of an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Draws of all cases with replacement. Every statistic over the same number of cases gets the same draws, so that organs are resampled
/// together.
#[derive(Debug, Clone)]
pub struct Resampling {
    cases: usize,
    draws: Vec<u32>,
}

impl Resampling {
    /// 10 000 draws of `cases` cases, the same every time.
    pub fn new(cases: usize) -> Resampling {
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let draws = (0..RESAMPLES * cases).map(|_| rng.random_range(0..cases as u32)).collect();
        Resampling { cases, draws }
    }

    /// The 95 % percentile interval of a statistic, which receives each draw's cases and may be undefined. `None` if there are fewer than six
    /// cases, or the statistic is undefined in a tenth of the draws or more.
    pub fn interval(&self, mut statistic: impl FnMut(&[u32]) -> Option<f64>) -> Option<Interval> {
        if self.cases < FEWEST_CASES {
            return None;
        }
        let mut values: Vec<f64> = self.draws.chunks_exact(self.cases).filter_map(&mut statistic).collect();
        (values.len() > RESAMPLES * 9 / 10).then(|| percentile_interval(&mut values))
    }
}

/// The middle 95 % of the values, by numpy's linear interpolation. Needs at least one value, and sorts them.
fn percentile_interval(values: &mut [f64]) -> Interval {
    values.sort_unstable_by(f64::total_cmp);
    let quantile = |share: f64| {
        let position = share * (values.len() - 1) as f64;
        let (index, between) = (position as usize, position.fract());
        values[index] + (values[(index + 1).min(values.len() - 1)] - values[index]) * between
    };
    Interval { low: quantile((1.0 - COVERAGE) / 2.0), high: quantile((1.0 + COVERAGE) / 2.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_of(values: &[f64]) -> Option<Interval> {
        let mean = |draw: &[u32]| Some(draw.iter().map(|&case| values[case as usize]).sum::<f64>() / draw.len() as f64);
        Resampling::new(values.len()).interval(mean)
    }

    #[test]
    fn intervals_repeat_and_hold_the_mean() {
        let values = [0.7, 0.9, 0.85, 0.6, 0.95, 0.8, 0.75, 0.88, 0.91, 0.66, 0.79, 0.83];
        let found = mean_of(&values).unwrap();
        assert_eq!(mean_of(&values), Some(found));
        // scipy.stats.bootstrap((values,), numpy.mean, method="percentile") with 200 000 resamples: 0.7417 and 0.8575.
        assert!((found.low - 0.7417).abs() < 0.003 && (found.high - 0.8575).abs() < 0.003, "{found:?}");
    }

    #[test]
    fn fewer_than_six_cases_have_no_interval() {
        // Of six draws from five zeros and a one, the mean is k/6 with the binomial probability of k hits at 1/6: 33 % are 0, 99.1 % at most 3/6
        // and 93.8 % at most 2/6.
        assert_eq!(mean_of(&[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]), Some(Interval { low: 0.0, high: 0.5 }));
        for few in [&[0.0, 1.0, 0.5, 0.25, 0.75][..], &[0.5], &[]] {
            assert_eq!(mean_of(few), None);
        }
    }

    #[test]
    fn a_statistic_that_is_seldom_defined_has_no_interval() {
        assert_eq!(Resampling::new(6).interval(|draw| draw.contains(&0).then_some(1.0)), None);
        let nearly_always = |draw: &[u32]| draw.iter().any(|&case| case > 0).then_some(1.0);
        assert_eq!(Resampling::new(6).interval(nearly_always), Some(Interval { low: 1.0, high: 1.0 }));
    }

    #[test]
    fn percentiles_are_numpys() {
        let mut values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        let found = percentile_interval(&mut values);
        assert!((found.low - 2.5).abs() < 1e-12 && (found.high - 97.5).abs() < 1e-12, "{found:?}");
        assert_eq!(percentile_interval(&mut [7.0]), Interval { low: 7.0, high: 7.0 });
    }
}
