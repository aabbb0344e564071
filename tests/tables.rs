//! The columns of every Parquet table. Other programs read them, so names, types and order must change only on purpose.

use sam_ladder_formats::rows::{decode_batch, encode_rows};
use sam_ladder_schemas::sweep::{CurveRow, TrialRow};
use sam_ladder_schemas::tables::{
    CaseRow, ComparisonRow, EncoderRow, EpochRow, ResultRow, ScanRow, StepRow, SummaryRow, VariantRow,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// `name type`, with a question mark if cells may be empty.
fn columns<T: Serialize + DeserializeOwned>() -> String {
    let path = Path::new("table.parquet");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(path);
    std::fs::write(&file, encode_rows::<T>(path, &[]).unwrap()).unwrap();
    let schema = decode_batch(path, std::fs::File::open(&file).unwrap()).unwrap().schema();
    let column = |field: &arrow::datatypes::FieldRef| {
        format!("{} {}{}", field.name(), field.data_type(), if field.is_nullable() { "?" } else { "" })
    };
    schema.fields().iter().map(column).collect::<Vec<_>>().join(", ")
}

#[test]
fn every_table_has_the_columns_that_it_always_had() {
    assert_eq!(
        columns::<VariantRow>(),
        "variant UInt32, name Utf8, kind Utf8, k UInt8?, axis UInt8?, angle_degrees Int32?, probability Float64"
    );
    assert_eq!(
        columns::<ScanRow>(),
        "case Utf8, shape List(non-null UInt32, field: 'element'), affine List(non-null Float64, field: 'element')?, axis_codes Utf8?, axes List(non-null Int8, field: 'element'), \
         spacing_mm List(non-null Float64, field: 'element')?, spacing_source Utf8, percentiles List(non-null Float64, field: 'element'), \
         in_window List(non-null Float64, field: 'element')"
    );
    assert_eq!(
        columns::<StepRow>(),
        "step UInt64, epoch UInt32, lr Float64, loss Float32, ce Float32, dice Float32, alpha Float32, gate Float32"
    );
    assert_eq!(
        columns::<EpochRow>(),
        "epoch UInt32, steps UInt64, loss Float64, ce Float64, dice Float64, val_dice Float64?, val_hd95 Float64?, \
         gate Float32, seconds Float64"
    );
    assert_eq!(
        columns::<TrialRow>(),
        "trial Utf8, number UInt32, settings Utf8, status Utf8, reason Utf8?, rank UInt32?, dice Float64?, \
         dice_std Float64?, hd95 Float64?, hd95_std Float64?, runs UInt32, epochs UInt32, max_epochs UInt32, rung UInt32?, \
         failures UInt32, seconds Float64"
    );
    assert_eq!(
        columns::<CurveRow>(),
        "trial Utf8, seed UInt64, fold UInt32, epoch UInt32, loss Float64, val_dice Float64?, val_hd95 Float64?, \
         gate Float32, seconds Float64"
    );
    assert_eq!(
        columns::<CaseRow>(),
        "case Utf8, organ Utf8, dice Float64?, hd95 Float64?, reference_voxels UInt64, predicted_voxels UInt64, \
         hd95_voxels Float64?, hd95_mm Float64?, hd95_larger_voxels Float64?, hd95_larger_mm Float64?, \
         surface_dice Float64?, volume_difference_ml Float64?"
    );
    assert_eq!(
        columns::<SummaryRow>(),
        "organ Utf8, dice Float64?, hd95 Float64?, dice_cases UInt32, hd95_cases UInt32, missed UInt32, invented UInt32, \
         dice_sd Float64?, hd95_sd Float64?, dice_low Float64?, dice_high Float64?, hd95_low Float64?, hd95_high Float64?, \
         hd95_voxels Float64?, hd95_mm Float64?, hd95_larger_voxels Float64?, hd95_larger_mm Float64?, \
         surface_dice Float64?, volume_difference_ml Float64?"
    );
    assert_eq!(
        columns::<ResultRow>(),
        "method Utf8, organ Utf8, source Utf8?, seeds UInt32?, folds UInt32?, cases UInt32?, dice Float64?, dice_sd Float64?, \
         dice_low Float64?, dice_high Float64?, hd95 Float64?, hd95_sd Float64?, hd95_low Float64?, hd95_high Float64?, \
         missed UInt32?, invented UInt32?"
    );
    assert_eq!(
        columns::<EncoderRow>(),
        "name Utf8, store Utf8, encoder Utf8, channels UInt32, stride UInt32, image_size UInt32, store_bytes UInt64, \
         trained_parameters UInt64, seconds_per_epoch Float64?, seeds UInt32, folds UInt32, cases UInt32, dice Float64?, \
         dice_sd Float64?, hd95 Float64?, hd95_sd Float64?, dice_gain Float64?, dice_gain_low Float64?, dice_gain_high Float64?, \
         dice_wilcoxon_p Float64?, dice_permutation_p Float64?, hd95_change Float64?, hd95_change_low Float64?, \
         hd95_change_high Float64?, hd95_wilcoxon_p Float64?, hd95_permutation_p Float64?"
    );
    assert_eq!(
        columns::<ComparisonRow>(),
        "organ Utf8, metric Utf8, pairs UInt32, first Float64?, second Float64?, difference Float64?, \
         difference_low Float64?, difference_high Float64?, wilcoxon_p Float64?, permutation_p Float64?, \
         first_missed UInt32, first_invented UInt32, second_missed UInt32, second_invented UInt32"
    );
}
