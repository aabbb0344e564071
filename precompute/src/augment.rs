//! The variants of the published augmentation.
