//! The store's Zarr hierarchy: its arrays, their shapes, chunks, encodings and files.
//!
//! One shard (one file) holds one slice with all its variants; one inner chunk holds one variant. Each inner chunk and each shard's index
//! ends with its CRC-32C. Masks are compressed with zstd, the other arrays if the config says so.

use crate::error::{Error, Result};
use crate::shard;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::encoder::PATCH_SIZE;
use sam_ladder_schemas::precompute::{Compression, PrecomputeConfig, StoreDtype};
use sam_ladder_schemas::store::{EMBEDDINGS, HALF_LABELS, IMAGES, LABELS, MASKS, QUANTIZATION, RUNGS, StoreAttributes};
use serde_json::{Value, json};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zarrs::array::chunk_key_encoding::DefaultChunkKeyEncoding;
use zarrs::array::codec::{Crc32cCodec, ShardingCodecOptions, SubchunkWriteOrder, ZstdCodec};
use zarrs::array::{
    Array, ArrayBuilder, ArrayBytes, ArrayMetadataOptions, ArrayToBytesCodecTraits, BytesToBytesCodecTraits, CodecOptions,
    CodecSpecificOptions, data_type,
};
use zarrs::metadata::ChunkKeySeparator;
use zarrs::storage::store::MemoryStore;

/// Name of a Zarr node's metadata file.
pub(crate) const METADATA: &str = "zarr.json";
/// Lowest level of zstd: higher ones gain next to nothing here (docs/reference/store-formats.md).
const ZSTD_LEVEL: i32 = 1;

/// The arrays of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ArrayKind {
    Embeddings,
    Images,
    Labels,
    /// Scales and offsets of 8-bit numbers.
    Quantization,
    /// Tokens after some blocks.
    Rungs,
    /// Labels at half the image's side.
    HalfLabels,
}

impl ArrayKind {
    /// Every kind, in the order of the enum.
    const ORDER: [ArrayKind; 6] = [
        ArrayKind::Embeddings,
        ArrayKind::Images,
        ArrayKind::Labels,
        ArrayKind::Quantization,
        ArrayKind::Rungs,
        ArrayKind::HalfLabels,
    ];

    /// The arrays of a store with this config, in a fixed order.
    pub(crate) fn all(config: &PrecomputeConfig) -> Vec<ArrayKind> {
        Self::ORDER.into_iter().filter(|kind| kind.is_in(config)).collect()
    }

    /// Whether a store with this config has it.
    fn is_in(self, config: &PrecomputeConfig) -> bool {
        match self {
            ArrayKind::Embeddings | ArrayKind::Images | ArrayKind::Labels => true,
            ArrayKind::Quantization => config.dtype == StoreDtype::Q8,
            ArrayKind::Rungs => !config.rungs.is_empty(),
            ArrayKind::HalfLabels => config.half_labels,
        }
    }

    /// Its index in [`Self::all`].
    pub(crate) fn index(self, config: &PrecomputeConfig) -> usize {
        Self::ORDER[..self as usize].iter().filter(|kind| kind.is_in(config)).count()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            ArrayKind::Embeddings => EMBEDDINGS,
            ArrayKind::Images => IMAGES,
            ArrayKind::Labels => LABELS,
            ArrayKind::Quantization => QUANTIZATION,
            ArrayKind::Rungs => RUNGS,
            ArrayKind::HalfLabels => HALF_LABELS,
        }
    }

    /// Channels of one variant of one slice; in 8-bit stores each has its own scale and offset.
    pub(crate) fn channels(self, config: &PrecomputeConfig) -> usize {
        match self {
            ArrayKind::Embeddings => config.embed_channels(),
            ArrayKind::Images => config.num_channels(),
            ArrayKind::Rungs => config.rungs.len() * config.stored_rung_channels(),
            ArrayKind::Labels | ArrayKind::HalfLabels | ArrayKind::Quantization => 0,
        }
    }

    /// Shape of one variant of one slice.
    pub(crate) fn item_shape(self, config: &PrecomputeConfig) -> Vec<usize> {
        match self {
            ArrayKind::Embeddings => vec![config.embed_channels(), config.grid_size(), config.grid_size()],
            ArrayKind::Images => match config.num_channels() {
                1 => vec![config.image_size; 2],
                channels => vec![channels, config.image_size, config.image_size],
            },
            ArrayKind::Labels => vec![config.low_res_size(); 2],
            ArrayKind::HalfLabels => vec![config.half_size(); 2],
            ArrayKind::Quantization => {
                let of = [ArrayKind::Embeddings, ArrayKind::Images, ArrayKind::Rungs].map(|kind| kind.channels(config));
                vec![of.iter().sum(), 2]
            }
            ArrayKind::Rungs => {
                vec![config.rungs.len(), config.stored_rung_channels(), config.grid_size(), config.grid_size()]
            }
        }
    }

    /// Values in one variant of one slice.
    pub(crate) fn item_len(self, config: &PrecomputeConfig) -> usize {
        self.item_shape(config).iter().product()
    }

    fn dimension_names(self, config: &PrecomputeConfig) -> Vec<&'static str> {
        match self {
            ArrayKind::Embeddings => vec!["slice", "variant", "channel", "grid_y", "grid_x"],
            ArrayKind::Images if config.num_channels() == 1 => vec!["slice", "variant", "y", "x"],
            // Not `channel`, which has another length in the embeddings: in xarray a name has one length.
            ArrayKind::Images => vec!["slice", "variant", "image_channel", "y", "x"],
            ArrayKind::Labels => vec!["slice", "variant", "low_res_y", "low_res_x"],
            ArrayKind::HalfLabels => vec!["slice", "variant", "half_y", "half_x"],
            ArrayKind::Quantization => vec!["slice", "variant", "quantized_channel", "scale_offset"],
            ArrayKind::Rungs => vec!["slice", "variant", "rung", "rung_channel", "grid_y", "grid_x"],
        }
    }
}

/// Number format of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    U8,
    Float(StoreDtype),
}

/// One array of the store.
#[derive(Debug, Clone)]
pub(crate) struct ArraySpec {
    /// Path within the store, with forward slashes.
    pub(crate) path: String,
    shape: Vec<u64>,
    shard_shape: Vec<u64>,
    chunk_shape: Vec<u64>,
    number: Number,
    compression: Compression,
    dimension_names: Vec<&'static str>,
    /// What an array of embeddings says of an encoder that is not SAM's.
    encoder: Option<Value>,
}

/// The encoder's name, the side of its patches, the stride of the embeddings in pixels of the stored images, and the side of what it saw. Of SAM's
/// encoders, whose numbers are those of the published code, nothing is said.
fn encoder_facts(config: &PrecomputeConfig, kind: ArrayKind) -> Option<Value> {
    let encoder = config.encoder;
    (kind == ArrayKind::Embeddings && !encoder.is_sam()).then(|| {
        json!({
            "encoder": encoder, "channels": encoder.embed_channels(), "patch": encoder.patch(), "stride": PATCH_SIZE,
            "grid": config.grid_size(), "encoder_size": encoder.encoder_size(config.image_size)
        })
    })
}

impl ArraySpec {
    /// `{split}/{embeddings,images,labels,quantization,rungs,labels_half}` with room for `num_slices` slices of `num_variants` variants.
    pub(crate) fn of_split(config: &PrecomputeConfig, split: Split, kind: ArrayKind, size: [usize; 2]) -> Self {
        let [num_slices, num_variants] = size;
        let item: Vec<u64> = kind.item_shape(config).into_iter().map(|n| n as u64).collect();
        let with = |slices: usize, variants: usize| [&[slices as u64, variants as u64], item.as_slice()].concat();
        ArraySpec {
            path: format!("{split}/{}", kind.name()),
            shape: with(num_slices, num_variants),
            shard_shape: with(1, num_variants),
            chunk_shape: with(1, 1),
            number: match kind {
                ArrayKind::Embeddings | ArrayKind::Images | ArrayKind::Rungs => Number::Float(config.dtype),
                ArrayKind::Labels | ArrayKind::HalfLabels => Number::U8,
                ArrayKind::Quantization => Number::Float(StoreDtype::F32),
            },
            compression: config.compression,
            dimension_names: kind.dimension_names(config),
            encoder: encoder_facts(config, kind),
        }
    }

    /// `{split}/masks/<case>`: one shard for the scan, one inner chunk per slice.
    pub(crate) fn of_mask(split: Split, case: &str, shape: [usize; 3]) -> Self {
        let [depth, height, width] = shape.map(|n| n as u64);
        ArraySpec {
            path: format!("{split}/{MASKS}/{case}"),
            shape: vec![depth, height, width],
            shard_shape: vec![depth, height, width],
            chunk_shape: vec![1, height, width],
            number: Number::U8,
            compression: Compression::Zstd,
            dimension_names: vec!["depth", "height", "width"],
            encoder: None,
        }
    }

    /// Inner chunks of one shard.
    pub(crate) fn chunks_per_shard(&self) -> usize {
        self.shard_shape.iter().zip(&self.chunk_shape).map(|(shard, chunk)| (shard / chunk) as usize).product()
    }

    pub(crate) fn is_compressed(&self) -> bool {
        self.compression == Compression::Zstd
    }

    /// Path, within the store, of the shard with index `row` along the first axis.
    pub(crate) fn shard_path(&self, row: usize) -> PathBuf {
        Path::new(&self.path).join(self.shard_name(row))
    }

    /// File name, in the array's folder, of the shard with index `row` along the first axis.
    pub(crate) fn shard_name(&self, row: usize) -> String {
        format!("c.{row}{}", ".0".repeat(self.shape.len() - 1))
    }

    /// Index along the first axis of the shard with the file name `name`.
    pub(crate) fn row_of_shard_name(&self, name: &str) -> Option<usize> {
        let row = name.strip_prefix("c.")?.split('.').next()?.parse().ok()?;
        (self.shard_name(row) == name).then_some(row)
    }

    /// Bytes of one chunk's values.
    pub(crate) fn chunk_bytes(&self) -> usize {
        let value = match self.number {
            Number::U8 => 1,
            Number::Float(dtype) => dtype.bytes(),
        };
        self.chunk_shape.iter().product::<u64>() as usize * value
    }

    fn zarr(&self) -> Result<Array<MemoryStore>> {
        let data_type = match self.number {
            Number::U8 | Number::Float(StoreDtype::Q8) => data_type::uint8(),
            Number::Float(StoreDtype::F16) => data_type::float16(),
            Number::Float(StoreDtype::F32) => data_type::float32(),
            // zarr-python lacks bfloat16: store the bits, and an attribute that says so.
            Number::Float(StoreDtype::Bf16) => data_type::uint16(),
        };
        // No chunk consists only of this value. The sharding codec omits chunks that hold only the fill value, but here a missing
        // chunk must always mean damage. A reader that returns the fill value instead shows that something is wrong, too.
        let fill_value = match self.number {
            // In 8-bit codes each channel's least value is 0.
            Number::U8 | Number::Float(StoreDtype::Q8) => json!(u8::MAX),
            Number::Float(StoreDtype::Bf16) => json!(half::bf16::NAN.to_bits()),
            Number::Float(_) => json!("NaN"),
        };
        let fill_value: zarrs::metadata::FillValueMetadata =
            serde_json::from_value(fill_value).map_err(|e| self.zarr_error(e))?;
        let mut codecs: Vec<Arc<dyn BytesToBytesCodecTraits>> = Vec::new();
        if self.is_compressed() {
            codecs.push(Arc::new(ZstdCodec::new(ZSTD_LEVEL, false)));
        }
        codecs.push(Arc::new(Crc32cCodec::new()));
        let mut builder = ArrayBuilder::new(self.shape.clone(), self.shard_shape.clone(), data_type, fill_value);
        builder
            .subchunk_shape(self.chunk_shape.clone())
            .bytes_to_bytes_codecs(codecs)
            .chunk_key_encoding(DefaultChunkKeyEncoding::new(ChunkKeySeparator::Dot))
            .dimension_names(Some(self.dimension_names.iter().copied()))
            // The order of chunks in a shard must not depend on the threads.
            .codec_specific_options(
                CodecSpecificOptions::default()
                    .with_option(ShardingCodecOptions::default().with_subchunk_write_order(SubchunkWriteOrder::C)),
            );
        match self.number {
            Number::Float(StoreDtype::Bf16) => builder.attributes_mut().insert("encoding".into(), json!("bfloat16")),
            Number::Float(StoreDtype::Q8) => builder.attributes_mut().insert("encoding".into(), json!("quantized")),
            _ => None,
        };
        if let Some(Value::Object(facts)) = &self.encoder {
            builder.attributes_mut().extend(facts.clone());
        }
        builder.build(Arc::new(MemoryStore::new()), &format!("/{}", self.path)).map_err(|e| self.zarr_error(e))
    }

    /// The array's `zarr.json`.
    pub(crate) fn metadata(&self) -> Result<Value> {
        let options = ArrayMetadataOptions::default().with_include_zarrs_metadata(false);
        serde_json::to_value(self.zarr()?.metadata_opt(&options)).map_err(|e| self.zarr_error(e))
    }

    /// Encoder from one chunk's values to its bytes in a shard.
    pub(crate) fn encoder(&self) -> Result<ChunkEncoder> {
        let one = ArraySpec { shape: self.chunk_shape.clone(), shard_shape: self.chunk_shape.clone(), ..self.clone() };
        Ok(ChunkEncoder { array: one.zarr()?, spec: self.clone() })
    }

    fn zarr_error(&self, reason: impl std::fmt::Display) -> Error {
        Error::Zarr { array: self.path.clone(), reason: reason.to_string() }
    }
}

/// Encodes the chunks of one array one by one, so that a shard can combine new and stored chunks.
pub(crate) struct ChunkEncoder {
    /// An array with one shard of one chunk.
    array: Array<MemoryStore>,
    spec: ArraySpec,
}

impl ChunkEncoder {
    pub(crate) fn spec(&self) -> &ArraySpec {
        &self.spec
    }

    /// The stored form of the chunk that holds `values`, little-endian numbers in C order.
    pub(crate) fn encode(&self, values: &[u8]) -> Result<Vec<u8>> {
        let shape: Vec<NonZeroU64> = self.spec.chunk_shape.iter().filter_map(|&n| NonZeroU64::new(n)).collect();
        let options = CodecOptions::default();
        let shard = self
            .array
            .codecs()
            .encode(ArrayBytes::from(values), &shape, self.array.data_type(), self.array.fill_value(), &options)
            .map_err(|e| self.spec.zarr_error(e))?;
        shard::only_chunk(shard.into_owned()).map_err(|e| self.spec.zarr_error(e))
    }
}

/// The `zarr.json` of a group.
pub(crate) fn group_metadata(attributes: Value) -> Value {
    json!({ "zarr_format": 3, "node_type": "group", "attributes": attributes })
}

/// The `zarr.json` of the store.
pub(crate) fn root_metadata(attributes: &StoreAttributes) -> Value {
    group_metadata(json!(attributes))
}

/// Paths of the store's groups except the root.
pub(crate) fn groups() -> [String; 4] {
    let [train, test] = Split::ALL;
    [train.to_string(), test.to_string(), format!("{train}/{MASKS}"), format!("{test}/{MASKS}")]
}

/// Metadata as the bytes of a `zarr.json`.
pub(crate) fn to_json(metadata: &Value) -> Vec<u8> {
    format!("{metadata:#}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::encoder::EncoderArch;
    use sam_ladder_schemas::precompute::EncoderWeights;

    /// A shard assembled from chunks equals the one that Zarr's sharding codec makes from all values at once.
    #[test]
    fn shards_put_together_are_those_of_the_codec() {
        let both = [Compression::None, Compression::Zstd];
        let formats = [StoreDtype::F16, StoreDtype::F32, StoreDtype::Bf16, StoreDtype::Q8];
        for (dtype, compression) in formats.into_iter().flat_map(|dtype| both.map(|compression| (dtype, compression))) {
            let published = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 1 });
            let config = PrecomputeConfig { image_size: 32, dtype, compression, rungs: vec![2, 5], ..published };
            for (index, kind) in ArrayKind::all(&config).into_iter().enumerate() {
                assert_eq!(kind.index(&config), index);
                let spec = ArraySpec::of_split(&config, Split::Train, kind, [3, 5]);
                let values: Vec<u8> = (0..5 * spec.chunk_bytes()).map(|i| (i * i % 61) as u8).collect();
                let encoder = spec.encoder().unwrap();
                let chunks: Vec<_> = values.chunks(spec.chunk_bytes()).map(|chunk| encoder.encode(chunk).unwrap()).collect();
                let array = spec.zarr().unwrap();
                let shape: Vec<NonZeroU64> = spec.shard_shape.iter().map(|&n| NonZeroU64::new(n).unwrap()).collect();
                let expected = array
                    .codecs()
                    .encode(
                        ArrayBytes::from(&values[..]),
                        &shape,
                        array.data_type(),
                        array.fill_value(),
                        &CodecOptions::default(),
                    )
                    .unwrap();
                assert!(shard::assemble(&chunks) == expected.as_ref(), "{dtype:?} {compression:?} {kind:?}");
            }
        }
    }
}
