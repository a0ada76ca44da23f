//! What several nodes promise together: scenarios of nodes that are killed, paused, cut off and filled.

use super::stage::{READY_TIMEOUT, Stage, document, found, make_collection, read, store, upload, words_of};
use crate::cluster::{Cluster, Installation};
use crate::verdict::{self, Violation};
use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use ragged_client::{Client, ClientError, Consistency, NewDocument};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Nodes of a cluster.
pub const NODES: usize = 3;
/// How long a cluster may take to come about.
const FORMATION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a cluster may take to be whole after its nodes came back.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long those that are left may take to elect another leader.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a leader has led that is taken to go on leading.
const SETTLED: Duration = Duration::from_secs(3);
/// How long a reader that nobody holds back is watched.
const FILLING: Duration = Duration::from_secs(12);
/// Requests that are under way at once.
const AT_ONCE: usize = 16;
const COLLECTION: &str = "letters";

/// A cluster comes about.
pub async fn formation(installation: &Installation) -> Result<Vec<Violation>> {
    let what = match tokio::time::timeout(FORMATION_TIMEOUT, Cluster::start(NODES, installation.clone())).await {
        Ok(Ok(_)) => return Ok(Vec::new()),
        Ok(Err(fault)) => format!("{NODES} nodes do not form a whole cluster: {fault:#}"),
        Err(_) => format!("{NODES} nodes do not form a whole cluster within {FORMATION_TIMEOUT:?}"),
    };
    Ok(vec![Violation { check: "formation", what }])
}

/// Collections are made on one node and used on another at once, which stood still while they were made: it is asked for them before it can have heard.
pub async fn metadata(stage: &mut Stage) -> Result<()> {
    for number in 0..12 {
        let name = format!("c{number}");
        let (maker, late) = (number % NODES, (number + 1) % NODES);
        let (there, here) = (stage.client(maker)?, stage.client(late)?);
        stage.cluster.signal(late, libc::SIGSTOP)?;
        // It may be the leader that stands still: then there is none until it goes on, and nothing to be seen.
        let made = tokio::time::timeout(Duration::from_millis(800), make_collection(&there, &name, 1)).await;
        let asked = tokio::spawn({
            let name = name.clone();
            async move { here.get_collection(&name).await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        stage.cluster.signal(late, libc::SIGCONT)?;
        let seen = asked.await?;
        if matches!(made, Ok(Ok(()))) {
            stage.expect("metadata", seen.is_ok(), || format!("{name} was made, and node {late} says {}", told(&seen)));
        }
    }
    Ok(())
}

/// All nodes are killed at once.
pub async fn killed_all(stage: &mut Stage) -> Result<()> {
    make_collection(&stage.client(0)?, COLLECTION, 8).await?;
    write_each(&stage.client(0)?, 0..100).await?;
    for node in 0..NODES {
        stage.kill(node).await?;
    }
    stage.arm(true);
    for node in 0..NODES {
        stage.cluster.restart(node)?;
    }
    if let Err(fault) = stage.cluster.until_whole(RECOVERY_TIMEOUT).await {
        stage.violated("recovery", format!("all nodes were killed and are back: {fault:#}"));
        return Ok(());
    }
    if let Err(fault) = until_read(&stage.client(1)?, "d0").await {
        stage.violated("recovery", format!("the cluster says that it is whole, and a read is told {fault:#}"));
        return Ok(());
    }
    expect_all(stage, 1, 0..100).await?;
    let again = upload(&stage.client(2)?, COLLECTION, &[document("after", 1)]).await;
    stage.expect("recovery", again.is_ok(), || format!("the cluster is whole, and a write is told {}", told(&again)));
    Ok(())
}

/// A replica is cut off, and asked for what it cannot know.
pub async fn isolated_follower(stage: &mut Stage) -> Result<()> {
    make_collection(&stage.client(0)?, COLLECTION, 1).await?;
    let leader = stage.leader_of(stage.shard_of(COLLECTION).await?).await?;
    let alone = (0..NODES).find(|node| *node != leader).context("there is another node")?;
    let first = upload(&stage.client(leader)?, COLLECTION, &[document("d", 1)]).await?;
    let seen = found(stage.client(alone)?.get_document_since(COLLECTION, "d", &first.token).await)?;
    stage.expect("session", seen.is_some(), || "a node does not know what the token that it is given names".into());
    cut_off(stage, alone)?;
    let second = until_written(&stage.client(leader)?, document("d", 2)).await?;
    let client = stage.client(alone)?;
    let strong = client.get_document_as_of(COLLECTION, "d", Some(Consistency::Strong));
    let session = client.get_document_since(COLLECTION, "d", &second);
    let (strong, session) = tokio::join!(strong, session);
    for (read, check) in [(strong, "strong-read"), (session, "session")] {
        let stale = matches!(&read, Ok(document) if document.text != Some(words_of(2)));
        stage.expect(check, !stale, || "a node that is cut off answers with what was replaced before".into());
    }
    let_in(stage, alone)
}

/// A leader is cut off: others lead, and it is asked, and written to.
pub async fn isolated_leader(stage: &mut Stage) -> Result<()> {
    make_collection(&stage.client(0)?, COLLECTION, 1).await?;
    // One after the other, and nothing is written meanwhile: nodes that acknowledge alone do not form a cluster.
    for node in 0..NODES {
        stage.restart_armed(node).await?;
        stage.cluster.until_whole(RECOVERY_TIMEOUT).await?;
    }
    let shard = stage.shard_of(COLLECTION).await?;
    until_written(&stage.client(0)?, document("d", 1)).await?;
    let leader = cut_off_leader(stage, shard).await?;
    let other = (0..NODES).find(|node| *node != leader).context("there is another node")?;
    let (here, there) = (stage.client(leader)?, stage.client(other)?);
    let alone = tokio::spawn({
        let here = here.clone();
        async move { upload(&here, COLLECTION, &[document("alone", 7)]).await }
    });
    until_written(&there, document("d", 2)).await?;
    let strong = here.get_document_as_of(COLLECTION, "d", Some(Consistency::Strong)).await;
    let stale = matches!(&strong, Ok(document) if document.text != Some(words_of(2)));
    stage.expect("strong-read", !stale, || "a leader that was replaced answers with what another has replaced".into());
    let acknowledged = alone.await?.is_ok();
    let_in(stage, leader)?;
    let kept = until_read(&there, "alone").await?;
    stage.expect("durability", kept || !acknowledged, || "a write that a leader acknowledged alone is lost".into());
    Ok(())
}

/// A leader is cut off; the two that are left elect another, which is then cut off in its turn, while the third is killed and comes back to the first: it
/// must know that it had voted for another, or it gives up what that one and it had acknowledged.
pub async fn second_vote(stage: &mut Stage) -> Result<()> {
    make_collection(&stage.client(0)?, COLLECTION, 1).await?;
    let shard = stage.shard_of(COLLECTION).await?;
    until_written(&stage.client(0)?, document("d", 1)).await?;
    let first = cut_off_leader(stage, shard).await?;
    let old = stage.client(first)?;
    let alone = tokio::spawn(async move { upload(&old, COLLECTION, &[document("alone", 7)]).await });
    let others: Vec<usize> = (0..NODES).filter(|node| *node != first).collect();
    until_written(&stage.client(others[0])?, document("d", 2)).await?;
    let second = stage.leader_seen_by(others[0], shard).await?;
    let third = others.into_iter().find(|node| *node != second).context("there is a third node")?;
    stage.cluster.network().cut(second, third)?;
    stage.cluster.network().cut(third, second)?;
    stage.kill(third).await?;
    stage.cluster.network().mend(first, third)?;
    stage.cluster.network().mend(third, first)?;
    stage.cluster.restart(third)?;
    let client = stage.client(first)?;
    let deadline = Instant::now() + ELECTION_TIMEOUT;
    let text = loop {
        match read(&client, COLLECTION, "d").await {
            Ok(document) => break document.and_then(|document| document.text),
            Err(fault) if Instant::now() > deadline => return Err(fault).context("nobody answers a strong read"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let kept = text == Some(words_of(2));
    stage.expect("durability", kept, || format!("a write that a majority had acknowledged is lost: the document reads {text:?}"));
    alone.abort();
    Ok(())
}

/// A node is away for so long that it gets a snapshot, and documents are deleted meanwhile.
pub async fn snapshot(stage: &mut Stage) -> Result<()> {
    make_collection(&stage.client(0)?, COLLECTION, 1).await?;
    let leader = stage.leader_of(stage.shard_of(COLLECTION).await?).await?;
    let away = (0..NODES).find(|node| *node != leader).context("there is another node")?;
    let client = stage.client(leader)?;
    write_each(&client, 0..150).await?;
    stage.kill(away).await?;
    for value in 0..30 {
        client.delete_document(COLLECTION, &format!("d{value}")).await?;
    }
    write_each(&client, 150..900).await?;
    ensure!(stage.start_again(away).await?, "the node is not ready again");
    expect_equal_replicas(stage).await?;
    let log = std::fs::read_to_string(stage.cluster.log_path(away))?;
    ensure!(log.contains("a snapshot has been installed") || !stage.found.is_empty(), "the node was sent no snapshot");
    Ok(())
}

/// A replica is killed again and again while documents are written.
pub async fn killed_follower(stage: &mut Stage) -> Result<()> {
    make_collection(&stage.client(0)?, COLLECTION, 1).await?;
    let leader = stage.leader_of(stage.shard_of(COLLECTION).await?).await?;
    let killed = (0..NODES).find(|node| *node != leader).context("there is another node")?;
    let (stop, client, next) = (Arc::new(AtomicBool::new(false)), stage.client(leader)?, Arc::new(AtomicU64::new(0)));
    let mut writers = JoinSet::new();
    for _ in 0..AT_ONCE / 2 {
        let (stop, client, next) = (stop.clone(), client.clone(), next.clone());
        writers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let value = next.fetch_add(1, Ordering::Relaxed);
                let _ = upload(&client, COLLECTION, &[document(&format!("d{value}"), value)]).await; // whatever comes of it, replicas are equal
            }
        });
    }
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        stage.kill(killed).await?;
        ensure!(stage.start_again(killed).await?, "the node is not ready again");
    }
    stop.store(true, Ordering::Relaxed);
    while writers.join_next().await.is_some() {}
    expect_equal_replicas(stage).await
}

/// What a writer was told of a document of its own.
enum Told {
    Stored,
    Refused(String),
    Unknown,
}

/// The leader is killed again and again while documents are written through the other nodes, each once.
pub async fn killed_leaders(stage: &mut Stage) -> Result<()> {
    make_collection(&stage.client(0)?, COLLECTION, 1).await?;
    let shard = stage.shard_of(COLLECTION).await?;
    let next = Arc::new(AtomicU64::new(1_000));
    let mut all = Vec::new();
    for _ in 0..6 {
        let leader = stage.leader_of(shard).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers: JoinSet<Vec<(u64, Told)>> = JoinSet::new();
        for number in 0..AT_ONCE {
            let client = stage.client((leader + 1 + number % 2) % NODES)?;
            writers.spawn(write_on(client, next.clone(), stop.clone()));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        stage.kill(leader).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        stop.store(true, Ordering::Relaxed);
        all.extend(writers.join_all().await.into_iter().flatten());
        ensure!(stage.start_again(leader).await?, "the node is not ready again");
        stage.cluster.until_whole(RECOVERY_TIMEOUT).await?;
    }
    let client = stage.client(0)?;
    let (mut unknown, mut refused) = (0, 0);
    for (value, told) in all {
        let document = read(&client, COLLECTION, &format!("d{value}")).await?;
        if let Some(document) = &document {
            stage.expect("exactly-once", document.version == 1, || {
                format!("d{value} was sent once, and has version {}", document.version)
            });
        }
        match told {
            Told::Stored => {
                stage.expect("durability", document.is_some(), || format!("d{value} was acknowledged, and is not there"))
            }
            Told::Refused(why) => {
                refused += 1;
                stage.expect("refusals", document.is_none(), || format!("d{value} was refused ({why}), and is there"));
            }
            Told::Unknown => unknown += 1,
        }
    }
    println!("    {unknown} writes of unknown outcome, {refused} refused");
    Ok(())
}

async fn write_on(client: Client, next: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Vec<(u64, Told)> {
    let mut told = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let value = next.fetch_add(1, Ordering::Relaxed);
        let said = match upload(&client, COLLECTION, &[document(&format!("d{value}"), value)]).await {
            Ok(_) => Told::Stored,
            Err(fault @ (ClientError::Problem(_) | ClientError::Unreachable { .. } | ClientError::Invalid(_))) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Told::Refused(fault.to_string())
            }
            Err(_) => Told::Unknown,
        };
        told.push((value, said));
    }
    told
}

/// A second node joins and is filled slowly; what was acknowledged long ago is read through it.
pub async fn new_node(installation: &Installation) -> Result<Vec<Violation>> {
    let mut installation = installation.clone();
    installation.environment.push(("RAGGED_CLUSTER_SNAPSHOT_BYTES_PER_SECOND".into(), "512 KiB".into()));
    let mut cluster = Cluster::start_first(1, 2, installation).await?;
    let client = cluster.client(0)?;
    make_collection(&client, COLLECTION, 1).await?;
    // More entries than are kept, and more bytes than are sent in a second.
    let padded = |value: u64| NewDocument {
        text: format!("{} {}", words_of(value), "padding ".repeat(1_000)),
        ..document(&format!("d{value}"), value)
    };
    let writes = futures::stream::iter(0..400).map(|value| store_one(&client, padded(value)));
    let written: Vec<Result<()>> = writes.buffer_unordered(AT_ONCE).collect().await;
    written.into_iter().collect::<Result<()>>()?;
    let joining = cluster.joining(0).await?;
    cluster.start_joining(1, joining)?;
    let new = cluster.client(1)?;
    let (deadline, mut answered) = (Instant::now() + READY_TIMEOUT, 0);
    while !new.ready().await.is_ok_and(|readiness| readiness.ready) {
        ensure!(Instant::now() < deadline, "the new node is not ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let end = Instant::now() + FILLING;
    let mut missed = Vec::new();
    while Instant::now() < end && missed.is_empty() {
        for value in (0..400).step_by(40) {
            let read = new.get_document_as_of(COLLECTION, &format!("d{value}"), Some(Consistency::Eventual)).await;
            match found(read)? {
                Some(_) => answered += 1,
                None => missed.push(value),
            }
        }
    }
    ensure!(answered + missed.len() > 0, "the new node answered nothing");
    let what = format!("a node that has just joined does not know {missed:?}, which were acknowledged long ago");
    Ok(if missed.is_empty() { Vec::new() } else { vec![Violation { check: "new-node", what }] })
}

async fn store_one(client: &Client, document: NewDocument) -> Result<()> {
    store(client, COLLECTION, &[document]).await.map(drop)
}

async fn write_each(client: &Client, values: std::ops::Range<u64>) -> Result<()> {
    let writes = futures::stream::iter(values).map(|value| store_one(client, document(&format!("d{value}"), value)));
    let written: Vec<Result<()>> = writes.buffer_unordered(AT_ONCE).collect().await;
    written.into_iter().collect()
}

/// Writes until it is acknowledged; the token.
async fn until_written(client: &Client, document: NewDocument) -> Result<String> {
    let deadline = Instant::now() + ELECTION_TIMEOUT;
    loop {
        match upload(client, COLLECTION, std::slice::from_ref(&document)).await {
            Ok(stored) => return Ok(stored.token),
            Err(fault) if Instant::now() > deadline => return Err(fault).context("nobody takes the write"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Whether a document is there, once a strong read is answered.
async fn until_read(client: &Client, id: &str) -> Result<bool> {
    let deadline = Instant::now() + ELECTION_TIMEOUT;
    loop {
        match read(client, COLLECTION, id).await {
            Ok(document) => return Ok(document.is_some()),
            Err(fault) if Instant::now() > deadline => return Err(fault),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn expect_all(stage: &mut Stage, node: usize, values: std::ops::Range<u64>) -> Result<()> {
    let client = stage.client(node)?;
    let mut lost = Vec::new();
    for value in values {
        let document = read(&client, COLLECTION, &format!("d{value}")).await?;
        if document.and_then(|document| document.text) != Some(words_of(value)) {
            lost.push(value);
        }
    }
    stage.expect("durability", lost.is_empty(), || format!("acknowledged documents are lost: {lost:?}"));
    Ok(())
}

/// All replicas must come to the same index, with the same rows.
async fn expect_equal_replicas(stage: &mut Stage) -> Result<()> {
    let whole = stage.cluster.until_whole(RECOVERY_TIMEOUT).await;
    if let Err(fault) = whole {
        stage.violated("recovery", format!("{fault:#}"));
    }
    let deadline = Instant::now() + RECOVERY_TIMEOUT;
    loop {
        match verdict::check_replicas(&stage.cluster.hashed_shards().await?, NODES) {
            Ok(true) => return Ok(()),
            Ok(false) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(200)).await,
            Ok(false) => {
                stage.violated("recovery", "the replicas do not come to the same index");
                return Ok(());
            }
            Err(violation) => {
                stage.found.push(violation);
                return Ok(());
            }
        }
    }
}

/// Cuts a node off from all others, both ways.
/// Cuts off the node that leads a shard. Leaders move while a cluster comes about: the one that is cut off has led for a while.
async fn cut_off_leader(stage: &Stage, shard: u16) -> Result<usize> {
    let deadline = Instant::now() + ELECTION_TIMEOUT;
    let (mut leader, mut since) = (stage.leader_of(shard).await?, Instant::now());
    while since.elapsed() < SETTLED {
        ensure!(Instant::now() < deadline, "the leader of shard {shard} keeps moving");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = stage.leader_of(shard).await?;
        if now != leader {
            (leader, since) = (now, Instant::now());
        }
    }
    cut_off(stage, leader)?;
    Ok(leader)
}

fn cut_off(stage: &Stage, node: usize) -> Result<()> {
    for other in (0..NODES).filter(|other| *other != node) {
        stage.cluster.network().cut(node, other)?;
        stage.cluster.network().cut(other, node)?;
    }
    Ok(())
}

fn let_in(stage: &Stage, node: usize) -> Result<()> {
    for other in (0..NODES).filter(|other| *other != node) {
        stage.cluster.network().mend(node, other)?;
        stage.cluster.network().mend(other, node)?;
    }
    Ok(())
}

fn told<T>(answer: &Result<T, ClientError>) -> String {
    answer.as_ref().err().map_or("nothing".to_owned(), ToString::to_string)
}
