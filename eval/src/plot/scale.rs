//! Scales: from values to positions on an axis, and the round values along it.

/// Kind of an axis' scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScaleKind {
    /// Linear: equal differences have equal lengths.
    #[default]
    Linear,
    /// Logarithmic: equal ratios have equal lengths. Only positive values are drawn.
    Log,
}

/// A scale over `low..=high`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AxisScale {
    kind: ScaleKind,
    low: f64,
    high: f64,
}

impl AxisScale {
    /// A scale over exactly these limits. If they are not a range (equal, reversed, not finite, or not positive on a logarithmic scale), a
    /// scale over a range that contains the valid ones.
    pub fn new(kind: ScaleKind, low: f64, high: f64) -> AxisScale {
        let sound = |value: f64| value.is_finite() && (kind == ScaleKind::Linear || value > 0.0);
        let (low, high) = match (sound(low), sound(high)) {
            (true, true) => (low.min(high), low.max(high)),
            (true, false) => (low, low),
            (false, true) => (high, high),
            (false, false) => (1.0, 1.0),
        };
        let (low, high) = match kind {
            _ if low < high => (low, high),
            ScaleKind::Linear if low == 0.0 => (0.0, 1.0),
            ScaleKind::Linear => (low - 0.5 * low.abs(), low + 0.5 * low.abs()),
            ScaleKind::Log => (low / 2.0, low * 2.0),
        };
        AxisScale { kind, low, high }
    }

    /// A scale over all values that it can show.
    pub fn over(kind: ScaleKind, values: impl IntoIterator<Item = f64>) -> AxisScale {
        let shown = values.into_iter().filter(|value| value.is_finite() && (kind == ScaleKind::Linear || *value > 0.0));
        let (low, high) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        AxisScale::new(kind, low, high)
    }

    /// The scale with its ends at round values. A logarithmic one ends at 1, 2 or 5 times a power of ten.
    pub fn nice(self, ticks: usize) -> AxisScale {
        let (low, high) = match self.kind {
            ScaleKind::Linear => {
                let step = self.step(ticks);
                // Slightly over a multiple counts as the multiple, so that rounding errors do not add a step.
                ((self.low / step + 1e-9).floor() * step, (self.high / step - 1e-9).ceil() * step)
            }
            ScaleKind::Log => {
                let round = |value: f64, down: bool| {
                    let power = 10f64.powf((value.log10() + if down { 1e-12 } else { -1e-12 }).floor());
                    let all = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
                    let found = if down {
                        all.into_iter().rev().find(|&round| round <= value * (1.0 + 1e-9))
                    } else {
                        all.into_iter().find(|&round| round >= value * (1.0 - 1e-9))
                    };
                    found.unwrap_or(value)
                };
                (round(self.low, true), round(self.high, false))
            }
        };
        AxisScale::new(self.kind, low, high)
    }

    /// Position of a value on the axis: 0 at the low end, 1 at the high end. `None` if the scale cannot show it.
    pub fn position(&self, value: f64) -> Option<f64> {
        let share = match self.kind {
            ScaleKind::Linear => (value - self.low) / (self.high - self.low),
            ScaleKind::Log if value > 0.0 => (value / self.low).ln() / (self.high / self.low).ln(),
            ScaleKind::Log => return None,
        };
        share.is_finite().then_some(share)
    }

    /// Distance between about `ticks` ticks: 1, 2 or 5 times a power of ten.
    fn step(&self, ticks: usize) -> f64 {
        let rough = (self.high - self.low) / ticks.max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let factor = rough / power;
        power
            * if factor < 1.5 {
                1.0
            } else if factor < 3.5 {
                2.0
            } else if factor < 7.5 {
                5.0
            } else {
                10.0
            }
    }

    /// About `wanted` round values within the limits, each with its text.
    pub fn ticks(&self, wanted: usize) -> Vec<(f64, String)> {
        match self.kind {
            ScaleKind::Linear => {
                let step = self.step(wanted);
                let decimals = (-step.log10().floor()).max(0.0) as usize;
                let [first, last] = [(self.low / step - 1e-9).ceil(), (self.high / step + 1e-9).floor()].map(|end| end as i64);
                (first..=last).map(|index| index as f64 * step).map(|value| (value, linear_text(value, step, decimals))).collect()
            }
            ScaleKind::Log => {
                let [first, last] = [self.low, self.high].map(|end| end.log10().floor() as i32);
                let factors: &[f64] = if last - first < 2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let every = ((last - first) as usize / wanted.max(1) + 1) as i32;
                let within = |value: &f64| (self.low * (1.0 - 1e-9)..=self.high * (1.0 + 1e-9)).contains(value);
                let powers = (first..=last).filter(|power| (power - first) % every == 0);
                let values = powers.flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
                values.filter(within).map(|value| (value, log_text(value))).collect()
            }
        }
    }
}

fn linear_text(value: f64, step: f64, decimals: usize) -> String {
    if value == 0.0 {
        "0".into()
    } else if value.abs() >= 1e6 || step < 1e-5 {
        power_text(value)
    } else {
        format!("{value:.decimals$}").replace('-', "−")
    }
}

fn log_text(value: f64) -> String {
    if (1e-3..1e5).contains(&value) { format!("{}", (value * 1e6).round() / 1e6) } else { power_text(value) }
}

/// `2·10⁻⁵` in plain text: `2e−5`.
fn power_text(value: f64) -> String {
    format!("{value:.1e}").replace(".0e", "e").replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(scale: AxisScale, wanted: usize) -> Vec<String> {
        scale.ticks(wanted).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn linear_scales_have_round_ends_and_ticks() {
        let scale = AxisScale::over(ScaleKind::Linear, [0.013, 0.97, f64::NAN]).nice(5);
        assert_eq!([scale.low, scale.high], [0.0, 1.0]);
        assert_eq!(texts(scale, 5), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        let scale = AxisScale::new(ScaleKind::Linear, -3.0, 17.0);
        assert_eq!(texts(scale, 4), ["0", "5", "10", "15"]);
        assert_eq!(texts(AxisScale::new(ScaleKind::Linear, -0.2, 0.2), 2), ["−0.2", "0", "0.2"]);
        assert_eq!(texts(AxisScale::new(ScaleKind::Linear, 0.0, 4e6), 2), ["0", "2e6", "4e6"]);
    }

    #[test]
    fn logarithmic_scales_go_by_powers() {
        let scale = AxisScale::over(ScaleKind::Log, [3e-5, 0.7, 0.0, -1.0]).nice(5);
        assert_eq!([scale.low, scale.high], [2e-5, 1.0]);
        assert_eq!(texts(scale, 6), ["1e−4", "0.001", "0.01", "0.1", "1"]);
        let scale = AxisScale::over(ScaleKind::Log, [1.3, 8.0]).nice(5);
        assert_eq!(texts(scale, 5), ["1", "2", "5", "10"]);
        assert_eq!(texts(AxisScale::new(ScaleKind::Log, 1e-12, 1.0), 4), ["1e−12", "1e−8", "1e−4", "1"]);
    }

    #[test]
    fn positions_run_from_0_to_1() {
        let linear = AxisScale::new(ScaleKind::Linear, 2.0, 4.0);
        assert_eq!([2.0, 3.0, 4.0].map(|value| linear.position(value)), [Some(0.0), Some(0.5), Some(1.0)]);
        assert_eq!(linear.position(f64::NAN), None);
        let log = AxisScale::new(ScaleKind::Log, 0.01, 1.0);
        assert!((log.position(0.1).unwrap() - 0.5).abs() < 1e-12);
        assert_eq!([0.0, -1.0].map(|value| log.position(value)), [None, None]);
    }

    #[test]
    fn an_invalid_range_becomes_valid() {
        for (kind, low, high) in [
            (ScaleKind::Linear, 0.0, 0.0),
            (ScaleKind::Linear, f64::INFINITY, f64::NEG_INFINITY),
            (ScaleKind::Linear, -2.0, -2.0),
            (ScaleKind::Log, 0.0, 0.0),
            (ScaleKind::Log, 3.0, 3.0),
        ] {
            let scale = AxisScale::new(kind, low, high).nice(5);
            let [low, high] = [scale.low, scale.high];
            assert!(low < high && scale.ticks(5).len() > 1, "{scale:?}");
        }
        // A single value lies within the range.
        let scale = AxisScale::over(ScaleKind::Linear, [-2.0]).nice(5);
        assert!((0.0..=1.0).contains(&scale.position(-2.0).unwrap()));
    }
}
