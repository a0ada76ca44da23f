//! Uploads that nobody waits for: listed, watched, cancelled, retried, and never done twice.

use anyhow::{Result, ensure};
use ragged_tests::{Answer, Node};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

const DOCUMENTS: &str = "/collections/handbook/documents";

fn notes(count: usize, text: &str) -> Value {
    let note = |number: usize| json!({"id": format!("n{number}"), "text": format!("Note number {number}. {text}")});
    json!({"documents": (0..count).map(note).collect::<Vec<_>>()})
}

/// Text that takes a while to embed.
fn long_text() -> String {
    "A sentence that takes a while to embed, with many words in it. ".repeat(12)
}

async fn submit(node: &Node, body: &Value) -> Result<String> {
    let accepted = node.post(&format!("{DOCUMENTS}?wait=false"), body).await?.expect(202)?;
    Ok(accepted["job"].as_str().unwrap_or_default().to_owned())
}

async fn submit_under(node: &Node, key: &str, body: &Value) -> Result<Answer> {
    node.send(node.request(Method::POST, &format!("{DOCUMENTS}?wait=false"))?.header("idempotency-key", key).json(body)).await
}

async fn ended(node: &Node, job: &str) -> Result<Value> {
    loop {
        let state = node.get(&format!("/jobs/{job}")).await?.expect(200)?;
        if ["replicated", "failed", "cancelled"].contains(&state["stage"].as_str().unwrap_or_default()) {
            return Ok(state);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_not_waited_for_is_a_job() -> Result<()> {
    let node = Node::start().await?;
    node.post("/collections", &json!({"name": "handbook"})).await?.expect(201)?;
    let job = submit(&node, &notes(150, "About rivers.")).await?;
    let state = ended(&node, &job).await?;
    ensure!(state["stage"] == "replicated" && state["done"] == 150 && state["failed"] == json!([]), "{state}");
    let search = json!({"query": "rivers", "mode": "text", "limit": 1000});
    let found = node.post("/collections/handbook/search", &search).await?.expect(200)?;
    ensure!(found["hits"].as_array().is_some_and(|hits| hits.len() == 150));
    let listed = node.get("/jobs").await?.expect(200)?;
    ensure!(listed["jobs"][0]["id"] == json!(job), "{listed}");
    for action in ["retry", "cancel"] {
        let refused = node.post(&format!("/jobs/{job}/{action}"), &json!({})).await?;
        ensure!(refused.status == 409, "{action} of a finished job: {refused:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_survives_a_kill() -> Result<()> {
    let mut node = Node::start().await?;
    node.post("/collections", &json!({"name": "handbook"})).await?.expect(201)?;
    let job = submit(&node, &notes(400, &long_text())).await?;
    node.kill_and_restart().await?;
    let state = ended(&node, &job).await?;
    ensure!(state["stage"] == "replicated" && state["done"] == 400, "{state}");
    let counts = node.get("/collections/handbook").await?.expect(200)?;
    ensure!(counts["documents"] == 400, "{counts}");
    let first = node.get(&format!("{DOCUMENTS}/n0")).await?.expect(200)?;
    ensure!(first["version"] == 1, "a slice that was stored before the kill is not stored again: {first}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_can_be_cancelled_and_run_later() -> Result<()> {
    let mut node = Node::start().await?;
    node.post("/collections", &json!({"name": "handbook"})).await?.expect(201)?;
    let busy = [submit(&node, &notes(300, &long_text())).await?, submit(&node, &notes(300, &long_text())).await?];
    let job = submit(&node, &json!({"documents": [{"id": "waits", "text": "It waits for its turn."}]})).await?;
    let cancelled = node.post(&format!("/jobs/{job}/cancel"), &json!({})).await?.expect(200)?;
    ensure!(cancelled["stage"] == "cancelled", "{cancelled}");
    for other in &busy {
        node.post(&format!("/jobs/{other}/cancel"), &json!({})).await?.expect(200)?;
        let state = ended(&node, other).await?;
        ensure!(state["stage"] == "cancelled" && state["done"].as_u64().is_some_and(|done| done < 300), "{state}");
    }
    node.kill_and_restart().await?;
    let state = node.get(&format!("/jobs/{job}")).await?.expect(200)?;
    ensure!(state["stage"] == "cancelled", "a restart does not take up what was cancelled: {state}");
    ensure!(node.get(&format!("{DOCUMENTS}/waits")).await?.status == 404);

    node.post(&format!("/jobs/{job}/retry"), &json!({})).await?.expect(200)?;
    let state = ended(&node, &job).await?;
    ensure!(state["stage"] == "replicated" && state["done"] == 1, "{state}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_stores_what_is_missing_and_leaves_alone_what_was_changed_since() -> Result<()> {
    let node = Node::start().await?;
    node.post("/collections", &json!({"name": "handbook", "chunking": {"tokens": 16, "overlap": 0}})).await?.expect(201)?;
    let too_many_chunks = "one two three four five six seven eight nine ten. ".repeat(40_000);
    let body = json!({"documents": [{"id": "good", "text": "as uploaded"}, {"id": "bad", "text": too_many_chunks}]});
    let job = submit(&node, &body).await?;
    let state = ended(&node, &job).await?;
    ensure!(state["stage"] == "replicated" && state["done"] == 1 && state["failed"][0]["id"] == "bad", "{state}");
    ensure!(state["failed"][0]["code"] == "too_many_chunks", "{state}");

    let changed = json!({"documents": [{"id": "good", "text": "changed since"}]});
    node.post(DOCUMENTS, &changed).await?.expect(200)?;
    node.post(&format!("/jobs/{job}/retry"), &json!({})).await?.expect(200)?;
    let state = ended(&node, &job).await?;
    ensure!(state["done"] == 1 && state["failed"][0]["id"] == "bad", "{state}");
    let good = node.get(&format!("{DOCUMENTS}/good")).await?.expect(200)?;
    ensure!(good["text"] == "changed since", "{good}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_stands_for_one_upload() -> Result<()> {
    let node = Node::start().await?;
    node.post("/collections", &json!({"name": "handbook", "spread": 4})).await?.expect(201)?;
    let first = submit_under(&node, "nightly", &notes(3, "Monday.")).await?.expect(202)?;
    let again = submit_under(&node, "nightly", &notes(3, "Monday.")).await?.expect(202)?;
    ensure!(first["job"] == again["job"], "{first} {again}");
    let other = submit_under(&node, "nightly", &notes(3, "Tuesday.")).await?;
    ensure!(other.status == 409 && other.code() == "idempotency_conflict", "{other:?}");

    // The same for an upload that is waited for: of one that is refused, no shard has a part.
    let upload = |body: Value| {
        let request = node.request(Method::POST, DOCUMENTS).map(|request| request.header("idempotency-key", "once").json(&body));
        let node = &node;
        async move { node.send(request?).await }
    };
    upload(json!({"documents": [{"id": "a", "text": "first"}]})).await?.expect(200)?;
    let more: Vec<Value> = (0..40).map(|number| json!({"id": format!("more{number}"), "text": "second"})).collect();
    let refused = upload(json!({"documents": more})).await?;
    ensure!(refused.status == 409, "{refused:?}");
    for number in 0..40 {
        ensure!(node.get(&format!("{DOCUMENTS}/more{number}")).await?.status == 404, "more{number} is stored");
    }
    Ok(())
}
