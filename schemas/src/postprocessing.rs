//! What is done to a run's masks after the arg-max, as it was chosen on the cases that the run held out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// File of a run's folder with its [`Postprocessing`].
pub const POSTPROCESSING: &str = "postprocessing.json";

/// What is done to the masks of one organ, in this order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrganRule {
    /// The organ, as in the store.
    pub organ: String,
    /// Only the largest component is kept. Voxels that touch by a face, an edge or a corner are of one component.
    pub largest_component: bool,
    /// Components of fewer voxels are removed; 0 for none.
    pub smallest_voxels: u64,
    /// Background that the organ encloses, so that no path by faces leads out of it to the scan's border, becomes the organ.
    pub fill_holes: bool,
    /// Mean Dice over the cases without this; `None` if no case has the organ.
    pub dice_before: Option<f64>,
    /// Mean Dice with it.
    pub dice_after: Option<f64>,
}

impl OrganRule {
    /// Whether it changes nothing.
    pub fn is_nothing(&self) -> bool {
        !self.largest_component && self.smallest_voxels == 0 && !self.fill_holes
    }
}

/// The content of [`POSTPROCESSING`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Postprocessing {
    /// Name, version and commit of the program that chose it.
    pub program: String,
    /// SHA-256 of the model's file whose masks it was chosen on, in hexadecimal.
    pub model_sha256: String,
    /// The held-out training cases that it was chosen on.
    pub cases: Vec<String>,
    /// A rule per organ, in the order of the classes from 1.
    pub organs: Vec<OrganRule>,
}
