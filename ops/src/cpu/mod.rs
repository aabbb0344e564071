//! Common helpers of the CPU paths: flat views of tensors, fresh buffers without clearing, and pooled scratch memory.

pub(crate) mod activation;
pub(crate) mod pages;
pub(crate) mod simd;

use std::cell::RefCell;

use candle_core::{Result, Shape, Storage, Tensor, WithDType, bail};
use rayon::prelude::*;

use activation::Activation;

/// The vector instructions that the operations use on this processor; the largest of those for which they are compiled.
pub fn vector_instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if simd::has_avx512() {
            return "AVX-512";
        }
        if simd::has_avx2() {
            return "AVX2 with FMA";
        }
    }
    if cfg!(target_arch = "aarch64") { "NEON" } else { "none beyond the architecture's own" }
}

/// Calls `f` with the elements of a float32 CPU tensor, which is copied first if it is not contiguous.
pub(crate) fn with_f32<R>(tensor: &Tensor, op: &str, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    with_numbers(tensor, op, f)
}

/// As [`with_f32`], of a tensor of this format.
pub(crate) fn with_numbers<T: WithDType, R>(tensor: &Tensor, op: &str, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => {
            let Some((start, end)) = layout.contiguous_offsets() else {
                bail!("{op}: expected a contiguous tensor, found {layout:?}")
            };
            f(&storage.as_slice::<T>()?[start..end])
        }
        _ => bail!("{op}: expected a tensor on the CPU"),
    }
}

/// A CPU tensor that owns `data`.
pub(crate) fn tensor_from<T: WithDType>(data: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    Tensor::from_vec(data, shape, &candle_core::Device::Cpu)
}

/// A pointer for several threads that write disjoint elements.
pub(crate) struct SendPtr<T = f32>(*mut T);

impl<T> Clone for SendPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SendPtr<T> {}

// SAFETY: the users of `SendPtr` write disjoint ranges from different threads, and read none that another thread writes.
unsafe impl<T: Send> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    /// Wraps the start of a buffer.
    pub(crate) fn new(ptr: *mut T) -> Self {
        Self(ptr)
    }

    /// The pointer, advanced by `offset` elements.
    ///
    /// # Safety
    /// `offset` lies within the buffer.
    pub(crate) unsafe fn add(self, offset: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }

    /// The elements `offset..offset + len`, for writing.
    ///
    /// # Safety
    /// The range lies within the buffer, is initialised before it is read, and no other thread touches it meanwhile.
    pub(crate) unsafe fn slice<'a>(self, offset: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(offset), len) }
    }
}

/// A vector of `len` elements, all of which `fill` writes through its pointer.
///
/// # Safety
/// `fill` writes every element.
pub(crate) unsafe fn filled_vec<T>(len: usize, fill: impl FnOnce(SendPtr<T>)) -> Vec<T> {
    let mut data: Vec<T> = Vec::with_capacity(len);
    fill(SendPtr::new(data.as_mut_ptr()));
    // SAFETY: the capacity is at least `len` and the caller promises that `fill` wrote all elements.
    unsafe { data.set_len(len) };
    data
}

/// Elements that a task of an elementwise operation works on.
pub(crate) const CHUNK: usize = 1 << 16;

/// `f(a, b)` of two tensors of one shape, chunk by chunk on all threads; `f` writes all of its last argument.
pub(crate) fn of_two<T: Activation>(a: &Tensor, b: &Tensor, f: impl Fn(&[T], &[T], &mut [T]) + Sync) -> Result<Tensor> {
    with_numbers(a, "elementwise", |x: &[T]| {
        // SAFETY: `map2` writes every element.
        with_numbers(b, "elementwise", |y| tensor_from(unsafe { filled_vec(x.len(), |out| map2(x, y, out, &f)) }, a.shape()))
    })
}

/// Writes `f(a, b)` to all of `out`, which is as long as `a`, chunk by chunk on all threads.
pub(crate) fn map2<T: Activation>(a: &[T], b: &[T], out: SendPtr<T>, f: impl Fn(&[T], &[T], &mut [T]) + Sync) {
    assert_eq!(a.len(), b.len(), "two tensors of one shape");
    a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)).enumerate().for_each(|(i, (a, b))| {
        // SAFETY: the chunks are disjoint and lie within `out`, which is as long as `a`; `f` only writes.
        f(a, b, unsafe { out.slice(i * CHUNK, a.len()) });
    });
}

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with a buffer of `len` floats with unspecified content. Each thread keeps its buffers for later calls, so that their pages are
/// touched only once.
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    // The buffer is taken out while in use, so that a task that rayon runs on this thread meanwhile gets another one.
    let mut buffer = SCRATCH.with(|pool| take(&mut pool.borrow_mut(), len + 16));
    // 16 floats of slack: the slice starts on a 64-byte boundary.
    if buffer.len() < len + 16 {
        buffer = pages::filled(0.0, len + 16);
    }
    let skip = buffer.as_ptr().align_offset(64).min(16);
    let result = f(&mut buffer[skip..skip + len]);
    SCRATCH.with(|pool| pool.borrow_mut().push(buffer));
    result
}

/// The smallest buffer that is large enough; otherwise the largest, to be replaced.
fn take(pool: &mut Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    let by_size = |at: &usize| pool[*at].len();
    let fits = (0..pool.len()).filter(|at| pool[*at].len() >= len).min_by_key(by_size);
    fits.or_else(|| (0..pool.len()).max_by_key(by_size)).map_or_else(Vec::new, |at| pool.swap_remove(at))
}

/// The sum of the parts in `parts`, in order; each has `len` elements.
pub(crate) fn sum_parts(parts: &[f32], len: usize) -> Vec<f32> {
    let mut sum = vec![0.0f32; len];
    for part in parts.chunks_exact(len) {
        for (s, p) in sum.iter_mut().zip(part) {
            *s += p;
        }
    }
    sum
}
