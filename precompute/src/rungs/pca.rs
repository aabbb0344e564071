//! The principal components of tokens, from their sums and products in float64.

use super::RungMap;
use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// Iterations for each of the matrix's rows after which it counts as unsolvable; two or three are usual.
const ITERATIONS: usize = 100;

/// Number, sums and products of some tokens.
pub(crate) struct TokenMoments {
    count: usize,
    /// `[C]`
    sum: DVector<f64>,
    /// `[C, C]`
    products: DMatrix<f64>,
}

impl TokenMoments {
    /// Of no tokens of `width` channels.
    pub(crate) fn new(width: usize) -> Self {
        TokenMoments { count: 0, sum: DVector::zeros(width), products: DMatrix::zeros(width, width) }
    }

    /// Adds tokens, `[n, C]`.
    pub(crate) fn add(&mut self, tokens: &[f32]) {
        let width = self.sum.len();
        // Column by column, so a token is a column.
        let columns = DMatrix::from_iterator(width, tokens.len() / width, tokens.iter().map(|&value| f64::from(value)));
        self.count += columns.ncols();
        self.sum += columns.column_sum();
        self.products += &columns * columns.transpose();
    }

    /// The mean, and the directions of the `channels` largest variances, largest first. Each direction's largest number, by its size and then
    /// by its place, is positive. `None` if a number is not finite, or there are no tokens.
    pub(super) fn components(self, channels: usize) -> Option<RungMap> {
        let TokenMoments { count, sum, products } = self;
        if count == 0 || sum.iter().chain(products.iter()).any(|value| !value.is_finite()) {
            return None;
        }
        let mean = sum / count as f64;
        let covariance = products / count as f64 - &mean * mean.transpose();
        // Rounding must not make it asymmetric.
        let covariance = (&covariance + covariance.transpose()) / 2.0;
        let eigen = SymmetricEigen::try_new(covariance, f64::EPSILON, ITERATIONS * mean.len())?;
        let mut order: Vec<usize> = (0..mean.len()).collect();
        order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]).then(a.cmp(&b)));
        let mut components = Vec::with_capacity(channels * mean.len());
        for &column in order.iter().take(channels) {
            let direction = eigen.eigenvectors.column(column);
            let largest = direction.iter().fold(0.0f64, |most, &value| if value.abs() > most.abs() { value } else { most });
            let sign = if largest < 0.0 { -1.0 } else { 1.0 };
            components.extend(direction.iter().map(|&value| (sign * value) as f32));
        }
        Some(RungMap { mean: mean.iter().map(|&value| value as f32).collect(), components })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens in a plane: mean (1, 2, 3), 4 along (3, 0, 4)/5, 1 along (0, 1, 0), nothing across.
    #[test]
    fn components_are_the_directions_in_which_tokens_vary_most() {
        let token = |along: f32, up: f32| [1.0 + 0.6 * along, 2.0 + up, 3.0 + 0.8 * along];
        let tokens: Vec<f32> =
            [(4.0, 1.0), (-4.0, 1.0), (4.0, -1.0), (-4.0, -1.0)].iter().flat_map(|&(a, u)| token(a, u)).collect();
        let mut moments = TokenMoments::new(3);
        moments.add(&tokens[..6]);
        moments.add(&tokens[6..]);
        let map = moments.components(2).unwrap();
        for (found, expected) in map.mean.iter().zip([1.0, 2.0, 3.0]) {
            assert!((found - expected).abs() < 1e-6, "{map:?}");
        }
        for (found, expected) in map.components.iter().zip([0.6, 0.0, 0.8, 0.0, 1.0, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{map:?}");
        }
    }

    #[test]
    fn directions_are_orthonormal_in_order_and_have_one_sign() {
        let mut state = 1u32;
        let mut number = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as f32 / u32::MAX as f32 - 0.5
        };
        let width = 12;
        let tokens: Vec<f32> = (0..200 * width).map(|i| number() * (1 + i % width) as f32).collect();
        let mut moments = TokenMoments::new(width);
        moments.add(&tokens);
        let map = moments.components(width).unwrap();
        let rows: Vec<&[f32]> = map.components.chunks(width).collect();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        for (i, a) in rows.iter().enumerate() {
            for (j, b) in rows.iter().enumerate() {
                assert!((dot(a, b) - f64::from(i == j)).abs() < 1e-6, "{i} {j}");
            }
            let largest = a.iter().fold(0.0f32, |most, &v| if v.abs() > most.abs() { v } else { most });
            assert!(largest > 0.0);
        }
        // The variances along them descend, and together are those of the tokens.
        let along = |row: &[f32]| {
            let values: Vec<f64> = tokens
                .chunks(width)
                .map(|token| token.iter().zip(&map.mean).zip(row).map(|((t, m), c)| f64::from(t - m) * f64::from(*c)).sum())
                .collect();
            values.iter().map(|v| v * v).sum::<f64>() / 200.0
        };
        let variances: Vec<f64> = rows.iter().map(|row| along(row)).collect();
        assert!(variances.is_sorted_by(|a, b| a >= b), "{variances:?}");
        let total: f64 = tokens.iter().enumerate().map(|(i, t)| f64::from(t - map.mean[i % width]).powi(2)).sum::<f64>() / 200.0;
        assert!((variances.iter().sum::<f64>() - total).abs() < 1e-4 * total);
    }

    #[test]
    fn what_is_not_finite_has_no_components() {
        let mut moments = TokenMoments::new(2);
        assert!(TokenMoments::new(2).components(1).is_none());
        moments.add(&[1.0, f32::NAN]);
        assert!(moments.components(1).is_none());
    }
}
