//! Parquet tables: whole record batches, written aside and renamed.

use crate::atomic::write_atomic;
use crate::error::{Error, Result};
use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::ChunkReader;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Named as the writer of every table, so that the bytes depend on the rows alone.
const CREATED_BY: &str = "sam-ladder";

/// Writes `batch` as the Parquet file `path`; an existing one is replaced in one step.
///
/// # Errors
/// [`Error::Rows`] when the rows cannot be encoded, [`Error::Io`] when the file cannot be written.
pub fn write_table(path: &Path, batch: &RecordBatch) -> Result<()> {
    write_atomic(path, &encode(path, batch)?)
}

/// The Parquet file that holds `batch`; `path` names it in messages.
///
/// # Errors
/// [`Error::Rows`] when the rows cannot be encoded.
pub fn encode(path: &Path, batch: &RecordBatch) -> Result<Vec<u8>> {
    let properties = WriterProperties::builder()
        .set_created_by(CREATED_BY.into())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let encode = || {
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties))?;
        writer.write(batch)?;
        writer.close()?;
        Ok::<_, parquet::errors::ParquetError>(bytes)
    };
    encode().map_err(|e| Error::Rows { action: "write", path: path.into(), reason: e.to_string() })
}

/// Reads all rows of the Parquet file `path`.
///
/// # Errors
/// [`Error::Io`] when it cannot be opened, [`Error::Rows`] when it is not Parquet or damaged.
pub fn read_table(path: &Path) -> Result<RecordBatch> {
    decode(path, File::open(path).map_err(Error::io("read", path))?)
}

/// The rows of a Parquet file that is opened, or whose bytes are at hand; `path` names it in messages.
///
/// # Errors
/// [`Error::Rows`] when it is not Parquet or damaged.
pub fn decode(path: &Path, file: impl ChunkReader + 'static) -> Result<RecordBatch> {
    let read = || {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| e.to_string())?;
        let schema = builder.schema().clone();
        let reader = builder.build().map_err(|e| e.to_string())?;
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
        concat_batches(&schema, &batches).map_err(|e| e.to_string())
    };
    // The Parquet reader panics on some damaged pages (a dictionary that is announced and not there). It owns all that it works on, so
    // nothing half-changed is seen afterwards.
    let outcome = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("it is damaged beyond what can be read".into()));
    outcome.map_err(|reason| Error::Rows { action: "read", path: path.into(), reason })
}
