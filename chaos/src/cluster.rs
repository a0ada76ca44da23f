//! A cluster of the real binary that can be broken.

use crate::clock::{self, Clock};
use crate::disk::Disk;
use crate::network::Network;
use anyhow::{Context, Result, bail, ensure};
use ragged_client::{Client, ClusterNode, ClusterShard, NewJoinToken, RetryPolicy};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// How long a node may take to be ready, and the cluster to be whole.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client waits for an answer. A node looks for a leader for longer: what it would have said then is unknown to the client.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(6);
/// How long all nodes may take to read all their rows.
const HASH_TIMEOUT: Duration = Duration::from_secs(60);

/// What nodes are started from.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The program `ragged`.
    pub binary: PathBuf,
    /// The embedding model's folder, when it is not the program's default.
    pub model_dir: Option<PathBuf>,
    /// Variables that nodes are started with besides.
    pub environment: Vec<(String, String)>,
}

/// Nodes of the real binary, ended when dropped.
pub struct Cluster {
    nodes: Vec<Node>,
    installation: Installation,
    key: String,
    /// The nodes' processes, for whoever watches them; 0 while there is none.
    processes: Arc<Vec<AtomicU32>>,
    // Last, so that no node is left in it.
    network: Network,
    /// The library by which clocks are set, where it can be made.
    clock_library: Option<PathBuf>,
    folder: TempDir,
}

/// A node; its number is its place.
struct Node {
    process: Option<Child>,
    http: String,
    cluster: String,
    disk: Disk,
    clock: Clock,
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
        let clock_library = clock::can_be_set().then(|| clock::make_library(folder.path())).transpose()?;
        let processes = Arc::new((0..nodes).map(|_| AtomicU32::new(0)).collect());
        let mut cluster =
            Cluster { nodes: Vec::new(), installation, key: String::new(), processes, network, clock_library, folder };
        for number in 0..nodes {
            let (http, port) = (cluster.free_address(number, 7400)?, cluster.free_address(number, 7401)?);
            let disk = Disk::make(cluster.folder.path(), &format!("node-{number}"))?;
            let clock = Clock::make(cluster.folder.path().join(format!("node-{number}.clock")))?;
            cluster.nodes.push(Node { process: None, http, cluster: port, disk, clock });
            if number >= first {
                continue;
            }
            if number == 0 {
                cluster.spawn(number, None)?;
            } else {
                let joining = cluster.joining(0).await?;
                cluster.spawn(number, Some(joining))?;
            }
            cluster.until_ready(number, READY_TIMEOUT).await?;
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
        self.patient_client(node, CLIENT_TIMEOUT)
    }

    fn patient_client(&self, node: usize, timeout: Duration) -> Result<Client> {
        let builder = Client::builder().endpoint(format!("http://{}", self.nodes[node].http)).key(self.key.clone());
        Ok(builder.timeout(timeout).upload_timeout(timeout).retry(RetryPolicy::never()).build()?)
    }

    /// Where other nodes reach a node.
    pub fn cluster_address(&self, node: usize) -> &str {
        &self.nodes[node].cluster
    }

    /// The node that others reach there.
    pub fn at_address(&self, address: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.cluster == address)
    }

    /// The process of a node that runs.
    pub fn process(&self, node: usize) -> Option<u32> {
        self.nodes[node].process.as_ref().and_then(Child::id)
    }

    /// The processes of all nodes, as they come and go; 0 while there is none.
    pub fn processes(&self) -> Arc<Vec<AtomicU32>> {
        self.processes.clone()
    }

    /// The disk of a node.
    pub fn disk(&self, node: usize) -> &Disk {
        &self.nodes[node].disk
    }

    /// The clock of a node.
    pub fn clock(&self, node: usize) -> Result<&Clock> {
        ensure!(self.clock_library.is_some(), "without a C compiler clocks cannot be set");
        Ok(&self.nodes[node].clock)
    }

    /// Sends a signal to a node that runs.
    pub fn signal(&self, node: usize, signal: i32) -> Result<()> {
        let process = self.process(node).with_context(|| format!("node {node} does not run"))?;
        // SAFETY: kill(2) takes plain numbers; the process is our own child, which has not been waited for.
        let sent = unsafe { libc::kill(process as i32, signal) };
        ensure!(sent == 0, "signal {signal} could not be sent to node {node}");
        Ok(())
    }

    /// Ends nodes by a signal, at once, and waits until they have. What was wrong with that, if anything: one had ended by itself before, or ended in another
    /// way than it was told to, or not in time; then it is killed.
    pub async fn end(&mut self, nodes: &[usize], signal: i32, within: Duration) -> Result<Option<String>> {
        let mut wrong = None;
        let mut told = Vec::new();
        for node in nodes.iter().copied() {
            match self.running(node)?.try_wait()? {
                Some(status) => wrong = wrong.or(Some(format!("node {node} had ended by itself with {status}"))),
                None => {
                    self.signal(node, signal)?;
                    told.push(node);
                }
            }
        }
        for node in told {
            let process = self.running(node)?;
            let what = match tokio::time::timeout(within, process.wait()).await {
                Ok(status) => {
                    let status = status?;
                    // A node that has only just been started knows of no signals yet.
                    let is_as_told = status.success() || status.signal() == Some(signal);
                    (!is_as_told).then(|| format!("node {node} was to end by signal {signal}, and ended with {status}"))
                }
                Err(_) => {
                    process.kill().await?;
                    Some(format!("node {node} has not ended within {within:?} after signal {signal}"))
                }
            };
            wrong = wrong.or(what);
        }
        for node in nodes.iter().copied() {
            self.nodes[node].process = None;
            self.processes[node].store(0, Ordering::Relaxed);
        }
        Ok(wrong)
    }

    fn running(&mut self, node: usize) -> Result<&mut Child> {
        self.nodes[node].process.as_mut().with_context(|| format!("node {node} does not run"))
    }

    /// Waits until a node's process has ended; whether it has within the time.
    pub async fn has_ended(&mut self, node: usize, within: Duration) -> Result<bool> {
        let Some(process) = self.nodes[node].process.as_mut() else { return Ok(true) };
        let Ok(status) = tokio::time::timeout(within, process.wait()).await else { return Ok(false) };
        status?;
        self.nodes[node].process = None;
        self.processes[node].store(0, Ordering::Relaxed);
        Ok(true)
    }

    /// Waits until a node's process has ended, which it was told to.
    pub async fn ended(&mut self, node: usize, within: Duration) -> Result<()> {
        ensure!(self.has_ended(node, within).await?, "node {node} has not ended within {within:?}");
        Ok(())
    }

    /// A token that lets one node join, made by a member.
    pub async fn join_token(&self, member: usize) -> Result<String> {
        Ok(self.client(member)?.make_join_token(&NewJoinToken::default()).await?.token)
    }

    /// Has a node that has nothing join the cluster, by a member. Does not wait until it is ready.
    pub fn join(&mut self, node: usize, member: usize, token: String) -> Result<()> {
        self.spawn(node, Some((self.nodes[member].cluster.clone(), token)))
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

    /// Waits until every group has a leader and all its replicas, and these have what was written; how long that took.
    pub async fn until_whole(&self, within: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let mut whole = true;
            let running: Vec<usize> = (0..self.len()).filter(|node| self.process(*node).is_some()).collect();
            for node in running.iter().copied() {
                // Each node must say so: one that is cut off knows nothing.
                let said = self.client(node)?.cluster_doctor().await;
                let members = self.client(node)?.cluster_nodes().await;
                // One that has joined a moment ago answers, and keeps nothing yet.
                let is_at_work = |member: &&ClusterNode| member.version.is_some() && member.replicas > 0;
                let all_there = members.is_ok_and(|members| members.nodes.iter().filter(is_at_work).count() == running.len());
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
        Ok(self.patient_client(0, HASH_TIMEOUT)?.cluster_shards(true).await?.shards)
    }

    /// What a node keeps.
    pub fn data_dir(&self, node: usize) -> PathBuf {
        self.nodes[node].disk.data_dir()
    }

    /// Where a node's log is.
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
        let mut command = Command::from(self.network.command(number, &self.installation.binary));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RAGGED_")) {
            command.env_remove(name);
        }
        let node = &self.nodes[number];
        command
            .arg("serve")
            .env("RAGGED_DATA_DIR", node.disk.data_dir())
            .env("RAGGED_HTTP_LISTEN", &node.http)
            .env("RAGGED_HTTP_BEHIND_TLS_PROXY", "true") // the address is of a network that exists for this run only
            .env("RAGGED_CLUSTER_LISTEN", &node.cluster)
            .env("RAGGED_LOG_FILTER", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .envs(self.installation.environment.iter().cloned())
            .kill_on_drop(true);
        if let Some(library) = &self.clock_library {
            command.env("LD_PRELOAD", library).env("CHAOS_CLOCK", node.clock.path());
        }
        if let Some(folder) = &self.installation.model_dir {
            command.env("RAGGED_MODEL_DIR", folder);
        }
        if let Some((seed, token)) = joining {
            command.env("RAGGED_CLUSTER_JOIN", seed).env("RAGGED_CLUSTER_TOKEN", token);
        }
        let process = command.spawn().context("the node cannot be started")?;
        self.processes[number].store(process.id().unwrap_or_default(), Ordering::Relaxed);
        self.nodes[number].process = Some(process);
        Ok(())
    }

    /// Waits until a node says that it is ready.
    pub async fn until_ready(&mut self, node: usize, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let probe =
            Client::builder().endpoint(format!("http://{}", self.nodes[node].http)).retry(RetryPolicy::never()).build()?;
        while !probe.ready().await.is_ok_and(|readiness| readiness.ready) {
            if let Some((ended, status)) = self.deserter()? {
                bail!("node {ended} ended with {status}: see {}", self.log_path(ended).display());
            }
            ensure!(Instant::now() < deadline, "node {node} is not ready after {within:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in (0..self.len()).filter_map(|node| self.process(node)) {
            // SAFETY: both take plain numbers and a pointer that may be null; the process is our own child. It must be gone before its disk is unmounted.
            unsafe {
                libc::kill(process as i32, libc::SIGKILL);
                libc::waitpid(process as i32, std::ptr::null_mut(), 0);
            }
        }
    }
}
