//! Bit-rot: while a node is down, bytes of one of its files change. The node must notice, and never serve what it finds there.

use super::{Class, Injected, Mending, membership, process};
use crate::cluster::Cluster;
use crate::verdict;
use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes that change at most.
const BYTES_MAX: usize = 16;
/// How long a node may take to refuse to start, or to be ready.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long replicas are compared until they are at the same index; clients go on writing meanwhile.
const EQUAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked which of the two it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Kills a node, changes one of its files, and starts it again.
pub async fn inject(cluster: &mut Cluster, node: usize, random: &mut StdRng) -> Result<Injected> {
    process::kill(cluster, &[node]).await?;
    let folder = cluster.disk(node).data_dir();
    let files = files_by_kind(&folder)?;
    let kinds: Vec<&&str> = files.keys().collect();
    let kind = **kinds.choose(random).context("the node has no files")?;
    let file = files[kind].choose(random).context("a kind has a file")?;
    change(file, random)?;
    let logged = std::fs::metadata(cluster.log_path(node))?.len() as usize;
    cluster.restart(node)?;
    let mut injected = Injected { class: Class::BitRot, nodes: vec![node], seen: None, violation: None, mending: Mending::Anew };
    let what = match start(cluster, node).await? {
        Start::Refused => {
            let log = std::fs::read_to_string(cluster.log_path(node))?;
            let said = log.get(logged..).unwrap_or_default().lines().last().unwrap_or_default();
            if said.is_empty() {
                injected.violation = Some(format!("node {node} ended over a rotten {kind} without a word"));
            }
            format!("the node did not start: {said}")
        }
        Start::Ready if kind == "segment" => {
            // It must have been built again from the rows: the node goes on.
            injected.mending = Mending::Nothing;
            "the node started".to_owned()
        }
        Start::Ready => {
            // A hash reads all rows. Replicas can be compared when they are at the same index, which they come to be.
            let deadline = std::time::Instant::now() + EQUAL_TIMEOUT;
            let shards = loop {
                let shards = cluster.hashed_shards().await?;
                match verdict::check_replicas(&shards, cluster.len()) {
                    Ok(false) if std::time::Instant::now() < deadline => tokio::time::sleep(LOOK_EVERY).await,
                    Ok(_) => break shards,
                    Err(violation) => {
                        injected.violation = Some(format!("node {node} serves from a rotten {kind}: {}", violation.what));
                        break shards;
                    }
                }
            };
            let own = membership::id_of(cluster, node, (node + 1) % cluster.len()).await?;
            let replicas = shards.iter().flat_map(|shard| &shard.replicas).filter(|replica| Some(replica.node) == own);
            match replicas.filter(|replica| replica.state_hash.is_none()).count() {
                0 => "the node started, and all its rows can be read".to_owned(),
                unread => format!("the node started, and {unread} of its replicas do not give their rows"),
            }
        }
    };
    injected.seen = Some(format!("{kind}: {what}"));
    Ok(injected)
}

enum Start {
    Ready,
    Refused,
}

async fn start(cluster: &mut Cluster, node: usize) -> Result<Start> {
    let probe = cluster.client(node)?;
    let deadline = std::time::Instant::now() + START_TIMEOUT;
    loop {
        if cluster.has_ended(node, LOOK_EVERY).await? {
            return Ok(Start::Refused);
        }
        if probe.ready().await.is_ok_and(|readiness| readiness.ready) {
            return Ok(Start::Ready);
        }
        // One that neither serves nor ends serves nothing wrong, and is replaced like one that ended.
        if std::time::Instant::now() > deadline {
            return Ok(Start::Refused);
        }
    }
}

/// What a node keeps, by what it is for.
fn files_by_kind(folder: &Path) -> Result<BTreeMap<&'static str, Vec<PathBuf>>> {
    let mut files: BTreeMap<&'static str, Vec<PathBuf>> = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if let Some(kind) = kind_of(&entry.path())
                && entry.metadata()?.len() > 0
            {
                files.entry(kind).or_default().push(entry.path());
            }
        }
    }
    Ok(files)
}

fn kind_of(file: &Path) -> Option<&'static str> {
    let name = file.file_name()?.to_str()?;
    let is_in = |folder: &str| file.components().any(|part| part.as_os_str() == folder);
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("sst") => Some("table"),
        Some("log") if is_in("db") => Some("write-ahead log"),
        _ if name.starts_with("MANIFEST") => Some("manifest"),
        _ if name == "synced" => Some("watermark"),
        _ if is_in("partitions") => Some("segment"),
        _ => None,
    }
}

fn change(path: &Path, random: &mut StdRng) -> Result<()> {
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    for _ in 0..random.random_range(1..=BYTES_MAX) {
        let at = random.random_range(0..length);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        let changed = [byte[0] ^ random.random_range(1..=u8::MAX)];
        file.write_all_at(&changed, at)?;
        file.read_exact_at(&mut byte, at)?;
        ensure!(byte == changed, "{} keeps its bytes", path.display());
    }
    Ok(file.sync_all()?)
}
