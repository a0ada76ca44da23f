//! Exact search: inner products of an f32 query with rows of f16 values.
//!
//! For vectors of length one the inner product is the cosine. All functions here give the same score for the same
//! row, whichever of them computes it.

mod many;

pub use many::top_k_of_each;

use crate::instructions::choose_kernels;
use crate::lanes::Lanes;
use half::f16;
use roaring::RoaringBitmap;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A row and its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Position of the row.
    pub position: u32,
    /// Inner product of the query and the row.
    pub score: f32,
}

/// Rows that are scored together, so that each part of the query is read once for all of them.
const BLOCK_ROWS: usize = 4;

/// Inner product of `query` and `row`, over the length of the shorter.
pub fn dot(query: &[f32], row: &[f16]) -> f32 {
    let length = query.len().min(row.len());
    let mut scores = [0.0];
    score_rows(&query[..length], [&row[..length]], &mut scores);
    scores[0]
}

/// The `k` rows with the largest inner product with `query`, best first; of equal scores the lower position comes
/// first. `rows` holds rows of `dimension` values one after the other. With `allowed`, only the positions in it are
/// looked at; those past the last row are passed over. Rows whose score is not a number are never returned.
/// Positions above `u32::MAX` are not looked at.
///
/// # Panics
/// If `query` does not have `dimension` values, or `rows` is not a whole number of rows.
pub fn top_k(query: &[f32], rows: &[f16], dimension: usize, allowed: Option<&RoaringBitmap>, k: usize) -> Vec<Scored> {
    let count = count_rows(query, rows, dimension);
    let mut best = Best::new(k);
    if k == 0 {
        return Vec::new();
    }
    match allowed {
        None => score_each(query, rows, dimension, 0..count, |scored| best.offer(scored)),
        Some(allowed) => {
            let positions = allowed.iter().take_while(|position| *position < count);
            score_each(query, rows, dimension, positions, |scored| best.offer(scored));
        }
    }
    best.into_sorted()
}

/// The scores of the named rows, in the order of `positions`, for ranking candidates again that were found with
/// less exact vectors. Positions past the last row, and rows whose score is not a number, are left out.
///
/// # Panics
/// If `query` does not have `dimension` values, or `rows` is not a whole number of rows.
pub fn score(query: &[f32], rows: &[f16], dimension: usize, positions: &[u32]) -> Vec<Scored> {
    let count = count_rows(query, rows, dimension);
    let mut scores = Vec::with_capacity(positions.len());
    let positions = positions.iter().copied().filter(|position| *position < count);
    score_each(query, rows, dimension, positions, |scored| {
        if !scored.score.is_nan() {
            scores.push(scored);
        }
    });
    scores
}

/// Rounds to half precision, to nearest, ties to even; values beyond 65504 become infinite.
pub fn to_f16(values: &[f32]) -> Vec<f16> {
    use half::slice::HalfFloatSliceExt;
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    halves
}

/// Divides by the Euclidean length. A vector of zeros stays as it is.
pub fn normalize(values: &mut [f32]) {
    // In f64 neither the squares nor their sum can overflow or vanish.
    let squares: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
    if squares > 0.0 {
        let factor = 1.0 / squares.sqrt();
        for value in values {
            *value = (f64::from(*value) * factor) as f32;
        }
    }
}

fn count_rows(query: &[f32], rows: &[f16], dimension: usize) -> u32 {
    assert_eq!(query.len(), dimension, "the query has another dimension");
    if rows.is_empty() {
        return 0;
    }
    assert!(dimension > 0 && rows.len().is_multiple_of(dimension), "{} values are not whole rows of {dimension}", rows.len());
    u32::try_from(rows.len() / dimension).unwrap_or(u32::MAX)
}

/// Scores the rows at `positions`, all of which exist, in this order.
fn score_each(query: &[f32], rows: &[f16], dimension: usize, positions: impl Iterator<Item = u32>, mut take: impl FnMut(Scored)) {
    let row = |position: u32| {
        let start = position as usize * dimension;
        &rows[start..start + dimension]
    };
    let mut positions = positions.fuse();
    // The rows of the next block are asked for before this one is computed.
    let mut next = fill(&mut positions);
    while let ([Some(a), Some(b), Some(c), Some(d)], _) = next {
        let block = [a, b, c, d];
        next = fill(&mut positions);
        for position in next.0.into_iter().flatten() {
            prefetch(row(position));
        }
        let mut scores = [0.0; BLOCK_ROWS];
        score_rows(query, block.map(row), &mut scores);
        for (position, score) in block.into_iter().zip(scores) {
            take(Scored { position, score });
        }
    }
    for position in next.0.into_iter().flatten() {
        let mut scores = [0.0];
        score_rows(query, [row(position)], &mut scores);
        take(Scored { position, score: scores[0] });
    }
}

/// The next positions, as many as there are up to a block, and their number.
fn fill(positions: &mut impl Iterator<Item = u32>) -> ([Option<u32>; BLOCK_ROWS], usize) {
    let mut block = [None; BLOCK_ROWS];
    let mut count = 0;
    for place in &mut block {
        *place = positions.next();
        count += usize::from(place.is_some());
    }
    (block, count)
}

fn prefetch(row: &[f16]) {
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks(32) {
        // SAFETY: a prefetch never faults, and SSE is part of x86-64.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

/// A row that may be among the best, ordered so that the worst is the greatest.
struct Candidate(Scored);

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        // No candidate is NaN, for which `total_cmp` would differ; -0 and 0 are told apart nowhere else, so they
        // are made equal here.
        let by_score = (other.0.score + 0.0).total_cmp(&(self.0.score + 0.0));
        by_score.then(self.0.position.cmp(&other.0.position))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// The best rows so far.
struct Best {
    k: usize,
    heap: BinaryHeap<Candidate>,
}

impl Best {
    fn new(k: usize) -> Self {
        Self { k, heap: BinaryHeap::new() }
    }

    #[inline]
    fn offer(&mut self, scored: Scored) {
        if self.heap.len() < self.k {
            if !scored.score.is_nan() {
                self.heap.push(Candidate(scored));
            }
            return;
        }
        let Some(mut worst) = self.heap.peek_mut() else {
            return;
        };
        // False also where the score is not a number. Positions of an equal score come later, and so are worse,
        // except where the caller names them in another order.
        if scored.score >= worst.0.score && Candidate(scored) < *worst {
            *worst = Candidate(scored);
        }
    }

    /// The positions of the best, in no order.
    fn positions(&self) -> impl Iterator<Item = u32> {
        self.heap.iter().map(|candidate| candidate.0.position)
    }

    fn into_sorted(self) -> Vec<Scored> {
        self.heap.into_sorted_vec().into_iter().map(|candidate| candidate.0).collect()
    }
}

type ScoreBlock = unsafe fn(&[f32], [&[f16]; BLOCK_ROWS], &mut [f32; BLOCK_ROWS]);
type ScoreOne = unsafe fn(&[f32], [&[f16]; 1], &mut [f32; 1]);

/// The kernels of the widest instruction set that this processor has.
struct Kernels {
    score_block: ScoreBlock,
    score_one: ScoreOne,
}

choose_kernels!(Kernels { avx512::KERNELS, avx2::KERNELS, portable::KERNELS });

/// A number of rows for which there is a kernel.
trait RowBlock<'a>: Sized {
    type Scores;
    fn run(self, kernels: &Kernels, query: &[f32], scores: &mut Self::Scores);
}

impl<'a> RowBlock<'a> for [&'a [f16]; BLOCK_ROWS] {
    type Scores = [f32; BLOCK_ROWS];
    #[inline]
    fn run(self, kernels: &Kernels, query: &[f32], scores: &mut Self::Scores) {
        // SAFETY: `Kernels::of` has checked the instruction set.
        unsafe { (kernels.score_block)(query, self, scores) }
    }
}

impl<'a> RowBlock<'a> for [&'a [f16]; 1] {
    type Scores = [f32; 1];
    #[inline]
    fn run(self, kernels: &Kernels, query: &[f32], scores: &mut Self::Scores) {
        // SAFETY: `Kernels::of` has checked the instruction set.
        unsafe { (kernels.score_one)(query, self, scores) }
    }
}

#[inline]
fn score_rows<'a, R: RowBlock<'a>>(query: &[f32], rows: R, scores: &mut R::Scores) {
    rows.run(Kernels::get(), query, scores);
}

/// Inner products of `query` with `ROWS` rows of its length. The order of additions does not depend on `ROWS`.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
unsafe fn inner_products<L: Lanes, const ROWS: usize>(query: &[f32], rows: [&[f16]; ROWS], scores: &mut [f32; ROWS]) {
    let length = query.len();
    for row in rows {
        assert_eq!(row.len(), length);
    }
    // SAFETY: all offsets stay below `length`, the length of the query and of each row.
    unsafe {
        let mut even = [L::splat(0.0); ROWS];
        let mut odd = [L::splat(0.0); ROWS];
        let mut at = 0;
        while at + 2 * L::WIDTH <= length {
            let first = L::load(query.as_ptr().add(at));
            let second = L::load(query.as_ptr().add(at + L::WIDTH));
            for row in 0..ROWS {
                let values = rows[row].as_ptr().add(at);
                even[row] = L::load_f16(values).mul_add(first, even[row]);
                odd[row] = L::load_f16(values.add(L::WIDTH)).mul_add(second, odd[row]);
            }
            at += 2 * L::WIDTH;
        }
        if at + L::WIDTH <= length {
            let first = L::load(query.as_ptr().add(at));
            for row in 0..ROWS {
                even[row] = L::load_f16(rows[row].as_ptr().add(at)).mul_add(first, even[row]);
            }
            at += L::WIDTH;
        }
        if at < length {
            let left = length - at;
            let last = L::load_first(query.as_ptr().add(at), left);
            for row in 0..ROWS {
                let values = L::load_f16_first(rows[row].as_ptr().add(at), left);
                odd[row] = values.mul_add(last, odd[row]);
            }
        }
        for row in 0..ROWS {
            scores[row] = even[row].add(odd[row]).sum();
        }
    }
}

/// Instantiates the kernels for one instruction set, given its register type and the processor features.
macro_rules! kernels {
    ($module:ident, $lanes:ty $(, $features:literal)?) => {
        mod $module {
            use super::*;

            pub(super) static KERNELS: Kernels = Kernels {
                score_block,
                score_one,
            };

            $(#[target_feature(enable = $features)])?
            unsafe fn score_block(
                query: &[f32],
                rows: [&[f16]; BLOCK_ROWS],
                scores: &mut [f32; BLOCK_ROWS],
            ) {
                // SAFETY: `Kernels::of` has checked the instruction set.
                unsafe { inner_products::<$lanes, BLOCK_ROWS>(query, rows, scores) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn score_one(query: &[f32], rows: [&[f16]; 1], scores: &mut [f32; 1]) {
                // SAFETY: `Kernels::of` has checked the instruction set.
                unsafe { inner_products::<$lanes, 1>(query, rows, scores) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(avx512, crate::lanes::avx512::Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
kernels!(avx2, crate::lanes::avx2::Avx2, "avx2,fma,f16c");
kernels!(portable, crate::lanes::portable::Portable);

#[cfg(test)]
mod tests;
