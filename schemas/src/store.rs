//! Names, shapes and version of the store. Other programs read it, so these names must not change.

use crate::classes::Split;
use crate::precompute::PrecomputeConfig;
use serde::{Deserialize, Serialize};

/// Version of the layout; a reader refuses a store of another version.
pub const FORMAT_VERSION: u32 = 2;
/// Table with one row per variant.
pub const VARIANTS_TABLE: &str = "variants.parquet";
/// Table with the checksum of every chunk of every array, one row per chunk.
pub const CHECKSUMS_TABLE: &str = "checksums.parquet";
/// Second copy of the root group's `zarr.json`, which restores a damaged one.
pub const MANIFEST_COPY: &str = "manifest.json";
/// SAM's frozen prompt encoder and mask decoder (`prompt_encoder.…`, `mask_decoder.…`), so that training needs only the store.
pub const DECODER_WEIGHTS: &str = "sam_decoder.safetensors";
/// The linear maps that bring tokens to the channels of [`RUNGS`]: for each block `blocks.<i>.mean` `[C]` and `blocks.<i>.components` `[c, C]`,
/// only in stores with rungs that have a projection.
pub const RUNG_PROJECTION: &str = "rung_projection.safetensors";
/// `[slice, variant, 256, g, g]`, g = image_size / 16.
pub const EMBEDDINGS: &str = "embeddings";
/// `[slice, variant, s, s]`, or `[slice, variant, c, s, s]` for 2 or 3 channels: input of the side network.
pub const IMAGES: &str = "images";
/// `[slice, variant, s/4, s/4]`, uint8: labels for the loss.
pub const LABELS: &str = "labels";
/// Labels at half the image's side, `[slice, variant, s/2, s/2]`, if the store has any.
pub const HALF_LABELS: &str = "labels_half";
/// `[slice, variant, rung, c, g, g]`: the encoder's tokens after some blocks, only in stores with rungs.
pub const RUNGS: &str = "rungs";
/// `[slice, variant, 256 + channels of an image + channels of all rungs, 2]`, float32, only in 8-bit stores: scale and offset of each channel,
/// first of the embeddings, then of the image, then of each rung.
pub const QUANTIZATION: &str = "quantization";
/// Group in each split with the reference segmentations at the scans' own resolution, one array `[d, h, w]` per case.
pub const MASKS: &str = "masks";

/// Path of a split's slice table within the store.
pub fn slices_table(split: Split) -> String {
    format!("{split}/slices.parquet")
}

/// Path of a split's table of scans within the store.
pub fn scans_table(split: Split) -> String {
    format!("{split}/scans.parquet")
}

/// A file from which the store was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Path relative to the scans' folder, with forward slashes.
    pub path: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

/// A scan that goes into the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseLayout {
    /// Its name: `0005`.
    pub case: String,
    /// The split it belongs to.
    pub split: Split,
    /// Number of its slices, at least 1.
    pub num_slices: usize,
    /// Paths of its files among the attributes' sources.
    pub sources: Vec<String>,
}

/// A training slice of which tokens were taken for the rungs' projection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampledSlice {
    /// Its case.
    pub case: String,
    /// The slice within the case, from 0.
    pub slice: usize,
}

/// Attributes of the store's root group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreAttributes {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Hash of all that determines the tensors: `config` and `sources`.
    pub cache_id: String,
    /// Whether every tensor and table has been written.
    pub complete: bool,
    /// Settings of stage one.
    pub config: PrecomputeConfig,
    /// Every source file, sorted by path.
    pub sources: Vec<SourceFile>,
    /// Every case, `train` before `test`, in the order of the arrays' rows: sorted by name when the store was begun, then those that were
    /// added, each time sorted by name.
    pub cases: Vec<CaseLayout>,
    /// The slices that the rungs' projection is made of, as they were chosen when the store was begun; left out if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rung_sample: Vec<SampledSlice>,
    /// Files that are neither arrays nor metadata (tables and the decoder's weights), with their hashes; empty while incomplete.
    pub files: Vec<SourceFile>,
    /// Hash of all the other attributes.
    pub checksum: String,
}

impl StoreAttributes {
    /// Whether the store is the one that had this `cache_id`, or is that one with labels at half the image's side added since: they change nothing
    /// that was there.
    pub fn is_or_was(&self, then: &str) -> bool {
        let before = || PrecomputeConfig { half_labels: false, ..self.config.clone() };
        self.cache_id == then || cache_id(&before(), &self.sources) == then
    }

    /// Attributes of a store that is being written; computes its `cache_id`.
    pub fn new(config: PrecomputeConfig, mut sources: Vec<SourceFile>) -> Self {
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        let cache_id = cache_id(&config, &sources);
        StoreAttributes {
            format_version: FORMAT_VERSION,
            cache_id,
            complete: false,
            config,
            sources,
            cases: vec![],
            rung_sample: vec![],
            files: vec![],
            checksum: String::new(),
        }
        .sealed()
    }

    /// The same store with these cases, in the order of the rows.
    pub fn with_cases(self, cases: Vec<CaseLayout>) -> Self {
        StoreAttributes { cases, ..self }.sealed()
    }

    /// The same store, whose rungs' projection is made of these slices.
    pub fn with_rung_sample(self, rung_sample: Vec<SampledSlice>) -> Self {
        StoreAttributes { rung_sample, ..self }.sealed()
    }

    /// The same store, complete, with these tables and weights.
    pub fn finished(&self, files: Vec<SourceFile>) -> Self {
        StoreAttributes { complete: true, files, ..self.clone() }.sealed()
    }

    /// The same store, marked as not complete.
    pub fn unfinished(&self) -> Self {
        StoreAttributes { complete: false, files: vec![], ..self.clone() }.sealed()
    }

    /// The right `checksum`: SHA-256, in hexadecimal, of the compact JSON of the other attributes.
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

/// SHA-256 of some bytes, in hexadecimal. Also in `formats`, which this crate cannot use.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
