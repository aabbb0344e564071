//! `checksums.parquet`: the CRC-32C of every chunk of every array by its place, so that a chunk in another's place is found.

use crate::arrays::{ArrayKind, ArraySpec};
use crate::error::{Error, Result};
use crate::layout::StoreLayout;
use arrow::array::{ArrayRef, AsArray, StringArray, UInt32Array};
use arrow::datatypes::UInt32Type;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use sam_ladder_formats::rows::{check_columns, decode_batch, encode_batch};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::store::CaseLayout;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The checksums of each array's chunks, shard after shard, by the array's path.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Checksums(BTreeMap<String, Vec<u32>>);

impl Checksums {
    /// Adds an array.
    pub(crate) fn insert(&mut self, array: String, checksums: Vec<u32>) {
        self.0.insert(array, checksums);
    }

    /// Removes an array and returns its checksums; none for an array that is not there.
    pub(crate) fn take(&mut self, array: &str) -> Vec<u32> {
        self.0.remove(array).unwrap_or_default()
    }

    /// The checksums of one shard of `chunks` chunks.
    pub(crate) fn of_shard(&self, array: &str, shard: usize, chunks: usize) -> Option<&[u32]> {
        self.0.get(array)?.get(shard * chunks..(shard + 1) * chunks)
    }
}

/// The arrays of a layout in the table's order, each with its number of shards. Height and width of the masks are not known here, and are 1.
pub(crate) fn arrays(layout: &StoreLayout) -> Vec<(ArraySpec, usize)> {
    let kinds = ArrayKind::all(&layout.attributes().config);
    let of_split =
        |split: Split| kinds.iter().map(move |&kind| (layout.array(split, kind), layout.num_slices(split))).collect::<Vec<_>>();
    let of_masks = |split: Split| layout.cases_of(split).map(move |(case, _)| (mask_spec(split, case), 1));
    Split::ALL.into_iter().flat_map(of_split).chain(Split::ALL.into_iter().flat_map(of_masks)).collect()
}

/// A case's mask, of height and width 1.
fn mask_spec(split: Split, case: &CaseLayout) -> ArraySpec {
    ArraySpec::of_mask(split, &case.case, [case.num_slices, 1, 1])
}

/// Path, number of shards and of chunks in a shard of each array.
fn sizes(layout: &StoreLayout) -> Vec<(String, [usize; 2])> {
    let size = |(spec, shards): (ArraySpec, usize)| {
        let chunks = spec.chunks_per_shard();
        (spec.path, [shards, chunks])
    };
    arrays(layout).into_iter().map(size).collect()
}

/// The bytes of the table; `path` is for messages.
///
/// # Errors
/// [`Error::Values`] if an array has not one checksum per chunk.
pub(crate) fn encode_checksums(path: &Path, layout: &StoreLayout, checksums: &Checksums) -> Result<Vec<u8>> {
    let arrays = sizes(layout);
    let mut values = Vec::new();
    for (array, [shards, chunks]) in &arrays {
        let of_array = checksums.0.get(array).map_or(&[][..], Vec::as_slice);
        if of_array.len() != shards * chunks {
            let reason = format!("expected {}, got {}", shards * chunks, of_array.len());
            return Err(Error::Values { what: format!("the checksums of {array}"), reason });
        }
        values.extend_from_slice(of_array);
    }
    Ok(encode_batch(path, &batch(path, &arrays, values)?)?)
}

/// The checksums in the table's bytes; `path` is for messages.
///
/// # Errors
/// If the bytes cannot be read, or the rows are not those of the layout's chunks, in their order.
pub(crate) fn decode_checksums(path: &Path, bytes: Bytes, layout: &StoreLayout) -> Result<Checksums> {
    let found = decode_batch(path, bytes)?;
    check_columns(path, &found, batch(path, &[], vec![])?.schema_ref())?;
    let damaged = |reason: String| Error::Manifest { path: path.into(), reason };
    let arrays = sizes(layout);
    let total: usize = arrays.iter().map(|(_, [shards, chunks])| shards * chunks).sum();
    if found.num_rows() != total {
        return Err(damaged(format!("expected {total} rows, found {}", found.num_rows())));
    }
    let number = |name: &str| found[name].as_primitive::<UInt32Type>();
    let (names, shards, chunks, values) = (found["array"].as_string::<i32>(), number("shard"), number("chunk"), number("crc32c"));
    let mut all = Checksums::default();
    let mut at = 0;
    for (array, [num_shards, num_chunks]) in arrays {
        for i in 0..num_shards * num_chunks {
            let place = (array.as_str(), (i / num_chunks) as u32, (i % num_chunks) as u32);
            let says = (names.value(at + i), shards.value(at + i), chunks.value(at + i));
            if says != place {
                return Err(damaged(format!("row {} is of {says:?}, expected {place:?}", at + i)));
            }
        }
        all.insert(array, values.values()[at..at + num_shards * num_chunks].to_vec());
        at += num_shards * num_chunks;
    }
    Ok(all)
}

fn batch(path: &Path, arrays: &[(String, [usize; 2])], values: Vec<u32>) -> Result<RecordBatch> {
    let places = || {
        arrays.iter().flat_map(|(array, [shards, chunks])| {
            (0..shards * chunks).map(move |i| (array.as_str(), (i / chunks) as u32, (i % chunks) as u32))
        })
    };
    let columns: [(&str, ArrayRef); 4] = [
        ("array", Arc::new(places().map(|(array, ..)| Some(array)).collect::<StringArray>())),
        ("shard", Arc::new(places().map(|(_, shard, _)| shard).collect::<UInt32Array>())),
        ("chunk", Arc::new(places().map(|(.., chunk)| chunk).collect::<UInt32Array>())),
        ("crc32c", Arc::new(UInt32Array::from(values))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, false)))
        .map_err(|error| sam_ladder_formats::Error::Rows { action: "write", path: path.into(), reason: error.to_string() }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::encoder::EncoderArch;
    use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
    use sam_ladder_schemas::store::StoreAttributes;
    use sam_ladder_schemas::variants::AugmentPolicy;

    #[test]
    fn the_table_has_a_row_for_each_chunk() {
        let published = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 1 });
        let config = PrecomputeConfig { augment: AugmentPolicy::Flips, ..published };
        let case = |case: &str, split, num_slices| CaseLayout { case: case.into(), split, num_slices, sources: vec![] };
        let cases = vec![case("0005", Split::Train, 2), case("0001", Split::Test, 3)];
        let layout = StoreLayout::new(StoreAttributes::new(config, vec![]), cases).unwrap();
        let path = Path::new("checksums.parquet");
        let mut all = Checksums::default();
        for (i, (array, [shards, chunks])) in sizes(&layout).into_iter().enumerate() {
            all.insert(array, (0..(shards * chunks) as u32).map(|n| n * 1_000_003 + i as u32).collect());
        }
        let bytes = Bytes::from(encode_checksums(path, &layout, &all).unwrap());
        let found = decode_batch(path, bytes.clone()).unwrap();
        let columns: Vec<String> = found.schema().fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
        assert_eq!(columns, ["array Utf8", "shard UInt32", "chunk UInt32", "crc32c UInt32"]);
        // Three arrays: two slices of five variants, three of one; masks of two and of three slices.
        assert_eq!(found.num_rows(), 3 * (2 * 5 + 3) + 2 + 3);
        assert_eq!(decode_checksums(path, bytes.clone(), &layout).unwrap(), all);
        assert_eq!(all.of_shard("train/images", 1, 5).unwrap()[0], 5 * 1_000_003 + 1);
        assert_eq!(all.of_shard("train/masks/0005", 0, 2).unwrap().len(), 2);
        assert_eq!(all.of_shard("test/masks/0001", 0, 3).unwrap().len(), 3);
        assert!(all.of_shard("train/images", 2, 5).is_none());
        let fewer = StoreLayout::new(layout.attributes().clone(), vec![case("0005", Split::Train, 2)]).unwrap();
        let error = decode_checksums(path, bytes, &fewer).unwrap_err().to_string();
        assert!(error.contains("expected 32 rows, found 44"), "{error}");
        all.take("test/labels");
        let error = encode_checksums(path, &layout, &all).unwrap_err().to_string();
        assert!(error.contains("the checksums of test/labels: expected 3, got 0"), "{error}");
    }
}
