//! How much of a store's training data a GPU's memory holds.

use std::str::FromStr;

/// Whether a store's training items live in the GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceStore {
    /// As many as fit.
    #[default]
    Auto,
    /// None: each batch is copied.
    Off,
    /// As many as fit this many bytes.
    Bytes(u64),
}

/// A text that is no [`DeviceStore`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected auto, off or a number of bytes such as 20000000000 or 20G, found {found:?}")]
pub struct NotADeviceStore {
    /// The text.
    pub found: String,
}

impl FromStr for DeviceStore {
    type Err = NotADeviceStore;

    fn from_str(text: &str) -> Result<Self, NotADeviceStore> {
        match text {
            "auto" => Ok(DeviceStore::Auto),
            "off" => Ok(DeviceStore::Off),
            size => bytes(size).map(DeviceStore::Bytes).ok_or_else(|| NotADeviceStore { found: text.into() }),
        }
    }
}

/// `500`, `5M` or `20G`, in powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'G') => (&text[..text.len() - 1], 30),
        Some(b'M') => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_the_store_are_parsed() {
        for (text, expected) in [
            ("auto", DeviceStore::Auto),
            ("off", DeviceStore::Off),
            ("0", DeviceStore::Bytes(0)),
            ("3G", DeviceStore::Bytes(3 << 30)),
            ("5M", DeviceStore::Bytes(5 << 20)),
            ("123", DeviceStore::Bytes(123)),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
        for wrong in ["", "G", "-1", "1T", "99999999999999999999", "18446744073709551615G"] {
            assert!(wrong.parse::<DeviceStore>().is_err(), "{wrong:?}");
        }
    }
}
