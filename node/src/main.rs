//! `ragged`: the node and its command line, one binary.

#![cfg_attr(test, allow(clippy::unwrap_used))] // a test that unwraps fails, and says where

mod allocator;
mod api;
mod cli;
mod config;
mod memory;
mod serve;
mod telemetry;
#[cfg(any(feature = "mutants", feature = "failpoints"))]
mod testing;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
