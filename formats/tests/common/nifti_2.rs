//! A hand-made NIfTI-2 header, for this crate's tests and the fuzzing of parsers.

/// A NIfTI-2 file of `[x, y, z]` voxels of uint8, as far as its header goes: 1 × 1 × 3 mm.
pub fn nifti_2(dims: [i64; 3]) -> Vec<u8> {
    let mut file = vec![0u8; 544];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &540i32.to_le_bytes());
    put(4, b"n+2\0\r\n\x1a\n");
    put(12, &2i16.to_le_bytes());
    for (i, n) in [3, dims[0], dims[1], dims[2], 1, 1, 1, 1].into_iter().enumerate() {
        put(16 + 8 * i, &n.to_le_bytes());
        put(104 + 8 * i, &1f64.to_le_bytes());
    }
    put(104 + 8 * 3, &3f64.to_le_bytes());
    put(168, &544i64.to_le_bytes());
    file
}
