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
        let served = runtime.block_on(serve::serve(loaded.config));
        // What is still blocking a thread would otherwise be waited for, after everything has been stopped in order.
        runtime.shutdown_background();
        served
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ragged: {error:#}");
            ExitCode::FAILURE
        }
    }
}
