//! SAM's two-way transformer between the mask tokens and the image embeddings, all of it frozen, except for the tokens if the config says so.
//!
//! What does not depend on the image is computed once, when the model is made: the positional encodings' part of every key and query
//! projection (`W(x + pe) + b = W x + (W pe + b)`; see [`Projections`]), the same of the "no mask" embedding, which SAM adds to the image before
//! the first layer, and, unless the tokens are trained, the first layer's self-attention of the tokens and their query to the image.

use candle_core::{Result, Tensor};
use sam_ladder_ops::{
    F32Math, Tape, Value, add_layer_norm, layer_norm, linear, multi_head_cross_attention, multi_head_self_attention, record,
};
use sam_ladder_schemas::sam_names::TRANSFORMER_DEPTH;

use super::error::ModelError;
use super::mlp::{Linear, Mlp};
use super::parameters::{Frozen, Parameters, Trainable};

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
    /// `[b, t, 256]` in the number format of `like`; `None` for tokens that never change.
    fn trained(&self, b: usize, like: &Value, tape: Option<&Tape>) -> Result<Option<Value>> {
        let MaskTokens::Trained { iou_token, mask_tokens } = self else { return Ok(None) };
        let (dtype, count) = (like.tensor().dtype(), mask_tokens.tensor().dim(0)?);
        let tokens = Tensor::cat(&[iou_token, &mask_tokens.tensor()], 0)?.unsqueeze(0)?.to_dtype(dtype)?; // [1, t, 256]
        let tokens = record(tokens, &[&mask_tokens.on(tape)], move |gradient, _| {
            let of_mask_tokens = gradient.squeeze(0)?.narrow(0, 1, count)?;
            Ok(vec![Some(of_mask_tokens.to_dtype(candle_core::DType::F32)?.contiguous()?)])
        })?;
        tokens.repeat_first(b).map(Some)
    }

    /// Tokens that never change.
    fn constant(&self) -> Option<&Tensor> {
        match self {
            MaskTokens::Frozen(tokens) => Some(tokens),
            MaskTokens::Trained { .. } => None,
        }
    }
}

/// Projections of the same input, one behind the other in the result, of which some see `x + pe` instead of `x`, where `pe` is a positional
/// encoding.
struct Projections {
    /// [out, in]
    weight: Frozen,
    /// [out]
    bias: Tensor,
    /// The weight of those that see the encoding, zeros for the others.
    of_encoding: Frozen,
    /// The encoding's part with the bias, `[n, out]`, unless the encoding is trained.
    table: Option<Tensor>,
    math: F32Math,
}

impl Projections {
    /// Each part a name and whether it sees the encoding; `pe` `[1, n, in]` if it never changes; a constant `[1, 1, in]` that `x` lacks.
    fn new(
        prefix: &str,
        parts: &[(&str, bool)],
        pe: Option<&Tensor>,
        lacking: Option<&Tensor>,
        parameters: &mut Parameters,
    ) -> std::result::Result<Self, ModelError> {
        let (mut weights, mut biases, mut of_encoding) = (Vec::new(), Vec::new(), Vec::new());
        for &(name, sees_encoding) in parts {
            let weight = parameters.frozen(&format!("{prefix}.{name}.weight"))?;
            biases.push(parameters.frozen(&format!("{prefix}.{name}.bias"))?);
            of_encoding.push(if sees_encoding { weight.clone() } else { weight.zeros_like()? });
            weights.push(weight);
        }
        let (mut bias, of_encoding, math) = (Tensor::cat(&biases, 0)?, Tensor::cat(&of_encoding, 0)?, parameters.math());
        let weight = Tensor::cat(&weights, 0)?;
        if let Some(constant) = lacking {
            bias = linear(&constant.into(), &(&weight).into(), Some(&bias.into()), math)?.into_tensor().flatten_all()?;
        }
        let of_constant = |pe: &Tensor| -> Result<Tensor> {
            linear(&pe.into(), &(&of_encoding).into(), Some(&(&bias).into()), math)?.into_tensor().squeeze(0)
        };
        let table = pe.map(of_constant).transpose()?;
        Ok(Projections { weight: Frozen::new(weight), bias, of_encoding: Frozen::new(of_encoding), table, math })
    }

    /// x `[b, n, in]`, and the encoding if it is trained → `[b, n, out]`
    fn forward(&self, x: &Value, pe: Option<&Value>) -> Result<Value> {
        match (&self.table, pe) {
            (Some(table), _) => self.with_bias(x, table),
            (None, Some(pe)) => {
                let of_encoding = linear(pe, &self.of_encoding.like(x)?.into(), None, self.math)?;
                self.without_encoding(x)?.add(&of_encoding)
            }
            (None, None) => candle_core::bail!("a trained positional encoding is needed"),
        }
    }

    /// As [`Self::forward`], without an encoding.
    fn without_encoding(&self, x: &Value) -> Result<Value> {
        self.with_bias(x, &self.bias)
    }

    fn with_bias(&self, x: &Value, bias: &Tensor) -> Result<Value> {
        linear(x, &self.weight.like(x)?.into(), Some(&bias.into()), self.math)
    }
}

/// `mask_decoder.transformer`. `t` is the number of tokens, `n` = g·g the number of image positions.
pub(super) struct TwoWayTransformer {
    tokens: MaskTokens,
    layers: Vec<Layer>,
    final_attention: CrossAttention,
    norm_final: LayerNorm,
}

impl TwoWayTransformer {
    /// Image side: positional encoding `[1, n, 256]`, and the embedding `[1, 1, 256]` that the image which [`Self::forward`] gets lacks.
    pub(super) fn new(
        prefix: &str,
        tokens: MaskTokens,
        (image_pe, no_mask): (&Tensor, &Tensor),
        parameters: &mut Parameters,
    ) -> std::result::Result<Self, ModelError> {
        let layers = (0..TRANSFORMER_DEPTH)
            .map(|i| {
                let lacking = (i == 0).then_some(no_mask);
                Layer::new(&format!("{prefix}.layers.{i}"), &tokens, (image_pe, lacking), parameters)
            })
            .collect::<std::result::Result<_, _>>()?;
        let final_attention = CrossAttention::new(
            &format!("{prefix}.final_attn_token_to_image"),
            [tokens.constant(), Some(image_pe)],
            [None; 2],
            parameters,
        )?;
        let norm_final = LayerNorm::new(&format!("{prefix}.norm_final_attn"), parameters)?;
        Ok(TwoWayTransformer { tokens, layers, final_attention, norm_final })
    }

    /// Image `[b, n, 256]` → (tokens `[b, t, 256]`, image `[b, n, 256]`).
    pub(super) fn forward(&self, image: &Value, tape: Option<&Tape>) -> Result<(Value, Value)> {
        let pe = self.tokens.trained(image.tensor().dim(0)?, image, tape)?;
        let mut queries = None;
        let mut keys = image.clone();
        for layer in &self.layers {
            let (q, k) = layer.forward(queries.as_ref(), &keys, pe.as_ref())?;
            (queries, keys) = (Some(q), k);
        }
        let Some(queries) = queries else { candle_core::bail!("the two-way transformer has no layers") };
        let query = self.final_attention.q.forward(&queries, pe.as_ref())?;
        let attended = self.final_attention.forward(&query, &keys, None)?;
        Ok((self.norm_final.of_sum(&queries, &attended)?, keys))
    }
}

/// Self-attention of the tokens, tokens to image, MLP, image to tokens.
struct Layer {
    tokens: TokenPart,
    token_to_image: CrossAttention,
    norm2: LayerNorm,
    mlp: Mlp,
    norm3: LayerNorm,
    image_to_token: CrossAttention,
    norm4: LayerNorm,
}

/// The self-attention of the tokens.
enum TokenPart {
    /// In the first layer neither the tokens nor their query to the image depend on the image, and frozen tokens never change.
    Constant {
        /// [1, t, 256]
        queries: Frozen,
        /// [1, t, 128]
        query: Frozen,
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
    /// Image side: positional encoding, and in the first layer the embedding that the image lacks.
    fn new(
        prefix: &str,
        tokens: &MaskTokens,
        (image_pe, lacking): (&Tensor, Option<&Tensor>),
        parameters: &mut Parameters,
    ) -> std::result::Result<Self, ModelError> {
        let first = lacking.is_some();
        let name = |what: &str| format!("{prefix}.cross_attn_{what}");
        let encodings = [tokens.constant(), Some(image_pe)];
        let token_to_image = CrossAttention::new(&name("token_to_image"), encodings, [None, lacking], parameters)?;
        // The first layer attends to the tokens themselves.
        let pe = tokens.constant().filter(|_| !first);
        let attention = SelfAttention::new(&format!("{prefix}.self_attn"), pe, parameters)?;
        let norm1 = LayerNorm::new(&format!("{prefix}.norm1"), parameters)?;
        let token_part = match (first, tokens.constant()) {
            (true, Some(tokens)) => {
                let queries = norm1.forward(&attention.without_encoding(&tokens.into())?)?;
                let query = token_to_image.q.forward(&queries, None)?;
                TokenPart::Constant { queries: Frozen::new(queries.into_tensor()), query: Frozen::new(query.into_tensor()) }
            }
            (true, None) => TokenPart::First { attention, norm1 },
            (false, _) => TokenPart::Attention { attention, norm1 },
        };
        Ok(Layer {
            tokens: token_part,
            token_to_image,
            norm2: LayerNorm::new(&format!("{prefix}.norm2"), parameters)?,
            mlp: Mlp::new(&format!("{prefix}.mlp"), parameters)?,
            norm3: LayerNorm::new(&format!("{prefix}.norm3"), parameters)?,
            image_to_token: {
                let attention =
                    CrossAttention::new(&name("image_to_token"), [encodings[1], encodings[0]], [lacking, None], parameters)?;
                // The image that the result is added to lacks it, too.
                match lacking {
                    Some(constant) => CrossAttention { out: attention.out.plus(constant)?, ..attention },
                    None => attention,
                }
            },
            norm4: LayerNorm::new(&format!("{prefix}.norm4"), parameters)?,
        })
    }

    /// (queries `[b, t, 256]`, none before the first layer; keys `[b, n, 256]`; trained tokens `[b, t, 256]`) → the new queries and keys.
    fn forward(&self, queries: Option<&Value>, keys: &Value, pe: Option<&Value>) -> Result<(Value, Value)> {
        let (queries, query) = match (&self.tokens, queries, pe) {
            (TokenPart::Constant { queries, query }, None, None) => {
                let repeated = |x: &Frozen| Value::from(x.like(keys)?).repeat_first(keys.tensor().dim(0)?);
                (repeated(queries)?, repeated(query)?)
            }
            (TokenPart::First { attention, norm1 }, None, Some(tokens)) => {
                let queries = norm1.forward(&attention.without_encoding(tokens)?)?;
                let query = self.token_to_image.q.forward(&queries, pe)?;
                (queries, query)
            }
            (TokenPart::Attention { attention, norm1 }, Some(queries), _) => {
                let queries = norm1.of_sum(queries, &attention.forward(queries, pe)?)?;
                let query = self.token_to_image.q.forward(&queries, pe)?;
                (queries, query)
            }
            _ => candle_core::bail!("only the two-way transformer's first layer starts without queries"),
        };
        let queries = self.norm2.of_sum(&queries, &self.token_to_image.forward(&query, keys, None)?)?;
        let queries = self.norm3.of_sum(&queries, &self.mlp.forward(&queries)?)?;
        let query = self.image_to_token.q.forward(keys, None)?;
        let keys = self.norm4.of_sum(keys, &self.image_to_token.forward(&query, &queries, pe)?)?;
        Ok((queries, keys))
    }
}

/// Self-attention of the tokens, at full width.
struct SelfAttention {
    qkv: Projections,
    out: Linear,
}

impl SelfAttention {
    /// `pe` `[1, t, 256]`, if there is one that never changes.
    fn new(prefix: &str, pe: Option<&Tensor>, parameters: &mut Parameters) -> std::result::Result<Self, ModelError> {
        Ok(SelfAttention {
            qkv: Projections::new(prefix, &[("q_proj", true), ("k_proj", true), ("v_proj", false)], pe, None, parameters)?,
            out: Linear::new(&format!("{prefix}.out_proj"), parameters)?,
        })
    }

    /// x `[b, t, 256]` → the same; queries and keys see the encoding.
    fn forward(&self, x: &Value, pe: Option<&Value>) -> Result<Value> {
        self.attend(&self.qkv.forward(x, pe)?)
    }

    /// As [`Self::forward`], without an encoding.
    fn without_encoding(&self, x: &Value) -> Result<Value> {
        self.attend(&self.qkv.without_encoding(x)?)
    }

    fn attend(&self, qkv: &Value) -> Result<Value> {
        self.out.forward(&multi_head_self_attention(qkv, HEADS, scale(qkv.tensor().dim(2)? / 3))?)
    }
}

/// Cross-attention, at half width.
struct CrossAttention {
    q: Projections,
    kv: Projections,
    out: Linear,
}

impl CrossAttention {
    /// Of the queries' and of the keys' side: encodings `[1, n, 256]` where they never change, and a constant `[1, 1, 256]` that the input lacks.
    fn new(
        prefix: &str,
        pe: [Option<&Tensor>; 2],
        lacking: [Option<&Tensor>; 2],
        parameters: &mut Parameters,
    ) -> std::result::Result<Self, ModelError> {
        Ok(CrossAttention {
            q: Projections::new(prefix, &[("q_proj", true)], pe[0], lacking[0], parameters)?,
            kv: Projections::new(prefix, &[("k_proj", true), ("v_proj", false)], pe[1], lacking[1], parameters)?,
            out: Linear::new(&format!("{prefix}.out_proj"), parameters)?,
        })
    }

    /// query `[b, nq, 128]`, by [`Self::q`]; keys `[b, nk, 256]` and their encoding if it is trained → `[b, nq, 256]`
    fn forward(&self, query: &Value, keys: &Value, pe: Option<&Value>) -> Result<Value> {
        let kv = self.kv.forward(keys, pe)?;
        self.out.forward(&multi_head_cross_attention(query, &kv, HEADS, scale(query.tensor().dim(2)?))?)
    }
}

/// 1/√d for heads of `width` channels together.
fn scale(width: usize) -> f64 {
    1.0 / ((width / HEADS) as f64).sqrt()
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

    fn forward(&self, x: &Value) -> Result<Value> {
        layer_norm(x, &(&self.weight).into(), &(&self.bias).into(), EPS)
    }

    /// Of the sum of a residual and what is added to it.
    fn of_sum(&self, x: &Value, added: &Value) -> Result<Value> {
        add_layer_norm(x, added, &(&self.weight).into(), &(&self.bias).into(), EPS)
    }
}
