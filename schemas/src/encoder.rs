//! The published numbers of SAM's three image encoders (`build_sam.py`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Side of one patch (one token) in pixels.
pub const PATCH_SIZE: usize = 16;
/// Channels of the image embeddings; also the width of the prompt encoder and the mask decoder.
pub const EMBED_CHANNELS: usize = 256;
/// Tokens along the side of an attention window.
pub const WINDOW_SIZE: usize = 14;
/// Image size of SAM's published checkpoints, in pixels.
pub const NATIVE_IMAGE_SIZE: usize = 1024;

/// One of SAM's image encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum), value(rename_all = "snake_case"))]
#[serde(rename_all = "snake_case")]
pub enum EncoderArch {
    /// ViT-B: 12 blocks of width 768
    VitB,
    /// ViT-L: 24 blocks of width 1024
    VitL,
    /// ViT-H: 32 blocks of width 1280
    VitH,
}

impl EncoderArch {
    /// All architectures, smallest first.
    pub const ALL: [EncoderArch; 3] = [EncoderArch::VitB, EncoderArch::VitL, EncoderArch::VitH];

    /// SAM's name of it: `vit_b`, `vit_l` or `vit_h`.
    pub fn name(self) -> &'static str {
        match self {
            EncoderArch::VitB => "vit_b",
            EncoderArch::VitL => "vit_l",
            EncoderArch::VitH => "vit_h",
        }
    }

    /// Width of a token.
    pub fn embed_dim(self) -> usize {
        match self {
            EncoderArch::VitB => 768,
            EncoderArch::VitL => 1024,
            EncoderArch::VitH => 1280,
        }
    }

    /// Number of transformer blocks.
    pub fn depth(self) -> usize {
        match self {
            EncoderArch::VitB => 12,
            EncoderArch::VitL => 24,
            EncoderArch::VitH => 32,
        }
    }

    /// Attention heads of each block.
    pub fn num_heads(self) -> usize {
        match self {
            EncoderArch::VitB => 12,
            EncoderArch::VitL | EncoderArch::VitH => 16,
        }
    }

    /// The four blocks that attend globally; the others attend within windows of [`WINDOW_SIZE`] tokens.
    pub fn global_attn_indexes(self) -> [usize; 4] {
        match self {
            EncoderArch::VitB => [2, 5, 8, 11],
            EncoderArch::VitL => [5, 11, 17, 23],
            EncoderArch::VitH => [7, 15, 23, 31],
        }
    }
}
