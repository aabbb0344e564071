//! Attention among all tokens of an image on the CPU.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::cpu::SendPtr;
use crate::cpu::activation::{with_scratch_of, write_scaled};
use crate::cpu::simd::{exp, max, multiversion, sum_by};
use crate::matmul::packed::{Factor, RowFormat, task_queries, tile_queries};
use crate::numerics::Numerics;

/// Sines and cosines of an image's tokens, `[tokens, d/2]`.
#[derive(Debug)]
pub(super) struct Rotation {
    pub(super) sines: Vec<f32>,
    pub(super) cosines: Vec<f32>,
}

/// Input of one layer.
pub(super) struct Layer<'a, T> {
    /// Output of the qkv layer, `[b, tokens, 3, heads, d]`.
    pub(super) qkv: &'a [T],
    pub(super) rotation: Option<&'a Rotation>,
    pub(super) heads: usize,
    pub(super) d: usize,
    /// Tokens of an image.
    pub(super) tokens: usize,
    pub(super) numerics: Numerics,
}

/// Some queries of one head of one image.
struct Task {
    image: usize,
    head: usize,
    queries: Range<usize>,
}

thread_local! {
    static SCRATCH: Cell<Option<Scratch>> = const { Cell::new(None) };
}

/// Buffers that a thread keeps from task to task, so that their pages are touched only once.
struct Scratch {
    /// `[d, tokens]`
    k: Factor,
    /// `[tokens, d]`
    v: Factor,
    scores: Vec<f32>,
    inverse_sums: Vec<f32>,
    out: Vec<f32>,
}

impl Scratch {
    fn new(numerics: Numerics) -> Self {
        let [k, v] = [(); 2].map(|()| Factor::new(numerics));
        Self { k, v, scores: vec![], inverse_sums: vec![], out: vec![] }
    }
}

impl<T: RowFormat> Layer<'_, T> {
    /// Attends, and joins the heads: → `out`, `[b, tokens, heads·d]`.
    ///
    /// # Panics
    /// If a slice's length does not follow from the numbers.
    pub(super) fn forward(&self, out: &mut [T]) {
        let width = self.heads * self.d;
        let images = out.len() / (self.tokens * width);
        assert_eq!(out.len(), images * self.tokens * width, "the output has another length");
        assert_eq!(self.qkv.len(), 3 * out.len(), "qkv has another length");
        let at_a_time = task_queries(self.numerics, self.tokens, images * self.heads);
        let task = |image, head, start: usize| Task { image, head, queries: start..(start + at_a_time).min(self.tokens) };
        let of_head = |image, head| (0..self.tokens).step_by(at_a_time).map(move |start| task(image, head, start));
        let tasks: Vec<Task> = (0..images).flat_map(|image| (0..self.heads).flat_map(move |head| of_head(image, head))).collect();
        let shared = SendPtr::new(out.as_mut_ptr());
        tasks.par_iter().with_max_len(1).for_each(|task| {
            // Taken out while it is in use: a task that rayon runs on this thread meanwhile gets another.
            let kept = SCRATCH.take().filter(|scratch| scratch.k.numerics() == self.numerics);
            let mut scratch = kept.unwrap_or_else(|| Scratch::new(self.numerics));
            self.run(task, &mut scratch, shared);
            SCRATCH.set(Some(scratch));
        });
    }

    /// Packs keys and values of the image, then processes the queries, a tile at a time.
    fn run(&self, task: &Task, scratch: &mut Scratch, out: SendPtr<T>) {
        let (d, width) = (self.d, self.heads * self.d);
        scratch.k.pack_columns(d, self.tokens, |key, to| self.gather(task, 1, key, to));
        scratch.v.pack_rows(self.tokens, d, |key, to| self.gather(task, 2, key, to));
        let at_a_time = tile_queries(self.numerics);
        for start in task.queries.clone().step_by(at_a_time) {
            let queries = start..(start + at_a_time).min(task.queries.end);
            self.weigh(task, queries.clone(), scratch);
            let Scratch { v, scores, k, inverse_sums, out: values, .. } = &mut *scratch;
            v.product(scores, k.stride(), queries.len(), values);
            for ((query, values), inverse_sum) in queries.zip(values.chunks_exact(v.stride())).zip(&*inverse_sums) {
                let place = (task.image * self.tokens + query) * width + task.head * d;
                // SAFETY: these are the numbers of this task's head of one of its queries; no other task has the same queries of the same head, so
                // no other thread touches them; they lie within the output, whose length was checked.
                let out = unsafe { out.slice(place, d) };
                write_scaled(values, *inverse_sum, out);
            }
        }
    }

    /// Part 0, 1 or 2 (query, key, value) of a token; queries and keys turned.
    fn gather(&self, task: &Task, part: usize, token: usize, to: &mut [T]) {
        let (d, width) = (self.d, self.heads * self.d);
        let column = part * width + task.head * d;
        let from = &self.qkv[(task.image * self.tokens + token) * 3 * width + column..][..d];
        to.copy_from_slice(from);
        if let Some(Rotation { sines, cosines }) = self.rotation.filter(|_| part < 2) {
            let (half, (first, second)) = (d / 2, to.split_at_mut(d / 2));
            let angles = sines[token * half..][..half].iter().zip(&cosines[token * half..][..half]);
            for ((a, b), (sine, cosine)) in first.iter_mut().zip(second).zip(angles) {
                let (x, y) = (a.value(), b.value());
                (*a, *b) = (T::nearest(x * cosine - y * sine), T::nearest(y * cosine + x * sine));
            }
        }
    }

    /// The weights of every key for some queries, in place of their scores, each row still to be multiplied by its inverse sum.
    fn weigh(&self, task: &Task, queries: Range<usize>, scratch: &mut Scratch) {
        let (d, n, scale) = (self.d, queries.len(), 1.0 / (self.d as f32).sqrt());
        let Scratch { k, v, scores, inverse_sums, out } = scratch;
        let room = k.room(n);
        scores.resize(room * k.stride(), 0.0);
        inverse_sums.resize(n, 0.0);
        out.resize(room * v.stride(), 0.0);
        with_scratch_of(room * d, |q: &mut [T]| {
            for (query, to) in queries.zip(q.chunks_exact_mut(d)) {
                self.gather(task, 0, query, to);
            }
            k.product(q, d, n, scores);
        });
        for (scores, inverse_sum) in scores.chunks_exact_mut(k.stride()).zip(inverse_sums) {
            scores_to_weights(&mut scores[..self.tokens], scale, inverse_sum);
        }
    }
}

multiversion! {
    /// Exponentials of one query's scores, in place, after the largest is subtracted and they are scaled; `inverse_sum` takes 1 over their sum.
    fn scores_to_weights(scores: &mut [f32], scale: f32, inverse_sum: &mut f32) {
        let largest = max(scores);
        for score in scores.iter_mut() {
            *score = exp::<FMA>((*score - largest) * scale);
        }
        *inverse_sum = 1.0 / sum_by(scores, |v| v);
    }
}
