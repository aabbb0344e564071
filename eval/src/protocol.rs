//! The protocols, published and standard: the definition and unit of HD95, and the scores of an organ that a mask lacks.

use crate::dice::dice;
use crate::masks::Region;
use sam_ladder_schemas::eval::{DistanceUnit, EmptyRule, EvalSettings, Hd95Definition, Protocol};
use serde::{Deserialize, Serialize};

/// Dice and HD95 of a class by the rule for organs that a mask lacks. `measured` is the HD95 if both masks have the class,
/// `diagonal` the length of the scan's diagonal, in the same unit.
pub(crate) fn dice_and_hd95(
    rule: EmptyRule,
    region: &Region,
    measured: Option<f64>,
    diagonal: f64,
) -> (Option<f64>, Option<f64>) {
    match rule {
        EmptyRule::Published if region.predicted_voxels == 0 => (Some(0.0), Some(0.0)),
        EmptyRule::Published if region.reference_voxels == 0 => (Some(1.0), Some(0.0)),
        EmptyRule::Penalise if region.missed() || region.invented() => (Some(0.0), Some(diagonal)),
        _ => (dice(region), measured),
    }
}

/// How the columns `dice`, `hd95` and `surface_dice` are counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scoring {
    /// Unit of `hd95`.
    pub unit: DistanceUnit,
    /// Definition of `hd95`.
    pub hd95: Hd95Definition,
    /// Scores of an organ that a mask lacks.
    pub empty: EmptyRule,
    /// Tolerance of `surface_dice`, in millimetres.
    pub tolerance_mm: f64,
}

impl Scoring {
    /// The rules of a protocol.
    pub fn of(protocol: Protocol) -> Scoring {
        let (unit, empty) = match protocol {
            Protocol::Published => (DistanceUnit::Voxels, EmptyRule::Published),
            Protocol::Standard => (DistanceUnit::Millimetres, EmptyRule::LeaveOut),
        };
        let EvalSettings { hd95, tolerance_mm, .. } = EvalSettings::default();
        Scoring { unit, empty, hd95, tolerance_mm }
    }

    /// The protocol with these rules, if there is one; the tolerance is not part of a protocol.
    pub fn protocol(&self) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|&protocol| Scoring { tolerance_mm: self.tolerance_mm, ..Scoring::of(protocol) } == *self)
    }

    /// The rules by their names on the command line.
    pub(crate) fn options(&self) -> String {
        let (empty, hd95, unit) = (self.empty.name(), self.hd95.name(), self.unit.name());
        format!("{empty}, {hd95} HD95 in {unit}, tolerance {} mm", self.tolerance_mm)
    }

    /// Says how many organs were missed and invented, and that an HD of 0 was counted for them where it was.
    pub(crate) fn absent_organs(&self, missed: u32, invented: u32) -> String {
        let counts = format!("Missed organs: {missed}, invented: {invented}.");
        let which = match (missed, invented) {
            (0, 0) => return counts,
            (_, 0) => "each missed one",
            (0, _) => "each invented one",
            _ => "each missed and each invented one",
        };
        match self.empty {
            EmptyRule::Published => format!("{counts} For {which} an HD of 0 was counted, the best value there is."),
            EmptyRule::LeaveOut => format!("{counts} The HD of {which} is left out."),
            EmptyRule::Penalise => format!("{counts} For {which} the scan's diagonal was counted as HD."),
        }
    }

    /// One sentence that says what `dice` and `hd95` are.
    pub fn describe(&self) -> String {
        let percentile = match self.hd95 {
            Hd95Definition::Pooled => "the 95th percentile of the surface distances of both directions in one list (MedPy)",
            Hd95Definition::Larger => "the larger of the two directions' 95th percentiles of the surface distances (MONAI)",
        };
        let rule = match self.empty {
            EmptyRule::Published => {
                "an organ without prediction counts DSC 0 and HD 0, a prediction without reference DSC 100 and HD 0"
            }
            EmptyRule::LeaveOut => {
                "DSC is undefined if both masks are empty, HD if either is; undefined values are left out, and the counts say how many \
                 cases a mean is over"
            }
            EmptyRule::Penalise => {
                "a missed or invented organ counts DSC 0 and, as HD, the scan's diagonal; an organ in neither mask is left out"
            }
        };
        format!("DSC is Dice in percent, HD is HD95 in {}, {percentile}; {rule}", self.unit.name())
    }
}

impl From<Protocol> for Scoring {
    fn from(protocol: Protocol) -> Scoring {
        Scoring::of(protocol)
    }
}

impl From<&EvalSettings> for Scoring {
    /// The protocol's rules, but for those that are set.
    fn from(settings: &EvalSettings) -> Scoring {
        let protocol = Scoring::of(settings.protocol);
        Scoring {
            unit: settings.unit.unwrap_or(protocol.unit),
            hd95: settings.hd95,
            empty: settings.empty.unwrap_or(protocol.empty),
            tolerance_mm: settings.tolerance_mm,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hd_of_0_for_a_missed_organ_is_said() {
        let of = |empty, missed, invented| Scoring { empty, ..Scoring::of(Protocol::Published) }.absent_organs(missed, invented);
        assert_eq!(
            of(EmptyRule::Published, 3, 0),
            "Missed organs: 3, invented: 0. For each missed one an HD of 0 was counted, the best value there is."
        );
        assert!(of(EmptyRule::Published, 1, 2).contains("For each missed and each invented one an HD of 0"));
        assert_eq!(of(EmptyRule::Published, 0, 0), "Missed organs: 0, invented: 0.");
        assert!(of(EmptyRule::LeaveOut, 0, 1).ends_with("The HD of each invented one is left out."));
        assert!(of(EmptyRule::Penalise, 1, 0).contains("diagonal") && !of(EmptyRule::Penalise, 1, 0).contains("HD of 0"));
    }

    #[test]
    fn rules_of_a_protocol_are_known_by_its_name() {
        assert_eq!(Scoring::from(&EvalSettings::default()).protocol(), Some(Protocol::Published));
        let standard = EvalSettings { protocol: Protocol::Standard, tolerance_mm: 1.0, ..EvalSettings::default() };
        assert_eq!(Scoring::from(&standard).protocol(), Some(Protocol::Standard));
        let other = EvalSettings { empty: Some(EmptyRule::Penalise), ..standard };
        assert_eq!(Scoring::from(&other).protocol(), None);
        assert_eq!(Scoring::from(&other).options(), "penalise, pooled HD95 in mm, tolerance 1 mm");
    }
}
