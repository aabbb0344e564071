//! Mending a damaged store from the sources that it was made of.

use super::encode::Encode;
use super::fill::{FillOptions, Summary, fill_part};
use super::lazy::Loaded;
use super::plan::Plan;
use crate::error::{Error, Result};
use sam_ladder_cache::{CaseLayout, VerifyReport, begin_repair};
use sam_ladder_schemas::differences::differences;
use sam_ladder_schemas::store::StoreAttributes;
use std::path::Path;

/// Recomputes what a report says is damaged, and nothing else. `plan` is called when something has to be made from the scans,
/// `load` when something has to be encoded or the decoder's weights are damaged.
///
/// `None` when all that was damaged follows from the manifest.
///
/// # Errors
/// When scans have changed since the store was made (nothing is touched then), and as [`super::run`]. The same call resumes an interrupted
/// repair, and so does `precompute` with the store's settings.
pub fn repair<E: Encode>(
    store: &Path,
    report: &VerifyReport,
    options: &FillOptions,
    plan: impl FnOnce() -> Result<Plan>,
    load: impl FnOnce() -> Result<Loaded<E>>,
) -> Result<Option<Summary>> {
    if report.attributes.complete && !report.damage.iter().any(|damage| damage.part.needs_sources()) {
        begin_repair(store, report)?;
        return Ok(None);
    }
    let plan = plan()?;
    check_sources(store, report, &plan)?;
    if report.attributes.complete {
        begin_repair(store, report)?;
    }
    fill_part(&plan, store, options, load).map(Some)
}

/// The scans must be those that the store was made of.
fn check_sources(store: &Path, report: &VerifyReport, plan: &Plan) -> Result<()> {
    let (found, wanted) = (&report.attributes, plan.layout().attributes());
    let identity = |a: &StoreAttributes| {
        // The rows of a store that grew have another order than those of a new one.
        let mut cases: Vec<&CaseLayout> = a.cases.iter().collect();
        cases.sort_by(|a, b| (a.split, &a.case).cmp(&(b.split, &b.case)));
        serde_json::json!({ "config": a.config, "sources": a.sources, "cases": cases })
    };
    let differing = differences(&identity(found), "store", &identity(wanted), "scans");
    if differing.is_empty() {
        return Ok(());
    }
    Err(Error::OtherScans { store: store.into(), differing })
}
