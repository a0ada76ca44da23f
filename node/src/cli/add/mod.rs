//! `ragged add`: files and folders as documents.
//!
//! `walk` finds the files, `read` makes documents of them (`title` finds their titles), `upload` sends them in batches.

mod read;
mod title;
mod upload;
mod walk;

use crate::cli::error::{CliError, Exit, exit_of_many};
use crate::cli::globals::Globals;
use crate::cli::output::{Output, count, printable};
use crate::cli::{collections, progress};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

const AFTER_HELP: &str = "\
Takes .txt, .text, .md, .markdown, .html and .htm files; others are skipped and counted. A document's id is its path within the folder
that was given (for a file that was given itself, its name), so adding a folder again replaces its documents. Its metadata are
path, size_bytes and modified. Hidden files and folders are left out.

Examples:
  ragged add README.md --collection notes --create
  ragged add ~/notes ~/wiki --recursive --collection notes
  ragged add ~/wiki --recursive --prefix wiki/ --collection notes";

/// Skipped and unreadable files that people are shown, of each kind.
const SHOWN_FAILURES: usize = 20;

/// Arguments of `ragged add`.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Files and folders
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Name of the collection
    #[arg(long, short)]
    collection: String,
    /// Take folders with everything in them; symbolic links are followed, loops are noticed
    #[arg(long, short)]
    recursive: bool,
    /// Create the collection when it is not there
    #[arg(long)]
    create: bool,
    /// What ids begin with, to keep folders apart
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    prefix: String,
    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: u32,
}

/// What became of the files; machines get it as it is.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Documents stored.
    pub added: u64,
    /// Chunks that they were cut into.
    pub chunks: u64,
    /// Files of kinds that are not taken.
    pub skipped: u64,
    /// Files that were to be added and were not.
    pub failed: Vec<Failure>,
    /// Names the last write.
    pub token: String,
    /// Seconds.
    pub took_s: f64,
}

/// A file that was not added, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The file, as it was found.
    pub path: String,
    /// Stable code: the node's, or `unreadable`, `binary`, `invalid_utf8`, `empty`, `too_large`, `duplicate_id`.
    pub code: String,
    /// What was wrong.
    pub detail: String,
}

/// Adds files and folders.
pub async fn run(arguments: Arguments, globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    let began = Instant::now();
    let found = walk::find(&arguments.paths, arguments.recursive, &arguments.prefix)?;
    let client = globals.client()?;
    if arguments.create {
        collections::ensure(&client, &arguments.collection).await?;
    } else {
        client.get_collection(&arguments.collection).await?;
    }
    let mut summary = Summary { skipped: found.skipped, failed: found.failed, ..Summary::default() };
    let bar = progress::count(output, "adding", found.files.len() as u64);
    let uploader = upload::Uploader {
        client: globals.patient_client()?,
        collection: arguments.collection,
        parallel: arguments.parallel as usize,
        bar: bar.clone(),
    };
    let outcome = uploader.run(found.files, &mut summary).await;
    bar.finish_and_clear();
    summary.took_s = began.elapsed().as_secs_f64();
    if let Err(cause) = outcome {
        let done = format!("stopped after {} documents were added; the same command may be run again", summary.added);
        return Err(if summary.added == 0 { cause } else { CliError::CutOff { done, cause: Box::new(cause) } });
    }
    for failure in summary.failed.iter().take(SHOWN_FAILURES) {
        output.warning(format_args!("{}: {} ({})", printable(&failure.path), printable(&failure.detail), failure.code));
    }
    output.either(&summary, || describe(&summary))?;
    Ok(exit_of_many(summary.added, summary.failed.len() as u64))
}

fn describe(summary: &Summary) -> String {
    let mut text =
        format!("added {} ({}) in {:.1} s", count(summary.added, "document"), count(summary.chunks, "chunk"), summary.took_s);
    if summary.skipped > 0 {
        text.push_str(&format!(", skipped {} of other kinds", count(summary.skipped, "file")));
    }
    if !summary.failed.is_empty() {
        text.push_str(&format!(", {} failed", count(summary.failed.len() as u64, "file")));
    }
    let hidden = summary.failed.len().saturating_sub(SHOWN_FAILURES);
    if hidden > 0 {
        text.push_str(&format!(" ({hidden} not shown; --json lists them all)"));
    }
    text
}
