//! Tree-structured Parzen estimators: Bergstra, Bardenet, Bengio and Kégl, "Algorithms for Hyper-Parameter Optimization", NIPS 2011, section 4.
//!
//! The best fraction γ of the trials so far and the others each give a density of a setting's values, l and g. The next value is the one
//! with the highest l/g among some draws from l, which by the paper's equation (7) has the highest expected improvement. Settings are
//! treated one by one, in the file's order; a setting that depends on another one uses only the trials in which it was active (the "tree").
//!
//! Not taken from a crate, because a suggestion must depend only on the recorded trials and the seed: the available crates keep their own
//! state, to which values are added one by one, and support neither running nor pruned trials.

use super::domain::{at, place};
use crate::run::{below, unit};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sam_ladder_schemas::sweep::{Domain, Setting};
use serde_json::{Map, Value};

/// γ: share of the trials that count as good. The paper has 15 %; 10 % found the minimum of test functions sooner in sweeps of 20 to 40
/// trials.
const GOOD_SHARE: f64 = 0.1;
/// Smallest width of one of n bumps, times n + 1, as a part of the range: the paper clips the widths "to remain in a reasonable range".
const NARROWEST: f64 = 0.25;
/// Draws from l for each suggestion; the paper's experiments take dozens.
const CANDIDATES: usize = 24;

/// An earlier trial, for TPE.
pub(crate) struct Observed<'a> {
    /// Its settings.
    pub(crate) settings: &'a Map<String, Value>,
    /// Whether it has a value. A running trial has none and counts among the worse ones, so that its neighbourhood is not drawn again at once.
    pub(crate) has_value: bool,
}

/// The next value of a setting; `observed` is sorted best first, trials without a value last.
pub(super) fn suggest(setting: &Setting, observed: &[Observed<'_>], rng: &mut ChaCha8Rng) -> Value {
    let measured = observed.iter().filter(|trial| trial.has_value).count();
    let good = ((GOOD_SHARE * measured as f64).ceil() as usize).max(1).min(observed.len());
    let values = |of: &[Observed<'_>]| -> Vec<Value> {
        of.iter().filter_map(|trial| trial.settings.get(&setting.name)).cloned().collect()
    };
    let (good, bad) = (values(&observed[..good]), values(&observed[good..]));
    match &setting.domain {
        Domain::Fixed(value) => value.clone(),
        Domain::List(choices) => {
            let (l, g) = (Shares::new(choices, &good), Shares::new(choices, &bad));
            let candidates = (0..CANDIDATES).map(|_| l.draw(rng));
            let score = |choice: usize| (l.0[choice] / g.0[choice]).ln();
            choices[best(candidates, score).unwrap_or(0)].clone()
        }
        range @ Domain::Range { .. } => {
            let places = |values: &[Value]| values.iter().map(|value| place(range, value)).collect();
            let (l, g) = (Parzen::new(places(&good)), Parzen::new(places(&bad)));
            let candidates = (0..CANDIDATES).map(|_| l.draw(rng));
            let score = |place: f64| (l.density(place) / g.density(place)).ln();
            at(range, best(candidates, score).unwrap_or(0.5))
        }
    }
}

/// The candidate with the highest score, the first in a tie.
fn best<C: Copy>(candidates: impl Iterator<Item = C>, score: impl Fn(C) -> f64) -> Option<C> {
    let mut best: Option<(C, f64)> = None;
    for candidate in candidates {
        let score = score(candidate);
        if best.is_none_or(|(_, high)| score > high) {
            best = Some((candidate, score));
        }
    }
    best.map(|(candidate, _)| candidate)
}

/// Probabilities of a list's values: how often each was seen, plus one.
struct Shares(Vec<f64>);

impl Shares {
    fn new(choices: &[Value], seen: &[Value]) -> Self {
        let count = |choice: &Value| 1.0 + seen.iter().filter(|value| *value == choice).count() as f64;
        let total = (choices.len() + seen.len()) as f64;
        Shares(choices.iter().map(|choice| count(choice) / total).collect())
    }

    fn draw(&self, rng: &mut ChaCha8Rng) -> usize {
        let mut at = unit(rng);
        for (choice, share) in self.0.iter().enumerate() {
            at -= share;
            if at < 0.0 {
                return choice;
            }
        }
        self.0.len() - 1
    }
}

/// A mixture of normal distributions truncated to [0, 1]: one around each observed place, as wide as the distance to its farther
/// neighbour, and one over the whole range.
struct Parzen(Vec<Bump>);

#[derive(Clone, Copy)]
struct Bump {
    mean: f64,
    sigma: f64,
    /// Its mass within [0, 1].
    mass: f64,
}

impl Bump {
    fn new(mean: f64, sigma: f64) -> Self {
        let below = |x: f64| 0.5 * (1.0 + libm::erf((x - mean) / (sigma * std::f64::consts::SQRT_2)));
        Bump { mean, sigma, mass: below(1.0) - below(0.0) }
    }

    fn density(self, x: f64) -> f64 {
        let z = (x - self.mean) / self.sigma;
        (-0.5 * z * z).exp() / (self.sigma * (2.0 * std::f64::consts::PI).sqrt() * self.mass)
    }
}

impl Parzen {
    fn new(mut places: Vec<f64>) -> Self {
        places.sort_by(f64::total_cmp);
        let narrowest = NARROWEST / (places.len() as f64 + 1.0);
        let bump = |i: usize| {
            let here = places[i];
            // Places at the ends have one neighbour; a single place gets the width of the range.
            let left = i.checked_sub(1).map(|left| here - places[left]);
            let right = places.get(i + 1).map(|right| right - here);
            let width = left.into_iter().chain(right).reduce(f64::max).unwrap_or(1.0);
            Bump::new(here, width.clamp(narrowest, 1.0))
        };
        let mut bumps: Vec<Bump> = (0..places.len()).map(bump).collect();
        bumps.push(Bump::new(0.5, 1.0));
        Parzen(bumps)
    }

    fn density(&self, place: f64) -> f64 {
        self.0.iter().map(|bump| bump.density(place)).sum::<f64>() / self.0.len() as f64
    }

    fn draw(&self, rng: &mut ChaCha8Rng) -> f64 {
        let bump = self.0[below(self.0.len() as u64, rng) as usize];
        // Means lie within [0, 1] and no bump is wider, so at least a third of each lies within.
        loop {
            let normal: f64 = StandardNormal.sample(rng);
            let place = bump.mean + bump.sigma * normal;
            if (0.0..=1.0).contains(&place) {
                return place;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::space::{Point, Space};
    use super::*;
    use rand::SeedableRng;
    use sam_ladder_schemas::sweep::parse_sweep;
    use std::collections::HashSet;

    #[test]
    fn a_mixture_integrates_to_one_and_draws_by_its_density() {
        let parzen = Parzen::new(vec![0.1, 0.15, 0.9]);
        let steps = 20_000;
        let sum: f64 = (0..steps).map(|i| parzen.density((i as f64 + 0.5) / steps as f64)).sum::<f64>() / steps as f64;
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let draws: Vec<f64> = (0..20_000).map(|_| parzen.draw(&mut rng)).collect();
        let below = draws.iter().filter(|&&place| place < 0.3).count() as f64 / draws.len() as f64;
        let mass: f64 = (0..steps).map(|i| (i as f64 + 0.5) / steps as f64).filter(|&x| x < 0.3).map(|x| parzen.density(x)).sum();
        assert!((below - mass / steps as f64).abs() < 0.02, "{below} {}", mass / steps as f64);
    }

    /// Lowest loss of 40 trials; the loss is a bowl with its minimum at lr 2e-3, lambda 0.7, optimizer adam.
    fn search(method: &str, seed: u64) -> f64 {
        let text = format!(
            "[settings]\nlr = {{ min = 1e-5, max = 1e-1, scale = \"log\" }}\nlambda = {{ min = 0.0, max = 1.0 }}\n\
             optimizer = [\"sgd\", \"adam\", \"adamw\"]\n[search]\nmethod = \"{method}\"\nseed = {seed}\n[validation]\nfolds = 2\n[budget]\ntrials = 40\n"
        );
        let config = parse_sweep("s.toml", &text).unwrap();
        let space = Space::new(&config).unwrap();
        let loss = |point: &Point| {
            let lr = (point.settings["lr"].as_f64().unwrap() / 2e-3).log10() / 4.0;
            let lambda = point.settings["lambda"].as_f64().unwrap() - 0.7;
            lr * lr + lambda * lambda + if point.settings["optimizer"] == "adam" { 0.0 } else { 0.05 }
        };
        let mut trials: Vec<(Point, f64)> = Vec::new();
        let mut taken = HashSet::new();
        for number in 0..40 {
            trials.sort_by(|left, right| left.1.total_cmp(&right.1));
            let observed: Vec<Observed<'_>> =
                trials.iter().map(|(point, _)| Observed { settings: &point.settings, has_value: true }).collect();
            let point = space.point(number, &taken, &observed).unwrap();
            taken.insert(point.id.clone());
            let loss = loss(&point);
            trials.push((point, loss));
        }
        trials.iter().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn it_finds_the_bottom_of_a_bowl_sooner_than_chance() {
        let mean = |method: &str| (0..20).map(|seed| search(method, seed)).sum::<f64>() / 20.0;
        let (tpe, random) = (mean("tpe"), mean("random"));
        assert!(tpe < 0.5 * random, "TPE {tpe}, random {random}");
        assert_eq!(search("tpe", 3), search("tpe", 3));
    }
}
