//! `ragged completion`: completion scripts for shells.

use crate::cli::error::{CliError, Exit};
use crate::cli::output::Output;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

const AFTER_HELP: &str = "\
Examples:
  ragged completion bash > ~/.local/share/bash-completion/completions/ragged
  ragged completion zsh > ~/.zfunc/_ragged
  ragged completion fish > ~/.config/fish/completions/ragged.fish";

/// Arguments of `ragged completion`.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub fn run(arguments: Arguments, output: &Output) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::Cli::command(), "ragged", &mut script);
    output.raw(&script)?;
    Ok(Exit::Success)
}
