//! The vectors that an index is made of, in f32 when they are needed: all of them at once would be more than there is memory for.

use crate::instructions::choose_kernels;
use crate::lanes::Lanes;
use crate::lanes::portable::Portable;
#[cfg(target_arch = "x86_64")]
use crate::lanes::{avx2::Avx2, avx512::Avx512};
use half::f16;
use std::ops::Range;

/// Vectors, one after the other in memory, or a sample of them.
#[derive(Clone, Copy)]
pub(super) struct Vectors<'a> {
    values: &'a [f16],
    dimension: usize,
    count: usize,
}

impl<'a> Vectors<'a> {
    /// All of them, each of so many values.
    pub(super) fn all(values: &'a [f16], dimension: usize) -> Vectors<'a> {
        Vectors { values, dimension, count: values.len() / dimension }
    }

    /// So many at most, spread evenly over all.
    pub(super) fn sample(&self, count: usize) -> Vectors<'a> {
        Vectors { count: count.min(self.count), ..*self }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Values of each.
    pub(super) fn dimension(&self) -> usize {
        self.dimension
    }

    /// Appends one. A vector with a value that is not finite has no nearest ones anyway: such values count as 0.
    pub(super) fn append(&self, number: usize, into: &mut Vec<f32>) {
        let in_all = self.values.len() / self.dimension;
        let place = number * in_all / self.count;
        let end = into.len();
        into.resize(end + self.dimension, 0.0);
        Widen::get().finite(&self.values[place * self.dimension..][..self.dimension], &mut into[end..]);
    }

    /// Replaces `into` with some.
    pub(super) fn read(&self, numbers: Range<usize>, into: &mut Vec<f32>) {
        into.clear();
        numbers.for_each(|number| self.append(number, into));
    }
}

/// Makes f32 of halves.
struct Widen(unsafe fn(&[f16], &mut [f32]));

choose_kernels!(Widen { Widen(widen_avx512), Widen(widen_avx2), Widen(widen_portable) });

impl Widen {
    /// Replaces `wide`, as many values, with the halves, and with 0 what is not finite.
    fn finite(&self, halves: &[f16], wide: &mut [f32]) {
        assert_eq!(halves.len(), wide.len(), "as many values");
        // SAFETY: `of` has checked the instruction set, and both have as many values.
        unsafe { (self.0)(halves, wide) }
    }
}

/// # Safety
/// The processor has the instruction set of `L`, and there are as many values as halves.
#[inline(always)]
unsafe fn widen<L: Lanes>(halves: &[f16], wide: &mut [f32]) {
    let whole = halves.len() / L::WIDTH * L::WIDTH;
    let rest = halves.len() - whole;
    // SAFETY: no more is read and written than there is; the rest is passed on to the caller.
    unsafe {
        for at in (0..whole).step_by(L::WIDTH) {
            L::load_f16(halves.as_ptr().add(at)).store(wide.as_mut_ptr().add(at));
        }
        if rest > 0 {
            L::load_f16_first(halves.as_ptr().add(whole), rest).store_first(wide.as_mut_ptr().add(whole), rest);
        }
    }
    wide.iter_mut().for_each(|value| *value = if value.is_finite() { *value } else { 0.0 });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn widen_avx512(halves: &[f16], wide: &mut [f32]) {
    // SAFETY: as the caller promises.
    unsafe { widen::<Avx512>(halves, wide) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_avx2(halves: &[f16], wide: &mut [f32]) {
    // SAFETY: as the caller promises.
    unsafe { widen::<Avx2>(halves, wide) }
}

unsafe fn widen_portable(halves: &[f16], wide: &mut [f32]) {
    // SAFETY: as the caller promises.
    unsafe { widen::<Portable>(halves, wide) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instructions::Instructions;

    #[test]
    fn every_instruction_set_makes_the_same_values() {
        for count in 0..70 {
            let halves: Vec<f16> = (0..count).map(|value| f16::from_f32(value as f32 * 0.37 - 9.0)).collect();
            let expected: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
            for set in Instructions::available() {
                let mut wide = vec![7.0; count];
                Widen::of(set).finite(&halves, &mut wide);
                assert_eq!(wide, expected, "{set}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_zero_and_samples_are_spread() {
        let values = [1.0, f32::NAN, 2.0, f32::INFINITY, 3.0, 4.0, 5.0, -6.0].map(f16::from_f32);
        let vectors = Vectors::all(&values, 2);
        let mut read = Vec::new();
        vectors.read(0..4, &mut read);
        assert_eq!(read, [1.0, 0.0, 2.0, 0.0, 3.0, 4.0, 5.0, -6.0]);
        vectors.sample(2).read(0..2, &mut read);
        assert_eq!(read, [1.0, 0.0, 3.0, 4.0]);
        assert_eq!(vectors.sample(9).len(), 4);
    }
}
