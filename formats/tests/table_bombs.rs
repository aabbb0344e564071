//! Small Parquet files of tables that would take much memory.

use arrow::array::{Float64Array, StringArray};
use arrow::record_batch::RecordBatch;
use sam_ladder_formats::rows::{decode_batch, encode_batch};
use std::path::Path;
use std::sync::Arc;

/// A table whose rows take many times the file: of one number, of one long text, of a page of zeros.
#[test]
fn a_small_file_of_many_rows_is_refused_before_they_are_read() {
    let path = Path::new("cases.parquet");
    let read = |batch: &RecordBatch| {
        let file = bytes::Bytes::from(encode_batch(path, batch).unwrap());
        (file.len(), decode_batch(path, file).map(|batch| batch.num_rows()).map_err(|error| error.to_string()))
    };
    let numbers =
        |rows: usize| RecordBatch::try_from_iter([("dice", Arc::new(Float64Array::from(vec![0.5; rows])) as _)]).unwrap();
    let (len, refused) = read(&numbers(20_000_000));
    assert!(len < 250_000 && refused.as_ref().unwrap_err().contains("its footer promises 20000000 rows"), "{len} {refused:?}");
    assert_eq!(read(&numbers(1_000_000)).1, Ok(1_000_000));
    let texts = |len: usize, rows: usize| {
        let text = "x".repeat(len);
        RecordBatch::try_from_iter([("case", Arc::new(StringArray::from(vec![text.as_str(); rows])) as _)]).unwrap()
    };
    let (len, refused) = read(&texts(100_000, 2000));
    assert!(len < 10_000 && refused.as_ref().unwrap_err().contains("take more than"), "{len} {refused:?}");
    assert_eq!(read(&texts(64, 100_000)).1, Ok(100_000));
    // One cell.
    let (len, refused) = read(&texts(100 << 20, 1));
    assert!(len < 100_000 && refused.as_ref().unwrap_err().contains("its footer promises 1 rows"), "{len} {refused:?}");
}
