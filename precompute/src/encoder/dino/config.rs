//! The numbers of an encoder, and the names and shapes of its parameters.

use sam_ladder_schemas::encoder::{EncoderArch, EncoderFamily};

/// Hidden width of a block's MLP over the width of its tokens.
const MLP_RATIO: usize = 4;

/// Numbers of one of DINO's encoders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::encoder) struct DinoConfig {
    /// Width of a token.
    pub(in crate::encoder) embed_dim: usize,
    /// Number of blocks.
    pub(in crate::encoder) depth: usize,
    /// Attention heads of each block.
    pub(in crate::encoder) num_heads: usize,
    /// Pixels along the side of a patch.
    pub(in crate::encoder) patch: usize,
    /// Register tokens.
    pub(in crate::encoder) registers: usize,
    /// Whether positions are rotary; otherwise they are learned, and added to the patches' tokens.
    pub(in crate::encoder) rotary: bool,
    /// Tokens along the side of an image.
    pub(in crate::encoder) grid: usize,
}

impl DinoConfig {
    /// One of them, for images of `grid` patches along the side.
    pub(in crate::encoder) fn new(arch: EncoderArch, grid: usize) -> Self {
        DinoConfig {
            embed_dim: arch.embed_dim(),
            depth: arch.depth(),
            num_heads: arch.num_heads(),
            patch: arch.patch(),
            registers: arch.registers(),
            rotary: arch.family() == EncoderFamily::Dinov3,
            grid,
        }
    }

    /// Pixels along the side of the image that it sees.
    pub(in crate::encoder) fn image_size(&self) -> usize {
        self.grid * self.patch
    }

    /// Width of an attention head.
    pub(in crate::encoder) fn head_dim(&self) -> usize {
        self.embed_dim / self.num_heads
    }

    /// Added to the variance in every norm.
    pub(in crate::encoder) fn norm_eps(&self) -> f64 {
        if self.rotary { 1e-5 } else { 1e-6 }
    }

    /// Name and shape of every tensor, in the publishers' names and order. The class token has its position in it, so that `pos_embed` is the
    /// patches' only.
    pub(in crate::encoder) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (c, hidden) = (self.embed_dim, MLP_RATIO * self.embed_dim);
        let mut tensors = vec![("cls_token".to_owned(), vec![1, 1, c])];
        if self.registers > 0 {
            tensors.push(("register_tokens".to_owned(), vec![1, self.registers, c]));
        }
        if !self.rotary {
            tensors.push(("pos_embed".to_owned(), vec![1, self.grid * self.grid, c]));
        }
        tensors.push(("patch_embed.proj.weight".to_owned(), vec![c, 3, self.patch, self.patch]));
        tensors.push(("patch_embed.proj.bias".to_owned(), vec![c]));
        for i in 0..self.depth {
            let block: [(&str, Vec<usize>); 14] = [
                ("norm1.weight", vec![c]),
                ("norm1.bias", vec![c]),
                ("attn.qkv.weight", vec![3 * c, c]),
                ("attn.qkv.bias", vec![3 * c]),
                ("attn.proj.weight", vec![c, c]),
                ("attn.proj.bias", vec![c]),
                ("ls1.gamma", vec![c]),
                ("norm2.weight", vec![c]),
                ("norm2.bias", vec![c]),
                ("mlp.fc1.weight", vec![hidden, c]),
                ("mlp.fc1.bias", vec![hidden]),
                ("mlp.fc2.weight", vec![c, hidden]),
                ("mlp.fc2.bias", vec![c]),
                ("ls2.gamma", vec![c]),
            ];
            tensors.extend(block.into_iter().map(|(name, shape)| (format!("blocks.{i}.{name}"), shape)));
        }
        tensors.extend(["norm.weight", "norm.bias"].map(|name| (name.to_owned(), vec![c])));
        tensors
    }
}
