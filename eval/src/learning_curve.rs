//! A learning curve: how the validation Dice grows with the number of training cases, and what further cases are likely to bring.

use crate::statistics::{mean, standard_deviation};

/// Exponents that are tried for the power law.
const EXPONENTS: std::ops::RangeInclusive<u32> = 1..=40;
/// An exponent is so many of these.
const EXPONENT_STEP: f64 = 0.05;
/// Draws of the interval.
const DRAWS: u64 = 2000;

/// The runs with one number of cases.
#[derive(Debug, Clone, PartialEq)]
pub struct CurvePoint {
    /// Training cases.
    pub cases: usize,
    /// The best validation Dice of each seed's run.
    pub dice: Vec<f64>,
}

impl CurvePoint {
    /// The mean over the seeds.
    pub fn mean(&self) -> Option<f64> {
        mean(self.dice.iter().copied())
    }

    /// The standard deviation over the seeds (n - 1); `None` for fewer than two.
    pub fn deviation(&self) -> Option<f64> {
        standard_deviation(&self.dice)
    }
}

/// Dice = a - b·cases^-c, with b not negative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PowerLaw {
    /// What endlessly many cases would give.
    pub a: f64,
    /// The scale.
    pub b: f64,
    /// The exponent.
    pub c: f64,
}

impl PowerLaw {
    /// Dice for a number of cases.
    pub fn at(self, cases: usize) -> f64 {
        self.a - self.b * (cases as f64).powf(-self.c)
    }

    /// The least squares over the points' means, over exponents from 0.05 to 2; `None` of fewer than three numbers of cases.
    pub fn fit(points: &[(usize, f64)]) -> Option<Self> {
        if points.len() < 3 {
            return None;
        }
        let laws = EXPONENTS.map(|step| fit_with(points, f64::from(step) * EXPONENT_STEP));
        let error = |law: &PowerLaw| points.iter().map(|&(cases, dice)| (law.at(cases) - dice).powi(2)).sum::<f64>();
        laws.min_by(|left, right| error(left).total_cmp(&error(right)))
    }
}

/// The least squares for one exponent: a line in cases^-c.
fn fit_with(points: &[(usize, f64)], c: f64) -> PowerLaw {
    let count = points.len() as f64;
    let x = |cases: usize| (cases as f64).powf(-c);
    let (mean_x, mean_y) = points.iter().fold((0.0, 0.0), |(a, b), &(n, dice)| (a + x(n) / count, b + dice / count));
    let along: f64 = points.iter().map(|&(n, dice)| (x(n) - mean_x) * (dice - mean_y)).sum();
    let across: f64 = points.iter().map(|&(n, _)| (x(n) - mean_x).powi(2)).sum();
    let slope = if across > 0.0 { (along / across).min(0.0) } else { 0.0 };
    PowerLaw { a: mean_y - slope * mean_x, b: -slope, c }
}

/// What a number of cases is likely to bring, compared with the most that were trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// The number of cases.
    pub cases: usize,
    /// The gain in Dice by the fitted law.
    pub gain: f64,
    /// The 5th and the 95th percentile of the gain where the seeds of each point are drawn again; `None` with fewer than two seeds.
    pub range: Option<[f64; 2]>,
}

/// The gain of `cases` over the largest number of cases among the points.
pub fn forecast(points: &[CurvePoint], cases: usize) -> Option<Forecast> {
    let most = points.iter().map(|point| point.cases).max()?;
    let gain_of = |means: &[(usize, f64)]| PowerLaw::fit(means).map(|law| law.at(cases) - law.at(most));
    let means: Vec<(usize, f64)> = points.iter().filter_map(|point| Some((point.cases, point.mean()?))).collect();
    let gain = gain_of(&means)?;
    let drawn = |draw: u64| {
        let mut state = draw.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
        let again = |point: &CurvePoint| {
            let pick = |_: &f64| point.dice[(splitmix(&mut state) % point.dice.len() as u64) as usize];
            Some((point.cases, mean(point.dice.iter().map(pick).collect::<Vec<_>>())?))
        };
        gain_of(&points.iter().filter_map(again).collect::<Vec<_>>())
    };
    let range = points.iter().all(|point| point.dice.len() > 1).then(|| {
        let mut gains: Vec<f64> = (0..DRAWS).filter_map(drawn).collect();
        gains.sort_by(f64::total_cmp);
        let at = |share: f64| gains[((gains.len() - 1) as f64 * share).round() as usize];
        [at(0.05), at(0.95)]
    });
    Some(Forecast { cases, gain, range })
}

/// The next number of the generator SplitMix64.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_law_is_found_again() {
        let law = PowerLaw { a: 0.85, b: 0.6, c: 0.7 };
        let points: Vec<(usize, f64)> = [3, 6, 9, 12, 18].iter().map(|&cases| (cases, law.at(cases))).collect();
        let found = PowerLaw::fit(&points).unwrap();
        assert!((found.a - law.a).abs() < 1e-9 && (found.b - law.b).abs() < 1e-9 && found.c == 14.0 * EXPONENT_STEP, "{found:?}");
        assert_eq!(PowerLaw::fit(&points[..2]), None);
        // More cases never cost Dice by the law.
        let falling = PowerLaw::fit(&[(3, 0.7), (6, 0.6), (9, 0.5)]).unwrap();
        assert_eq!((falling.b, falling.at(100)), (0.0, falling.a));
    }

    #[test]
    fn a_forecast_is_the_laws_gain_with_the_spread_of_the_seeds() {
        let law = PowerLaw { a: 0.85, b: 0.6, c: 0.7 };
        let points = |spread: f64| -> Vec<CurvePoint> {
            let dice = |cases: usize| vec![law.at(cases) - spread, law.at(cases), law.at(cases) + spread];
            [3, 6, 9, 12].iter().map(|&cases| CurvePoint { cases, dice: dice(cases) }).collect()
        };
        let expected = law.at(24) - law.at(12);
        let sure = forecast(&points(0.0), 24).unwrap();
        assert!((sure.gain - expected).abs() < 1e-9);
        assert!(sure.range.unwrap().iter().all(|end| (end - expected).abs() < 1e-9));
        let unsure = forecast(&points(0.01), 24).unwrap();
        let [low, high] = unsure.range.unwrap();
        assert!((unsure.gain - expected).abs() < 1e-9 && low < expected && expected < high && high - low < 0.2, "{low} {high}");
        let one: Vec<CurvePoint> = points(0.0).into_iter().map(|p| CurvePoint { dice: p.dice[..1].to_vec(), ..p }).collect();
        assert_eq!(forecast(&one, 24).unwrap().range, None);
        assert_eq!(forecast(&one[..2], 24), None);
    }
}
