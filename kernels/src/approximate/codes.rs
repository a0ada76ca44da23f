//! What becomes of a vector: a code of four bits for each part of four values, which names the nearest of sixteen that were learnt.

use super::clusters::{FEW_ROUNDS, start_at};
use crate::instructions::choose_kernels;

/// Values of a part.
pub(super) const PART: usize = 4;
/// Codes of a part.
pub(super) const CODES: usize = 16;

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
    /// Replaces `codes` with one for each part of the vector.
    pub(super) fn encode(&self, vector: &[f32], codes: &mut Vec<u8>) {
        let nearest = Nearest::get();
        codes.clear();
        codes.extend(self.parts.iter().enumerate().map(|(number, codes)| nearest.find(codes, part(vector, number))));
    }
}

/// Learns what the codes stand for from vectors one after the other: sixteen centroids of each part.
pub(super) fn learn(vectors: &[f32], dimension: usize) -> Vec<PartCodes> {
    let parts = (0..parts_of(dimension)).map(|number| {
        let points: Vec<[f32; PART]> = vectors.chunks_exact(dimension).map(|vector| part(vector, number)).collect();
        learn_part(&points)
    });
    parts.collect()
}

/// Lloyd's k-means over the parts of many vectors.
fn learn_part(points: &[[f32; PART]]) -> PartCodes {
    let nearest = Nearest::get();
    let mut codes = [[0.0; CODES]; PART];
    for code in 0..CODES {
        let point = points.get(start_at(code, CODES, points.len())).copied().unwrap_or_default();
        set(&mut codes, code, point);
    }
    for _ in 0..FEW_ROUNDS {
        let (mut sums, mut counts) = ([[0f64; PART]; CODES], [0u32; CODES]);
        for point in points {
            let code = usize::from(nearest.find(&codes, *point));
            counts[code] += 1;
            for (sum, value) in sums[code].iter_mut().zip(point) {
                *sum += f64::from(*value);
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

/// Finds the code whose values are nearest.
struct Nearest(unsafe fn(&PartCodes, [f32; PART]) -> u8);

choose_kernels!(Nearest { Nearest(nearest_avx512), Nearest(nearest_avx2), Nearest(nearest_portable) });

impl Nearest {
    fn find(&self, codes: &PartCodes, point: [f32; PART]) -> u8 {
        // SAFETY: `of` has checked the instruction set.
        unsafe { (self.0)(codes, point) }
    }
}

/// The code whose values are nearest by Euclidean distance. Written so that the compiler turns it into vector instructions.
#[inline(always)]
fn nearest_of(codes: &PartCodes, point: [f32; PART]) -> u8 {
    let mut distances = [0f32; CODES];
    for (value, codes) in point.into_iter().zip(codes) {
        for (distance, code) in distances.iter_mut().zip(codes) {
            *distance += (value - code) * (value - code);
        }
    }
    let least = distances.iter().copied().fold(f32::INFINITY, f32::min);
    distances.iter().position(|distance| *distance <= least).unwrap_or(0) as u8
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn nearest_avx512(codes: &PartCodes, point: [f32; PART]) -> u8 {
    nearest_of(codes, point)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn nearest_avx2(codes: &PartCodes, point: [f32; PART]) -> u8 {
    nearest_of(codes, point)
}

fn nearest_portable(codes: &PartCodes, point: [f32; PART]) -> u8 {
    nearest_of(codes, point)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instructions::Instructions;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_instruction_set_finds_the_nearest_code(
            values in prop::array::uniform16(prop::array::uniform4(-1f32..1.0)),
            point in prop::array::uniform4(-1f32..1.0),
        ) {
            let mut codes = [[0.0; CODES]; PART];
            values.into_iter().enumerate().for_each(|(code, values)| set(&mut codes, code, values));
            let distance = |code: usize| values[code].iter().zip(point).map(|(one, other)| f64::from(one - other).powi(2)).sum::<f64>();
            let least = (0..CODES).map(distance).fold(f64::INFINITY, f64::min);
            for set in Instructions::available() {
                let found = Nearest::of(set).find(&codes, point);
                prop_assert!(distance(usize::from(found)) <= least + 1e-6, "{}: {}", set, found);
            }
        }
    }
}
