//! `slices.parquet`. The table has a column per class, so no struct can describe its columns.

use crate::error::Result;
use arrow::array::{Array, ArrayRef, AsArray, Float64Array, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{Float64Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use sam_ladder_formats::rows::{check_columns, decode_batch, encode_batch};
use sam_ladder_schemas::tables::{SliceRow, voxels_column};
use std::path::Path;
use std::sync::Arc;

/// Columns of the spacing along depth, height and width.
const SPACING: [&str; 3] = ["spacing_depth_mm", "spacing_height_mm", "spacing_width_mm"];
/// Columns of the size.
const SIZE: [&str; 2] = ["height", "width"];

/// The bytes of the table; `path` is for messages.
pub(crate) fn encode_slices(path: &Path, rows: &[SliceRow], class_names: &[String]) -> Result<Vec<u8>> {
    Ok(encode_batch(path, &batch(path, rows, class_names)?)?)
}

/// The rows in the table's bytes; `path` is for messages.
///
/// # Errors
/// If the bytes cannot be read; names any column that is missing, unknown or of another type.
pub(crate) fn decode_slices(path: &Path, bytes: Bytes, class_names: &[String]) -> Result<Vec<SliceRow>> {
    let found = decode_batch(path, bytes)?;
    check_columns(path, &found, batch(path, &[], class_names)?.schema_ref())?;
    let text = |name: &str| found[name].as_string::<i32>();
    let count = |name: &str| found[name].as_primitive::<UInt32Type>();
    let spacing = SPACING.map(|name| found[name].as_primitive::<Float64Type>());
    let size = SIZE.map(count);
    let voxels: Vec<_> =
        class_names.iter().map(|name| found[voxels_column(name).as_str()].as_primitive::<UInt64Type>()).collect();
    let row = |i: usize| SliceRow {
        row: count("row").value(i),
        case: text("case").value(i).into(),
        slice_index: count("slice_index").value(i),
        spacing_mm: spacing.iter().all(|axis| axis.is_valid(i)).then(|| spacing.map(|axis| axis.value(i))),
        size: size.map(|axis| axis.value(i)),
        voxels: voxels.iter().map(|class| class.value(i)).collect(),
        source: text("source").value(i).into(),
        source_sha256: text("source_sha256").value(i).into(),
    };
    Ok((0..found.num_rows()).map(row).collect())
}

fn batch(path: &Path, rows: &[SliceRow], class_names: &[String]) -> Result<RecordBatch> {
    let count = |value: &dyn Fn(&SliceRow) -> u32| Arc::new(rows.iter().map(value).collect::<UInt32Array>()) as ArrayRef;
    let text =
        |value: fn(&SliceRow) -> &str| Arc::new(rows.iter().map(|row| Some(value(row))).collect::<StringArray>()) as ArrayRef;
    let mut columns: Vec<(String, ArrayRef)> = vec![
        ("row".into(), count(&|row| row.row)),
        ("case".into(), text(|row| &row.case)),
        ("slice_index".into(), count(&|row| row.slice_index)),
    ];
    for (axis, name) in SPACING.into_iter().enumerate() {
        columns.push((
            name.into(),
            Arc::new(rows.iter().map(|row| row.spacing_mm.map(|spacing| spacing[axis])).collect::<Float64Array>()),
        ));
    }
    columns.extend(SIZE.into_iter().enumerate().map(|(axis, name)| (name.into(), count(&|row| row.size[axis]))));
    for (class, name) in class_names.iter().enumerate() {
        // A row with too few counts gives an empty cell, which is refused below.
        let voxels = rows.iter().map(|row| row.voxels.get(class).copied()).collect::<UInt64Array>();
        columns.push((voxels_column(name), Arc::new(voxels)));
    }
    columns.push(("source".into(), text(|row| &row.source)));
    columns.push(("source_sha256".into(), text(|row| &row.source_sha256)));
    // Only the spacing may be unknown.
    let columns = columns.into_iter().map(|(name, column)| {
        let nullable = SPACING.contains(&name.as_str());
        (name, column, nullable)
    });
    RecordBatch::try_from_iter_with_nullable(columns)
        .map_err(|error| sam_ladder_formats::Error::Rows { action: "write", path: path.into(), reason: error.to_string() }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(index: u32, voxels: Vec<u64>) -> SliceRow {
        SliceRow {
            row: index,
            case: "0005".into(),
            slice_index: index,
            spacing_mm: (index != 1).then_some([3.0, 0.75, 0.8]),
            size: [40, 48],
            voxels,
            source: "img/img0005.nii.gz".into(),
            source_sha256: "ab".into(),
        }
    }

    #[test]
    fn slices_survive_the_round_trip() {
        let path = Path::new("slices.parquet");
        let class_names = vec!["right kidney".to_string(), "liver".to_string()];
        let rows: Vec<SliceRow> = (0..3).map(|i| row(i, vec![u64::from(i), 7])).collect();
        let bytes = |rows: &[SliceRow]| Bytes::from(encode_slices(path, rows, &class_names).unwrap());
        assert_eq!(decode_slices(path, bytes(&rows), &class_names).unwrap(), rows);
        assert!(decode_slices(path, bytes(&[]), &class_names).unwrap().is_empty());
        let unknown = decode_slices(path, bytes(&rows), &class_names[..1]).unwrap_err().to_string();
        assert!(unknown.contains("slices.parquet has an unknown column voxels_liver"), "{unknown}");
        let schema = batch(path, &rows, &class_names).unwrap().schema();
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(
            names,
            [
                "row",
                "case",
                "slice_index",
                "spacing_depth_mm",
                "spacing_height_mm",
                "spacing_width_mm",
                "height",
                "width",
                "voxels_right_kidney",
                "voxels_liver",
                "source",
                "source_sha256"
            ]
        );
        assert!(schema.fields().iter().all(|field| field.is_nullable() == SPACING.contains(&field.name().as_str())));
    }

    #[test]
    fn rows_with_too_few_counts_are_refused() {
        assert!(encode_slices(Path::new("a"), &[row(0, vec![])], &["liver".to_string()]).is_err());
    }
}
