//! The store's number formats: what is written is read back, compressed or not, and the 8-bit format is as exact as documented.

use sam_ladder_cache::{Batch, ReadMode, Reader, SliceTensors};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::{Compression, PrecomputeConfig, StoreDtype};
use std::fs;
use std::sync::Arc;

#[path = "common/small_store.rs"]
mod small_store;
use small_store::*;

#[test]
fn what_is_written_is_read_back_in_every_number_format() {
    for dtype in [StoreDtype::F16, StoreDtype::F32, StoreDtype::Bf16] {
        let folder = tempfile::tempdir().unwrap();
        let store = write_whole(&folder.path().join("s.zarr"), dtype);
        let layout = layout(dtype);
        let mut batch = Batch::default();
        for split in Split::ALL {
            assert_eq!(store.variants(split), layout.variants(split));
            for row in 0..layout.num_slices(split) {
                let picks: Vec<_> = (0..layout.num_variants(split)).map(|variant| (row as u32, variant as u32)).collect();
                store.read_batch(split, &picks, &mut batch).unwrap();
                let Tensors { embeddings, images, labels } = tensors(&layout, split, row);
                assert!(batch.embeddings.to_vec() == embeddings, "{dtype:?} {split} {row}");
                assert!(batch.images.to_vec() == images && batch.labels == labels, "{dtype:?} {split} {row}");
            }
        }
        assert_eq!(store.cases(Split::Train), ["0005", "0006"]);
        assert_eq!(store.case_rows(Split::Train, "0006").unwrap(), 3..5);
        assert_eq!(store.mask(Split::Test, "0001").unwrap(), mask(Split::Test, 2));
        assert_eq!(store.mask(Split::Train, "0005").unwrap(), mask(Split::Train, 3));
        assert_eq!(fs::read(store.decoder_path()).unwrap(), DECODER);
        assert_eq!(store.attributes().cache_id, layout.attributes().cache_id);
    }
}

#[test]
fn compression_changes_bytes_and_no_value() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in [StoreDtype::F16, StoreDtype::Q8] {
        let mut read = Vec::new();
        for compression in [Compression::None, Compression::Zstd] {
            let layout = layout_of(PrecomputeConfig { compression, ..config(dtype) }, "sha of 0006");
            let store = write_whole_of(&folder.path().join(format!("{dtype:?}{compression:?}.zarr")), layout);
            let mut batch = Batch::default();
            store.read_batch(Split::Train, &[(2, 1), (4, 3)], &mut batch).unwrap();
            let shard = fs::metadata(store.path().join("train/embeddings/c.2.0.0.0.0")).unwrap().len();
            read.push((batch, shard));
        }
        assert!(read[0].0 == read[1].0, "{dtype:?}");
        assert!(read[0].1 > read[1].1, "{dtype:?}: {} and {} bytes", read[0].1, read[1].1);
    }
}

#[test]
fn eight_bits_are_within_half_a_step_of_each_channels_range() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(write_whole(&folder.path().join("s.zarr"), StoreDtype::Q8));
    let all = tensors(&layout(StoreDtype::Q8), Split::Train, 3);
    let picks = [(3, 0), (3, 4)];
    for mode in [ReadMode::Stream, ReadMode::Resident] {
        let reader = Reader::new(store.clone(), Split::Train, mode);
        let mut batch = Batch::default();
        for _ in 0..2 {
            reader.read_batch(&picks, &mut batch).unwrap();
            for (i, (_, variant)) in picks.into_iter().enumerate() {
                for (found, expected, channel_len) in
                    [(batch.embeddings.to_vec(), &all.embeddings, 4), (batch.images.to_vec(), &all.images, 1024)]
                {
                    let expected = &expected[variant as usize * 1024..][..1024];
                    for (found, expected) in found[i * 1024..][..1024].chunks(channel_len).zip(expected.chunks(channel_len)) {
                        let range =
                            expected.iter().fold(f32::MIN, |m, v| m.max(*v)) - expected.iter().fold(f32::MAX, |m, v| m.min(*v));
                        for (found, expected) in found.iter().zip(expected) {
                            assert!((found - expected).abs() <= range / 255.0 * 0.501 + 1e-6, "{found} of {expected}");
                        }
                    }
                }
            }
        }
    }
}

/// Without a store, `predict` gives the model the same values as a store would.
#[test]
fn tensors_without_a_store_are_rounded_as_a_store_rounds_them() {
    for dtype in [StoreDtype::F16, StoreDtype::F32, StoreDtype::Bf16, StoreDtype::Q8] {
        let folder = tempfile::tempdir().unwrap();
        // One third is not exact in any format.
        let of = |row: usize| {
            let Tensors { embeddings, images, labels } = tensors(&layout(dtype), Split::Test, row);
            let third = |values: Vec<f32>| values.into_iter().map(|value| value / 3.0).collect::<Vec<f32>>();
            (third(embeddings), third(images), labels)
        };
        let writer = writer(folder.path(), layout(dtype));
        for row in 0..2 {
            let (embeddings, images, labels) = of(row);
            let tensors =
                SliceTensors { embeddings: &embeddings, images: &images, labels: &labels, half_labels: &[], rungs: &[] };
            writer.write_slice(Split::Test, row, &tensors).unwrap();
        }
        assert!(write_steps(&writer, usize::MAX));
        let store = writer.finish().unwrap();
        let mut stored = Batch::default();
        store.read_batch(Split::Test, &[(0, 0), (1, 0)], &mut stored).unwrap();
        let [(first_embeddings, first_images, _), (embeddings, images, _)] = [of(0), of(1)];
        let embeddings = [first_embeddings, embeddings].concat();
        let images = [first_images, images].concat();
        let batch = Batch::as_stored(store.config(), &embeddings, &images).unwrap();
        assert_eq!((batch.embeddings.to_vec(), batch.images.to_vec()), (stored.embeddings.to_vec(), stored.images.to_vec()));
        assert_eq!((batch.embeddings, batch.images), (stored.embeddings, stored.images), "{dtype:?}");
        if dtype != StoreDtype::F32 {
            assert_ne!(
                stored_f32(store.config(), &embeddings, &images),
                (embeddings.clone(), images.clone()),
                "{dtype:?} rounds"
            );
        }
        assert!(Batch::as_stored(store.config(), &embeddings[1..], &images).is_err());
        assert!(Batch::as_stored(store.config(), &embeddings, &images[..1024]).is_err());
        let infinite: Vec<f32> = embeddings.iter().map(|_| f32::INFINITY).collect();
        assert!(Batch::as_stored(store.config(), &infinite, &images).unwrap_err().to_string().contains("finite"));
    }
}

fn stored_f32(config: &PrecomputeConfig, embeddings: &[f32], images: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let batch = Batch::as_stored(config, embeddings, images).unwrap();
    (batch.embeddings.to_vec(), batch.images.to_vec())
}
