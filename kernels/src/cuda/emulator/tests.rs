//! What the search for races finds, and what it does not.

use super::*;

/// Runs a kernel of `racing.cu` in two blocks of five warps.
fn run(name: &str, is_right: bool, seed: u64) -> Option<String> {
    let emulator = Emulator::new(seed);
    let memory = emulator.allocate(4096).unwrap();
    let mut arguments = memory.address().to_ne_bytes().to_vec();
    arguments.extend(u64::from(is_right).to_ne_bytes());
    let shape = LaunchShape { grid: [2, 1], threads: 160, shared_bytes: 20 << 10 };
    // SAFETY: the kernels take such arguments and have room for as many threads.
    unsafe { emulator.run(name, shape, &arguments) }
}

#[test]
fn races_are_found_and_nothing_else() {
    let kernels = [
        ("racing_between_warps", "shared memory"),
        ("racing_between_lanes", "shared memory"),
        ("racing_to_write_again", "shared memory"),
        ("racing_between_blocks", "another block"),
        ("racing_to_count", "addition"),
        ("racing_with_a_copy", "shared memory"),
        ("racing_with_a_copy_between_barriers", "not waited for"),
        ("racing_with_a_later_copy", "shared memory"),
        ("racing_with_a_copy_in_bulk", "a copy in bulk"),
        ("racing_with_a_later_copy_in_bulk", "a copy in bulk"),
    ];
    for seed in 0..6 {
        for (name, words) in kernels {
            assert_eq!(run(name, true, seed), None);
            let wrong = run(name, false, seed).unwrap_or_else(|| panic!("the race of {name} is not found with seed {seed}"));
            assert!(wrong.contains("a race") && wrong.contains(words) && wrong.contains("racing.cu:"), "{wrong}");
        }
    }
}

#[test]
fn products_are_raced_with_until_they_are_waited_for() {
    let name = "racing_with_a_product";
    assert!((0..20).all(|seed| run(name, true, seed).is_none()));
    // By lot a product reads at once; who writes after that comes too late to be seen.
    let wrong: Vec<_> = (0..20).filter_map(|seed| run(name, false, seed)).collect();
    assert!(!wrong.is_empty() && wrong[0].contains("a product of warp"), "{wrong:?}");
}
