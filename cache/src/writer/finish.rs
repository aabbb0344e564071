//! Finishes a store: writes the tables from the recorded rows, the hashes, and `complete: true`.

use super::{CaseRecord, PROGRESS, StoreWriter, previous};
use crate::error::{Error, Result};
use crate::layout::StoreLayout;
use crate::manifest::{hash_files, write_manifest};
use crate::slice_table::encode_slices;
use crate::storage::Storage;
use crate::store::{Store, read_scans, read_slices};
use sam_ladder_formats::rows::encode_rows;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::store::{DECODER_WEIGHTS, VARIANTS_TABLE, scans_table, slices_table};

impl StoreWriter {
    /// What is still missing, in words; `None` if [`Self::finish`] can be called. Looks at the folder again.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn missing(&self) -> Result<Option<String>> {
        self.refresh()?;
        let mut missing = Vec::new();
        for split in Split::ALL {
            let total = self.layout.num_slices(split);
            let done = (0..total).filter(|&row| self.is_slice_done(split, row)).count();
            if done < total {
                missing.push(format!("{done} of {total} {split} slices are done"));
            }
            for (case, _) in self.layout.cases_of(split) {
                if done == total && !self.is_case_recorded(split, &case.case)? {
                    missing.push(format!("{split} case {} is not recorded", case.case));
                }
            }
        }
        if !self.has_decoder()? {
            missing.push(format!("{DECODER_WEIGHTS} is missing"));
        }
        Ok((!missing.is_empty()).then(|| missing.join("; ")))
    }

    /// Writes the tables, marks the store complete and opens it. Several processes may do so at once: they write the same bytes.
    ///
    /// # Errors
    /// [`Error::Incomplete`] that counts what is missing, [`Error::File`], and those of [`Store::open`].
    pub fn finish(self) -> Result<Store> {
        let store = &self.storage;
        if let Some(detail) = self.missing()? {
            return Err(Error::Incomplete { path: store.root().into(), detail });
        }
        write_variants(store, &self.layout)?;
        for split in Split::ALL {
            match self.recorded(split)? {
                Some(records) => write_tables(store, &self.layout, split, records)?,
                // An earlier run or another process came this far and removed the recorded rows.
                None => {
                    let slices = read_slices(store, &self.layout, split)?;
                    read_scans(store, &self.layout, split, Some(&slices))?;
                }
            }
        }
        let files = hash_files(store)?;
        previous::remove(store)?;
        store.remove_folder(&store.join(PROGRESS))?;
        store.tidy_and_sync()?;
        write_manifest(store, &self.layout.attributes().finished(files))?;
        store.sync_folder(store.root())?;
        Store::open_at(self.storage, None)
    }

    /// What is recorded of a split's cases; `None` if some are no longer recorded.
    fn recorded(&self, split: Split) -> Result<Option<Vec<CaseRecord>>> {
        let mut all = Vec::new();
        for (case, _) in self.layout.cases_of(split) {
            let path = self.progress_path(split, &case.case);
            let bytes = match self.storage.read(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                other => other.map_err(Error::io("read", &path))?,
            };
            let record: CaseRecord =
                serde_json::from_slice(&bytes).map_err(|e| Error::Manifest { path: path.clone(), reason: e.to_string() })?;
            all.push(record);
        }
        Ok(Some(all))
    }
}

/// Writes `variants.parquet`.
pub(super) fn write_variants(store: &Storage, layout: &StoreLayout) -> Result<()> {
    let path = store.join(VARIANTS_TABLE);
    store.write(&path, encode_rows(&path, &layout.variant_rows())?)
}

/// Writes a split's tables of slices and of scans.
fn write_tables(store: &Storage, layout: &StoreLayout, split: Split, records: Vec<CaseRecord>) -> Result<()> {
    let (mut scans, mut slices) = (Vec::with_capacity(records.len()), Vec::new());
    for record in records {
        scans.push(record.scan);
        slices.extend(record.slices);
    }
    let path = store.join(slices_table(split));
    store.write(&path, encode_slices(&path, &slices, &layout.attributes().config.class_names)?)?;
    let path = store.join(scans_table(split));
    store.write(&path, encode_rows(&path, &scans)?)
}
