//! Metrics, tables, figures and masks.
