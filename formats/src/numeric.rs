//! Converts stored numbers of any type, width and byte order to float32.

use half::f16;

/// A real number type that files store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NumericType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
}

impl NumericType {
    /// The type of a NIfTI `datatype` code; `None` for complex, colour and 128-bit types.
    pub(crate) fn from_nifti_code(code: i16) -> Option<Self> {
        Some(match code {
            2 => Self::U8,
            4 => Self::I16,
            8 => Self::I32,
            16 => Self::F32,
            64 => Self::F64,
            256 => Self::I8,
            512 => Self::U16,
            768 => Self::U32,
            1024 => Self::I64,
            1280 => Self::U64,
            _ => return None,
        })
    }

    /// The type of a NumPy type string's kind and width: `f4`, `u1`, ...
    pub(crate) fn from_numpy(kind_and_width: &str) -> Option<Self> {
        Some(match kind_and_width {
            "u1" | "b1" => Self::U8,
            "i1" => Self::I8,
            "u2" => Self::U16,
            "i2" => Self::I16,
            "u4" => Self::U32,
            "i4" => Self::I32,
            "u8" => Self::U64,
            "i8" => Self::I64,
            "f2" => Self::F16,
            "f4" => Self::F32,
            "f8" => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of one number.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::F16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// A name of a NIfTI `datatype` code that is none of these types.
    pub(crate) fn refused_nifti_code(code: i16) -> String {
        let name = match code {
            32 | 1792 | 2048 => "complex (code ",
            128 | 2304 => "colour (RGB, code ",
            _ => return format!("code {code}"),
        };
        format!("{name}{code})")
    }

    /// The first number that is too large for float32 to hold every whole number of its size, with its place; `values` are the numbers as
    /// decoded. In words, since float32 would show another number.
    pub(crate) fn first_inexact(
        self,
        values: &[f32],
        bytes: &[u8],
        big_endian: bool,
        scaling: (f64, f64),
    ) -> Option<(usize, String)> {
        const LIMIT: f32 = (1 << f32::MANTISSA_DIGITS) as f32;
        let at = values.iter().position(|value| value.abs() >= LIMIT)?;
        let mut raw = bytes.get(at * self.bytes()..)?.get(..self.bytes())?.to_vec();
        if big_endian {
            raw.reverse();
        }
        let mut wide = [0; 8];
        wide[..raw.len()].copy_from_slice(&raw);
        let whole = u64::from_le_bytes(wide);
        let value = match self {
            Self::U32 | Self::U64 if scaling == (1.0, 0.0) => return Some((at, whole.to_string())),
            Self::I32 if scaling == (1.0, 0.0) => return Some((at, (whole as u32 as i32).to_string())),
            Self::I64 if scaling == (1.0, 0.0) => return Some((at, (whole as i64).to_string())),
            Self::F32 if scaling == (1.0, 0.0) => return Some((at, format!("{:e}", f32::from_bits(whole as u32)))),
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => whole as f64,
            Self::I8 => f64::from(whole as u8 as i8),
            Self::I16 => f64::from(whole as u16 as i16),
            Self::I32 => f64::from(whole as u32 as i32),
            Self::I64 => whole as i64 as f64,
            Self::F16 => f16::from_bits(whole as u16).to_f64(),
            Self::F32 => f64::from(f32::from_bits(whole as u32)),
            Self::F64 => f64::from_bits(whole),
        };
        Some((at, in_words(value * scaling.0 + scaling.1)))
    }

    /// The numbers in `bytes` times `slope` plus `intercept`, computed in f64 and then rounded to f32, as by nibabel's
    /// `get_fdata().astype(float32)`. A slope of 1 and an intercept of 0 change nothing.
    pub(crate) fn decode(self, bytes: &[u8], big_endian: bool, slope: f64, intercept: f64) -> Vec<f32> {
        macro_rules! decode {
            ($type:ty) => {
                decode!($type, |value| value as f64)
            };
            ($type:ty, $wide:expr) => {
                bytes
                    .chunks_exact(size_of::<$type>())
                    .map(|chunk| {
                        let raw = chunk.try_into().expect("chunks have the type's width");
                        let value = if big_endian { <$type>::from_be_bytes(raw) } else { <$type>::from_le_bytes(raw) };
                        let value = $wide(value);
                        // NumPy skips the steps that change nothing.
                        let scaled = if slope != 1.0 { value * slope } else { value };
                        (if intercept != 0.0 { scaled + intercept } else { scaled }) as f32
                    })
                    .collect()
            };
        }
        match self {
            Self::U8 => decode!(u8),
            Self::I8 => decode!(i8),
            Self::U16 => decode!(u16),
            Self::I16 => decode!(i16),
            Self::U32 => decode!(u32),
            Self::I32 => decode!(i32),
            Self::U64 => decode!(u64),
            Self::I64 => decode!(i64),
            Self::F16 => decode!(f16, f16::to_f64),
            Self::F32 => decode!(f32),
            Self::F64 => decode!(f64),
        }
    }
}

/// A number with a power of ten where it would have many digits.
fn in_words(value: f64) -> String {
    let plain = value == 0.0 || !value.is_finite() || (1e-4..1e15).contains(&value.abs());
    if plain { format!("{value}") } else { format!("{value:e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_in_either_byte_order() {
        macro_rules! check {
            ($type:ty, $numeric:ident) => {
                let values: [$type; 3] = [3 as $type, 100 as $type, <$type>::MAX];
                let expected: Vec<f32> = values.iter().map(|&value| (value as f64 * 0.5 - 7.0) as f32).collect();
                let little: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                let big: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
                assert_eq!(NumericType::$numeric.bytes(), size_of::<$type>());
                assert_eq!(NumericType::$numeric.decode(&little, false, 0.5, -7.0), expected);
                assert_eq!(NumericType::$numeric.decode(&big, true, 0.5, -7.0), expected);
            };
        }
        check!(u8, U8);
        check!(i8, I8);
        check!(u16, U16);
        check!(i16, I16);
        check!(u32, U32);
        check!(i32, I32);
        check!(u64, U64);
        check!(i64, I64);
        check!(f32, F32);
        check!(f64, F64);
    }

    #[test]
    fn half_precision_in_either_byte_order() {
        // numpy.array([-1.5, 65504, 2**-24], '<f2').tobytes()
        let little = [0x00, 0xbe, 0xff, 0x7b, 0x01, 0x00];
        let big = [0xbe, 0x00, 0x7b, 0xff, 0x00, 0x01];
        let expected = [-1.5, 65504.0, 2f32.powi(-24)];
        assert_eq!((NumericType::from_numpy("f2"), NumericType::F16.bytes()), (Some(NumericType::F16), 2));
        assert_eq!(NumericType::F16.decode(&little, false, 1.0, 0.0), expected);
        assert_eq!(NumericType::F16.decode(&big, true, 1.0, 0.0), expected);
    }

    #[test]
    fn what_float32_does_not_hold_is_said_as_it_is_stored() {
        let said = |numeric: NumericType, bytes: &[u8], big_endian: bool, (slope, intercept): (f64, f64)| {
            let values = numeric.decode(bytes, big_endian, slope, intercept);
            numeric.first_inexact(&values, bytes, big_endian, (slope, intercept))
        };
        let one = (1.0, 0.0);
        let signed: Vec<u8> = [1i64, -(1 << 32) - 1].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(said(NumericType::I64, &signed, false, one), Some((1, "-4294967297".into())));
        assert_eq!(said(NumericType::U64, &((1u64 << 63) + 1).to_be_bytes(), true, one), Some((0, "9223372036854775809".into())));
        assert_eq!(said(NumericType::I32, &(-20_000_001i32).to_be_bytes(), true, one), Some((0, "-20000001".into())));
        assert_eq!(said(NumericType::F64, &1e300f64.to_le_bytes(), false, one), Some((0, "1e300".into())));
        assert_eq!(said(NumericType::U16, &60_000u16.to_le_bytes(), false, (1000.0, 1.0)), Some((0, "60000001".into())));
        assert_eq!(said(NumericType::F32, &1e30f32.to_le_bytes(), false, one), Some((0, "1e30".into())));
        assert_eq!(said(NumericType::F32, &2.5f32.to_le_bytes(), false, one), None);
    }

    #[test]
    fn scaling_happens_in_double_precision() {
        // In f32, 16777217 would lose its last bit before the intercept is added.
        let bytes = 16_777_217i32.to_le_bytes();
        assert_eq!(NumericType::I32.decode(&bytes, false, 1.0, -16_777_216.0), [1.0]);
    }

    #[test]
    fn codes_that_hold_no_real_numbers_are_refused() {
        for code in [0, 1, 32, 128, 1536, 1792, 2048, 2304, -4, 3] {
            assert_eq!(NumericType::from_nifti_code(code), None, "code {code}");
        }
        assert_eq!(NumericType::from_numpy("c8"), None);
    }
}
