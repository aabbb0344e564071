//! Wilcoxon's signed-rank test of paired differences.

/// Largest number of pairs for which the distribution of the rank sum is exact.
const EXACT_PAIRS: usize = 50;

/// Result of the test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SignedRank {
    /// The smaller of the rank sums of positive and of negative differences.
    pub statistic: f64,
    /// Two-sided p.
    pub p: f64,
    /// Number of pairs that differ; only these count.
    pub pairs: usize,
}

/// The two-sided test, as in `scipy.stats.wilcoxon`: pairs without a difference are left out, and equal differences share their mean rank.
/// For up to 50 pairs that differ, the distribution of the rank sum is exact, also with ties (with ties, SciPy is exact only up to 13 pairs
/// and uses the normal distribution above). For more pairs it is the normal distribution with the correction for ties. `None` if no pair
/// differs.
pub fn wilcoxon_signed_rank(differences: &[f64]) -> Option<SignedRank> {
    let differing: Vec<f64> =
        differences.iter().copied().filter(|difference| *difference != 0.0 && !difference.is_nan()).collect();
    let pairs = differing.len();
    if pairs == 0 {
        return None;
    }
    let (doubled_ranks, ties) = doubled_ranks(&differing);
    let sum_of = |positive: bool| -> u64 {
        let picked = differing.iter().zip(&doubled_ranks).filter(|(difference, _)| (**difference > 0.0) == positive);
        picked.map(|(_, rank)| rank).sum()
    };
    let (positive, negative) = (sum_of(true), sum_of(false));
    let statistic = positive.min(negative) as f64 / 2.0;
    let p = if pairs <= EXACT_PAIRS {
        exact(&doubled_ranks, positive.min(negative))
    } else {
        let n = pairs as f64;
        let variance = (n * (n + 1.0) * (2.0 * n + 1.0) - ties / 2.0) / 24.0;
        let z = (statistic - n * (n + 1.0) / 4.0) / variance.sqrt();
        libm::erfc(z.abs() / std::f64::consts::SQRT_2)
    };
    Some(SignedRank { statistic, p, pairs })
}

/// Twice the rank of each absolute difference, and the sum of t³ - t over groups of t ties.
fn doubled_ranks(differences: &[f64]) -> (Vec<u64>, f64) {
    let mut order: Vec<usize> = (0..differences.len()).collect();
    order.sort_by(|&a, &b| differences[a].abs().total_cmp(&differences[b].abs()));
    let mut ranks = vec![0; differences.len()];
    let (mut before, mut ties) = (0u64, 0.0);
    for group in order.chunk_by(|&a, &b| differences[a].abs() == differences[b].abs()) {
        let size = group.len() as u64;
        // Ranks before + 1 to before + size; their mean, doubled.
        group.iter().for_each(|&index| ranks[index] = 2 * before + size + 1);
        before += size;
        ties += (size as f64).powi(3) - size as f64;
    }
    (ranks, ties)
}

/// Twice the probability that a sum of these ranks, each included with probability ½, is at most `smaller`; at most 1.
fn exact(doubled_ranks: &[u64], smaller: u64) -> f64 {
    let total: u64 = doubled_ranks.iter().sum();
    let mut probability = vec![0.0; total as usize + 1];
    probability[0] = 1.0;
    let mut reached = 0;
    for &rank in doubled_ranks {
        let rank = rank as usize;
        reached += rank;
        for sum in (0..=reached).rev() {
            let taken = if sum >= rank { probability[sum - rank] } else { 0.0 };
            probability[sum] = 0.5 * (probability[sum] + taken);
        }
    }
    (2.0 * probability[..=smaller as usize].iter().sum::<f64>()).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-10 * expected.max(1e-3), "{found} for {expected}");
    }

    #[test]
    fn scipys_example() {
        // Darwin's plants of scipy.stats.wilcoxon's documentation: statistic 24, p 0.041259765625.
        let differences = [6.0, 8.0, 14.0, 16.0, 23.0, 24.0, 28.0, 29.0, 41.0, -48.0, 49.0, 56.0, 60.0, -67.0, 75.0];
        let found = wilcoxon_signed_rank(&differences).unwrap();
        assert_eq!((found.statistic, found.pairs), (24.0, 15));
        assert_close(found.p, 0.041259765625);
    }

    #[test]
    fn few_pairs_by_hand() {
        // All positive: 2 of 2⁵.
        assert_close(wilcoxon_signed_rank(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap().p, 2.0 / 32.0);
        // Ranks 1.5, 1.5, 3 with +, -, +: the smaller sum is 1.5. Sums up to 1.5: none, either of two: 3 of 8.
        let tied = wilcoxon_signed_rank(&[1.0, -1.0, 2.0, 0.0]).unwrap();
        assert_eq!((tied.statistic, tied.pairs), (1.5, 3));
        assert_close(tied.p, 6.0 / 8.0);
        assert_eq!(wilcoxon_signed_rank(&[0.0, 0.0]), None);
        assert_eq!(wilcoxon_signed_rank(&[]), None);
    }

    #[test]
    fn fifty_pairs_are_exact_and_more_are_normal() {
        let differences = |pairs: i32| -> Vec<f64> {
            (1..=pairs).map(|pair| f64::from(pair) * if pair % 5 < 2 { -1.0 } else { 1.0 }).collect()
        };
        // scipy.stats.wilcoxon of the same.
        assert_close(wilcoxon_signed_rank(&differences(50)).unwrap().p, 0.222_314_876_153_292_93);
        assert_close(wilcoxon_signed_rank(&differences(51)).unwrap().p, 0.339_024_937_552_450_44);
    }
}
