//! The learning-rate schedules: the published code's, and a cosine.

use sam_ladder_schemas::train_choices::LrSchedule;
use std::f64::consts::PI;

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

/// The learning rate of the update at `iteration` (from 0) by a schedule. All have the warm-up of [`learning_rate`].
///
/// After it, `Cosine` is base·½·(1 + cos(π·(i - 1 - warmup) / (max - warmup))), PyTorch's `CosineAnnealingLR` to 0 over the steps after the
/// warm-up.
pub fn scheduled_rate(schedule: LrSchedule, iteration: usize, base_lr: f64, warmup: usize, max_iterations: usize) -> f64 {
    let after_warmup = iteration.checked_sub(1).and_then(|previous| previous.checked_sub(warmup));
    match (schedule, after_warmup) {
        (LrSchedule::Cosine, Some(after)) => {
            let progress = after as f64 / max_iterations.saturating_sub(warmup).max(1) as f64;
            base_lr * 0.5 * (1.0 + (PI * progress.min(1.0)).cos())
        }
        _ => learning_rate(iteration, base_lr, warmup, max_iterations),
    }
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

    /// Values of `torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)` with the rate 0.1.
    #[test]
    fn a_cosine_falls_to_zero_after_the_same_warm_up() {
        let rate = |iteration| scheduled_rate(LrSchedule::Cosine, iteration, 0.1, 4, 16);
        for iteration in 0..=4 {
            assert_eq!(rate(iteration), learning_rate(iteration, 0.1, 4, 16));
        }
        for (after, expected) in [(0, 0.1), (4, 0.075), (6, 0.05), (8, 0.025), (12, 0.0), (13, 0.0)] {
            assert!((rate(5 + after) - expected).abs() < 1e-15, "{after}: {}", rate(5 + after));
        }
        assert_eq!(scheduled_rate(LrSchedule::Published, 300, 1e-3, 250, 1000), learning_rate(300, 1e-3, 250, 1000));
        assert_eq!(scheduled_rate(LrSchedule::Cosine, 1, 0.1, 0, 0), 0.1);
    }

    #[test]
    fn beyond_the_end_it_is_zero_and_not_nan() {
        assert_eq!(learning_rate(100, 0.1, 0, 10), 0.0);
        assert_eq!(learning_rate(5, 0.1, 0, 0), 0.0);
    }
}
