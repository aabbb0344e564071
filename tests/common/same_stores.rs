//! Stores compared by what they say of each case, whatever the order of their rows.
#![allow(dead_code)] // each test binary compiles this file anew and uses only a part of it

use crate::folders::{assert_same_files, files};
use crate::stage_one::{Formula, fill, fill_failing, fill_whole};
use sam_ladder_cache::{Batch, Error, ReferenceMask, Store};
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::precompute::PrecomputeConfig;
use std::path::Path;

/// Makes stores of `folder/scans` in it: `whole.zarr` at once, `resumed.zarr` after an interruption, `shared.zarr` by three workers. Asserts that
/// they have the same bytes, and that `shared.zarr` has those of one made at once when `more` variants are added to it.
pub fn assert_filled_alike(folder: &Path, config: &PrecomputeConfig, more: &PrecomputeConfig) {
    let (scans, at) = (folder.join("scans"), |name: &str| folder.join(name));
    fill_whole(&scans, &at("whole.zarr"), config);
    let expected = files(&at("whole.zarr"));
    fill_failing(&scans, &at("resumed.zarr"), config, 9);
    fill_whole(&scans, &at("resumed.zarr"), config);
    assert_same_files(&at("resumed.zarr"), &expected, "interrupted");
    for share in ["3/3", "1/3", "2/3", "3/3"] {
        fill(&scans, &at("shared.zarr"), config, share, Formula::default()).unwrap();
    }
    assert_same_files(&at("shared.zarr"), &expected, "three workers");
    fill_whole(&scans, &at("shared.zarr"), more);
    fill_whole(&scans, &at("more.zarr"), more);
    assert_same_files(&at("shared.zarr"), &files(&at("more.zarr")), "more variants");
}

/// Asserts that two stores hold the same slices, tensors and masks of the same cases.
pub fn assert_same_content(found: &Path, expected: &Path, what: &str) {
    let [found, expected] = [found, expected].map(|path| Store::open(path).unwrap());
    assert_eq!(found.attributes().cache_id, expected.attributes().cache_id, "{what}");
    for split in Split::ALL {
        assert_eq!(found.cases(split), expected.cases(split), "{what}");
        assert_eq!(found.variants(split), expected.variants(split), "{what}");
        for case in expected.cases(split) {
            let rows = [&found, &expected].map(|store| store.case_rows(split, &case).unwrap());
            assert_eq!(rows[0].len(), rows[1].len(), "{what}: {case}");
            for (here, there) in rows[0].clone().zip(rows[1].clone()) {
                let mut slice = found.slices(split)[here as usize].clone();
                slice.row = there;
                assert_eq!(slice, expected.slices(split)[there as usize], "{what}");
                for variant in 0..expected.variants(split).len() as u32 {
                    let [a, b] = [(&found, here), (&expected, there)].map(|(store, row)| {
                        let mut batch = Batch::default();
                        store.read_batch(split, &[(row, variant)], &mut batch).unwrap();
                        batch
                    });
                    assert!(a == b, "{what}: {split} case {case}, row {here}, variant {variant}");
                }
            }
            assert_eq!(found.mask(split, &case).unwrap(), expected.mask(split, &case).unwrap(), "{what}: {case}");
        }
    }
}

/// Every item, by split and variant, and the masks.
pub fn read_all(store: &Store) -> Result<(Vec<Batch>, Vec<ReferenceMask>), Error> {
    let mut batches = Vec::new();
    for split in Split::ALL {
        for variant in 0..store.variants(split).len() as u32 {
            let picks: Vec<(u32, u32)> = (0..store.slices(split).len() as u32).map(|row| (row, variant)).collect();
            let mut batch = Batch::default();
            store.read_batch(split, &picks, &mut batch)?;
            batches.push(batch);
        }
    }
    let cases = Split::ALL.into_iter().flat_map(|split| store.cases(split).into_iter().map(move |case| (split, case)));
    let masks = cases.map(|(split, case)| store.mask(split, &case)).collect::<Result<_, _>>()?;
    Ok((batches, masks))
}
