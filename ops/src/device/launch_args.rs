//! Parameters of a launch: the kernel's arguments, and the number of blocks and threads.

/// Default number of threads per block.
pub(crate) const THREADS: u32 = 256;

/// An argument of a kernel, of the type that its source declares.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg<'a> {
    /// An address on the GPU; 0 for a tensor that is absent.
    Pointer(u64),
    Int(i32),
    Unsigned(u32),
    Size(u64),
    Float(f32),
    Double(f64),
    /// A struct by value, as its 32-bit words; none of its fields is wider.
    Words(&'a [u32]),
    /// A struct by value, as its 64-bit words.
    LongWords(&'a [u64]),
}

/// Number of blocks and threads of a launch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
}

impl Grid {
    /// One thread per item, for `n` items.
    pub(crate) fn over(n: usize) -> Self {
        Self::blocks([n.div_ceil(THREADS as usize).max(1) as u32, 1, 1])
    }

    /// One warp per item, for `n` items.
    pub(crate) fn warps(n: usize) -> Self {
        Self::blocks([n.div_ceil(THREADS as usize / 32).max(1) as u32, 1, 1])
    }

    pub(crate) fn blocks(blocks: [u32; 3]) -> Self {
        Self { blocks, threads: THREADS, shared_bytes: 0 }
    }
}
