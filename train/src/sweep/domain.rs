//! Values of a setting's domain: grid values, random values, and the relative position of a value in its range.

use crate::run::{below, unit};
use rand_chacha::ChaCha8Rng;
use sam_ladder_schemas::sweep::{Domain, Scale};
use serde_json::Value;

/// The values of a domain in a grid.
pub(super) fn grid_values(domain: &Domain) -> Vec<Value> {
    match domain {
        Domain::Fixed(value) => vec![value.clone()],
        Domain::List(values) => values.clone(),
        Domain::Range { min, max, points, .. } => {
            let points = points.map_or((max - min) as usize + 1, |points| points as usize);
            let mut values: Vec<Value> = (0..points).map(|i| at(domain, i as f64 / (points - 1) as f64)).collect();
            values.dedup();
            values
        }
    }
}

/// A random value, uniform on the domain's scale.
pub(super) fn draw(domain: &Domain, rng: &mut ChaCha8Rng) -> Value {
    match domain {
        Domain::Fixed(value) => value.clone(),
        Domain::List(values) => values[below(values.len() as u64, rng) as usize].clone(),
        Domain::Range { min, max, scale: Scale::Linear | Scale::Integer, integer: true, .. } => {
            number(min + below((max - min) as u64 + 1, rng) as f64, true)
        }
        Domain::Range { .. } => at(domain, unit(rng)),
    }
}

/// The value at the relative position `place` in [0, 1] of a range on its scale, rounded to six digits or to a whole number.
pub(super) fn at(domain: &Domain, place: f64) -> Value {
    let Domain::Range { min, max, scale, integer, .. } = domain else { return Value::Null };
    let value = match scale {
        Scale::Log => (min.ln() + place * (max.ln() - min.ln())).exp(),
        Scale::Linear | Scale::Integer => min + place * (max - min),
    };
    let value = if *integer { value.round() } else { six_digits(value) };
    number(value.clamp(*min, *max), *integer)
}

/// Relative position in [0, 1] of a value in its range; 0 if it is not a number.
pub(super) fn place(domain: &Domain, value: &Value) -> f64 {
    let (Domain::Range { min, max, scale, .. }, Some(value)) = (domain, value.as_f64()) else { return 0.0 };
    match scale {
        Scale::Log => (value.ln() - min.ln()) / (max.ln() - min.ln()),
        Scale::Linear | Scale::Integer => (value - min) / (max - min),
    }
}

/// A number as JSON, an integer if the setting takes whole numbers.
fn number(value: f64, integer: bool) -> Value {
    if integer && value >= 0.0 { Value::from(value as u64) } else { Value::from(value) }
}

fn six_digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}
