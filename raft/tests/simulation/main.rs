//! Replication under a seeded scheduler, clock, network and disk: thousands of short runs, each of which can be run again exactly as it was.
//!
//! `SEEDS` says how many, `FIRST` from which on, `SEED` that only this one is run and printed.
#![allow(clippy::unwrap_used, missing_docs)]

mod clients;
mod disk;
mod documents;
mod faults;
mod ledger;
mod members;
mod mutants;
mod network;
mod trace;
mod world;

use ledger::Rule;
use mutants::Mutant;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use world::{Outcome, Plot, memory, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

fn plot(seed: u64) -> Plot {
    Plot { seed, mutant: None, is_shown: false }
}

/// Runs these seeds on all cores; those that broke a rule, and what all did together.
fn run_all(first: u64, count: u64) -> (Vec<(u64, Outcome)>, Outcome) {
    let next = AtomicU64::new(first);
    let results = Mutex::new((Vec::new(), Outcome::default()));
    let folder = memory();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let outcome = run(plot(seed), folder.path());
                    let mut results = results.lock().unwrap();
                    results.1.add(&outcome);
                    if outcome.violation.is_some() {
                        results.0.push((seed, outcome));
                    }
                }
            });
        }
    });
    results.into_inner().unwrap()
}

impl Outcome {
    fn add(&mut self, other: &Outcome) {
        self.steps += other.steps;
        self.looks += other.looks;
        self.messages += other.messages;
        self.dropped += other.dropped;
        self.leaders += other.leaders;
        self.changes += other.changes;
        self.entries += other.entries;
        self.writes += other.writes;
        self.reads += other.reads;
        self.unknown += other.unknown;
        self.virtual_ms += other.virtual_ms;
        self.recovered_ms = self.recovered_ms.max(other.recovered_ms);
        for (fault, times) in &other.faults {
            *self.faults.entry(fault).or_default() += times;
        }
    }

    fn print(&self, seeds: u64, seconds: f64) {
        let faults: u64 = self.faults.values().sum();
        println!(
            "{seeds} seeds in {seconds:.1} s, {:.1} a second; {:.1} hours of virtual time",
            seeds as f64 / seconds,
            self.virtual_ms as f64 / 3.6e6
        );
        println!(
            "{} steps, replicas looked at {} times, {} messages, {} lost or cut off",
            self.steps, self.looks, self.messages, self.dropped
        );
        println!(
            "{} acknowledged writes, {} reads checked, {} unknown outcomes, {} committed entries",
            self.writes, self.reads, self.unknown, self.entries
        );
        println!("{} elections won, {} changes of members, {faults} faults: {:?}", self.leaders, self.changes, self.faults);
        println!("at most {} ms of virtual time until everything worked again", self.recovered_ms);
    }
}

#[test]
fn seeds_keep_every_rule() {
    if let Some(seed) = number("SEED") {
        let outcome = run(Plot { is_shown: true, ..plot(seed) }, memory().path());
        println!("seed {seed}: trace {:016x}", outcome.trace);
        assert!(outcome.violation.is_none(), "{:?}", outcome.violation);
        return;
    }
    let (first, count) = (number("FIRST").unwrap_or(1), number("SEEDS").unwrap_or(100));
    let begun = Instant::now();
    let (broken, sum) = run_all(first, count);
    sum.print(count, begun.elapsed().as_secs_f64());
    for (seed, outcome) in &broken {
        println!("seed {seed}: {:?}. Again: make simulation SEED={seed}", outcome.violation);
    }
    assert!(broken.is_empty(), "{} of {count} seeds broke a rule", broken.len());
}

#[test]
fn a_seed_gives_the_same_run_again() {
    let folder = memory();
    for seed in 1..=3 {
        let runs: Vec<Outcome> = (0..2).map(|_| run(plot(seed), folder.path())).collect();
        assert_eq!(runs[0].trace, runs[1].trace, "seed {seed}");
        assert_eq!(runs[0].steps, runs[1].steps, "seed {seed}");
        assert!(runs[0].steps > 100, "something happens");
    }
    assert_ne!(run(plot(1), folder.path()).trace, run(plot(2), folder.path()).trace, "another seed, another run");
}

/// Seeds that a mutant may live through at most, one after the other.
const MUTANT_SEEDS: u64 = 100;

fn assert_caught(mutant: Mutant, by: &[Rule]) {
    let folder = memory();
    let mut otherwise = Vec::new();
    for seed in 1..=MUTANT_SEEDS {
        let Some(violation) = run(Plot { mutant: Some(mutant), ..plot(seed) }, folder.path()).violation else { continue };
        if by.contains(&violation.rule) {
            println!("{mutant:?} is caught in seed {seed} by {:?}: {}", violation.rule, violation.what);
            return;
        }
        otherwise.push((seed, violation.rule));
    }
    panic!("{mutant:?} was not caught by {by:?} in {MUTANT_SEEDS} seeds, but {otherwise:?}");
}

#[test]
fn a_disk_that_lies_is_caught() {
    assert_caught(Mutant::LyingDisk, &[Rule::VotesStay, Rule::StoredStays]);
}

#[test]
fn a_network_that_answers_for_others_is_caught() {
    assert_caught(Mutant::ForgedAnswers, &[Rule::CommittedStays, Rule::LeaderIsComplete]);
}

#[test]
fn reads_that_do_not_ask_are_caught() {
    assert_caught(Mutant::StaleReads, &[Rule::ReadsAreFresh]);
}
