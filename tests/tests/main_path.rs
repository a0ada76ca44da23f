//! The main job: documents are uploaded, and found again.

use anyhow::{Result, ensure};
use ragged_tests::Node;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

async fn handbook(node: &Node) -> Result<()> {
    node.post("/collections", &json!({"name": "handbook"})).await?.expect(201)?;
    let body = json!({"documents": [
        {"id": "raft", "title": "Replication", "text": "Replicas agree on the order of writes through an elected leader.", "metadata": {"kind": "design", "year": 2024, "tags": ["raft", "log"]}},
        {"id": "cake", "title": "Baking", "text": "Whisk the eggs with sugar, fold in the flour and bake the sponge for forty minutes.", "metadata": {"kind": "recipe", "year": 1999, "author": {"name": "Ada"}}},
        {"id": "dog", "text": "My dog loves to chase squirrels in the park.", "metadata": {"kind": "story", "year": 2024.0}},
        {"id": "tokyo", "text": "東京は日本の首都です。", "metadata": {"kind": "geography"}}
    ]});
    let stored = node.post("/collections/handbook/documents", &body).await?.expect(200)?;
    ensure!(stored["documents"].as_array().is_some_and(|documents| documents.len() == 4), "{stored}");
    ensure!(stored["documents"][0] == json!({"id": "raft", "chunks": 1, "version": 1}), "{stored}");
    Ok(())
}

async fn found(node: &Node, search: Value) -> Result<Vec<String>> {
    let answer = node.post("/collections/handbook/search", &search).await?.expect(200)?;
    let hits = answer["hits"].as_array().cloned().unwrap_or_default();
    Ok(hits.iter().map(|hit| hit["document_id"].as_str().unwrap_or_default().to_owned()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_found_by_meaning_by_words_and_by_both() -> Result<()> {
    let node = Node::start().await?;
    handbook(&node).await?;
    let meaning = found(&node, json!({"query": "a pet running after small animals", "mode": "dense"})).await?;
    ensure!(meaning[0] == "dog", "{meaning:?}");
    let words = found(&node, json!({"query": "leaders electing", "mode": "text"})).await?;
    ensure!(words == ["raft"], "stemming finds other forms of a word: {words:?}");
    let both = found(&node, json!({"query": "sponge cake recipe"})).await?;
    ensure!(both[0] == "cake", "{both:?}");
    let script = found(&node, json!({"query": "日本", "mode": "text"})).await?;
    ensure!(script == ["tokyo"], "{script:?}");
    Ok(())
}

/// Whoever has something embedded is told apart by the id of the key, which is no secret.
#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_devices_is_counted_by_key() -> Result<()> {
    let node = Node::start().await?;
    handbook(&node).await?;
    found(&node, json!({"query": "a pet", "mode": "dense"})).await?;
    let key = node.key()?;
    let [_, id, secret] = key.split('_').collect::<Vec<_>>()[..] else { anyhow::bail!("a key has three parts") };
    let metrics =
        reqwest::Client::new().get(node.url("/metrics")).bearer_auth(&key).send().await?.error_for_status()?.text().await?;
    let value = |name: &str, label: &str| -> f64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    let of_key = value("ragged_embedding_tenant_seconds_total{", &format!("key=\"{id}\""));
    let of_devices = value("ragged_embedding_busy_seconds_total{", "device=\"");
    ensure!(of_key > 0.0 && (of_key - of_devices).abs() < 1e-6, "{of_key} {of_devices}: {metrics}");
    ensure!(value("ragged_embedding_queue_seconds_count", "") >= 5.0, "four documents and a query have waited: {metrics}");
    ensure!(!metrics.contains(secret), "a secret is among the metrics");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hit_says_what_it_is_and_where() -> Result<()> {
    let node = Node::start().await?;
    handbook(&node).await?;
    let answer =
        node.post("/collections/handbook/search", &json!({"query": "sponge", "explain": true, "limit": 1})).await?.expect(200)?;
    let hit = &answer["hits"][0];
    ensure!(hit["title"] == "Baking" && hit["metadata"]["author"]["name"] == "Ada" && hit["chunk"] == 0, "{hit}");
    let text =
        node.get("/collections/handbook/documents/cake").await?.expect(200)?["text"].as_str().unwrap_or_default().to_owned();
    let (start, end) = (hit["span"]["start"].as_u64().unwrap_or(9) as usize, hit["span"]["end"].as_u64().unwrap_or(0) as usize);
    ensure!(hit["text"] == json!(text[start..end]), "the span is where the chunk stands: {hit}");
    ensure!(hit["explanation"]["text_rank"] == 1 && answer["plan"].as_array().is_some_and(|plan| !plan.is_empty()), "{answer}");
    ensure!(answer["took_ms"].as_f64().is_some_and(|took| took >= 0.0), "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_pass_what_they_say() -> Result<()> {
    let node = Node::start().await?;
    handbook(&node).await?;
    let cases = [
        (json!({"must": [{"field": "kind", "eq": "recipe"}]}), vec!["cake"]),
        (json!({"must": [{"field": "year", "eq": 2024}]}), vec!["dog", "raft"]),
        (json!({"must": [{"field": "year", "gte": 1999, "lt": 2024}]}), vec!["cake"]),
        (json!({"must": [{"field": "author.name", "eq": "Ada"}]}), vec!["cake"]),
        (json!({"must": [{"field": "tags", "in": ["log", "none"]}]}), vec!["raft"]),
        (json!({"must": [{"field": "year", "exists": false}]}), vec!["tokyo"]),
        (json!({"must_not": [{"field": "year", "exists": true}]}), vec!["tokyo"]),
        (json!({"should": [{"field": "kind", "eq": "story"}, {"field": "kind", "match": "RECIPE"}]}), vec!["cake", "dog"]),
        (json!({"must": [{"field": "kind", "eq": "none"}]}), vec![]),
    ];
    for (filter, expected) in cases {
        let mut ids = found(&node, json!({"query": "anything at all", "mode": "dense", "filter": filter})).await?;
        ids.sort();
        ensure!(ids == expected, "{filter}: {ids:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_replaced_as_one_step_and_deleted_for_good() -> Result<()> {
    let node = Node::start().await?;
    handbook(&node).await?;
    let body = json!({"documents": [{"id": "dog", "text": "Quantum chromodynamics describes quarks."}]});
    let stored = node.post("/collections/handbook/documents", &body).await?.expect(200)?;
    ensure!(stored["documents"][0]["version"] == 2, "{stored}");
    ensure!(found(&node, json!({"query": "squirrels", "mode": "text"})).await?.is_empty(), "the old text is gone");
    ensure!(found(&node, json!({"query": "quarks", "mode": "text"})).await? == ["dog"], "the new text is there");
    let with_token = json!({"query": "quarks", "mode": "text", "token": stored["token"]});
    ensure!(found(&node, with_token).await? == ["dog"], "its token is honoured");
    let counts = node.get("/collections/handbook").await?.expect(200)?;
    ensure!(counts["documents"] == 4 && counts["chunks"] == 4, "{counts}");
    node.delete("/collections/handbook/documents/dog").await?.expect(200)?;
    ensure!(node.get("/collections/handbook/documents/dog").await?.code() == "document_not_found");
    ensure!(node.delete("/collections/handbook/documents/dog").await?.status == 404);
    ensure!(found(&node, json!({"query": "quarks", "mode": "text"})).await?.is_empty());
    let filter = json!({"filter": {"must": [{"field": "year", "gt": 0}]}});
    let deleted = node.send(node.request(Method::DELETE, "/collections/handbook/documents")?.json(&filter)).await?.expect(200)?;
    ensure!(deleted["deleted"] == 2, "{deleted}");
    node.delete("/collections/handbook").await?.expect(204)?;
    ensure!(node.get("/collections/handbook").await?.code() == "collection_not_found");
    node.post("/collections", &json!({"name": "handbook"})).await?.expect(201)?;
    ensure!(
        found(&node, json!({"query": "anything", "mode": "dense"})).await?.is_empty(),
        "a new collection of an old name is empty"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn long_documents_are_cut_and_group_by_document_shows_each_once() -> Result<()> {
    let node = Node::start().await?;
    node.post("/collections", &json!({"name": "handbook", "chunking": {"tokens": 64, "overlap": 8}})).await?.expect(201)?;
    let paragraph = |topic: &str| {
        format!("## About {topic}\n\n{}\n\n", format!("This sentence is about {topic} and nothing else. ").repeat(12))
    };
    let text: String = ["whales", "volcanoes", "violins"].map(paragraph).concat();
    let body = json!({"documents": [{"id": "long", "text": text, "format": "markdown"}]});
    let stored = node.post("/collections/handbook/documents", &body).await?.expect(200)?;
    ensure!(stored["documents"][0]["chunks"].as_u64().is_some_and(|chunks| chunks > 3), "{stored}");
    let answer = node.post("/collections/handbook/search", &json!({"query": "volcanoes"})).await?.expect(200)?;
    ensure!(answer["hits"].as_array().is_some_and(|hits| hits.len() > 1), "every chunk is a hit: {answer}");
    for hit in answer["hits"].as_array().into_iter().flatten() {
        let (start, end) =
            (hit["span"]["start"].as_u64().unwrap_or(9) as usize, hit["span"]["end"].as_u64().unwrap_or(0) as usize);
        ensure!(hit["text"] == json!(text[start..end]), "{hit}");
    }
    ensure!(answer["hits"][0]["text"].as_str().is_some_and(|text| text.contains("volcanoes")), "{answer}");
    ensure!(found(&node, json!({"query": "volcanoes", "group_by": "document"})).await? == ["long"]);
    Ok(())
}

/// Vectors near one of a hundred centres, of 32 values each, always the same.
fn vectors_in_clusters(count: u64) -> Vec<Vec<f64>> {
    let mut state = 1u64;
    let mut number = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    let centres: Vec<Vec<f64>> = (0..100).map(|_| (0..32).map(|_| number()).collect()).collect();
    let near = |place: u64| centres[place as usize % 100].iter().map(|value| value + 0.3 * number()).collect();
    (0..count).map(near).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_find_as_much_as_they_are_asked_to() -> Result<()> {
    const COUNT: u64 = 10_000; // smaller segments have no approximate index
    let node = Node::start().await?;
    node.post("/collections", &json!({"name": "v", "embedding": {"dimension": 32}})).await?.expect(201)?;
    let vectors = vectors_in_clusters(COUNT);
    for (part, some) in vectors.chunks(500).enumerate() {
        let document = |(place, vector): (usize, &Vec<f64>)| {
            let id = (500 * part + place).to_string();
            json!({"id": id, "text": "a point", "vector": vector})
        };
        let documents: Vec<Value> = some.iter().enumerate().map(document).collect();
        node.post("/collections/v/documents", &json!({"documents": documents})).await?.expect(200)?;
    }
    let search = async |place: usize, recall: Value| {
        let body = json!({"vector": vectors[place], "limit": 10, "recall": recall, "explain": true});
        node.post("/collections/v/search", &body).await?.expect(200)
    };
    let is_approximate = |answer: &Value| answer["plan"].to_string().contains("approximate");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_approximate(&search(0, Value::Null).await?) {
        ensure!(Instant::now() < deadline, "the vectors are not indexed: {}", search(0, Value::Null).await?["plan"]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ids = |answer: &Value| -> Vec<String> {
        answer["hits"].as_array().into_iter().flatten().filter_map(|hit| hit["document_id"].as_str()).map(str::to_owned).collect()
    };
    let (mut usual, mut high) = (0, 0);
    for place in (0..COUNT as usize).step_by(100) {
        let exact = search(place, json!("exact")).await?;
        ensure!(!is_approximate(&exact), "{}", exact["plan"]);
        let right = ids(&exact);
        ensure!(right.len() == 10 && right[0] == place.to_string(), "{exact}");
        for (recall, found) in [(json!(0.95), &mut usual), (json!(0.99), &mut high)] {
            *found += ids(&search(place, recall).await?).iter().filter(|id| right.contains(id)).count();
        }
    }
    ensure!(usual >= 950 && high >= 990, "of 1000, {usual} and {high} were found");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_uploaded_as_forms() -> Result<()> {
    let node = Node::start().await?;
    node.post("/collections", &json!({"name": "handbook"})).await?.expect(201)?;
    let part = |name: &str, text: &str| reqwest::multipart::Part::text(text.to_owned()).file_name(name.to_owned());
    let form = reqwest::multipart::Form::new()
        .part("file", part("notes.txt", "Plain words about glaciers."))
        .part("file", part("guide.md", "# Guide\n\nMarkdown about *harbours*."))
        .part("file", part("page.html", "<html><body><h1>Page</h1><p>Hypertext about <b>orchards</b> &amp; bees.</p><script>secret()</script></body></html>"));
    let answer = node.send(node.request(Method::POST, "/collections/handbook/documents")?.multipart(form)).await?.expect(200)?;
    ensure!(answer["documents"].as_array().is_some_and(|documents| documents.len() == 3), "{answer}");
    for (word, id) in [("glaciers", "notes.txt"), ("harbours", "guide.md"), ("orchards", "page.html")] {
        ensure!(found(&node, json!({"query": word, "mode": "text"})).await? == [id], "{word}");
    }
    ensure!(found(&node, json!({"query": "secret", "mode": "text"})).await?.is_empty(), "scripts are no text");
    let form = reqwest::multipart::Form::new().part("file", part("image.png", "x"));
    let refused = node.send(node.request(Method::POST, "/collections/handbook/documents")?.multipart(form)).await?;
    ensure!((400..500).contains(&refused.status) && !refused.code().is_empty(), "{refused:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_with_the_same_idempotency_key_changes_nothing() -> Result<()> {
    let node = Node::start().await?;
    node.post("/collections", &json!({"name": "handbook"})).await?.expect(201)?;
    let send = |body: Value| {
        let request = node
            .request(Method::POST, "/collections/handbook/documents")
            .map(|request| request.header("idempotency-key", "k-1").json(&body));
        async { node.send(request?).await }
    };
    let body = json!({"documents": [{"text": "Made an id."}, {"id": "b", "text": "Brought an id."}]});
    let first = send(body.clone()).await?.expect(200)?;
    let second = send(body).await?.expect(200)?;
    ensure!(first["documents"] == second["documents"], "{first} {second}");
    let counts = node.get("/collections/handbook").await?.expect(200)?;
    ensure!(counts["documents"] == 2, "{counts}");
    let other = send(json!({"documents": [{"id": "c", "text": "Another request."}]})).await?;
    ensure!(other.status == 409 || other.status == 200, "{other:?}");
    let conflict = send(json!({"documents": [{"id": "b", "text": "Changed."}, {"text": "Made an id."}]})).await?;
    ensure!(conflict.code() == "idempotency_conflict", "{conflict:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_takes_the_good_lines_and_names_the_bad_ones() -> Result<()> {
    let node = Node::start().await?;
    node.post("/collections", &json!({"name": "handbook"})).await?.expect(201)?;
    let mut lines: Vec<Vec<u8>> = (0..300)
        .map(|n| format!("{{\"id\": \"i{n}\", \"text\": \"Imported line {n} about lighthouses.\"}}").into_bytes())
        .collect();
    lines[9] = b"{\"id\": ".to_vec();
    lines[19] = b"{\"id\": \"x\", \"text\": \"y\", \"colour\": 1}".to_vec();
    lines[29] = b"{\"id\": \"\xff\", \"text\": \"y\"}".to_vec();
    lines[39] = b"{\"id\": \"x\", \"text\": \"  \"}".to_vec();
    lines[49] = b"{\"id\": \"i0\", \"text\": \"The later line of an id wins.\"}".to_vec();
    let body = lines.join(&b'\n');
    let request = node
        .request(Method::POST, "/collections/handbook/documents/import")?
        .header("content-type", "application/x-ndjson")
        .body(body);
    let report = node.send(request).await?.expect(200)?;
    ensure!(report["accepted"] == 296 && report["failed_count"] == 4, "{report}");
    let failed: Vec<u64> =
        report["failed"].as_array().into_iter().flatten().filter_map(|failure| failure["line"].as_u64()).collect();
    ensure!(failed == [10, 20, 30, 40], "{report}");
    let document = node.get("/collections/handbook/documents/i0").await?.expect(200)?;
    ensure!(document["text"] == "The later line of an id wins.", "{document}");
    let search = json!({"query": "lighthouses", "mode": "text", "limit": 1000, "token": report["token"]});
    ensure!(found(&node, search).await?.len() == 294, "all that was accepted is found");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_are_paged_without_gaps() -> Result<()> {
    let node = Node::start().await?;
    node.post("/collections", &json!({"name": "handbook", "embedding": {"dimension": 4}, "spread": 5})).await?.expect(201)?;
    let documents: Vec<Value> =
        (0..97).map(|n| json!({"id": format!("p{n:03}"), "text": "t", "vector": [1.0, n, 0.5, 0.25]})).collect();
    node.post("/collections/handbook/documents", &json!({"documents": documents})).await?.expect(200)?;
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = node.get(&format!("/collections/handbook/documents?limit=10{cursor}")).await?.expect(200)?;
        ids.extend(
            page["documents"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|document| document["id"].as_str().unwrap_or_default().to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    ensure!(ids == (0..97).map(|n| format!("p{n:03}")).collect::<Vec<_>>(), "{ids:?}");
    let batch = json!({"searches": [{"vector": [1.0, 50.0, 0.5, 0.25], "limit": 1}, {"query": "t", "mode": "text", "limit": 3}]});
    let results = node.post("/collections/handbook/search/batch", &batch).await?.expect(200)?;
    ensure!(results["results"].as_array().is_some_and(|results| results.len() == 2), "{results}");
    ensure!(results["results"][1]["hits"].as_array().is_some_and(|hits| hits.len() == 3), "{results}");
    Ok(())
}
