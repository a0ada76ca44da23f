//! Several nodes: they join, any of them serves, one that dies takes nothing with it.

use anyhow::{Context, Result, ensure};
use ragged_tests::cluster::{agreed, entries, healthy, nodes, number_of, replicated, retire, until};
use ragged_tests::node::{Node, program};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// Uploads through a node until it is acknowledged; a node that has just lost a leader may ask for patience.
async fn upload(node: &Node, id: &str) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let body = json!({ "documents": [{ "id": id, "text": format!("The albatross number {id} crosses the southern ocean.") }] });
    loop {
        let answer = node.post("/collections/birds/documents", &body).await?;
        if answer.status == 200 || answer.status == 201 {
            return Ok(answer.body["token"].as_str().context("a write returns a token")?.to_owned());
        }
        ensure!(matches!(answer.status, 503 | 504) && Instant::now() < deadline, "{}: {}", answer.status, answer.body);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The document is found through this node, by a search that carries its token.
async fn finds(node: &Node, id: &str, token: &str) -> Result<()> {
    let query = json!({ "query": format!("albatross {id}"), "mode": "text", "limit": 100, "token": token });
    let found = node.post("/collections/birds/search", &query).await?.expect(200)?;
    ensure!(entries(&found, "hits").any(|hit| hit["document_id"] == id), "{id} is not found: {found}");
    node.get(&format!("/collections/birds/documents/{id}?token={token}")).await?.expect(200)?;
    node.get(&format!("/collections/birds/documents/{id}?consistency=strong")).await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_serves_and_one_that_dies_takes_nothing_with_it() -> Result<()> {
    let mut nodes = nodes(3, &[]).await?;
    replicated(PATIENCE, &nodes[1], 3, 3).await?;
    until(&nodes[2], "/cluster/nodes", "all are active and vote", |body| {
        entries(body, "nodes").all(|node| node["state"] == "active" && node["votes_meta"] == true)
    })
    .await?;

    // What one node was told, every other one knows at once.
    nodes[0].post("/collections", &json!({ "name": "birds", "spread": 4 })).await?.expect(201)?;
    let mut written = Vec::new();
    for round in 0..4 {
        for (number, node) in nodes.iter().enumerate() {
            let id = format!("d{round}x{number}");
            let token = upload(node, &id).await?;
            for other in &nodes {
                finds(other, &id, &token).await?;
            }
            written.push((id, token));
        }
    }
    agreed(PATIENCE, &nodes[0]).await?;

    for victim in 0..3 {
        nodes[victim].kill()?;
        for (number, node) in nodes.iter().enumerate().filter(|(number, _)| *number != victim) {
            for round in 0..4 {
                let id = format!("k{victim}x{number}x{round}");
                let token = upload(node, &id).await?;
                finds(node, &id, &token).await?;
                written.push((id, token));
            }
        }
        nodes[victim].restart().await?;
        for (id, token) in &written {
            finds(&nodes[victim], id, token).await?;
        }
        healthy(PATIENCE, &nodes[(victim + 1) % 3]).await?;
    }
    agreed(PATIENCE, &nodes[0]).await?;
    for node in &nodes {
        let strong = json!({ "query": "albatross", "mode": "text", "limit": 100, "consistency": "strong" });
        let found = node.post("/collections/birds/search", &strong).await?.expect(200)?;
        ensure!(
            entries(&found, "hits").count() == written.len(),
            "{} of {} are found",
            entries(&found, "hits").count(),
            written.len()
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_follow_the_nodes_that_come_and_go() -> Result<()> {
    let mut nodes = nodes(3, &[]).await?;
    nodes[0].post("/collections", &json!({ "name": "birds", "spread": 4 })).await?.expect(201)?;
    let mut written = Vec::new();
    for number in 0..20 {
        let id = format!("d{number}");
        written.push((id.clone(), upload(&nodes[number % 3], &id).await?));
    }
    replicated(PATIENCE, &nodes[0], 3, 3).await?;
    let fourth = nodes[1].start_beside(&[]).await?;
    nodes.push(fourth);
    // The command ends when nothing is left to do.
    let mut rebalance = program();
    rebalance.args(["cluster", "rebalance", "--json"]).env("RAGGED_URL", nodes[3].url("")).env("RAGGED_KEY", nodes[3].key()?);
    let rebalanced = tokio::task::spawn_blocking(move || rebalance.output()).await??;
    let said: Value = serde_json::from_slice(&rebalanced.stdout).with_context(|| format!("{rebalanced:?}"))?;
    ensure!(said["steps"].is_array(), "{said}");
    until(&nodes[3], "/cluster/nodes", "replicas and leaders are spread evenly", |body| {
        let even = entries(body, "nodes").all(|node| node["replicas"] == 12 && node["leaders"] == 4);
        entries(body, "nodes").count() == 4 && even
    })
    .await?;

    // The founder leaves: its identity, its lead and its replicas are nothing special.
    let founder = number_of(&nodes[1], &nodes[0]).await?;
    retire(PATIENCE, &nodes[1], founder).await?;
    // It still runs, and finds out that nobody talks to it any more: what it answered from then on would be of the past.
    let deadline = Instant::now() + PATIENCE;
    let strong = json!({ "query": "albatross", "mode": "text", "consistency": "strong" });
    while nodes[0].post("/collections/birds/search", &strong).await?.code() != "node_left" {
        ensure!(Instant::now() < deadline, "the removed node goes on serving");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(nodes[0].get("/collections/birds").await?.status == 503, "nothing is served by a node that has left");
    nodes[0].kill()?;
    replicated(PATIENCE, &nodes[1], 3, 3).await?;
    for node in &nodes[1..] {
        for (id, token) in &written {
            finds(node, id, token).await?;
        }
    }
    agreed(PATIENCE, &nodes[1]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_may_not_join_is_told_why() -> Result<()> {
    let (one, other) = (Node::start().await?, Node::start().await?);
    let token = one.post("/cluster/tokens", &json!({ "valid_seconds": 600 })).await?.expect(201)?["token"].clone();
    let token = token.as_str().context("a token is text")?;
    let refused = |seed: &str, token: &str| -> Result<String> {
        let folder = tempfile::tempdir()?;
        let output = program()
            .args(["serve", "--listen", "127.0.0.1:0", "--cluster-listen", "127.0.0.1:0", "--join", seed, "--token", token])
            .env("RAGGED_DATA_DIR", folder.path())
            .env("RAGGED_MODEL_DIR", ragged_tests::node::model_dir())
            .output()?;
        ensure!(!output.status.success(), "it joined");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (seed, token, wanted) in [
        (one.cluster_listen(), "garbage", "a join token looks like"),
        (other.cluster_listen(), token, "not of the cluster that made the token"),
        ("127.0.0.1:9", token, "does not answer"),
    ] {
        let said = refused(seed, token)?;
        ensure!(said.contains(wanted), "{wanted}: {said}");
    }
    // The port of the API answers otherwise, or not in time.
    let said = refused(one.listen(), token)?;
    ensure!(said.contains("speaks another protocol") || said.contains("does not answer as a cluster port"), "{said}");
    let forged = format!("{}0{}", &token[..30], &token[31..]);
    if forged != token {
        ensure!(refused(one.cluster_listen(), &forged)?.contains("the join token is wrong"), "a forged secret");
    }
    let joined = Node::start_with(&[("RAGGED_CLUSTER_JOIN", one.cluster_listen()), ("RAGGED_CLUSTER_TOKEN", token)]).await?;
    ensure!(refused(one.cluster_listen(), token)?.contains("is not known: it was used before"), "a used token");
    drop(joined);
    Ok(())
}

/// Folders of segments that a node has built, in all partitions.
fn segments(node: &Node) -> usize {
    let entries = |folder: &std::path::Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let partitions = entries(&node.data_dir().join("partitions")).flat_map(|shard| entries(&shard).collect::<Vec<_>>());
    let collections = partitions.flat_map(|tenant| entries(&tenant).collect::<Vec<_>>());
    collections.map(|collection| entries(&collection.join("segments")).count()).sum()
}

async fn until_segments(nodes: &[Node], what: &str, holds: impl Fn(usize) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !nodes.iter().all(|node| holds(segments(node))) {
        let counts: Vec<usize> = nodes.iter().map(segments).collect();
        ensure!(Instant::now() < deadline, "{what}: {counts:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_indexes_what_is_written_and_forgets_what_is_deleted() -> Result<()> {
    let nodes = nodes(3, &[]).await?;
    replicated(PATIENCE, &nodes[0], 3, 3).await?;
    nodes[0].post("/collections", &json!({ "name": "c", "embedding": { "dimension": 8 } })).await?.expect(201)?;
    // Nobody searches: a replica that does not lead learns of the rows from its log alone.
    for upload in 0..10 {
        let document = |number: usize| {
            let vector: Vec<f32> = (0..8).map(|bit| ((number >> bit) & 1) as f32 + 0.5 + number as f32 / 1e4).collect();
            json!({ "id": format!("d{number}"), "text": format!("document {number}"), "vector": vector })
        };
        let documents: Vec<Value> = (upload * 1000..(upload + 1) * 1000).map(document).collect();
        nodes[upload % 3].post("/collections/c/documents", &json!({ "documents": documents })).await?.expect(200)?;
    }
    until_segments(&nodes, "every replica has built segments", |count| count > 0).await?;
    nodes[1].delete("/collections/c").await?.expect(204)?;
    until_segments(&nodes, "no replica keeps files of a deleted collection", |count| count == 0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nodes_remember_of_a_collection_ends_with_it() -> Result<()> {
    let nodes = nodes(3, &[]).await?;
    replicated(PATIENCE, &nodes[0], 3, 3).await?;
    let query = json!({ "query": "albatross", "mode": "text", "limit": 100 });
    for round in 0..4 {
        nodes[round % 3].post("/collections", &json!({ "name": "birds", "spread": 2 })).await?.expect(201)?;
        let id = format!("d{round}");
        let token = upload(&nodes[(round + 1) % 3], &id).await?;
        for node in &nodes {
            finds(node, &id, &token).await?;
            let found = node.post("/collections/birds/search", &query).await?.expect(200)?;
            ensure!(entries(&found, "hits").count() == 1, "only what is in the collection of this name now: {found}");
        }
        let deleting = &nodes[(round + 2) % 3];
        deleting.delete("/collections/birds").await?.expect(204)?;
        ensure!(deleting.post("/collections/birds/search", &query).await?.status == 404, "it was deleted on this very node");
        for node in &nodes {
            let deadline = Instant::now() + PATIENCE;
            while node.post("/collections/birds/search", &query).await?.status != 404 {
                ensure!(Instant::now() < deadline, "a node goes on searching a collection that was deleted");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_without_all_shards_is_refused_unless_a_part_will_do() -> Result<()> {
    // One replica a shard: what lives on the other node is gone with it. The meta group of three goes on without one.
    let mut nodes = nodes(3, &[("RAGGED_CLUSTER_REPLICATION", "1")]).await?;
    replicated(PATIENCE, &nodes[0], 1, 3).await?;
    nodes[0].post("/collections", &json!({ "name": "birds", "spread": 16 })).await?.expect(201)?;
    for number in 0..40 {
        upload(&nodes[number % 3], &format!("d{number}")).await?;
    }
    nodes[2].kill()?;
    let query = |partial: bool| json!({ "query": "albatross", "mode": "text", "limit": 100, "allow_partial": partial });
    let refused = nodes[0].post("/collections/birds/search", &query(false)).await?;
    ensure!(
        refused.status == 503 && refused.body["detail"].to_string().contains("shard "),
        "{}: {}",
        refused.status,
        refused.body
    );
    let found = nodes[0].post("/collections/birds/search", &query(true)).await?.expect(200)?;
    let (hits, missing) = (entries(&found, "hits").count(), entries(&found, "missing_shards").count());
    ensure!(
        found["partial"] == true && (1..40).contains(&hits) && (5..=6).contains(&missing),
        "{hits} hits, {missing} missing: {found}"
    );
    nodes[2].restart().await?;
    healthy(PATIENCE, &nodes[0]).await?;
    let found = nodes[0].post("/collections/birds/search", &query(false)).await?.expect(200)?;
    ensure!(entries(&found, "hits").count() == 40 && found["partial"].is_null(), "{found}");
    Ok(())
}

/// A counter of a node.
async fn counter(node: &Node, name: &str) -> Result<f64> {
    let asked = reqwest::Client::new().get(node.url("/metrics")).bearer_auth(node.key()?).send().await?;
    let text = asked.error_for_status()?.text().await?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.with_context(|| format!("{name} is not among the metrics"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_hangs_is_not_waited_for() -> Result<()> {
    // Two replicas a shard: a third of the shards is not on the node that is asked, and half of these reads go to the one that hangs first.
    let nodes = nodes(3, &[("RAGGED_CLUSTER_REPLICATION", "2")]).await?;
    replicated(PATIENCE, &nodes[0], 2, 3).await?;
    nodes[0].post("/collections", &json!({ "name": "birds", "spread": 16 })).await?.expect(201)?;
    for number in 0..40 {
        upload(&nodes[number % 3], &format!("d{number}")).await?;
    }
    let query = json!({ "query": "albatross", "mode": "text", "limit": 100, "consistency": "eventual" });
    // Whoever is asked has everything then.
    agreed(PATIENCE, &nodes[0]).await?;
    nodes[2].signal(libc::SIGSTOP)?;
    for _ in 0..10 {
        let found = nodes[0].post("/collections/birds/search", &query).await?.expect(200)?;
        ensure!(entries(&found, "hits").count() == 40, "{found}");
    }
    nodes[2].signal(libc::SIGCONT)?;
    let (asked, won) =
        (counter(&nodes[0], "ragged_hedged_reads_total").await?, counter(&nodes[0], "ragged_hedged_reads_won_total").await?);
    ensure!(asked >= won && won >= 1.0, "{won} of {asked} second replicas answered first");
    Ok(())
}

/// An operator's authority, and what it certifies.
struct Operator {
    folder: tempfile::TempDir,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Operator {
    fn found() -> Result<Operator> {
        let (folder, key) = (tempfile::tempdir()?, rcgen::KeyPair::generate()?);
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        std::fs::write(folder.path().join("authority.pem"), params.self_signed(&key)?.pem())?;
        Ok(Operator { folder, issuer: rcgen::Issuer::new(params, key) })
    }

    /// Settings of a node with a certificate for this host.
    fn certify(&self, name: &str, host: &str) -> Result<Vec<(&'static str, String)>> {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(vec![host.to_owned()])?.signed_by(&key, &self.issuer)?;
        let path = |file: String| self.folder.path().join(file);
        std::fs::write(path(format!("{name}.pem")), certificate.pem())?;
        std::fs::write(path(format!("{name}.key")), key.serialize_pem())?;
        let shown = |file: String| path(file).display().to_string();
        Ok(vec![
            ("RAGGED_CLUSTER_CERTIFICATE_FILE", shown(format!("{name}.pem"))),
            ("RAGGED_CLUSTER_KEY_FILE", shown(format!("{name}.key"))),
            ("RAGGED_CLUSTER_AUTHORITY_FILE", shown("authority.pem".into())),
        ])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_may_show_an_operators_certificates() -> Result<()> {
    let operator = Operator::found()?;
    fn settings<'a>(certified: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
        certified.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }
    let certified = operator.certify("first", "127.0.0.1")?;
    let first = Node::start_with(&settings(&certified)).await?;
    let certified = operator.certify("second", "127.0.0.1")?;
    let second = first.start_beside(&settings(&certified)).await?;
    replicated(PATIENCE, &second, 2, 2).await?;
    first.post("/collections", &json!({ "name": "birds" })).await?.expect(201)?;
    let token = upload(&second, "d1").await?;
    finds(&first, "d1", &token).await?;

    let number = number_of(&first, &second).await?;
    let refused = first.delete(&format!("/cluster/nodes/{number}")).await?;
    ensure!(refused.status == 409 && refused.code() == "majority_needed", "a majority of two is two: {}", refused.body);

    let joins = |certified: Vec<(&'static str, String)>, token: String| -> Result<String> {
        let folder = tempfile::tempdir()?;
        let mut node = program();
        node.args(["serve", "--listen", "127.0.0.1:0", "--cluster-listen", "127.0.0.1:0", "--join", first.cluster_listen()]);
        node.env("RAGGED_DATA_DIR", folder.path()).env("RAGGED_MODEL_DIR", ragged_tests::node::model_dir());
        let ended = node.env("RAGGED_CLUSTER_TOKEN", token).envs(certified).output()?;
        ensure!(!ended.status.success(), "it joined");
        Ok(String::from_utf8_lossy(&ended.stderr).into_owned())
    };
    let token = first.post("/cluster/tokens", &json!({})).await?.expect(201)?["token"].as_str().context("text")?.to_owned();
    let said = joins(Vec::new(), token.clone())?;
    ensure!(
        said.contains("not of the cluster that made the token"),
        "a node that trusts the cluster's own authority only: {said}"
    );
    let said = joins(Operator::found()?.certify("other", "127.0.0.1")?, token.clone())?;
    ensure!(said.contains("not of the cluster"), "a node of another authority: {said}");
    let missing = vec![("RAGGED_CLUSTER_CERTIFICATE_FILE", "/nowhere.pem".to_owned())];
    let said = joins(missing, token.clone())?;
    ensure!(said.contains("cluster.key_file"), "a certificate without its key: {said}");
    let mut unreadable = operator.certify("third", "127.0.0.1")?;
    unreadable[1].1 = "/nowhere.key".into();
    let said = joins(unreadable, token)?;
    ensure!(said.contains("/nowhere.key"), "a key that is not there: {said}");
    Ok(())
}
