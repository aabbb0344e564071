//! Names, shapes and version of the store. Other programs read it: these names are settled.

use crate::classes::Split;
use crate::precompute::PrecomputeConfig;
use serde::{Deserialize, Serialize};

/// Version of the layout; a reader refuses a store of another.
pub const FORMAT_VERSION: u32 = 1;
/// One row a variant.
pub const VARIANTS_TABLE: &str = "variants.parquet";
/// SAM's frozen prompt encoder and mask decoder (`prompt_encoder.…`, `mask_decoder.…`), so that training needs nothing but the store.
pub const DECODER_WEIGHTS: &str = "sam_decoder.safetensors";
/// `[slice, variant, 256, g, g]`, g = image_size / 16.
pub const EMBEDDINGS: &str = "embeddings";
/// `[slice, variant, s, s]`, or `[slice, variant, c, s, s]` for 2 or 3 channels: what the CNN sees.
pub const IMAGES: &str = "images";
/// `[slice, variant, s/4, s/4]`, uint8, what the loss sees.
pub const LABELS: &str = "labels";
/// `[slice, variant, 256 + channels of an image, 2]`, float32, in stores of 8 bits: scale and offset of each channel of the embeddings,
/// then of the image.
pub const QUANTIZATION: &str = "quantization";
/// Group below `test` of the reference segmentations at the scans' own resolution, one array `[d, h, w]` a case.
pub const MASKS: &str = "masks";

/// Path below the store of a split's slice table.
pub fn slices_table(split: Split) -> String {
    format!("{split}/slices.parquet")
}

/// A file that the store was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Path below the scans' folder, with forward slashes.
    pub path: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

/// Attributes of the store's root group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreAttributes {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Hash of all that shapes the tensors: `config` and `sources`.
    pub cache_id: String,
    /// Whether every tensor and table is there.
    pub complete: bool,
    /// Settings of stage one.
    pub config: PrecomputeConfig,
    /// Every source file, sorted by path.
    pub sources: Vec<SourceFile>,
}

impl StoreAttributes {
    /// Attributes of a store that is being written; computes its `cache_id`.
    pub fn new(config: PrecomputeConfig, mut sources: Vec<SourceFile>) -> Self {
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        let cache_id = cache_id(&config, &sources);
        StoreAttributes { format_version: FORMAT_VERSION, cache_id, complete: false, config, sources }
    }
}

/// SHA-256, in hexadecimal, over the canonical JSON of the format version, the config and the sources' hashes.
pub fn cache_id(config: &PrecomputeConfig, sources: &[SourceFile]) -> String {
    use sha2::{Digest, Sha256};
    let canonical = serde_json::json!({ "format_version": FORMAT_VERSION, "config": config, "sources": sources });
    Sha256::digest(canonical.to_string().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
