//! What is recorded of a case in addition to its tensors: its rows and its mask.

use super::progress::CaseRecord;
use super::{StoreWriter, create_array};
use crate::arrays::ArraySpec;
use crate::error::{Error, Result};
use crate::manifest::{array_file, check_bytes};
use crate::shard;
use crate::store::{ReferenceMask, check_scan, mask_shape};
use rayon::prelude::*;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::tables::{ScanRow, SliceRow};
use std::io::ErrorKind;

impl StoreWriter {
    /// Whether the rows of a case are recorded, and its mask is the one that is recorded.
    ///
    /// # Errors
    /// [`Error::File`] for a bucket that does not answer.
    pub fn is_case_recorded(&self, split: Split, case: &str) -> Result<bool> {
        let recorded = match self.case_record(split, case)? {
            Some(record) => self.is_mask_whole(split, case, &record)?,
            None => false,
        };
        Ok(recorded || self.is_finished())
    }

    /// What is recorded of a case, with the rows that it has now.
    pub(super) fn case_record(&self, split: Split, case: &str) -> Result<Option<CaseRecord>> {
        let (rows, key) = (self.layout.case_rows(split, case)?, self.keys[split as usize].get(case));
        let recorded = key.map(|key| self.progress.case(split, case, key)).transpose()?.flatten();
        let record = recorded.or_else(|| self.previous.as_ref()?.case(split, case));
        Ok(record.filter(|record| record.rows.len() == rows.len()).map(|mut record| {
            record.rows.iter_mut().zip(rows).for_each(|(slice, row)| slice.row = row as u32);
            record
        }))
    }

    fn is_mask_whole(&self, split: Split, case: &str, record: &CaseRecord) -> Result<bool> {
        let spec = ArraySpec::of_mask(split, case, mask_shape(&record.rows));
        let (metadata, bytes) = array_file(&spec)?;
        let path = self.storage.join(spec.shard_path(0));
        match self.storage.open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            file => {
                let whole = shard::check_whole(&file.map_err(Error::io("read", &path))?, &record.mask).is_ok();
                Ok(whole && check_bytes(&self.storage, &self.storage.join(metadata), &bytes).is_ok())
            }
        }
    }

    /// Whether a case is complete: its slices, its rows and its mask are written.
    ///
    /// # Errors
    /// [`Error::Values`] if the layout has no such case; [`Error::File`] for a bucket that does not answer.
    pub fn is_case_done(&self, split: Split, case: &str) -> Result<bool> {
        let mut rows = self.layout.case_rows(split, case)?;
        Ok(self.is_case_recorded(split, case)? && rows.all(|row| self.is_slice_done(split, row)))
    }

    /// Records a case: its scan, its rows and its reference segmentation.
    ///
    /// # Errors
    /// [`Error::Values`] if scan, rows or mask do not match the case's layout, [`Error::Changed`] if another process has changed the store's layout,
    /// [`Error::File`].
    pub fn write_case(&self, split: Split, scan: &ScanRow, rows: &[SliceRow], mask: &ReferenceMask) -> Result<()> {
        let case = scan.case.as_str();
        self.check_case(split, scan, rows, mask)?;
        self.check_layout()?;
        self.save(true)?;
        let mask = self.write_mask(split, case, mask)?;
        let key = self.key(split, case)?;
        match self.progress.write_case(split, case, key, &CaseRecord { scan: scan.clone(), rows: rows.to_vec(), mask }) {
            // Another worker had all of it, finished the store and removed the records.
            Err(_) if self.is_finished() => Ok(()),
            written => written,
        }
    }

    fn check_case(&self, split: Split, scan: &ScanRow, rows: &[SliceRow], mask: &ReferenceMask) -> Result<()> {
        let case = scan.case.as_str();
        let refuse = |reason: String| Error::Values { what: format!("{split} case {case}"), reason };
        let expected = self.layout.case_rows(split, case)?;
        let num_organs = self.layout.attributes().config.class_names.len();
        let right = |(i, row): (usize, &SliceRow)| {
            let place = (row.row as usize, row.slice_index as usize) == (expected.start + i, i);
            place && row.case == case && row.voxels.len() == num_organs
        };
        if rows.len() != expected.len() || !rows.iter().enumerate().all(right) {
            let range = format!("{}..{}", expected.start, expected.end);
            return Err(refuse(format!("expected rows {range} with {num_organs} voxel counts each, got {rows:?}")));
        }
        check_scan(scan, case, rows.len()).map_err(refuse)?;
        if scan.turned_shape().is_none_or(|[_, height, width]| rows[0].size != [height as u32, width as u32]) {
            return Err(refuse(format!("its shape {:?} is not that of its slices, {:?}", scan.shape, rows[0].size)));
        }
        let ignored = self.layout.attributes().config.ignored_class();
        let is_wrong = |class: u8| usize::from(class) > num_organs && Some(class) != ignored;
        if let Some(class) = mask.labels.iter().find(|&&class| is_wrong(class)) {
            return Err(refuse(format!("class {class} in its mask is not below the number of classes {}", num_organs + 1)));
        }
        if mask.shape != mask_shape(rows) || mask.labels.len() != mask.shape.iter().product::<usize>() {
            let (expected, found) = (mask_shape(rows), mask.shape);
            return Err(refuse(format!(
                "expected a mask of shape {expected:?}, got {} voxels of shape {found:?}",
                mask.labels.len()
            )));
        }
        Ok(())
    }

    /// Writes the mask of a case; the checksums of its chunks.
    fn write_mask(&self, split: Split, case: &str, mask: &ReferenceMask) -> Result<Vec<u32>> {
        let encoder = ArraySpec::of_mask(split, case, mask.shape).encoder()?;
        let spec = encoder.spec();
        create_array(&self.storage, spec)?;
        let chunks: Vec<Vec<u8>> =
            mask.labels.par_chunks(spec.chunk_bytes()).map(|slice| encoder.encode(slice)).collect::<Result<_>>()?;
        self.storage.write(&self.storage.join(spec.shard_path(0)), shard::assemble(&chunks))?;
        Ok(chunks.iter().map(|chunk| shard::checksum_of(chunk)).collect())
    }
}
