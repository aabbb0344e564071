//! The organs of every table in the order of the paper's Table I; its headings stand only in tables of its form.

use crate::summary::MEAN;
use sam_ladder_schemas::classes::SYNAPSE_ORGANS;

/// Headings of the paper's Table I, in its order, and their organs.
const PAPER_COLUMNS: [(&str, &str); 8] = [
    ("Aorta", "aorta"),
    ("Gallbladder", "gallbladder"),
    ("Kidney(L)", "left kidney"),
    ("Kidney(R)", "right kidney"),
    ("Liver", "liver"),
    ("Pancreas", "pancreas"),
    ("Spleen", "spleen"),
    ("Stomach", "stomach"),
];

/// An organ's column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OrganColumn {
    /// The column's heading.
    pub heading: String,
    /// The organ's name in the store.
    pub organ: String,
}

/// The organs' columns: the paper's for the eight Synapse organs (named in any order), otherwise the organs as named.
pub(crate) fn organ_columns(class_names: &[String]) -> Vec<OrganColumn> {
    let is_synapse = class_names.len() == SYNAPSE_ORGANS.len()
        && SYNAPSE_ORGANS.iter().all(|organ| class_names.iter().any(|name| name == organ));
    if is_synapse {
        PAPER_COLUMNS.iter().map(|&(heading, organ)| OrganColumn { heading: heading.into(), organ: organ.into() }).collect()
    } else {
        class_names.iter().map(|name| OrganColumn { heading: name.clone(), organ: name.clone() }).collect()
    }
}

/// The rows of a table: the mean over the organs, then the organs by their names in the store.
pub(crate) fn with_mean(columns: &[OrganColumn]) -> impl Iterator<Item = &str> {
    std::iter::once(MEAN).chain(columns.iter().map(|column| &*column.organ))
}
