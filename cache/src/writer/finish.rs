//! Finishes a store: checks what is there, writes the tables from what is recorded, the hashes, and `complete: true`.

use super::{StoreWriter, open};
use crate::arrays::{ArrayKind, ArraySpec};
use crate::checksums::{Checksums, encode_checksums};
use crate::error::{Error, Result};
use crate::layout::StoreLayout;
use crate::manifest::{read_manifest, write_manifest};
use crate::slice_table::encode_slices;
use crate::storage::Storage;
use crate::store::Store;
use sam_ladder_formats::hash::sha256_hex;
use sam_ladder_formats::rows::encode_rows;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::store::{
    CHECKSUMS_TABLE, DECODER_WEIGHTS, RUNG_PROJECTION, SourceFile, VARIANTS_TABLE, scans_table, slices_table,
};
use sam_ladder_schemas::tables::{ScanRow, SliceRow};

impl StoreWriter {
    /// What is still missing, in words; `None` if [`Self::finish`] can be called. Looks at the store again.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn missing(&self) -> Result<Option<String>> {
        // First, so that of several processes the last to look sees the others' work.
        self.save(true)?;
        self.refresh()?;
        let missing = self.missing_parts()?;
        // If another process has just finished the store, its records are gone.
        Ok(if missing.is_empty() || self.is_finished() { None } else { Some(missing.join("; ")) })
    }

    fn missing_parts(&self) -> Result<Vec<String>> {
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
        if self.layout.attributes().config.has_rung_projection() && self.rung_projection()?.is_none() {
            missing.push(format!("{RUNG_PROJECTION} is missing"));
        }
        Ok(missing)
    }

    /// Whether the store is finished, by this or another process.
    pub(super) fn is_finished(&self) -> bool {
        let wanted = self.layout.attributes();
        read_manifest(&self.storage).is_ok_and(|now| now.complete && now.cache_id == wanted.cache_id && now.cases == wanted.cases)
    }

    /// Checks once more that every shard is the one that is recorded, writes the tables, marks the store complete and opens it. Several
    /// processes may do so at once: they write the same bytes.
    ///
    /// # Errors
    /// [`Error::Incomplete`] that counts what is missing, [`Error::Changed`] if another process has changed the store's layout, [`Error::File`], and
    /// those of [`Store::open`].
    pub fn finish(&self) -> Result<Store> {
        let _lock = self.storage.lock();
        match self.finish_tables() {
            // Another process finished the store, and removed what this one was reading.
            Err(_) if self.is_finished() => {}
            done => done?,
        }
        Store::open_at(self.storage.clone(), None)
    }

    fn finish_tables(&self) -> Result<()> {
        let store = &self.storage;
        if self.is_finished() {
            return open::tidy(store);
        }
        self.save(true)?;
        self.check_again()?;
        let missing = self.missing_parts()?;
        if !missing.is_empty() {
            return Err(Error::Incomplete { path: store.root().into(), detail: missing.join("; ") });
        }
        let files = self.write_tables()?;
        store.tidy_and_sync()?;
        self.check_layout()?;
        write_manifest(store, &self.layout.attributes().finished(files))?;
        store.sync_folder(store.root())?;
        open::tidy(store)
    }

    /// Writes the tables; the hashes of all hashed files, in the manifest's order.
    fn write_tables(&self) -> Result<Vec<SourceFile>> {
        let mut files = vec![write_variants(&self.storage, &self.layout)?];
        let Recorded { scans, rows, checksums } = self.recorded()?;
        let path = self.storage.join(CHECKSUMS_TABLE);
        files.push(written(&self.storage, CHECKSUMS_TABLE, encode_checksums(&path, &self.layout, &checksums)?)?);
        for (split, rows) in Split::ALL.into_iter().zip(rows) {
            let name = slices_table(split);
            let bytes = encode_slices(&self.storage.join(&name), &rows, &self.layout.attributes().config.class_names)?;
            files.push(written(&self.storage, &name, bytes)?);
        }
        for (split, scans) in Split::ALL.into_iter().zip(scans) {
            let name = scans_table(split);
            files.push(written(&self.storage, &name, encode_rows(&self.storage.join(&name), &scans)?)?);
        }
        let projection = self.layout.attributes().config.has_rung_projection().then_some(RUNG_PROJECTION);
        for name in [DECODER_WEIGHTS].into_iter().chain(projection) {
            let sha256 = self.file_hash(name)?.ok_or_else(|| self.lost(name))?;
            files.push(SourceFile { path: name.into(), sha256 });
        }
        Ok(files)
    }

    fn recorded(&self) -> Result<Recorded> {
        let mut checksums = Checksums::default();
        let (mut scans, mut rows) = ([vec![], vec![]], [vec![], vec![]]);
        for split in Split::ALL {
            for kind in ArrayKind::all(&self.layout.attributes().config) {
                let path = self.layout.array(split, kind).path;
                let of_array = self.checksums_of(split, kind).ok_or_else(|| self.lost(&path))?;
                checksums.insert(path, of_array);
            }
            for (case, _) in self.layout.cases_of(split) {
                let record =
                    self.case_record(split, &case.case)?.ok_or_else(|| self.lost(&format!("{split} case {}", case.case)))?;
                scans[split as usize].push(record.scan);
                rows[split as usize].extend(record.rows);
                checksums.insert(ArraySpec::of_mask(split, &case.case, [1; 3]).path, record.mask);
            }
        }
        Ok(Recorded { scans, rows, checksums })
    }

    /// A record is gone: it is damaged, or another process has just finished the store and removed it.
    fn lost(&self, what: &str) -> Error {
        Error::Incomplete { path: self.storage.root().into(), detail: format!("{what} is not recorded") }
    }
}

/// What the writers have recorded.
struct Recorded {
    /// The scans of both splits, in the order of their cases.
    scans: [Vec<ScanRow>; 2],
    /// The slices of both splits.
    rows: [Vec<SliceRow>; 2],
    /// The checksums of all chunks.
    checksums: Checksums,
}

/// Writes `variants.parquet`.
pub(super) fn write_variants(store: &Storage, layout: &StoreLayout) -> Result<SourceFile> {
    written(store, VARIANTS_TABLE, encode_rows(&store.join(VARIANTS_TABLE), &layout.variant_rows())?)
}

/// Writes a file of the store; its name and hash.
fn written(store: &Storage, name: &str, bytes: Vec<u8>) -> Result<SourceFile> {
    let sha256 = sha256_hex(&bytes);
    store.write(&store.join(name), bytes)?;
    Ok(SourceFile { path: name.into(), sha256 })
}

#[cfg(test)]
mod tests {
    use super::super::{Opened, SliceTensors};
    use super::*;
    use crate::store::ReferenceMask;
    use sam_ladder_schemas::encoder::{EMBED_CHANNELS, EncoderArch};
    use sam_ladder_schemas::precompute::{EncoderWeights, PrecomputeConfig};
    use sam_ladder_schemas::store::{CaseLayout, StoreAttributes};
    use sam_ladder_schemas::variants::AugmentPolicy;

    /// A writer that has written everything of a store of one slice.
    fn full(folder: &std::path::Path) -> Box<StoreWriter> {
        let published = PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 1 });
        let config = PrecomputeConfig { image_size: 16, data_size: 16, augment: AugmentPolicy::None, ..published };
        let organs = config.class_names.len();
        let source = SourceFile { path: "a.nii".into(), sha256: "0".repeat(64) };
        let case = CaseLayout { case: "a".into(), split: Split::Train, num_slices: 1, sources: vec![source.path.clone()] };
        let layout = StoreLayout::new(StoreAttributes::new(config, vec![source.clone()]), vec![case]).unwrap();
        let Opened::Writer(writer) = StoreWriter::open_or_create(folder, layout).unwrap() else { panic!("a new store") };
        let tensors = SliceTensors {
            embeddings: &[0.25; EMBED_CHANNELS],
            images: &[0.5; 256],
            labels: &[1; 16],
            half_labels: &[],
            rungs: &[],
        };
        writer.write_slice(Split::Train, 0, &tensors).unwrap();
        let row = SliceRow {
            row: 0,
            case: "a".into(),
            slice_index: 0,
            spacing_mm: None,
            size: [16; 2],
            voxels: vec![0; organs],
            source: source.path,
            source_sha256: source.sha256,
        };
        let mask = ReferenceMask { labels: vec![0; 256], shape: [1, 16, 16] };
        writer.write_case(Split::Train, &ScanRow::of_array("a", [1, 16, 16], None), &[row], &mask).unwrap();
        writer.write_decoder(b"a decoder").unwrap();
        writer
    }

    /// Where there are no locks, another process may finish the store and remove its records while this one writes the tables. A manifest
    /// without the decoder's hash would make the store a damaged one for good.
    #[test]
    fn no_tables_are_written_from_records_that_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let writer = full(folder.path());
        assert_eq!(writer.missing().unwrap(), None);
        assert!(writer.write_tables().unwrap().iter().all(|file| file.sha256.len() == 64));
        std::fs::remove_file(folder.path().join("progress/decoder.json")).unwrap();
        let error = writer.write_tables().unwrap_err();
        assert!(matches!(&error, Error::Incomplete { detail, .. } if detail.contains(DECODER_WEIGHTS)), "{error}");
    }
}
