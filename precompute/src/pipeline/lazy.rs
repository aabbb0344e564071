//! An encoder that is loaded when it is first needed.

use super::encode::Encode;
use crate::error::{Error, Result};
use crate::rungs::RungMaps;

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
    /// What the encoder is to make in addition, once it is loaded.
    rungs: Option<RungMaps>,
}

impl<E: Encode, F: FnOnce() -> Result<Loaded<E>>> Lazy<E, F> {
    pub(super) fn new(load: F) -> Self {
        Lazy { load: Some(load), loaded: None, rungs: None }
    }

    /// From now on the encoder makes rungs, too.
    pub(super) fn set_rungs(&mut self, rungs: RungMaps) -> Result<()> {
        if let Some(Loaded { encoder, .. }) = &mut self.loaded {
            encoder.set_rungs(&rungs)?;
        }
        self.rungs = Some(rungs);
        Ok(())
    }

    pub(super) fn get(&mut self) -> Result<&Loaded<E>> {
        if let Some(load) = self.load.take() {
            let mut loaded = load()?;
            if let Some(rungs) = &self.rungs {
                loaded.encoder.set_rungs(rungs)?;
            }
            self.loaded = Some(loaded);
        }
        self.loaded.as_ref().ok_or(Error::EncoderNotLoaded)
    }
}
