//! `ragged eval`: the quality of searches, against judgements.
//!
//! `data` reads a dataset, `metrics` computes the measures, `report` says them and how they differ from the last run, which `state`
//! keeps.

mod data;
mod metrics;
mod report;
mod state;

use crate::cli::error::{CliError, Exit};
use crate::cli::globals::Globals;
use crate::cli::import::send::Importer;
use crate::cli::output::{Output, count};
use crate::cli::search::ModeOption;
use crate::cli::{collections, progress};
use clap::{Args, ValueEnum};
use data::{Dataset, Query};
use futures::{StreamExt, TryStreamExt};
use metrics::Measures;
use ragged_client::{Client, GroupBy, Mode, SearchRequest};
use report::{ModeResult, Report};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

const AFTER_HELP: &str = "\
The folder holds queries.jsonl ({\"id\", \"text\"} a line) and qrels.tsv (query-id, doc-id and score with tabs between them, and a line of
headings), and docs.jsonl ({\"id\", \"title\", \"text\", \"meta\"} a line) when the documents are to be loaded; each may be gzipped, as .gz.

Measures, over the queries that have a judgement above 0, of the first 100 documents that a search finds:
  nDCG@10     as trec_eval computes it: the gain is the judgement itself (negative ones count as 0), the discount log2(rank + 1)
  recall@100  of the documents judged above 0, the part that was found
  MRR         1 / rank of the first document judged above 0; 0 when none was found

The last run of the same folder and collection is kept in $XDG_STATE_HOME/ragged/eval (or ~/.local/state/ragged/eval).

Examples:
  ragged eval data/scifact --collection scifact --create --load
  ragged eval data/scifact --collection scifact --mode hybrid --min-ndcg hybrid=0.71";

/// Documents that a search is asked for.
const DEPTH: u32 = 100;

/// Searches at once: enough to keep the node's encoder busy.
const PARALLEL: usize = 16;

/// Lines of a request, and requests at once, when documents are loaded.
const LOAD_LINES: usize = 256;
const LOAD_PARALLEL: usize = 2;

/// Arguments of `ragged eval`.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Folder of the dataset
    folder: PathBuf,
    /// Name of the collection
    #[arg(long, short)]
    collection: String,
    /// Load the documents first
    #[arg(long)]
    load: bool,
    /// Create the collection when it is not there, and load the documents into it then
    #[arg(long)]
    create: bool,
    /// Modes to measure; default all three
    #[arg(long = "mode", short, value_delimiter = ',')]
    modes: Vec<ModeOption>,
    /// Exit with 1 when nDCG@10 is below, such as dense=0.64,hybrid=0.71
    #[arg(long, value_name = "MODE=VALUE", value_delimiter = ',', value_parser = parse_minimum)]
    min_ndcg: Vec<(ModeOption, f64)>,
}

fn parse_minimum(text: &str) -> Result<(ModeOption, f64), String> {
    let (mode, value) = text.split_once('=').ok_or("this is not of the form MODE=VALUE")?;
    let mode = ModeOption::from_str(mode.trim(), true)?;
    let value = value.trim().parse::<f64>().ok().filter(|value| (0.0..=1.0).contains(value));
    value.map(|value| (mode, value)).ok_or_else(|| "the value is not a number from 0 to 1".to_owned())
}

/// Loads the documents when asked to, measures, and compares.
pub async fn run(arguments: Arguments, globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    let modes = if arguments.modes.is_empty() { ModeOption::value_variants().to_vec() } else { arguments.modes.clone() };
    if let Some((mode, _)) = arguments.min_ndcg.iter().find(|(mode, _)| !modes.contains(mode)) {
        return Err(CliError::Usage(format!("--min-ndcg names {}, which is not measured", name(*mode))));
    }
    let dataset = Dataset::read(&arguments.folder)?;
    let client = globals.client()?;
    let created = arguments.create && collections::ensure(&client, &arguments.collection).await?;
    let refused = if arguments.load || created { Some(load(&arguments, globals, output).await?) } else { None };
    let searcher = globals.patient_client()?;
    let mut results = BTreeMap::new();
    for mode in modes {
        let result = measure(&searcher, &arguments.collection, &dataset, mode, output).await?;
        results.insert(name(mode).to_owned(), result);
    }
    let mut report = Report::new(&arguments.folder, &arguments.collection, dataset.queries.len(), results);
    let state = state::State::of(&arguments.folder, &arguments.collection);
    report.documents_refused = refused;
    report.compare(state.as_ref().and_then(state::State::load));
    report.require(arguments.min_ndcg.iter().map(|(mode, value)| (name(*mode).to_owned(), *value)));
    if let Some(state) = state {
        // A result that cannot be kept is still a result.
        if let Err(error) = state.save(&report) {
            output.note(format_args!("the result is not kept for the next run: {error}"));
        }
    }
    output.either(&report, || report.describe(output))?;
    Ok(if report.below.is_empty() { Exit::Success } else { Exit::Failure })
}

async fn load(arguments: &Arguments, globals: &Globals, output: &Output) -> Result<u64, CliError> {
    let source = data::documents(&arguments.folder)?;
    let bar = progress::bytes(output, "loading", source.total_bytes);
    let position = source.position;
    let mut importer = Importer {
        client: globals.patient_client()?,
        collection: arguments.collection.clone(),
        batch_lines: LOAD_LINES,
        parallel: LOAD_PARALLEL,
        on_batch: Box::new(|_| {
            bar.set_position(position.load(Ordering::Relaxed));
            Ok(())
        }),
    };
    let loaded = importer.run(source.entries).await;
    drop(importer);
    bar.finish_and_clear();
    let loaded = loaded?;
    if let Some(first) = loaded.failed.first() {
        let refused = count(loaded.failed_count, "document");
        let detail = format!("{refused} refused, the first in line {}: {}", first.line, first.detail);
        if loaded.accepted == 0 {
            return Err(CliError::Failed(detail));
        }
        output.warning(detail); // real collections have a few without any text
    }
    output.note(format_args!("loaded {} in {:.1} s", count(loaded.accepted, "document"), loaded.took_s));
    Ok(loaded.failed_count)
}

async fn measure(
    client: &Client,
    collection: &str,
    dataset: &Dataset,
    mode: ModeOption,
    output: &Output,
) -> Result<ModeResult, CliError> {
    let began = Instant::now();
    let bar = progress::count(output, name(mode), dataset.queries.len() as u64);
    let searches = dataset.queries.iter().map(|query| async {
        let ranking = search(client, collection, query, mode).await?;
        bar.inc(1);
        Ok::<Measures, CliError>(Measures::of(&ranking, &query.judgements))
    });
    // In their order, so that sums of floating-point numbers are the same each time.
    let measures: Vec<Measures> = futures::stream::iter(searches).buffered(PARALLEL).try_collect().await?;
    bar.finish_and_clear();
    Ok(ModeResult { measures: Measures::mean(&measures), change: None, took_s: began.elapsed().as_secs_f64() })
}

async fn search(client: &Client, collection: &str, query: &Query, mode: ModeOption) -> Result<Vec<String>, CliError> {
    let request = SearchRequest {
        query: Some(query.text.clone()),
        mode: Some(Mode::from(mode)),
        limit: Some(DEPTH),
        group_by: Some(GroupBy::Document),
        ..SearchRequest::default()
    };
    let answer = client.search(collection, &request).await?;
    Ok(answer.hits.into_iter().map(|hit| hit.document_id).collect())
}

fn name(mode: ModeOption) -> &'static str {
    match mode {
        ModeOption::Dense => "dense",
        ModeOption::Text => "text",
        ModeOption::Hybrid => "hybrid",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minima_name_a_mode_and_a_value() {
        assert_eq!(parse_minimum("dense=0.643"), Ok((ModeOption::Dense, 0.643)));
        for wrong in ["dense", "sparse=0.5", "text=2", "text=x", "text=NaN"] {
            assert!(parse_minimum(wrong).is_err(), "{wrong}");
        }
    }
}
