//! Checkpoints that are passed in the place of SAM's, known by the names of their tensors.

use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_schemas::encoder::EncoderArch;

use super::dino::detect::detect_dino;

/// A model that is not SAM under SAM's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OtherModel {
    /// Meta's SAM 2.
    Sam2,
    /// MobileSAM, whose encoder is a TinyViT.
    MobileSam,
    /// SAM as the library transformers names it.
    Transformers,
    /// The whole published model, with an image encoder.
    Whole,
    /// The model of a run, which has no image encoder.
    Run,
    /// SAM itself.
    Sam,
    /// One of DINO's encoders.
    Dino(EncoderArch),
    /// A ResNet.
    ResNet,
    /// SAM's image encoder without its decoder, or its decoder without the encoder.
    Part,
    /// SAM's names after this prefix, which is none of those that are removed.
    Prefixed(String),
}

/// What is known of a file without SAM's table of positions.
pub(super) fn recognise(state: &StateDict) -> Option<OtherModel> {
    let begins = |start: &str| state.names().any(|name| name.starts_with(start));
    let prefix = state.names().find_map(|name| name.strip_suffix("image_encoder.pos_embed"));
    if let (None, Some(arch)) = (prefix, detect_dino(state)) {
        return Some(OtherModel::Dino(arch));
    }
    Some(match prefix {
        _ if begins("CNN_encoder.") && prefix == Some("sam.") => OtherModel::Whole,
        _ if begins("CNN_encoder.") => OtherModel::Run,
        Some("") => OtherModel::Sam,
        Some(prefix) => OtherModel::Prefixed(prefix.to_owned()),
        None if begins("image_encoder.trunk.") => OtherModel::Sam2,
        None if begins("image_encoder.layers.") => OtherModel::MobileSam,
        None if begins("vision_encoder.") => OtherModel::Transformers,
        None if begins("layer1.0.conv") || begins("conv1.weight") => OtherModel::ResNet,
        None if begins("mask_decoder.") || (begins("blocks.0.") && begins("neck.")) => OtherModel::Part,
        None => return None,
    })
}

impl OtherModel {
    /// What it is, in words.
    pub(super) fn name(&self) -> String {
        match self {
            OtherModel::Sam2 => "SAM 2".into(),
            OtherModel::MobileSam => "MobileSAM".into(),
            OtherModel::Transformers => "SAM in the names of the library transformers".into(),
            OtherModel::Whole => "a whole model of the published code".into(),
            OtherModel::Run => "the model of a run, which has no image encoder".into(),
            OtherModel::Sam => "SAM".into(),
            OtherModel::Dino(arch) => format!("{}, an encoder without a mask decoder", arch.name()),
            OtherModel::ResNet => "a ResNet".into(),
            OtherModel::Part => "a part of SAM, the encoder or the decoder".into(),
            OtherModel::Prefixed(prefix) => format!("SAM with {prefix} before its names"),
        }
    }

    /// What to do with it.
    pub(super) fn advice(&self) -> String {
        match self {
            OtherModel::Whole => "eval and predict take it as --checkpoint, train as --init".into(),
            OtherModel::Sam => {
                "pass it with --sam-checkpoint; its own encoder is used if there is no --encoder-checkpoint".into()
            }
            OtherModel::Dino(_) => {
                "pass it with --encoder-checkpoint, and SAM's checkpoint, which has the mask decoder, with --sam-checkpoint"
                    .into()
            }
            OtherModel::ResNet => "train takes it as --cnn-checkpoint".into(),
            OtherModel::Prefixed(prefix) => {
                let length = prefix.len();
                format!(
                    "remove it: torch.save({{name[{length}:]: tensor for name, tensor in state.items() if name.startswith({prefix:?})}}, new)"
                )
            }
            OtherModel::Transformers => "pass the file that Segment Anything publishes (make weights)".into(),
            _ => "pass sam_vit_b, sam_vit_l or sam_vit_h as Segment Anything publishes them (make weights)".into(),
        }
    }
}
