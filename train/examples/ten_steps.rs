//! Trains for ten steps on a tiny store of made-up tensors, and prints each step's losses.
//!
//! A store usually comes from `sam-ladder precompute`. Here a dozen slices of noise with a bright square stand in for scans, and random
//! numbers for SAM's decoder and embeddings.

use candle_core::{Device, Tensor};
use made_up::noise;
use sam_ladder_cache::{CaseLayout, Opened, ReadMode, ReferenceMask, SliceTensors, StoreLayout, StoreWriter};
use sam_ladder_formats::rows::read_rows;
use sam_ladder_formats::state_dict::save_safetensors;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::encoder::{EMBED_CHANNELS, EncoderArch};
use sam_ladder_schemas::observer::silent;
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
use sam_ladder_schemas::store::{SourceFile, StoreAttributes};
use sam_ladder_schemas::tables::StepRow;
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use sam_ladder_schemas::train::{Arm, STEPS_TABLE, TrainConfig};
use sam_ladder_schemas::variants::AugmentPolicy;
use sam_ladder_train::model::{ModelConfig, ModelWeights};
use sam_ladder_train::run::{CudaGraph, TrainArgs, train};
use std::path::Path;

mod made_up;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Pixels along the side of the network's input, and of the scans.
const SIDE: usize = 32;
const SLICES: usize = 12;

fn main() -> Outcome<()> {
    let folder = std::env::temp_dir().join(format!("sam-ladder-ten-steps-{}", std::process::id()));
    let store = folder.join("store.zarr");
    write_store(&store)?;
    let args = TrainArgs {
        store,
        run: folder.join("run"),
        config: TrainConfig { max_steps: Some(10), batch_size: 4, warmup: 0, ..TrainConfig::default() },
        groups: None,
        cnn_checkpoint: None,
        init: None,
        resume: false,
        device: Device::Cpu,
        read_mode: ReadMode::Auto,
        cache: None,
        device_store: Default::default(),
        cuda_graph: CudaGraph::Off,
        checkpoint_every: None,
        program: "ten_steps".into(),
        observer: silent(),
    };
    let summary = train(&args)?;
    assert_eq!(summary.steps, 10);
    for row in read_rows::<StepRow>(&args.run.join(STEPS_TABLE))? {
        println!("step {:2}: loss {:.4}, cross-entropy {:.4}, Dice loss {:.4}", row.step + 1, row.loss, row.ce, row.dice);
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// A store of one case with one organ, without augmentation.
fn write_store(path: &Path) -> Outcome<()> {
    let mut config = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 0 });
    (config.image_size, config.data_size) = (SIDE, SIDE);
    (config.augment, config.test_augment) = (AugmentPolicy::None, AugmentPolicy::None);
    config.class_names = vec!["square".into()];
    let source = SourceFile { path: "made-up.nii".into(), sha256: "0".repeat(64) };
    let case = CaseLayout { case: "0005".into(), split: Split::Train, num_slices: SLICES, sources: vec![source.path.clone()] };
    let layout = StoreLayout::new(StoreAttributes::new(config, vec![source.clone()]), vec![case])?;
    let Opened::Writer(writer) = StoreWriter::open_or_create(path, layout)? else {
        return Err("the store is there already".into());
    };
    let (grid, low) = (SIDE / 16, SIDE / 4);
    let mut rows = Vec::new();
    for row in 0..SLICES {
        // A square of 2×2 labels covers 8×8 pixels.
        let (top, left) = (row % 6, row * 5 % 6);
        let is_inside = |y: usize, x: usize| (top..top + 2).contains(&y) && (left..left + 2).contains(&x);
        let labels: Vec<u8> = (0..low * low).map(|at| u8::from(is_inside(at / low, at % low))).collect();
        let noise = noise(SIDE * SIDE, row as u64);
        let bright = |at: usize| 0.7 * f32::from(u8::from(is_inside(at / SIDE / 4, at % SIDE / 4)));
        let images: Vec<f32> = noise.iter().enumerate().map(|(at, noise)| 0.1 + 0.1 * noise + bright(at)).collect();
        let embeddings = self::noise(EMBED_CHANNELS * grid * grid, 100 + row as u64);
        writer.write_slice(
            Split::Train,
            row,
            &SliceTensors { embeddings: &embeddings, images: &images, labels: &labels, half_labels: &[], rungs: &[] },
        )?;
        rows.push(SliceRow {
            row: row as u32,
            case: "0005".into(),
            slice_index: row as u32,
            spacing_mm: Some([3.0, 1.0, 1.0]),
            size: [SIDE as u32; 2],
            voxels: vec![64],
            source: source.path.clone(),
            source_sha256: source.sha256.clone(),
        });
    }
    let scan = ScanRow::of_array("0005", [rows.len(), SIDE, SIDE], Some([3.0, 1.0, 1.0]));
    let mask = ReferenceMask { labels: vec![0; rows.len() * SIDE * SIDE], shape: [rows.len(), SIDE, SIDE] };
    writer.write_case(Split::Train, &scan, &rows, &mask)?;
    let decoder = path.with_extension("decoder");
    save_safetensors(&decoder, &random_decoder()?)?;
    writer.write_decoder(&std::fs::read(&decoder)?)?;
    writer.finish()?;
    Ok(())
}

/// SAM's prompt encoder and mask decoder under the names of SAM's checkpoints, with SAM's four mask tokens.
fn random_decoder() -> candle_core::Result<Vec<(String, Tensor)>> {
    let names = ModelWeights::expected(&ModelConfig::published(SIDE, 4, Arm::Full)).into_iter();
    let names =
        names.filter_map(|(name, shape)| Some((name.strip_prefix("sam.").filter(|name| *name != "alpha")?.to_owned(), shape)));
    let tensor = |(index, (name, shape)): (usize, (String, Vec<usize>))| {
        let scale = 1.0 / (shape.iter().skip(1).product::<usize>() as f32).sqrt();
        let values = noise(shape.iter().product(), index as u64).into_iter().map(|value| value * scale).collect::<Vec<_>>();
        Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
    };
    names.enumerate().map(tensor).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn ten_steps_are_taken() {
        super::main().unwrap();
    }
}
