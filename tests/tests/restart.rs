//! Starting with much that is there already: what there is of collections and documents does not make a node start later. Times are printed.
//! With RAGGED_LONG_TESTS=1: 1,000 collections and all of debian_en.

use anyhow::{Result, ensure};
use ragged_tests::Node;
use ragged_tests::cluster::{LONG_PATIENCE, entries, healthy, replicated};
use ragged_tests::import::{Import, stored, write_lines};
use ragged_tests::shared::{documents, shared};
use serde_json::json;
use std::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_many_collections_is_ready_again_and_lets_others_join() -> Result<()> {
    let Some(shared) = shared("the restart with many collections") else { return Ok(()) };
    let long = std::env::var_os("RAGGED_LONG_TESTS").is_some();
    let (collections, count) = if long { (1000, usize::MAX) } else { (100, 2000) };
    let mut node = Node::start().await?;
    for number in 0..collections {
        let new = json!({ "name": format!("c{number}"), "embedding": { "dimension": 8 } });
        node.post("/collections", &new).await?.expect(201)?;
        let body = json!({ "documents": [{ "id": "a", "text": "the first", "vector": [1, 0, 0, 0, 0, 0, 0, number] }] });
        node.post(&format!("/collections/c{number}/documents"), &body).await?.expect(200)?;
    }
    let texts = documents(&shared.join("data/debian_en/docs.jsonl.gz"))?.take(count);
    let lines = texts.enumerate().map(|(number, text)| {
        let text = text?;
        let vector: Vec<f32> = (0..8).map(|bit| if number >> bit & 1 == 1 { 1.0 } else { -1.0 }).collect();
        Ok(json!({ "id": text["id"], "title": text["title"], "text": text["text"], "vector": vector }))
    });
    let lines = lines.collect::<Result<Vec<_>>>()?;
    let folder = tempfile::tempdir()?;
    write_lines(&folder.path().join("docs"), &lines)?;
    node.post("/collections", &json!({ "name": "debian", "embedding": { "dimension": 8 } })).await?.expect(201)?;
    let summary = Import::start(&folder.path().join("docs"), "debian", 256, std::slice::from_ref(&node))?.finish().await?;

    let took = node.kill_and_restart().await?;
    println!("ready {} ms after a kill, with {collections} collections and {} documents", took.as_millis(), summary["accepted"]);
    for number in [0, collections / 2, collections - 1] {
        let query = json!({ "query": "first", "mode": "text" });
        let found = node.post(&format!("/collections/c{number}/search"), &query).await?.expect(200)?;
        ensure!(entries(&found, "hits").count() == 1, "collection c{number}: {found}");
    }
    ensure!(stored(&node, "debian").await?.len() == lines.len(), "documents are missing");

    let begun = Instant::now();
    let joined = node.start_beside(&[]).await?;
    println!("a node that joins is ready after {} ms", begun.elapsed().as_millis());
    replicated(LONG_PATIENCE, &joined, 2, 2).await?;
    healthy(LONG_PATIENCE, &joined).await?;
    println!("and has everything after {} ms", begun.elapsed().as_millis());
    ensure!(stored(&joined, "debian").await?.len() == lines.len(), "documents are missing on the node that joined");
    Ok(())
}
