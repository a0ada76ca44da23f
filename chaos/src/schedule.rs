//! What is broken when: drawn from a seed, so that a run can be repeated.

use crate::fault::{Class, Kind};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// How long the cluster is left alone between two.
const QUIET: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// In how many of a hundred cases a second fault is added, of the network when the first is not, and the other way round.
const TWO_AT_ONCE: u32 = 60;
/// How much more often a fault comes than one that takes long.
const WEIGHT: usize = 4;

/// Faults that are in the cluster at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blow {
    /// Their classes: one, or one of the network and another.
    pub classes: Vec<Class>,
    /// How long they last.
    pub lasts: Duration,
    /// How long the cluster is left alone afterwards.
    pub quiet: Duration,
    /// What its details are drawn from, so that how many those take does not change what comes next.
    pub details: u64,
}

/// Blows without end.
pub struct Schedule {
    random: StdRng,
    classes: Vec<Class>,
    first: Vec<Class>,
}

impl Schedule {
    /// Of these classes. Each comes once before any comes again.
    pub fn new(seed: u64, classes: Vec<Class>) -> Schedule {
        let mut random = StdRng::seed_from_u64(seed);
        let mut first = classes.clone();
        first.shuffle(&mut random);
        Schedule { random, classes, first }
    }

    /// The next blow; none when there is no class.
    pub fn next(&mut self) -> Option<Blow> {
        let class = match self.first.pop() {
            Some(class) => class,
            None => *self.classes.choose_weighted(&mut self.random, |class| weight(*class)).ok()?,
        };
        let mut classes = vec![class];
        if is_combined(class) && self.random.random_range(0..100) < TWO_AT_ONCE {
            let is_of_network = |class: Class| class.kind() == Kind::Network;
            let fits = |other: &Class| is_combined(*other) && is_of_network(*other) != is_of_network(class);
            let others: Vec<Class> = self.classes.iter().copied().filter(fits).collect();
            classes.extend(others.choose_weighted(&mut self.random, |class| weight(*class)).ok());
        }
        classes.sort_by_key(|class| turn(*class));
        let lasts = class.lasts(&mut self.random);
        let quiet = self.random.random_range(QUIET.0..QUIET.1);
        Some(Blow { classes, lasts, quiet, details: self.random.random() })
    }
}

/// Which of two comes first: a slow disk is seen by what is written to it, and a fault of the network by what is sent. Neither may be gone by then.
fn turn(class: Class) -> usize {
    match class.kind() {
        _ if class == Class::SlowDisk => 0,
        Kind::Network => 1,
        Kind::Process | Kind::Disk | Kind::Membership => 2,
    }
}

fn weight(class: Class) -> usize {
    if is_combined(class) { WEIGHT } else { 1 }
}

/// Whether another fault may come with it. With a long one some shards would have no majority for all that time, and clients would do nothing but wait.
fn is_combined(class: Class) -> bool {
    !class.is_alone() && class != Class::LongPause
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;
    use std::collections::HashSet;

    #[test]
    fn a_seed_gives_the_same_blows_and_every_class_comes() {
        let blows = |seed| {
            let mut schedule = Schedule::new(seed, Class::value_variants().to_vec());
            (0..100).filter_map(|_| schedule.next()).collect::<Vec<_>>()
        };
        assert_eq!(blows(1), blows(1));
        assert_ne!(blows(1), blows(2));
        let count = Class::value_variants().len();
        let seen: HashSet<Class> = blows(3)[..count].iter().flat_map(|blow| blow.classes.clone()).collect();
        assert_eq!(seen.len(), count, "each comes before any comes again");
        assert!(blows(4).iter().any(|blow| blow.classes.len() == 2));
        let of_network = |class: &&Class| class.kind() == Kind::Network;
        let fit = |blow: &Blow| {
            blow.classes.iter().filter(of_network).count() == 1 && !blow.classes.iter().any(|class| class.is_alone())
        };
        assert!(blows(4).iter().all(|blow| blow.classes.len() == 1 || fit(blow)));
        assert_eq!(Schedule::new(1, Vec::new()).next(), None);
    }
}
