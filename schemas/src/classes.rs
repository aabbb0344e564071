//! Organs, label maps and the split of the Synapse multi-organ CT set, as in the published code.

use serde::{Deserialize, Serialize};

/// The eight organs in the order of their class index, from 1; index 0 is background.
pub const SYNAPSE_ORGANS: [&str; 8] =
    ["spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas"];

/// Case numbers of the twelve test scans (`test_data` of the published `preprocess_data.py`); the other eighteen train.
pub const SYNAPSE_TEST_CASES: [u32; 12] = [1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38];

/// Raw Synapse label → class, by index (`hashmap` of the published `preprocess_data.py`). Raw labels run from 0 to 13.
pub const SYNAPSE_LABEL_MAP: [u8; 14] = [0, 1, 2, 3, 4, 0, 5, 6, 7, 0, 0, 8, 0, 0];

/// The part of the data that a scan belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Used for training, and for validation, which holds out some of its cases.
    Train,
    /// The twelve test scans: only the final evaluation reads them.
    Test,
}

impl Split {
    /// Both splits, in the order in which a store writes them.
    pub const ALL: [Split; 2] = [Split::Train, Split::Test];

    /// The name of the split's group in the store.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Test => "test",
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
