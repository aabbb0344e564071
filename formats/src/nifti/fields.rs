//! Where the fields of a header lie and what numbers they are, in `nifti1.h` and `nifti2.h`: the one table that reading and writing use.

use super::NiftiVersion;

/// The number type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    U8,
    I16,
    I32,
    I64,
    F32,
    F64,
}

/// A field of one number or of several in a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    at: usize,
    number: Number,
}

/// The fields of a version's header.
#[derive(Debug)]
pub(super) struct Fields {
    /// Its size, which is also its first field.
    pub(super) header_bytes: usize,
    /// The magic code's offset, and that of a single file.
    pub(super) magic: (usize, &'static [u8]),
    /// Offset of the description, 80 bytes.
    pub(super) description: usize,
    pub(super) size: Field,
    pub(super) data_type: Field,
    pub(super) bits: Field,
    pub(super) dim: Field,
    pub(super) pixdim: Field,
    pub(super) voxel_offset: Field,
    pub(super) slope: Field,
    pub(super) intercept: Field,
    pub(super) units: Field,
    pub(super) qform_code: Field,
    pub(super) sform_code: Field,
    pub(super) quaternion: Field,
    pub(super) translation: Field,
    /// The affine's rows.
    pub(super) rows: [Field; 3],
}

const fn field(at: usize, number: Number) -> Field {
    Field { at, number }
}

static NIFTI_1: Fields = Fields {
    header_bytes: 348,
    magic: (344, b"n+1\0"),
    description: 148,
    size: field(0, Number::I32),
    data_type: field(70, Number::I16),
    bits: field(72, Number::I16),
    dim: field(40, Number::I16),
    pixdim: field(76, Number::F32),
    voxel_offset: field(108, Number::F32),
    slope: field(112, Number::F32),
    intercept: field(116, Number::F32),
    units: field(123, Number::U8),
    qform_code: field(252, Number::I16),
    sform_code: field(254, Number::I16),
    quaternion: field(256, Number::F32),
    translation: field(268, Number::F32),
    rows: [field(280, Number::F32), field(296, Number::F32), field(312, Number::F32)],
};

static NIFTI_2: Fields = Fields {
    header_bytes: 540,
    magic: (4, b"n+2\0\r\n\x1a\n"),
    description: 240,
    size: field(0, Number::I32),
    data_type: field(12, Number::I16),
    bits: field(14, Number::I16),
    dim: field(16, Number::I64),
    pixdim: field(104, Number::F64),
    voxel_offset: field(168, Number::I64),
    slope: field(176, Number::F64),
    intercept: field(184, Number::F64),
    units: field(500, Number::I32),
    qform_code: field(344, Number::I32),
    sform_code: field(348, Number::I32),
    quaternion: field(352, Number::F64),
    translation: field(376, Number::F64),
    rows: [field(400, Number::F64), field(432, Number::F64), field(464, Number::F64)],
};

impl Fields {
    /// Those of a version.
    pub(super) fn of(version: NiftiVersion) -> &'static Self {
        match version {
            NiftiVersion::One => &NIFTI_1,
            NiftiVersion::Two => &NIFTI_2,
        }
    }
}

impl Field {
    /// `N` numbers of a header, whose length must have been checked. Whole numbers of 64 bits are rounded to the nearest float64.
    pub(super) fn read<const N: usize>(self, header: &[u8], big_endian: bool) -> [f64; N] {
        macro_rules! read {
            ($type:ty) => {
                std::array::from_fn(|index| {
                    let mut raw = [0; size_of::<$type>()];
                    let at = self.at + index * raw.len();
                    raw.copy_from_slice(&header[at..at + size_of::<$type>()]);
                    (if big_endian { <$type>::from_be_bytes(raw) } else { <$type>::from_le_bytes(raw) }) as f64
                })
            };
        }
        match self.number {
            Number::U8 => read!(u8),
            Number::I16 => read!(i16),
            Number::I32 => read!(i32),
            Number::I64 => read!(i64),
            Number::F32 => read!(f32),
            Number::F64 => read!(f64),
        }
    }

    /// Writes numbers in a row, little-endian, rounded to the field's type.
    pub(super) fn write(self, header: &mut [u8], values: &[f64]) {
        macro_rules! write {
            ($type:ty) => {
                for (index, &value) in values.iter().enumerate() {
                    let raw = (value as $type).to_le_bytes();
                    let at = self.at + index * raw.len();
                    header[at..at + raw.len()].copy_from_slice(&raw);
                }
            };
        }
        match self.number {
            Number::U8 => write!(u8),
            Number::I16 => write!(i16),
            Number::I32 => write!(i32),
            Number::I64 => write!(i64),
            Number::F32 => write!(f32),
            Number::F64 => write!(f64),
        }
    }
}
