//! The part of Python's pickle format that `torch.save` writes for a state dict. The machine executes no code and refuses unknown
//! instructions. Memory is proportional to the bytes read.

use std::collections::HashMap;
use std::io::Read;
use std::rc::Rc;
use std::sync::Arc;

use super::ElementType;
use crate::error::Problem;

/// A value of a pickle. Containers lie in the machine's arena, so that dropping a long chain of them does not recurse.
#[derive(Debug, Clone)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Str(Arc<str>),
    /// An imported name: module and name.
    Global(Arc<str>, Arc<str>),
    /// A tuple or list.
    Sequence(usize),
    Dict(usize),
    Storage(Rc<StorageRef>),
    Tensor(Rc<TensorRef>),
    /// A value of no use here: a float, an object of an unknown class, an integer that does not fit.
    Other,
}

/// A block of elements that tensors are views of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StorageRef {
    pub(super) key: Arc<str>,
    pub(super) element: ElementType,
    pub(super) len: usize,
}

/// A view of a storage.
#[derive(Debug, Clone)]
pub(super) struct TensorRef {
    pub(super) storage: Rc<StorageRef>,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// Result of a pickle: its value, and the containers that values point to.
pub(super) struct Pickle {
    pub(super) root: Value,
    /// Every storage that it names, also those of no tensor that is read.
    pub(super) storages: HashMap<Arc<str>, Rc<StorageRef>>,
    sequences: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
}

impl Pickle {
    /// Key and value pairs, if the value is a dict.
    pub(super) fn dict(&self, value: &Value) -> Option<&[(Value, Value)]> {
        if let Value::Dict(index) = value { Some(&self.dicts[*index]) } else { None }
    }

    /// Items, if the value is a tuple or list.
    pub(super) fn sequence(&self, value: &Value) -> Option<&[Value]> {
        if let Value::Sequence(index) = value { Some(&self.sequences[*index]) } else { None }
    }

    /// A dict's value for a string key.
    pub(super) fn get(&self, dict: &Value, key: &str) -> Option<&Value> {
        self.dict(dict)?.iter().find(|(k, _)| matches!(k, Value::Str(k) if &**k == key)).map(|(_, value)| value)
    }
}

/// Longest string that is kept: names of tensors and classes are far shorter.
const MAX_STRING_BYTES: usize = 1 << 16;
/// Most axes of a tensor, as in PyTorch. A limit is needed because many tensors can share one tuple as their shape, and each copies it.
const MAX_AXES: usize = 64;

/// Runs one pickle from `input`, up to and including its STOP.
///
/// # Errors
/// If the bytes end early, or hold anything that `torch.save` does not write for a state dict.
pub(super) fn read(input: &mut impl Read) -> Result<Pickle, Problem> {
    let mut machine = Machine {
        input,
        stack: vec![],
        marks: vec![],
        memo: HashMap::new(),
        sequences: vec![],
        dicts: vec![],
        storages: HashMap::new(),
    };
    while machine.step()? {}
    let root = machine.pop()?;
    Ok(Pickle { root, sequences: machine.sequences, dicts: machine.dicts, storages: machine.storages })
}

struct Machine<'a, R> {
    input: &'a mut R,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    sequences: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: HashMap<Arc<str>, Rc<StorageRef>>,
}

impl<R: Read> Machine<'_, R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|e| format!("its pickle ends early ({e})"))?;
        Ok(bytes)
    }

    fn string(&mut self, len: usize) -> Result<Value, Problem> {
        if len > MAX_STRING_BYTES {
            self.skip(len as u64)?;
            return Ok(Value::Other);
        }
        let mut bytes = vec![0; len];
        self.input.read_exact(&mut bytes).map_err(|e| format!("its pickle ends early ({e})"))?;
        Ok(Value::Str(String::from_utf8_lossy(&bytes).into()))
    }

    /// Passes over bytes that nothing needs.
    fn skip(&mut self, len: u64) -> Result<(), Problem> {
        let skipped = std::io::copy(&mut self.input.by_ref().take(len), &mut std::io::sink());
        match skipped.map_err(|e| format!("its pickle ends early ({e})"))? {
            found if found == len => Ok(()),
            found => Err(format!("its pickle ends early (a text of {len} bytes has {found})").into()),
        }
    }

    /// Text up to the end of the line.
    fn line(&mut self) -> Result<Arc<str>, Problem> {
        let mut bytes = Vec::new();
        loop {
            let [byte] = self.bytes()?;
            if byte == b'\n' {
                return Ok(String::from_utf8_lossy(&bytes).into());
            }
            if bytes.len() == MAX_STRING_BYTES {
                return Err("its pickle holds a name that does not end".into());
            }
            bytes.push(byte);
        }
    }

    fn pop(&mut self) -> Result<Value, Problem> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("its pickle takes more values than it makes".into());
        }
        self.stack.pop().ok_or_else(|| "its pickle takes more values than it makes".into())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, Problem> {
        let mark = self.marks.pop().ok_or("its pickle has no mark where one is needed")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn push_sequence(&mut self, items: Vec<Value>) {
        self.sequences.push(items);
        self.stack.push(Value::Sequence(self.sequences.len() - 1));
    }

    fn push_dict(&mut self, items: Vec<Value>) -> Result<(), Problem> {
        self.dicts.push(vec![]);
        self.stack.push(Value::Dict(self.dicts.len() - 1));
        self.set_items(items)
    }

    /// Adds alternating keys and values to the dict on top of the stack; drops them if it is another object.
    fn set_items(&mut self, items: Vec<Value>) -> Result<(), Problem> {
        if items.len() % 2 == 1 {
            return Err("its pickle has a key without a value".into());
        }
        if let Some(Value::Dict(index)) = self.stack.last() {
            let mut items = items.into_iter();
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                self.dicts[*index].push((key, value));
            }
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Value>) {
        if let Some(Value::Sequence(index)) = self.stack.last() {
            self.sequences[*index].extend(items);
        }
    }

    fn put(&mut self, at: u32) -> Result<(), Problem> {
        let value = self.stack.last().ok_or("its pickle stores a value that it has not made")?;
        self.memo.insert(at, value.clone());
        Ok(())
    }

    fn get(&mut self, at: u32) -> Result<(), Problem> {
        let value = self.memo.get(&at).ok_or("its pickle uses a value that it has not stored")?;
        self.stack.push(value.clone());
        Ok(())
    }

    /// Runs one instruction; returns false after STOP. Names are those of Python's `pickletools`.
    fn step(&mut self) -> Result<bool, Problem> {
        let [opcode] = self.bytes()?;
        if opcode == b'.' {
            return Ok(false);
        }
        let known = self.stack_step(opcode)?
            || self.literal_step(opcode)?
            || self.container_step(opcode)?
            || self.memo_step(opcode)?
            || self.object_step(opcode)?;
        if !known {
            let found = format!("an instruction 0x{opcode:02x}, which torch.save of a state dict does not write");
            return Err(format!("its pickle has {found}").into());
        }
        Ok(true)
    }

    /// Instructions that only rearrange the stack. Like the four that follow: whether `opcode` is one of them.
    fn stack_step(&mut self, opcode: u8) -> Result<bool, Problem> {
        match opcode {
            0x80 => drop(self.bytes::<1>()?), // PROTO
            0x95 => drop(self.bytes::<8>()?), // FRAME
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.stack.last().ok_or("its pickle copies a value that it has not made")?.clone();
                self.stack.push(top);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Instructions that push a number, a text or a name.
    fn literal_step(&mut self, opcode: u8) -> Result<bool, Problem> {
        let value = match opcode {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'J' => Value::Int(i32::from_le_bytes(self.bytes()?).into()),
            b'K' => Value::Int(self.bytes::<1>()?[0].into()),
            b'M' => Value::Int(u16::from_le_bytes(self.bytes()?).into()),
            0x8a => self.long()?,
            b'G' => {
                self.bytes::<8>()?;
                Value::Other
            }
            0x8b => {
                // LONG4: beyond 64 bits, or written as if it were
                let len = u32::from_le_bytes(self.bytes()?);
                self.skip(len.into())?;
                Value::Other
            }
            b'B' => {
                let len = u32::from_le_bytes(self.bytes()?);
                self.skip(len.into())?;
                Value::Other
            }
            b'C' => {
                let [len] = self.bytes()?;
                self.skip(len.into())?;
                Value::Other
            }
            0x8e | 0x96 => {
                let len = u64::from_le_bytes(self.bytes()?);
                self.skip(len)?;
                Value::Other
            }
            0x8d => {
                let len = u64::from_le_bytes(self.bytes()?);
                self.string(usize::try_from(len).unwrap_or(usize::MAX))?
            }
            b'X' => {
                let len = u32::from_le_bytes(self.bytes()?) as usize;
                self.string(len)?
            }
            0x8c | b'U' => {
                let [len] = self.bytes()?;
                self.string(len.into())?
            }
            b'c' => Value::Global(self.line()?, self.line()?),
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Str(name), Value::Str(module)) => Value::Global(module, name),
                _ => return Err("its pickle imports something without a name".into()),
            },
            _ => return Ok(false),
        };
        self.stack.push(value);
        Ok(true)
    }

    /// LONG1: two's complement, little endian.
    fn long(&mut self) -> Result<Value, Problem> {
        let [len] = self.bytes()?;
        let mut value = 0i64;
        for i in 0..len {
            let [byte] = self.bytes()?;
            match i {
                0..7 => value |= i64::from(byte) << (8 * i),
                7 => value |= i64::from(byte as i8) << 56,
                _ => {}
            }
            if i + 1 == len && i < 7 && byte & 0x80 != 0 {
                value -= 1 << (8 * (i + 1));
            }
        }
        Ok(if len <= 8 { Value::Int(value) } else { Value::Other })
    }

    /// Instructions that make tuples, lists and dicts, or add to them.
    fn container_step(&mut self, opcode: u8) -> Result<bool, Problem> {
        match opcode {
            b')' | b']' | 0x8f => self.push_sequence(vec![]),
            b'}' => self.push_dict(vec![])?,
            b't' | b'l' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push_sequence(items);
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push_dict(items)?;
            }
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x85..=opcode {
                    items.insert(0, self.pop()?);
                }
                self.push_sequence(items);
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item]);
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.append(items);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Instructions that keep the top of the stack under a number, or push what is kept.
    fn memo_step(&mut self, opcode: u8) -> Result<bool, Problem> {
        match opcode {
            b'q' => {
                let [at] = self.bytes()?;
                self.put(at.into())?;
            }
            b'r' => {
                let at = u32::from_le_bytes(self.bytes()?);
                self.put(at)?;
            }
            0x94 => self.put(self.memo.len() as u32)?,
            b'h' => {
                let [at] = self.bytes()?;
                self.get(at.into())?;
            }
            b'j' => {
                let at = u32::from_le_bytes(self.bytes()?);
                self.get(at)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Instructions that make a storage or a tensor.
    fn object_step(&mut self, opcode: u8) -> Result<bool, Problem> {
        match opcode {
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(&id)?;
                self.stack.push(storage);
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(&callable, &arguments)?;
            }
            b'b' => drop(self.pop()?), // BUILD: an object's attributes, such as a state dict's `_metadata`
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn items(&self, value: &Value) -> &[Value] {
        if let Value::Sequence(index) = value { &self.sequences[*index] } else { &[] }
    }

    /// A persistent id: ("storage", class, key, location, number of elements, ..).
    fn storage(&mut self, id: &Value) -> Result<Value, Problem> {
        let [Value::Str(kind), Value::Global(_, class), Value::Str(key), _, Value::Int(len), ..] = self.items(id) else {
            return Err("its pickle has a storage that is not described as torch.save does".into());
        };
        let element = match &**class {
            "DoubleStorage" => ElementType::F64,
            "FloatStorage" => ElementType::F32,
            "HalfStorage" => ElementType::F16,
            "BFloat16Storage" => ElementType::BF16,
            "LongStorage" => ElementType::I64,
            "IntStorage" => ElementType::I32,
            "ShortStorage" => ElementType::I16,
            "CharStorage" => ElementType::I8,
            // Of this one a tensor says itself what its elements are; the length is in bytes.
            "ByteStorage" | "UntypedStorage" => ElementType::U8,
            "BoolStorage" => ElementType::Bool,
            "ComplexDoubleStorage" => ElementType::Opaque(16),
            "ComplexFloatStorage" => ElementType::Opaque(8),
            "QInt32Storage" => ElementType::Opaque(4),
            _ => ElementType::Opaque(1),
        };
        let Some(len) = usize::try_from(*len).ok().filter(|_| &**kind == "storage") else {
            return Err("its pickle has a storage that is not described as torch.save does".into());
        };
        let storage = Rc::new(StorageRef { key: key.clone(), element, len });
        self.storages.insert(storage.key.clone(), storage.clone());
        Ok(Value::Storage(storage))
    }

    fn call(&mut self, callable: &Value, arguments: &Value) -> Result<(), Problem> {
        let Value::Global(module, name) = callable else {
            self.stack.push(Value::Other);
            return Ok(());
        };
        match (&**module, &**name) {
            ("collections", "OrderedDict") => self.push_dict(vec![])?,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
                let tensor = self.tensor(arguments).ok_or("its pickle has a tensor that is not described as torch.save does")?;
                self.stack.push(Value::Tensor(Rc::new(tensor)));
            }
            ("torch._utils", "_rebuild_tensor_v3") => {
                // Its elements have a type that no class of storages has.
                let tensor = self.tensor_of_type(arguments);
                self.stack.push(tensor.map_or(Value::Other, |tensor| Value::Tensor(Rc::new(tensor))));
            }
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                let tensor = self.items(arguments).first().cloned().unwrap_or(Value::Other);
                self.stack.push(tensor);
            }
            _ => self.stack.push(Value::Other),
        }
        Ok(())
    }

    /// As [`Self::tensor`], with the type of the elements among the arguments, which are in a storage of bytes.
    fn tensor_of_type(&self, arguments: &Value) -> Option<TensorRef> {
        let [Value::Storage(storage), _, _, _, _, _, Value::Global(_, name), ..] = self.items(arguments) else { return None };
        let element = match &**name {
            "uint16" => ElementType::U16,
            "uint32" => ElementType::U32,
            "uint64" => ElementType::U64,
            "complex32" => ElementType::Opaque(4),
            _ => ElementType::Opaque(1),
        };
        let storage = StorageRef { key: storage.key.clone(), element, len: storage.len / element.size() };
        self.view(&Rc::new(storage), arguments)
    }

    /// Arguments (storage, offset, size, stride, ..) as a view that lies within its storage.
    fn tensor(&self, arguments: &Value) -> Option<TensorRef> {
        let [Value::Storage(storage), ..] = self.items(arguments) else { return None };
        self.view(storage, arguments)
    }

    fn view(&self, storage: &Rc<StorageRef>, arguments: &Value) -> Option<TensorRef> {
        let [_, Value::Int(offset), size, stride, ..] = self.items(arguments) else { return None };
        let numbers = |value: &Value| -> Option<Vec<usize>> {
            let Value::Sequence(index) = value else { return None };
            if self.sequences[*index].len() > MAX_AXES {
                return None;
            }
            let number = |item: &Value| if let Value::Int(n) = item { usize::try_from(*n).ok() } else { None };
            self.sequences[*index].iter().map(number).collect()
        };
        let (shape, strides, offset) = (numbers(size)?, numbers(stride)?, usize::try_from(*offset).ok()?);
        if shape.len() != strides.len() {
            return None;
        }
        // The last element's offset and the count, without overflow. An expanded view may have more elements than its storage.
        let mut last = offset;
        let mut count = 1usize;
        for (&n, &stride) in shape.iter().zip(&strides) {
            last = last.checked_add(n.saturating_sub(1).checked_mul(stride)?)?;
            count = count.checked_mul(n)?;
        }
        let fits = count == 0 || last < storage.len;
        fits.then(|| TensorRef { storage: storage.clone(), offset, shape, strides })
    }
}
