//! What is broken, how it is seen that it is, and how it is mended.

use crate::cluster::Cluster;
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::Serialize;
use std::process::Stdio;
use std::time::Duration;

/// How long a node that is told to stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a node that is killed may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node may take to say who leads.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// A class of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A node's process is killed, and started again later.
    Kill,
    /// The process of the node that leads the most shards is killed.
    KillLeader,
    /// All processes are killed.
    KillAll,
    /// A node is stopped in order, and started again later.
    Stop,
    /// A node's process stands still.
    Pause,
    /// A node is cut off from all others.
    Isolate,
    /// The nodes are cut into two parts.
    Split,
    /// What a node sends to the others is lost; what they send arrives.
    OneWay,
    /// Two nodes are cut off from each other, and not from the rest.
    Bridge,
}

impl Class {
    /// What it does, in a line.
    pub fn meaning(self) -> String {
        let help = self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    /// Whether it breaks the network, and needs one that can be cut.
    pub fn is_of_network(self) -> bool {
        matches!(self, Class::Isolate | Class::Split | Class::OneWay | Class::Bridge)
    }
}

/// A fault that is in the cluster.
pub struct Injected {
    /// Its class.
    pub class: Class,
    /// The nodes that it was done to.
    pub nodes: Vec<usize>,
    cuts: Vec<(usize, usize)>,
}

/// Breaks something, and sees that it is broken.
pub async fn inject(class: Class, cluster: &mut Cluster, random: &mut impl Rng) -> Result<Injected> {
    let count = cluster.len();
    let one = random.random_range(0..count);
    let mut injected = Injected { class, nodes: vec![one], cuts: Vec::new() };
    match class {
        Class::Kill => kill(cluster, one).await?,
        Class::KillLeader => {
            injected.nodes = vec![busiest(cluster).await.unwrap_or(one)];
            kill(cluster, injected.nodes[0]).await?;
        }
        Class::KillAll => {
            injected.nodes = (0..count).collect();
            for node in 0..count {
                cluster.signal(node, libc::SIGKILL)?;
            }
            for node in 0..count {
                cluster.ended(node, KILL_TIMEOUT).await?;
            }
        }
        Class::Stop => {
            cluster.signal(one, libc::SIGTERM)?;
            cluster.ended(one, STOP_TIMEOUT).await.context("a node that was told to stop")?;
        }
        Class::Pause => {
            cluster.signal(one, libc::SIGSTOP)?;
            ensure!(stands_still(cluster, one).await?, "node {one} goes on although it was told to stand still");
        }
        Class::Isolate => {
            injected.cuts = (0..count).filter(|other| *other != one).flat_map(|other| [(one, other), (other, one)]).collect()
        }
        Class::OneWay => injected.cuts = (0..count).filter(|other| *other != one).map(|other| (one, other)).collect(),
        Class::Split => {
            let mut nodes: Vec<usize> = (0..count).collect();
            nodes.shuffle(random);
            let (here, there) = nodes.split_at(random.random_range(1..count));
            injected.cuts = here.iter().flat_map(|one| there.iter().flat_map(|other| [(*one, *other), (*other, *one)])).collect();
            injected.nodes = here.to_vec();
        }
        Class::Bridge => {
            let others: Vec<usize> = (0..count).filter(|other| *other != one).collect();
            let other = *others.choose(random).context("a bridge needs two nodes")?;
            injected.nodes.push(other);
            injected.cuts = vec![(one, other), (other, one)];
        }
    }
    for (from, to) in &injected.cuts {
        cluster.network().cut(*from, *to)?;
    }
    if let Some((from, to)) = injected.cuts.first() {
        ensure!(!connects(cluster, *from, *to)?, "node {from} still reaches node {to} although that was cut");
    }
    Ok(injected)
}

/// Mends it. Nodes that were ended are started, and may take their time to be ready.
pub fn mend(injected: &Injected, cluster: &mut Cluster) -> Result<()> {
    for (from, to) in &injected.cuts {
        cluster.network().mend(*from, *to)?;
    }
    for node in &injected.nodes {
        match injected.class {
            Class::Kill | Class::KillLeader | Class::KillAll | Class::Stop => cluster.restart(*node)?,
            Class::Pause => cluster.signal(*node, libc::SIGCONT)?,
            Class::Isolate | Class::Split | Class::OneWay | Class::Bridge => {}
        }
    }
    Ok(())
}

async fn kill(cluster: &mut Cluster, node: usize) -> Result<()> {
    cluster.signal(node, libc::SIGKILL)?;
    cluster.ended(node, KILL_TIMEOUT).await
}

/// The node that leads the most shards, if any node says so.
async fn busiest(cluster: &Cluster) -> Option<usize> {
    for node in 0..cluster.len() {
        let Ok(client) = cluster.client(node) else { continue };
        let Ok(Ok(members)) = tokio::time::timeout(ASK_TIMEOUT, client.cluster_nodes()).await else { continue };
        let leader = members.nodes.into_iter().max_by_key(|node| node.leaders)?;
        return (0..cluster.len()).find(|node| cluster.cluster_address(*node) == leader.address);
    }
    None
}

/// Whether the process does not run: it is stopped, as the system says.
async fn stands_still(cluster: &Cluster, node: usize) -> Result<bool> {
    let process = cluster.process(node).context("the node does not run")?;
    for _ in 0..100 {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The state follows the name, which stands in parentheses and may hold anything.
        if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')) {
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(false)
}

/// Whether a connection from one node's network to another node comes about.
fn connects(cluster: &Cluster, from: usize, to: usize) -> Result<bool> {
    let mut probe = cluster.network().command(from, &std::env::current_exe()?);
    let status = probe
        .args(["probe", cluster.cluster_address(to)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(status.success())
}
