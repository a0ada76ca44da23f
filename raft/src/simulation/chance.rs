//! Chance on this thread, from a seed.

use rand_of_openraft::rngs::SmallRng;
use rand_of_openraft::{Rng, SeedableRng};
use std::cell::RefCell;

thread_local! {
    static SOURCE: RefCell<SmallRng> = RefCell::new(SmallRng::seed_from_u64(0));
}

/// Begins anew with this seed.
pub fn seed(seed: u64) {
    SOURCE.with_borrow_mut(|source| *source = SmallRng::seed_from_u64(seed));
}

/// 64 bits.
pub fn bits() -> u64 {
    SOURCE.with_borrow_mut(Rng::next_u64)
}

/// Whether something happens that does once in so many times.
pub fn once_in(times: u64) -> bool {
    bits().is_multiple_of(times)
}

/// A source of its own, which begins where this one stands.
pub(super) fn fork() -> SmallRng {
    SmallRng::seed_from_u64(bits())
}
