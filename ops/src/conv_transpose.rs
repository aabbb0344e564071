//! conv_transpose
