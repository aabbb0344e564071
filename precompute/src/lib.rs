//! Stage one: read scans, preprocess, augment, encode with the frozen SAM encoder, write the store.
