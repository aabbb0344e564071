//! NIfTI-1 and NIfTI-2 (`nifti1.h`, `nifti2.h`): single files (`.nii`, `.nii.gz`), which are written too, and pairs (`.hdr`, `.img`), of
//! which those of the older Analyze 7.5 are read as far as it says what NIfTI does.
//!
//! A NIfTI array is stored with its first axis fastest, so voxels `[d, h, w]` in C order, where depth is the file's third axis, lie
//! in the file as they lie in memory.

mod affine;
mod fields;
mod read;
mod write;

pub use affine::{Affine, spacing_of};
pub use read::{NiftiImage, decode_image, read_geometry, read_image};
pub(crate) use read::{decode_pair, read_pair_geometry};
pub use write::{NiftiElement, nifti_gz, origin_of, write_nifti, write_scaled_nifti};

/// Bytes of a NIfTI-1 header.
pub const NIFTI_1_HEADER_BYTES: usize = 348;
/// Bytes of a NIfTI-2 header.
pub const NIFTI_2_HEADER_BYTES: usize = 540;
/// The version of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NiftiVersion {
    /// `nifti1.h`: numbers of 32 bits, sides of at most 32767 voxels.
    One,
    /// `nifti2.h`: numbers of 64 bits.
    Two,
}

/// Where a scan's voxels lie in space, according to its header: all that a mask must repeat to lie on top of the scan.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    /// The header's version; files written with this geometry have the same, so that no number is rounded.
    pub version: NiftiVersion,
    /// Depth, height, width.
    pub shape: [usize; 3],
    /// Axes of the file, 3 to 7; those after the third have length 1.
    pub rank: u8,
    /// `pixdim`: first -1 if the quaternion's third axis is reversed, then the distance between voxel centres along each axis of the file
    /// (width, height, depth, …), in units of `xyzt_units`.
    pub pixdim: [f64; 8],
    /// NIfTI's code for the units of space and time.
    pub xyzt_units: u8,
    /// NIfTI's code for the quaternion's coordinate system; 0 if there is no quaternion.
    pub qform_code: i16,
    /// Quaternion's b, c and d.
    pub quaternion: [f64; 3],
    /// Quaternion's translation along x, y and z.
    pub translation: [f64; 3],
    /// NIfTI's code for the affine's coordinate system; 0 if there is no affine.
    pub sform_code: i16,
    /// The affine's three rows, from voxel indices (axis 0, 1, 2 of the file) to space.
    pub affine: [[f64; 4]; 3],
}

impl Geometry {
    /// An axis-aligned scan in scanner coordinates, in millimetres; `spacing_mm` is along depth, height and width.
    pub fn aligned(shape: [usize; 3], [dz, dy, dx]: [f64; 3]) -> Self {
        Geometry {
            version: NiftiVersion::One,
            shape,
            rank: 3,
            pixdim: [1.0, dx, dy, dz, 1.0, 1.0, 1.0, 1.0],
            xyzt_units: 2,
            qform_code: 1,
            quaternion: [0.0; 3],
            translation: [0.0; 3],
            sform_code: 1,
            affine: [[dx, 0.0, 0.0, 0.0], [0.0, dy, 0.0, 0.0], [0.0, 0.0, dz, 0.0]],
        }
    }

    /// A scan whose voxels an affine maps to millimetres in RAS+, or of which nobody knows where they lie.
    pub fn of_affine(shape: [usize; 3], affine: Option<Affine>) -> Self {
        let Some(affine) = affine else {
            return Geometry { xyzt_units: 0, qform_code: 0, sform_code: 0, ..Geometry::aligned(shape, [1.0; 3]) };
        };
        let [dx, dy, dz] = spacing_of(&affine);
        Geometry { qform_code: 0, affine, ..Geometry::aligned(shape, [dz, dy, dx]) }
    }

    /// The version whose header can hold the numbers.
    fn version_needed(&self) -> NiftiVersion {
        let fits = self.shape.iter().all(|&side| i16::try_from(side).is_ok());
        if fits { self.version } else { NiftiVersion::Two }
    }
}
