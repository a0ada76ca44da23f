//! Faults of processes: they are killed, stopped, stand still, and may open nothing more.

use super::{ASK_TIMEOUT, Class, Injected, Mending, shuffled};
use crate::cluster::Cluster;
use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use std::time::{Duration, Instant};

/// How long a node that is told to stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a node that is killed may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a node that is started again in turn may take to be ready, before the next is stopped.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a node that is starting may take to serve, before it may open nothing more.
const SERVES_WITHIN: Duration = Duration::from_secs(10);
/// How far a clock jumps at most.
const JUMP_MAX_MINUTES: i64 = 600;
/// How long a node may take to look at its clock.
const LOOKED_AT_WITHIN: Duration = Duration::from_secs(10);

/// Does it to processes.
pub async fn inject(class: Class, cluster: &mut Cluster, random: &mut StdRng) -> Result<Injected> {
    let order = shuffled(cluster, random);
    let one = order[0];
    let (mut seen, mut violation) = (None, None);
    let (nodes, mending) = match class {
        Class::Kill => (vec![one], Mending::Start),
        Class::KillLeader => (vec![by_leaders(cluster).await.last().copied().unwrap_or(one)], Mending::Start),
        Class::KillFollower => (vec![by_leaders(cluster).await.first().copied().unwrap_or(one)], Mending::Start),
        Class::KillMinority => (order[..(order.len() - 1) / 2].to_vec(), Mending::Start),
        Class::KillAll => (order, Mending::Start),
        Class::Stop => {
            violation = cluster.end(&[one], libc::SIGTERM, STOP_TIMEOUT).await?;
            (vec![one], Mending::Start)
        }
        Class::RollingRestart => {
            for node in &order {
                violation = violation.or(cluster.end(&[*node], libc::SIGTERM, STOP_TIMEOUT).await?);
                cluster.restart(*node)?;
                cluster.until_ready(*node, TURN_TIMEOUT).await?;
                cluster.until_whole(TURN_TIMEOUT).await?;
            }
            (order, Mending::Nothing)
        }
        Class::Pause | Class::LongPause => {
            cluster.signal(one, libc::SIGSTOP)?;
            if !stands_still(cluster, one).await? {
                cluster.signal(one, libc::SIGCONT)?;
                bail!("node {one} goes on although it was told to stand still");
            }
            (vec![one], Mending::Continue)
        }
        Class::Descriptors => {
            // One that is just starting may end when it can open nothing, and say why: only one that serves has promised to go on.
            cluster.until_ready(one, SERVES_WITHIN).await?;
            let process = cluster.process(one).with_context(|| format!("node {one} does not run"))?;
            let open = std::fs::read_dir(format!("/proc/{process}/fd"))?.count() as u64;
            // The numbers of those that are open may reach beyond their count: what the node has, it keeps.
            let before = limit_descriptors(cluster, one, open)?;
            let limits = std::fs::read_to_string(format!("/proc/{process}/limits"))?;
            let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
            ensure!(line.split_whitespace().nth(3) == Some(&open.to_string()), "the limit of open files stays: {line}");
            (vec![one], Mending::Descriptors(before))
        }
        Class::ClockJump => {
            let minutes = random.random_range(1..=JUMP_MAX_MINUTES) * if random.random() { 1 } else { -1 };
            let clock = cluster.clock(one)?;
            clock.set(60 * minutes)?;
            let before = clock.asked()?;
            let deadline = Instant::now() + LOOKED_AT_WITHIN;
            while clock.asked()? == before {
                if Instant::now() > deadline {
                    clock.set(0)?;
                    bail!("node {one} has not looked at its clock within {LOOKED_AT_WITHIN:?}");
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            seen = Some(format!("by {minutes} minutes"));
            (vec![one], Mending::Clock)
        }
        other => bail!("{other:?} is no fault of processes"),
    };
    if matches!(class, Class::Kill | Class::KillLeader | Class::KillFollower | Class::KillMinority | Class::KillAll) {
        violation = cluster.end(&nodes, libc::SIGKILL, KILL_TIMEOUT).await?;
    }
    Ok(Injected { class, nodes, seen, violation, mending })
}

/// Kills nodes at once, however they stand; none of them is there any more.
pub async fn kill(cluster: &mut Cluster, nodes: &[usize]) -> Result<()> {
    for node in nodes {
        cluster.signal(*node, libc::SIGKILL)?;
    }
    for node in nodes {
        cluster.ended(*node, KILL_TIMEOUT).await?;
    }
    Ok(())
}

/// Lets a node have so many files open; how many it could have before.
pub fn limit_descriptors(cluster: &Cluster, node: usize, count: u64) -> Result<u64> {
    let process = cluster.process(node).with_context(|| format!("node {node} does not run"))?;
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both limits live longer than the calls, which read the new one and write the old one; null stands for none.
    let answer = unsafe {
        libc::prlimit(process as i32, libc::RLIMIT_NOFILE, std::ptr::null(), &mut before);
        let limit = libc::rlimit { rlim_cur: count, ..before };
        libc::prlimit(process as i32, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut())
    };
    ensure!(answer == 0, "the limit of open files of node {node} cannot be set: {}", std::io::Error::last_os_error());
    Ok(before.rlim_cur)
}

/// The nodes, those that lead the fewest shards first, if any node says so.
async fn by_leaders(cluster: &Cluster) -> Vec<usize> {
    for node in 0..cluster.len() {
        let Ok(client) = cluster.client(node) else { continue };
        let Ok(Ok(mut members)) = tokio::time::timeout(ASK_TIMEOUT, client.cluster_nodes()).await else { continue };
        members.nodes.sort_by_key(|node| node.leaders);
        let numbers = members.nodes.iter().filter_map(|member| cluster.at_address(&member.address));
        return numbers.collect();
    }
    Vec::new()
}

/// Whether the process does not run: it is stopped, as the system says.
async fn stands_still(cluster: &Cluster, node: usize) -> Result<bool> {
    let process = cluster.process(node).context("the node does not run")?;
    for _ in 0..1_000 {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The state follows the name, which stands in parentheses and may hold anything.
        if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')) {
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(false)
}
