//! What one node promises: scenarios without faults, and with those of its process and its disk.

use super::power::{lose_power, lose_synced};
use super::stage::{Stage, document, last_line, make_collection, read, store, words_of};
use crate::workload::{text_of, vector_of};
use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use ragged_client::{
    Client, Condition, Consistency, Filter, Hit, ImportOptions, ListOptions, Mode, NewCollection, NewDocument, SearchRequest,
    Stage as JobStage, UploadOptions, UploadReply,
};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a segment may take to be built, and a job to end.
const WORK_TIMEOUT: Duration = Duration::from_secs(40);
/// How long a node may take to refuse a damaged folder.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests that are under way at once.
const AT_ONCE: usize = 16;

/// Documents are stored, replaced, deleted, listed, searched and imported; two collections keep apart.
pub async fn documents(stage: &mut Stage) -> Result<()> {
    let client = stage.client(0)?;
    // Over all shards, so that both have some in each.
    make_collection(&client, "letters", 16).await?;
    make_collection(&client, "notes", 16).await?;
    let id = |number: u64| format!("d{number:03}");

    for batch in 0..3 {
        let numbers = batch * 40..batch * 40 + 40;
        let written: Vec<NewDocument> = numbers.clone().map(|number| document(&id(number), 1000 + number)).collect();
        for stored in store(&client, "letters", &written).await? {
            stage.expect("exactly-once", stored.version == 1, || {
                format!("{} is new, and has version {}", stored.id, stored.version)
            });
        }
        for number in numbers.step_by(8) {
            expect_found(stage, &client, "letters", &id(number), 1000 + number, "search").await?;
        }
    }
    let notes: Vec<NewDocument> = (0..40).map(|number| document(&id(number), 5000 + number)).collect();
    store(&client, "notes", &notes).await?;
    for number in 0..120 {
        let text = read(&client, "letters", &id(number)).await?.and_then(|document| document.text);
        let own = text.as_deref() == Some(words_of(1000 + number).as_str());
        stage.expect("isolation", own, || format!("{} of letters reads {text:?}", id(number)));
    }

    let replacing: Vec<NewDocument> = (0..20).map(|number| document(&id(number), 2000 + number)).collect();
    for stored in store(&client, "letters", &replacing).await? {
        stage.expect("exactly-once", stored.version == 2, || {
            format!("{} was replaced once, and has version {}", stored.id, stored.version)
        });
    }
    let about = client.get_collection("letters").await?;
    let counted = (about.documents, about.chunks);
    stage.expect("counts", counted == (Some(120), Some(120)), || {
        format!("120 documents of a chunk each are counted as {counted:?}")
    });

    for number in 20..40 {
        client.delete_document("letters", &id(number)).await?;
        let gone = read(&client, "letters", &id(number)).await?.is_none();
        stage.expect("deletes", gone, || format!("{} was deleted, and is still there", id(number)));
    }
    let hits = by_words(&client, "letters", "common", 100, None).await?;
    let living: BTreeSet<String> = (0..20).chain(40..120).map(id).collect();
    let seen: BTreeSet<String> = hits.into_iter().map(|hit| hit.document_id).collect();
    stage.expect("search", seen == living, || {
        format!("of 100 documents with a word {} are found", seen.intersection(&living).count())
    });

    let even = Filter {
        must: vec![Condition { field: "even".into(), eq: Some(Value::Bool(true)), ..Condition::default() }],
        ..Filter::default()
    };
    let hits = by_words(&client, "letters", "common", 100, Some(even)).await?;
    let all_even = hits.len() == 50 && hits.iter().all(|hit| hit.metadata.fields().is_ok_and(|fields| fields["even"] == true));
    stage.expect("filter", all_even, || format!("{} hits pass a filter that 50 documents pass", hits.len()));

    let listed = list_all(&client, "letters").await?;
    let in_order: Vec<String> = living.into_iter().collect();
    stage.expect("listing", listed == in_order, || format!("100 documents are listed as {}", listed.len()));
    idempotency(stage, &client).await?;
    import(stage, &client).await
}

async fn idempotency(stage: &mut Stage, client: &Client) -> Result<()> {
    let options = || UploadOptions { idempotency_key: Some("once".into()), no_wait: false };
    let mut versions = Vec::new();
    for _ in 0..2 {
        match client.upload("letters", &[document("once", 3000)], options()).await? {
            UploadReply::Stored(stored) => versions.extend(stored.documents.into_iter().map(|document| document.version)),
            UploadReply::Accepted(_) => anyhow::bail!("an upload that waits was made a job"),
        }
    }
    stage.expect("exactly-once", versions == [1, 1], || format!("two uploads under one key gave the versions {versions:?}"));
    let other = client.upload("letters", &[document("once", 3001)], options()).await;
    let refused = other.as_ref().is_err_and(|fault| fault.code() == Some("idempotency_conflict"));
    stage.expect("exactly-once", refused, || format!("another upload under the same key was answered {other:?}"));
    Ok(())
}

async fn import(stage: &mut Stage, client: &Client) -> Result<()> {
    let count = 400;
    let lines: Vec<String> = (0..count)
        .map(|number| serde_json::to_string(&document(&format!("i{number:03}"), 10_000 + number)))
        .collect::<Result<_, _>>()?;
    let report = client.import("notes", lines.join("\n").into(), ImportOptions { every_line_has_an_id: true }).await?;
    ensure!(report.failed_count == 0, "the import refused {} lines", report.failed_count);
    let there = list_all(client, "notes").await?.into_iter().filter(|id| id.starts_with('i')).count() as u64;
    stage.expect("durability", there == report.accepted, || {
        format!("an import accepted {} documents, and {there} are there", report.accepted)
    });
    Ok(())
}

/// Segments are built; documents are deleted out of them and added behind them; the node is killed, and bits rot.
pub async fn segments(stage: &mut Stage) -> Result<()> {
    let client = stage.client(0)?;
    make_collection(&client, "letters", 1).await?;
    let id = |value: u64| format!("d{value:03}");
    let count = 128;
    for batch in 0..4 {
        let written: Vec<NewDocument> = (batch * 32..batch * 32 + 32).map(|value| document(&id(value), value)).collect();
        store(&client, "letters", &written).await?;
    }
    until_indexed(&client, "letters").await?;

    // Whoever stands before those that are left must not take their places.
    let query = vector_of(777_777);
    let mut nearest: Vec<u64> = (0..count).collect();
    nearest.sort_by(|one, other| similarity(&vector_of(*other), &query).total_cmp(&similarity(&vector_of(*one), &query)));
    let deleted = &nearest[..10];
    for value in deleted {
        client.delete_document("letters", &id(*value)).await?;
    }
    let hits = by_vector(&client, "letters", query, 5).await?;
    // Rounding may exchange neighbours.
    let next: BTreeSet<String> = nearest[10..18].iter().map(|value| id(*value)).collect();
    let right = hits.len() == 5 && hits.iter().all(|hit| next.contains(&hit.document_id));
    stage.expect("deletions", right, || format!("after ten nearer ones were deleted, a search for five finds {}", hits.len()));

    let tail: Vec<NewDocument> = (500..510).map(|value| document(&id(value), value)).collect();
    store(&client, "letters", &tail).await?;
    stage.kill(0).await?;
    let vectors = find_file(&stage.data_dir(0).join("partitions"), "vectors.f16").context("there is no segment")?;
    flip_bit(&vectors)?;
    ensure!(stage.start_again(0).await?, "the node is not ready again");
    let client = stage.client(0)?;
    for value in 500..510 {
        expect_found(stage, &client, "letters", &id(value), value, "search").await?;
    }
    for value in nearest[10..].iter().copied() {
        let hits = by_vector(&client, "letters", vector_of(value), 1).await?;
        let right = hits.first().is_some_and(|hit| hit.document_id == id(value) && (hit.score - 1.0).abs() < 0.01);
        stage.expect("corruption", right, || {
            format!(
                "after bits rotted, the nearest to {} is {:?}",
                id(value),
                hits.first().map(|hit| (&hit.document_id, hit.score))
            )
        });
    }
    Ok(())
}

/// The power is lost while documents are stored.
pub async fn power_loss(stage: &mut Stage) -> Result<()> {
    make_collection(&stage.client(0)?, "letters", 1).await?;
    stage.restart_armed(0).await?;
    write_each(stage, 100).await?;
    stage.kill(0).await?;
    lose_power(&stage.data_dir(0).join("store"))?;
    stage.arm(false);
    come_back_with(stage, 100).await
}

/// The node is killed, and its write-ahead log has lost what had been synced: that must be noticed.
pub async fn lost_log(stage: &mut Stage) -> Result<()> {
    make_collection(&stage.client(0)?, "letters", 1).await?;
    write_each(stage, 100).await?;
    stage.kill(0).await?;
    lose_synced(&stage.data_dir(0).join("store"))?;
    stage.arm(true);
    stage.cluster.restart(0)?;
    match stage.cluster.ended(0, REFUSAL_TIMEOUT).await {
        Ok(()) => {
            let said = last_line(&stage.cluster.log_path(0));
            ensure!(said.contains("has lost acknowledged writes"), "the node ended for another reason: {said}");
        }
        Err(_) => stage.violated("detection", "a node serves although its log has lost what was synced"),
    }
    Ok(())
}

/// So many documents are stored that the log is purged; the node is killed.
pub async fn purge(stage: &mut Stage) -> Result<()> {
    make_collection(&stage.client(0)?, "letters", 1).await?;
    write_each(stage, 600).await?;
    stage.kill(0).await?;
    come_back_with(stage, 600).await
}

/// Texts are embedded, and a job is cut off by a kill.
pub async fn jobs(stage: &mut Stage) -> Result<()> {
    let client = stage.client(0)?;
    let new = NewCollection { name: "letters".into(), spread: Some(2), embedding: None, chunking: None, language: None };
    client.create_collection(&new).await?;
    let texts = [
        "The albatross glides over the southern ocean.",
        "Sourdough bread needs flour, water, salt and time.",
        "The court dismissed the appeal of the tenant.",
        "A transistor amplifies a small electric current.",
    ];
    let plain =
        |id: String, text: String| NewDocument { id: Some(id), title: None, text, format: None, metadata: None, vector: None };
    let written: Vec<NewDocument> =
        texts.iter().enumerate().map(|(number, text)| plain(format!("t{number}"), (*text).to_owned())).collect();
    store(&client, "letters", &written).await?;
    for (number, text) in texts.iter().enumerate() {
        let request = SearchRequest { query: Some((*text).to_owned()), mode: Some(Mode::Dense), limit: Some(1), ..strong() };
        let hits = client.search("letters", &request).await?.hits;
        let right = hits.first().is_some_and(|hit| hit.document_id == format!("t{number}"));
        stage.expect("search", right, || {
            format!("the text of t{number} finds {:?} by meaning", hits.first().map(|hit| &hit.document_id))
        });
    }

    let long = |number: usize| plain(format!("j{number}"), format!("Report {number}. {}", texts.join(" ").repeat(4)));
    let uploaded: Vec<NewDocument> = (0..300).map(long).collect();
    let UploadReply::Accepted(job) =
        client.upload("letters", &uploaded, UploadOptions { idempotency_key: None, no_wait: true }).await?
    else {
        anyhow::bail!("an upload that does not wait was not made a job");
    };
    let begun = client.get_job(&job.job).await?;
    ensure!(begun.stage != JobStage::Replicated, "the job had ended before the node could be killed");
    stage.kill(0).await?;
    ensure!(stage.start_again(0).await?, "the node is not ready again");
    let client = stage.client(0)?;
    let deadline = Instant::now() + WORK_TIMEOUT;
    let (mut last, mut since) = (begun, Instant::now());
    while last.stage != JobStage::Replicated && Instant::now() < deadline && since.elapsed() < WORK_TIMEOUT / 3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = client.get_job(&job.job).await?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    let done = last.stage == JobStage::Replicated && last.done == 300;
    stage.expect("jobs", done, || {
        format!("nobody goes on with a job that a kill cut off: it is {:?}, {} of 300 are stored", last.stage, last.done)
    });
    Ok(())
}

async fn write_each(stage: &Stage, count: u64) -> Result<()> {
    let client = stage.client(0)?;
    let writes = futures::stream::iter(0..count).map(|value| {
        let client = client.clone();
        async move { store(&client, "letters", &[document(&format!("d{value}"), value)]).await }
    });
    let written: Vec<Result<_>> = writes.buffer_unordered(AT_ONCE).collect().await;
    written.into_iter().try_for_each(|one| one.map(drop))
}

/// Starts the node; it must have all documents that were acknowledged.
async fn come_back_with(stage: &mut Stage, count: u64) -> Result<()> {
    let ready = match stage.start_again(0).await {
        Ok(ready) => ready,
        Err(fault) => {
            stage.violated("recovery", format!("the node does not start again over what it kept: {fault:#}"));
            return Ok(());
        }
    };
    let mut lost = 0;
    for value in 0..if ready { count } else { 0 } {
        match read(&stage.client(0)?, "letters", &format!("d{value}")).await {
            Ok(document) => lost += u64::from(document.and_then(|document| document.text) != Some(words_of(value))),
            Err(fault) => {
                stage.violated("recovery", format!("what was acknowledged cannot be read: {fault:#}"));
                break;
            }
        }
    }
    stage.expect("recovery", ready, || "the node does not become ready again".into());
    stage.expect("durability", lost == 0, || format!("{lost} of {count} acknowledged documents are lost"));
    Ok(())
}

fn strong() -> SearchRequest {
    SearchRequest { consistency: Some(Consistency::Strong), ..SearchRequest::default() }
}

async fn by_words(client: &Client, collection: &str, query: &str, limit: u32, filter: Option<Filter>) -> Result<Vec<Hit>> {
    let request = SearchRequest { query: Some(query.into()), mode: Some(Mode::Text), limit: Some(limit), filter, ..strong() };
    Ok(client.search(collection, &request).await?.hits)
}

async fn by_vector(client: &Client, collection: &str, vector: Vec<f32>, limit: u32) -> Result<Vec<Hit>> {
    Ok(client.search(collection, &SearchRequest { vector: Some(vector), limit: Some(limit), ..strong() }).await?.hits)
}

/// A document must be the first that is found by its own word and by its vector.
async fn expect_found(
    stage: &mut Stage,
    client: &Client,
    collection: &str,
    id: &str,
    value: u64,
    check: &'static str,
) -> Result<()> {
    let words = by_words(client, collection, &text_of(value), 1, None).await?;
    let vector = by_vector(client, collection, vector_of(value), 1).await?;
    for (hits, by) in [(words, "word"), (vector, "vector")] {
        let first = hits.first().is_some_and(|hit| hit.document_id == id);
        stage.expect(check, first, || format!("{id} is not found by its {by}"));
    }
    Ok(())
}

async fn list_all(client: &Client, collection: &str) -> Result<Vec<String>> {
    let (mut ids, mut cursor) = (Vec::new(), None);
    loop {
        let page = client.list_documents(collection, ListOptions { limit: Some(7), cursor }, false).await?;
        ids.extend(page.documents.into_iter().map(|document| document.id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(ids);
        }
    }
}

/// Waits until a collection's rows are in segments.
async fn until_indexed(client: &Client, collection: &str) -> Result<()> {
    let deadline = Instant::now() + WORK_TIMEOUT;
    let request = SearchRequest { vector: Some(vector_of(1)), limit: Some(1), explain: Some(true), ..strong() };
    loop {
        let steps: Vec<String> =
            client.search(collection, &request).await?.plan.into_iter().flatten().flat_map(|shard| shard.steps).collect();
        let (in_segments, waiting) =
            (steps.iter().any(|step| step.contains("segment")), steps.iter().any(|step| step.contains("not indexed yet, exact")));
        if in_segments && !waiting {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the rows are not in segments: {steps:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn similarity(one: &[f32], other: &[f32]) -> f32 {
    let product = |one: &[f32], other: &[f32]| one.iter().zip(other).map(|(one, other)| one * other).sum::<f32>();
    product(one, other) / (product(one, one) * product(other, other)).sqrt()
}

fn find_file(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> = entries.collect();
    paths.sort();
    paths.into_iter().find_map(|path| match path.is_dir() {
        true => find_file(&path, name),
        false => path.file_name().is_some_and(|found| found == name).then_some(path),
    })
}

/// A bit of an exponent: a number becomes large, or small.
fn flip_bit(path: &Path) -> Result<()> {
    let mut bytes = std::fs::read(path)?;
    let middle = bytes.len() / 32 * 16 + 1;
    *bytes.get_mut(middle).context("the file is empty")? ^= 0x40;
    Ok(std::fs::write(path, bytes)?)
}
