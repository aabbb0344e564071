//! A store of a few slices of made-up tensors, written without scans and without an encoder.
#![allow(dead_code)] // each test binary compiles this file anew and uses only a part of it

use crate::common::{rule_values, rule_weight};
use candle_core::{Device, Tensor};
use sam_ladder_cache::{CaseLayout, Opened, ReferenceMask, SliceTensors, Store, StoreLayout, StoreWriter};
use sam_ladder_formats::state_dict::save_safetensors;
use sam_ladder_precompute::rungs::RungMaps;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::encoder::EncoderArch;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::rungs::RungProjection;
use sam_ladder_schemas::store::{SourceFile, StoreAttributes};
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use sam_ladder_schemas::train::Arm;
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::model::{ModelConfig, ModelWeights};
use std::path::Path;

/// Pixels along the side of the network's input.
pub const IMAGE_SIZE: usize = 64;
/// Height and width of the made-up scans.
pub const SCAN_SIZE: [u32; 2] = [20, 24];
/// Training cases and their slices: 8 in all.
pub const TRAIN_CASES: [(&str, usize); 3] = [("0005", 3), ("0006", 3), ("0007", 2)];
/// The test case and its slices.
pub const TEST_CASE: (&str, usize) = ("0001", 2);
/// Classes including background.
pub const NUM_CLASSES: usize = 3;

/// Writes a store at `path`; `seed` goes into its tensors and its `cache_id`.
pub fn write_store(path: &Path, dtype: StoreDtype, augment: AugmentPolicy, seed: u64) -> Store {
    write_store_of(path, dtype, [augment, AugmentPolicy::None], seed)
}

/// As [`write_store`], with the variants of both splits.
pub fn write_store_of(path: &Path, dtype: StoreDtype, augment: [AugmentPolicy; 2], seed: u64) -> Store {
    write_store_with_rungs(path, dtype, augment, seed, &[])
}

/// Channels of the rungs of [`write_store_with_rungs`].
pub const RUNG_CHANNELS: usize = 8;

/// As [`write_store_of`], with rungs after these blocks and a random projection by `seed`.
pub fn write_store_with_rungs(path: &Path, dtype: StoreDtype, augment: [AugmentPolicy; 2], seed: u64, blocks: &[usize]) -> Store {
    write_store_with(path, dtype, augment, seed, (blocks, false))
}

/// As [`write_store_with_rungs`], and with labels at half the image's side if `half_labels`.
pub fn write_store_with(
    path: &Path,
    dtype: StoreDtype,
    augment: [AugmentPolicy; 2],
    seed: u64,
    (blocks, half_labels): (&[usize], bool),
) -> Store {
    let mut config = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed });
    config.image_size = IMAGE_SIZE;
    config.data_size = IMAGE_SIZE;
    [config.augment, config.test_augment] = augment;
    (config.dtype, config.half_labels) = (dtype, half_labels);
    config.class_names = vec!["spleen".into(), "liver".into()];
    if !blocks.is_empty() {
        (config.rungs, config.rung_channels) = (blocks.to_vec(), RUNG_CHANNELS);
        (config.rung_projection, config.rung_seed) = (RungProjection::Random, seed);
    }
    let source = SourceFile { path: "img.nii".into(), sha256: "0".repeat(64) };
    let cases = TRAIN_CASES.map(|case| (Split::Train, case)).into_iter().chain([(Split::Test, TEST_CASE)]);
    let cases = cases.map(|(split, (case, num_slices))| CaseLayout {
        case: case.into(),
        split,
        num_slices,
        sources: vec![source.path.clone()],
    });
    let cases = cases.collect();
    let layout = StoreLayout::new(StoreAttributes::new(config.clone(), vec![source.clone()]), cases).unwrap();
    let Opened::Writer(writer) = StoreWriter::open_or_create(path, layout).unwrap() else { panic!("the store is there already") };
    for (split, (case, num_slices)) in TRAIN_CASES.map(|case| (Split::Train, case)).into_iter().chain([(Split::Test, TEST_CASE)])
    {
        let rows = writer.layout().case_rows(split, case).unwrap();
        let variants = writer.layout().num_variants(split);
        let mut table = Vec::new();
        for (slice_index, row) in rows.enumerate() {
            let name = format!("{seed}.{split}.{case}.{slice_index}");
            let grid = IMAGE_SIZE / 16;
            let embeddings = rule_values(&format!("{name}.embeddings"), variants * 256 * grid * grid);
            let mut images = rule_values(&format!("{name}.images"), variants * IMAGE_SIZE * IMAGE_SIZE);
            let rungs = rule_values(&format!("{name}.rungs"), variants * config.rungs_len());
            let labels = labels_of(&name, variants);
            paint(&mut images, &labels, variants);
            let halves = if half_labels { twice(&labels, variants) } else { Vec::new() };
            writer
                .write_slice(
                    split,
                    row,
                    &SliceTensors {
                        embeddings: &embeddings,
                        images: &images,
                        labels: &labels,
                        half_labels: &halves,
                        rungs: &rungs,
                    },
                )
                .unwrap();
            table.push(SliceRow {
                row: row as u32,
                case: case.into(),
                slice_index: slice_index as u32,
                spacing_mm: Some([3.0, 0.8, 0.7]),
                size: SCAN_SIZE,
                voxels: vec![1; NUM_CLASSES - 1],
                source: source.path.clone(),
                source_sha256: source.sha256.clone(),
            });
        }
        let shape = [num_slices, SCAN_SIZE[0] as usize, SCAN_SIZE[1] as usize];
        let mask = ReferenceMask { labels: vec![1; shape.iter().product()], shape };
        let scan = ScanRow::of_array(case, shape, Some([3.0, 0.8, 0.7]));
        writer.write_case(split, &scan, &table, &mask).unwrap();
    }
    if let Some(maps) = RungMaps::without_tokens(&config).filter(|_| !blocks.is_empty()) {
        writer.write_rung_projection(&maps.to_safetensors().unwrap()).unwrap();
    }
    writer.write_decoder(&decoder_bytes(path)).unwrap();
    writer.finish().unwrap()
}

/// Two boxes per slice, by its name: `[variants, s/4, s/4]`.
fn labels_of(name: &str, variants: usize) -> Vec<u8> {
    let low = IMAGE_SIZE / 4;
    let mut labels = vec![0; variants * low * low];
    for (variant, labels) in labels.chunks_mut(low * low).enumerate() {
        let corners = rule_values(&format!("{name}.{variant}.boxes"), 4);
        for (class, corner) in [(1, &corners[..2]), (2, &corners[2..])] {
            let [top, left] = [corner[0], corner[1]].map(|u| ((u + 1.0) / 2.0 * (low - 6) as f32) as usize);
            for row in top..top + 6 {
                labels[row * low + left..][..6].fill(class);
            }
        }
    }
    labels
}

/// `[variants, s/4, s/4]` → `[variants, s/2, s/2]`
fn twice(labels: &[u8], variants: usize) -> Vec<u8> {
    let (low, half) = (IMAGE_SIZE / 4, IMAGE_SIZE / 2);
    let at = |pixel: usize| labels[(pixel / (half * half) * low + pixel % (half * half) / half / 2) * low + pixel % half / 2];
    (0..variants * half * half).map(at).collect()
}

/// Noise around a grey value of each class.
fn paint(images: &mut [f32], labels: &[u8], variants: usize) {
    let (s, low) = (IMAGE_SIZE, IMAGE_SIZE / 4);
    for variant in 0..variants {
        for y in 0..s {
            for x in 0..s {
                let value = &mut images[(variant * s + y) * s + x];
                let class = labels[(variant * low + y / 4) * low + x / 4];
                *value = 0.1 * (*value + 1.0) / 2.0 + 0.3 * f32::from(class);
            }
        }
    }
}

/// SAM's decoder by the rule, with SAM's 4 mask tokens, as the bytes of a safetensors file.
pub fn decoder_bytes(store: &Path) -> Vec<u8> {
    let config = ModelConfig::published(IMAGE_SIZE, 4, Arm::Full);
    let tensors: Vec<(String, Tensor)> = ModelWeights::expected(&config)
        .into_iter()
        .filter_map(|(name, shape)| {
            let name = name.strip_prefix("sam.").filter(|name| *name != "alpha")?.to_string();
            let tensor = Tensor::from_vec(rule_weight(&name, &shape), shape, &Device::Cpu).unwrap();
            Some((name, tensor))
        })
        .collect();
    let aside = store.with_extension("decoder");
    save_safetensors(&aside, &tensors).unwrap();
    let bytes = std::fs::read(&aside).unwrap();
    std::fs::remove_file(&aside).unwrap();
    bytes
}
