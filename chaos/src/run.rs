//! A run: a cluster, clients at work, blows from a schedule; then everything is mended, and what was promised is checked.

use crate::cluster::{Cluster, Installation};
use crate::fault::{self, Class, Injected};
use crate::history::{Action, History, Outcome};
use crate::schedule::{Blow, Schedule};
use crate::verdict::{self, Counts, Violation};
use crate::workload::{self, Workload};
use anyhow::{Context, Result};
use rand::seq::SliceRandom;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Clients at work.
const CLIENTS: usize = 16;
/// A run of fewer operations in a second has shown nothing.
const OPERATIONS_PER_SECOND_MIN: f64 = 100.0;
/// How long the cluster may take to be whole after everything has been mended.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// Documents that are read once more, through every node, and searched.
const READ_AGAIN: usize = 400;

/// What is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nodes of the cluster.
    pub nodes: usize,
    /// Classes of faults.
    pub classes: Vec<Class>,
    /// How long the cluster is broken.
    pub lasts: Duration,
    /// What everything is drawn from.
    pub seed: u64,
    /// What nodes are started from.
    pub installation: Installation,
}

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What it was drawn from.
    pub seed: u64,
    /// Nodes of the cluster.
    pub nodes: usize,
    /// Seconds that it was broken for.
    pub seconds: f64,
    /// Operations, by what came of them.
    pub operations: Counts,
    /// How often each class was injected, and seen to take effect.
    pub injections: BTreeMap<Class, usize>,
    /// Blows of two faults at once.
    pub overlapping: usize,
    /// How long the cluster took to be whole after the end.
    pub recovery_ms: Option<u64>,
    /// What the longest time was in which no write was acknowledged.
    pub longest_write_gap_ms: u64,
    /// Promises that were not kept.
    pub violations: Vec<Violation>,
    /// Why the run has shown nothing, if it has not.
    pub invalid: Vec<String>,
    /// The nodes' data and logs, kept when something is wrong.
    pub kept: Option<PathBuf>,
    /// What was broken when: milliseconds from the beginning, and words.
    pub timeline: Vec<(u64, String)>,
}

/// Runs.
pub async fn run(options: Options) -> Result<Report> {
    let mut cluster =
        Cluster::start(options.nodes, options.installation.clone()).await.context("the cluster did not come about")?;
    let workload = Workload::start(&cluster, CLIENTS, options.seed).await?;
    let history = workload.history().clone();
    let mut broken = Broken::default();
    let struck = strike(&options, &mut cluster, &history, &mut broken).await;
    let seconds = history.now().as_secs_f64();
    let mended = broken.mend_all(&mut cluster, &history);
    let whole = cluster.until_whole(RECOVERY_MAX).await;
    let history = workload.stop().await;
    struck?;
    mended?;

    let mut report = Report {
        seed: options.seed,
        nodes: options.nodes,
        seconds,
        operations: Counts::default(),
        injections: broken.counts,
        overlapping: broken.overlapping,
        recovery_ms: whole.as_ref().ok().map(|took| took.as_millis() as u64),
        longest_write_gap_ms: 0,
        violations: broken.violations,
        invalid: Vec::new(),
        kept: None,
        timeline: broken.timeline,
    };
    match whole {
        Ok(_) => check_cluster(&cluster, &history, options.seed, &mut report).await?,
        Err(fault) => report.violations.push(Violation { check: "recovery", what: fault.to_string() }),
    }
    let operations = history.operations();
    report.operations = verdict::count(&operations);
    report.longest_write_gap_ms = longest_write_gap(&history, seconds).as_millis() as u64;
    report.violations.extend(verdict::check_history(&operations));
    let rate = report.operations.done as f64 / seconds;
    if rate < OPERATIONS_PER_SECOND_MIN {
        report.invalid.push(format!("{rate:.0} operations a second are too few to show anything"));
    }
    let missing: BTreeSet<Class> =
        options.classes.iter().copied().filter(|class| !report.injections.contains_key(class)).collect();
    if !missing.is_empty() {
        report.invalid.push(format!("these faults never took effect: {missing:?}"));
    }
    if !report.violations.is_empty() {
        report.kept = Some(cluster.keep_folder().to_owned());
    }
    Ok(report)
}

/// What is broken now, and what was.
#[derive(Default)]
struct Broken {
    now: Vec<Injected>,
    counts: BTreeMap<Class, usize>,
    overlapping: usize,
    violations: Vec<Violation>,
    timeline: Vec<(u64, String)>,
}

impl Broken {
    fn mend_all(&mut self, cluster: &mut Cluster, history: &History) -> Result<()> {
        // The last one first: a process that stands still goes on before the network that it needs is looked at.
        while let Some(injected) = self.now.pop() {
            fault::mend(&injected, cluster)?;
            self.note(history, format!("{:?} of {:?} mended", injected.class, injected.nodes));
        }
        Ok(())
    }

    fn note(&mut self, history: &History, what: String) {
        self.timeline.push((history.now().as_millis() as u64, what));
    }
}

/// Breaks and mends for as long as the run lasts.
async fn strike(options: &Options, cluster: &mut Cluster, history: &Arc<History>, broken: &mut Broken) -> Result<()> {
    let mut schedule = Schedule::new(options.seed, options.classes.clone());
    let end = Instant::now() + options.lasts;
    while Instant::now() < end {
        let Some(Blow { classes, lasts, quiet }) = schedule.next() else {
            tokio::time::sleep_until(end.into()).await;
            break;
        };
        broken.overlapping += usize::from(classes.len() > 1);
        for class in classes {
            let injected = fault::inject(class, cluster, schedule.random())
                .await
                .with_context(|| format!("{class:?} could not be injected"))?;
            broken.note(history, format!("{class:?} of {:?}", injected.nodes));
            *broken.counts.entry(class).or_default() += 1;
            broken.now.push(injected);
        }
        tokio::time::sleep(lasts).await;
        broken.mend_all(cluster, history)?;
        tokio::time::sleep(quiet).await;
        if let Some((node, status)) = cluster.deserter()? {
            let what = format!("node {node} ended by itself with {status}: {}", last_lines(cluster, node));
            broken.violations.push(Violation { check: "process", what });
            return Ok(());
        }
    }
    Ok(())
}

fn last_lines(cluster: &Cluster, node: usize) -> String {
    let log = std::fs::read_to_string(cluster.log_path(node)).unwrap_or_default();
    let lines: Vec<&str> = log.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// What can be asked of a whole cluster: its replicas are equal, and every document is read the same through every node and found by its words and its vector.
async fn check_cluster(cluster: &Cluster, history: &History, seed: u64, report: &mut Report) -> Result<()> {
    let deadline = Instant::now() + RECOVERY_MAX;
    loop {
        match verdict::check_replicas(&cluster.hashed_shards().await?, cluster.len()) {
            Ok(true) => break,
            Ok(false) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(200)).await,
            Ok(false) => {
                let what = format!("the replicas do not come to the same index within {RECOVERY_MAX:?}");
                report.violations.push(Violation { check: "replicas", what });
                break;
            }
            Err(violation) => {
                report.violations.push(violation);
                break;
            }
        }
    }
    let clients = (0..cluster.len()).map(|node| cluster.client(node)).collect::<Result<Vec<_>>>()?;
    let keys: BTreeSet<String> = history.operations().into_iter().map(|one| one.key).collect();
    let mut keys: Vec<String> = keys.into_iter().collect();
    keys.shuffle(&mut <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed));
    for (number, key) in keys.iter().take(READ_AGAIN).enumerate() {
        let mut last = None;
        for (node, client) in clients.iter().enumerate() {
            last = workload::read_last(client, history, node, key).await?;
        }
        if let Some(value) = last
            && !workload::is_found(&clients[number % clients.len()], key, value).await?
        {
            let what = format!("{key} holds value {value}, and is not found by it through node {}", number % clients.len());
            report.violations.push(Violation { check: "search", what });
        }
    }
    Ok(())
}

/// The longest time in which no write was acknowledged, while the cluster was broken.
fn longest_write_gap(history: &History, seconds: f64) -> Duration {
    let end = Duration::from_secs_f64(seconds);
    let operations = history.operations();
    let written = operations.iter().filter(|one| one.outcome == Outcome::Done && matches!(one.action, Action::Write(_)));
    let mut moments: Vec<Duration> = written.map(|one| one.ended).filter(|ended| *ended <= end).collect();
    moments.extend([Duration::ZERO, end]);
    moments.sort_unstable();
    moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}
