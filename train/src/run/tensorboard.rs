//! TensorBoard event files: `TFRecord` framing around `Event` messages that hold one scalar each.
//!
//! Scalars need only a small part of TensorFlow's `event.proto` and `summary.proto`, a dozen bytes per message, written here by hand.

use crate::error::{Result, io};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writer of one event file.
pub struct EventWriter {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl EventWriter {
    /// Starts a new event file in `folder`, which is created if necessary.
    ///
    /// `first_step` is the first step that will follow: from there on, TensorBoard drops the steps of older files in the folder, which came
    /// after the checkpoint from which the run resumed.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub fn create(folder: &Path, first_step: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        let started = wall_time();
        // TensorBoard reads a folder's files in the order of their names.
        let mut path = folder.join(format!("events.out.tfevents.{:010}.sam-ladder", started as u64));
        let mut next = 1;
        while path.exists() {
            path = folder.join(format!("events.out.tfevents.{:010}.sam-ladder.{next}", started as u64));
            next += 1;
        }
        let file = File::create(&path).map_err(io(&path))?;
        let mut out = EventWriter { path, writer: BufWriter::new(file) };
        out.record(&version_event(started))?;
        out.record(&session_start_event(started, first_step))?;
        Ok(out)
    }

    /// Appends one scalar.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f32) -> Result<()> {
        self.record(&scalar_event(wall_time(), step, tag, value))
    }

    /// Appends a summary's value, as the bytes of its message.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub(super) fn value(&mut self, step: u64, value: &[u8]) -> Result<()> {
        self.record(&summary_event(wall_time(), step, value))
    }

    /// Flushes to the operating system.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub fn flush(&mut self) -> Result<()> {
        self.writer.flush().map_err(io(&self.path))
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        self.writer.write_all(&frame(event)).map_err(io(&self.path))
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs_f64()).unwrap_or(0.0)
}

/// `TFRecord`: length, its checksum, the bytes, their checksum; all little-endian.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

/// CRC-32C, masked as TFRecord requires.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Protobuf's base-128 varint.
pub(super) fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A length-delimited field: strings, bytes and messages.
pub(super) fn delimited(field: u8, data: &[u8], out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    varint(data.len() as u64, out);
    out.extend(data);
}

/// The start of every `Event`: field 1, `wall_time`.
fn event_at(wall_time: f64) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend(wall_time.to_le_bytes());
    out
}

/// Field 2, `step`.
fn push_step(step: u64, out: &mut Vec<u8>) {
    out.push(2 << 3);
    varint(step, out);
}

/// The first event of a file: field 3, `file_version`.
fn version_event(wall_time: f64) -> Vec<u8> {
    let mut out = event_at(wall_time);
    delimited(3, b"brain.Event:2", &mut out);
    out
}

/// Field 7, `session_log`, whose field 1, `status`, is 1 for a start.
fn session_start_event(wall_time: f64, step: u64) -> Vec<u8> {
    let mut out = event_at(wall_time);
    push_step(step, &mut out);
    delimited(7, &[1 << 3, 1], &mut out);
    out
}

/// Field 5, `summary`, with one value.
fn summary_event(wall_time: f64, step: u64, value: &[u8]) -> Vec<u8> {
    let mut summary = Vec::with_capacity(value.len() + 4);
    delimited(1, value, &mut summary);
    let mut out = event_at(wall_time);
    push_step(step, &mut out);
    delimited(5, &summary, &mut out);
    out
}

/// A summary with one value: field 1 its tag, field 2 a float.
fn scalar_event(wall_time: f64, step: u64, tag: &str, value: f32) -> Vec<u8> {
    let mut scalar = Vec::with_capacity(tag.len() + 8);
    delimited(1, tag.as_bytes(), &mut scalar);
    scalar.push(2 << 3 | 5);
    scalar.extend(value.to_le_bytes());
    summary_event(wall_time, step, &scalar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_castagnoli_and_masked() {
        // CRC-32C's check value over "123456789", 0xe3069283, turned right by 15 bits, plus 0xa282ead8.
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
    }

    #[test]
    fn a_scalar_event_is_the_known_bytes() {
        // What TensorFlow's own `Event(wall_time=1.0, step=300, summary=Summary(value=[Value(tag="a", simple_value=0.5)]))` serialises to.
        let expected = [
            0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, // wall_time
            0x10, 0xac, 0x02, // step
            0x2a, 0x0a, 0x0a, 0x08, 0x0a, 0x01, b'a', 0x15, 0, 0, 0, 0x3f, // summary
        ];
        assert_eq!(scalar_event(1.0, 300, "a", 0.5), expected);
    }

    /// The records of a file, each checked against its checksums.
    fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc(&rest[..8]).to_le_bytes());
            let data = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked_crc(data).to_le_bytes());
            out.push(data.to_vec());
            rest = &rest[16 + length..];
        }
        out
    }

    #[test]
    fn a_file_starts_with_its_version_and_a_second_one_does_not_replace_it() {
        let folder = std::env::temp_dir().join(format!("sam-ladder-events-{}", std::process::id()));
        for first_step in [1, 3] {
            let mut writer = EventWriter::create(&folder, first_step).unwrap();
            for step in first_step..first_step + 4 {
                writer.scalar("info/total_loss", step, 1.0 / step as f32).unwrap();
            }
            writer.flush().unwrap();
        }
        let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 2);
        for file in files {
            let records = records(&std::fs::read(file).unwrap());
            assert_eq!(records.len(), 6);
            assert_eq!(records[0][9..], version_event(0.0)[9..]);
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
