//! `ragged import`: documents from a file with one JSON object a line.

pub mod batch;
pub mod send;

use crate::cli::error::{CliError, Exit, exit_of_many};
use crate::cli::globals::Globals;
use crate::cli::lines::{self, Line, Lines};
use crate::cli::output::{Output, count};
use crate::cli::{collections, progress};
use batch::Entry;
use clap::Args;
use send::{Importer, Summary};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

const AFTER_HELP: &str = "\
A line is what an upload takes: {\"id\": ..., \"title\": ..., \"text\": ..., \"metadata\": {...}, \"vector\": [...]}, of which only the text is
needed. Gzip is recognised. A line without an id gets one. Batches are sent again when a node fails, which is safe.

Examples:
  ragged import articles.ndjson.gz --collection articles --create
  zcat dump.gz | ragged import - --collection articles
  ragged import big.ndjson --collection articles --from-line 120001";

/// A line that a node takes is at most this long; what is longer is not even sent.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Failures that people are shown; machines get all that are kept.
const SHOWN_FAILURES: usize = 20;

/// Arguments of `ragged import`.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// The file, or - for standard input
    file: PathBuf,
    /// Name of the collection
    #[arg(long, short)]
    collection: String,
    /// Create the collection when it is not there
    #[arg(long)]
    create: bool,
    /// Lines of a request at most; smaller ones are acknowledged sooner
    #[arg(long, value_name = "LINES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Requests at once; of two lines with the same id the later one is sure to win only with 1
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: u32,
    /// Begin at this line, such as where an import was cut off
    #[arg(long, value_name = "LINE", default_value_t = 1)]
    from_line: u64,
    /// Print a JSON line for every batch that the node has acknowledged, before the summary
    #[arg(long)]
    acks: bool,
}

/// Imports a file.
pub async fn run(arguments: Arguments, globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    let source = lines::open(&arguments.file)?;
    // A node that is not there, or a wrong name, is found out before a patient client tries for long.
    let client = globals.client()?;
    if arguments.create {
        collections::ensure(&client, &arguments.collection).await?;
    } else {
        client.get_collection(&arguments.collection).await?;
    }
    let bar = progress::bytes(output, "importing", source.total_bytes);
    let position = source.position;
    let from_line = arguments.from_line;
    let entries = Lines::new(source.reader, LINE_BYTES_MAX)
        .filter(move |line| line.as_ref().map_or(true, |(number, _)| *number >= from_line))
        .map(|line| line.map(entry));
    let mut importer = Importer {
        client: globals.patient_client()?,
        collection: arguments.collection,
        batch_lines: arguments.batch as usize,
        parallel: arguments.parallel as usize,
        on_batch: Box::new(|batch| {
            bar.set_position(position.load(Ordering::Relaxed));
            let room = SHOWN_FAILURES.saturating_sub(usize::try_from(batch.refused_before).unwrap_or(usize::MAX));
            for failure in batch.failed.iter().take(room) {
                bar.suspend(|| output.warning(format_args!("line {}: {} ({})", failure.line, failure.detail, failure.code)));
            }
            if arguments.acks { output.json(batch) } else { Ok(()) }
        }),
    };
    let summary = importer.run(entries).await;
    drop(importer);
    bar.finish_and_clear();
    let summary = summary?;
    output.either(&summary, || describe(&summary))?;
    Ok(exit_of_many(summary.accepted, summary.failed_count))
}

fn entry((number, line): (u64, Line)) -> Entry {
    match line {
        Line::Text(text) => Entry::Line { number, text },
        Line::TooLong => Entry::refused(number, "line_too_long", format!("the line is longer than {LINE_BYTES_MAX} bytes")),
    }
}

fn describe(summary: &Summary) -> String {
    let rate = summary.accepted as f64 / summary.took_s.max(1e-3);
    let mut text = format!("imported {} in {:.1} s ({rate:.0}/s)", count(summary.accepted, "document"), summary.took_s);
    if summary.failed_count > 0 {
        text.push_str(&format!(", {} refused", count(summary.failed_count, "line")));
        let hidden = summary.failed_count.saturating_sub(SHOWN_FAILURES as u64);
        if hidden > 0 {
            text.push_str(&format!(" ({hidden} not shown; --json lists up to {})", send::FAILURES_KEPT));
        }
    }
    text
}
