//! Kills at named points of the code: a node of a build with the feature `failpoints` dies where it was told to, is started again, and must have kept what
//! it promised. A point that no node comes by shows nothing, and counts as a failure.
//!
//! The points that a node has, and the moment at which it comes by, are told by the program itself; each moment has a scenario here.

use crate::cluster::{Cluster, Installation};
use crate::mutants::stage::{document, found, make_collection, until_replicated, upload, words_of};
use crate::mutants::{Listed, choose, list};
use crate::verdict;
use anyhow::{Context, Result, bail, ensure};
use ragged_client::{Client, ClientError, Consistency, NewDocument, UploadOptions, UploadReply};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long a node may take to come by a point.
const DEATH_TIMEOUT: Duration = Duration::from_secs(25);
/// After so long without coming by, another node is stopped and started, so that leaders move.
const STIR_AFTER: Duration = Duration::from_secs(3);
/// How long a node may take to be ready, and the cluster to be whole.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a snapshot may take to be sent, and how often a node is away for one.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(4);
const SNAPSHOT_TRIES: usize = 8;
/// Clients at work.
const CLIENTS: usize = 8;
/// Acknowledged documents that are read again after each kill, at most.
const READ_AGAIN: usize = 200;
/// The collection that is in one shard, and the one that is in all of them.
const HOT: &str = "hot";
const WIDE: &str = "wide";
const COLLECTIONS: [&str; 2] = [HOT, WIDE];

/// Kills a node at each of these points; whether all were come by, and nothing was broken.
pub async fn run(installation: Installation, names: Vec<String>) -> Result<bool> {
    let points = choose(list(&installation, "point")?, &names)?;
    let begun = Instant::now();
    let (mut reached, mut missed, mut broken) = (0, Vec::new(), 0);
    let mut moments: Vec<&str> = points.iter().map(|point| point.moment.as_str()).collect();
    moments.sort_unstable();
    moments.dedup();
    for moment in moments {
        println!("{moment}");
        let mut ground: Option<Ground> = None;
        for point in points.iter().filter(|point| point.moment == moment) {
            let started = Instant::now();
            let outcome = kill_at(&installation, &mut ground, point).await;
            let took = started.elapsed().as_secs_f64();
            match outcome {
                Ok(Died::There) => {
                    reached += 1;
                    println!("  {:<24} died there, and came back whole ({took:.1} s): {}", point.name, point.meaning);
                }
                Ok(Died::Not) => {
                    missed.push(point.name.as_str());
                    ground = None;
                    println!("  {:<24} NOT REACHED", point.name);
                }
                Err(fault) => {
                    broken += 1;
                    println!("  {:<24} BROKEN: {fault:#}", point.name);
                    if let Some(mut ground) = ground.take() {
                        println!("    the nodes' data and logs are in {}", ground.cluster.keep_folder().display());
                    }
                }
            }
        }
    }
    println!("{reached} of {} points reached, {broken} broken, in {:.0} s", points.len(), begun.elapsed().as_secs_f64());
    if !missed.is_empty() {
        println!("not reached: {}", missed.join(" "));
    }
    Ok(missed.is_empty() && broken == 0)
}

/// Whether a node died at the point.
enum Died {
    There,
    Not,
}

/// A cluster that nodes are killed in, and what clients were told.
struct Ground {
    cluster: Cluster,
    /// What clients were told, by what all share.
    told: Arc<Told>,
    round: u64,
}

/// What clients were told.
#[derive(Default)]
struct Told {
    next: AtomicU64,
    /// Collection, value of the document that was acknowledged, and whether it was deleted since; none when that is not known.
    documents: Mutex<Vec<(&'static str, u64, Option<bool>)>>,
    /// Jobs that were accepted.
    jobs: Mutex<Vec<String>>,
}

async fn kill_at(installation: &Installation, ground: &mut Option<Ground>, point: &Listed) -> Result<Died> {
    let nodes = match point.moment.as_str() {
        "founding" | "joining" | "admitting" | "drained" => {
            *ground = None; // each begins with a cluster of its own
            2
        }
        _ => 3,
    };
    let first = match point.moment.as_str() {
        "founding" => 0,
        "joining" | "admitting" => 1,
        _ => nodes,
    };
    if ground.is_none() {
        *ground = Some(Ground::start(installation, first, nodes).await.context("the cluster did not come about")?);
    }
    let Some(ground) = ground.as_mut() else { bail!("there is no cluster") };
    ground.round += 1;
    match point.moment.as_str() {
        "working" => ground.working(point).await,
        "starting" => ground.starting(point).await,
        "founding" => ground.founding(point).await,
        "joining" => ground.joining(point).await,
        "admitting" => ground.admitting(point).await,
        "sending" => ground.sending(point).await,
        "filled" => ground.filled(point).await,
        "overruled" => ground.overruled(point).await,
        "drained" => ground.drained(point).await,
        "stopping" => ground.stopping(point).await,
        other => bail!("nobody knows when {other} is"),
    }
}

impl Ground {
    /// A cluster of so many nodes, of which the first run.
    async fn start(installation: &Installation, first: usize, nodes: usize) -> Result<Ground> {
        let cluster = Cluster::start_first(0, nodes, installation.clone()).await?;
        let mut ground = Ground { cluster, told: Arc::default(), round: 0 };
        for node in 0..first {
            let joining = if node == 0 { None } else { Some(ground.cluster.joining(0).await?) };
            ground.start_node(node, joining, None)?;
            ground.until_ready(node).await?;
            if node == 0 {
                ground.found().await?;
            }
        }
        ground.cluster.until_whole(RECOVERY_TIMEOUT).await?;
        if first > 0 {
            until_replicated(&ground.cluster, first).await?;
        }
        Ok(ground)
    }

    /// What the founder's first start leads to.
    async fn found(&mut self) -> Result<()> {
        self.cluster.read_key()?;
        let client = self.cluster.client(0)?;
        make_collection(&client, HOT, 1).await?;
        make_collection(&client, WIDE, 16).await
    }

    fn points_file(&self, node: usize) -> PathBuf {
        self.cluster.data_dir(node).with_extension("points")
    }

    /// Starts a node, to die at a point if one is given.
    fn start_node(&mut self, node: usize, joining: Option<(String, String)>, at: Option<&Listed>) -> Result<()> {
        std::fs::write(self.points_file(node), "")?;
        let mut environment = vec![("RAGGED_FAILPOINTS_FILE".to_owned(), self.points_file(node).display().to_string())];
        if let Some(point) = at {
            environment.push(("RAGGED_FAILPOINTS".into(), format!("{}=return", point.name)));
        }
        *self.cluster.environment() = environment;
        match joining {
            Some(joining) => self.cluster.start_joining(node, joining),
            None => self.cluster.restart(node),
        }
    }

    /// Has a node that runs die at a point, when it comes by for the so many-th time.
    fn arm(&self, node: usize, point: &Listed, times: u64) -> Result<()> {
        arm(&self.points_file(node), &point.name, times)
    }

    /// Whether a node dies at the point within that time. That it dies elsewhere is an error.
    async fn dies(&mut self, node: usize, point: &Listed, within: Duration) -> Result<bool> {
        if self.cluster.ended(node, within).await.is_err() {
            return Ok(false);
        }
        let log = std::fs::read_to_string(self.cluster.log_path(node)).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(4).collect();
        let there = format!("killed at the point {}", point.name);
        ensure!(last.iter().any(|line| line.contains(&there)), "node {node} ended by itself: {}", last.join(" | "));
        Ok(true)
    }

    async fn until_ready(&mut self, node: usize) -> Result<()> {
        let deadline = Instant::now() + RECOVERY_TIMEOUT;
        let client = self.cluster.client(node)?;
        while !client.ready().await.is_ok_and(|readiness| readiness.ready) {
            if let Some((ended, status)) = self.cluster.deserter()? {
                let log = std::fs::read_to_string(self.cluster.log_path(ended)).unwrap_or_default();
                bail!("node {ended} ended with {status}: {}", log.lines().last().unwrap_or_default());
            }
            ensure!(Instant::now() < deadline, "node {node} is not ready after {RECOVERY_TIMEOUT:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// While it serves: clients do everything that there is to do, half of it through the node.
    async fn working(&mut self, point: &Listed) -> Result<Died> {
        let victim = (self.round % 3) as usize;
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let node = if number % 2 == 0 { victim } else { (victim + 1 + number / 2 % 2) % 3 };
            let random = StdRng::seed_from_u64(self.round * 100 + number as u64);
            clients.spawn(work(self.cluster.client(node)?, random, self.told.clone(), stop.clone()));
        }
        self.arm(victim, point, 1 + self.round % 4)?;
        let mut died = self.dies(victim, point, STIR_AFTER).await?;
        let deadline = Instant::now() + DEATH_TIMEOUT;
        let mut stirred = 0;
        while !died && Instant::now() < deadline {
            stirred += 1;
            let other = (victim + 1 + stirred % 2) % 3;
            self.cluster.signal(other, libc::SIGTERM)?;
            self.cluster.ended(other, RECOVERY_TIMEOUT).await?;
            died = self.dies(victim, point, Duration::from_millis(1_500)).await?;
            self.start_node(other, None, None)?;
            if !died {
                died = self.dies(victim, point, STIR_AFTER).await?;
            }
        }
        stop.store(true, Ordering::Relaxed);
        while clients.join_next().await.is_some() {}
        if !died {
            return Ok(Died::Not);
        }
        self.come_back(victim, None).await
    }

    async fn starting(&mut self, point: &Listed) -> Result<Died> {
        let victim = (self.round % 3) as usize;
        self.cluster.signal(victim, libc::SIGKILL)?;
        self.cluster.ended(victim, DEATH_TIMEOUT).await?;
        self.start_node(victim, None, Some(point))?;
        match self.dies(victim, point, DEATH_TIMEOUT).await? {
            true => self.come_back(victim, None).await,
            false => Ok(Died::Not),
        }
    }

    async fn founding(&mut self, point: &Listed) -> Result<Died> {
        self.start_node(0, None, Some(point))?;
        if !self.dies(0, point, DEATH_TIMEOUT).await? {
            return Ok(Died::Not);
        }
        self.start_node(0, None, None)?;
        self.until_ready(0).await?;
        self.found().await?;
        upload(&self.cluster.client(0)?, HOT, &[document("d", 1)]).await?;
        Ok(Died::There)
    }

    async fn joining(&mut self, point: &Listed) -> Result<Died> {
        self.write(0, 50).await?;
        let joining = self.cluster.joining(0).await?;
        self.start_node(1, Some(joining.clone()), Some(point))?;
        match self.dies(1, point, DEATH_TIMEOUT).await? {
            true => self.come_back(1, Some(joining)).await,
            false => Ok(Died::Not),
        }
    }

    async fn admitting(&mut self, point: &Listed) -> Result<Died> {
        self.write(0, 50).await?;
        let joining = self.cluster.joining(0).await?;
        self.arm(0, point, 1)?;
        self.start_node(1, Some(joining.clone()), None)?;
        if !self.dies(0, point, DEATH_TIMEOUT).await? {
            return Ok(Died::Not);
        }
        self.start_node(0, None, None)?;
        self.until_ready_alone(0).await?;
        // The new node may have given up when nobody answered it.
        if self.cluster.ended(1, Duration::from_secs(2)).await.is_ok() {
            self.start_node(1, Some(joining), None)?;
        }
        self.until_ready(1).await?;
        self.look().await
    }

    /// Waits until a node is ready, whatever became of the others.
    async fn until_ready_alone(&self, node: usize) -> Result<()> {
        let (client, deadline) = (self.cluster.client(node)?, Instant::now() + RECOVERY_TIMEOUT);
        while !client.ready().await.is_ok_and(|readiness| readiness.ready) {
            ensure!(Instant::now() < deadline, "node {node} is not ready after {RECOVERY_TIMEOUT:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// A node is away while so much is written that it is sent a snapshot; once more when it was sent entries.
    async fn filled(&mut self, point: &Listed) -> Result<Died> {
        self.write(0, 20).await?;
        let away = (self.hot_leader().await? + 1) % 3;
        for _ in 0..SNAPSHOT_TRIES {
            self.cluster.signal(away, libc::SIGKILL)?;
            self.cluster.ended(away, DEATH_TIMEOUT).await?;
            let leader = self.hot_leader().await?;
            self.write(leader, 800).await?;
            self.start_node(away, None, Some(point))?;
            if self.dies(away, point, SNAPSHOT_TIMEOUT).await? {
                return self.come_back(away, None).await;
            }
        }
        Ok(Died::Not)
    }

    /// The same, and the leader dies: it may write the snapshot out while the other one is still away. Entries are not purged while they are being sent,
    /// so that it takes some luck, and tries.
    async fn sending(&mut self, point: &Listed) -> Result<Died> {
        self.write(0, 20).await?;
        let away = (self.hot_leader().await? + 1) % 3;
        for _ in 0..SNAPSHOT_TRIES {
            self.cluster.signal(away, libc::SIGKILL)?;
            self.cluster.ended(away, DEATH_TIMEOUT).await?;
            let leader = self.hot_leader().await?;
            self.arm(leader, point, 1)?;
            let mut clients = JoinSet::new();
            for _ in 0..CLIENTS {
                let (client, told) = (self.cluster.client(leader)?, self.told.clone());
                clients.spawn(async move {
                    for _ in 0..100 {
                        if write_one(&client, HOT, &told).await.is_err() {
                            return; // it is dead
                        }
                    }
                });
            }
            while clients.join_next().await.is_some() {}
            let mut died = self.dies(leader, point, Duration::from_millis(500)).await?;
            self.start_node(away, None, None)?;
            died = died || self.dies(leader, point, SNAPSHOT_TIMEOUT).await?;
            if died {
                return self.come_back(leader, None).await;
            }
            std::fs::write(self.points_file(leader), format!("{}=off", point.name))?;
        }
        Ok(Died::Not)
    }

    /// A leader is cut off and written to, while others lead.
    async fn overruled(&mut self, point: &Listed) -> Result<Died> {
        self.write(0, 20).await?;
        let leader = self.hot_leader().await?;
        let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
        for other in &others {
            self.cluster.network().cut(leader, *other)?;
            self.cluster.network().cut(*other, leader)?;
        }
        let alone = self.cluster.client(leader)?;
        let value = 1_000_000 + self.round;
        let lost = tokio::spawn(async move { upload(&alone, HOT, &[document("overruled", value)]).await });
        self.write(others[0], 50).await?;
        self.arm(leader, point, 1)?;
        for other in &others {
            self.cluster.network().mend(leader, *other)?;
            self.cluster.network().mend(*other, leader)?;
        }
        let died = self.dies(leader, point, DEATH_TIMEOUT).await?;
        ensure!(lost.await?.is_err(), "a leader that was cut off has acknowledged a write");
        match died {
            true => self.come_back(leader, None).await,
            false => Ok(Died::Not),
        }
    }

    /// A node's replicas are moved away.
    async fn drained(&mut self, point: &Listed) -> Result<Died> {
        self.write(0, 100).await?;
        let client = self.cluster.client(0)?;
        let address = self.cluster.cluster_address(1).to_owned();
        let drained = client.cluster_nodes().await?.nodes.into_iter().find(|node| node.address == address);
        let drained = drained.context("the node is not known")?.id;
        self.arm(1, point, 1)?;
        client.drain_node(drained).await?;
        if !self.dies(1, point, DEATH_TIMEOUT).await? {
            return Ok(Died::Not);
        }
        self.start_node(1, None, None)?;
        self.until_ready(1).await?;
        let deadline = Instant::now() + RECOVERY_TIMEOUT;
        while client.cluster_nodes().await?.nodes.iter().any(|node| node.id == drained && node.replicas > 0) {
            ensure!(Instant::now() < deadline, "the node still keeps replicas {RECOVERY_TIMEOUT:?} after it came back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.read_again().await?;
        Ok(Died::There)
    }

    async fn stopping(&mut self, point: &Listed) -> Result<Died> {
        let victim = (self.round % 3) as usize;
        self.write(victim, 50).await?;
        self.arm(victim, point, 1)?;
        tokio::time::sleep(Duration::from_millis(100)).await; // the node looks at the file every 10 ms
        self.cluster.signal(victim, libc::SIGTERM)?;
        match self.dies(victim, point, DEATH_TIMEOUT).await? {
            true => self.come_back(victim, None).await,
            false => Ok(Died::Not),
        }
    }

    /// Starts a node again that died, and sees that everything is as it was promised.
    async fn come_back(&mut self, node: usize, joining: Option<(String, String)>) -> Result<Died> {
        self.start_node(node, joining, None)?;
        self.until_ready(node).await?;
        self.look().await
    }

    /// The cluster is whole, its replicas are equal, and what was acknowledged is there.
    async fn look(&mut self) -> Result<Died> {
        self.cluster.until_whole(RECOVERY_TIMEOUT).await?;
        let running = (0..self.cluster.len()).filter(|node| self.cluster.process(*node).is_some()).count();
        self.jobs_end().await?;
        let deadline = Instant::now() + RECOVERY_TIMEOUT;
        loop {
            match verdict::check_replicas(&self.cluster.hashed_shards().await?, running) {
                Ok(true) => break,
                Ok(false) => ensure!(Instant::now() < deadline, "the replicas do not come to the same index"),
                Err(violation) => bail!("{}", violation.what),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.read_again().await?;
        Ok(Died::There)
    }

    /// Jobs that were accepted end well.
    async fn jobs_end(&self) -> Result<()> {
        let jobs = std::mem::take(&mut *lock(&self.told.jobs));
        let (client, deadline) = (self.cluster.client(0)?, Instant::now() + RECOVERY_TIMEOUT);
        for id in jobs {
            loop {
                let job = client.get_job(&id).await?;
                if job.stage == ragged_client::Stage::Replicated && job.done == job.documents {
                    break;
                }
                ensure!(
                    Instant::now() < deadline,
                    "job {id} was accepted, and is {:?} with {} of {}: {:?}",
                    job.stage,
                    job.done,
                    job.documents,
                    job.failed
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// The last documents that were acknowledged are there, once, and those that were deleted are not.
    async fn read_again(&self) -> Result<()> {
        let told: Vec<_> = lock(&self.told.documents).iter().rev().take(READ_AGAIN).copied().collect();
        let running: Vec<usize> = (0..self.cluster.len()).filter(|node| self.cluster.process(*node).is_some()).collect();
        for (place, (collection, value, deleted)) in told.into_iter().enumerate() {
            let client = self.cluster.client(running[place % running.len()])?;
            let read = client.get_document_as_of(collection, &format!("d{value}"), Some(Consistency::Strong)).await;
            let document = found(read)?;
            match (deleted, document) {
                (Some(false), None) => bail!("d{value} of {collection} was acknowledged, and is not there"),
                (Some(true), Some(_)) => bail!("d{value} of {collection} was deleted, and is there"),
                (_, Some(document)) => {
                    ensure!(document.text == Some(words_of(value)), "d{value} of {collection} reads {:?}", document.text);
                    ensure!(
                        document.version == 1,
                        "d{value} of {collection} was written once, and has version {}",
                        document.version
                    );
                }
                (_, None) => {}
            }
        }
        Ok(())
    }

    /// Writes so many documents through a node, all of which must be acknowledged in the end.
    async fn write(&self, node: usize, count: u64) -> Result<()> {
        let client = self.cluster.client(node)?;
        let mut writes = JoinSet::new();
        for _ in 0..CLIENTS as u64 {
            let (client, told) = (client.clone(), self.told.clone());
            writes.spawn(async move {
                let deadline = Instant::now() + RECOVERY_TIMEOUT;
                for _ in 0..count.div_ceil(CLIENTS as u64) {
                    while let Err(fault) = write_one(&client, HOT, &told).await {
                        ensure!(Instant::now() < deadline, "nobody takes a write: {fault}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
                Ok(())
            });
        }
        writes.join_all().await.into_iter().collect()
    }

    /// The node that leads the shard of the collection that is in one shard.
    async fn hot_leader(&self) -> Result<usize> {
        let running = (0..self.cluster.len()).find(|node| self.cluster.process(*node).is_some()).context("no node runs")?;
        let client = self.cluster.client(running)?;
        let deadline = Instant::now() + RECOVERY_TIMEOUT;
        loop {
            let shards = client.cluster_shards(false).await?.shards;
            // All that is written goes there.
            let most =
                |shard: &ragged_client::ClusterShard| shard.replicas.iter().filter_map(|replica| replica.applied_index).max();
            let leader = shards.iter().max_by_key(|shard| most(shard)).and_then(|shard| shard.leader);
            let nodes = client.cluster_nodes().await?.nodes;
            let address = nodes.into_iter().find(|node| Some(node.id) == leader).map(|node| node.address);
            let at = |node: &usize| Some(self.cluster.cluster_address(*node)) == address.as_deref();
            match (0..self.cluster.len()).find(at) {
                Some(node) if self.cluster.process(node).is_some() => return Ok(node),
                _ => ensure!(Instant::now() < deadline, "the shard has no leader"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Has a node that was started with `RAGGED_FAILPOINTS_FILE` die at a point, when it comes by for the so many-th time from now on.
pub fn arm(file: &Path, point: &str, times: u64) -> Result<()> {
    let before = if times > 1 { format!("{}*off->", times - 1) } else { String::new() };
    // Whole at once: the node may read it at any moment.
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{point}={before}return"))?;
    Ok(std::fs::rename(new, file)?)
}

/// Does everything that a client can do, until it is told to stop.
async fn work(client: Client, mut random: StdRng, told: Arc<Told>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let collection = COLLECTIONS[random.random_range(0..2)];
        let done = match random.random_range(0..100) {
            0..60 => write_one(&client, collection, &told).await.is_ok(),
            60..70 => delete_one(&client, &told, &mut random).await.is_ok(),
            70..80 => submit(&client, collection, &told).await.is_ok(),
            80..85 => import(&client, collection, &told).await.is_ok(),
            85..87 => {
                let name = format!("x{}", told.next.fetch_add(1, Ordering::Relaxed));
                make_collection(&client, &name, 4).await.is_ok() && client.delete_collection(&name).await.is_ok()
            }
            _ => {
                let request = ragged_client::SearchRequest {
                    query: Some("common".into()),
                    mode: Some(ragged_client::Mode::Text),
                    ..Default::default()
                };
                client.search(collection, &request).await.is_ok()
            }
        };
        if !done {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn next(told: &Told) -> (u64, NewDocument) {
    let value = told.next.fetch_add(1, Ordering::Relaxed);
    (value, document(&format!("d{value}"), value))
}

async fn write_one(client: &Client, collection: &'static str, told: &Told) -> Result<(), ClientError> {
    let (value, document) = next(told);
    let key = value.is_multiple_of(2).then(|| format!("point-{value}"));
    client.upload(collection, &[document], UploadOptions { idempotency_key: key, no_wait: false }).await?;
    lock(&told.documents).push((collection, value, Some(false)));
    Ok(())
}

async fn delete_one(client: &Client, told: &Told, random: &mut StdRng) -> Result<(), ClientError> {
    let chosen = {
        let mut documents = lock(&told.documents);
        let count = documents.len();
        let Some(place) = count.checked_sub(1 + random.random_range(0..50)) else { return Ok(()) };
        let (collection, value, deleted) = documents[place];
        if deleted != Some(false) {
            return Ok(());
        }
        documents[place].2 = None; // until it is known
        (place, collection, value)
    };
    let (place, collection, value) = chosen;
    client.delete_document(collection, &format!("d{value}")).await?;
    lock(&told.documents)[place].2 = Some(true);
    Ok(())
}

async fn submit(client: &Client, collection: &'static str, told: &Told) -> Result<(), ClientError> {
    let documents: Vec<NewDocument> = (0..5).map(|_| next(told).1).collect();
    if let UploadReply::Accepted(job) =
        client.upload(collection, &documents, UploadOptions { idempotency_key: None, no_wait: true }).await?
    {
        lock(&told.jobs).push(job.job);
    }
    Ok(())
}

async fn import(client: &Client, collection: &'static str, told: &Told) -> Result<()> {
    let (values, documents): (Vec<u64>, Vec<NewDocument>) = (0..20).map(|_| next(told)).unzip();
    let lines: Vec<String> = documents.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    let options = ragged_client::ImportOptions { every_line_has_an_id: false };
    let report = client.import(collection, lines.join("\n").into(), options).await?;
    if report.accepted == values.len() as u64 {
        lock(&told.documents).extend(values.into_iter().map(|value| (collection, value, Some(false))));
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
