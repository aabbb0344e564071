//! Names, shapes and version of the store. Other programs read it: these names are settled.

use crate::classes::Split;
use crate::precompute::PrecomputeConfig;
use serde::{Deserialize, Serialize};

/// Version of the layout; a reader refuses a store of another.
pub const FORMAT_VERSION: u32 = 1;
/// One row a variant.
pub const VARIANTS_TABLE: &str = "variants.parquet";
/// Second copy of the root group's `zarr.json`, from which that is restored when it is damaged.
pub const MANIFEST_COPY: &str = "manifest.json";
/// SAM's frozen prompt encoder and mask decoder (`prompt_encoder.…`, `mask_decoder.…`), so that training needs nothing but the
/// store.
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

/// A scan that goes into the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseLayout {
    /// Its name: `0005`.
    pub case: String,
    /// Which half it belongs to.
    pub split: Split,
    /// Its slices, at least 1.
    pub num_slices: usize,
    /// Paths of its files among the attributes' sources.
    pub sources: Vec<String>,
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
    /// Every case, sorted by split and name: the rows of the arrays follow from it.
    pub cases: Vec<CaseLayout>,
    /// Of a complete store, the files that are neither arrays nor metadata, with their hashes: tables and the decoder's weights.
    pub files: Vec<SourceFile>,
    /// Hash of all the other attributes.
    pub checksum: String,
}

impl StoreAttributes {
    /// Attributes of a store that is being written; computes its `cache_id`.
    pub fn new(config: PrecomputeConfig, mut sources: Vec<SourceFile>) -> Self {
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        let cache_id = cache_id(&config, &sources);
        let (cases, files, checksum) = (vec![], vec![], String::new());
        StoreAttributes { format_version: FORMAT_VERSION, cache_id, complete: false, config, sources, cases, files, checksum }
            .sealed()
    }

    /// The same store with these cases.
    pub fn with_cases(self, cases: Vec<CaseLayout>) -> Self {
        StoreAttributes { cases, ..self }.sealed()
    }

    /// The same store, complete, with these tables and weights.
    pub fn finished(&self, files: Vec<SourceFile>) -> Self {
        StoreAttributes { complete: true, files, ..self.clone() }.sealed()
    }

    /// The same store, while it is being written.
    pub fn unfinished(&self) -> Self {
        StoreAttributes { complete: false, files: vec![], ..self.clone() }.sealed()
    }

    /// What `checksum` must be: SHA-256, in hexadecimal, of the compact JSON of the other attributes.
    pub fn expected_checksum(&self) -> String {
        let mut value = serde_json::json!(self);
        if let Some(attributes) = value.as_object_mut() {
            attributes.shift_remove("checksum");
        }
        sha256_hex(value.to_string().as_bytes())
    }

    fn sealed(mut self) -> Self {
        self.checksum = self.expected_checksum();
        self
    }
}

/// SHA-256, in hexadecimal, over the canonical JSON of the format version, the config and the sources' hashes.
pub fn cache_id(config: &PrecomputeConfig, sources: &[SourceFile]) -> String {
    let canonical = serde_json::json!({ "format_version": FORMAT_VERSION, "config": config, "sources": sources });
    sha256_hex(canonical.to_string().as_bytes())
}

/// SHA-256 of some bytes, in hexadecimal: as that of `formats`, which this crate does not know.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
