//! Access to only the training split of a store.

use crate::batch::BatchParts;
use crate::error::Result;
use crate::reader::{ReadMode, Reader};
use crate::remote::CacheOptions;
use crate::store::{ReferenceMask, Store};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use sam_ladder_schemas::store::StoreAttributes;
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use sam_ladder_schemas::variants::Variant;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A store without access to the test scans' images, embeddings, labels or masks. Training and sweeps hold this instead of a [`Store`], so
/// that nothing they choose can depend on the test scans.
#[derive(Debug, Clone)]
pub struct TrainingSplit {
    store: Arc<Store>,
    /// The training slices, sorted by case.
    slices: Arc<[SliceRow]>,
}

impl TrainingSplit {
    /// Opens a complete store.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, None)
    }

    /// Opens a complete store; copies of a bucket's chunks are kept where `cache` says.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(path: impl AsRef<Path>, cache: Option<&CacheOptions>) -> Result<Self> {
        let store = Arc::new(Store::open_with(path, cache)?);
        let mut slices = store.slices(Split::Train).to_vec();
        slices.sort_by(|a, b| (&a.case, a.slice_index).cmp(&(&b.case, b.slice_index)));
        Ok(TrainingSplit { store, slices: slices.into() })
    }

    /// Folder of the store.
    pub fn path(&self) -> &Path {
        self.store.path()
    }

    /// Attributes of the store: version, `cache_id`, config, sources.
    pub fn attributes(&self) -> &StoreAttributes {
        self.store.attributes()
    }

    /// Settings with which the tensors were made.
    pub fn config(&self) -> &PrecomputeConfig {
        self.store.config()
    }

    /// The variants of a training slice, by index.
    pub fn variants(&self) -> &[Variant] {
        self.store.variants(Split::Train)
    }

    /// The training slices sorted by case, slices ascending, each with its row. The order does not depend on that of the rows, so that a
    /// store that grew trains as one that was made in one go.
    pub fn slices(&self) -> &[SliceRow] {
        &self.slices
    }

    /// The training scans, in the order of their rows.
    pub fn scans(&self) -> &[ScanRow] {
        self.store.scans(Split::Train)
    }

    /// The training cases, sorted.
    pub fn cases(&self) -> Vec<String> {
        self.store.cases(Split::Train)
    }

    /// The slices of a training case, in the order of the store's rows, which is that of its mask.
    ///
    /// # Errors
    /// As [`Store::case_slices`].
    pub fn case_slices(&self, case: &str) -> Result<&[SliceRow]> {
        self.store.case_slices(Split::Train, case)
    }

    /// The reference segmentation of a training case, at the scan's own resolution.
    ///
    /// # Errors
    /// As [`Store::mask`].
    pub fn mask(&self, case: &str) -> Result<ReferenceMask> {
        self.store.mask(Split::Train, case)
    }

    /// Whether a test case has this name; this is all that can be learnt about the test cases.
    pub fn is_test_case(&self, case: &str) -> bool {
        self.store.slices(Split::Test).iter().any(|slice| slice.case == case)
    }

    /// File of SAM's frozen prompt encoder and mask decoder, under the names of SAM's checkpoints.
    pub fn decoder_path(&self) -> PathBuf {
        self.store.decoder_path()
    }

    /// As [`Store::rung_projection_sha256`].
    pub fn rung_projection_sha256(&self) -> Option<&str> {
        self.store.rung_projection_sha256()
    }

    /// As [`Store::rung_projection`].
    ///
    /// # Errors
    /// As [`Store::rung_projection`].
    pub fn rung_projection(&self) -> Result<Option<Vec<u8>>> {
        self.store.rung_projection()
    }

    /// A reader of the training slices.
    pub fn reader(&self, mode: ReadMode) -> Reader {
        Reader::new(self.store.clone(), Split::Train, mode)
    }

    /// A reader of the training slices with these parts.
    ///
    /// # Errors
    /// As [`Reader::with`].
    pub fn reader_with(&self, mode: ReadMode, parts: BatchParts) -> Result<Reader> {
        Reader::with(self.store.clone(), Split::Train, mode, parts)
    }
}
