//! The ladder's rungs: the tokens after some of the encoder's blocks that a store keeps in addition to the embeddings.

use crate::encoder::EncoderArch;
use crate::setting::{Problem, SettingError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Channels of a rung by default.
pub const RUNG_CHANNELS: usize = 64;
/// Training slices of which tokens are taken for a projection by principal components.
pub const SAMPLED_SLICES: usize = 64;

/// The linear map that reduces a rung's tokens to its channels
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum RungProjection {
    /// Onto the principal components of a sample of training tokens: the directions in which they vary most
    #[default]
    Pca,
    /// By a matrix of normal numbers from --rung-seed, which roughly keeps distances
    Random,
    /// No map: all channels of the encoder are kept
    None,
}

impl RungProjection {
    /// Whether this is the default, which configs leave out.
    pub fn is_default(&self) -> bool {
        *self == RungProjection::default()
    }
}

/// The rungs of a store as a model takes them: after which blocks of the encoder, and with how many channels. As JSON
/// `{"blocks": [2, 5, 8, 11], "channels": 64}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NamedRungs", into = "NamedRungs")]
pub struct Rungs {
    /// Bit `i` is block `i`: no encoder has as many as 64.
    blocks: u64,
    channels: usize,
}

#[derive(Serialize, Deserialize)]
struct NamedRungs {
    blocks: Vec<usize>,
    channels: usize,
}

impl Rungs {
    /// Of these blocks; `None` if there are none, or one that no encoder has.
    pub fn new(blocks: &[usize], channels: usize) -> Option<Self> {
        let known = !blocks.is_empty() && blocks.iter().all(|&block| block < u64::BITS as usize);
        known.then(|| Rungs { blocks: blocks.iter().fold(0, |bits, &block| bits | 1 << block), channels })
    }

    /// The blocks, ascending.
    pub fn blocks(self) -> impl Iterator<Item = usize> {
        (0..u64::BITS as usize).filter(move |block| self.blocks >> block & 1 == 1)
    }

    /// Number of rungs.
    pub fn count(self) -> usize {
        self.blocks.count_ones() as usize
    }

    /// Channels of each.
    pub fn channels(self) -> usize {
        self.channels
    }
}

impl TryFrom<NamedRungs> for Rungs {
    type Error = String;

    fn try_from(named: NamedRungs) -> Result<Self, String> {
        let found = || format!("expected blocks from 0 to 63, found {:?}", named.blocks);
        Rungs::new(&named.blocks, named.channels).ok_or_else(found)
    }
}

impl From<Rungs> for NamedRungs {
    fn from(rungs: Rungs) -> Self {
        NamedRungs { blocks: rungs.blocks().collect(), channels: rungs.channels }
    }
}

/// Checks what a config says of its rungs: blocks that the encoder has, ascending, and nothing that has no effect.
///
/// # Errors
/// The first setting that is out of range or has no effect.
pub(crate) fn check(
    rungs: &[usize],
    (channels, projection, seed): (usize, RungProjection, u64),
    encoder: EncoderArch,
) -> Result<(), SettingError> {
    let without_effect =
        |setting: &str, what: &str, hint: &str| Err(Problem::conflict(format!("it has no effect {what}"), hint).with(setting));
    let set =
        [("rung_channels", channels != RUNG_CHANNELS), ("rung_projection", !projection.is_default()), ("rung_seed", seed != 0)];
    if let Some((setting, _)) = set.into_iter().find(|(_, set)| *set && rungs.is_empty()) {
        return without_effect(setting, "without rungs", "name the blocks with --rungs, or leave it out");
    }
    if let Some(&block) = rungs.iter().find(|&&block| block >= encoder.depth()) {
        let expected = format!("blocks from 0 to {}, the last of {}", encoder.depth() - 1, encoder.name());
        return Err(Problem::expected(expected, block).with("rungs"));
    }
    if !rungs.is_sorted_by(|a, b| a < b) {
        let found: Vec<String> = rungs.iter().map(usize::to_string).collect();
        return Err(Problem::expected("different blocks in ascending order", found.join(",")).with("rungs"));
    }
    if projection == RungProjection::None {
        let set = set.into_iter().find(|(setting, set)| *set && *setting != "rung_projection");
        return match set {
            Some((setting, _)) => without_effect(setting, "with rung_projection = none", "leave it out"),
            None => Ok(()),
        };
    }
    if channels > encoder.embed_dim() {
        let expected = format!("at most the {} channels of {}", encoder.embed_dim(), encoder.name());
        return Err(Problem::expected(expected, channels).with("rung_channels"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_are_read_as_they_are_written() {
        let rungs = Rungs::new(&[11, 2], 64).unwrap();
        assert_eq!((rungs.blocks().collect::<Vec<_>>(), rungs.count(), rungs.channels()), (vec![2, 11], 2, 64));
        let json = serde_json::json!({"blocks": [2, 11], "channels": 64});
        assert_eq!(serde_json::json!(rungs), json);
        assert_eq!(serde_json::from_value::<Rungs>(json).unwrap(), rungs);
        for blocks in [vec![], vec![64]] {
            assert_eq!(Rungs::new(&blocks, 64), None);
            let json = serde_json::json!({"blocks": blocks, "channels": 64});
            assert!(serde_json::from_value::<Rungs>(json).is_err());
        }
    }

    #[test]
    fn rungs_are_ascending_blocks_and_nothing_is_without_effect() {
        let (vit_b, defaults) = (EncoderArch::VitB, (RUNG_CHANNELS, RungProjection::Pca, 0));
        for rungs in [&[][..], &[0], &[2, 5, 8, 11]] {
            assert_eq!(check(rungs, defaults, vit_b), Ok(()));
        }
        assert_eq!(check(&[23], defaults, EncoderArch::VitL), Ok(()));
        let error = |rungs: &[usize], chosen| check(rungs, chosen, vit_b).unwrap_err().to_string();
        assert_eq!(error(&[12], defaults), "rungs: expected blocks from 0 to 11, the last of vit_b, found 12");
        assert_eq!(error(&[5, 2], defaults), "rungs: expected different blocks in ascending order, found 5,2");
        assert_eq!(error(&[5, 5], defaults), "rungs: expected different blocks in ascending order, found 5,5");
        assert_eq!(error(&[], (32, RungProjection::Pca, 0)), "rung_channels: it has no effect without rungs");
        assert_eq!(error(&[], (64, RungProjection::None, 0)), "rung_projection: it has no effect without rungs");
        assert_eq!(error(&[], (64, RungProjection::Pca, 3)), "rung_seed: it has no effect without rungs");
        let none = RungProjection::None;
        assert_eq!(error(&[1], (64, none, 3)), "rung_seed: it has no effect with rung_projection = none");
        assert_eq!(check(&[1], (64, none, 0), vit_b), Ok(()));
        let most = "rung_channels: expected at most the 768 channels of vit_b, found 769";
        assert_eq!(error(&[1], (769, RungProjection::Random, 0)), most);
    }
}
