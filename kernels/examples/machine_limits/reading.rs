//! Reading memory, in order.

use std::hint::black_box;

/// More than any level of cache holds, in words.
const WORDS: usize = (1 << 30) / size_of::<u64>();

/// What is read.
pub fn buffer() -> Vec<u64> {
    (0..WORDS as u64).collect()
}

/// Reads one of `parts` equal parts of the buffer.
pub fn read(buffer: &[u64], part: usize, parts: usize) {
    let length = buffer.len() / parts;
    black_box(sum(&buffer[part * length..][..length]));
}

fn sum(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the instructions.
        return unsafe { sum_avx512(words) };
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the instructions.
        return unsafe { sum_avx2(words) };
    }
    sum_lanes(words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(words: &[u64]) -> u64 {
    sum_lanes(words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(words: &[u64]) -> u64 {
    sum_lanes(words)
}

/// In as many sums as make the additions independent of each other; the compiler makes vectors of them.
#[inline(always)]
fn sum_lanes(words: &[u64]) -> u64 {
    let mut sums = [0_u64; 64];
    for some in words.chunks_exact(sums.len()) {
        for (sum, word) in sums.iter_mut().zip(some) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}
