//! A store of four cases, written step by step, for the tests of the store's behaviour and its number formats.
#![allow(dead_code)] // each test binary compiles this file anew and uses only a part of it

use sam_ladder_cache::{CaseLayout, Error, Opened, ReferenceMask, SliceTensors, Store, StoreLayout, StoreWriter};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::encoder::EncoderArch;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::store::{SourceFile, StoreAttributes};
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use sam_ladder_schemas::variants::AugmentPolicy;
use std::path::Path;

/// Cases of the small store: name, split, slices.
pub const CASES: [(&str, Split, usize); 4] =
    [("0005", Split::Train, 3), ("0006", Split::Train, 2), ("0001", Split::Test, 2), ("0002", Split::Test, 1)];
pub const MASK_SIZE: [usize; 2] = [5, 7];
pub const DECODER: &[u8] = b"the decoder's weights";

pub fn config(dtype: StoreDtype) -> PrecomputeConfig {
    PrecomputeConfig {
        image_size: 32,
        data_size: 24,
        augment: AugmentPolicy::Flips,
        dtype,
        ..PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 7 })
    }
}

pub fn layout_of(config: PrecomputeConfig, sha256_of_0006: &str) -> StoreLayout {
    let path = |case: &str| format!("img/img{case}.nii.gz");
    let sha256 = |case: &str| if case == "0006" { sha256_of_0006.to_string() } else { format!("sha of {case}") };
    let sources = CASES.map(|(case, ..)| SourceFile { path: path(case), sha256: sha256(case) }).to_vec();
    let cases =
        CASES.map(|(case, split, num_slices)| CaseLayout { case: case.into(), split, num_slices, sources: vec![path(case)] });
    StoreLayout::new(StoreAttributes::new(config, sources), cases.to_vec()).unwrap()
}

pub fn layout(dtype: StoreDtype) -> StoreLayout {
    layout_of(config(dtype), "sha of 0006")
}

pub fn writer(path: &Path, layout: StoreLayout) -> StoreWriter {
    match StoreWriter::open_or_create(path, layout).unwrap() {
        Opened::Writer(writer) => *writer,
        Opened::Complete(_) => panic!("the store is complete already"),
    }
}

/// Numbers that differ from value to value, slice to slice and array to array; exact in every number format.
pub struct Tensors {
    pub embeddings: Vec<f32>,
    pub images: Vec<f32>,
    pub labels: Vec<u8>,
}

pub fn tensors(layout: &StoreLayout, split: Split, row: usize) -> Tensors {
    let variants = layout.num_variants(split);
    let number = |i: usize, salt: usize| ((i * 31 + row * 17 + salt * 7 + split as usize * 3) % 251) as f32 / 16.0 - 4.0;
    // The labels of row 1 are all background: chunks of zeros must be stored like any other.
    let label = |i: usize| if row == 1 { 0 } else { ((i + row) % 9) as u8 };
    Tensors {
        embeddings: (0..variants * 256 * 2 * 2).map(|i| number(i, 1)).collect(),
        images: (0..variants * 32 * 32).map(|i| number(i, 2)).collect(),
        labels: (0..variants * 8 * 8).map(label).collect(),
    }
}

pub fn sha256_of(layout: &StoreLayout, case: &str) -> String {
    let path = format!("img/img{case}.nii.gz");
    layout.attributes().sources.iter().find(|source| source.path == path).unwrap().sha256.clone()
}

pub fn rows_of(layout: &StoreLayout, split: Split, case: &str) -> Vec<SliceRow> {
    let rows = layout.case_rows(split, case).unwrap();
    rows.clone()
        .map(|row| SliceRow {
            row: row as u32,
            case: case.into(),
            slice_index: (row - rows.start) as u32,
            spacing_mm: Some([3.0, 0.7, 0.8]),
            size: MASK_SIZE.map(|n| n as u32),
            voxels: (0..8).map(|organ| row as u64 * 10 + organ).collect(),
            source: format!("img/img{case}.nii.gz"),
            source_sha256: sha256_of(layout, case),
        })
        .collect()
}

pub fn scan_of(case: &str, num_slices: usize) -> ScanRow {
    let [height, width] = MASK_SIZE;
    ScanRow {
        percentiles: vec![-1.0, 0.0, 0.5, 0.75, 1.0],
        ..ScanRow::of_array(case, [num_slices, height, width], Some([3.0, 0.7, 0.8]))
    }
}

pub fn mask(split: Split, num_slices: usize) -> ReferenceMask {
    let [height, width] = MASK_SIZE;
    let labels = (0..num_slices * height * width).map(|i| ((i + split as usize) % 9) as u8).collect();
    ReferenceMask { labels, shape: [num_slices, height, width] }
}

/// Does at most `steps` of the remaining steps, in order; returns whether all are done.
pub fn write_steps(writer: &StoreWriter, mut steps: usize) -> bool {
    for (case, split, num_slices) in CASES {
        for row in writer.layout().case_rows(split, case).unwrap() {
            if writer.is_slice_done(split, row) {
                continue;
            }
            if steps == 0 {
                return false;
            }
            steps -= 1;
            write_slice(writer, split, row).unwrap();
        }
        if !writer.is_case_done(split, case).unwrap() {
            if steps == 0 {
                return false;
            }
            steps -= 1;
            let rows = rows_of(writer.layout(), split, case);
            writer.write_case(split, &scan_of(case, num_slices), &rows, &mask(split, num_slices)).unwrap();
        }
    }
    writer.write_decoder(DECODER).unwrap();
    true
}

pub fn write_slice(writer: &StoreWriter, split: Split, row: usize) -> Result<(), Error> {
    let Tensors { embeddings, images, labels } = tensors(writer.layout(), split, row);
    writer.write_slice(
        split,
        row,
        &SliceTensors { embeddings: &embeddings, images: &images, labels: &labels, half_labels: &[], rungs: &[] },
    )
}

pub fn write_whole(path: &Path, dtype: StoreDtype) -> Store {
    write_whole_of(path, layout(dtype))
}

pub fn write_whole_of(path: &Path, layout: StoreLayout) -> Store {
    let writer = writer(path, layout);
    assert!(write_steps(&writer, usize::MAX));
    writer.finish().unwrap()
}
