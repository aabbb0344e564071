//! Rows of the store's two tables, to and from Arrow.

use arrow::array::{Array, ArrayRef, Float64Array, Int32Array, StringArray, UInt8Array, UInt32Array, UInt64Array};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use sam_ladder_schemas::tables::{SliceRow, slices_schema, variants_schema, voxels_column};
use sam_ladder_schemas::variants::{Variant, VariantKind};
use std::sync::Arc;

/// `{train,test}/slices.parquet`: one row a slice.
pub(crate) fn slices_to_batch(rows: &[SliceRow], class_names: &[String]) -> Result<RecordBatch, ArrowError> {
    fn column<'a, A: FromIterator<T> + Array + 'static, T>(rows: &'a [SliceRow], value: impl Fn(&'a SliceRow) -> T) -> ArrayRef {
        Arc::new(rows.iter().map(value).collect::<A>())
    }
    let mut columns: Vec<ArrayRef> = vec![
        column::<UInt32Array, _>(rows, |r| Some(r.row)),
        column::<StringArray, _>(rows, |r| Some(r.case.as_str())),
        column::<UInt32Array, _>(rows, |r| Some(r.slice_index)),
    ];
    for axis in 0..3 {
        columns.push(column::<Float64Array, _>(rows, move |r| Some(r.spacing_mm[axis])));
    }
    for axis in 0..2 {
        columns.push(column::<UInt32Array, _>(rows, move |r| Some(r.size[axis])));
    }
    for class in 0..class_names.len() {
        columns.push(column::<UInt64Array, _>(rows, move |r| r.voxels.get(class).copied()));
    }
    columns.push(column::<StringArray, _>(rows, |r| Some(r.source.as_str())));
    columns.push(column::<StringArray, _>(rows, |r| Some(r.source_sha256.as_str())));
    RecordBatch::try_new(Arc::new(slices_schema(class_names)), columns)
}

/// The rows of `{train,test}/slices.parquet`; the error says what the table has otherwise than its schema.
pub(crate) fn batch_to_slices(batch: &RecordBatch, class_names: &[String]) -> Result<Vec<SliceRow>, String> {
    expect_schema(batch, &slices_schema(class_names))?;
    let row: &UInt32Array = column(batch, "row")?;
    let case: &StringArray = column(batch, "case")?;
    let slice_index: &UInt32Array = column(batch, "slice_index")?;
    let spacing: [&Float64Array; 3] =
        [column(batch, "spacing_depth_mm")?, column(batch, "spacing_height_mm")?, column(batch, "spacing_width_mm")?];
    let size: [&UInt32Array; 2] = [column(batch, "height")?, column(batch, "width")?];
    let voxels: Vec<&UInt64Array> =
        class_names.iter().map(|name| column(batch, &voxels_column(name))).collect::<Result<_, _>>()?;
    let source: &StringArray = column(batch, "source")?;
    let source_sha256: &StringArray = column(batch, "source_sha256")?;
    Ok((0..batch.num_rows())
        .map(|i| SliceRow {
            row: row.value(i),
            case: case.value(i).into(),
            slice_index: slice_index.value(i),
            spacing_mm: spacing.map(|axis| axis.value(i)),
            size: size.map(|axis| axis.value(i)),
            voxels: voxels.iter().map(|class| class.value(i)).collect(),
            source: source.value(i).into(),
            source_sha256: source_sha256.value(i).into(),
        })
        .collect())
}

/// `variants.parquet`: one row a variant.
pub(crate) fn variants_to_batch(variants: &[Variant]) -> Result<RecordBatch, ArrowError> {
    let kinds = || variants.iter().map(|variant| variant.kind);
    let columns: Vec<ArrayRef> = vec![
        Arc::new((0..variants.len() as u32).map(Some).collect::<UInt32Array>()),
        Arc::new(variants.iter().map(|variant| Some(variant.name())).collect::<StringArray>()),
        Arc::new(kinds().map(|kind| Some(kind_name(kind))).collect::<StringArray>()),
        Arc::new(kinds().map(|kind| reflection(kind).map(|(k, _)| k)).collect::<UInt8Array>()),
        Arc::new(kinds().map(|kind| reflection(kind).map(|(_, axis)| axis)).collect::<UInt8Array>()),
        Arc::new(kinds().map(angle_degrees).collect::<Int32Array>()),
        Arc::new(variants.iter().map(|variant| Some(variant.probability)).collect::<Float64Array>()),
    ];
    RecordBatch::try_new(Arc::new(variants_schema()), columns)
}

fn kind_name(kind: VariantKind) -> &'static str {
    match kind {
        VariantKind::Identity => "identity",
        VariantKind::Reflection { .. } => "reflection",
        VariantKind::Rotation { .. } => "rotation",
    }
}

fn reflection(kind: VariantKind) -> Option<(u8, u8)> {
    match kind {
        VariantKind::Reflection { k, axis } => Some((k, axis)),
        VariantKind::Identity | VariantKind::Rotation { .. } => None,
    }
}

fn angle_degrees(kind: VariantKind) -> Option<i32> {
    match kind {
        VariantKind::Rotation { angle_degrees } => Some(angle_degrees),
        VariantKind::Identity | VariantKind::Reflection { .. } => None,
    }
}

fn expect_schema(batch: &RecordBatch, expected: &arrow::datatypes::Schema) -> Result<(), String> {
    let describe = |schema: &arrow::datatypes::Schema| {
        schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect::<Vec<_>>().join(", ")
    };
    if batch.schema().fields() != expected.fields() {
        return Err(format!("expected columns [{}], found [{}]", describe(expected), describe(&batch.schema())));
    }
    Ok(())
}

fn column<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A, String> {
    batch
        .column_by_name(name)
        .and_then(|column| column.as_any().downcast_ref())
        .ok_or_else(|| format!("column {name} is missing or of another type"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::variants::{AugmentPolicy, variants};

    #[test]
    fn slices_survive_the_round_trip() {
        let class_names = vec!["right kidney".to_string(), "liver".to_string()];
        let rows: Vec<SliceRow> = (0..3)
            .map(|i| SliceRow {
                row: i,
                case: "0005".into(),
                slice_index: i,
                spacing_mm: [3.0, 0.75, 0.8],
                size: [40, 48],
                voxels: vec![u64::from(i), 7],
                source: "img/img0005.nii.gz".into(),
                source_sha256: "ab".into(),
            })
            .collect();
        let batch = slices_to_batch(&rows, &class_names).unwrap();
        assert_eq!(batch_to_slices(&batch, &class_names).unwrap(), rows);
        let empty = slices_to_batch(&[], &class_names).unwrap();
        assert!(batch_to_slices(&empty, &class_names).unwrap().is_empty());
        assert!(batch_to_slices(&batch, &class_names[..1]).unwrap_err().contains("expected columns"));
    }

    #[test]
    fn rows_with_too_few_counts_are_refused() {
        let row = SliceRow {
            row: 0,
            case: "1".into(),
            slice_index: 0,
            spacing_mm: [1.0; 3],
            size: [1, 1],
            voxels: vec![],
            source: String::new(),
            source_sha256: String::new(),
        };
        assert!(slices_to_batch(&[row], &["liver".to_string()]).is_err());
    }

    #[test]
    fn variants_table_has_null_where_a_kind_has_no_number() {
        let all = variants(AugmentPolicy::Reference, 1);
        let batch = variants_to_batch(&all).unwrap();
        assert_eq!(batch.num_rows(), 44);
        assert_eq!(batch.column(3).null_count(), 40);
        assert_eq!(batch.column(5).null_count(), 5);
    }
}
