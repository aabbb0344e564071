//! Models in ONNX: a graph of operators with its weights (write only). <https://onnx.ai/onnx/operators> defines the operators.

mod messages;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use prost::Message;

use crate::atomic::write_atomic_with;
use crate::error::Result;
use messages::{
    AttributeProto, AttributeType, DataType, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// Version of the operators: the first with `LayerNormalization`.
const OPSET: i64 = 17;
/// Version of the file format that goes with it.
const IR_VERSION: i64 = 8;
const PROGRAM: &str = "sam-ladder";
/// A protobuf message is smaller than 2 GiB; above this many bytes of weights, they are in a file of their own.
const MOST_BYTES: usize = 1_900_000_000;

/// A tensor that flows through a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value(String);

/// The size of an axis of an input or output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// A fixed size.
    Size(usize),
    /// Any size; axes with the same name have the same one.
    Free(&'static str),
}

/// A constant of an operator.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    /// An integer.
    Int(i64),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A number.
    Float(f32),
}

/// A graph that grows by operators.
#[derive(Debug, Default)]
pub struct Graph {
    graph: GraphProto,
}

impl Graph {
    /// A graph without operators.
    pub fn new(name: &str) -> Self {
        Graph { graph: GraphProto { name: name.to_owned(), ..GraphProto::default() } }
    }

    /// A float32 input.
    pub fn input(&mut self, name: &str, axes: &[Axis], meaning: &str) -> Value {
        self.graph.input.push(info(name, axes, meaning));
        Value(name.to_owned())
    }

    /// Makes a value a float32 output of this name.
    pub fn output(&mut self, value: &Value, name: &str, axes: &[Axis], meaning: &str) {
        self.push("Identity", &[value], &[], name.to_owned());
        self.graph.output.push(info(name, axes, meaning));
    }

    /// A constant of float32 numbers, in C order.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Value {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, shape, DataType::Float, raw)
    }

    /// A constant list of integers.
    pub fn integers(&mut self, values: &[i64]) -> Value {
        let name = format!("integers_{}", self.graph.initializer.len());
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(&name, &[values.len()], DataType::Int64, raw)
    }

    /// The only output of an operator.
    pub fn op(&mut self, operator: &str, inputs: &[&Value], attributes: &[(&str, Attribute)]) -> Value {
        let name = format!("{operator}_{}", self.graph.node.len());
        self.push(operator, inputs, attributes, name)
    }

    fn push(&mut self, operator: &str, inputs: &[&Value], attributes: &[(&str, Attribute)], output: String) -> Value {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|value| value.0.clone()).collect(),
            output: vec![output.clone()],
            name: format!("{operator}_{}", self.graph.node.len()),
            op_type: operator.to_owned(),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
        });
        Value(output)
    }

    fn constant(&mut self, name: &str, shape: &[usize], data_type: DataType, raw_data: Vec<u8>) -> Value {
        // A weight that is used twice is stored once.
        if !self.graph.initializer.iter().any(|tensor| tensor.name == name) {
            let dims = shape.iter().map(|&size| size as i64).collect();
            let data_type = data_type.into();
            self.graph.initializer.push(TensorProto {
                dims,
                data_type,
                name: name.to_owned(),
                raw_data,
                ..TensorProto::default()
            });
        }
        Value(name.to_owned())
    }

    /// Writes the model, replacing an existing file; `metadata` is for its readers. If the weights do not fit into a protobuf message, they
    /// go to the file `<path>.data`, which has to stay beside it. Returns the files.
    ///
    /// # Errors
    /// The operating system's, naming the file.
    pub fn save(self, path: &Path, version: &str, metadata: &[(&str, String)]) -> Result<Vec<PathBuf>> {
        self.save_within(path, version, metadata, MOST_BYTES)
    }

    fn save_within(mut self, path: &Path, version: &str, metadata: &[(&str, String)], most_bytes: usize) -> Result<Vec<PathBuf>> {
        let mut files = vec![path.to_owned()];
        if self.graph.initializer.iter().map(|tensor| tensor.raw_data.len()).sum::<usize>() > most_bytes {
            let data = data_file(path);
            self.move_weights(&data)?;
            files.push(data);
        }
        let model = ModelProto {
            ir_version: IR_VERSION,
            producer_name: PROGRAM.to_owned(),
            producer_version: version.to_owned(),
            doc_string: String::new(),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
            metadata_props: metadata.iter().map(|(key, value)| entry(key, value.clone())).collect(),
        };
        write_atomic_with(path, |file| file.write_all(&model.encode_to_vec()))?;
        Ok(files)
    }

    /// Moves the weights to a file of their own. Integers, which runtimes need while they load a model, stay.
    fn move_weights(&mut self, path: &Path) -> Result<()> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let is_weight = |tensor: &TensorProto| tensor.data_type() == DataType::Float;
        let mut weights = self.graph.initializer.iter().filter(|tensor| is_weight(tensor));
        write_atomic_with(path, |file| weights.try_for_each(|tensor| file.write_all(&tensor.raw_data)))?;
        let mut offset = 0;
        for tensor in self.graph.initializer.iter_mut().filter(|tensor| is_weight(tensor)) {
            let length = std::mem::take(&mut tensor.raw_data).len();
            tensor.external_data =
                vec![entry("location", name.clone()), entry("offset", offset.to_string()), entry("length", length.to_string())];
            tensor.data_location = 1;
            offset += length;
        }
        Ok(())
    }
}

/// The file of weights that do not fit into the model's.
fn data_file(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".data");
    name.into()
}

/// Whether a file was written by [`Graph::save`]; false for what cannot be read.
pub fn is_ours(path: &Path) -> bool {
    // The first two fields: the version, and the name of the program.
    let mut expected = vec![0x08, IR_VERSION as u8, 0x12, PROGRAM.len() as u8];
    expected.extend(PROGRAM.as_bytes());
    let mut start = vec![0; expected.len()];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == expected
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: key.to_owned(), value }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut out = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
    let kind = match value {
        Attribute::Int(value) => {
            out.i = *value;
            AttributeType::Int
        }
        Attribute::Ints(values) => {
            out.ints = values.clone();
            AttributeType::Ints
        }
        Attribute::Float(value) => {
            out.f = *value;
            AttributeType::Float
        }
    };
    out.set_type(kind);
    out
}

fn info(name: &str, axes: &[Axis], meaning: &str) -> ValueInfoProto {
    let dimension = |axis: &Axis| DimensionProto {
        value: Some(match axis {
            Axis::Size(size) => DimensionValue::Value(*size as i64),
            Axis::Free(name) => DimensionValue::Param((*name).to_owned()),
        }),
    };
    let shape = TensorShapeProto { dim: axes.iter().map(dimension).collect() };
    let tensor_type = TensorTypeProto { elem_type: DataType::Float.into(), shape: Some(shape) };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { tensor_type: Some(tensor_type) }),
        doc_string: meaning.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubled() -> Graph {
        let mut graph = Graph::new("doubled");
        let x = graph.input("x", &[Axis::Free("batch"), Axis::Size(2)], "numbers");
        let two = graph.floats("two", &[1], &[2.0]);
        let again = graph.floats("two", &[1], &[2.0]);
        assert_eq!(two, again);
        let y = graph.op("Mul", &[&x, &two], &[]);
        graph.output(&y, "y", &[Axis::Free("batch"), Axis::Size(2)], "twice the numbers");
        graph
    }

    #[test]
    fn a_file_is_known_as_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        assert!(!is_ours(&path));
        assert_eq!(doubled().save(&path, "1", &[("key", "value".into())]).unwrap(), vec![path.clone()]);
        assert!(is_ours(&path));
        let model = ModelProto::decode(&*std::fs::read(&path).unwrap()).unwrap();
        let graph = model.graph.unwrap();
        assert_eq!((graph.node.len(), graph.initializer.len(), graph.initializer[0].raw_data.len()), (2, 1, 4));
        std::fs::write(&path, b"\x08\x08\x12\x07pytorch...").unwrap();
        assert!(!is_ours(&path));
    }

    #[test]
    fn weights_that_do_not_fit_are_beside_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        let files = doubled().save_within(&path, "1", &[], 3).unwrap();
        assert_eq!(files, [path.clone(), folder.path().join("m.onnx.data")]);
        assert_eq!(std::fs::read(&files[1]).unwrap(), 2f32.to_le_bytes());
        let model = ModelProto::decode(&*std::fs::read(&path).unwrap()).unwrap();
        let tensor = &model.graph.unwrap().initializer[0];
        assert!(tensor.raw_data.is_empty() && tensor.data_location == 1);
        let entries: Vec<_> = tensor.external_data.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect();
        assert_eq!(entries, [("location", "m.onnx.data"), ("offset", "0"), ("length", "4")]);
    }
}
