//! From a checkpoint of DINOv2 or DINOv3, in the publishers' names or timm's, to an encoder at any image size.
//!
//! | | publishers' | timm's |
//! | --- | --- | --- |
//! | registers | `register_tokens`, DINOv3 `storage_tokens` | `reg_token` |
//! | positions of DINOv2 with registers | `pos_embed`, the class token's first | those of the patches; the class token's is in `cls_token` |
//! | layer scale of DINOv3 | `ls1.gamma`, `ls2.gamma` | `gamma_1`, `gamma_2` |
//! | biases of DINOv3 | `attn.qkv.bias` times `attn.qkv.bias_mask`, which is 0 for keys | none, or `attn.q_bias` and `attn.v_bias` |
//! | only of the publishers' | `mask_token`, DINOv3's `rope_embed.periods`, `local_cls_norm` | |
//!
//! `rope_embed.periods` hold what the encoder computes itself, in the files rounded to bfloat16; timm computes them too. They are checked, and not
//! used, so that both names load to the same bits.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use sam_ladder_formats::state_dict::StateDict;
use sam_ladder_ops::image::bicubic::resize_bicubic_antialiased;
use sam_ladder_schemas::encoder::EncoderArch;

use super::super::{EncoderError, Result};
use super::config::DinoConfig;
use super::detect::{REGISTERS, detect_dino};
use super::vit::periods;

/// What rounding to bfloat16 changes of a number at most, relatively.
const BFLOAT16: f64 = 1.0 / 256.0;
/// DINOv3's periods.
const PERIODS: &str = "rope_embed.periods";

/// A checked checkpoint, read for images of some size.
pub(in crate::encoder) struct DinoState<'a> {
    state: &'a StateDict,
    config: DinoConfig,
    shapes: HashMap<String, Vec<usize>>,
    /// Patches along the side of the image for which the file's positions are, and whether the class token's is before them.
    positions: Option<(usize, bool)>,
}

impl<'a> DinoState<'a> {
    /// Of a file that must hold this encoder and nothing else, for images of `grid` patches along the side.
    ///
    /// # Errors
    /// Another encoder's file, or one that lacks a tensor, has another, or one of another shape.
    pub(in crate::encoder) fn new(state: &'a StateDict, arch: EncoderArch, grid: usize) -> Result<Self> {
        let path = || state.source().to_owned();
        let found = detect_dino(state).ok_or_else(|| EncoderError::NoDino { path: path(), model: None })?;
        if found != arch {
            return Err(EncoderError::OtherArchitecture { path: path(), found: found.name(), expected: arch.name() });
        }
        let config = DinoConfig::new(arch, grid);
        let positions = if config.rotary { None } else { Some(positions(state, config.embed_dim)?) };
        let shapes = config.tensors().into_iter().collect();
        let file = DinoState { state, config, shapes, positions };
        file.check(arch)?;
        Ok(file)
    }

    /// The encoder's numbers.
    pub(in crate::encoder) fn config(&self) -> &DinoConfig {
        &self.config
    }

    /// The file's name of a tensor, of those that it may have.
    fn name(&self, name: &str) -> String {
        let others: Vec<String> = match name.rsplit_once("ls") {
            Some((block, "1.gamma")) => vec![format!("{block}gamma_1")],
            Some((block, "2.gamma")) => vec![format!("{block}gamma_2")],
            _ if name == REGISTERS[0] => REGISTERS[1..].iter().map(|name| (*name).to_owned()).collect(),
            _ => Vec::new(),
        };
        others.into_iter().find(|other| self.state.shape(other).is_some()).unwrap_or_else(|| name.to_owned())
    }

    /// The names of the biases of queries, keys and values that the file has, with their shapes: all in one with its mask, or two, or none.
    fn biases(&self, block: usize) -> Vec<(String, Vec<usize>)> {
        let (c, prefix) = (self.config.embed_dim, format!("blocks.{block}.attn"));
        let has = |name: &str| self.state.shape(&format!("{prefix}.{name}")).is_some();
        let names: &[(&str, usize)] = match self.config.rotary {
            false => &[("qkv.bias", 3)],
            true if has("qkv.bias") || has("qkv.bias_mask") => &[("qkv.bias", 3), ("qkv.bias_mask", 3)],
            true if has("q_bias") || has("v_bias") => &[("q_bias", 1), ("v_bias", 1)],
            true => &[],
        };
        names.iter().map(|(name, parts)| (format!("{prefix}.{name}"), vec![parts * c])).collect()
    }

    /// Every tensor of the file is one of the encoder's, and none is missing.
    fn check(&self, arch: EncoderArch) -> Result<()> {
        let c = self.config.embed_dim;
        let mut expected: HashMap<String, Vec<usize>> = HashMap::new();
        for (name, shape) in self.config.tensors() {
            match (&*name, self.positions) {
                ("pos_embed", Some((side, class))) => expected.insert(name, vec![1, usize::from(class) + side * side, c]),
                (bias, _) if bias.ends_with("qkv.bias") => None,
                _ => expected.insert(self.name(&name), shape),
            };
        }
        (0..self.config.depth).for_each(|block| expected.extend(self.biases(block)));
        let mut names: Vec<&String> = expected.keys().collect();
        names.sort();
        for name in names {
            self.state.check(name, &expected[name])?;
        }
        let mut unused = HashMap::from([("mask_token", vec![1, c])]);
        if self.config.rotary {
            unused.extend([("local_cls_norm.weight", vec![c]), ("local_cls_norm.bias", vec![c])]);
            unused.insert(PERIODS, vec![self.config.head_dim() / 4]);
            self.check_periods()?;
        }
        for (name, shape) in &unused {
            if self.state.shape(name).is_some() {
                self.state.check(name, shape)?;
            }
        }
        let is_known = |name: &&str| expected.contains_key(*name) || unused.contains_key(name);
        let extra: Vec<&str> = self.state.names().filter(|name| !is_known(name)).collect();
        match extra.first() {
            Some(first) => Err(EncoderError::ForeignTensors {
                path: self.state.source().to_owned(),
                key: (*first).to_owned(),
                others: extra.len() - 1,
                arch: format!("{}'s", arch.name()),
            }),
            None => Ok(()),
        }
    }

    /// The file's periods are those that the encoder computes.
    fn check_periods(&self) -> Result<()> {
        if self.state.shape(PERIODS).is_none() {
            return Ok(());
        }
        let own = periods(self.config.head_dim());
        let found = self.state.expect(PERIODS, &[own.len()], &Device::Cpu)?.to_vec1::<f32>()?;
        if found.iter().zip(&own).all(|(found, own)| (f64::from(*found) / own - 1.0).abs() <= BFLOAT16) {
            return Ok(());
        }
        Err(EncoderError::OtherPeriods { path: self.state.source().to_owned(), key: PERIODS })
    }

    /// One of the encoder's tensors by its name in [`DinoConfig::tensors`], on the CPU.
    pub(in crate::encoder) fn tensor(&self, name: &str) -> Result<Tensor> {
        let tensor = match name {
            "cls_token" => self.class_token()?,
            "pos_embed" => self.patch_positions()?,
            _ => match name.strip_suffix(".attn.qkv.bias").and_then(|block| block.strip_prefix("blocks.")?.parse().ok()) {
                Some(block) => self.bias(block)?,
                None => self.read(&self.name(name))?,
            },
        };
        Ok(tensor.reshape(self.shapes[name].as_slice())?)
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        Ok(self.state.finite(name, &Device::Cpu)?.to_dtype(DType::F32)?)
    }

    /// With its position.
    fn class_token(&self) -> Result<Tensor> {
        let token = self.read("cls_token")?;
        match self.positions {
            Some((_, true)) => Ok((token + self.read("pos_embed")?.narrow(1, 0, 1)?)?),
            _ => Ok(token),
        }
    }

    /// The patches' positions at the encoder's grid, resized as timm does (`resample_abs_pos_embed`): bicubic with antialiasing.
    fn patch_positions(&self) -> Result<Tensor> {
        let (Some((side, class)), grid, c) = (self.positions, self.config.grid, self.config.embed_dim) else {
            return self.read("pos_embed");
        };
        let table = self.read("pos_embed")?.narrow(1, usize::from(class), side * side)?.squeeze(0)?; // [side², c]
        if side == grid {
            return Ok(table.contiguous()?);
        }
        let planes = table.t()?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        let resized = resize_bicubic_antialiased(&planes, [side, side], [grid, grid]);
        Ok(Tensor::from_vec(resized, (c, grid * grid), &Device::Cpu)?.t()?.contiguous()?)
    }

    /// Of queries, keys and values.
    fn bias(&self, block: usize) -> Result<Tensor> {
        let c = self.config.embed_dim;
        match &self.biases(block)[..] {
            [] => Ok(Tensor::zeros(3 * c, DType::F32, &Device::Cpu)?),
            [(all, _)] => self.read(all),
            [(all, of_all), (mask, _)] if of_all[0] == 3 * c => Ok((self.read(all)? * self.read(mask)?)?),
            [(queries, _), (values, _), ..] => {
                let keys = Tensor::zeros(c, DType::F32, &Device::Cpu)?;
                Ok(Tensor::cat(&[self.read(queries)?, keys, self.read(values)?], 0)?)
            }
        }
    }
}

/// Patches along the side of the image for which a file's table of positions is, and whether the class token's is before them.
fn positions(state: &StateDict, width: usize) -> Result<(usize, bool)> {
    let shape = state.shape("pos_embed").unwrap_or_default();
    let square = |rows: usize| (rows > 0 && rows.isqrt().pow(2) == rows).then(|| rows.isqrt());
    // timm's files of encoders with registers have no position for the class token.
    let class = state.shape("reg_token").is_none();
    match shape[..] {
        [1, rows, c] if c == width => square(rows.saturating_sub(usize::from(class))).map(|side| (side, class)),
        _ => None,
    }
    .ok_or_else(|| EncoderError::DinoPositions { path: state.source().to_owned(), found: shape, width, class })
}
