//! How the axes of a scan's array lie in the body, and the turn from one such orientation to another.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The two ends of each axis of the body: right-left, back-front, foot-head. The second is the positive direction (RAS+).
const SIDES: [[u8; 2]; 3] = [*b"LR", *b"PA", *b"IS"];

/// Axis codes, as `nibabel.aff2axcodes` gives them: for each axis of the array, the side of the body towards which its index grows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Orientation([Direction; 3]);

/// A direction along an axis of the body.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Direction {
    /// 0 right-left, 1 back-front, 2 foot-head.
    axis: usize,
    /// Whether it is that of RAS+.
    positive: bool,
}

impl Orientation {
    /// Of axes that lie along the body's `axes` (0 right-left, 1 back-front, 2 foot-head), each in the direction of RAS+ or against it;
    /// `None` if two lie along the same.
    pub fn new(axes: [usize; 3], positive: [bool; 3]) -> Option<Self> {
        let all = (0..3).all(|axis| axes.contains(&axis));
        all.then(|| Orientation(std::array::from_fn(|at| Direction { axis: axes[at], positive: positive[at] })))
    }

    /// The side of the body towards which the index of each axis grows: `R`, `L`, `A`, `P`, `S` or `I`.
    pub fn codes(self) -> [char; 3] {
        self.0.map(|side| char::from(SIDES[side.axis][usize::from(side.positive)]))
    }

    /// That of an array which is turned.
    pub fn turned(self, turn: Turn) -> Self {
        Orientation(turn.0.map(|axis| {
            let Direction { axis: along, positive } = self.0[turn.source(axis)];
            Direction { axis: along, positive: positive == (axis > 0) }
        }))
    }

    /// All 48 orientations.
    pub fn all() -> Vec<Self> {
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let signs = (0..8).map(|bits| [0, 1, 2].map(|axis| bits >> axis & 1 == 0));
        signs.flat_map(|positive| orders.into_iter().filter_map(move |axes| Orientation::new(axes, positive))).collect()
    }
}

impl FromStr for Orientation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("expected three letters such as LPS, one each of L or R, P or A, I or S; found {text:?}");
        let letters: [u8; 3] = text.as_bytes().try_into().map_err(|_| refused())?;
        let directions = letters.map(|letter| {
            let axis = SIDES.iter().position(|sides| sides.contains(&letter.to_ascii_uppercase()))?;
            Some((axis, SIDES[axis][1] == letter.to_ascii_uppercase()))
        });
        let [Some(first), Some(second), Some(third)] = directions else { return Err(refused()) };
        Orientation::new([first.0, second.0, third.0], [first.1, second.1, third.1]).ok_or_else(refused)
    }
}

impl fmt::Display for Orientation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.codes().iter().try_for_each(|code| write!(f, "{code}"))
    }
}

impl fmt::Debug for Orientation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

crate::by_text!(Orientation);

/// Which axis of a file's array each axis of a turned array is: its number from 1, negative if it runs the other way. `[1, 2, 3]` changes
/// nothing; `[-2, 1, 3]` takes the file's second axis, reversed, as the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn([i8; 3]);

impl Turn {
    /// The turn that changes nothing.
    pub const NONE: Turn = Turn([1, 2, 3]);

    /// The turn of these axes; `None` unless each of 1, 2 and 3 is there once, with any sign.
    pub fn new(axes: [i8; 3]) -> Option<Self> {
        (1..=3).all(|axis| axes.iter().any(|a| a.unsigned_abs() == axis)).then_some(Turn(axes))
    }

    /// The turn from one orientation to another.
    pub fn between(from: Orientation, to: Orientation) -> Self {
        Turn(to.0.map(|wanted| {
            let at = from.0.iter().position(|found| found.axis == wanted.axis).unwrap_or(0);
            let axis = [1, 2, 3][at];
            if from.0[at].positive == wanted.positive { axis } else { -axis }
        }))
    }

    /// The axes.
    pub fn axes(self) -> [i8; 3] {
        self.0
    }

    /// The turn back.
    pub fn inverse(self) -> Self {
        let mut back = [0; 3];
        for (axis, at) in self.0.into_iter().zip([1, 2, 3]) {
            back[self.source(axis)] = if axis < 0 { -at } else { at };
        }
        Turn(back)
    }

    /// What belongs to each axis of the turned array, from what belongs to each axis of the file's: sides, spacings.
    pub fn of<T: Copy>(self, file: [T; 3]) -> [T; 3] {
        self.0.map(|axis| file[self.source(axis)])
    }

    /// As [`Self::of`], for arrays that list their axes from the last to the first: depth, height, width.
    pub fn of_reversed<T: Copy>(self, [third, second, first]: [T; 3]) -> [T; 3] {
        let [first, second, third] = self.of([first, second, third]);
        [third, second, first]
    }

    /// Turns a file's voxels `[axis 3, axis 2, axis 1]` in C order (the first axis fastest, as NIfTI stores them): `shape` is theirs, in
    /// that order. The result has the shape [`Self::of_reversed`] of it.
    ///
    /// # Panics
    /// When there are fewer voxels than the shape says.
    pub fn voxels<T: Copy>(self, voxels: Vec<T>, shape: [usize; 3]) -> Vec<T> {
        if self == Turn::NONE {
            return voxels;
        }
        let [n3, n2, n1] = shape;
        let (sides, strides) = ([n1, n2, n3], [1, n1, n1 * n2]);
        // Along each axis of the result: the offset of each of its indices in the file's array.
        let offsets = self.0.map(|axis| {
            let (side, stride) = (sides[self.source(axis)], strides[self.source(axis)]);
            (0..side).map(|at| if axis < 0 { (side - 1 - at) * stride } else { at * stride }).collect::<Vec<_>>()
        });
        let mut turned = Vec::with_capacity(voxels.len());
        for third in &offsets[2] {
            for second in &offsets[1] {
                turned.extend(offsets[0].iter().map(|first| voxels[first + second + third]));
            }
        }
        turned
    }

    /// Index from 0 of the file's axis that `axis` names.
    fn source(self, axis: i8) -> usize {
        usize::from(axis.unsigned_abs()) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_and_written() {
        let all = Orientation::all();
        assert_eq!(all.len(), 48);
        for orientation in &all {
            assert_eq!(orientation.to_string().parse(), Ok(*orientation));
            assert_eq!(all.iter().filter(|other| *other == orientation).count(), 1);
        }
        assert_eq!("las".parse::<Orientation>().unwrap().to_string(), "LAS");
        for wrong in ["", "LP", "LPX", "LRS", "LPSA", "äS"] {
            assert!(wrong.parse::<Orientation>().unwrap_err().contains("such as LPS"), "{wrong}");
        }
    }

    #[test]
    fn voxels_go_where_numpy_puts_them() {
        // nibabel 5.4: a = np.arange(24).reshape(2, 3, 4, order="F"), in LAS, to PSR by
        // apply_orientation(a, ornt_transform(axcodes2ornt("LAS"), axcodes2ornt("PSR"))): shape (3, 4, 2), ravel(order="F")
        let turn = Turn::between("LAS".parse().unwrap(), "PSR".parse().unwrap());
        assert_eq!(turn.axes(), [-2, 3, -1]);
        let expected = [5, 3, 1, 11, 9, 7, 17, 15, 13, 23, 21, 19, 4, 2, 0, 10, 8, 6, 16, 14, 12, 22, 20, 18];
        assert_eq!(turn.voxels((0..24).collect(), [4, 3, 2]), expected);
        assert_eq!(turn.of_reversed([4, 3, 2]), [2, 4, 3]);
    }

    #[test]
    fn every_turn_has_its_way_back() {
        let voxels: Vec<u8> = (0..60).collect();
        for from in Orientation::all() {
            for to in ["LPS", "SAR"].map(|to| to.parse().unwrap()) {
                let turn = Turn::between(from, to);
                let turned = turn.voxels(voxels.clone(), [5, 4, 3]);
                assert_eq!(turn.inverse().voxels(turned, turn.of_reversed([5, 4, 3])), voxels, "{from} to {to}");
                assert_eq!(Turn::new(turn.axes()), Some(turn));
                assert_eq!(turn.inverse(), Turn::between(to, from));
                assert_eq!((from.turned(turn), to.turned(turn.inverse())), (to, from));
            }
        }
        assert_eq!([[0, 1, 2], [1, 1, 2], [1, 2, 4]].map(Turn::new), [None; 3]);
    }
}
