//! Draws that are written out, so that a seed gives the same ones in every version of the program.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Fisher–Yates.
pub(super) fn shuffle<T>(rows: &mut [T], rng: &mut ChaCha8Rng) {
    for last in (1..rows.len()).rev() {
        rows.swap(last, below(last as u64 + 1, rng) as usize);
    }
}

/// A uniform number in `0..bound`.
pub(crate) fn below(bound: u64, rng: &mut ChaCha8Rng) -> u64 {
    let limit = u64::MAX - u64::MAX % bound;
    loop {
        let value = rng.next_u64();
        if value < limit {
            return value % bound;
        }
    }
}

/// A uniform number in [0, 1) with 53 random bits.
pub(crate) fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}
