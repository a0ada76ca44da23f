//! `ragged health`: whether nodes are alive and ready.

use crate::cli::error::{CliError, Exit};
use crate::cli::globals::Globals;
use crate::cli::output::{Output, render};
use comfy_table::Cell;
use ragged_client::NotReady;
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    ready: bool,
    nodes: Vec<Node>,
}

#[derive(Serialize)]
struct Node {
    endpoint: String,
    alive: bool,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    waiting_for: Vec<NotReady>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Asks every node that was named. The exit code is 0 when all of them are ready, and 5 when any is not.
pub async fn run(globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    let mut nodes = Vec::new();
    for endpoint in globals.endpoints() {
        nodes.push(ask(globals, endpoint).await?);
    }
    let report = Report { ready: nodes.iter().all(|node| node.ready), nodes };
    output.either(&report, || table(&report, output))?;
    Ok(if report.ready { Exit::Success } else { Exit::Unavailable })
}

async fn ask(globals: &Globals, endpoint: String) -> Result<Node, CliError> {
    let client = globals.probe(&endpoint)?;
    let mut node = Node { endpoint, alive: false, ready: false, version: None, waiting_for: Vec::new(), error: None };
    match client.health().await {
        Ok(health) => {
            node.alive = true;
            node.version = Some(health.version);
        }
        Err(error) => {
            node.error = Some(error.to_string());
            return Ok(node);
        }
    }
    match client.ready().await {
        Ok(readiness) => {
            node.ready = readiness.ready;
            node.waiting_for = readiness.waiting_for;
        }
        Err(error) => node.error = Some(error.to_string()),
    }
    Ok(node)
}

fn table(report: &Report, output: &Output) -> String {
    let mut table = output.table(&["node", "state", "version", "waiting for"]);
    for node in &report.nodes {
        let state = match (node.alive, node.ready) {
            (_, true) => "ready",
            (true, false) => "alive, not ready",
            (false, false) => "not reachable",
        };
        let waiting: Vec<String> = node.waiting_for.iter().map(|part| format!("{}: {}", part.part, part.reason)).collect();
        let missing = node.error.clone().unwrap_or_else(|| waiting.join("; "));
        let version = node.version.as_deref().unwrap_or("");
        table.add_row([&node.endpoint, state, version, &missing].map(Cell::new));
    }
    render(&table)
}
