//! From a slice at the scan's resolution to what the networks see.

use sam_ladder_schemas::variants::VariantKind;

/// A slice and its labels at data size, where the published code augments.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSlice {
    size: usize,
    image: Vec<f32>,
    label: Vec<u8>,
}

/// One variant of a slice as the store holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct VariantTensors {
    /// `[s, s]`, what encoder and CNN see.
    pub image: Vec<f32>,
    /// `[s/4, s/4]`, what the loss sees.
    pub label: Vec<u8>,
}

impl DataSlice {
    /// Brings a slice `[h, w]` of a scan to `[data_size, data_size]`: do it once, then ask for the variants.
    pub fn new(_image: &[f32], _label: &[u8], [_height, _width]: [usize; 2], _data_size: usize) -> Self {
        unimplemented!()
    }

    /// A variant at `image_size`. Test slices ask for the identity: their chain is the same.
    pub fn variant(&self, _kind: VariantKind, _image_size: usize) -> VariantTensors {
        unimplemented!()
    }
}
