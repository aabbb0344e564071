//! The embedding store: Zarr arrays and Parquet tables.
