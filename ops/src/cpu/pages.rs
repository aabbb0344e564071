//! Large buffers on large pages. Weights are read once per tile from beyond the caches, on pages of 2 MiB up to a third faster than on pages of 4 KiB.

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

/// Bytes from which on a buffer is worth it.
const LARGE: usize = 1 << 20;

/// As much memory as a large page holds, and placed like one.
#[repr(C, align(0x20_0000))]
struct Page([MaybeUninit<u8>; 0x20_0000]);

/// Elements of a fixed number, on large pages if they are many and the system has such pages.
pub(crate) struct Buffer<T>(Memory<T>);

enum Memory<T> {
    Small(Vec<T>),
    /// As many elements at the start of the vector's capacity, which has no page as its element.
    Large(Vec<Page>, usize),
}

impl<T: Copy> Buffer<T> {
    /// `len` copies of a value.
    pub(crate) fn filled(value: T, len: usize) -> Self {
        let bytes = len * size_of::<T>();
        if bytes < LARGE || align_of::<T>() > align_of::<Page>() {
            return Self(Memory::Small(vec![value; len]));
        }
        let pages = Vec::<Page>::with_capacity(bytes.div_ceil(size_of::<Page>()));
        advise(pages.as_ptr().cast(), pages.capacity() * size_of::<Page>());
        let start = pages.as_ptr().cast::<T>().cast_mut();
        // SAFETY: the capacity has room for the elements, aligned, and nobody else knows of it yet.
        (0..len).for_each(|at| unsafe { start.add(at).write(value) });
        Self(Memory::Large(pages, len))
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Memory::Small(data) => data,
            // SAFETY: `filled` wrote as many elements, which nobody changes while `self` is borrowed.
            Memory::Large(pages, len) => unsafe { std::slice::from_raw_parts(pages.as_ptr().cast(), *len) },
        }
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.0 {
            Memory::Small(data) => data,
            // SAFETY: `filled` wrote as many elements, and `self` is borrowed alone.
            Memory::Large(pages, len) => unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), *len) },
        }
    }
}

impl<T: Copy> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let Some(first) = self.first() else { return Self(Memory::Small(Vec::new())) };
        let mut copy = Self::filled(*first, self.len());
        copy.copy_from_slice(self);
        copy
    }
}

impl<T> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} elements", self.len())
    }
}

/// `len` copies of a value, as a vector: only the pages that lie wholly within it can be large.
pub(crate) fn filled<T: Copy>(value: T, len: usize) -> Vec<T> {
    let mut data = Vec::<T>::with_capacity(len);
    if len * size_of::<T>() >= LARGE {
        advise(data.as_ptr().cast(), data.capacity() * size_of::<T>());
    }
    data.resize(len, value);
    data
}

/// Asks Linux for large pages. Where it has none to give, nothing changes.
#[cfg(target_os = "linux")]
fn advise(start: *const u8, bytes: usize) {
    // SAFETY: the call has no conditions.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let first = start.addr().next_multiple_of(page);
    let len = (start.addr() + bytes).saturating_sub(first) / page * page;
    // SAFETY: the whole pages within the memory are its own, and the advice changes nothing of what is in them.
    unsafe { libc::madvise(first as *mut libc::c_void, len, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise(_: *const u8, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_any_size_have_their_elements() {
        for len in [0, 1, 1000, LARGE / 4 - 1, LARGE / 4, 3_000_001] {
            assert!(filled(1.5f32, len) == vec![1.5; len]);
            let mut buffer = Buffer::filled(1.5f32, len);
            assert!(*buffer == vec![1.5; len]);
            if let Some(last) = buffer.last_mut() {
                *last = 2.0;
            }
            let copy = buffer.clone();
            buffer.fill(0.0);
            assert_eq!((copy.len(), copy.last().copied()), (len, (len > 0).then_some(2.0)));
            assert!(buffer.iter().all(|v| *v == 0.0));
        }
    }
}
