//! `ragged`: the node and its command line, one binary.

#![cfg_attr(test, allow(clippy::unwrap_used))] // a test that unwraps fails, and says where

mod api;
mod config;
mod serve;
mod telemetry;

use config::{Config, Sources};
use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome =
        Sources::from_environment(None, Vec::new()).and_then(|sources| Config::load(&sources)).map_err(anyhow::Error::from);
    let outcome = outcome.and_then(|loaded| {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(serve::serve(loaded.config))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ragged: {error:#}");
            ExitCode::FAILURE
        }
    }
}
