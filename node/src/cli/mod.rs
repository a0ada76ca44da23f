//! The command line: `ragged serve` and the commands that talk to a node.
//!
//! Every command is a file (or a folder) of its own with its arguments and a `run`. What they share: `globals` (options that all
//! have), `settings` (the node's configuration, for its key), `error` (what went wrong, and the exit code), `output` (text or JSON on
//! standard output), `progress` (bars on standard error) and `lines` (files of one JSON value a line).

mod add;
mod bench;
mod cluster;
mod collections;
mod completion;
mod config;
mod documents;
mod error;
mod eval;
mod globals;
mod health;
mod import;
mod jobs;
mod lines;
mod memory;
mod output;
mod progress;
mod search;
mod serve;
mod settings;
#[cfg(test)]
mod test_node;
mod timestamp;

use clap::{Parser, Subcommand};
use error::{CliError, Exit};
use globals::Globals;
use output::Output;
use std::process::ExitCode;

/// What `--help` ends with.
const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  failed
  2  the arguments or the configuration are wrong
  3  not found
  4  the node refused the request (any other 4xx status)
  5  the node cannot be reached or cannot serve now
  6  a part of the work failed, the rest is done

Examples:
  ragged serve &
  ragged add ~/notes --collection notes --create --recursive
  ragged search \"when did we decide on the schema?\" --collection notes
  ragged search schema --collection notes --mode text --json | jq '.hits[].document_id'";

/// What `--version` says: a build for tests says that it is one.
const VERSION: &str = if ragged_raft::IS_FOR_TESTS {
    concat!(env!("CARGO_PKG_VERSION"), " FOR TESTS ONLY: built with mutants or fail points")
} else {
    env!("CARGO_PKG_VERSION")
};

/// Retrieval server for documents: finds them by meaning, by words, or both.
#[derive(Parser)]
#[command(name = "ragged", version = VERSION, after_help = AFTER_HELP, propagate_version = true, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node until it is told to stop
    Serve(serve::Arguments),
    /// Add files and folders to a collection
    Add(add::Arguments),
    /// Search a collection
    Search(search::Arguments),
    /// Import documents from a file with one JSON object a line
    Import(import::Arguments),
    /// List, create, show and delete collections
    #[command(subcommand)]
    Collections(collections::Command),
    /// List, show and delete documents
    #[command(subcommand)]
    Documents(documents::Command),
    /// List, show, watch, retry and cancel jobs
    #[command(subcommand)]
    Jobs(jobs::Command),
    /// See and change the cluster: nodes, shards, what is wrong with them
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Measure the quality of searches against judgements
    Eval(eval::Arguments),
    /// Measure the throughput and latency of searches
    Bench(bench::Arguments),
    /// Say whether nodes are alive and ready
    Health,
    /// Say where a node's memory is
    Memory,
    /// Print the effective configuration of a node and where each value came from
    Config(config::Arguments),
    /// Print the completion script of a shell
    Completion(completion::Arguments),
    /// List the mutants and fail points of a build for tests
    #[cfg(any(feature = "mutants", feature = "failpoints"))]
    #[command(hide = true)]
    Testing,
}

/// Runs the command that the arguments name. The exit codes are those that `ragged --help` lists.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => error.exit(), // help, version, or a usage error with exit code 2
    };
    let output = Output::new(cli.globals.json, cli.globals.quiet);
    let is_node = matches!(cli.command, Command::Serve(_));
    let exit = match run(cli, &output) {
        Ok(exit) => exit,
        // Whoever read the output has seen enough, such as `| head`.
        Err(CliError::BrokenPipe) => Exit::Success,
        Err(error) => {
            output.error(&error);
            error.exit()
        }
    };
    if is_node {
        crate::serve::end(exit as i32);
    }
    exit.into()
}

fn run(cli: Cli, output: &Output) -> Result<Exit, CliError> {
    let Cli { globals, command } = cli;
    match command {
        Command::Serve(arguments) => serve::run(arguments, &globals),
        Command::Config(arguments) => config::run(arguments, &globals, output),
        Command::Completion(arguments) => completion::run(arguments, output),
        #[cfg(any(feature = "mutants", feature = "failpoints"))]
        Command::Testing => {
            crate::testing::list();
            Ok(Exit::Success)
        }
        Command::Bench(arguments) => runtime()?.block_on(bench::run(arguments, &globals, output)),
        command => runtime()?.block_on(talk(command, &globals, output)),
    }
}

/// Commands that talk to a node.
async fn talk(command: Command, globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    match command {
        Command::Add(arguments) => add::run(arguments, globals, output).await,
        Command::Search(arguments) => search::run(arguments, globals, output).await,
        Command::Import(arguments) => import::run(arguments, globals, output).await,
        Command::Collections(command) => collections::run(command, globals, output).await,
        Command::Documents(command) => documents::run(command, globals, output).await,
        Command::Jobs(command) => jobs::run(command, globals, output).await,
        Command::Cluster(command) => cluster::run(command, globals, output).await,
        Command::Eval(arguments) => eval::run(arguments, globals, output).await,
        Command::Health => health::run(globals, output).await,
        Command::Memory => memory::run(globals, output).await,
        Command::Serve(_) | Command::Config(_) | Command::Completion(_) | Command::Bench(_) => {
            unreachable!("these commands were run before")
        }
        #[cfg(any(feature = "mutants", feature = "failpoints"))]
        Command::Testing => unreachable!("this command was run before"),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::io("cannot start the runtime's threads", source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_of_every_command_says_what_it_does() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                let said = argument.get_help().or(argument.get_long_help());
                assert!(said.is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
