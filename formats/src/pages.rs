//! The headers of a Parquet file's pages, compared with the footer before anything is decoded: the library reserves as much memory as a page's
//! header claims, whatever the footer says.
//!
//! A header is a struct of Thrift's compact protocol (`parquet.thrift`: `PageHeader`).

use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::reader::ChunkReader;
use std::io::Read;

/// Deepest nesting of a header; one of today has three levels.
const DEEPEST: usize = 16;

/// What a page's header says.
#[derive(Debug, Default, PartialEq)]
struct Page {
    is_dictionary: bool,
    uncompressed: u64,
    compressed: u64,
    values: u64,
}

/// Checks that the pages of every column hold no more than the footer says; the error is in words.
pub(crate) fn check_pages(file: &impl ChunkReader, footer: &ParquetMetaData) -> Result<(), String> {
    let mut columns = footer.row_groups().iter().flat_map(|group| group.columns());
    columns.try_for_each(|column| check_column(file, column))
}

fn check_column(file: &impl ChunkReader, column: &ColumnChunkMetaData) -> Result<(), String> {
    let (mut at, len) = column.byte_range();
    let promised = |number: i64| u64::try_from(number).map_err(|_| "its footer is damaged".to_string());
    let (bytes, values) = (promised(column.uncompressed_size())?, promised(column.num_values())?);
    let end = at.checked_add(len).filter(|&end| end <= file.len()).ok_or("its footer is damaged")?;
    let (mut bytes_seen, mut values_seen) = (0u64, 0u64);
    while at < end {
        let mut header = Header { read: file.get_read(at).map_err(|error| error.to_string())?.take(end - at), taken: 0 };
        let page = header.page().ok_or_else(|| format!("the header of its page at byte {at} is damaged"))?;
        bytes_seen = bytes_seen.saturating_add(page.uncompressed);
        // A value of a dictionary takes at least a byte.
        let most = if page.is_dictionary { page.uncompressed } else { values - values_seen };
        if page.compressed > end - at - header.taken || bytes_seen > bytes || page.values > most {
            let found = format!("{} bytes ({} uncompressed) of {} values", page.compressed, page.uncompressed, page.values);
            return Err(format!("its page at byte {at} promises {found}, more than its footer"));
        }
        if !page.is_dictionary {
            values_seen += page.values;
        }
        at += header.taken + page.compressed;
    }
    Ok(())
}

/// Reads a page's header.
struct Header<R> {
    read: R,
    /// Bytes that were read.
    taken: u64,
}

impl<R: Read> Header<R> {
    fn page(&mut self) -> Option<Page> {
        let (mut page, mut last) = (Page::default(), 0);
        while let Some((field, kind)) = self.field(&mut last)? {
            match (field, kind) {
                (1, 5) => page.is_dictionary = self.number()? == 2,
                (2, 5) => page.uncompressed = self.number()?.try_into().ok()?,
                (3, 5) => page.compressed = self.number()?.try_into().ok()?,
                // The headers of data pages, of dictionaries, and of data pages of version 2: each begins with its number of values.
                (5 | 7 | 8, 12) => page.values = self.values()?,
                _ => self.skip(kind, 0)?,
            }
        }
        Some(page)
    }

    fn values(&mut self) -> Option<u64> {
        let (mut values, mut last) = (0, 0);
        while let Some((field, kind)) = self.field(&mut last)? {
            match (field, kind) {
                (1, 5) => values = self.number()?.try_into().ok()?,
                _ => self.skip(kind, 1)?,
            }
        }
        Some(values)
    }

    /// Number and type of the next field; `Some(None)` at the end of the struct.
    fn field(&mut self, last: &mut i64) -> Option<Option<(i64, u8)>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Some(None);
        }
        *last = if byte >> 4 == 0 { self.number()? } else { *last + i64::from(byte >> 4) };
        Some(Some((*last, byte & 15)))
    }

    fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        self.read.read_exact(&mut byte).ok()?;
        self.taken += 1;
        Some(byte[0])
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(number);
            }
        }
        None
    }

    /// A signed number: 0, -1, 1, -2 … are stored as 0, 1, 2, 3 …
    fn number(&mut self) -> Option<i64> {
        let number = self.varint()?;
        Some((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn pass(&mut self, bytes: u64) -> Option<()> {
        let passed = std::io::copy(&mut self.read.by_ref().take(bytes), &mut std::io::sink()).ok()?;
        self.taken += passed;
        (passed == bytes).then_some(())
    }

    /// Passes over a value of one of the protocol's types.
    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        match kind {
            // True and false, whose value is the type.
            1 | 2 => Some(()),
            3 => self.pass(1),
            4..=6 => self.varint().map(drop),
            7 => self.pass(8),
            8 => {
                let len = self.varint()?;
                self.pass(len)
            }
            // Lists and sets.
            9 | 10 => {
                let byte = self.byte()?;
                let len = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
                (0..len).try_for_each(|_| self.skip_element(byte & 15, depth))
            }
            12 => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth + 1)?;
                }
                Some(())
            }
            13 => self.pass(16),
            _ => None,
        }
    }

    /// Passes over an element of a list, where a truth value takes a byte.
    fn skip_element(&mut self, kind: u8, depth: usize) -> Option<()> {
        if kind <= 2 { self.pass(1) } else { self.skip(kind, depth + 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{BooleanArray, Float64Array, StringArray};
    use arrow::record_batch::RecordBatch;
    use parquet::arrow::ArrowWriter;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use parquet::basic::Compression;
    use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
    use std::sync::Arc;

    /// The values of the columns and their bytes are those of the footer in whatever way a table is written.
    #[test]
    fn the_pages_of_honest_tables_hold_what_the_footer_says() {
        let rows = 5000usize;
        let text: Vec<Option<String>> = (0..rows).map(|i| (i % 7 > 0).then(|| format!("case {}", i * i % 1999))).collect();
        let numbers: Vec<Option<f64>> = (0..rows).map(|i| (i % 3 > 0).then_some(i as f64)).collect();
        let flags: Vec<bool> = (0..rows).map(|i| i % 2 == 0).collect();
        let batch = RecordBatch::try_from_iter([
            ("text", Arc::new(StringArray::from(text)) as _),
            ("number", Arc::new(Float64Array::from(numbers)) as _),
            ("flag", Arc::new(BooleanArray::from(flags)) as _),
        ])
        .unwrap();
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())] {
                for dictionary in [true, false] {
                    let properties = WriterProperties::builder()
                        .set_writer_version(version)
                        .set_compression(compression)
                        .set_dictionary_enabled(dictionary)
                        .set_dictionary_page_size_limit(4096)
                        .set_data_page_row_count_limit(700)
                        .set_write_batch_size(100)
                        .set_max_row_group_row_count(Some(3000))
                        .set_statistics_enabled(EnabledStatistics::Page)
                        .set_write_page_header_statistics(true)
                        .build();
                    let mut file = Vec::new();
                    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), Some(properties)).unwrap();
                    writer.write(&batch).unwrap();
                    writer.close().unwrap();
                    let file = bytes::Bytes::from(file);
                    let footer = ParquetRecordBatchReaderBuilder::try_new(file.clone()).unwrap().metadata().clone();
                    assert!(footer.num_row_groups() == 2);
                    check_pages(&file, &footer).unwrap();
                }
            }
        }
    }
}
