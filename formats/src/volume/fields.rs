//! What the headers of text have in common: lines of a key and a value.

use crate::error::Problem;
use std::collections::HashMap;

/// Why a header cannot be used.
#[derive(Debug)]
pub(super) enum Refused {
    Format(Problem),
    /// The number type's name.
    NumberType(String),
}

impl<T: Into<String>> From<T> for Refused {
    fn from(what: T) -> Self {
        Refused::Format(what.into().into())
    }
}

impl Refused {
    /// What another copy of the file would not mend.
    pub(super) fn with_advice(what: impl Into<String>, advice: &'static str) -> Self {
        Refused::Format(Problem::with_advice(what, advice))
    }
}

/// The fields of a header by their keys, in lower case.
#[derive(Debug, Default)]
pub(super) struct TextFields<'a>(HashMap<String, &'a str>);

impl<'a> TextFields<'a> {
    pub(super) fn insert(&mut self, key: &str, value: &'a str) {
        self.0.insert(key.trim().to_ascii_lowercase(), value.trim());
    }

    /// The value of the first of some keys that is there.
    pub(super) fn get(&self, keys: &[&str]) -> Option<&'a str> {
        keys.iter().find_map(|key| self.0.get(*key).copied())
    }

    pub(super) fn required(&self, keys: &[&str]) -> Result<&'a str, String> {
        self.get(keys).ok_or_else(|| format!("its header lacks {}", keys[0]))
    }

    /// `N` numbers between spaces.
    pub(super) fn numbers<T: std::str::FromStr, const N: usize>(&self, keys: &[&str]) -> Result<Option<[T; N]>, String> {
        let Some(text) = self.get(keys) else { return Ok(None) };
        let numbers: Option<Vec<T>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
        let numbers = numbers.and_then(|numbers| <[T; N]>::try_from(numbers).ok());
        numbers.map(Some).ok_or_else(|| format!("its {} is {:?}, expected {N} numbers", keys[0], shortened(text)))
    }
}

/// The start of a text, for messages.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

/// The lines of a header without their ends, and where each ends in the file. A line that is no text, which only a comment may be, is `#`.
pub(super) fn lines(bytes: &[u8]) -> impl Iterator<Item = (&str, usize)> {
    let mut at = 0;
    bytes.split_inclusive(|&byte| byte == b'\n').map(move |line| {
        at += line.len();
        let text = std::str::from_utf8(line).unwrap_or("#");
        let text = text.strip_suffix('\n').unwrap_or(text);
        (text.strip_suffix('\r').unwrap_or(text), at)
    })
}

/// Where a number of lines ends.
pub(super) fn end_of_line(bytes: &[u8], lines: usize) -> Option<usize> {
    let mut ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    if lines == 0 { Some(0) } else { ends.nth(lines - 1) }
}

/// Exactly so many numbers, written in words.
pub(super) fn numbers_in_words(bytes: &[u8], count: usize) -> Result<Vec<f32>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "its voxels are not text")?;
    let words = text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
    // As binary numbers are: rounded once, from float64.
    let numbers: Result<Vec<f32>, String> = words
        .take(count)
        .map(|word| {
            word.parse::<f64>().map(|value| value as f32).map_err(|_| format!("its voxel {:?} is no number", shortened(word)))
        })
        .collect();
    let numbers = numbers?;
    if numbers.len() < count { Err(format!("its header promises {count} voxels, found {}", numbers.len())) } else { Ok(numbers) }
}

/// The name of a file in the header's own folder.
pub(super) fn own_folder_name(name: &str) -> Result<String, Refused> {
    let plain = name.strip_prefix("./").unwrap_or(name);
    if plain.is_empty() || plain.contains(['/', '\\', '\0', '%']) || [".", ".."].contains(&plain) {
        return Err(Refused::with_advice(
            format!("its voxels are in {:?}, which is not the name of one file in its folder", shortened(name)),
            "put the file of the voxels next to the header, and write its name into the header; several files: convert them to one",
        ));
    }
    Ok(plain.into())
}
