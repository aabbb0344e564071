//! The finite set of images that the published augmentation can make of a slice, each with its probability.
//!
//! The published `RandomGenerator` applies `rot90` k times (k = 0..3) and then a flip along axis 0 or 1 with probability ½, a rotation by
//! a whole number of degrees in [-20, 19] with probability ¼, and nothing otherwise. The eight (k, axis) pairs give four distinct images,
//! so there are 1 + 4 + 39 distinct images, and a cache of all of them reproduces the training distribution exactly.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Smallest angle that the published augmentation draws, in degrees.
pub const MIN_ANGLE_DEGREES: i32 = -20;
/// Largest angle that the published augmentation draws, in degrees (`np.random.randint(-20, 20)` leaves 20 out).
pub const MAX_ANGLE_DEGREES: i32 = 19;

/// Which augmented variants of each training slice a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum AugmentPolicy {
    /// All 44 images of the published augmentation; fewer with a rotation step above 1
    Reference,
    /// The slice and its four reflections
    Flips,
    /// Only the slice itself
    None,
    /// The slice itself, and seeded draws of a wider augmentation (--draws): turned, resized, shifted, noise, contrast, gamma
    Seeded,
}

/// How a variant is made from the slice at data size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum VariantKind {
    /// The slice as it is.
    Identity,
    /// `np.flip(np.rot90(slice, k), axis)`.
    Reflection {
        /// Quarter turns counter-clockwise, 0 or 1: pairs with 2 or 3 give the same images.
        k: u8,
        /// Axis of the flip, 0 (rows) or 1 (columns).
        axis: u8,
    },
    /// `scipy.ndimage.rotate(slice, angle_degrees, order=0, reshape=False)`.
    Rotation {
        /// Angle in degrees, never 0.
        angle_degrees: i32,
    },
    /// A draw of the wider augmentation, each slice's own.
    Draw {
        /// The store's seed.
        seed: u64,
        /// Number of the draw, from 0.
        number: u32,
    },
}

/// One variant of the store: row `i` of `variants.parquet` describes index `i` of the arrays' `variant` axis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// How it is made.
    #[serde(flatten)]
    pub kind: VariantKind,
    /// Probability with which training draws it; the probabilities of a policy sum to 1.
    pub probability: f64,
}

impl Variant {
    /// A short name that is unique within a store: `identity`, `rot90x1_flip0`, `rotate-20`, `draw3`.
    pub fn name(&self) -> String {
        match self.kind {
            VariantKind::Identity => "identity".into(),
            VariantKind::Reflection { k, axis } => format!("rot90x{k}_flip{axis}"),
            VariantKind::Rotation { angle_degrees } => format!("rotate{angle_degrees}"),
            VariantKind::Draw { number, .. } => format!("draw{number}"),
        }
    }
}

/// The variants of a policy: identity first, then reflections, then rotations by ascending angle.
///
/// Only angles that are multiples of `rotation_step` are kept (1 keeps all). The probability of rotating, ¼, is spread evenly over them,
/// including angle 0, whose share goes to the identity. `Flips` and `None` give the probability of what they lack to the identity. Of `Seeded`,
/// which [`seeded`] makes, only the identity is made here.
///
/// # Panics
/// When `rotation_step` is 0; the command line refuses that.
pub fn variants(policy: AugmentPolicy, rotation_step: u32) -> Vec<Variant> {
    assert!(rotation_step > 0, "rotation_step must be at least 1");
    let mut out = vec![Variant { kind: VariantKind::Identity, probability: 1.0 }];
    if matches!(policy, AugmentPolicy::None | AugmentPolicy::Seeded) {
        return out;
    }
    for (k, axis) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        out.push(Variant { kind: VariantKind::Reflection { k, axis }, probability: 0.125 });
    }
    out[0].probability = 0.5;
    if policy == AugmentPolicy::Flips {
        return out;
    }
    let angles: Vec<i32> = (MIN_ANGLE_DEGREES..=MAX_ANGLE_DEGREES).filter(|angle| angle % rotation_step as i32 == 0).collect();
    let share = 0.25 / angles.len() as f64;
    out[0].probability = 0.25 + share;
    for angle_degrees in angles.into_iter().filter(|&angle| angle != 0) {
        out.push(Variant { kind: VariantKind::Rotation { angle_degrees }, probability: share });
    }
    out
}

/// The variants of [`AugmentPolicy::Seeded`]: identity and draws, each as probable.
pub fn seeded(seed: u64, draws: u32) -> Vec<Variant> {
    let probability = 1.0 / f64::from(draws + 1);
    let draw = |number| Variant { kind: VariantKind::Draw { seed, number }, probability };
    std::iter::once(Variant { kind: VariantKind::Identity, probability }).chain((0..draws).map(draw)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_policy_is_the_published_distribution() {
        let reference = variants(AugmentPolicy::Reference, 1);
        assert_eq!(reference.len(), 44);
        assert_eq!(reference[0].probability, 0.25 + 0.25 / 40.0);
        assert!(reference[1..5].iter().all(|v| v.probability == 0.125));
        assert!(reference[5..].iter().all(|v| v.probability == 0.25 / 40.0));
        assert_eq!(reference[5].name(), "rotate-20");
        assert_eq!(reference[43].name(), "rotate19");
    }

    #[test]
    fn seeded_variants_are_equally_probable_and_the_first_stay_if_there_are_more() {
        let (few, many) = (seeded(5, 3), seeded(5, 9));
        assert_eq!(few.iter().map(Variant::name).collect::<Vec<_>>(), ["identity", "draw0", "draw1", "draw2"]);
        assert!(few.iter().all(|variant| variant.probability == 0.25));
        assert!(few.iter().zip(&many).all(|(few, many)| few.kind == many.kind));
        assert_ne!(seeded(6, 3)[1].kind, few[1].kind);
    }

    #[test]
    fn probabilities_sum_to_one_and_names_are_unique() {
        for policy in [AugmentPolicy::Reference, AugmentPolicy::Flips, AugmentPolicy::None] {
            for step in [1, 3, 5, 20, 50] {
                let all = variants(policy, step);
                let total: f64 = all.iter().map(|v| v.probability).sum();
                assert!((total - 1.0).abs() < 1e-12, "{policy:?} step {step}: {total}");
                let names: std::collections::HashSet<_> = all.iter().map(Variant::name).collect();
                assert_eq!(names.len(), all.len());
            }
        }
    }
}
