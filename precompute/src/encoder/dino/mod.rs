//! DINOv2's and DINOv3's vision transformers (`dinov2/models/vision_transformer.py`, `dinov3/models/vision_transformer.py`): ViT-S, B and L with a
//! class token, with or without registers, layer scale, and learned or rotary positions. The embeddings are the patches' tokens after the last norm.

mod config;
pub(super) mod detect;
mod load;
mod vit;

pub(super) use config::DinoConfig;
pub(super) use load::DinoState;
pub(super) use vit::DinoVit;
