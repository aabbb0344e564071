//! Which of DINO's encoders a checkpoint holds.

use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_schemas::encoder::{EncoderArch, EncoderFamily};

/// Names of the register tokens: DINOv2's, DINOv3's, timm's.
pub(super) const REGISTERS: [&str; 3] = ["register_tokens", "storage_tokens", "reg_token"];

/// The encoder, by the width of its tokens, the side of its patches, its registers, and what names its blocks have; `None` if it is none of them.
pub(in crate::encoder) fn detect_dino(state: &StateDict) -> Option<EncoderArch> {
    let width = state.shape("cls_token")?.last().copied()?;
    let patch = state.shape("patch_embed.proj.weight")?.last().copied()?;
    let has_scale = ["ls1.gamma", "gamma_1"].iter().any(|name| state.shape(&format!("blocks.0.{name}")).is_some());
    let registers = REGISTERS.iter().find_map(|name| state.shape(name)).map_or(0, |shape| shape.get(1).copied().unwrap_or(0));
    let family = match state.shape("pos_embed") {
        _ if !has_scale => return None,
        Some(_) => EncoderFamily::Dinov2,
        None => EncoderFamily::Dinov3,
    };
    EncoderArch::ALL
        .into_iter()
        .find(|arch| (arch.family(), arch.embed_dim(), arch.patch(), arch.registers()) == (family, width, patch, registers))
}
