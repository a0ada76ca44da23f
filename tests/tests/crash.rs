//! Nothing that was acknowledged is lost when a node is killed, and nothing is half there.

use anyhow::{Result, ensure};
use ragged_tests::Node;
use ragged_tests::shared::{documents, shared};
use rand::Rng;
use serde_json::{Value, json};
use std::time::Duration;

/// Documents of one upload, small so that many acknowledgements fall between two kills.
const UPLOAD: usize = 16;
/// Texts that the documents take in turn: a fast machine stores more documents than the collection has.
const TEXTS: usize = 20_000;

fn rounds() -> usize {
    std::env::var("RAGGED_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20)
}

/// Documents of real text, and a vector of their number, so that a kill does not wait for embedding.
fn upload(texts: &[Value], first: usize) -> Value {
    let document = |number: usize| {
        let text = &texts[number % texts.len()];
        json!({"id": format!("d{number}"), "title": text["title"], "text": text["text"], "vector": vector(number), "metadata": {"number": number}})
    };
    json!({"documents": (first..first + UPLOAD).map(document).collect::<Vec<_>>()})
}

fn vector(number: usize) -> Vec<f32> {
    (0..8)
        .map(|dimension| if (number >> dimension) & 1 == 1 { 1.0 } else { -1.0 } + (number as f32) / 1e5 * dimension as f32)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_moments_of_an_import_a_node_keeps_every_acknowledged_document() -> Result<()> {
    let Some(shared) = shared("the kill test") else { return Ok(()) };
    let texts: Vec<Value> = documents(&shared.join("data/debian_en/docs.jsonl.gz"))?.take(TEXTS).collect::<Result<_>>()?;
    let mut node = Node::start().await?;
    node.post("/collections", &json!({"name": "c", "embedding": {"dimension": 8}, "spread": 3})).await?.expect(201)?;
    let mut acknowledged = 0;
    for round in 0..rounds() {
        let run_for = Duration::from_millis(rand::rng().random_range(20..1500));
        let killed = tokio::time::Instant::now() + run_for;
        // The client's view: numbers below `acknowledged` are stored; those after it are unknown when the connection breaks.
        loop {
            let body = upload(&texts, acknowledged);
            let sent = tokio::time::timeout_at(killed, node.post("/collections/c/documents", &body)).await;
            match sent {
                Ok(answer) => {
                    answer?.expect(200)?;
                    acknowledged += UPLOAD;
                }
                Err(_) => break,
            }
        }
        node.kill_and_restart().await?;
        check(&node, acknowledged).await.map_err(|fault| fault.context(format!("after kill {}", round + 1)))?;
    }
    ensure!(acknowledged > rounds() * UPLOAD, "too little was written for the test to say anything: {acknowledged} documents");
    Ok(())
}

async fn check(node: &Node, acknowledged: usize) -> Result<()> {
    let (mut cursor, mut ids) = (String::new(), std::collections::HashSet::new());
    loop {
        let page = node.get(&format!("/collections/c/documents?limit=1000{cursor}")).await?.expect(200)?;
        for document in page["documents"].as_array().into_iter().flatten() {
            ids.insert(document["id"].as_str().unwrap_or_default().to_owned());
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    for number in 0..acknowledged {
        ensure!(ids.contains(&format!("d{number}")), "document d{number} of {acknowledged} is lost");
    }
    // At most one upload was under way when the node was killed: it is there as a whole or, a part for each shard, in part; a document never is.
    ensure!(ids.len() <= acknowledged + UPLOAD, "there are {} documents, {acknowledged} were acknowledged", ids.len());
    let counts = node.get("/collections/c").await?.expect(200)?;
    ensure!(
        counts["documents"] == json!(ids.len()) && counts["chunks"] == json!(ids.len()),
        "counts {counts} differ from {} documents",
        ids.len()
    );
    let probes: Vec<usize> =
        (0..20).map(|_| rand::rng().random_range(0..acknowledged.max(1))).chain(acknowledged.checked_sub(1)).collect();
    for number in probes.into_iter().filter(|number| *number < acknowledged) {
        let id = format!("d{number}");
        let document = node.get(&format!("/collections/c/documents/{id}")).await?.expect(200)?;
        ensure!(document["metadata"]["number"] == json!(number), "{id} has another document's metadata");
        let by_vector = json!({"vector": vector(number), "filter": {"must": [{"field": "number", "eq": number}]}});
        let hits = node.post("/collections/c/search", &by_vector).await?.expect(200)?;
        ensure!(
            hits["hits"][0]["document_id"] == json!(id) && hits["hits"][0]["text"] == document["text"],
            "{id} is not found by its vector: {hits}"
        );
        let by_word =
            json!({"query": document["title"], "mode": "text", "filter": {"must": [{"field": "number", "eq": number}]}});
        let hits = node.post("/collections/c/search", &by_word).await?.expect(200)?;
        ensure!(hits["hits"][0]["document_id"] == json!(id), "{id} is not found by its title: {hits}");
    }
    Ok(())
}
