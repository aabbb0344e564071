//! Which of the algorithms that cuDNN names for a convolution is taken.

/// Scratch memory that a convolution may ask for at most, in bytes.
pub(super) const MOST_SCRATCH: usize = 1 << 30;

/// What cuDNN says of an algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Whether it supports this convolution.
    pub(super) supported: bool,
    /// Bytes of scratch memory.
    pub(super) scratch: usize,
    /// Whether the same input gives the same bits.
    pub(super) deterministic: bool,
    /// Whether float32 factors are rounded as asked.
    pub(super) rounds_as_asked: bool,
}

impl Candidate {
    fn can_be_taken(&self) -> bool {
        self.supported && self.scratch <= MOST_SCRATCH && self.deterministic && self.rounds_as_asked
    }
}

/// The first that can be taken, since cuDNN names the fastest first. Only deterministic ones are: a resumed run ends in the same bits.
pub(super) fn choose<T>(candidates: impl IntoIterator<Item = (Candidate, T)>) -> Option<T> {
    candidates.into_iter().find(|(candidate, _)| candidate.can_be_taken()).map(|(_, algorithm)| algorithm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_succeeds_fits_and_repeats_its_bits_is_taken() {
        let good = Candidate { supported: true, scratch: MOST_SCRATCH, deterministic: true, rounds_as_asked: true };
        let named = [
            (Candidate { supported: false, ..good }, "fails"),
            (Candidate { scratch: MOST_SCRATCH + 1, ..good }, "needs too much"),
            (Candidate { deterministic: false, ..good }, "adds in any order"),
            (Candidate { rounds_as_asked: false, ..good }, "rounds"),
            (good, "good"),
            (Candidate { scratch: 0, ..good }, "slower"),
        ];
        assert_eq!(choose(named), Some("good"));
        assert_eq!(choose(named.into_iter().take(4)), None);
    }
}
