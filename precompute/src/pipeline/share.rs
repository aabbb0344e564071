//! How several workers divide the slices of a store among themselves, without communicating.

use sam_ladder_cache::StoreLayout;
use sam_ladder_schemas::classes::Split;
use std::ops::Range;
use std::str::FromStr;

/// Worker `index` of `of`, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    index: usize,
    of: usize,
}

impl Share {
    /// The only worker.
    pub const ALL: Share = Share { index: 1, of: 1 };

    /// Whether there are others.
    pub fn is_part(self) -> bool {
        self.of > 1
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match parts {
            Some((index, of)) if (1..=of).contains(&index) => Ok(Share { index, of }),
            _ => Err(format!("expected i/n with i from 1 to n, such as 2/4, found {text:?}")),
        }
    }
}

/// Neighbouring slices of a case that are encoded together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GroupRange {
    pub(super) split: Split,
    /// Rows of the split's arrays.
    pub(super) rows: Range<usize>,
    /// Whether the case starts with it: whose group that is records the case.
    pub(super) first: bool,
}

/// Every group of a layout, in the order of its rows, train before test.
///
/// Groups start at fixed slices of a case and are done whole: what is encoded together does not depend on where an earlier run was
/// interrupted nor on how many workers there are, so neither do the tensors' last bits.
fn groups(layout: &StoreLayout, batch_size: usize) -> Vec<GroupRange> {
    let mut all = Vec::new();
    for split in Split::ALL {
        let len = (batch_size / layout.num_variants(split)).max(1);
        for rows in layout.cases(split).map(|(_, rows)| rows) {
            for start in rows.clone().step_by(len) {
                all.push(GroupRange { split, rows: start..rows.end.min(start + len), first: start == rows.start });
            }
        }
    }
    all
}

/// The groups of one worker: a contiguous run of all groups, with about as many images as every other worker's.
pub(super) fn groups_of(layout: &StoreLayout, batch_size: usize, share: Share) -> Vec<GroupRange> {
    let total = layout.num_items() as u128;
    let mut before = 0u128;
    let mut mine = groups(layout, batch_size);
    mine.retain(|group| {
        let images = (group.rows.len() * layout.num_variants(group.split)) as u128;
        // A group belongs to the worker in whose part of all images its middle lies.
        let owner = (2 * before + images) * share.of as u128 / (2 * total);
        before += images;
        owner + 1 == share.index as u128
    });
    mine
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_cache::CaseLayout;
    use sam_ladder_schemas::encoder::EncoderArch;
    use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
    use sam_ladder_schemas::store::StoreAttributes;
    use sam_ladder_schemas::variants::AugmentPolicy;

    fn layout() -> StoreLayout {
        let published = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 1 });
        let config = PrecomputeConfig { augment: AugmentPolicy::Flips, ..published };
        let case = |(i, num_slices): (usize, usize)| CaseLayout {
            case: format!("{i:04}"),
            split: if i < 3 { Split::Test } else { Split::Train },
            num_slices,
            sources: vec![],
        };
        let cases = [3, 9, 1, 20, 7, 1, 13].into_iter().enumerate().map(case).collect();
        StoreLayout::new(StoreAttributes::new(config, vec![]), cases).unwrap()
    }

    #[test]
    fn workers_take_every_group_once_and_about_as_much_each() {
        let layout = layout();
        for batch_size in [1, 4, 11] {
            let all = groups(&layout, batch_size);
            let images = |group: &GroupRange| group.rows.len() * layout.num_variants(group.split);
            let largest = all.iter().map(images).max().unwrap();
            for of in [1, 2, 3, 7, 100] {
                let parts: Vec<_> = (1..=of).map(|index| groups_of(&layout, batch_size, Share { index, of })).collect();
                assert_eq!(parts.concat(), all, "batch size {batch_size}, {of} workers");
                for part in parts {
                    let sum: usize = part.iter().map(images).sum();
                    assert!(sum.abs_diff(layout.num_items() / of) <= 2 * largest, "{sum} images of {of} workers");
                }
            }
        }
        let slices: usize = groups(&layout, 4).iter().map(|group| group.rows.len()).sum();
        assert_eq!(slices, 54);
    }

    #[test]
    fn shares_are_typed_as_i_of_n() {
        assert_eq!("2/3".parse(), Ok(Share { index: 2, of: 3 }));
        assert_eq!("2/3".parse::<Share>().unwrap().to_string(), "2/3");
        for wrong in ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"] {
            assert!(wrong.parse::<Share>().unwrap_err().contains("such as 2/4"), "{wrong}");
        }
    }
}
