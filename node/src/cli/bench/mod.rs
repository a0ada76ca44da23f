//! `ragged bench`: the throughput and latency of searches.
//!
//! `requests` prepares what is sent, `load` sends it over `connection`s and measures, `report` says what was measured.

mod connection;
mod load;
mod report;
mod requests;

pub use connection::Target;

use crate::cli::documents::parse_filter;
use crate::cli::error::{CliError, Exit};
use crate::cli::globals::Globals;
use crate::cli::output::Output;
use crate::cli::search::ModeOption;
use clap::Args;
use load::{Load, Rate};
use ragged_client::{Filter, Mode, Recall, SearchRequest};
use report::Report;
use std::path::PathBuf;
use std::time::Duration;

const AFTER_HELP: &str = "\
With a rate, requests are due at fixed times whatever the node does, and latency counts from when a request was due: a node that falls
behind shows in the percentiles (open loop). With `--rate max`, each client sends its next request when it has the last answer, and
latency counts from sending (closed loop): the throughput is what the node can do, the latency is not what users would see.

Examples:
  ragged bench --collection notes --queries queries.txt --clients 16 --rate max
  ragged bench --collection notes --queries queries.txt --clients 64 --rate 500 --seconds 60
  ragged bench --collection notes --vectors vectors.ndjson --mode dense --rate 1000 --json";

/// Arguments of `ragged bench`.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Name of the collection
    #[arg(long, short)]
    collection: String,
    /// File with a query a line, as text or as JSON with `text` or `query`; default: titles of the collection's documents
    #[arg(long, value_name = "FILE")]
    queries: Option<PathBuf>,
    /// File with a vector a line, as a JSON array or an object with `vector`: searched with instead of embedding the queries
    #[arg(long, value_name = "FILE")]
    vectors: Option<PathBuf>,
    /// Clients, each with a connection of its own and one request at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Requests a second in all, or max
    #[arg(long, value_name = "RATE", default_value = "max", value_parser = parse_rate)]
    rate: Rate,
    /// Seconds to measure
    #[arg(long, value_name = "N", default_value_t = 10.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Seconds of warming up before that, in a closed loop, which do not count
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = parse_warmup)]
    warmup: f64,
    /// How hits are found; default: the node's
    #[arg(long, short)]
    mode: Option<ModeOption>,
    /// How many of the nearest chunks by meaning must be found: 0.95, 0.99 or exact; default 0.95
    #[arg(long)]
    recall: Option<Recall>,
    /// Only documents whose metadata passes this filter
    #[arg(long, value_name = "JSON", value_parser = parse_filter)]
    filter: Option<Filter>,
    /// Hits of a search at most
    #[arg(long, short = 'n', default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    if text == "max" {
        return Ok(Rate::Max);
    }
    let rate = text.parse::<f64>().ok().filter(|rate| *rate > 0.0 && *rate <= 1e6);
    rate.map(Rate::PerSecond).ok_or_else(|| "a rate is a number above 0 and up to 1000000, or max".to_owned())
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0 && *seconds <= 86_400.0);
    seconds.ok_or_else(|| "this is not a number of seconds above 0 and up to 86400".to_owned())
}

fn parse_warmup(text: &str) -> Result<f64, String> {
    if text == "0" { Ok(0.0) } else { parse_seconds(text) }
}

/// Measures.
pub async fn run(arguments: Arguments, globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    let client = globals.client()?;
    client.get_collection(&arguments.collection).await?;
    let queries = match (&arguments.queries, &arguments.vectors) {
        (Some(path), _) => requests::queries(path)?,
        (None, Some(_)) => Vec::new(),
        (None, None) => requests::titles(&client, &arguments.collection).await?,
    };
    let vectors = arguments.vectors.as_deref().map(requests::vectors).transpose()?.unwrap_or_default();
    let template = SearchRequest {
        mode: arguments.mode.map(Mode::from),
        limit: Some(arguments.limit),
        recall: arguments.recall,
        filter: arguments.filter,
        ..SearchRequest::default()
    };
    let requests = requests::prepare(&template, &queries, &vectors)?;
    output.note(format_args!(
        "{} different searches by {} clients for {} s after {} s of warming up",
        requests.len(),
        arguments.clients,
        arguments.seconds,
        arguments.warmup
    ));
    let load = Load {
        targets: globals.targets(&arguments.collection)?,
        requests,
        connections: arguments.clients as usize,
        rate: arguments.rate,
        measured: Duration::from_secs_f64(arguments.seconds),
        warmup: Duration::from_secs_f64(arguments.warmup),
    };
    let report = Report::new(&load, arguments.collection, arguments.mode.map(Mode::from), load.run().await);
    output.either(&report, || report.describe())?;
    Ok(if report.errors.is_empty() && report.unserved == 0 { Exit::Success } else { report.exit() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_numbers_or_max() {
        assert_eq!(parse_rate("max"), Ok(Rate::Max));
        assert_eq!(parse_rate("0.5"), Ok(Rate::PerSecond(0.5)));
        for wrong in ["0", "-1", "x", "NaN", "inf", "1e9"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }
}
