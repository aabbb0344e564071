//! The numbers of an encoder, and the names and shapes of its parameters in SAM's state dict.

use sam_ladder_schemas::encoder::{EMBED_CHANNELS, EncoderArch, PATCH_SIZE, WINDOW_SIZE};

/// Hidden width of a block's MLP over the width of its tokens.
const MLP_RATIO: usize = 4;

/// Numbers of a vision transformer encoder; those of SAM's three come from [`EncoderArch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VitConfig {
    /// Width of a token.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads of each block.
    pub num_heads: usize,
    /// Blocks that attend globally, counted from 0.
    pub global_attn_indexes: Vec<usize>,
    /// Pixels along the side of the input.
    pub image_size: usize,
}

impl VitConfig {
    /// One of SAM's encoders at an image size.
    pub fn new(arch: EncoderArch, image_size: usize) -> Self {
        Self {
            embed_dim: arch.embed_dim(),
            depth: arch.depth(),
            num_heads: arch.num_heads(),
            global_attn_indexes: arch.global_attn_indexes().to_vec(),
            image_size,
        }
    }

    /// Tokens along the side of the image.
    pub fn grid(&self) -> usize {
        self.image_size / PATCH_SIZE
    }

    /// Width of an attention head.
    pub fn head_dim(&self) -> usize {
        self.embed_dim / self.num_heads
    }

    /// Side of the square of tokens within which a block attends.
    pub fn attention_side(&self, block: usize) -> usize {
        if self.global_attn_indexes.contains(&block) { self.grid() } else { WINDOW_SIZE }
    }

    /// Name (without `image_encoder.`) and shape of every tensor at this image size, in the order of PyTorch's state dict.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (c, d, hidden) = (self.embed_dim, self.head_dim(), MLP_RATIO * self.embed_dim);
        let mut tensors = vec![
            ("pos_embed".to_owned(), vec![1, self.grid(), self.grid(), c]),
            ("patch_embed.proj.weight".to_owned(), vec![c, 3, PATCH_SIZE, PATCH_SIZE]),
            ("patch_embed.proj.bias".to_owned(), vec![c]),
        ];
        for i in 0..self.depth {
            let rows = 2 * self.attention_side(i) - 1;
            let block: [(&str, Vec<usize>); 14] = [
                ("norm1.weight", vec![c]),
                ("norm1.bias", vec![c]),
                ("attn.rel_pos_h", vec![rows, d]),
                ("attn.rel_pos_w", vec![rows, d]),
                ("attn.qkv.weight", vec![3 * c, c]),
                ("attn.qkv.bias", vec![3 * c]),
                ("attn.proj.weight", vec![c, c]),
                ("attn.proj.bias", vec![c]),
                ("norm2.weight", vec![c]),
                ("norm2.bias", vec![c]),
                ("mlp.lin1.weight", vec![hidden, c]),
                ("mlp.lin1.bias", vec![hidden]),
                ("mlp.lin2.weight", vec![c, hidden]),
                ("mlp.lin2.bias", vec![c]),
            ];
            tensors.extend(block.into_iter().map(|(name, shape)| (format!("blocks.{i}.{name}"), shape)));
        }
        let out = EMBED_CHANNELS;
        let neck: [(&str, Vec<usize>); 6] = [
            ("neck.0.weight", vec![out, c, 1, 1]),
            ("neck.1.weight", vec![out]),
            ("neck.1.bias", vec![out]),
            ("neck.2.weight", vec![out, out, 3, 3]),
            ("neck.3.weight", vec![out]),
            ("neck.3.bias", vec![out]),
        ];
        tensors.extend(neck.into_iter().map(|(name, shape)| (name.to_owned(), shape)));
        tensors
    }
}
