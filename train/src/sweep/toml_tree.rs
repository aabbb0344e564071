//! A TOML file as a tree in which every key knows its line, so that whatever is wrong with it can be told by line and key.

use crate::error::{Result, TrainError};
use serde_json::{Number, Value};
use toml::de::{DeTable, DeValue};

/// A key and what it holds.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) key: String,
    /// From 1.
    pub(super) line: usize,
    pub(super) node: Node,
}

/// What a key holds.
#[derive(Debug)]
pub(super) enum Node {
    /// A number, a text or a truth value.
    Scalar(Value),
    /// Scalars.
    List(Vec<Value>),
    /// Keys, in the file's order.
    Table(Vec<Item>),
}

/// A table of the file, whose keys are taken out one by one.
pub(super) struct Section {
    /// The file's name, for messages.
    file: String,
    /// Name of the table with its parents, empty for the file itself.
    name: String,
    line: usize,
    items: Vec<Item>,
}

impl Section {
    /// The whole file.
    ///
    /// # Errors
    /// What the TOML parser says, with the line.
    pub(super) fn parse(file: &str, text: &str) -> Result<Section> {
        let line = |at: usize| 1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count();
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(1, |span| line(span.start));
            TrainError::Setting(format!("{file}:{at}: not TOML: {}", error.message()))
        })?;
        let items = items_of(file, "", table.get_ref(), &line)?;
        Ok(Section { file: file.into(), name: String::new(), line: 1, items })
    }

    /// A table within this one.
    pub(super) fn inner(&self, key: &str, line: usize, items: Vec<Item>) -> Section {
        Section { file: self.file.clone(), name: self.path(key), line, items }
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_string() } else { format!("{}.{key}", self.name) }
    }

    /// An error about a key of this table.
    pub(super) fn refuse(&self, line: usize, key: &str, message: impl std::fmt::Display) -> TrainError {
        TrainError::Setting(format!("{}:{line}: {}: {message}", self.file, self.path(key)))
    }

    /// An error about the table itself.
    pub(super) fn refuse_all(&self, message: impl std::fmt::Display) -> TrainError {
        let name = if self.name.is_empty() { "the file" } else { &self.name };
        TrainError::Setting(format!("{}:{}: {name}: {message}", self.file, self.line))
    }

    /// Takes a key out.
    pub(super) fn take(&mut self, key: &str) -> Option<Item> {
        let at = self.items.iter().position(|item| item.key == key)?;
        Some(self.items.remove(at))
    }

    /// Takes all keys out, in the file's order.
    pub(super) fn take_all(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.items)
    }

    /// Takes a table out; an empty one where there is none.
    ///
    /// # Errors
    /// When the key is no table.
    pub(super) fn take_section(&mut self, key: &str) -> Result<Section> {
        match self.take(key) {
            None => Ok(self.inner(key, self.line, Vec::new())),
            Some(Item { line, node: Node::Table(items), .. }) => Ok(self.inner(key, line, items)),
            Some(item) => Err(self.refuse(item.line, key, format!("expected a table, found {}", item.node.words()))),
        }
    }

    /// Takes a scalar out and reads it.
    ///
    /// # Errors
    /// When `read` finds it to be something else than `expected`.
    pub(super) fn take_value<T>(&mut self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(item) = self.take(key) else { return Ok(None) };
        let value = match &item.node {
            Node::Scalar(value) => read(value),
            Node::List(_) | Node::Table(_) => None,
        };
        match value {
            Some(value) => Ok(Some(value)),
            None => Err(self.refuse(item.line, key, format!("expected {expected}, found {}", item.node.words()))),
        }
    }

    /// Refuses what was not taken.
    ///
    /// # Errors
    /// The first unknown key, and those that there are.
    pub(super) fn finish(self, known: &[&str]) -> Result<()> {
        match self.items.first() {
            None => Ok(()),
            Some(item) => {
                Err(self.refuse(item.line, &item.key, format!("unknown key; those of this table are {}", known.join(", "))))
            }
        }
    }
}

impl Node {
    /// What it is, in a few words.
    pub(super) fn words(&self) -> String {
        match self {
            Node::Scalar(value) => value.to_string(),
            Node::List(values) => format!("a list of {}", values.len()),
            Node::Table(_) => "a table".into(),
        }
    }
}

fn items_of(file: &str, parent: &str, table: &DeTable<'_>, line: &impl Fn(usize) -> usize) -> Result<Vec<Item>> {
    // The parser sorts keys by name; the file's order decides here which setting may depend on which.
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let item = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        let at = line(key.span().start);
        let path = if parent.is_empty() { name.to_string() } else { format!("{parent}.{name}") };
        let refuse = |what: &str| TrainError::Setting(format!("{file}:{at}: {path}: {what}"));
        let node = match value.get_ref() {
            DeValue::Table(inner) => Node::Table(items_of(file, &path, inner, line)?),
            DeValue::Array(values) => {
                let values = values.iter().map(|value| {
                    scalar(value.get_ref())
                        .ok_or_else(|| refuse("a list holds finite numbers, texts and truth values, and nothing else"))
                });
                Node::List(values.collect::<Result<_>>()?)
            }
            other => Node::Scalar(
                scalar(other).ok_or_else(|| refuse("expected a finite number, a text, a truth value, a list or a table"))?,
            ),
        };
        Ok(Item { key: name.to_string(), line: at, node })
    };
    entries.into_iter().map(item).collect()
}

fn scalar(value: &DeValue<'_>) -> Option<Value> {
    match value {
        DeValue::String(text) => Some(Value::String(text.to_string())),
        DeValue::Boolean(truth) => Some(Value::Bool(*truth)),
        DeValue::Integer(number) => match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Some(number.into()),
            Err(_) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(Value::from),
        },
        DeValue::Float(number) => Number::from_f64(number.as_str().parse().ok()?).map(Value::Number),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}
