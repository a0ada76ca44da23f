//! A node says where its memory is.

use anyhow::{Context, Result, ensure};
use ragged_tests::Node;
use ragged_tests::node::program;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longer than it takes until what partitions hold is counted.
const COUNTED_WITHIN: Duration = Duration::from_secs(20);

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
