//! Small Parquet files of tables that would take much memory.

use arrow::array::{Float64Array, StringArray};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::file::metadata::{ParquetMetaDataBuilder, ParquetMetaDataWriter, RowGroupMetaDataBuilder};
use parquet::file::properties::WriterProperties;
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

/// A number of a page's header in the form of the file: zigzag, seven bits a byte.
fn varint(number: i32) -> Vec<u8> {
    let mut left = u64::from(((number << 1) ^ (number >> 31)) as u32);
    let mut bytes = Vec::new();
    while left > 127 {
        bytes.push(left as u8 & 127 | 128);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes
}

/// A file of one column whose first page's header has `number` as its `field`-th number (1: bytes, 3: values of a page that is no dictionary
/// or is one). The footer keeps what it says, except where the pages now lie.
fn with_claim(dictionary: bool, field: usize, number: i32) -> bytes::Bytes {
    let texts: Vec<String> = (0..300).map(|i| format!("case {}", i % 9)).collect();
    let batch = RecordBatch::try_from_iter([("case", Arc::new(StringArray::from(texts)) as _)]).unwrap();
    let mut file = Vec::new();
    let properties = WriterProperties::builder().set_dictionary_enabled(dictionary).build();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let footer = ArrowReaderMetadata::load(&bytes::Bytes::from(file.clone()), ArrowReaderOptions::default()).unwrap();
    let column = footer.metadata().row_group(0).column(0).clone();
    // The numbers of a header: kind, bytes uncompressed and compressed, then, in a struct, the values.
    let mut at = 4;
    for passed in 0..field {
        at += 1 + file[at + 1..].iter().position(|byte| byte & 128 == 0).unwrap() + 1;
        at += usize::from(passed == 2);
    }
    assert_eq!(file[at], 0x15, "a field of 32 bits");
    let old = file[at + 1..].iter().position(|byte| byte & 128 == 0).unwrap() + 1;
    let claim = varint(number);
    let more = claim.len() as i64 - old as i64;
    let pages = 4 + column.compressed_size() as usize;
    let mut pages = file[..pages].to_vec();
    pages.splice(at + 1..at + 1 + old, claim);
    let moved = column.data_page_offset() + if dictionary { more } else { 0 };
    let size = column.compressed_size() + more;
    let column = column.into_builder().set_total_compressed_size(size).set_data_page_offset(moved);
    let column = column.set_offset_index_offset(None).set_offset_index_length(None);
    let column = column.set_column_index_offset(None).set_column_index_length(None).build().unwrap();
    let group: RowGroupMetaDataBuilder = footer.metadata().row_group(0).clone().into_builder();
    let group = group.set_column_metadata(vec![column]).build().unwrap();
    let metadata = ParquetMetaDataBuilder::new(footer.metadata().file_metadata().clone()).add_row_group(group).build();
    ParquetMetaDataWriter::new(&mut pages, &metadata).finish().unwrap();
    pages.into()
}

/// The footer is honest and a page's header is not: the library would reserve what the header says.
#[test]
fn a_page_that_claims_more_than_the_footer_is_refused_before_it_is_read() {
    let path = Path::new("cases.parquet");
    for dictionary in [true, false] {
        // What is claimed is what is there.
        let values = if dictionary { 9 } else { 300 };
        assert_eq!(decode_batch(path, with_claim(dictionary, 3, values)).unwrap().num_rows(), 300);
        for (field, claimed) in [(1, "2147483647 uncompressed"), (2, "2147483647 bytes"), (3, "of 2147483647 values")] {
            let refused = decode_batch(path, with_claim(dictionary, field, i32::MAX)).unwrap_err().to_string();
            assert!(refused.contains("its page at byte 4 promises") && refused.contains(claimed), "{refused}");
        }
        let refused = decode_batch(path, with_claim(dictionary, 3, -1)).unwrap_err().to_string();
        assert!(refused.contains("the header of its page at byte 4 is damaged"), "{refused}");
    }
}
