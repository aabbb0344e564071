//! ndimage
