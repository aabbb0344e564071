//! The layout of a store, known before anything is written: its attributes, its cases, and the rows of each case.

use crate::arrays::{ArrayKind, ArraySpec};
use crate::error::{Error, Result};
use crate::rung_sample;
use sam_ladder_schemas::classes::Split;
use sam_ladder_schemas::store::{CaseLayout, StoreAttributes};
use sam_ladder_schemas::tables::VariantRow;
use sam_ladder_schemas::variants::{Variant, variants};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Most slices of a store. A manifest that claims more is damaged, and nothing is allocated for it.
const MAX_SLICES: usize = 1 << 22;

/// Everything that determines a store's shape.
#[derive(Debug, Clone)]
pub struct StoreLayout {
    attributes: StoreAttributes,
    cases: Vec<(CaseLayout, Range<usize>)>,
}

impl StoreLayout {
    /// The layout of a new store: orders the rows within each split by case name, then by slice.
    ///
    /// # Errors
    /// [`Error::Values`] for a case that occurs twice, has no slices, or has a name that cannot be a folder's, and for more slices than any
    /// store has.
    pub fn new(attributes: StoreAttributes, mut cases: Vec<CaseLayout>) -> Result<Self> {
        cases.sort_by(|a, b| (a.split, &a.case).cmp(&(b.split, &b.case)));
        let sample = rung_sample::choose(&attributes.config, &cases);
        Self::in_order(attributes.with_rung_sample(sample), cases)
    }

    /// The layout whose rows have the order of `cases`.
    fn in_order(attributes: StoreAttributes, cases: Vec<CaseLayout>) -> Result<Self> {
        let refuse = |case: &CaseLayout, reason: &str| Error::Values {
            what: format!("{} case {:?}", case.split, case.case),
            reason: reason.into(),
        };
        let mut names = HashSet::new();
        if let Some(case) = cases.iter().find(|case| !names.insert((case.split as usize, &case.case))) {
            return Err(refuse(case, "there are two scans of that name"));
        }
        let mut next = [0usize; 2];
        let mut laid_out = Vec::with_capacity(cases.len());
        for case in cases {
            if case.num_slices == 0 {
                return Err(refuse(&case, "it has no slices"));
            }
            if case.case.is_empty() || case.case.starts_with('.') || case.case.contains(['/', '\\']) {
                return Err(refuse(&case, "its name cannot be that of a folder"));
            }
            let first = &mut next[case.split as usize];
            let Some(end) = first.checked_add(case.num_slices).filter(|&end| end <= MAX_SLICES) else {
                let reason = format!("it has {} slices, and a store at most {MAX_SLICES}", case.num_slices);
                return Err(refuse(&case, &reason));
            };
            let rows = *first..end;
            *first = rows.end;
            laid_out.push((case, rows));
        }
        let cases = laid_out.iter().map(|(case, _)| case.clone()).collect();
        Ok(StoreLayout { attributes: attributes.with_cases(cases), cases: laid_out })
    }

    /// The layout of a store with these attributes, whose cases are in the order of its rows.
    ///
    /// # Errors
    /// As [`Self::new`], and for a sample of slices that the store lacks.
    pub fn of(attributes: &StoreAttributes) -> Result<Self> {
        if let Some(lost) = rung_sample::lost(attributes) {
            let what = format!("slice {} of train case {:?}", lost.slice, lost.case);
            return Err(Error::Values { what, reason: "the rungs' projection is made of it, and the store lacks it".into() });
        }
        Self::in_order(attributes.unfinished(), attributes.cases.clone())
    }

    /// The same cases in the order that a store has them in: what `found` has comes first, in its order, then what it lacks, by name. A case
    /// whose number of slices differs counts as another. The rungs' projection stays that of the store, if its cases are still there.
    ///
    /// # Errors
    /// None in practice; as [`Self::new`].
    pub(crate) fn arranged_as(&self, found: &StoreAttributes) -> Result<Self> {
        let size = |case: &CaseLayout| (case.split as usize, case.case.clone(), case.num_slices);
        let mut left: HashMap<_, CaseLayout> = self.attributes.cases.iter().map(|case| (size(case), case.clone())).collect();
        let mut cases: Vec<CaseLayout> = found.cases.iter().filter_map(|case| left.remove(&size(case))).collect();
        cases.extend(self.attributes.cases.iter().filter_map(|case| left.remove(&size(case))));
        // Stable: keeps the order within each split.
        cases.sort_by_key(|case| case.split);
        let keeps = rung_sample::is_still_there(found, &self.attributes);
        let sample = if keeps { &found.rung_sample } else { &self.attributes.rung_sample };
        Self::in_order(self.attributes.clone().with_rung_sample(sample.clone()), cases)
    }

    /// The store's attributes, with `complete: false`.
    pub fn attributes(&self) -> &StoreAttributes {
        &self.attributes
    }

    /// Number of cases in both splits.
    pub fn num_cases(&self) -> usize {
        self.cases.len()
    }

    /// Number of slices of a split.
    pub fn num_slices(&self, split: Split) -> usize {
        self.cases_of(split).map(|(case, _)| case.num_slices).sum()
    }

    /// Variants of each slice of a split, by index.
    pub fn variants(&self, split: Split) -> Vec<Variant> {
        let config = &self.attributes.config;
        match split {
            Split::Train => config.train_variants(),
            Split::Test => variants(config.test_augment, 1),
        }
    }

    /// Rows of `variants.parquet`: the training variants.
    pub(crate) fn variant_rows(&self) -> Vec<VariantRow> {
        self.variants(Split::Train).iter().enumerate().map(|(index, variant)| VariantRow::new(index, variant)).collect()
    }

    /// Number of [`Self::variants`].
    pub fn num_variants(&self, split: Split) -> usize {
        self.variants(split).len()
    }

    /// Items of each array: slices times variants, summed over both splits.
    pub fn num_items(&self) -> usize {
        Split::ALL.into_iter().map(|split| self.num_slices(split) * self.num_variants(split)).sum()
    }

    /// Uncompressed bytes of all tensors.
    pub fn num_bytes(&self) -> u64 {
        let kinds = ArrayKind::all(&self.attributes.config).into_iter();
        let item: usize = kinds.map(|kind| self.array(Split::Train, kind).chunk_bytes()).sum();
        self.num_items() as u64 * item as u64
    }

    /// Rows of a case.
    ///
    /// # Errors
    /// [`Error::Values`] when the layout has no such case.
    pub fn case_rows(&self, split: Split, case: &str) -> Result<Range<usize>> {
        self.cases_of(split).find(|(laid_out, _)| laid_out.case == case).map(|(_, rows)| rows.clone()).ok_or_else(|| {
            Error::Values { what: format!("{split} case {case:?}"), reason: "it is not in the store's layout".into() }
        })
    }

    /// One of a split's arrays.
    pub(crate) fn array(&self, split: Split, kind: ArrayKind) -> ArraySpec {
        ArraySpec::of_split(&self.attributes.config, split, kind, [self.num_slices(split), self.num_variants(split)])
    }

    /// The case that a row belongs to, and the slice within it.
    pub(crate) fn slice_of(&self, split: Split, row: usize) -> Option<(&CaseLayout, usize)> {
        self.cases_of(split).find(|(_, rows)| rows.contains(&row)).map(|(case, rows)| (case, row - rows.start))
    }

    /// The cases of a split with their rows, in the rows' order.
    pub fn cases(&self, split: Split) -> impl Iterator<Item = (&CaseLayout, Range<usize>)> {
        self.cases_of(split).map(|(case, rows)| (case, rows.clone()))
    }

    pub(crate) fn cases_of(&self, split: Split) -> impl Iterator<Item = &(CaseLayout, Range<usize>)> {
        self.cases.iter().filter(move |(case, _)| case.split == split)
    }
}
