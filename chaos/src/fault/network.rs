//! Faults of what runs between nodes: it is cut, lost, doubled, late, slow or reset; and strangers at the cluster ports.

use super::{Class, Injected, Mending, shuffled};
use crate::cluster::Cluster;
use crate::network::Rule;
use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// What makes packets late.
pub const LATE: &[&str] = &["netem", "delay", "200ms", "100ms"];
/// What makes a link slow.
pub const SLOW: &[&str] = &["tbf", "rate", "1mbit", "burst", "16kb", "latency", "400ms"];
/// The part of packets that chance picks for a rule.
const A_THIRD: &str = "0.33";
/// How long it may take until a packet has met a rule: nodes that know each other talk several times a second.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
/// Connections of a stranger to each node.
const STRANGERS: usize = 32;
/// Bytes that a stranger sends at most.
const GARBAGE_MAX: usize = 64 << 10;
/// How long a node may take to let a stranger go who sends garbage.
const GARBAGE_ANSWER: Duration = Duration::from_secs(5);

/// Does it to the network.
pub async fn inject(class: Class, cluster: &mut Cluster, random: &mut StdRng) -> Result<Injected> {
    let order = shuffled(cluster, random);
    let one = order[0];
    let others = &order[1..];
    let done = |nodes, mending| Ok(Injected { class, nodes, seen: None, violation: None, mending });
    let ways_out = || others.iter().map(|other| (one, *other)).collect::<Vec<_>>();
    match class {
        Class::Isolate => done(vec![one], cut(cluster, both_ways(&[one], others))?),
        Class::OneWay => done(vec![one], cut(cluster, ways_out())?),
        Class::Split => {
            let (here, there) = order.split_at(random.random_range(1..order.len()));
            done(here.to_vec(), cut(cluster, both_ways(here, there))?)
        }
        Class::Bridge => done(vec![one, others[0]], cut(cluster, both_ways(&[one], &others[..1]))?),
        Class::Ring => {
            let is_neighbour = |one: usize, other: usize| (one + 1) % order.len() == other || (other + 1) % order.len() == one;
            let places = (0..order.len()).flat_map(|one| (0..order.len()).map(move |other| (one, other)));
            let apart = places.filter(|(one, other)| one != other && !is_neighbour(*one, *other));
            done(order.clone(), cut(cluster, apart.map(|(one, other)| (order[one], order[other])).collect())?)
        }
        Class::Loss => done(vec![one], apply(cluster, ways_out(), by_chance("filter", &["-j", "DROP"])).await?),
        Class::Duplicate => {
            // A double goes the way of its original: each has a rule of its own.
            let other = others[0];
            let gateway = cluster.network().address(other).to_string();
            let rule = by_chance("mangle", &["-j", "TEE", "--gateway", &gateway]);
            done(vec![one, other], apply(cluster, vec![(one, other)], rule).await?)
        }
        Class::Reset => {
            let target = ["-j", "REJECT", "--reject-with", "tcp-reset"].map(str::to_owned).to_vec();
            let rule = Rule { table: "filter", matches: ["-p", "tcp"].map(str::to_owned).to_vec(), target };
            done(vec![one], apply(cluster, ways_out(), rule).await?)
        }
        Class::Delay => done(vec![one], hold_back(cluster, one, LATE).await?),
        Class::SlowLink => done(vec![one], hold_back(cluster, one, SLOW).await?),
        Class::Garbage => {
            until_one_listens(cluster).await?;
            let strangers = order.iter().map(|node| {
                let bytes = (0..random.random_range(1..GARBAGE_MAX)).map(|_| random.random()).collect();
                let address = cluster.cluster_address(*node).to_owned();
                tokio::task::spawn_blocking(move || garbage(&address, bytes))
            });
            let let_go: usize = futures::future::try_join_all(strangers).await?.into_iter().sum();
            ensure!(let_go > 0, "no node let a stranger go who sent garbage");
            done(order, Mending::Nothing)
        }
        Class::HalfOpen => {
            until_one_listens(cluster).await?;
            let addresses = order.iter().flat_map(|node| std::iter::repeat_n(cluster.cluster_address(*node), STRANGERS));
            // One that is down takes none.
            let connections: Vec<TcpStream> = addresses.filter_map(|address| connect(address).ok()).collect();
            ensure!(!connections.is_empty(), "no node takes a connection");
            done(order, Mending::Connections(connections))
        }
        other => bail!("{other:?} is no fault of the network"),
    }
}

fn both_ways(here: &[usize], there: &[usize]) -> Vec<(usize, usize)> {
    here.iter().flat_map(|one| there.iter().flat_map(|other| [(*one, *other), (*other, *one)])).collect()
}

fn cut(cluster: &Cluster, cuts: Vec<(usize, usize)>) -> Result<Mending> {
    for (from, to) in &cuts {
        cluster.network().cut(*from, *to)?;
    }
    let (from, to) = *cuts.first().context("there is nothing to cut")?;
    if connects(cluster, from, to)? {
        cuts.iter().try_for_each(|(from, to)| cluster.network().mend(*from, *to))?;
        bail!("node {from} still reaches node {to} although that was cut");
    }
    Ok(Mending::Cuts(cuts))
}

fn by_chance(table: &'static str, target: &[&str]) -> Rule {
    let matches = ["-m", "statistic", "--mode", "random", "--probability", A_THIRD].map(str::to_owned).to_vec();
    Rule { table, matches, target: target.iter().map(|word| (*word).to_owned()).collect() }
}

/// Adds a rule for each way, and waits until packets have met it.
async fn apply(cluster: &Cluster, ways: Vec<(usize, usize)>, rule: Rule) -> Result<Mending> {
    for (from, to) in &ways {
        cluster.network().add_rule(*from, *to, &rule)?;
    }
    let from = ways.first().context("there is no way to break")?.0;
    let met = until(|| Ok(cluster.network().packets_by_rules(from, rule.table)? > 0)).await;
    if let Err(fault) = met {
        ways.iter().try_for_each(|(from, to)| cluster.network().remove_rule(*from, *to, &rule))?;
        return Err(fault.context("no packet met the rule"));
    }
    Ok(Mending::Rules(ways, rule))
}

/// Holds back what a node sends, and waits until that was seen.
async fn hold_back(cluster: &Cluster, node: usize, queue: &[&str]) -> Result<Mending> {
    cluster.network().add_queue(node, queue)?;
    // The kernel counts what it has sent through the queue: ` Sent 1234 bytes 12 pkt (...)`.
    let sent = || Ok(cluster.network().queue(node)?.split("Sent ").nth(1).is_some_and(|rest| !rest.starts_with("0 ")));
    if let Err(fault) = until(sent).await {
        cluster.network().remove_queue(node)?;
        return Err(fault.context("no packet met the queue"));
    }
    Ok(Mending::Queue)
}

async fn until(mut met: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + SEEN_WITHIN;
    while !met()? {
        ensure!(Instant::now() < deadline, "not within {SEEN_WITHIN:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Waits until a node takes connections of strangers: all may have been killed a moment ago, and be on their way back.
async fn until_one_listens(cluster: &Cluster) -> Result<()> {
    let listens = || Ok((0..cluster.len()).any(|node| connect(cluster.cluster_address(node)).is_ok()));
    until(listens).await.context("no node takes connections")
}

fn connect(address: &str) -> Result<TcpStream> {
    TcpStream::connect_timeout(&address.parse()?, crate::PROBE_TIMEOUT).with_context(|| format!("{address} takes no connection"))
}

/// Sends garbage to a node again and again; how many strangers it let go. One that is down, or stands still, lets none go, and is not tried again.
fn garbage(address: &str, bytes: Vec<u8>) -> usize {
    let is_let_go = |_: &usize| {
        let Ok(mut stream) = connect(address) else { return false };
        let within = stream.set_read_timeout(Some(GARBAGE_ANSWER)).and_then(|()| stream.set_write_timeout(Some(GARBAGE_ANSWER)));
        // The node may have enough before it has all.
        let _ = stream.write_all(&bytes);
        let gone = stream.take(GARBAGE_MAX as u64).read_to_end(&mut Vec::new());
        within.is_ok() && !gone.is_err_and(|fault| matches!(fault.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    };
    (0..STRANGERS).take_while(is_let_go).count()
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
