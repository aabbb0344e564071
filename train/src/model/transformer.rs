//! SAM's two-way transformer between the mask tokens and the image embeddings, all of it frozen, except for the tokens if the config says so.
//!
//! What does not depend on the image is computed once, when the model is made: the positional encoding's part of every key and query
//! projection (`W(x + pe) + b = W x + (W pe + b)`) and, unless the tokens are trained, the first layer's self-attention of the tokens and
//! their query to the image.

use candle_core::{Result, Tensor};
use sam_ladder_ops::{layer_norm, multi_head_attention};
use sam_ladder_schemas::sam_names::TRANSFORMER_DEPTH;

use super::Mode;
use super::error::ModelError;
use super::mlp::{Linear, Mlp};
use super::parameters::{Parameters, Trainable};

const HEADS: usize = 8;
const EPS: f64 = 1e-5;

/// The IoU token and the mask tokens, which also serve as their positional encoding.
pub(super) enum MaskTokens {
    /// [1, t, 256]
    Frozen(Tensor),
    Trained {
        /// [1, 256]
        iou_token: Tensor,
        /// [t - 1, 256]
        mask_tokens: Trainable,
    },
}

impl MaskTokens {
    /// `[1, t, 256]`
    fn get(&self, mode: Mode) -> Result<Tensor> {
        match self {
            MaskTokens::Frozen(tokens) => Ok(tokens.clone()),
            MaskTokens::Trained { iou_token, mask_tokens } => Tensor::cat(&[iou_token, &mask_tokens.get(mode)], 0)?.unsqueeze(0),
        }
    }

    /// Tokens that never change.
    fn constant(&self) -> Option<&Tensor> {
        match self {
            MaskTokens::Frozen(tokens) => Some(tokens),
            MaskTokens::Trained { .. } => None,
        }
    }
}

/// `mask_decoder.transformer`. `t` is the number of tokens, `n` = g·g the number of image positions.
pub(super) struct TwoWayTransformer {
    tokens: MaskTokens,
    layers: Vec<Layer>,
    final_attention: TokenToImage,
    norm_final: LayerNorm,
}

impl TwoWayTransformer {
    /// `image_pe` `[1, n, 256]`.
    pub(super) fn new(
        prefix: &str,
        tokens: MaskTokens,
        image_pe: &Tensor,
        parameters: &mut Parameters,
    ) -> std::result::Result<Self, ModelError> {
        let layers = (0..TRANSFORMER_DEPTH)
            .map(|i| Layer::new(&format!("{prefix}.layers.{i}"), i == 0, &tokens, image_pe, parameters))
            .collect::<std::result::Result<_, _>>()?;
        let final_attention = TokenToImage::new(&format!("{prefix}.final_attn_token_to_image"), image_pe, parameters)?;
        let norm_final = LayerNorm::new(&format!("{prefix}.norm_final_attn"), parameters)?;
        Ok(TwoWayTransformer { tokens, layers, final_attention, norm_final })
    }

    /// Image `[b, n, 256]` → (tokens `[b, t, 256]`, image `[b, n, 256]`).
    pub(super) fn forward(&self, image: &Tensor, mode: Mode) -> Result<(Tensor, Tensor)> {
        let (b, _n, c) = image.dims3()?;
        let tokens = self.tokens.get(mode)?.to_dtype(image.dtype())?;
        let pe = tokens.broadcast_as((b, tokens.dim(1)?, c))?.contiguous()?; // [b, t, 256]
        let mut queries = None;
        let mut keys = image.clone();
        for layer in &self.layers {
            let (q, k) = layer.forward(queries.as_ref(), &keys, &pe)?;
            (queries, keys) = (Some(q), k);
        }
        let Some(queries) = queries else { candle_core::bail!("the two-way transformer has no layers") };
        let query = self.final_attention.project_query(&(&queries + &pe)?)?;
        let queries = (&queries + self.final_attention.forward(&query, &keys)?)?;
        Ok((self.norm_final.forward(&queries)?, keys))
    }
}

/// Self-attention of the tokens, tokens to image, MLP, image to tokens.
struct Layer {
    tokens: TokenPart,
    token_to_image: TokenToImage,
    norm2: LayerNorm,
    mlp: Mlp,
    norm3: LayerNorm,
    image_to_token: ImageToToken,
    norm4: LayerNorm,
}

/// The self-attention of the tokens.
enum TokenPart {
    /// In the first layer neither the tokens nor their query to the image depend on the image, and frozen tokens never change.
    Constant {
        /// [1, t, 256]
        queries: Tensor,
        /// [1, t, 128]
        query: Tensor,
    },
    /// The first layer with trained tokens: no positional encoding is added here, and there is no residual.
    First {
        attention: SelfAttention,
        norm1: LayerNorm,
    },
    Attention {
        attention: SelfAttention,
        norm1: LayerNorm,
    },
}

impl Layer {
    fn new(
        prefix: &str,
        first: bool,
        tokens: &MaskTokens,
        image_pe: &Tensor,
        parameters: &mut Parameters,
    ) -> std::result::Result<Self, ModelError> {
        let attention = SelfAttention::new(&format!("{prefix}.self_attn"), parameters)?;
        let norm1 = LayerNorm::new(&format!("{prefix}.norm1"), parameters)?;
        let token_to_image = TokenToImage::new(&format!("{prefix}.cross_attn_token_to_image"), image_pe, parameters)?;
        let token_part = match (first, tokens.constant()) {
            (true, Some(tokens)) => {
                // As in `TokenPart::First`.
                let queries = norm1.forward(&attention.forward(tokens, tokens)?)?;
                let query = token_to_image.project_query(&(&queries + tokens)?)?;
                TokenPart::Constant { queries, query }
            }
            (true, None) => TokenPart::First { attention, norm1 },
            (false, _) => TokenPart::Attention { attention, norm1 },
        };
        let mlp = [format!("{prefix}.mlp.lin1"), format!("{prefix}.mlp.lin2")];
        Ok(Layer {
            tokens: token_part,
            token_to_image,
            norm2: LayerNorm::new(&format!("{prefix}.norm2"), parameters)?,
            mlp: Mlp::new(&mlp, parameters)?,
            norm3: LayerNorm::new(&format!("{prefix}.norm3"), parameters)?,
            image_to_token: ImageToToken::new(&format!("{prefix}.cross_attn_image_to_token"), image_pe, parameters)?,
            norm4: LayerNorm::new(&format!("{prefix}.norm4"), parameters)?,
        })
    }

    /// (queries `[b, t, 256]`, none before the first layer; keys `[b, n, 256]`; pe `[b, t, 256]`) → the new queries and keys.
    fn forward(&self, queries: Option<&Tensor>, keys: &Tensor, pe: &Tensor) -> Result<(Tensor, Tensor)> {
        let (b, t, c) = pe.dims3()?;
        let (queries, query) = match (&self.tokens, queries) {
            (TokenPart::Constant { queries, query }, None) => {
                let (_, _, width) = query.dims3()?;
                let constant = |x: &Tensor| x.to_dtype(keys.dtype()); // float32 unless the image has another type
                (
                    constant(queries)?.broadcast_as((b, t, c))?.contiguous()?,
                    constant(query)?.broadcast_as((b, t, width))?.contiguous()?,
                )
            }
            (TokenPart::First { attention, norm1 }, None) => {
                let queries = norm1.forward(&attention.forward(pe, pe)?)?;
                let query = self.token_to_image.project_query(&(&queries + pe)?)?;
                (queries, query)
            }
            (TokenPart::Attention { attention, norm1 }, Some(queries)) => {
                let attended = attention.forward(&(queries + pe)?, queries)?;
                let queries = norm1.forward(&(queries + attended)?)?;
                let query = self.token_to_image.project_query(&(&queries + pe)?)?;
                (queries, query)
            }
            _ => candle_core::bail!("only the two-way transformer's first layer starts without queries"),
        };
        let queries = self.norm2.forward(&(&queries + self.token_to_image.forward(&query, keys)?)?)?;
        let queries = self.norm3.forward(&(&queries + self.mlp.forward(&queries)?)?)?;
        let keys = self.norm4.forward(&(keys + self.image_to_token.forward(keys, &(&queries + pe)?, &queries)?)?)?;
        Ok((queries, keys))
    }
}

/// Self-attention of the tokens, at full width.
struct SelfAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl SelfAttention {
    fn new(prefix: &str, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(SelfAttention {
            q: Linear::new(&format!("{prefix}.q_proj"), parameters)?,
            k: Linear::new(&format!("{prefix}.k_proj"), parameters)?,
            v: Linear::new(&format!("{prefix}.v_proj"), parameters)?,
            out: Linear::new(&format!("{prefix}.out_proj"), parameters)?,
        })
    }

    /// Queries and keys from `qk`, values from `v`, all `[b, t, 256]`.
    fn forward(&self, qk: &Tensor, v: &Tensor) -> Result<Tensor> {
        self.out.forward(&scaled_attention(&self.q.forward(qk)?, &self.k.forward(qk)?, &self.v.forward(v)?)?)
    }
}

/// Cross-attention with queries from the tokens.
struct TokenToImage {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    /// The positional encoding's part of the keys, with the bias: [n, 128]
    k_pe: Tensor,
}

impl TokenToImage {
    fn new(prefix: &str, image_pe: &Tensor, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        let k = Linear::new(&format!("{prefix}.k_proj"), parameters)?;
        let k_pe = k.forward(image_pe)?.squeeze(0)?;
        Ok(TokenToImage {
            q: Linear::new(&format!("{prefix}.q_proj"), parameters)?,
            k,
            v: Linear::new(&format!("{prefix}.v_proj"), parameters)?,
            out: Linear::new(&format!("{prefix}.out_proj"), parameters)?,
            k_pe,
        })
    }

    /// `[b, t, 256]` → `[b, t, 128]`
    fn project_query(&self, x: &Tensor) -> Result<Tensor> {
        self.q.forward(x)
    }

    /// query `[b, t, 128]`, keys `[b, n, 256]` → `[b, t, 256]`
    fn forward(&self, query: &Tensor, keys: &Tensor) -> Result<Tensor> {
        self.out.forward(&scaled_attention(query, &self.k.forward_with(keys, &self.k_pe)?, &self.v.forward(keys)?)?)
    }
}

/// Cross-attention with queries from the image.
struct ImageToToken {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    /// The positional encoding's part of the queries, with the bias: [n, 128]
    q_pe: Tensor,
}

impl ImageToToken {
    fn new(prefix: &str, image_pe: &Tensor, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        let q = Linear::new(&format!("{prefix}.q_proj"), parameters)?;
        let q_pe = q.forward(image_pe)?.squeeze(0)?;
        Ok(ImageToToken {
            q,
            k: Linear::new(&format!("{prefix}.k_proj"), parameters)?,
            v: Linear::new(&format!("{prefix}.v_proj"), parameters)?,
            out: Linear::new(&format!("{prefix}.out_proj"), parameters)?,
            q_pe,
        })
    }

    /// image `[b, n, 256]`, keys and values from the tokens `[b, t, 256]` → `[b, n, 256]`
    fn forward(&self, image: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let q = self.q.forward_with(image, &self.q_pe)?;
        self.out.forward(&scaled_attention(&q, &self.k.forward(k)?, &self.v.forward(v)?)?)
    }
}

/// A frozen layer norm over the last axis.
struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    fn new(prefix: &str, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(LayerNorm {
            weight: parameters.frozen(&format!("{prefix}.weight"))?,
            bias: parameters.frozen(&format!("{prefix}.bias"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, EPS)
    }
}

/// softmax(q kᵀ / √d) v per head: q `[b, nq, c]`, k and v `[b, nk, c]` → `[b, nq, c]`.
fn scaled_attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let d = q.dim(2)? / HEADS;
    multi_head_attention(q, k, v, HEADS, 1.0 / (d as f64).sqrt())
}
