//! What is broken when: drawn from a seed, so that a run can be repeated.

use crate::fault::Class;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// How long a fault lasts.
const LASTS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long the cluster is left alone between two.
const QUIET: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// In how many of a hundred cases a second fault, of the other kind, is added.
const TWO_AT_ONCE: u32 = 33;

/// Faults that are in the cluster at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blow {
    /// Their classes: of processes, of the network, or one of each.
    pub classes: Vec<Class>,
    /// How long they last.
    pub lasts: Duration,
    /// How long the cluster is left alone afterwards.
    pub quiet: Duration,
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
        let first = classes.clone();
        Schedule { random: StdRng::seed_from_u64(seed), classes, first }
    }

    /// The next blow; none when there is no class.
    pub fn next(&mut self) -> Option<Blow> {
        let class = match self.first.pop() {
            Some(class) => class,
            None => *self.classes.choose(&mut self.random)?,
        };
        let mut classes = vec![class];
        if self.random.random_range(0..100) < TWO_AT_ONCE {
            let other: Vec<Class> =
                self.classes.iter().copied().filter(|other| other.is_of_network() != class.is_of_network()).collect();
            classes.extend(other.choose(&mut self.random));
        }
        let lasts = self.random.random_range(LASTS.0..LASTS.1);
        Some(Blow { classes, lasts, quiet: self.random.random_range(QUIET.0..QUIET.1) })
    }

    /// Where the details of a blow are drawn from.
    pub fn random(&mut self) -> &mut StdRng {
        &mut self.random
    }
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
        let seen: HashSet<Class> = blows(3)[..count].iter().map(|blow| blow.classes[0]).collect();
        assert_eq!(seen.len(), count, "each comes before any comes again");
        assert!(blows(4).iter().any(|blow| blow.classes.len() == 2));
        assert!(
            blows(4)
                .iter()
                .all(|blow| blow.classes.len() < 2 || blow.classes[0].is_of_network() != blow.classes[1].is_of_network())
        );
        assert_eq!(Schedule::new(1, Vec::new()).next(), None);
    }
}
