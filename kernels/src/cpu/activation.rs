//! The functions applied to single values: exp, GELU, ReLU.

use super::numbers::Numbers;
use crate::configuration::Activation;
use crate::lanes::Lanes;

/// e^x for x from -87.3 to 88.3 (beyond, the value at the border), relative error below 3e-7.
///
/// x = n ln 2 + r with integer n and |r| <= ln 2 / 2; e^r by the polynomial of Cephes' `expf`
/// (S. Moshier, <https://www.netlib.org/cephes/>), then multiplied by 2^n.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L) -> L {
    // Adding and taking away 1.5 * 2^23 rounds an f32 of magnitude below 2^22 to the nearest integer.
    const ROUNDER: f32 = 12_582_912.0;
    // SAFETY: passed on to the caller.
    unsafe {
        let x = x.max(L::splat(-87.3)).min(L::splat(88.3));
        let n = x.mul_add(L::splat(std::f32::consts::LOG2_E), L::splat(ROUNDER)).sub(L::splat(ROUNDER));
        // ln 2 in two parts, of which the first has few bits, so that n * part is exact.
        let r = n.mul_add(L::splat(-0.693_359_4), x);
        let r = n.mul_add(L::splat(2.121_944_4e-4), r);
        let mut p = L::splat(1.987_569_1e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = p.mul_add(r, L::splat(coefficient));
        }
        let p = p.mul_add(r.mul(r), r).add(L::splat(1.0));
        p.mul(n.exp2_of_integer())
    }
}

/// GELU in its exact form, x/2 (1 + erf(x / sqrt 2)), absolute error below 1e-6 for |x| <= 4 and below
/// 1e-6 |x| beyond.
///
/// erf by the rational approximation that Eigen and XLA use (odd polynomial of degree 13 over an even one of
/// degree 8, on [-4, 4], error of a few units in the last place).
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn gelu<L: Lanes>(x: L) -> L {
    const NUMERATOR: [f32; 6] = [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2];
    const DENOMINATOR: [f32; 4] = [-2.133_740_5e-4, -1.682_827e-3, -7.373_329_3e-3, -1.426_474e-2];
    // SAFETY: passed on to the caller.
    unsafe {
        let z = x.mul(L::splat(std::f32::consts::FRAC_1_SQRT_2)).max(L::splat(-4.0)).min(L::splat(4.0));
        let square = z.mul(z);
        let mut numerator = L::splat(-2.726_142_3e-10);
        for coefficient in NUMERATOR {
            numerator = numerator.mul_add(square, L::splat(coefficient));
        }
        let mut denominator = L::splat(-1.456_607_2e-5);
        for coefficient in DENOMINATOR {
            denominator = denominator.mul_add(square, L::splat(coefficient));
        }
        let erf = numerator.mul(z).div(denominator);
        let half = x.mul(L::splat(0.5));
        half.mul_add(erf, half)
    }
}

/// GELU for a result of which eight bits are kept: absolute error below 3e-5 for |x| <= 4 and below 4e-5 |x| beyond.
///
/// x (1/2 + x q(x^2)), where the polynomial q has the least largest error on [-4, 4] (found by linear programming).
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn gelu_of_halves<L: Lanes>(x: L) -> L {
    const COEFFICIENTS: [f32; 8] = [
        -6.063_818e-9,
        2.439_904_3e-7,
        -5.859_045_4e-6,
        9.492_518e-5,
        -1.112_769_9e-3,
        9.815_523e-3,
        -6.632_318e-2,
        3.988_807_5e-1,
    ];
    // SAFETY: passed on to the caller.
    unsafe {
        let near = x.max(L::splat(-4.0)).min(L::splat(4.0));
        let square = near.mul(near);
        let mut q = L::splat(6.736_146_4e-11);
        for coefficient in COEFFICIENTS {
            q = q.mul_add(square, L::splat(coefficient));
        }
        x.mul(near.mul_add(q, L::splat(0.5)))
    }
}

/// max(x, 0).
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn relu<L: Lanes>(x: L) -> L {
    // SAFETY: passed on to the caller.
    unsafe { x.max(L::splat(0.0)) }
}

/// Which function follows a linear layer, applied in place to `count` values: as exactly as needed where products multiply `numbers`.
///
/// # Safety
/// The processor has the instruction set of `L`; `values` is valid for `count` values.
#[inline(always)]
pub(crate) unsafe fn apply<L: Lanes>(values: *mut f32, count: usize, function: Activation, numbers: Numbers) {
    // SAFETY: reads and writes stay within `count`; the rest is passed on to the caller.
    unsafe {
        let mut at = 0;
        while at < count {
            let left = count - at;
            let place = values.add(at);
            let x = if left >= L::WIDTH { L::load(place) } else { L::load_first(place, left) };
            let y = match function {
                Activation::Gelu if numbers == Numbers::F32 => gelu(x),
                Activation::Gelu => gelu_of_halves(x),
                Activation::Relu => relu(x),
            };
            if left >= L::WIDTH {
                y.store(place);
            } else {
                y.store_first(place, left);
            }
            at += L::WIDTH;
        }
    }
}
