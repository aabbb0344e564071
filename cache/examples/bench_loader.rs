//! Measures how fast random batches are read from a store in the page cache.
//!
//! `bench_loader make STORE DTYPE COMPRESSION` writes a store at 512 pixels of four slices with all 44 variants (176 tensors of each array,
//! with values distributed like an encoder's). `bench_loader read STORE BATCH ROUNDS` alternates between reading random batches from it and
//! reading as many bytes from one file by plain `read` calls. It prints the median MB/s of each over the rounds.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Instant;

use sam_ladder_cache::{Batch, CaseLayout, Opened, ReferenceMask, SliceTensors, Store, StoreLayout, StoreWriter};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::encoder::EncoderArch;
use sam_ladder_schemas::precompute::{Compression, EncoderWeights, PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::store::{SourceFile, StoreAttributes};
use sam_ladder_schemas::tables::{ScanRow, SliceRow};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const SLICES: usize = 4;

/// A generator of uniform numbers in [0, 1).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }

    fn below(&mut self, n: usize) -> u32 {
        (f64::from(self.next()) * n as f64) as u32
    }
}

fn make(path: &Path, dtype: StoreDtype, compression: Compression) -> Outcome<()> {
    let config = PrecomputeConfig {
        dtype,
        compression,
        ..PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 1 })
    };
    let organs = config.class_names.len();
    let (s, g, low) = (config.image_size, config.grid_size(), config.low_res_size());
    let sources = vec![SourceFile { path: "noise".into(), sha256: "none".into() }];
    let case = CaseLayout { case: "0001".into(), split: Split::Train, num_slices: SLICES, sources: vec!["noise".into()] };
    let layout = StoreLayout::new(StoreAttributes::new(config, sources), vec![case])?;
    let variants = layout.num_variants(Split::Train);
    let Opened::Writer(writer) = StoreWriter::open_or_create(path, layout)? else { return Ok(()) };
    let mut noise = Noise(1);
    for row in 0..SLICES {
        // The sum of four uniform numbers is close enough to normalised embeddings' distribution.
        let embeddings: Vec<f32> =
            (0..variants * 256 * g * g).map(|_| 1.7 * ((0..4).map(|_| noise.next()).sum::<f32>() - 2.0)).collect();
        // A noisy body surrounded by black air.
        let inside = |i: usize| (s / 6..s - s / 6).contains(&(i % s)) && (s / 6..s - s / 6).contains(&(i / s % s));
        let images: Vec<f32> = (0..variants * s * s).map(|i| if inside(i) { 0.3 + 0.2 * noise.next() } else { 0.0 }).collect();
        let labels: Vec<u8> = (0..variants * low * low).map(|i| (i / 997 % 9) as u8).collect();
        writer.write_slice(
            Split::Train,
            row,
            &SliceTensors { embeddings: &embeddings, images: &images, labels: &labels, half_labels: &[], rungs: &[] },
        )?;
    }
    let rows: Vec<SliceRow> = (0..SLICES as u32)
        .map(|row| SliceRow {
            row,
            case: "0001".into(),
            slice_index: row,
            spacing_mm: Some([3.0, 0.7, 0.7]),
            size: [512, 512],
            voxels: vec![0; organs],
            source: "noise".into(),
            source_sha256: "none".into(),
        })
        .collect();
    let scan = ScanRow::of_array("0001", [SLICES, 512, 512], Some([3.0, 0.7, 0.7]));
    let mask = ReferenceMask { labels: vec![0; SLICES * 512 * 512], shape: [SLICES, 512, 512] };
    writer.write_case(Split::Train, &scan, &rows, &mask)?;
    writer.write_decoder(b"none")?;
    writer.finish()?;
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn read(path: &Path, batch_size: usize, rounds: usize) -> Outcome<()> {
    let store = Store::open(path)?;
    let variants = store.variants(Split::Train).len();
    let config = store.config();
    let floats = 256 * config.grid_size().pow(2) + config.image_size.pow(2);
    let bytes = batch_size * (floats * config.dtype.bytes() + config.low_res_size().pow(2));
    let mut noise = Noise(2);
    let mut draw = || -> Vec<(u32, u32)> { (0..batch_size).map(|_| (noise.below(SLICES), noise.below(variants))).collect() };
    let plain = path.with_extension("plain");
    std::fs::write(&plain, vec![7u8; bytes])?;
    let (mut file, mut buffer, mut batch) = (File::open(&plain)?, vec![0u8; bytes], Batch::default());
    for row in 0..SLICES {
        // Into the page cache, and the shards' indexes into memory.
        store.read_batch(Split::Train, &(0..variants).map(|v| (row as u32, v as u32)).collect::<Vec<_>>(), &mut batch)?;
    }
    let (mut ours, mut plains) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let picks = draw();
        let start = Instant::now();
        store.read_batch(Split::Train, &picks, &mut batch)?;
        let middle = Instant::now();
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut buffer)?;
        let end = Instant::now();
        if round > 0 {
            ours.push((middle - start).as_secs_f64());
            plains.push((end - middle).as_secs_f64());
        }
    }
    std::fs::remove_file(&plain)?;
    let rate = |seconds: Vec<f64>| bytes as f64 / median(seconds) / 1e6;
    let (ours, plain) = (rate(ours), rate(plains));
    println!("{ours:.0} MB/s of batches, {plain:.0} MB/s by plain read, ratio {:.2}", ours / plain);
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["make", store, dtype, compression] => {
            let dtype = serde_json::from_value(serde_json::json!(dtype))?;
            make(&PathBuf::from(store), dtype, serde_json::from_value(serde_json::json!(compression))?)
        }
        ["read", store, batch, rounds] => read(&PathBuf::from(store), batch.parse()?, rounds.parse()?),
        _ => Err("usage: bench_loader make STORE DTYPE COMPRESSION | bench_loader read STORE BATCH ROUNDS".into()),
    }
}
