//! The program that is built without further ado has no known bugs and no points to be killed at, and says so when somebody asks for them.

use anyhow::Result;
use ragged_tests::ragged;
use std::process::Command;

#[test]
fn the_program_has_no_mutants_and_no_fail_points() -> Result<()> {
    let program = std::fs::read(ragged())?;
    for name in ["RAGGED_MUTANT", "RAGGED_FAILPOINTS", "unconfirmed-read-index", "log-append-durable"] {
        let found = program.windows(name.len()).any(|bytes| bytes == name.as_bytes());
        assert!(!found, "{name} is in the program: a build for tests was taken for it");
    }
    let version = Command::new(ragged()).arg("--version").output()?;
    assert!(!String::from_utf8_lossy(&version.stdout).contains("TESTS"));
    let asked = Command::new(ragged()).arg("serve").env("RAGGED_MUTANT", "skip-sync").output()?;
    assert_eq!(asked.status.code(), Some(2), "{asked:?}");
    assert!(String::from_utf8_lossy(&asked.stderr).contains("RAGGED_MUTANT"), "{asked:?}");
    Ok(())
}
