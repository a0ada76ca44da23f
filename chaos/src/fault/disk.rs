//! Faults of disks: without power, failing, full, rotten and lost.

use super::{Class, Injected, Mending, process, rot, shuffled};
use crate::cluster::Cluster;
use crate::throttle::Throttle;
use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use std::time::{Duration, Instant};

/// How long it is waited whether a node ends whose disk fails.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// What a slow disk takes.
const WRITES_PER_SECOND: u32 = 10;
/// How long a node may take to write something.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// Does it to a disk.
pub async fn inject(class: Class, cluster: &mut Cluster, random: &mut StdRng) -> Result<Injected> {
    let node = shuffled(cluster, random)[0];
    let done = |seen, mending| Ok(Injected { class, nodes: vec![node], seen, violation: None, mending });
    match class {
        Class::PowerLoss => {
            cluster.disk(node).lose_power()?;
            process::kill(cluster, &[node]).await?;
            done(None, Mending::Power)
        }
        Class::IoErrors => {
            cluster.disk(node).shut_down()?;
            let seen = match cluster.has_ended(node, END_TIMEOUT).await? {
                true => "the node ended",
                false => "the node went on without its disk",
            };
            done(Some(seen.to_owned()), Mending::Power)
        }
        Class::SlowDisk => {
            let process = cluster.process(node).with_context(|| format!("node {node} does not run"))?;
            let throttle = Throttle::put_on(process, &cluster.disk(node).device()?, WRITES_PER_SECOND)?;
            let deadline = Instant::now() + SEEN_WITHIN;
            while throttle.writes()? == 0 {
                ensure!(Instant::now() < deadline, "node {node} has not written within {SEEN_WITHIN:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done(None, Mending::Throttle(throttle))
        }
        Class::DiskFull => {
            cluster.disk(node).fill()?;
            done(None, Mending::Space)
        }
        Class::BitRot => rot::inject(cluster, node, random).await,
        Class::DiskLoss => {
            process::kill(cluster, &[node]).await?;
            cluster.disk(node).wipe()?;
            done(None, Mending::Anew)
        }
        other => bail!("{other:?} is no fault of disks"),
    }
}

/// Gives a node's disk its power back, and starts the node.
pub async fn power_up(cluster: &mut Cluster, node: usize, class: Class) -> Result<()> {
    if cluster.process(node).is_some() {
        process::kill(cluster, &[node]).await?;
    }
    cluster.disk(node).power_up()?;
    if class == Class::PowerLoss {
        ensure!(
            cluster.disk(node).has_lost_what_was_not_synced()?,
            "node {node} lost its power, and nothing that was not synced"
        );
    }
    cluster.restart(node)
}
