//! The search space: grid points, random points, and which settings are active in a point.

use super::domain::{draw, grid_values};
use super::tpe::{self, Observed};
use crate::error::{Result, TrainError};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sam_ladder_schemas::setting::SettingError;
use sam_ladder_schemas::sweep::{Domain, SearchMethod, Setting, SweepConfig, trial_id};
use sam_ladder_schemas::train::TrainConfig;
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Most points of a grid without a budget of trials.
const LARGEST_GRID: usize = 100_000;
/// Draws after which a search gives up finding a new point.
const DRAWS: u64 = 200;

/// A point of the search space.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    /// Every active setting of the file, by name.
    pub(crate) settings: Map<String, Value>,
    /// See [`trial_id`].
    pub(crate) id: String,
}

impl Point {
    pub(crate) fn new(settings: Map<String, Value>) -> Self {
        Point { id: trial_id(&settings), settings }
    }

    /// The settings in which points differ.
    pub(crate) fn searched(&self, config: &SweepConfig) -> Map<String, Value> {
        let searched = config.searched().filter_map(|setting| self.settings.get_key_value(&setting.name));
        searched.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The point with these searched settings.
    pub(crate) fn of_searched(config: &SweepConfig, searched: &Map<String, Value>) -> Self {
        let mut settings = Map::new();
        for setting in &config.settings {
            match (&setting.domain, searched.get(&setting.name)) {
                (_, Some(value)) => settings.insert(setting.name.clone(), value.clone()),
                (Domain::Fixed(value), None) if setting.when.is_empty() => settings.insert(setting.name.clone(), value.clone()),
                (_, None) => None,
            };
        }
        Point::new(settings)
    }

    /// The settings of `train`; each run sets its own seed and validation cases.
    pub(crate) fn config(&self) -> std::result::Result<TrainConfig, SettingError> {
        TrainConfig::with(&self.settings)
    }
}

/// Whether a setting is active, given the earlier ones. An inactive setting satisfies no condition.
fn is_active(setting: &Setting, before: &Map<String, Value>) -> bool {
    setting.when.iter().all(|condition| before.get(&condition.setting).is_some_and(|value| condition.values.contains(value)))
}

/// The next points of a search.
pub(crate) struct Space<'a> {
    config: &'a SweepConfig,
    /// All points, if the method is a grid.
    grid: Vec<Point>,
}

impl<'a> Space<'a> {
    /// # Errors
    /// A grid with too many points.
    pub(crate) fn new(config: &'a SweepConfig) -> Result<Self> {
        let most = config.budget.trials.map_or(LARGEST_GRID, |trials| trials as usize);
        let mut grid = Vec::new();
        if config.search.method == SearchMethod::Grid {
            let mut seen = HashSet::new();
            fill_grid(&config.settings, &mut Map::new(), &mut |point| {
                if grid.len() < most && seen.insert(point.id.clone()) {
                    grid.push(point);
                }
                grid.len() < most
            });
            if config.budget.trials.is_none() && grid.len() == LARGEST_GRID {
                return Err(TrainError::GridTooLarge(LARGEST_GRID));
            }
        }
        Ok(Space { config, grid })
    }

    /// Number of points, if known in advance.
    pub(crate) fn known_size(&self) -> Option<usize> {
        match self.config.search.method {
            SearchMethod::Grid => Some(self.grid.len()),
            SearchMethod::Random | SearchMethod::Tpe => None,
        }
    }

    /// Point number `number`, not one of those `taken`; `observed` has all earlier trials, best first, those without a value last. `None` if
    /// no new point is found.
    pub(crate) fn point(&self, number: u32, taken: &HashSet<String>, observed: &[Observed<'_>]) -> Option<Point> {
        let search = &self.config.search;
        if search.method == SearchMethod::Grid {
            return self.grid.get(number as usize).cloned();
        }
        let follow = search.method == SearchMethod::Tpe && observed.len() >= search.startup as usize;
        // Each number has its own stream, so that no point depends on the number of draws for another one.
        let mut rng = ChaCha8Rng::seed_from_u64(search.seed);
        rng.set_stream(u64::from(number) + 1);
        (0..DRAWS).find_map(|draw| {
            // If the observations suggest no new point, draw at random.
            let point = if follow && draw < DRAWS / 2 { self.suggested(observed, &mut rng) } else { self.random(&mut rng) };
            (!taken.contains(&point.id)).then_some(point)
        })
    }

    fn random(&self, rng: &mut ChaCha8Rng) -> Point {
        self.build(|setting, _| draw(&setting.domain, rng))
    }

    fn suggested(&self, observed: &[Observed<'_>], rng: &mut ChaCha8Rng) -> Point {
        self.build(|setting, _| tpe::suggest(setting, observed, rng))
    }

    fn build(&self, mut value: impl FnMut(&Setting, &Map<String, Value>) -> Value) -> Point {
        let mut settings = Map::new();
        for setting in &self.config.settings {
            if is_active(setting, &settings) {
                let value = value(setting, &settings);
                settings.insert(setting.name.clone(), value);
            }
        }
        Point::new(settings)
    }
}

/// Calls `visit` with every combination until it returns false; returns whether all were visited.
fn fill_grid(settings: &[Setting], before: &mut Map<String, Value>, visit: &mut impl FnMut(Point) -> bool) -> bool {
    let Some((setting, rest)) = settings.split_first() else { return visit(Point::new(before.clone())) };
    if !is_active(setting, before) {
        return fill_grid(rest, before, visit);
    }
    for value in grid_values(&setting.domain) {
        before.insert(setting.name.clone(), value);
        if !fill_grid(rest, before, visit) {
            return false;
        }
    }
    before.remove(&setting.name);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use sam_ladder_schemas::sweep::parse_sweep;

    fn config(settings: &str, search: &str) -> SweepConfig {
        let text = format!(
            "[settings]\n{settings}\n[search]\nmethod = \"{search}\"\n[validation]\nfolds = 2\n[budget]\ntrials = 1000\n"
        );
        parse_sweep("s.toml", &text).unwrap()
    }

    fn points(config: &SweepConfig, count: u32) -> Vec<Point> {
        let space = Space::new(config).unwrap();
        let mut taken = HashSet::new();
        let mut points = Vec::new();
        for number in 0..count {
            let Some(point) = space.point(number, &taken, &[]) else { break };
            taken.insert(point.id.clone());
            points.push(point);
        }
        points
    }

    #[test]
    fn a_grid_is_every_combination_of_what_is_active() {
        let settings = "optimizer = [\"adamw\", \"sgd\"]\nlr = { min = 1e-4, max = 1e-2, scale = \"log\", points = 3 }\n\
            weight_decay = { values = [0.0, 0.1], when = { optimizer = \"adamw\" } }";
        let config = config(settings, "grid");
        let all = points(&config, 1000);
        assert_eq!(all.len(), 2 * 3 + 3);
        let lr: Vec<f64> = all.iter().map(|point| point.settings["lr"].as_f64().unwrap()).collect();
        assert_eq!(lr[..6], [1e-4, 1e-4, 1e-3, 1e-3, 1e-2, 1e-2]);
        assert!(all[6..].iter().all(|point| !point.settings.contains_key("weight_decay")));
        let default = all[8].config().unwrap().weight_decay;
        assert_eq!(default, TrainConfig::default().weight_decay);
        for point in &all {
            assert_eq!(Point::of_searched(&config, &point.searched(&config)), *point);
        }
    }

    #[test]
    fn random_points_lie_in_their_ranges_and_do_not_repeat() {
        let settings = "lr = { min = 1e-4, max = 1e-2, scale = \"log\" }\nwarmup = { min = 3, max = 7 }\nepochs = 5";
        let config = config(settings, "random");
        let all = points(&config, 400);
        assert_eq!(all, points(&config, 400));
        let below_1e3 = all.iter().filter(|point| point.settings["lr"].as_f64().unwrap() < 1e-3).count();
        assert!((160..240).contains(&below_1e3), "{below_1e3} of 400 in the lower half of the scale");
        for warmup in 3..=7u64 {
            let found = all.iter().filter(|point| point.settings["warmup"] == warmup).count();
            assert!((50..110).contains(&found), "warmup {warmup}: {found} of 400");
        }
        assert!(all.iter().all(|point| point.config().is_ok()));
    }

    #[test]
    fn a_space_without_new_points_ends() {
        let config = config("batch_size = [1, 2, 3]\nwarmup = { min = 0, max = 1 }", "random");
        assert_eq!(points(&config, 1000).len(), 6);
    }
}
