//! Opens a store and reads a batch: `cargo run -p sam-ladder-cache --example read_batch -- synapse.zarr`. Without an argument it writes a
//! small store of made-up tensors first, as `sam-ladder precompute` does of scans.

use sam_ladder_cache::{Batch, CaseLayout, Opened, ReferenceMask, SliceTensors, Store, StoreLayout, StoreWriter};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::encoder::{EMBED_CHANNELS, EncoderArch};
use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
use sam_ladder_schemas::store::{SourceFile, StoreAttributes};
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use std::path::Path;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Pixels along the side of the small store's images.
const SIDE: usize = 32;

fn main() -> Outcome<()> {
    match std::env::args().nth(1) {
        Some(store) => read(Path::new(&store)),
        None => read_small(),
    }
}

/// Reads the first slice twice: as it is, and in its second variant.
fn read(path: &Path) -> Outcome<()> {
    let store = Store::open(path)?;
    let (slices, variants) = (store.slices(Split::Train), store.variants(Split::Train));
    println!("{} training slices of {} variants each", slices.len(), variants.len());
    let mut batch = Batch::default();
    store.read_batch(Split::Train, &[(0, 0), (0, 1)], &mut batch)?;
    // [2, 256, g, g], [2, s, s] and [2, s/4, s/4].
    let [embeddings, images] = [&batch.embeddings, &batch.images].map(|values| values.to_vec());
    println!("{} and {}", variants[0].name(), variants[1].name());
    println!("{} embeddings, {} pixels, {} labels", embeddings.len(), images.len(), batch.labels.len());
    Ok(())
}

fn read_small() -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let store = folder.path().join("small.zarr");
    write(&store)?;
    read(&store)
}

/// One slice of a case.
fn write(path: &Path) -> Outcome<()> {
    let published = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 1 });
    let config = PrecomputeConfig { image_size: SIDE, data_size: SIDE, ..published };
    let (grid, low_res, organs) = (config.grid_size(), config.low_res_size(), config.class_names.len());
    let source = SourceFile { path: "img0005.nii.gz".into(), sha256: "0".repeat(64) };
    let case = CaseLayout { case: "0005".into(), split: Split::Train, num_slices: 1, sources: vec![source.path.clone()] };
    let layout = StoreLayout::new(StoreAttributes::new(config, vec![source.clone()]), vec![case])?;
    let variants = layout.num_variants(Split::Train);
    let Opened::Writer(writer) = StoreWriter::open_or_create(path, layout)? else { return Ok(()) };
    let tensors = SliceTensors {
        embeddings: &vec![0.25; variants * EMBED_CHANNELS * grid * grid],
        images: &vec![0.5; variants * SIDE * SIDE],
        labels: &vec![1; variants * low_res * low_res],
        half_labels: &[],
        rungs: &[],
    };
    writer.write_slice(Split::Train, 0, &tensors)?;
    let row = SliceRow {
        row: 0,
        case: "0005".into(),
        slice_index: 0,
        spacing_mm: Some([3.0, 0.7, 0.7]),
        size: [SIDE as u32; 2],
        voxels: vec![0; organs],
        source: source.path,
        source_sha256: source.sha256,
    };
    let scan = ScanRow::of_array("0005", [1, SIDE, SIDE], Some([3.0, 0.7, 0.7]));
    let mask = ReferenceMask { labels: vec![0; SIDE * SIDE], shape: [1, SIDE, SIDE] };
    writer.write_case(Split::Train, &scan, &[row], &mask)?;
    writer.write_decoder(b"SAM's decoder, as the bytes of a safetensors file")?;
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_batch_is_read() {
        super::read_small().unwrap();
    }
}
