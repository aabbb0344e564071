//! What a fixture keeps of a tensor: its norm and its products with rule-made vectors.

use super::common::rule_values;
use candle_core::Tensor;

/// Norm of a tensor, then its products with four rule-made vectors.
pub type Summary = Vec<f64>;

/// A difference d between two tensors changes a product with a vector of variance 1/3 by some |d|/√3: √3 times the root mean square
/// over four products estimates |d|, and is less than half of it once in ten.
pub fn assert_summary(what: &str, name: &str, found: &Tensor, expected: &Summary, tolerance: f64) {
    let values: Vec<f64> = found.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
    let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let scale = expected[0];
    let norm_error = (norm(&values) - scale).abs() / scale;
    let products = expected[1..].iter().enumerate().map(|(i, expected)| {
        let vector = rule_values(&format!("{name}.{i}"), values.len());
        values.iter().zip(vector).map(|(x, v)| x * f64::from(v)).sum::<f64>() - expected
    });
    let product_error = (3.0 * products.map(|d| d * d).sum::<f64>() / (expected.len() - 1) as f64).sqrt() / scale;
    println!("{what}/{name}: {norm_error:.1e} {product_error:.1e}");
    assert!(norm_error < tolerance && product_error < tolerance, "{what}/{name}: off by {norm_error:.1e}, {product_error:.1e}");
}
