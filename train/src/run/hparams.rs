//! A run's settings for TensorBoard's HParams page: the messages of `tensorboard/plugins/hparams/{api,plugin_data}.proto` that mark the
//! start of a session with its settings, and its end. The metrics are the run's scalars, which that page finds by itself.

use super::tensorboard::{EventWriter, delimited, varint};
use crate::error::Result;
use serde_json::{Map, Value};
use std::path::Path;

/// How a session ended: `api.proto`'s `Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionStatus {
    /// Its last step was taken, or it was pruned: its results are valid.
    Success = 1,
    /// An error ended it.
    Failure = 2,
}

/// Name of the plugin that reads the messages.
const PLUGIN: &[u8] = b"hparams";

/// Writes a run's settings to its events. Runs of one `group` (a trial's id) are shown as one line with the mean of their metrics.
///
/// # Errors
/// The operating system's, naming the file.
pub fn session_start(events: &mut EventWriter, settings: &Map<String, Value>, group: &str) -> Result<()> {
    let mut info = Vec::new();
    for (name, value) in settings {
        // A map entry: field 1 is the key, field 2 the value.
        let mut entry = Vec::new();
        delimited(1, name.as_bytes(), &mut entry);
        delimited(2, &protobuf_value(value), &mut entry);
        delimited(1, &entry, &mut info);
    }
    delimited(4, group.as_bytes(), &mut info);
    events.value(0, &summary_value("_hparams_/session_start_info", 3, &info))?;
    events.flush()
}

/// Writes how a run ended, after `steps` steps, to another file in the run's event folder: TensorBoard reads the files in turn, and the
/// run's files are already closed.
///
/// # Errors
/// The operating system's, naming the file.
pub fn session_end(events: &Path, steps: u64, status: SessionStatus) -> Result<()> {
    let mut info = vec![1 << 3];
    varint(status as u64, &mut info);
    let mut writer = EventWriter::create(events, steps + 1)?;
    writer.value(steps, &summary_value("_hparams_/session_end_info", 4, &info))?;
    writer.flush()
}

/// A value of a summary: field 1 its tag, field 8 an empty tensor, field 9 metadata that name the plugin and hold its data.
fn summary_value(tag: &str, field: u8, info: &[u8]) -> Vec<u8> {
    // Field 1, the version of the plugin's data, is 0 and therefore absent.
    let mut data = Vec::new();
    delimited(field, info, &mut data);
    let mut plugin = Vec::new();
    delimited(1, PLUGIN, &mut plugin);
    delimited(2, &data, &mut plugin);
    let mut metadata = Vec::new();
    delimited(1, &plugin, &mut metadata);
    // Field 4, `data_class`: a tensor.
    metadata.extend([4 << 3, 2]);
    // A `TensorProto` of type float (field 1) and of no dimensions (field 2).
    let tensor = [1 << 3, 1, 2 << 3 | 2, 0];
    let mut value = Vec::new();
    delimited(1, tag.as_bytes(), &mut value);
    delimited(8, &tensor, &mut value);
    delimited(9, &metadata, &mut value);
    value
}

/// `google.protobuf.Value`: a number, a string or a Boolean; anything else as JSON text.
fn protobuf_value(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    match (value, value.as_f64()) {
        (_, Some(number)) => {
            out.push(2 << 3 | 1);
            out.extend(number.to_le_bytes());
        }
        (Value::String(text), None) => delimited(3, text.as_bytes(), &mut out),
        (Value::Bool(flag), None) => out.extend([4 << 3, u8::from(*flag)]),
        (other, None) => delimited(3, other.to_string().as_bytes(), &mut out),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_the_known_bytes() {
        // What `google.protobuf.struct_pb2.Value(...).SerializeToString()` gives.
        assert_eq!(protobuf_value(&json!(0.5)), [0x11, 0, 0, 0, 0, 0, 0, 0xe0, 0x3f]);
        assert_eq!(protobuf_value(&json!("sgd")), [0x1a, 3, b's', b'g', b'd']);
        assert_eq!(protobuf_value(&json!(true)), [0x20, 1]);
    }

    #[test]
    fn a_session_starts_in_the_runs_events_and_ends_in_a_file_of_its_own() {
        let folder = std::env::temp_dir().join(format!("sam-ladder-hparams-{}", std::process::id()));
        let settings = json!({"lr": 1e-3, "optimizer": "adamw"}).as_object().cloned().unwrap();
        session_start(&mut EventWriter::create(&folder, 1).unwrap(), &settings, "0123456789ab").unwrap();
        session_end(&folder, 12, SessionStatus::Success).unwrap();
        let files: Vec<Vec<u8>> =
            std::fs::read_dir(&folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect();
        assert_eq!(files.len(), 2);
        let holds = |text: &[u8]| files.iter().filter(|file| file.windows(text.len()).any(|part| part == text)).count();
        for text in [&b"_hparams_/session_start_info"[..], b"optimizer", b"adamw", b"0123456789ab", b"_hparams_/session_end_info"]
        {
            assert_eq!(holds(text), 1, "{}", String::from_utf8_lossy(text));
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
