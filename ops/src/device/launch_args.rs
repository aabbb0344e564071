//! What a launch takes: the kernel's arguments, and how many blocks and threads run it.

/// Threads of a block where nothing speaks for another number.
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

/// How many blocks and threads a kernel is launched with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
}

impl Grid {
    /// A thread for each of `n`.
    pub(crate) fn over(n: usize) -> Self {
        Self::blocks([n.div_ceil(THREADS as usize).max(1) as u32, 1, 1])
    }

    /// A warp for each of `n`.
    pub(crate) fn warps(n: usize) -> Self {
        Self::blocks([n.div_ceil(THREADS as usize / 32).max(1) as u32, 1, 1])
    }

    pub(crate) fn blocks(blocks: [u32; 3]) -> Self {
        Self { blocks, threads: THREADS, shared_bytes: 0 }
    }
}
