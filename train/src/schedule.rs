//! The learning-rate schedule of the published code.

/// Exponent of the polynomial decay.
const POWER: f64 = 0.9;

/// The learning rate of the update at `iteration` (from 0).
///
/// The published trainer sets the rate after each update, so the update at `iteration` i uses the rate set after the previous one:
/// base·i/warmup while i ≤ warmup (the first update, before which no rate was set, uses base/warmup, like the second), then
/// base·(1 - (i - 1 - warmup)/max)^0.9. `max_iterations` is epochs × batches per epoch, including the warm-up.
pub fn learning_rate(iteration: usize, base_lr: f64, warmup: usize, max_iterations: usize) -> f64 {
    let Some(previous) = iteration.checked_sub(1) else {
        return if warmup > 0 { base_lr / warmup as f64 } else { base_lr };
    };
    if previous < warmup {
        return base_lr * ((previous + 1) as f64 / warmup as f64);
    }
    let progress = (previous - warmup) as f64 / max_iterations.max(1) as f64;
    base_lr * (1.0 - progress).max(0.0).powf(POWER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_two_updates_share_the_lowest_rate() {
        assert_eq!(learning_rate(0, 1e-3, 250, 1000), 1e-3 / 250.0);
        assert_eq!(learning_rate(1, 1e-3, 250, 1000), 1e-3 / 250.0);
        assert_eq!(learning_rate(250, 1e-3, 250, 1000), 1e-3);
        assert_eq!(learning_rate(251, 1e-3, 250, 1000), 1e-3);
        assert!(learning_rate(252, 1e-3, 250, 1000) < 1e-3);
    }

    #[test]
    fn without_warmup_it_starts_at_the_base_rate() {
        assert_eq!(learning_rate(0, 0.1, 0, 10), 0.1);
        assert_eq!(learning_rate(1, 0.1, 0, 10), 0.1);
        assert!((learning_rate(6, 0.1, 0, 10) - 0.1 * 0.5f64.powf(0.9)).abs() < 1e-15);
    }

    #[test]
    fn beyond_the_end_it_is_zero_and_not_nan() {
        assert_eq!(learning_rate(100, 0.1, 0, 10), 0.0);
        assert_eq!(learning_rate(5, 0.1, 0, 0), 0.0);
    }
}
