//! The encoder on a GPU: matrix products by the device's library, everything between them fused as on the CPU (see `cpu.rs`).
//!
//! Tokens stay `[tokens, c]` from the patches to the neck. The sum that the residual connections run through is float32 in every precision; what
//! the matrix products take in is of the precision's format. Norms, softmax and sums are float32.

use candle_core::{DType, Result, Tensor};
use sam_ladder_ops::conv2d::conv2d;
use sam_ladder_ops::layer_norm::{add_layer_norm_on_device, layer_norm_2d};
use sam_ladder_ops::linear::linear_on_device;
use sam_ladder_ops::rel_pos_attention::DeviceRelPosAttention;
use sam_ladder_schemas::encoder::{EMBED_CHANNELS, PATCH_SIZE};

use super::NORM_EPS;
use super::weights::{Affine, VitConfig, VitWeights};

/// A block's weights: matrices in the precision's format, the rest float32.
struct Block {
    norm1: Affine<Tensor>,
    /// `[2·(2·side - 1), d]`
    rel_pos: Tensor,
    side: usize,
    qkv: Affine<Tensor>,
    proj: Affine<Tensor>,
    norm2: Affine<Tensor>,
    lin1: Affine<Tensor>,
    lin2: Affine<Tensor>,
}

/// The encoder's weights as the GPU takes them.
pub(super) struct DeviceVit {
    config: VitConfig,
    dtype: DType,
    /// `[c, 3·16·16]`
    patch_weight: Tensor,
    patch_bias: Tensor,
    /// `[1, g·g, c]`
    positions: Tensor,
    blocks: Vec<Block>,
    /// `[256, c]`
    neck_conv1: Tensor,
    neck_norm1: Affine<Tensor>,
    /// `[256, 256, 3, 3]`
    neck_conv2: Tensor,
    neck_norm2: Affine<Tensor>,
}

impl DeviceVit {
    /// Whether there are kernels for this encoder.
    pub(super) fn has_kernels(config: &VitConfig, dtype: DType) -> bool {
        DeviceRelPosAttention::has_kernel(config.head_dim(), dtype)
    }

    /// Takes the weights, and turns those of matrix products to `dtype`.
    pub(super) fn new(config: VitConfig, weights: &VitWeights<Tensor>, dtype: DType) -> Result<Self> {
        let product = |layer: &Affine<Tensor>| -> Result<Affine<Tensor>> {
            Ok(Affine { weight: layer.weight.to_dtype(dtype)?.contiguous()?, bias: layer.bias.contiguous()? })
        };
        let norm = |layer: &Affine<Tensor>| -> Result<Affine<Tensor>> {
            Ok(Affine { weight: layer.weight.contiguous()?, bias: layer.bias.contiguous()? })
        };
        let (c, grid) = (config.embed_dim, config.grid());
        let blocks = weights
            .blocks
            .iter()
            .enumerate()
            .map(|(i, block)| {
                Ok(Block {
                    norm1: norm(&block.norm1)?,
                    rel_pos: Tensor::cat(&[&block.rel_pos_h, &block.rel_pos_w], 0)?.to_dtype(dtype)?.contiguous()?,
                    side: config.attention_side(i),
                    qkv: product(&block.qkv)?,
                    proj: product(&block.proj)?,
                    norm2: norm(&block.norm2)?,
                    lin1: product(&block.lin1)?,
                    lin2: product(&block.lin2)?,
                })
            })
            .collect::<Result<_>>()?;
        let neck = &weights.neck;
        Ok(Self {
            patch_weight: weights.patch_embed.weight.reshape((c, 3 * PATCH_SIZE * PATCH_SIZE))?.to_dtype(dtype)?.contiguous()?,
            patch_bias: weights.patch_embed.bias.contiguous()?,
            positions: weights.pos_embed.reshape((1, grid * grid, c))?.contiguous()?,
            blocks,
            neck_conv1: neck.conv1.reshape((EMBED_CHANNELS, c))?.to_dtype(dtype)?.contiguous()?,
            neck_norm1: norm(&neck.norm1)?,
            neck_conv2: neck.conv2.to_dtype(dtype)?.contiguous()?,
            neck_norm2: norm(&neck.norm2)?,
            dtype,
            config,
        })
    }

    /// Image embeddings.
    ///
    /// # Shapes
    /// images `[b, 3, s, s]`, float32 → `[b, 256, g, g]`, float32
    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let (batch, _, _, _) = images.dims4()?;
        let (c, grid, heads) = (self.config.embed_dim, self.config.grid(), self.config.num_heads);
        let tokens = batch * grid * grid;
        let patches = images
            .to_dtype(self.dtype)?
            .reshape(&[batch, 3, grid, PATCH_SIZE, grid, PATCH_SIZE])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .contiguous()?
            .reshape((tokens, 3 * PATCH_SIZE * PATCH_SIZE))?;
        let x = linear_on_device(&patches, &self.patch_weight, Some(&self.patch_bias), false)?; // [tokens, c]
        let x = x.to_dtype(DType::F32)?.reshape((batch, grid * grid, c))?.broadcast_add(&self.positions)?;
        let x = x.reshape((tokens, c))?; // float32, and from here on changed in place
        // What the layer before left to be added: a product and its bias.
        let mut pending: Option<(Tensor, &Tensor)> = None;
        for block in &self.blocks {
            let normed = self.add_and_normalise(&x, pending.as_ref(), &block.norm1)?;
            let qkv = linear_on_device(&normed, &block.qkv.weight, None, false)?;
            let attended = DeviceRelPosAttention {
                qkv: &qkv,
                bias: &block.qkv.bias,
                rel_pos: &block.rel_pos,
                side: block.side,
                batch,
                grid,
                heads,
            }
            .forward()?;
            let projected = linear_on_device(&attended, &block.proj.weight, None, false)?;
            let normed = self.add_and_normalise(&x, Some(&(projected, &block.proj.bias)), &block.norm2)?;
            let hidden = linear_on_device(&normed, &block.lin1.weight, Some(&block.lin1.bias), true)?;
            pending = Some((linear_on_device(&hidden, &block.lin2.weight, None, false)?, &block.lin2.bias));
        }
        let x = match pending {
            Some((delta, bias)) => (x + delta.to_dtype(DType::F32)?)?.broadcast_add(bias)?,
            None => x,
        };
        self.neck(&x.to_dtype(self.dtype)?, batch)
    }

    /// x += pending, in place; then its norm, in the precision's format.
    fn add_and_normalise(&self, x: &Tensor, pending: Option<&(Tensor, &Tensor)>, norm: &Affine<Tensor>) -> Result<Tensor> {
        let (delta, added) = (pending.map(|(delta, _)| delta), pending.map(|(_, bias)| *bias));
        add_layer_norm_on_device(x, (delta, added), (&norm.weight, &norm.bias), NORM_EPS, self.dtype)
    }

    /// 1×1 convolution, norm, 3×3 convolution, norm: `[b·g·g, c]` → `[b, 256, g, g]`
    fn neck(&self, x: &Tensor, batch: usize) -> Result<Tensor> {
        let grid = self.config.grid();
        let reduced = linear_on_device(x, &self.neck_conv1, None, false)?; // [b·g·g, 256]
        let reduced = reduced.reshape((batch, grid * grid, EMBED_CHANNELS))?.transpose(1, 2)?.contiguous()?;
        let reduced = reduced.reshape((batch, EMBED_CHANNELS, grid, grid))?;
        let x = layer_norm_2d(&reduced, &self.neck_norm1.weight, &self.neck_norm1.bias, NORM_EPS)?;
        let x = conv2d(&x, &self.neck_conv2, 1, 1)?;
        layer_norm_2d(&x, &self.neck_norm2.weight, &self.neck_norm2.bias, NORM_EPS)?.to_dtype(DType::F32)
    }
}
