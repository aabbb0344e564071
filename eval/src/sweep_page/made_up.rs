//! Records made up by a rule, for the tests.

use sam_ladder_schemas::sweep::{
    Budget, CurveRow, Domain, Objective, Pruning, Scale, Search, SearchMethod, Setting, SweepConfig, TrialRow, TrialStatus,
    Validation,
};

pub(super) fn setting(name: &str, domain: Domain) -> Setting {
    Setting { name: name.into(), domain, when: vec![] }
}

/// lr on a logarithmic range, λ on a linear one.
pub(super) fn config() -> SweepConfig {
    let range = |min, max, scale| Domain::Range { min, max, scale, integer: false, points: None };
    SweepConfig {
        settings: vec![
            setting("lr", range(1e-5, 1e-1, Scale::Log)),
            setting("lambda", range(0.0, 1.0, Scale::Linear)),
            setting("epochs", Domain::Fixed(8.into())),
        ],
        search: Search { method: SearchMethod::Random, seed: 1, startup: 8 },
        pruning: Pruning::None,
        objectives: vec![Objective::Dice],
        validation: Validation::Fold(1, 3),
        group_by: None,
        seeds: vec![1],
        budget: Budget { trials: Some(12), epochs: None, hours: None },
        retries: 1,
    }
}

/// A finished trial whose Dice falls with its number: 0.9 - number/100.
pub(super) fn row(number: u32, rank: Option<u32>) -> TrialRow {
    TrialRow {
        trial: format!("{number:012x}"),
        number,
        settings: format!(r#"{{"lr":{},"lambda":{}}}"#, 1e-4 * f64::from(number + 1), 0.05 * f64::from(number % 20)),
        status: TrialStatus::Finished,
        reason: None,
        rank,
        dice: Some(0.9 - f64::from(number) / 100.0),
        dice_std: None,
        hd95: None,
        hd95_std: None,
        runs: 1,
        epochs: 4,
        max_epochs: 4,
        rung: None,
        failures: 0,
        seconds: 1.5,
    }
}

pub(super) fn curve(trial: u32, seed: u64, epoch: u32, dice: f64) -> CurveRow {
    let trial = format!("{trial:012x}");
    CurveRow { trial, seed, fold: 1, epoch, loss: 1.0 - dice, val_dice: Some(dice), val_hd95: None, gate: 0.5, seconds: 0.3 }
}
