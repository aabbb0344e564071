//! The end of a store: tables from the recorded rows, hashes, and the word that it is complete.

use super::{PROGRESS, StoreWriter, previous};
use crate::atomic::{sync_folder, tidy};
use crate::error::{Error, Result};
use crate::manifest::{hash_files, write_manifest};
use crate::plan::StoreLayout;
use crate::slice_table::{slices_to_batch, variants_to_batch};
use crate::store::{Store, read_slices};
use crate::table::write_table;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::store::{DECODER_WEIGHTS, VARIANTS_TABLE, slices_table};
use sam_ladder_schemas::tables::SliceRow;
use std::fs;
use std::path::Path;

impl StoreWriter {
    /// What is still missing, in words; `None` when [`Self::finish`] can be called. Looks at the folder anew.
    ///
    /// # Errors
    /// [`Error::Io`].
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
                if done == total && !self.is_case_recorded(split, &case.case) {
                    missing.push(format!("{split} case {} is not recorded", case.case));
                }
            }
        }
        if !self.has_decoder() {
            missing.push(format!("{DECODER_WEIGHTS} is missing"));
        }
        Ok((!missing.is_empty()).then(|| missing.join("; ")))
    }

    /// Writes the tables, marks the store complete and opens it. Several processes may do so at once: they write the same bytes.
    ///
    /// # Errors
    /// [`Error::Incomplete`] that counts what is missing, [`Error::Io`], and those of [`Store::open`].
    pub fn finish(self) -> Result<Store> {
        if let Some(detail) = self.missing()? {
            return Err(Error::Incomplete { path: self.path, detail });
        }
        write_variants(&self.path, &self.layout)?;
        for split in Split::ALL {
            match self.recorded_rows(split)? {
                Some(rows) => write_slices(&self.path, &self.layout, split, &rows)?,
                // An earlier run, or another process, came this far and has removed the recorded rows.
                None => drop(read_slices(&self.path, &self.layout, split)?),
            }
        }
        let files = hash_files(&self.path)?;
        previous::remove(&self.path)?;
        remove_folder(&self.path.join(PROGRESS))?;
        tidy_and_sync(&self.path)?;
        write_manifest(&self.path, &self.layout.attributes().finished(files))?;
        sync_folder(&self.path)?;
        Store::open(&self.path)
    }

    /// The rows of a split; `None` when some are not recorded any more.
    fn recorded_rows(&self, split: Split) -> Result<Option<Vec<SliceRow>>> {
        let mut all = Vec::with_capacity(self.layout.num_slices(split));
        for (case, _) in self.layout.cases_of(split) {
            let path = self.progress_path(split, &case.case);
            let bytes = match fs::read(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                other => other.map_err(Error::io("read", &path))?,
            };
            let rows: Vec<SliceRow> =
                serde_json::from_slice(&bytes).map_err(|e| Error::Manifest { path: path.clone(), reason: e.to_string() })?;
            all.extend(rows);
        }
        Ok(Some(all))
    }
}

/// Writes `variants.parquet`.
pub(super) fn write_variants(store: &Path, layout: &StoreLayout) -> Result<()> {
    let path = store.join(VARIANTS_TABLE);
    write_table(&path, &variants_to_batch(&layout.variants(Split::Train)).map_err(table_error(&path))?)
}

fn write_slices(store: &Path, layout: &StoreLayout, split: Split, rows: &[SliceRow]) -> Result<()> {
    let path = store.join(slices_table(split));
    write_table(&path, &slices_to_batch(rows, &layout.attributes().config.class_names).map_err(table_error(&path))?)
}

fn table_error(path: &Path) -> impl FnOnce(arrow::error::ArrowError) -> Error {
    let path = path.to_path_buf();
    |e| Error::Table { action: "write", path, reason: e.to_string() }
}

/// Removes a folder that another process may be removing too.
pub(super) fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Removes what interrupted writes left aside, and syncs every folder.
fn tidy_and_sync(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        // Another process that finishes the store has removed it.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Error::io("list", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("list", folder))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            tidy_and_sync(&entry.path())?;
        }
    }
    tidy(folder)?;
    sync_folder(folder)
}
