//! From a checkpoint to an encoder at any image size, and from SAM's to the decoder's tensors.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_schemas::encoder::{EncoderArch, PATCH_SIZE};
use sam_ladder_schemas::sam_names::{NamedShape, SAM_MASK_TOKENS, mask_decoder_tensors, prompt_encoder_tensors};

use super::config::VitConfig;
use super::dino::DinoState;
use super::dino::detect::detect_dino;
use super::other_model::recognise;
use super::position_tables::{resize_rows, resize_square};
use super::{EncoderError, ImageEncoder, Placement, Result, check_image_size};

/// Before the names of the encoder's tensors in a SAM checkpoint.
pub(super) const PREFIX: &str = "image_encoder.";
/// Before them in a checkpoint of the whole published model, whose tables of positions have its image size already.
const PUBLISHED_PREFIX: &str = "sam.image_encoder.";

/// Names and shapes of SAM's prompt encoder and mask decoder.
pub(super) fn sam_decoder_tensors() -> Vec<NamedShape> {
    prompt_encoder_tensors().into_iter().chain(mask_decoder_tensors(SAM_MASK_TOKENS)).collect()
}

/// Which of SAM's encoders a checkpoint holds, by the width of its tokens.
///
/// # Errors
/// If it holds none of them.
pub fn detect_arch(state: &StateDict) -> Result<EncoderArch> {
    let key = "image_encoder.pos_embed";
    let shape = state.shape(key).ok_or_else(|| no_positions(state, key))?;
    Ok(arch_and_grid(state, key, &shape)?.0)
}

/// Which of DINO's encoders a checkpoint holds.
///
/// # Errors
/// If it holds none of them.
pub fn detect_encoder(state: &StateDict) -> Result<EncoderArch> {
    let of_other = || EncoderError::NoDino { path: state.source().to_owned(), model: recognise(state) };
    detect_dino(state).ok_or_else(of_other)
}

fn no_positions(state: &StateDict, key: &str) -> EncoderError {
    EncoderError::NoPositions { path: state.source().to_owned(), key: key.to_owned(), model: recognise(state) }
}

/// Architecture and tokens along the side of a table of absolute positions.
fn arch_and_grid(state: &StateDict, key: &str, shape: &[usize]) -> Result<(EncoderArch, usize)> {
    let arch =
        EncoderArch::SAM.into_iter().find(|arch| matches!(shape[..], [1, h, w, c] if h == w && h > 0 && c == arch.embed_dim()));
    let arch = arch.ok_or_else(|| EncoderError::PositionsShape {
        path: state.source().to_owned(),
        key: key.to_owned(),
        found: shape.to_vec(),
    })?;
    Ok((arch, shape[1]))
}

/// The encoder within a checkpoint of the whole published model (`sam.image_encoder.…`), at the image size that the file was made for;
/// `None` where the file holds none.
///
/// # Errors
/// If a tensor of it is missing, damaged or of another shape.
pub fn published_encoder<'a>(state: &StateDict, placement: impl Into<Placement<'a>>) -> Result<Option<ImageEncoder>> {
    let key = format!("{PUBLISHED_PREFIX}pos_embed");
    let Some(shape) = state.shape(&key) else { return Ok(None) };
    let (arch, grid) = arch_and_grid(state, &key, &shape)?;
    let config = VitConfig::new(arch, grid * PATCH_SIZE);
    let shapes: HashMap<String, Vec<usize>> = config.tensors().into_iter().collect();
    let read = |name: &str| Ok(state.expect(&format!("{PUBLISHED_PREFIX}{name}"), &shapes[name], &Device::Cpu)?);
    ImageEncoder::from_tensors(config, placement.into(), read).map(Some)
}

/// The prompt encoder's and the mask decoder's tensors, under their names in the checkpoint, sorted.
///
/// # Errors
/// If one is missing, damaged or of another shape.
pub fn decoder_weights(state: &StateDict) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = sam_decoder_tensors();
    tensors.sort();
    let read = |(name, shape): (String, Vec<usize>)| {
        let tensor = state.expect(&name, &shape, &Device::Cpu)?;
        Ok((name, tensor))
    };
    tensors.into_iter().map(read).collect()
}

impl ImageEncoder {
    /// Loads an encoder for a network's input of `image_size`: one of SAM's from a checkpoint of the whole of SAM, or one of DINO's. The tables of positions are brought to `image_size`, unless the
    /// checkpoint has that size already: absolute ones along both axes, relative ones of the global blocks along their rows.
    ///
    /// # Errors
    /// If the checkpoint is of another architecture, lacks a tensor of SAM's, holds one that is not, or has one of another shape; or if
    /// the image size is not a multiple of 16.
    pub fn load<'a>(
        state: &StateDict,
        arch: EncoderArch,
        image_size: usize,
        placement: impl Into<Placement<'a>>,
    ) -> Result<Self> {
        if !arch.is_sam() {
            check_image_size(image_size)?;
            detect_encoder(state)?;
            let file = DinoState::new(state, arch, image_size / PATCH_SIZE)?;
            return Self::dino_from_tensors(file.config(), placement.into(), |name| file.tensor(name));
        }
        let sized = SizedState::new(state, arch, image_size)?;
        Self::from_tensors(sized.config.clone(), placement.into(), |name| sized.tensor(name))
    }
}

/// The image encoder's tensors of a SAM checkpoint, under their names there (`image_encoder.…`), with the tables of positions at
/// `image_size`: what the published code's model of that size holds.
///
/// # Errors
/// As [`ImageEncoder::load`].
pub fn sized_encoder_tensors(state: &StateDict, image_size: usize) -> Result<Vec<(String, Tensor)>> {
    let sized = SizedState::new(state, detect_arch(state)?, image_size)?;
    let read = |(name, _): (String, Vec<usize>)| Ok((format!("{PREFIX}{name}"), sized.tensor(&name)?));
    sized.config.tensors().into_iter().map(read).collect()
}

/// A checked checkpoint, read at another image size than its own.
struct SizedState<'a> {
    state: &'a StateDict,
    stored: VitConfig,
    config: VitConfig,
    shapes: HashMap<String, Vec<usize>>,
}

impl<'a> SizedState<'a> {
    fn new(state: &'a StateDict, arch: EncoderArch, image_size: usize) -> Result<Self> {
        check_image_size(image_size)?;
        let stored = check(state, arch)?;
        let config = VitConfig::new(arch, image_size);
        let shapes = config.tensors().into_iter().collect();
        Ok(Self { state, stored, config, shapes })
    }

    /// One of the encoder's tensors, named without `image_encoder.`, on the CPU.
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let tensor = self.state.finite(&format!("{PREFIX}{name}"), &Device::Cpu)?;
        let shape = &self.shapes[name];
        if tensor.dims() == shape {
            return Ok(tensor);
        }
        // only tables of positions depend on the size, as the checks of their stored shapes made sure
        let table = tensor.flatten_all()?.to_vec1::<f32>()?;
        let (stored, grid) = (self.stored.grid(), self.config.grid());
        let resized = match name {
            "pos_embed" => resize_square(&table, stored, grid),
            _ => resize_rows(&table, 2 * stored - 1, 2 * grid - 1),
        };
        Ok(Tensor::from_vec(resized, shape.as_slice(), &Device::Cpu)?)
    }
}

/// Compares a checkpoint's names and shapes with SAM's; the numbers of its encoder at its own image size.
fn check(state: &StateDict, arch: EncoderArch) -> Result<VitConfig> {
    let found = detect_arch(state)?;
    if found != arch {
        let path = state.source().to_owned();
        return Err(EncoderError::OtherArchitecture { path, found: found.name(), expected: arch.name() });
    }
    let grid = state.shape("image_encoder.pos_embed").map_or(0, |shape| shape[1]);
    let stored = VitConfig::new(arch, grid * PATCH_SIZE);
    let encoder = stored.tensors().into_iter().map(|(name, shape)| (format!("{PREFIX}{name}"), shape));
    let expected: HashMap<String, Vec<usize>> = encoder.chain(sam_decoder_tensors()).collect();
    let mut names: Vec<&String> = expected.keys().collect();
    names.sort();
    for name in names {
        state.check(name, &expected[name])?;
    }
    let extra: Vec<&str> = state.names().filter(|name| !expected.contains_key(*name)).collect();
    if let Some(first) = extra.first() {
        return Err(EncoderError::ForeignTensors {
            path: state.source().to_owned(),
            key: (*first).to_owned(),
            others: extra.len() - 1,
            arch: format!("SAM's {}", arch.name()),
        });
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SAM's names, each with a tensor that has its shape but only one element in memory.
    fn hollow(arch: EncoderArch) -> HashMap<String, Tensor> {
        let encoder = VitConfig::new(arch, 1024).tensors().into_iter().map(|(name, shape)| (format!("{PREFIX}{name}"), shape));
        let zero = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu).unwrap();
        encoder.chain(sam_decoder_tensors()).map(|(name, shape)| (name, zero.broadcast_as(shape).unwrap())).collect()
    }

    fn message(tensors: HashMap<String, Tensor>, arch: EncoderArch) -> String {
        let state = StateDict::from_tensors("sam.pth", tensors).unwrap();
        let said =
            |error: EncoderError| [Some(error.to_string()), error.hint()].into_iter().flatten().collect::<Vec<_>>().join("; ");
        check(&state, arch).map_or_else(said, |_| "accepted".to_owned())
    }

    #[test]
    fn sizes_of_the_three_architectures() {
        // number of tensors and of parameters of SAM's published checkpoints
        for (arch, tensors, parameters) in
            [(EncoderArch::VitB, 314, 93_735_728), (EncoderArch::VitL, 482, 312_343_088), (EncoderArch::VitH, 594, 641_090_864)]
        {
            let hollow = hollow(arch);
            assert_eq!(hollow.len(), tensors, "{}", arch.name());
            assert_eq!(hollow.values().map(|t| t.elem_count()).sum::<usize>(), parameters, "{}", arch.name());
            let state = StateDict::from_tensors("sam.pth", hollow).unwrap();
            assert_eq!(detect_arch(&state).unwrap(), arch);
            assert!(check(&state, arch).is_ok());
        }
    }

    /// Files that were trained further, at another image size, under SAM's names or below a wrapper's, as MedSAM and SAM-Med2D publish them.
    #[test]
    fn checkpoints_trained_further_are_taken() {
        let arch = EncoderArch::VitB;
        let zero = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu).unwrap();
        for (image_size, prefix) in [(1024, ""), (1024, "module."), (256, ""), (256, "module.")] {
            let encoder =
                VitConfig::new(arch, image_size).tensors().into_iter().map(|(name, shape)| (format!("{PREFIX}{name}"), shape));
            let tensors = encoder.chain(sam_decoder_tensors());
            let named = tensors.map(|(name, shape)| (format!("{prefix}{name}"), zero.broadcast_as(shape).unwrap())).collect();
            let state = StateDict::from_tensors("medsam.pth", named).unwrap();
            assert_eq!(detect_arch(&state).unwrap(), arch);
            let sized = SizedState::new(&state, arch, 512).unwrap();
            assert_eq!(sized.stored.grid(), image_size / 16);
            for name in ["pos_embed", "blocks.2.attn.rel_pos_h", "blocks.0.attn.rel_pos_h"] {
                assert_eq!(sized.tensor(name).unwrap().dims(), sized.shapes[name], "{name} at {image_size}");
            }
        }
        // SAM-Med2D's adapters are layers that the encoder does not have.
        let mut tensors = hollow(arch);
        tensors.insert(
            "image_encoder.blocks.0.Adapter.channel.0.weight".to_owned(),
            Tensor::zeros((192, 768), candle_core::DType::F32, &Device::Cpu).unwrap(),
        );
        assert!(
            message(tensors, arch).contains("the key image_encoder.blocks.0.Adapter.channel.0.weight is not one of SAM's vit_b")
        );
    }

    #[test]
    fn every_kind_of_wrong_checkpoint_is_named() {
        let arch = EncoderArch::VitB;
        assert_eq!(
            message(hollow(EncoderArch::VitL), arch),
            "sam.pth is a vit_l checkpoint, expected vit_b; pass --encoder vit_l or a checkpoint of vit_b"
        );
        let mut tensors = hollow(arch);
        tensors.remove("image_encoder.blocks.3.mlp.lin1.bias");
        assert!(message(tensors, arch).contains("the key image_encoder.blocks.3.mlp.lin1.bias is missing"));
        let mut tensors = hollow(arch);
        tensors.insert(
            "image_encoder.blocks.12.norm1.weight".to_owned(),
            Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap(),
        );
        assert!(message(tensors, arch).contains("the key image_encoder.blocks.12.norm1.weight is not one of SAM's vit_b"));
        let mut tensors = hollow(arch);
        tensors.insert(
            "mask_decoder.mask_tokens.weight".to_owned(),
            Tensor::zeros((9, 256), candle_core::DType::F32, &Device::Cpu).unwrap(),
        );
        assert_eq!(
            message(tensors, arch),
            "sam.pth: mask_decoder.mask_tokens.weight has shape [9, 256], expected [4, 256]; pass a checkpoint of the requested model"
        );
        assert!(message(HashMap::new(), arch).contains("is not a SAM checkpoint; pass sam_vit_b"));
        for (name, expected) in [
            ("image_encoder.trunk.patch_embed.proj.weight", "it looks like SAM 2; pass sam_vit_b"),
            ("image_encoder.layers.0.blocks.0.conv1.c.weight", "it looks like MobileSAM; pass sam_vit_b"),
            ("vision_encoder.pos_embed", "in the names of the library transformers; pass the file"),
            ("layer1.0.conv1.weight", "it looks like a ResNet; train takes it as --cnn-checkpoint"),
            ("CNN_encoder.conv1.weight", "the model of a run, which has no image encoder"),
            ("mask_decoder.iou_token.weight", "a part of SAM"),
            ("net.sam.image_encoder.pos_embed", "SAM with net.sam. before its names; remove it: torch.save({name[8:]"),
        ] {
            let one = Tensor::zeros((1, 64, 64, 768), candle_core::DType::F32, &Device::Cpu).unwrap();
            let said = message(HashMap::from([(name.to_owned(), one)]), arch);
            assert!(said.contains(expected), "{name}: {said}");
        }
        let mut tensors = hollow(arch);
        tensors.insert(
            "image_encoder.pos_embed".to_owned(),
            Tensor::zeros((1, 2, 2, 100), candle_core::DType::F32, &Device::Cpu).unwrap(),
        );
        assert!(message(tensors, arch).contains("has shape [1, 2, 2, 100]"));
    }
}
