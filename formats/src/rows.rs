//! Parquet tables. A row is a struct with serde: its fields are the columns, in the same order, and an `Option` is a column that may have
//! empty cells. All tables are written and read here, and their columns checked.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! struct Score {
//!     case: String,
//!     dice: Option<f64>,
//! }
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("scores.parquet");
//! let rows = [Score { case: "0001".into(), dice: Some(0.9) }, Score { case: "0002".into(), dice: None }];
//! sam_ladder_formats::rows::write_rows(&path, &rows)?;
//! assert_eq!(sam_ladder_formats::rows::read_rows::<Score>(&path)?, rows);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::atomic::write_atomic;
use crate::error::{Error, Problem, Result};
use crate::pages::check_pages;
use arrow::array::{Array, Float32Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, Type, ZstdLevel};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::ChunkReader;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_arrow::schema::{SchemaLike, TracingOptions};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

/// The writer's name in every table; it has no version, so that the bytes depend only on the rows.
const CREATED_BY: &str = "sam-ladder";
/// Memory that a table's rows may take whatever its size.
const MEMORY_FLOOR: u64 = 64 << 20;
/// Memory that they may take for each byte of the file: tables of many equal cells are small files.
const MEMORY_PER_BYTE: u64 = 256;
/// Most rows that are decoded at once.
const BATCH_ROWS: u64 = 1024;

/// Writes rows to the Parquet file `path`; an existing file is replaced atomically.
///
/// # Errors
/// [`Error::Io`] when the file cannot be written, [`Error::Rows`] for a struct that has no columns.
pub fn write_rows<T: Serialize + DeserializeOwned>(path: &Path, rows: &[T]) -> Result<()> {
    write_atomic(path, &encode_rows(path, rows)?)
}

/// The bytes of the Parquet file that holds these rows; `path` is for messages.
///
/// # Errors
/// [`Error::Rows`] for a struct that has no columns.
pub fn encode_rows<T: Serialize + DeserializeOwned>(path: &Path, rows: &[T]) -> Result<Vec<u8>> {
    let batch = columns::<T>().and_then(|columns| serde_arrow::to_record_batch(&columns, &rows));
    encode_batch(path, &batch.map_err(|error| failed("write", path, error))?)
}

/// Columns of float32 that a table has after those of its rows' struct, where their number is known only at run time: names and cells.
pub type ExtraColumns = Vec<(String, Vec<f32>)>;

/// As [`write_rows`], with further columns.
///
/// # Errors
/// As [`write_rows`]; a column of another length.
pub fn write_rows_with<T: Serialize + DeserializeOwned>(path: &Path, rows: &[T], extra: &ExtraColumns) -> Result<()> {
    let batch = columns::<T>().and_then(|columns| serde_arrow::to_record_batch(&columns, &rows));
    let batch = batch.map_err(|error| failed("write", path, error))?;
    let mut fields: Vec<FieldRef> = batch.schema().fields().iter().cloned().collect();
    let mut cells = batch.columns().to_vec();
    for (name, values) in extra {
        fields.push(Arc::new(Field::new(name, DataType::Float32, false)));
        cells.push(Arc::new(Float32Array::from(values.clone())));
    }
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), cells);
    write_atomic(path, &encode_batch(path, &batch.map_err(|error| failed("write", path, error))?)?)
}

/// As [`read_rows`], with the further columns whose names begin with `prefix`.
///
/// # Errors
/// As [`read_rows`]; a further column that is not float32, or has an empty cell.
pub fn read_rows_with<T: DeserializeOwned>(path: &Path, prefix: &str) -> Result<(Vec<T>, ExtraColumns)> {
    let batch = decode_batch(path, File::open(path).map_err(Error::io("read", path))?)?;
    let schema = batch.schema();
    let (mut kept, mut extra) = (Vec::new(), Vec::new());
    for (at, (field, cells)) in schema.fields().iter().zip(batch.columns()).enumerate() {
        let name = field.name();
        if !name.starts_with(prefix) {
            kept.push(at);
            continue;
        }
        let Some(values) = cells.as_any().downcast_ref::<Float32Array>().filter(|values| values.null_count() == 0) else {
            let found = format!("has a column {name} of type {}, expected Float32 without empty cells", field.data_type());
            return Err(Error::Columns { path: path.into(), problems: vec![found] });
        };
        extra.push((name.clone(), values.values().to_vec()));
    }
    let rows = from_batch(path, &batch.project(&kept).map_err(|error| failed("read", path, error))?)?;
    Ok((rows, extra))
}

/// Reads all rows of the Parquet file `path`. A column may be missing if it may have empty cells or its field has a serde default, so
/// that files of older versions can be read.
///
/// # Errors
/// [`Error::Io`] when it cannot be opened, [`Error::Format`] when it is damaged or not Parquet, [`Error::Columns`] for a column that is
/// missing, unknown, of another type or has a forbidden empty cell, [`Error::Rows`] for an unknown word of an enum.
pub fn read_rows<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    decode_rows(path, File::open(path).map_err(Error::io("read", path))?)
}

/// As [`read_rows`], but ignores columns that only older versions wrote.
///
/// # Errors
/// As [`read_rows`].
pub fn read_rows_without<T: DeserializeOwned>(path: &Path, retired: &[&str]) -> Result<Vec<T>> {
    let batch = decode_batch(path, File::open(path).map_err(Error::io("read", path))?)?;
    let kept = |(at, field): (usize, &FieldRef)| (!retired.contains(&field.name().as_str())).then_some(at);
    let kept: Vec<usize> = batch.schema().fields().iter().enumerate().filter_map(kept).collect();
    from_batch(path, &batch.project(&kept).map_err(|error| failed("read", path, error))?)
}

/// As [`read_rows`], for an open Parquet file or its bytes; `path` is for messages.
///
/// # Errors
/// As [`read_rows`].
pub fn decode_rows<T: DeserializeOwned>(path: &Path, file: impl ChunkReader + 'static) -> Result<Vec<T>> {
    from_batch(path, &decode_batch(path, file)?)
}

fn from_batch<T: DeserializeOwned>(path: &Path, batch: &RecordBatch) -> Result<Vec<T>> {
    let expected = columns::<T>().map_err(|error| failed("read", path, error))?;
    let (missing, wrong) = differences(&expected, batch);
    if !wrong.is_empty() || (batch.num_rows() == 0 && !missing.is_empty()) {
        return Err(Error::Columns { path: path.into(), problems: [missing, wrong].concat() });
    }
    serde_arrow::from_record_batch(batch).map_err(|error| match missing.is_empty() {
        true => failed("read", path, error),
        // Columns whose fields have no serde default.
        false => Error::Columns { path: path.into(), problems: missing },
    })
}

/// The bytes of a Parquet file that holds `batch`, for columns that no struct describes; `path` is for messages.
///
/// # Errors
/// [`Error::Rows`] when the rows cannot be encoded.
pub fn encode_batch(path: &Path, batch: &RecordBatch) -> Result<Vec<u8>> {
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
    encode().map_err(|error| failed("write", path, error))
}

/// The rows of a Parquet file, for columns that no struct describes; `path` is for messages.
///
/// # Errors
/// [`Error::Format`] when it is damaged or not Parquet.
pub fn decode_batch(path: &Path, file: impl ChunkReader + 'static) -> Result<RecordBatch> {
    let read = || {
        let memory = file.len().saturating_mul(MEMORY_PER_BYTE).max(MEMORY_FLOOR);
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::default()).map_err(|e| e.to_string())?;
        let batch_rows = rows_at_once(metadata.metadata(), memory)?;
        check_pages(&file, metadata.metadata())?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
        let schema = builder.schema().clone();
        let reader = builder.with_batch_size(batch_rows).build().map_err(|e| e.to_string())?;
        let (mut batches, mut taken) = (Vec::new(), 0);
        for batch in reader {
            let batch = batch.map_err(|e| e.to_string())?;
            taken += batch.get_array_memory_size() as u64;
            if taken > memory {
                return Err(format!("its rows take more than {memory} bytes of memory"));
            }
            batches.push(batch);
        }
        concat_batches(&schema, &batches).map_err(|e| e.to_string())
    };
    // The Parquet reader panics on some damaged pages (such as a missing dictionary). It owns its data, so a panic leaves nothing
    // half-changed.
    let outcome = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("it is damaged beyond what can be read".into()));
    outcome.map_err(|reason| Problem::from(reason).in_file(path, "Parquet"))
}

/// How many rows to decode at once, so that they fit `memory` bytes; the error is in words. The footer says how much the whole table
/// takes, and is compared with that before anything is read.
fn rows_at_once(footer: &ParquetMetaData, memory: u64) -> Result<usize, String> {
    fn sum(mut numbers: impl Iterator<Item = i64>) -> Result<u64, &'static str> {
        let sum = numbers.try_fold(0u64, |sum, number| sum.checked_add(u64::try_from(number).ok()?));
        sum.ok_or("its footer is damaged")
    }
    let columns = || footer.row_groups().iter().flat_map(|group| group.columns());
    let rows = sum(footer.row_groups().iter().map(|group| group.num_rows()))?;
    let cells = sum(columns().map(|column| column.num_values().saturating_mul(bytes_of_cell(column.column_type()))))?;
    let content = sum(columns().map(|column| column.uncompressed_size()))?;
    if rows > memory || cells > memory || content > memory {
        let found = format!("{rows} rows of {} columns and {content} bytes", footer.file_metadata().schema_descr().num_columns());
        return Err(format!("its footer promises {found}, more than such a file can hold"));
    }
    // Each row may hold the longest text, which is no longer than all texts of a column.
    let is_text = |column: &&ColumnChunkMetaData| column.column_type() == Type::BYTE_ARRAY;
    let texts = sum(columns().filter(is_text).map(|column| column.uncompressed_size()))?;
    let fitting = memory / 4 / texts.max(1);
    Ok(fitting.clamp(1, BATCH_ROWS) as usize)
}

/// Bytes of a cell in memory, without a text's letters.
fn bytes_of_cell(kind: Type) -> i64 {
    match kind {
        Type::BOOLEAN => 1,
        Type::INT32 | Type::FLOAT | Type::BYTE_ARRAY => 4,
        _ => 8,
    }
}

/// Checks that a table has exactly the columns of `expected`.
///
/// # Errors
/// [`Error::Columns`] with each column that is missing, unknown, of another type or has a forbidden empty cell.
pub fn check_columns(path: &Path, batch: &RecordBatch, expected: &Schema) -> Result<()> {
    let (mut problems, wrong) = differences(expected.fields(), batch);
    problems.extend(wrong);
    if problems.is_empty() { Ok(()) } else { Err(Error::Columns { path: path.into(), problems }) }
}

/// The columns of a row's struct. Enums are plain strings, where serde_arrow would use dictionaries.
fn columns<T: DeserializeOwned>() -> serde_arrow::Result<Fields> {
    let options =
        TracingOptions::default().strings_as_large_utf8(false).sequence_as_large_list(false).enums_without_data_as_strings(true);
    let plain = |field: FieldRef| match field.data_type() {
        DataType::Dictionary(_, words) => Arc::new(field.as_ref().clone().with_data_type(words.as_ref().clone())),
        _ => field,
    };
    Ok(Vec::<FieldRef>::from_type::<T>(options)?.into_iter().map(plain).collect())
}

/// In words: the required columns that are missing, and the columns that are wrong in another way.
fn differences(expected: &Fields, found: &RecordBatch) -> (Vec<String>, Vec<String>) {
    let required = expected.iter().filter(|field| !field.is_nullable() && found.column_by_name(field.name()).is_none());
    let missing = required.map(|field| format!("has no column {} of type {}", field.name(), field.data_type())).collect();
    let schema = found.schema();
    let wrong = schema.fields().iter().zip(found.columns()).filter_map(|(field, cells)| {
        let (name, data_type) = (field.name(), field.data_type());
        match expected.iter().find(|expected| expected.name() == name) {
            None => Some(format!("has an unknown column {name}")),
            Some(expected) if expected.data_type() != data_type => {
                Some(format!("has a column {name} of type {data_type}, expected {}", expected.data_type()))
            }
            Some(expected) if !expected.is_nullable() && cells.null_count() > 0 => {
                Some(format!("has an empty cell in column {name}"))
            }
            Some(_) => None,
        }
    });
    (missing, wrong.collect())
}

fn failed(action: &'static str, path: &Path, reason: impl std::fmt::Display) -> Error {
    // Serde's message may have several lines.
    let reason = reason.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    Error::Rows { action, path: path.into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::fs;

    #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Status {
        Running,
        Finished,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Row {
        name: String,
        status: Status,
        count: u32,
        large: u64,
        angle: Option<i32>,
        k: Option<u8>,
        loss: f32,
        dice: Option<f64>,
        reason: Option<String>,
        #[serde(default)]
        volume: f64,
    }

    fn rows() -> Vec<Row> {
        let row = Row {
            name: "a".into(),
            status: Status::Finished,
            count: 3,
            large: u64::MAX,
            angle: Some(-20),
            k: None,
            loss: 0.1,
            dice: Some(0.1),
            reason: None,
            volume: -1.5,
        };
        vec![row.clone(), Row { status: Status::Running, dice: None, reason: Some("b".into()), k: Some(1), ..row }]
    }

    /// A table without one column.
    fn without(batch: &RecordBatch, name: &str) -> RecordBatch {
        let keep: Vec<usize> = (0..batch.num_columns()).filter(|&i| batch.schema().field(i).name() != name).collect();
        batch.project(&keep).unwrap()
    }

    #[test]
    fn rows_come_back_and_columns_have_the_types_of_the_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.parquet");
        for rows in [rows(), vec![]] {
            write_rows(&path, &rows).unwrap();
            assert_eq!(read_rows::<Row>(&path).unwrap(), rows);
        }
        let schema = decode_batch(&path, File::open(&path).unwrap()).unwrap().schema();
        let found: Vec<String> = schema
            .fields()
            .iter()
            .map(|field| format!("{} {}{}", field.name(), field.data_type(), if field.is_nullable() { "?" } else { "" }))
            .collect();
        let expected = [
            "name Utf8",
            "status Utf8",
            "count UInt32",
            "large UInt64",
            "angle Int32?",
            "k UInt8?",
            "loss Float32",
            "dice Float64?",
            "reason Utf8?",
            "volume Float64",
        ];
        assert_eq!(found, expected);
        assert!(schema.fields().iter().all(|field| field.metadata().is_empty()), "nothing of serde_arrow's own in the file");
    }

    #[test]
    fn further_columns_come_back_after_those_of_the_struct() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.parquet");
        let extra: ExtraColumns = vec![("gate_9".into(), vec![0.5, 0.25]), ("gate_10".into(), vec![1.0, 0.0])];
        write_rows_with(&path, &rows(), &extra).unwrap();
        assert_eq!(read_rows_with::<Row>(&path, "gate_").unwrap(), (rows(), extra.clone()));
        let plain = fs::read(&path).unwrap();
        assert_eq!(decode_batch(&path, bytes::Bytes::from(plain)).unwrap().schema().field(10).name(), "gate_9");
        let error = read_rows::<Row>(&path).unwrap_err().to_string();
        assert!(error.contains("unknown column gate_9"), "{error}");
        // Without any, a table has the bytes of one of rows only.
        write_rows_with(&path, &rows(), &Vec::new()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes(&rows()));
        assert_eq!(read_rows_with::<Row>(&path, "gate_").unwrap(), (rows(), Vec::new()));
        assert!(write_rows_with(&path, &rows(), &vec![("gate_1".into(), vec![0.5])]).is_err());
        // A column of the struct that is taken for another one.
        let error = read_rows_with::<Row>(&path, "coun").unwrap_err().to_string();
        assert!(error.contains("column count of type UInt32, expected Float32"), "{error}");
    }

    #[test]
    fn columns_that_are_wrong_are_named() {
        let path = Path::new("rows.parquet");
        let batch = decode_batch(path, bytes(&rows())).unwrap();
        let read = |batch: &RecordBatch| {
            let file = encode_batch(path, batch).unwrap();
            decode_rows::<Row>(path, bytes::Bytes::from(file)).map_err(|error| error.to_string())
        };
        let older = read(&without(&without(&batch, "dice"), "volume")).unwrap();
        assert_eq!((older[0].dice, older[0].volume), (None, 0.0), "a file of an older version");
        let missing = read(&without(&batch, "count")).unwrap_err();
        assert_eq!(missing, "the table rows.parquet has no column count of type UInt32");
        let renamed = |from: &str, to: &str| {
            let schema = batch.schema();
            let fields = schema.fields().iter().map(|field| {
                Arc::new(if field.name() == from { field.as_ref().clone().with_name(to) } else { field.as_ref().clone() })
            });
            RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), batch.columns().to_vec()).unwrap()
        };
        let unknown = read(&renamed("dice", "dices")).unwrap_err();
        assert_eq!(unknown, "the table rows.parquet has an unknown column dices");
        let other = read(&without(&renamed("large", "x"), "large")).unwrap_err();
        assert_eq!(other, "the table rows.parquet has no column large of type UInt64, has an unknown column x");
        let swapped = renamed("count", "other");
        let swapped = read(&without(&swapped, "loss")).unwrap_err();
        assert!(swapped.contains("no column count") && swapped.contains("no column loss"), "{swapped}");
        let typed = RecordBatch::try_from_iter([("loss", batch["count"].clone())]).unwrap();
        let typed = read(&typed).unwrap_err();
        assert!(typed.contains("has a column loss of type UInt32, expected Float32"), "{typed}");
    }

    #[test]
    fn retired_columns_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.parquet");
        write_rows(&path, &rows()).unwrap();
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Newer {
            name: String,
            status: Status,
        }
        let retired = ["count", "large", "angle", "k", "loss", "dice", "reason", "volume", "never there"];
        let newer: Vec<Newer> = read_rows_without(&path, &retired).unwrap();
        assert_eq!(newer[1], Newer { name: "a".into(), status: Status::Running });
        assert!(read_rows_without::<Newer>(&path, &retired[1..]).unwrap_err().to_string().contains("unknown column count"));
    }

    fn bytes(rows: &[Row]) -> bytes::Bytes {
        encode_rows(Path::new("rows.parquet"), rows).unwrap().into()
    }

    #[test]
    fn an_empty_cell_and_an_unknown_word_are_refused() {
        #[derive(Serialize, Deserialize)]
        struct Loose {
            name: Option<String>,
        }
        #[derive(Debug, Serialize, Deserialize)]
        struct Strict {
            #[allow(dead_code)]
            name: String,
        }
        #[derive(Debug, Serialize, Deserialize)]
        struct Known {
            #[allow(dead_code)]
            name: Status,
        }
        let path = Path::new("a.parquet");
        let of = |name: Option<&str>| bytes::Bytes::from(encode_rows(path, &[Loose { name: name.map(Into::into) }]).unwrap());
        let empty = decode_rows::<Strict>(path, of(None)).unwrap_err();
        assert_eq!(empty.to_string(), "the table a.parquet has an empty cell in column name");
        let word = decode_rows::<Known>(path, of(Some("stopped"))).unwrap_err();
        assert!(word.to_string().contains("stopped") && word.hint().is_some(), "{word}");
        assert!(decode_rows::<Known>(path, bytes::Bytes::from_static(b"no table")).unwrap_err().to_string().contains("Parquet"));
    }
}
