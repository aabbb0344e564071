//! The cases that a run is trained on: all training cases, or some of them by `train_cases` and `train_fraction`; never those held out.

use crate::error::{Result, TrainError};
use sam_ladder_cache::TrainingSplit;
use sam_ladder_formats::hash::sha256_hex;
use sam_ladder_schemas::train::TrainConfig;

/// The cases, in the store's order. `train_fraction` takes its share, rounded, and at least one, of those that are left: the first by the hash of
/// seed and name. So a case's place does not depend on the others, and a larger share has the cases of a smaller one.
///
/// # Errors
/// A case that is no training case of the store; a list of which nothing is left.
pub(crate) fn trained_cases(store: &TrainingSplit, config: &TrainConfig) -> Result<Vec<String>> {
    let training = store.cases();
    if let Some(case) = config.train_cases.iter().find(|case| !training.contains(case)).cloned() {
        return Err(match store.is_test_case(&case) {
            true => TrainError::TrainsOnTestCase { case, training },
            false => TrainError::NoSuchCase { case, training },
        });
    }
    let is_wanted = |case: &String| {
        let listed = config.train_cases.is_empty() || config.train_cases.contains(case);
        listed && !config.val_cases.contains(case)
    };
    let left: Vec<String> = training.into_iter().filter(is_wanted).collect();
    if left.is_empty() {
        return Err(TrainError::NothingTrained);
    }
    Ok(share_of(left, config.train_fraction, config.seed))
}

fn share_of(cases: Vec<String>, fraction: f64, seed: u64) -> Vec<String> {
    if fraction >= 1.0 {
        return cases;
    }
    let count = ((cases.len() as f64 * fraction).round() as usize).max(1);
    let mut by_hash: Vec<&String> = cases.iter().collect();
    by_hash.sort_by_cached_key(|case| sha256_hex(format!("{seed}\n{case}").as_bytes()));
    let taken = &by_hash[..count.min(by_hash.len())];
    cases.iter().filter(|case| taken.contains(case)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_nested_and_follow_from_seed_and_name() {
        let all: Vec<String> = (1..=20).map(|number| format!("{number:04}")).collect();
        let share = |fraction, seed| share_of(all.clone(), fraction, seed);
        let sizes: Vec<usize> = [0.001, 0.1, 0.33, 0.5, 1.0].iter().map(|&fraction| share(fraction, 1).len()).collect();
        assert_eq!(sizes, [1, 2, 7, 10, 20]);
        for (small, large) in [(0.1, 0.33), (0.33, 0.5)] {
            let large = share(large, 1);
            assert!(share(small, 1).iter().all(|case| large.contains(case)));
        }
        assert!(share(0.5, 1).is_sorted() && share(0.5, 1) == share(0.5, 1) && share(0.5, 1) != share(0.5, 2));
        // A case that is added changes the order of no others.
        let more: Vec<String> = all.iter().cloned().chain(["0021".to_string()]).collect();
        let grown = share_of(more, 0.5, 1);
        assert!(share(0.5, 1).iter().filter(|case| !grown.contains(case)).count() <= 1);
    }
}
