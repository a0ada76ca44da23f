//! A node says where its memory is, and keeps to its budget.

use anyhow::{Context, Result, ensure};
use ragged_tests::Node;
use ragged_tests::node::program;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Longer than it takes until what partitions hold is counted.
const COUNTED_WITHIN: Duration = Duration::from_secs(20);

/// A budget that is less than what the node maps of the test's documents: 8 KiB each.
const BUDGET_MIB: u64 = 128;
/// Longer than it takes until the node has looked.
const KEPT_WITHIN: Duration = Duration::from_secs(120);
const DIMENSION: usize = 4096;
const DOCUMENTS: u64 = 16_500;
const DOCUMENTS_AT_ONCE: u64 = 1_100;

/// A vector of ones and minus ones: two of them have next to nothing in common.
fn vector_of(document: u64) -> String {
    let mut random = StdRng::seed_from_u64(document);
    let mut text = String::from("[");
    for number in 0..DIMENSION {
        let separator = if number == 0 { "" } else { "," };
        let _ = write!(text, "{separator}{}", if random.random() { "1" } else { "-1" }); // writing to a string does not fail
    }
    text + "]"
}

async fn is_nearest(node: &Node, document: u64) -> Result<()> {
    let body = format!(r#"{{"vector": {}, "mode": "dense", "limit": 1, "recall": "exact"}}"#, vector_of(document));
    let request = node.request(Method::POST, "/collections/c/search")?.header("content-type", "application/json").body(body);
    let found = node.send(request).await?.expect(200)?;
    ensure!(found["hits"][0]["document_id"] == json!(document.to_string()), "document {document} is not the nearest: {found}");
    let word = json!({"query": format!("word{document}"), "mode": "text", "limit": 1});
    let found = node.post("/collections/c/search", &word).await?.expect(200)?;
    ensure!(
        found["hits"][0]["document_id"] == json!(document.to_string()),
        "document {document} is not found by its word: {found}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_small_budget_keeps_it_and_answers_rightly() -> Result<()> {
    let budget = format!("{BUDGET_MIB} MiB");
    let settings = [("RAGGED_MEMORY_BUDGET_BYTES", budget.as_str()), ("RAGGED_HTTP_MAX_BODY_BYTES", "4 MiB")];
    let node = Node::start_with(&settings).await?;
    let new = json!({"name": "c", "spread": 4, "embedding": {"dimension": DIMENSION}});
    node.post("/collections", &new).await?.expect(201)?;
    for first in (0..DOCUMENTS).step_by(DOCUMENTS_AT_ONCE as usize) {
        let line = |id: u64| format!(r#"{{"id": "{id}", "text": "word{id}", "vector": {}}}"#, vector_of(id));
        let lines: Vec<String> = (first..first + DOCUMENTS_AT_ONCE).map(line).collect();
        let request = node.request(Method::POST, "/collections/c/documents/import")?.body(lines.join("\n"));
        let report = node.send(request.header("content-type", "application/x-ndjson")).await?.expect(200)?;
        ensure!(report["accepted"] == DOCUMENTS_AT_ONCE, "{report}");
    }
    await_budget(&node).await?;
    let begun = Instant::now();
    while counter(&node, "ragged_partitions_reading_vectors").await? == 0 {
        ensure!(begun.elapsed() < KEPT_WITHIN, "more vectors than the budget has room for stay mapped");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for round in 0..3 {
        for document in (0..20).map(|number| (number * 599 + round * 7) % DOCUMENTS) {
            is_nearest(&node, document).await?;
        }
        // Each of these searches goes through all vectors, more than there may be in memory: most are read, and those that are looked at where they are
        // mapped are the node's until it looks again.
        await_budget(&node).await?;
    }
    Ok(())
}

/// Waits until the node has given something back and is within its budget.
async fn await_budget(node: &Node) -> Result<()> {
    let begun = Instant::now();
    loop {
        let report = node.get("/memory").await?.expect(200)?;
        let of = |name: &str| report[name].as_u64().with_context(|| format!("{report}"));
        ensure!(of("budget_bytes")? == BUDGET_MIB << 20, "{report}");
        if of("given_back_bytes")? > 0 && of("resident_bytes")? <= BUDGET_MIB << 20 {
            return Ok(());
        }
        ensure!(begun.elapsed() < KEPT_WITHIN, "the node does not keep its budget: {report}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn bytes_of(report: &Value, list: &str, name: &str, key: &str) -> Result<u64> {
    let entries = report[list].as_array().with_context(|| format!("{report}"))?;
    let entry = entries.iter().find(|entry| entry[name] == key).with_context(|| format!("no {key} in {report}"))?;
    entry["bytes"].as_u64().with_context(|| format!("{report}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_split_into_parts_and_follows_what_is_loaded() -> Result<()> {
    let node = Node::start().await?;
    let report = node.get("/memory").await?.expect(200)?;
    let total = |name: &str| report[name].as_u64().with_context(|| format!("{report}"));
    ensure!(total("resident_bytes")? == total("anonymous_bytes")? + total("mapped_bytes")?, "{report}");
    ensure!(bytes_of(&report, "parts", "part", "encoder")? > 0, "{report}");
    ensure!(bytes_of(&report, "files", "kind", "program")? > 1 << 20, "{report}");
    ensure!(bytes_of(&report, "parts", "part", "partitions")? == 0, "nothing is loaded yet: {report}");

    // The weights are mapped, and come into memory with the first text that is embedded.
    node.post("/collections", &json!({"name": "embedded"})).await?.expect(201)?;
    node.post("/collections/embedded/search", &json!({"query": "words", "mode": "dense"})).await?.expect(200)?;
    let report = node.get("/memory").await?.expect(200)?;
    ensure!(bytes_of(&report, "files", "kind", "model")? > 8 << 20, "{report}");

    node.post("/collections", &json!({"name": "c", "embedding": {"dimension": 4}})).await?.expect(201)?;
    let document = |number: usize| json!({"id": number.to_string(), "text": "words", "vector": [1.0, 0.0, number, 0.0]});
    let documents: Vec<Value> = (0..500).map(document).collect();
    node.post("/collections/c/documents", &json!({"documents": documents})).await?.expect(200)?;
    node.post("/collections/c/search", &json!({"query": "words", "mode": "text"})).await?.expect(200)?;
    let begun = Instant::now();
    loop {
        let report = node.get("/memory").await?.expect(200)?;
        if bytes_of(&report, "parts", "part", "partitions")? > 500 * 8 {
            break;
        }
        ensure!(begun.elapsed() < COUNTED_WITHIN, "a loaded partition is not counted: {report}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn counter(node: &Node, name: &str) -> Result<u64> {
    let asked = reqwest::Client::new().get(node.url("/metrics")).bearer_auth(node.key()?).send().await?;
    let text = asked.error_for_status()?.text().await?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.with_context(|| format!("{name} is not among the metrics"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_is_asked_again_is_not_embedded_again() -> Result<()> {
    let node = Node::start().await?;
    node.post("/collections", &json!({"name": "c"})).await?.expect(201)?;
    let documents = json!({"documents": [{"id": "a", "text": "An albatross."}, {"id": "b", "text": "A lighthouse."}]});
    node.post("/collections/c/documents", &documents).await?.expect(200)?;
    let mut hits = Vec::new();
    for (query, mode) in [("seabird", "dense"), ("seabird", "dense"), ("seabird", "hybrid"), ("tower", "dense")] {
        let found = node.post("/collections/c/search", &json!({"query": query, "mode": mode})).await?.expect(200)?;
        hits.push(found["hits"].clone());
    }
    ensure!(hits[0] == hits[1] && hits[0][0]["document_id"] == "a" && hits[3][0]["document_id"] == "b", "{hits:?}");
    // The documents' two texts, and the two queries.
    ensure!(counter(&node, "ragged_embedding_texts_total").await? == 4);
    ensure!(counter(&node, "ragged_query_cache_hits_total").await? == 2);
    ensure!(counter(&node, "ragged_query_cache_misses_total").await? == 2);
    let report = node.get("/memory").await?.expect(200)?;
    ensure!(bytes_of(&report, "parts", "part", "query_cache")? > 2 * 384 * 4, "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_shows_it() -> Result<()> {
    let node = Node::start().await?;
    let mut command = program();
    command.arg("memory").env("RAGGED_URL", format!("http://{}", node.listen())).env("RAGGED_KEY", node.key()?);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let shown = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(shown.contains("resident") && shown.contains("encoder") && shown.contains("program"), "{shown}");
    Ok(())
}
