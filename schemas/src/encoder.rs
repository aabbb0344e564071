//! The published numbers of the frozen image encoders: SAM's three (`build_sam.py`), and DINOv2's and DINOv3's ViT-S, B and L (`hub/backbones.py`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Pixels of the network's input along the side of one token of the embeddings, whatever the encoder; also the side of SAM's patches.
pub const PATCH_SIZE: usize = 16;
/// Channels of SAM's image embeddings; also the width of the prompt encoder and the mask decoder.
pub const EMBED_CHANNELS: usize = 256;
/// Tokens along the side of an attention window.
pub const WINDOW_SIZE: usize = 14;
/// Image size of SAM's published checkpoints, in pixels.
pub const NATIVE_IMAGE_SIZE: usize = 1024;

/// Patches of DINOv2 have this side in pixels.
const DINOV2_PATCH: usize = 14;
/// Register tokens of DINOv2's variants with registers, and of DINOv3.
const REGISTERS: usize = 4;

/// A frozen image encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum), value(rename_all = "snake_case"))]
#[serde(rename_all = "snake_case")]
pub enum EncoderArch {
    /// SAM's ViT-B: 12 blocks of width 768
    VitB,
    /// SAM's ViT-L: 24 blocks of width 1024
    VitL,
    /// SAM's ViT-H: 32 blocks of width 1280
    VitH,
    /// DINOv2's ViT-S/14: 12 blocks of width 384
    Dinov2Vits14,
    /// DINOv2's ViT-B/14: 12 blocks of width 768
    Dinov2Vitb14,
    /// DINOv2's ViT-L/14: 24 blocks of width 1024
    Dinov2Vitl14,
    /// DINOv2's ViT-S/14 with four register tokens
    Dinov2Vits14Reg,
    /// DINOv2's ViT-B/14 with four register tokens
    Dinov2Vitb14Reg,
    /// DINOv2's ViT-L/14 with four register tokens
    Dinov2Vitl14Reg,
    /// DINOv3's ViT-S/16: 12 blocks of width 384
    Dinov3Vits16,
    /// DINOv3's ViT-B/16: 12 blocks of width 768
    Dinov3Vitb16,
    /// DINOv3's ViT-L/16: 24 blocks of width 1024
    Dinov3Vitl16,
}

/// Who trained an encoder, and how it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderFamily {
    /// Segment Anything: windows, relative positions, a neck to 256 channels.
    Sam,
    /// DINOv2: learned positions, layer scale.
    Dinov2,
    /// DINOv3: rotary positions, layer scale.
    Dinov3,
}

impl EncoderArch {
    /// All architectures, by family and size.
    pub const ALL: [EncoderArch; 12] = {
        use EncoderArch::*;
        [
            VitB,
            VitL,
            VitH,
            Dinov2Vits14,
            Dinov2Vitb14,
            Dinov2Vitl14,
            Dinov2Vits14Reg,
            Dinov2Vitb14Reg,
            Dinov2Vitl14Reg,
            Dinov3Vits16,
            Dinov3Vitb16,
            Dinov3Vitl16,
        ]
    };

    /// SAM's, smallest first.
    pub const SAM: [EncoderArch; 3] = [EncoderArch::VitB, EncoderArch::VitL, EncoderArch::VitH];

    /// The publisher's name of it: `vit_b`, `dinov2_vits14_reg`, `dinov3_vitl16`.
    pub fn name(self) -> &'static str {
        match self {
            EncoderArch::VitB => "vit_b",
            EncoderArch::VitL => "vit_l",
            EncoderArch::VitH => "vit_h",
            EncoderArch::Dinov2Vits14 => "dinov2_vits14",
            EncoderArch::Dinov2Vitb14 => "dinov2_vitb14",
            EncoderArch::Dinov2Vitl14 => "dinov2_vitl14",
            EncoderArch::Dinov2Vits14Reg => "dinov2_vits14_reg",
            EncoderArch::Dinov2Vitb14Reg => "dinov2_vitb14_reg",
            EncoderArch::Dinov2Vitl14Reg => "dinov2_vitl14_reg",
            EncoderArch::Dinov3Vits16 => "dinov3_vits16",
            EncoderArch::Dinov3Vitb16 => "dinov3_vitb16",
            EncoderArch::Dinov3Vitl16 => "dinov3_vitl16",
        }
    }

    /// Who trained it.
    pub fn family(self) -> EncoderFamily {
        use EncoderArch::*;
        match self {
            VitB | VitL | VitH => EncoderFamily::Sam,
            Dinov2Vits14 | Dinov2Vitb14 | Dinov2Vitl14 | Dinov2Vits14Reg | Dinov2Vitb14Reg | Dinov2Vitl14Reg => {
                EncoderFamily::Dinov2
            }
            Dinov3Vits16 | Dinov3Vitb16 | Dinov3Vitl16 => EncoderFamily::Dinov3,
        }
    }

    /// Whether it is one of SAM's.
    pub fn is_sam(self) -> bool {
        self.family() == EncoderFamily::Sam
    }

    /// Width of a token, number of blocks, and heads of each.
    fn numbers(self) -> [usize; 3] {
        use EncoderArch::*;
        match self {
            Dinov2Vits14 | Dinov2Vits14Reg | Dinov3Vits16 => [384, 12, 6],
            VitB | Dinov2Vitb14 | Dinov2Vitb14Reg | Dinov3Vitb16 => [768, 12, 12],
            VitL | Dinov2Vitl14 | Dinov2Vitl14Reg | Dinov3Vitl16 => [1024, 24, 16],
            VitH => [1280, 32, 16],
        }
    }

    /// Width of a token.
    pub fn embed_dim(self) -> usize {
        self.numbers()[0]
    }

    /// Number of transformer blocks.
    pub fn depth(self) -> usize {
        self.numbers()[1]
    }

    /// Attention heads of each block.
    pub fn num_heads(self) -> usize {
        self.numbers()[2]
    }

    /// Channels of its embeddings: those of SAM's neck, or the width of a token.
    pub fn embed_channels(self) -> usize {
        if self.is_sam() { EMBED_CHANNELS } else { self.embed_dim() }
    }

    /// Pixels along the side of a patch, in the image that the encoder sees.
    pub fn patch(self) -> usize {
        if self.family() == EncoderFamily::Dinov2 { DINOV2_PATCH } else { PATCH_SIZE }
    }

    /// Pixels along the side of the image that the encoder sees, for a network's input of `image_size`: as many patches as the embeddings have
    /// tokens, so that the grid is `image_size / 16` for every encoder.
    pub fn encoder_size(self, image_size: usize) -> usize {
        image_size / PATCH_SIZE * self.patch()
    }

    /// Register tokens, next to the class token.
    pub fn registers(self) -> usize {
        use EncoderArch::*;
        match self {
            Dinov2Vits14Reg | Dinov2Vitb14Reg | Dinov2Vitl14Reg | Dinov3Vits16 | Dinov3Vitb16 | Dinov3Vitl16 => REGISTERS,
            VitB | VitL | VitH | Dinov2Vits14 | Dinov2Vitb14 | Dinov2Vitl14 => 0,
        }
    }

    /// Of SAM's the four blocks that attend globally; the others attend within windows of [`WINDOW_SIZE`] tokens. All of DINO's do.
    pub fn global_attn_indexes(self) -> &'static [usize] {
        match self {
            EncoderArch::VitB => &[2, 5, 8, 11],
            EncoderArch::VitL => &[5, 11, 17, 23],
            EncoderArch::VitH => &[7, 15, 23, 31],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_json_are_the_publishers_and_grids_are_those_of_sam() {
        for arch in EncoderArch::ALL {
            assert_eq!(serde_json::to_value(arch).unwrap(), arch.name());
            assert_eq!(arch.embed_dim() % arch.num_heads(), 0);
            for image_size in [16, 224, 512, 1024] {
                assert_eq!(arch.encoder_size(image_size) / arch.patch(), image_size / PATCH_SIZE);
            }
        }
        assert_eq!([512, 224].map(|size| EncoderArch::Dinov2Vits14.encoder_size(size)), [448, 196]);
        assert_eq!(EncoderArch::Dinov3Vits16.encoder_size(512), 512);
    }
}
