//! The paired permutation test (Fisher's randomisation test): under the null hypothesis each pair's difference has either sign with equal
//! probability.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Largest number of pairs for which all 2ⁿ sign patterns are counted.
const EXACT_PAIRS: usize = 18;
/// Random patterns for more pairs.
const DRAWS: u64 = 200_000;

/// Two-sided p of the mean of paired differences: the share of sign patterns whose mean is at least as far from 0 as the observed one. For
/// up to 18 pairs that differ, all patterns are counted; otherwise 200 000 patterns drawn with a fixed seed, and the observed one. `None`
/// without pairs.
///
/// `scipy.stats.permutation_test(permutation_type="samples")` of the mean difference. Pairs without a difference have no effect.
pub fn permutation_test(differences: &[f64]) -> Option<f64> {
    if differences.is_empty() {
        return None;
    }
    let differing: Vec<f64> = differences.iter().copied().filter(|difference| *difference != 0.0).collect();
    let total: f64 = differing.iter().sum();
    // A sum in another order may differ in its last digits; such a pattern counts as equally far.
    let scale: f64 = differing.iter().map(|difference| difference.abs()).sum();
    let bound = total.abs() - 1e-12 * scale;
    let signed = |signs: u64| -> f64 {
        let flip = |(index, difference): (usize, &f64)| if signs >> index & 1 == 1 { -difference } else { *difference };
        differing.iter().enumerate().map(flip).sum()
    };
    if differing.len() <= EXACT_PAIRS {
        let patterns = 1u64 << differing.len();
        let far = (0..patterns).filter(|&signs| signed(signs).abs() >= bound).count();
        return Some(far as f64 / patterns as f64);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut far = 1u64;
    for _ in 0..DRAWS {
        let mut sum = 0.0;
        for part in differing.chunks(64) {
            let signs = rng.next_u64();
            let flip = |(index, difference): (usize, &f64)| if signs >> index & 1 == 1 { -difference } else { *difference };
            sum += part.iter().enumerate().map(flip).sum::<f64>();
        }
        far += u64::from(sum.abs() >= bound);
    }
    Some(far as f64 / (DRAWS + 1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_pairs_are_counted_exactly() {
        // All five are positive: only patterns with all signs equal are as far, 2 of 32.
        assert_eq!(permutation_test(&[1.0, 2.0, 3.0, 4.0, 5.0]), Some(2.0 / 32.0));
        // Sum 4 of (1, -2, 5): |±1 ±2 ±5| ≥ 4 for 8, 6 and 4, both signs: 6 of 8.
        assert_eq!(permutation_test(&[1.0, -2.0, 5.0]), Some(6.0 / 8.0));
        assert_eq!(permutation_test(&[0.1, 0.2, -0.3]), Some(1.0));
        // Equal pairs change nothing.
        assert_eq!(permutation_test(&[1.0, 2.0, 0.0, 3.0, 4.0, 5.0, 0.0]), Some(2.0 / 32.0));
        assert_eq!((permutation_test(&[]), permutation_test(&[0.0])), (None, Some(1.0)));
    }

    #[test]
    fn many_pairs_are_drawn_and_repeat() {
        let differences: Vec<f64> = (0..100).map(|pair| f64::from(pair % 7) - 2.9).collect();
        let found = permutation_test(&differences).unwrap();
        assert_eq!(permutation_test(&differences), Some(found));
        // Sum 5 … of a normal with the differences' deviation.
        let (sum, deviation) = (differences.iter().sum::<f64>(), differences.iter().map(|d| d * d).sum::<f64>().sqrt());
        let expected = libm::erfc(sum.abs() / deviation / std::f64::consts::SQRT_2);
        assert!((found - expected).abs() < 0.01, "{found} for about {expected}");
    }
}
