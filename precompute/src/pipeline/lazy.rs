//! An encoder that is loaded when it is first needed.

use crate::error::{Error, Result};

/// An encoder and the bytes of the store's decoder file.
pub struct Loaded<E> {
    /// Encodes images.
    pub encoder: E,
    /// SAM's prompt encoder and mask decoder as a safetensors file.
    pub decoder: Vec<u8>,
}

/// An encoder, or how to load it.
pub(super) struct Lazy<E, F> {
    load: Option<F>,
    loaded: Option<Loaded<E>>,
}

impl<E, F: FnOnce() -> Result<Loaded<E>>> Lazy<E, F> {
    pub(super) fn new(load: F) -> Self {
        Lazy { load: Some(load), loaded: None }
    }

    pub(super) fn get(&mut self) -> Result<&Loaded<E>> {
        if let Some(load) = self.load.take() {
            self.loaded = Some(load()?);
        }
        self.loaded.as_ref().ok_or(Error::EncoderNotLoaded)
    }
}
