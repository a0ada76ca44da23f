//! Layer normalisation.

use crate::lanes::Lanes;

/// Normalises each row of `rows` (as wide as `scale`) in place: y = (x - mean) / sqrt(variance + epsilon) * scale +
/// shift, with the variance of the whole row (Ba, Kiros and Hinton, "Layer Normalization", 2016). The variance is
/// taken about the mean in a second pass, which does not lose digits where the mean is large.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn layer_norm<L: Lanes>(rows: &mut [f32], scale: &[f32], shift: &[f32], epsilon: f32) {
    let width = scale.len();
    assert!(width > 0 && shift.len() == width && rows.len().is_multiple_of(width));
    let whole = width - width % L::WIDTH;
    let rest = width - whole;
    for row in rows.chunks_exact_mut(width) {
        let row = row.as_mut_ptr();
        // SAFETY: offsets stay below `width`, the length of the row, of `scale` and of `shift`.
        unsafe {
            let mut sum = L::splat(0.0);
            for at in (0..whole).step_by(L::WIDTH) {
                sum = sum.add(L::load(row.add(at)));
            }
            if rest > 0 {
                sum = sum.add(L::load_first(row.add(whole), rest));
            }
            let mean = L::splat(sum.sum() / width as f32);
            let mut squares = L::splat(0.0);
            for at in (0..whole).step_by(L::WIDTH) {
                let distance = L::load(row.add(at)).sub(mean);
                squares = distance.mul_add(distance, squares);
            }
            let mut squares = squares.sum();
            for at in whole..width {
                let distance = *row.add(at) - sum.sum() / width as f32;
                squares += distance * distance;
            }
            let factor = L::splat(1.0 / (squares / width as f32 + epsilon).sqrt());
            for at in (0..whole).step_by(L::WIDTH) {
                let value = L::load(row.add(at)).sub(mean).mul(factor);
                value.mul_add(L::load(scale.as_ptr().add(at)), L::load(shift.as_ptr().add(at))).store(row.add(at));
            }
            if rest > 0 {
                let value = L::load_first(row.add(whole), rest).sub(mean).mul(factor);
                let value =
                    value.mul_add(L::load_first(scale.as_ptr().add(whole), rest), L::load_first(shift.as_ptr().add(whole), rest));
                value.store_first(row.add(whole), rest);
            }
        }
    }
}
