//! What becomes of a vector: a code of four bits for each part of four values, which names the nearest of sixteen that were learnt.

use super::clusters::{FEW_ROUNDS, start_at};
use crate::instructions::choose_kernels;

/// Values of a part.
pub(super) const PART: usize = 4;
/// Codes of a part.
pub(super) const CODES: usize = 16;
/// Points whose codes are found together.
pub(super) const TOGETHER: usize = 16;

/// The same part of several vectors: the first values of all of them, then the second values, and so on.
type Points = [[f32; TOGETHER]; PART];

/// What the sixteen codes of a part stand for: the first values of all of them, then the second values, and so on, so that all are compared at once.
pub(super) type PartCodes = [[f32; CODES]; PART];

/// What the codes stand for.
pub(super) struct Codebook<'a> {
    /// For each part of a vector, the sixteen that were learnt. Parts come in pairs, because two codes share a byte.
    pub(super) parts: &'a [PartCodes],
}

/// Parts of a vector of so many values. The last ones are filled up with zeros.
pub(super) fn parts_of(dimension: usize) -> usize {
    dimension.div_ceil(PART).next_multiple_of(2)
}

/// A part of a vector; zeros past its end.
#[inline(always)]
pub(super) fn part(vector: &[f32], number: usize) -> [f32; PART] {
    let start = (number * PART).min(vector.len());
    let own = &vector[start..(start + PART).min(vector.len())];
    let mut part = [0.0; PART];
    part[..own.len()].copy_from_slice(own);
    part
}

impl Codebook<'_> {
    /// Gives the codes of at most [`TOGETHER`] vectors of so many values, one after the other: for each part its number and the codes of all, of which
    /// those past the last vector mean nothing.
    pub(super) fn encode(&self, vectors: &[f32], dimension: usize, mut take: impl FnMut(usize, [u8; TOGETHER])) {
        let nearest = Nearest::get();
        for (number, codes) in self.parts.iter().enumerate() {
            take(number, nearest.find(codes, &points(vectors, dimension, number)));
        }
    }
}

/// A part of at most [`TOGETHER`] vectors; zeros past the last one.
fn points(vectors: &[f32], dimension: usize, number: usize) -> Points {
    let mut points = [[0.0; TOGETHER]; PART];
    for (place, vector) in vectors.chunks_exact(dimension).take(TOGETHER).enumerate() {
        for (values, value) in points.iter_mut().zip(part(vector, number)) {
            values[place] = value;
        }
    }
    points
}

/// Learns what the codes stand for from vectors one after the other: sixteen centroids of each part. Uses so many threads.
pub(super) fn learn(vectors: &[f32], dimension: usize, threads: usize) -> Vec<PartCodes> {
    let mut learnt = vec![[[0.0; CODES]; PART]; parts_of(dimension)];
    let share = learnt.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        for (thread, parts) in learnt.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                for (number, codes) in (thread * share..).zip(parts) {
                    let blocks = vectors.chunks(TOGETHER * dimension);
                    let blocks: Vec<Points> = blocks.map(|block| points(block, dimension, number)).collect();
                    *codes = learn_part(&blocks, vectors.len() / dimension);
                }
            });
        }
    });
    learnt
}

/// Lloyd's k-means over so many points, in blocks.
fn learn_part(blocks: &[Points], count: usize) -> PartCodes {
    let nearest = Nearest::get();
    let point = |number: usize| std::array::from_fn(|value| blocks[number / TOGETHER][value][number % TOGETHER]);
    let mut codes = [[0.0; CODES]; PART];
    for code in 0..CODES.min(count) {
        set(&mut codes, code, point(start_at(code, CODES, count)));
    }
    for _ in 0..FEW_ROUNDS {
        let (mut sums, mut counts) = ([[0f64; PART]; CODES], [0u32; CODES]);
        for (first, block) in (0..count).step_by(TOGETHER).zip(blocks) {
            let found = nearest.find(&codes, block);
            for (place, code) in found.into_iter().take(count - first).enumerate() {
                let code = usize::from(code);
                counts[code] += 1;
                for (sum, values) in sums[code].iter_mut().zip(block) {
                    *sum += f64::from(values[place]);
                }
            }
        }
        let most = (0..CODES).max_by_key(|code| counts[*code]).unwrap_or(0);
        for code in 0..CODES {
            let mean = |code: usize| sums[code].map(|sum| (sum / f64::from(counts[code].max(1))) as f32);
            // A code that nothing is nearest to is put beside the one that is used the most, and takes some of its points.
            let mut point = mean(if counts[code] == 0 { most } else { code });
            if counts[code] == 0 {
                point = point.map(|value| value * 1.01 + f32::EPSILON * code as f32);
            }
            set(&mut codes, code, point);
        }
    }
    codes
}

fn set(codes: &mut PartCodes, code: usize, point: [f32; PART]) {
    for (values, value) in codes.iter_mut().zip(point) {
        values[code] = value;
    }
}

/// Finds the codes whose values are nearest to points.
struct Nearest(unsafe fn(&PartCodes, &Points) -> [u8; TOGETHER]);

choose_kernels!(Nearest { Nearest(nearest_avx512), Nearest(nearest_avx2), Nearest(nearest_portable) });

impl Nearest {
    fn find(&self, codes: &PartCodes, points: &Points) -> [u8; TOGETHER] {
        // SAFETY: `of` has checked the instruction set.
        unsafe { (self.0)(codes, points) }
    }
}

/// The code whose values are nearest to each point by Euclidean distance. Written so that the compiler turns it into vector instructions, a point in
/// each lane.
#[inline(always)]
fn nearest_of(codes: &PartCodes, points: &Points) -> [u8; TOGETHER] {
    let (mut nearest, mut least) = ([0u32; TOGETHER], [f32::INFINITY; TOGETHER]);
    for code in 0..CODES {
        let mut distances = [0f32; TOGETHER];
        for (values, codes) in points.iter().zip(codes) {
            for (distance, value) in distances.iter_mut().zip(values) {
                *distance += (value - codes[code]) * (value - codes[code]);
            }
        }
        for ((nearest, least), distance) in nearest.iter_mut().zip(&mut least).zip(distances) {
            let is_nearer = distance < *least;
            *nearest = if is_nearer { code as u32 } else { *nearest };
            *least = if is_nearer { distance } else { *least };
        }
    }
    nearest.map(|code| code as u8)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn nearest_avx512(codes: &PartCodes, points: &Points) -> [u8; TOGETHER] {
    nearest_of(codes, points)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn nearest_avx2(codes: &PartCodes, points: &Points) -> [u8; TOGETHER] {
    nearest_of(codes, points)
}

fn nearest_portable(codes: &PartCodes, points: &Points) -> [u8; TOGETHER] {
    nearest_of(codes, points)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instructions::Instructions;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_instruction_set_finds_the_nearest_codes(
            values in prop::array::uniform16(prop::array::uniform4(-1f32..1.0)),
            vectors in prop::collection::vec(-1f32..1.0, PART * TOGETHER),
        ) {
            let mut codes = [[0.0; CODES]; PART];
            values.into_iter().enumerate().for_each(|(code, values)| set(&mut codes, code, values));
            let distance = |code: usize, point: &[f32]| values[code].iter().zip(point).map(|(one, other)| f64::from(one - other).powi(2)).sum::<f64>();
            for set in Instructions::available() {
                let found = Nearest::of(set).find(&codes, &points(&vectors, PART, 0));
                for (code, point) in found.into_iter().zip(vectors.chunks_exact(PART)) {
                    let least = (0..CODES).map(|code| distance(code, point)).fold(f64::INFINITY, f64::min);
                    prop_assert!(distance(usize::from(code), point) <= least + 1e-6, "{}: {}", set, code);
                }
            }
        }
    }
}
