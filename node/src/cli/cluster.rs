//! `ragged cluster`: status, nodes, shards, doctor, token, rebalance, drain, remove, and the ways out of a majority that is lost.

use crate::cli::error::{CliError, Exit};
use crate::cli::globals::Globals;
use crate::cli::output::{Output, printable, render};
use crate::cli::settings;
use clap::Subcommand;
use comfy_table::Cell;
use ragged_actors::{ShardId, StoreOptions};
use ragged_client::{
    Client, ClusterNode, Diagnosis, NewJoinToken, NodeList, NodeStanding, Rebalanced, Recovery, ReplicaRole, ReplicaState,
    ShardList,
};
use std::time::{Duration, Instant};

/// How long `rebalance` waits between two rounds of steps, and for how long there must be none until it ends.
const REBALANCE_PAUSE: Duration = Duration::from_millis(300);
const SETTLED: Duration = Duration::from_secs(1);
/// Rounds of steps none of which could be made, after which it gives up.
const VAIN_ROUNDS_MAX: u32 = 20;

/// Commands of `ragged cluster`.
#[derive(Subcommand)]
pub enum Command {
    /// Say in a few lines how the cluster stands
    Status,
    /// List the nodes
    Nodes,
    /// List the shards and their replicas
    Shards {
        /// Have every replica hash all its rows, to compare them; reads everything
        #[arg(long)]
        hashes: bool,
    },
    /// Say what is wrong, what the cluster does about it, and what you can do
    ///
    /// The exit code is 0 when everything is healthy, 6 when something is wrong, 5 when something does not take writes.
    Doctor,
    /// Print a token that lets one node join, once: ragged serve --join HOST:PORT --token TOKEN
    Token {
        /// Seconds for which it can be used
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=604_800))]
        valid: Option<u32>,
    },
    /// Even out replicas and leaders at once, and say what is done until nothing is left to do
    ///
    /// The cluster does this by itself within a second; the command shows it, and waits for its end.
    Rebalance {
        /// Make the next steps only, and do not wait
        #[arg(long)]
        once: bool,
    },
    /// Have a shard that has lost its majority for good go on with what is left of it
    ///
    /// Remove the lost nodes first. Without --accept-loss it only says what would be lost.
    Recover {
        /// Number of the shard
        shard: u16,
        /// Go on although what only the lost replicas had is lost
        #[arg(long)]
        accept_loss: bool,
    },
    /// Make a cluster of one of what this machine's node has, when most voters of the meta group are lost for good
    ///
    /// Works on the data folder (--data-dir) of a node that is stopped. Start it afterwards, and let new nodes join. Nodes of the old cluster are refused
    /// should they return. Use it on one node only: the one with the most.
    Refound {
        /// Go on although what only the lost nodes had is lost
        #[arg(long)]
        accept_loss: bool,
    },
    /// Have a node's replicas moved to others; it serves meanwhile
    Drain {
        /// Id of the node
        node: u64,
    },
    /// Take a node out of the cluster for good
    Remove {
        /// Id of the node
        node: u64,
        /// Even though shards are lost with it
        #[arg(long)]
        force: bool,
    },
}

/// Runs a command of `ragged cluster`.
pub async fn run(command: Command, globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    let client = globals.client()?;
    match command {
        Command::Status => {
            let (nodes, diagnosis) = (client.cluster_nodes().await?, client.cluster_doctor().await?);
            let value = serde_json::json!({ "nodes": nodes.nodes, "healthy": diagnosis.healthy });
            output.either(&value, || status(&nodes, &diagnosis))?;
        }
        Command::Nodes => {
            let nodes = client.cluster_nodes().await?;
            output.either(&nodes, || table_of_nodes(&nodes.nodes, output))?;
        }
        Command::Shards { hashes } => {
            let shards = client.cluster_shards(hashes).await?;
            output.either(&shards, || table_of_shards(&shards, output))?;
        }
        Command::Doctor => {
            let diagnosis = client.cluster_doctor().await?;
            output.either(&diagnosis, || findings(&diagnosis))?;
            return Ok(match (diagnosis.healthy, diagnosis.groups.iter().all(|group| group.available)) {
                (true, _) => Exit::Success,
                (false, true) => Exit::PartlyFailed,
                (false, false) => Exit::Unavailable,
            });
        }
        Command::Token { valid } => {
            let made = client.make_join_token(&NewJoinToken { valid_seconds: valid }).await?;
            output.either(&made, || made.token.clone())?;
        }
        Command::Rebalance { once } => {
            let rebalanced = rebalance(&client, once, output).await?;
            output.either(&rebalanced, || match rebalanced.steps.len() {
                0 => "nothing to do: replicas and leaders are spread evenly, as far as nodes answer".to_owned(),
                made => format!("{made} steps"),
            })?;
            if !rebalanced.failed.is_empty() {
                return Ok(Exit::PartlyFailed);
            }
        }
        Command::Recover { shard, accept_loss } => {
            let recovered = client.recover_shard(shard, &Recovery { accept_loss }).await?;
            output.either(&recovered, || match recovered.empty {
                true => format!("shard {shard} goes on empty on node {}", recovered.node),
                false => format!("shard {shard} goes on with what node {} has", recovered.node),
            })?;
        }
        Command::Refound { accept_loss } => return refound(accept_loss, globals, output).await,
        Command::Drain { node } => {
            let node = client.drain_node(node).await?;
            output.either(&node, || table_of_nodes(std::slice::from_ref(&node), output))?;
        }
        Command::Remove { node, force } => client.remove_node(node, force).await?,
    }
    Ok(Exit::Success)
}

/// Has steps made until none is left and no replica is being filled, and shows them: all that were made, and those that fail again and again.
async fn rebalance(client: &Client, once: bool, output: &Output) -> Result<Rebalanced, CliError> {
    let (mut made, mut quiet_since, mut vain) = (Vec::new(), None::<Instant>, 0);
    loop {
        let Rebalanced { steps, failed } = client.rebalance().await?;
        for step in &steps {
            output.note(step);
        }
        let is_quiet = steps.is_empty() && failed.is_empty();
        vain = if steps.is_empty() && !failed.is_empty() { vain + 1 } else { 0 };
        made.extend(steps);
        // Between two steps there may be nothing to do for a moment.
        quiet_since = if is_quiet { quiet_since.or_else(|| Some(Instant::now())) } else { None };
        let is_settled = quiet_since.is_some_and(|since| since.elapsed() > SETTLED) && !is_filling(client).await?;
        if once || is_settled || vain == VAIN_ROUNDS_MAX {
            return Ok(Rebalanced { steps: made, failed });
        }
        tokio::time::sleep(REBALANCE_PAUSE).await;
    }
}

/// Whether a replica that answers is being filled.
async fn is_filling(client: &Client) -> Result<bool, CliError> {
    let shards = client.cluster_shards(false).await?.shards;
    let mut replicas = shards.iter().flat_map(|shard| &shard.replicas);
    Ok(replicas.any(|replica| replica.role == ReplicaRole::Learner && replica.state == ReplicaState::Running))
}

async fn refound(accept_loss: bool, globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    let config = settings::load(globals, Vec::new())?.config;
    if !accept_loss {
        return Err(CliError::Usage(format!(
            "this makes a cluster of one of what is in {}, and parts it from all other nodes for good: what only they had is lost. Start the others again if any \
             way is left; otherwise say --accept-loss",
            config.data_dir.display()
        )));
    }
    let options = StoreOptions {
        block_cache_bytes: config.memory.block_cache_bytes.as_usize(),
        write_buffer_bytes: config.memory.write_buffer_bytes.as_usize(),
    };
    let refounded = ragged_actors::refound(&config.data_dir, options).await.map_err(|fault| CliError::Node(fault.into()))?;
    let numbers = |shards: &[ShardId]| shards.iter().map(|shard| shard.0).collect::<Vec<u16>>();
    let (kept, lost) = (numbers(&refounded.shards), numbers(&refounded.lost));
    let value = serde_json::json!({ "cluster": refounded.cluster.to_string(), "node": refounded.node.0, "shards": kept, "lost_shards": lost });
    output.either(&value, || {
        let mut text = format!(
            "node {} is a cluster of one now, with {} shards. Start it, and let new nodes join.",
            refounded.node.0,
            kept.len()
        );
        if !lost.is_empty() {
            text += &format!(
                "\nIt has nothing of {} shards: {lost:?}. They go on empty by `ragged cluster recover SHARD --accept-loss`.",
                lost.len()
            );
        }
        text
    })?;
    Ok(Exit::Success)
}

fn status(nodes: &NodeList, diagnosis: &Diagnosis) -> String {
    let answer = nodes.nodes.iter().filter(|node| node.version.is_some()).count();
    let ill: Vec<&str> = diagnosis.groups.iter().filter(|group| !group.healthy).map(|group| group.group.as_str()).collect();
    let health = match ill.is_empty() {
        true => format!("all {} groups are healthy", diagnosis.groups.len()),
        false => format!(
            "{} of {} groups are not healthy: {} (see `ragged cluster doctor`)",
            ill.len(),
            diagnosis.groups.len(),
            ill.join(", ")
        ),
    };
    format!("{answer} of {} nodes answer; {health}", nodes.nodes.len())
}

fn table_of_nodes(nodes: &[ClusterNode], output: &Output) -> String {
    let mut table = output.table(&["node", "address", "state", "meta", "replicas", "leaders", "version"]);
    for node in nodes {
        let meta = match (node.leads_meta, node.votes_meta) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let state = match node.state {
            NodeStanding::Active => "active",
            NodeStanding::Draining => "draining",
            NodeStanding::Unreachable => "unreachable",
        };
        table.add_row([
            Cell::new(node.id),
            Cell::new(printable(&node.address)),
            Cell::new(state),
            Cell::new(meta),
            Cell::new(node.replicas),
            Cell::new(node.leaders),
            Cell::new(node.version.as_deref().unwrap_or("-")),
        ]);
    }
    render(&table)
}

fn table_of_shards(shards: &ShardList, output: &Output) -> String {
    let mut table = output.table(&["shard", "node", "role", "applied", "hash"]);
    for shard in &shards.shards {
        for replica in &shard.replicas {
            let role = match replica.role {
                ReplicaRole::Leader => "leader",
                ReplicaRole::Follower => "follower",
                ReplicaRole::Learner => "learner",
            };
            table.add_row([
                Cell::new(shard.id),
                Cell::new(replica.node),
                Cell::new(role),
                Cell::new(replica.applied_index.map_or("down".to_owned(), |index| index.to_string())),
                Cell::new(replica.state_hash.as_deref().unwrap_or("-")),
            ]);
        }
    }
    render(&table)
}

fn findings(diagnosis: &Diagnosis) -> String {
    if diagnosis.healthy {
        return format!("all {} groups are healthy", diagnosis.groups.len());
    }
    let mut lines = Vec::new();
    for group in diagnosis.groups.iter().filter(|group| !group.healthy) {
        let state = if group.available { "works, not at full strength" } else { "does not take writes" };
        lines.push(format!("{}: {state}", group.group));
        let parts = [("why", &group.problem), ("the cluster", &group.remedy), ("you", &group.advice)];
        lines.extend(parts.into_iter().filter_map(|(who, text)| Some(format!("  {who}: {}", text.as_ref()?))));
    }
    lines.join("\n")
}
