//! CSV tables: the values of one column of others' tables by those of another, and the fields of ours.

use crate::error::{Error, Problem, Result};
use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use std::collections::BTreeMap;
use std::path::Path;

/// What the values of a table may be separated by: a comma, or what spreadsheets write in other countries.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];
/// Most bytes of a table: it has a line per case.
const MOST_BYTES: u64 = 64 << 20;
/// Most columns of a table.
const MOST_COLUMNS: usize = 4096;

/// The values of the column `value` by those of the column `key`, both named in the first line. Spaces around values are not part of them.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Content`] if it is no such table, lacks a column or has it twice, or has no line, an
/// empty value, or two values for one key.
pub fn read_column(path: &Path, key: &str, value: &str) -> Result<BTreeMap<String, String>> {
    let len = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    if len > MOST_BYTES {
        return Err(wrong(format!("it has {len} bytes, expected at most {MOST_BYTES}")).in_content_of(path));
    }
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    column_of(&bytes, key, value).map_err(|problem| problem.in_content_of(path))
}

/// Every line's values, those of the first line included. Spaces around values are not part of them.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Content`] if it is no table.
pub fn read_lines(path: &Path) -> Result<Vec<Vec<String>>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let lines = || -> Result<Vec<Vec<String>>, Problem> {
        let (mut records, mut lines) = (Records::new(&bytes), Vec::new());
        while records.advance()? {
            lines.push((0..records.len()).map(|at| records.cell(at).map(String::from)).collect::<Result<_, _>>()?);
        }
        Ok(lines)
    };
    lines().map_err(|problem| problem.in_content_of(path))
}

/// A text as a field of a table (RFC 4180); quoted too where a reader could take it for a comment.
pub fn field(text: &str) -> String {
    let plain = !text.contains([',', '"', '#', '\n', '\r']);
    if plain { text.into() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

/// A text on one line: each control character becomes a space.
pub fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

fn wrong(what: String) -> Problem {
    Problem::with_advice(what, "correct the table")
}

fn column_of(bytes: &[u8], key: &str, value: &str) -> Result<BTreeMap<String, String>, Problem> {
    // Spreadsheets begin a file with a byte-order mark.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if let Some(line) = unclosed_quote(bytes) {
        return Err(wrong(format!("the quote that opens in line {line} is not closed")));
    }
    let mut records = Records::new(bytes);
    let columns = if records.advance()? { records.len() } else { 0 };
    let headers: Vec<String> = (0..columns).map(|at| records.cell(at).map(String::from)).collect::<Result<_, _>>()?;
    let place = |name: &str| {
        let missing = || wrong(format!("it has no column {name}, its columns are {}", names(&headers)));
        let mut places = headers.iter().enumerate().filter(|(_, header)| *header == name).map(|(place, _)| place);
        let place = places.next().ok_or_else(missing)?;
        match places.next() {
            Some(second) => Err(wrong(format!("its columns {} and {} are both called {name}", place + 1, second + 1))),
            None => Ok(place),
        }
    };
    let (key_at, value_at) = (place(key)?, place(value)?);
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    while records.advance()? {
        let line = records.line;
        if records.len() != columns {
            return Err(wrong(format!("line {line} has {}, the first line has {columns}", values(records.len()))));
        }
        let (of, cell) = (records.cell(key_at)?, records.cell(value_at)?);
        if let Some(column) = [(of, key), (cell, value)].iter().find_map(|(cell, name)| is_nothing(cell).then_some(name)) {
            return Err(wrong(format!("line {line} has no {column}")));
        }
        match found.insert(of.into(), cell.into()) {
            Some(before) if before != cell => {
                return Err(wrong(format!("{key} {of} has two values of {value}: {before} and {cell}")));
            }
            _ => {}
        }
    }
    if found.is_empty() { Err(wrong("it has no line below its first".into())) } else { Ok(found) }
}

/// Whether a value says that there is none, as spreadsheets and pandas write it.
fn is_nothing(cell: &str) -> bool {
    ["", "na", "n/a", "nan", "none", "null"].contains(&cell.to_ascii_lowercase().as_str())
}

/// The lines of a table, one after the other; empty ones are passed over.
struct Records<'a> {
    reader: Reader,
    rest: &'a [u8],
    /// The values of the last line, one after the other, and where each ends.
    values: Vec<u8>,
    ends: Vec<usize>,
    len: usize,
    /// Number of the last line, from 1, and of the one in which `rest` begins.
    line: usize,
    next_line: usize,
    line_break: u8,
}

impl<'a> Records<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let reader = ReaderBuilder::new().delimiter(separator(bytes)).build();
        Records {
            reader,
            rest: bytes,
            values: vec![0; 256],
            ends: vec![0; 16],
            len: 0,
            line: 0,
            next_line: 1,
            line_break: line_break(bytes),
        }
    }

    /// Reads the next line; whether there is one.
    fn advance(&mut self) -> Result<bool, Problem> {
        // The rest of the last line's break, and empty lines.
        let text = self.rest.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(self.rest.len());
        self.pass(text);
        let (mut written, line) = (0, self.next_line);
        self.len = 0;
        loop {
            let (result, read, more, ends) =
                self.reader.read_record(self.rest, &mut self.values[written..], &mut self.ends[self.len..]);
            // Ends count from the beginning of the line.
            (written, self.len) = (written + more, self.len + ends);
            self.pass(read);
            match result {
                // At the end of the bytes it is asked once more, with none.
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => self.values.resize(2 * self.values.len(), 0),
                ReadRecordResult::OutputEndsFull if self.ends.len() >= MOST_COLUMNS => {
                    return Err(wrong(format!("line {line} has more than {MOST_COLUMNS} values")));
                }
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
                ReadRecordResult::Record => {
                    self.line = line;
                    return Ok(true);
                }
                ReadRecordResult::End => return Ok(false),
            }
        }
    }

    /// Goes on by some bytes.
    fn pass(&mut self, bytes: usize) {
        let (passed, rest) = self.rest.split_at(bytes);
        self.next_line += passed.iter().filter(|&&byte| byte == self.line_break).count();
        self.rest = rest;
    }

    /// Number of values in the last line.
    fn len(&self) -> usize {
        self.len
    }

    /// A value of the last line.
    fn cell(&self, at: usize) -> Result<&str, Problem> {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        let text = std::str::from_utf8(&self.values[start..self.ends[at]]);
        text.map(str::trim).map_err(|_| wrong(format!("line {} is not text in UTF-8", self.line)))
    }
}

/// The last byte of a line's break: old spreadsheets write only a carriage return.
fn line_break(bytes: &[u8]) -> u8 {
    if bytes.contains(&b'\n') { b'\n' } else { b'\r' }
}

/// The line of a value that begins with a quote, if no quote closes it. As in RFC 4180, two quotes are one character of the value.
fn unclosed_quote(bytes: &[u8]) -> Option<usize> {
    let (separator, line_break) = (separator(bytes), line_break(bytes));
    let (mut line, mut opened, mut closed, mut value_begins) = (1, None, None, true);
    for &byte in bytes {
        match (byte, opened) {
            // Of two quotes in a quoted value the first closes it, the second opens it again.
            (b'"', Some(_)) => closed = opened.take(),
            (b'"', None) if closed.is_some() || value_begins => opened = closed.take().or(Some(line)),
            _ => (closed, value_begins) = (None, byte == separator || b"\r\n".contains(&byte)),
        }
        line += usize::from(byte == line_break);
    }
    opened
}

/// `1 value`, `2 values`.
fn values(count: usize) -> String {
    format!("{count} {}", if count == 1 { "value" } else { "values" })
}

/// What the first line has most of.
fn separator(bytes: &[u8]) -> u8 {
    let first = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let count = |separator: u8| first.iter().filter(|&&byte| byte == separator).count();
    // Of several that are equally frequent the last: a comma comes first.
    SEPARATORS.into_iter().rev().max_by_key(|&separator| count(separator)).unwrap_or(b',')
}

/// The columns' names; of many only the first.
fn names(headers: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut names: Vec<String> = headers.iter().take(SHOWN).map(|name| name.chars().take(40).collect()).collect();
    if headers.len() > SHOWN {
        names.push(format!("and {} more", headers.len() - SHOWN));
    }
    if names.iter().all(String::is_empty) { "none".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("patients.csv");
        std::fs::write(&path, text).unwrap();
        let found = read_column(&path, "case", "patient").map_err(|error| error.to_string().replace(path.to_str().unwrap(), "F"));
        found.map(|found| found.into_iter().collect())
    }

    #[test]
    fn tables_of_spreadsheets_are_read() {
        let expected = vec![("a 1".to_string(), "p,q".to_string()), ("b".to_string(), "7".to_string())];
        for text in [
            "case,patient\na 1,\"p,q\"\nb,7\n",
            "\u{feff}patient;age;case\r\np,q;3;a 1\r\n7;4;b\r\n",
            "age\tcase\tpatient\n1\ta 1 \t p,q\n2\tb\t7",
            "case,patient\nb,7\na 1,\"p,q\"\nb,7\n",
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_table_is_named() {
        for (text, expected) in [
            ("", "has no column case, its columns are none"),
            ("case,patient\n", "has no line below its first"),
            ("case,age\na,1\n", "has no column patient, its columns are case, age"),
            ("case,patient\na,\n", "line 2 has no patient"),
            ("case,patient\na,1\n,2\n", "line 3 has no case"),
            ("case,patient\na,1\na,2\n", "case a has two values of patient: 1 and 2"),
            ("case,patient\na,1,3\n", "line 2 has 3 values, the first line has 2"),
            ("case,patient\na\n", "line 2 has 1 value, the first line has 2"),
            ("case,patient,age,patient\na,1,60,2\n", "its columns 2 and 4 are both called patient"),
            ("case,patient\r\na,1\r\nb,2\r\nc,\r\n", "line 4 has no patient"),
            ("case,patient\ra,1\r\rb,\r", "line 4 has no patient"),
            ("case,patient\n\n\"a\nb\",1\nc,\n", "line 5 has no patient"),
            ("case,patient\na,\"say \"\"1\"\"\"\nb,\"2\nc,3\n", "the quote that opens in line 3 is not closed"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with("F: ") && error.contains(expected), "{text:?}: {error}");
        }
        let error = read_column(Path::new("/nowhere/p.csv"), "case", "patient").unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
}
