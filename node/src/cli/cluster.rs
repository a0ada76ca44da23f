//! `ragged cluster`: status, nodes, shards, doctor, token, drain and remove.

use crate::cli::error::{CliError, Exit};
use crate::cli::globals::Globals;
use crate::cli::output::{Output, printable, render};
use clap::Subcommand;
use comfy_table::Cell;
use ragged_client::{ClusterNode, Diagnosis, NewJoinToken, NodeList, NodeStanding, ReplicaRole, ShardList};

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
        Command::Drain { node } => {
            let node = client.drain_node(node).await?;
            output.either(&node, || table_of_nodes(std::slice::from_ref(&node), output))?;
        }
        Command::Remove { node, force } => client.remove_node(node, force).await?,
    }
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
