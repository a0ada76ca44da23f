//! A cluster of the real binary that can be broken.

use crate::network::Network;
use anyhow::{Context, Result, bail, ensure};
use ragged_client::{Client, ClusterShard, NewJoinToken, RetryPolicy};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a node may take to be ready, and the cluster to be whole.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client waits for an answer: longer than a node looks for a leader.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(15);

/// What nodes are started from.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The program `ragged`.
    pub binary: PathBuf,
    /// The embedding model's folder.
    pub model_dir: PathBuf,
    /// Variables that nodes are started with besides.
    pub environment: Vec<(String, String)>,
}

/// Nodes of the real binary, ended when dropped.
pub struct Cluster {
    nodes: Vec<Node>,
    installation: Installation,
    key: String,
    // Last, so that no node is left in it.
    network: Network,
    folder: TempDir,
}

/// A node; its number is its place.
struct Node {
    process: Option<Child>,
    http: String,
    cluster: String,
}

impl Cluster {
    /// A cluster of so many nodes, whole.
    pub async fn start(nodes: usize, installation: Installation) -> Result<Cluster> {
        Cluster::start_first(nodes, nodes, installation).await
    }

    /// The same, with the first so many nodes only; the others can join later.
    pub async fn start_first(first: usize, nodes: usize, installation: Installation) -> Result<Cluster> {
        let network = Network::make(nodes)?;
        let folder = tempfile::tempdir()?;
        let mut cluster = Cluster { nodes: Vec::new(), installation, key: String::new(), network, folder };
        for number in 0..nodes {
            let (http, port) = (cluster.free_address(number, 7400)?, cluster.free_address(number, 7401)?);
            cluster.nodes.push(Node { process: None, http, cluster: port });
            if number >= first {
                continue;
            }
            if number == 0 {
                cluster.spawn(number, None)?;
            } else {
                let joining = cluster.joining(0).await?;
                cluster.spawn(number, Some(joining))?;
            }
            cluster.until_ready(number).await?;
            if number == 0 {
                cluster.read_key()?;
            }
        }
        cluster.until_whole(READY_TIMEOUT).await?;
        Ok(cluster)
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The network that they live in.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// A client of one node, which tries nothing twice: what it is told is what happened.
    pub fn client(&self, node: usize) -> Result<Client> {
        let builder = Client::builder().endpoint(format!("http://{}", self.nodes[node].http)).key(self.key.clone());
        Ok(builder.timeout(CLIENT_TIMEOUT).upload_timeout(CLIENT_TIMEOUT).retry(RetryPolicy::never()).build()?)
    }

    /// Where other nodes reach a node.
    pub fn cluster_address(&self, node: usize) -> &str {
        &self.nodes[node].cluster
    }

    /// The process of a node that runs.
    pub fn process(&self, node: usize) -> Option<u32> {
        self.nodes[node].process.as_ref().map(Child::id)
    }

    /// Sends a signal to a node that runs.
    pub fn signal(&self, node: usize, signal: i32) -> Result<()> {
        let process = self.process(node).with_context(|| format!("node {node} does not run"))?;
        // SAFETY: kill(2) takes plain numbers; the process is our own child, which has not been waited for.
        let sent = unsafe { libc::kill(process as i32, signal) };
        ensure!(sent == 0, "signal {signal} could not be sent to node {node}");
        Ok(())
    }

    /// Waits until a node's process has ended, which it was told to.
    pub async fn ended(&mut self, node: usize, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let Some(process) = self.nodes[node].process.as_mut() else { return Ok(()) };
        while process.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "node {node} has not ended within {within:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.nodes[node].process = None;
        Ok(())
    }

    /// Starts a node again over its folder. Does not wait until it is ready.
    pub fn restart(&mut self, node: usize) -> Result<()> {
        if self.nodes[node].process.is_some() {
            return Ok(());
        }
        self.spawn(node, None)
    }

    /// A node that has ended although nobody told it to.
    pub fn deserter(&mut self) -> Result<Option<(usize, String)>> {
        for (number, node) in self.nodes.iter_mut().enumerate() {
            if let Some(process) = node.process.as_mut()
                && let Some(status) = process.try_wait()?
            {
                return Ok(Some((number, status.to_string())));
            }
        }
        Ok(None)
    }

    /// Waits until every group has a leader and all its replicas; how long that took.
    pub async fn until_whole(&self, within: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let mut whole = true;
            let running: Vec<usize> = (0..self.len()).filter(|node| self.process(*node).is_some()).collect();
            for node in running.iter().copied() {
                // Each node must say so: one that is cut off knows nothing.
                let said = self.client(node)?.cluster_doctor().await;
                let members = self.client(node)?.cluster_nodes().await;
                let all_there = members
                    .is_ok_and(|members| members.nodes.iter().filter(|node| node.version.is_some()).count() == running.len());
                whole &= all_there && said.is_ok_and(|diagnosis| diagnosis.healthy);
            }
            if whole {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > within {
                let said = self.client(0)?.cluster_doctor().await;
                bail!("the cluster is not whole after {within:?}: {said:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Takes the key that the founder has written.
    pub fn read_key(&mut self) -> Result<()> {
        self.key = std::fs::read_to_string(self.data_dir(0).join("admin.key"))?.trim().to_owned();
        Ok(())
    }

    /// Variables that nodes are started with from now on.
    pub fn environment(&mut self) -> &mut Vec<(String, String)> {
        &mut self.installation.environment
    }

    /// What a new node joins with, by a member: the member's address, and a token for one node.
    pub async fn joining(&self, member: usize) -> Result<(String, String)> {
        let token = self.client(member)?.make_join_token(&NewJoinToken::default()).await?.token;
        Ok((self.nodes[member].cluster.clone(), token))
    }

    /// Starts a node that does not run and that is to join, or was about to. Does not wait until it is ready.
    pub fn start_joining(&mut self, node: usize, joining: (String, String)) -> Result<()> {
        self.spawn(node, Some(joining))
    }

    /// The shards, each replica with a hash of its rows.
    pub async fn hashed_shards(&self) -> Result<Vec<ClusterShard>> {
        Ok(self.client(0)?.cluster_shards(true).await?.shards)
    }

    /// What a node keeps.
    pub fn data_dir(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("node-{node}"))
    }

    /// The end of a node's log.
    pub fn log_path(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("node-{node}.log"))
    }

    /// Keeps the folder with the nodes' data and logs; where it is.
    pub fn keep_folder(&mut self) -> &Path {
        self.folder.disable_cleanup(true);
        self.folder.path()
    }

    fn free_address(&self, node: usize, port: u16) -> Result<String> {
        if self.network.can_be_cut() {
            return Ok(format!("{}:{port}", self.network.address(node)));
        }
        Ok(TcpListener::bind((self.network.address(node), 0))?.local_addr()?.to_string())
    }

    fn spawn(&mut self, number: usize, joining: Option<(String, String)>) -> Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path(number))?;
        let mut command = self.network.command(number, &self.installation.binary);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RAGGED_")) {
            command.env_remove(name);
        }
        let node = &self.nodes[number];
        command
            .arg("serve")
            .env("RAGGED_DATA_DIR", self.data_dir(number))
            .env("RAGGED_MODEL_DIR", &self.installation.model_dir)
            .env("RAGGED_HTTP_LISTEN", &node.http)
            .env("RAGGED_HTTP_BEHIND_TLS_PROXY", "true") // the address is of a network that exists for this run only
            .env("RAGGED_CLUSTER_LISTEN", &node.cluster)
            .env("RAGGED_LOG_FILTER", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .envs(self.installation.environment.iter().cloned());
        if let Some((seed, token)) = joining {
            command.env("RAGGED_CLUSTER_JOIN", seed).env("RAGGED_CLUSTER_TOKEN", token);
        }
        self.nodes[number].process = Some(command.spawn().context("the node cannot be started")?);
        Ok(())
    }

    async fn until_ready(&mut self, node: usize) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let probe =
            Client::builder().endpoint(format!("http://{}", self.nodes[node].http)).retry(RetryPolicy::never()).build()?;
        while !probe.ready().await.is_ok_and(|readiness| readiness.ready) {
            if let Some((ended, status)) = self.deserter()? {
                bail!("node {ended} ended with {status}: see {}", self.log_path(ended).display());
            }
            ensure!(Instant::now() < deadline, "node {node} is not ready after {READY_TIMEOUT:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(process) = node.process.as_mut() {
                let _ = process.kill(); // it may have ended
                let _ = process.wait();
            }
        }
    }
}
