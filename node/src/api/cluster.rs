//! The cluster: nodes, shards, what is wrong with them, and what an operator orders.

use crate::api::problem::Problem;
use crate::api::query::Query;
use crate::api::routes::Answer;
use crate::api::{Call, json};
use ragged_actors::{Finding, NodeReport, NodeState, Session, ShardId, ShardReport};
use ragged_client::{
    ClusterNode, ClusterReplica, ClusterShard, Diagnosis, GroupFinding, JoinToken, NewJoinToken, NodeList, NodeStanding,
    Rebalanced, RecoveredShard, Recovery, ReplicaRole, ReplicaState, ShardList,
};
use std::time::Duration;
use warp::http::StatusCode;
use warp::reply::Response;

/// Seconds that a join token can be used, by default and at most.
const TOKEN_VALID: (u32, u32) = (3_600, 604_800);

/// `GET /api/v1/cluster/nodes`.
#[utoipa::path(get, path = "/api/v1/cluster/nodes", tag = "cluster", operation_id = "list_nodes",
    summary = "List nodes", description = "All nodes of the cluster, and whether they answer.",
    responses((status = 200, description = "The nodes", body = NodeList)))]
pub async fn nodes(call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    json::ok(&NodeList { nodes: session.cluster_nodes().await?.into_iter().map(node).collect() })
}

/// `GET /api/v1/cluster/shards`.
#[utoipa::path(get, path = "/api/v1/cluster/shards", tag = "cluster", operation_id = "list_shards",
    summary = "List shards", description = "All shards, where their replicas are, and how far they have applied their logs.",
    params(("hashes" = Option<bool>, Query, description = "Has every replica hash all its rows, to compare them. Reads everything. Default false.")),
    responses((status = 200, description = "The shards", body = ShardList)))]
pub async fn shards(call: Call, session: Session) -> Answer {
    let mut query = Query::parse(&call.query)?;
    let hashes = query.boolean("hashes", false)?;
    query.end()?;
    json::ok(&ShardList { shards: session.cluster_shards(hashes).await?.into_iter().map(shard).collect() })
}

/// `GET /api/v1/cluster/doctor`.
#[utoipa::path(get, path = "/api/v1/cluster/doctor", tag = "cluster", operation_id = "doctor",
    summary = "Examine the cluster",
    description = "For every group: whether it is healthy and, if not, why, what the cluster does about it, and what the operator can do.",
    responses((status = 200, description = "What was found", body = Diagnosis)))]
pub async fn doctor(call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    let groups: Vec<GroupFinding> = session.cluster_doctor().await?.into_iter().map(finding).collect();
    json::ok(&Diagnosis { healthy: groups.iter().all(|group| group.healthy), groups })
}

/// `POST /api/v1/cluster/tokens`.
#[utoipa::path(post, path = "/api/v1/cluster/tokens", tag = "cluster", operation_id = "make_join_token",
    summary = "Make a join token", description = "It lets one node join, once: `ragged serve --join HOST:PORT --token TOKEN`.",
    request_body(content = NewJoinToken, example = json!({"valid_seconds": 600})),
    responses((status = 201, description = "The token, shown this once", body = JoinToken)))]
pub async fn token(mut call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    let wanted: NewJoinToken = call.json().await?;
    let seconds = wanted.valid_seconds.unwrap_or(TOKEN_VALID.0);
    if !(1..=TOKEN_VALID.1).contains(&seconds) {
        return Err(Problem::invalid("invalid_validity", format!("valid_seconds: is 1 to {}", TOKEN_VALID.1)));
    }
    let token = session.make_join_token(Duration::from_secs(seconds.into())).await?;
    json::reply(StatusCode::CREATED, &JoinToken { token })
}

/// `POST /api/v1/cluster/rebalance`.
#[utoipa::path(post, path = "/api/v1/cluster/rebalance", tag = "cluster", operation_id = "rebalance",
    summary = "Even out the cluster at once",
    description = "Makes the next steps towards an even cluster, which it otherwise makes by itself within a second, and says which. Ask again until there are none.",
    responses((status = 200, description = "What was done", body = Rebalanced)))]
pub async fn rebalance(call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    let round = session.rebalance().await?;
    json::ok(&Rebalanced { steps: round.made, failed: round.failed })
}

/// `POST /api/v1/cluster/shards/{shard}/recover`.
#[utoipa::path(post, path = "/api/v1/cluster/shards/{shard}/recover", tag = "cluster", operation_id = "recover_shard",
    summary = "Recover a shard without a majority",
    description = "Has a shard go on with the best of the replicas that are left, or empty when none is. What only the lost replicas had is lost. A conflict while a \
                   lost node may come back (remove it first), while the shard has a leader or a majority, and unless the loss is accepted.",
    params(("shard" = u16, Path, description = "Number of the shard", example = 3)),
    request_body(content = Recovery, example = json!({"accept_loss": true})),
    responses((status = 200, description = "What it goes on with", body = RecoveredShard)))]
pub async fn recover(mut call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    let wanted: Recovery = call.json().await?;
    let unknown = |_| {
        Problem::new(StatusCode::NOT_FOUND, "shard_not_found", "there is no shard of that number; numbers are whole, from 0 on")
    };
    let shard = call.parameter(0)?.parse().map(ShardId).map_err(unknown)?;
    let recovered = session.recover_shard(shard, wanted.accept_loss).await?;
    json::ok(&RecoveredShard { id: shard.0, node: recovered.node.0, empty: recovered.empty })
}

/// `POST /api/v1/cluster/nodes/{node}/drain`.
#[utoipa::path(post, path = "/api/v1/cluster/nodes/{node}/drain", tag = "cluster", operation_id = "drain_node",
    summary = "Drain a node", description = "Its replicas are moved to other nodes; it serves meanwhile. It can be removed when it keeps none.",
    params(("node" = u64, Path, description = "Id of the node", example = 4711)),
    responses((status = 200, description = "The node", body = ClusterNode)))]
pub async fn drain(call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    json::ok(&node(session.drain_node(node_id(&call)?).await?))
}

/// `DELETE /api/v1/cluster/nodes/{node}`.
#[utoipa::path(delete, path = "/api/v1/cluster/nodes/{node}", tag = "cluster", operation_id = "remove_node",
    summary = "Remove a node",
    description = "For good: it can only come back as a new node. A conflict while it keeps the only replica of a shard, unless forced.",
    params(
        ("node" = u64, Path, description = "Id of the node", example = 4711),
        ("force" = Option<bool>, Query, description = "Remove it even though shards are lost with it. Default false."),
    ),
    responses((status = 204, description = "Removed")))]
pub async fn remove(call: Call, session: Session) -> Answer {
    let mut query = Query::parse(&call.query)?;
    let force = query.boolean("force", false)?;
    query.end()?;
    session.remove_node(node_id(&call)?, force).await?;
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn node_id(call: &Call) -> Result<ragged_actors::NodeId, Problem> {
    let text = call.parameter(0)?;
    let unknown = |_| Problem::new(StatusCode::NOT_FOUND, "node_not_found", "there is no node of that id; ids are whole numbers");
    text.parse().map(ragged_actors::NodeId).map_err(unknown)
}

fn node(report: NodeReport) -> ClusterNode {
    let state = match (report.state, report.reachable) {
        (NodeState::Draining | NodeState::Removed, _) => NodeStanding::Draining,
        (NodeState::Active, true) => NodeStanding::Active,
        (NodeState::Active, false) => NodeStanding::Unreachable,
    };
    ClusterNode {
        id: report.id.0,
        address: report.address,
        state,
        leads_meta: report.leads_meta,
        votes_meta: report.votes_meta,
        version: report.version,
        replicas: report.replicas as u32,
        leaders: report.leaders as u32,
    }
}

fn shard(report: ShardReport) -> ClusterShard {
    let replica = |replica: ragged_actors::ReplicaReport| ClusterReplica {
        node: replica.node.0,
        role: match replica.role {
            ragged_actors::ReplicaRole::Leader => ReplicaRole::Leader,
            ragged_actors::ReplicaRole::Follower => ReplicaRole::Follower,
            ragged_actors::ReplicaRole::Learner => ReplicaRole::Learner,
        },
        state: if replica.running { ReplicaState::Running } else { ReplicaState::Down },
        applied_index: replica.applied_index,
        hash_index: replica.state_hash.map(|(index, _)| index),
        state_hash: replica.state_hash.map(|(_, hash)| format!("{hash:016x}")),
    };
    ClusterShard {
        id: report.id.0,
        leader: report.leader.map(|node| node.0),
        replicas: report.replicas.into_iter().map(replica).collect(),
    }
}

fn finding(found: Finding) -> GroupFinding {
    GroupFinding {
        group: found.group,
        healthy: found.healthy,
        available: found.available,
        problem: found.problem,
        remedy: found.remedy,
        advice: found.advice,
    }
}
