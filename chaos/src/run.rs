//! A run: a cluster, clients at work, blows from a schedule; then everything is mended, and what was promised is checked.

use crate::aftermath;
use crate::cluster::{Cluster, Installation};
use crate::fault::{self, Class, Injected};
use crate::history::{History, Operation};
use crate::report::{self, Aftermath, Fault, Report, WriteGaps};
use crate::resources::{self, Watch};
use crate::schedule::{Blow, Schedule};
use crate::verdict::{self, Counts, Violation};
use crate::workload::Workload;
use anyhow::{Context, Result};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Clients at work.
const CLIENTS: usize = 32;
/// A run of fewer operations in a second has shown nothing.
const OPERATIONS_PER_SECOND_MIN: f64 = 100.0;
/// How long the cluster may take to be whole after everything has been mended.
pub const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// What is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nodes of the cluster.
    pub nodes: usize,
    /// Classes of faults.
    pub classes: Vec<Class>,
    /// Classes that cannot be injected here, and why.
    pub missing: BTreeMap<Class, &'static str>,
    /// How long the cluster is broken.
    pub lasts: Duration,
    /// What everything is drawn from.
    pub seed: u64,
    /// The command that draws the same faults again.
    pub command: String,
    /// What nodes are started from.
    pub installation: Installation,
}

/// Runs.
pub async fn run(options: Options) -> Result<Report> {
    let mut cluster =
        Cluster::start(options.nodes, options.installation.clone()).await.context("the cluster did not come about")?;
    let watch = Watch::start(cluster.processes());
    let workload = Workload::start(&cluster, CLIENTS, options.seed).await?;
    let history = workload.history().clone();
    let mut broken =
        Broken { now: Vec::new(), faults: Vec::new(), violations: Vec::new(), not_now: Vec::new(), history: history.clone() };
    let struck = strike(&options, &mut cluster, &mut broken).await;
    let seconds = history.now().as_secs_f64();
    let mended = broken.mend_all(&mut cluster).await;
    let whole = cluster.until_whole(RECOVERY_MAX).await;
    let history = workload.stop().await;
    broken.note_deserter(&mut cluster)?;

    // A harness that fails does not hide what it has seen before.
    let mut failure = struck.and(mended).err();
    let mut aftermath = Aftermath::default();
    match &whole {
        Ok(_) => match aftermath::check(&cluster, &history, options.seed, &mut broken.violations).await {
            Ok(looked_at) => aftermath = looked_at,
            Err(fault) => broken.violated("recovery", format!("{fault:#}")),
        },
        Err(fault) if failure.is_none() => broken.violated("recovery", fault.to_string()),
        Err(fault) => failure = failure.map(|failure| failure.context(format!("and then {fault:#}"))),
    }
    broken.note_deserter(&mut cluster)?;
    let (mut violations, not_now) = (broken.violations, broken.not_now);
    let peaks = watch.peaks();
    violations.extend(resources::check(&peaks));
    let operations = history.operations();
    violations.extend(verdict::check_history(&operations));
    let gaps = WriteGaps::new(&operations, seconds);
    let mut faults = broken.faults;
    for fault in &mut faults {
        let (begun, mended) = (Duration::from_millis(fault.begun_ms), Duration::from_millis(fault.mended_ms));
        fault.writes_waited_ms = gaps.of_fault(begun, mended).as_millis() as u64;
    }
    let mut injections: BTreeMap<Class, usize> = BTreeMap::new();
    faults.iter().for_each(|fault| *injections.entry(fault.class).or_default() += 1);
    // What is asked when everything has been mended is not counted: it would hide that clients got nowhere before.
    let until_mended: Vec<Operation> = operations.iter().filter(|one| one.ended.as_secs_f64() <= seconds).cloned().collect();
    let operations_count = verdict::count(&until_mended);
    let failure = failure.map(|failure| format!("{failure:#}"));
    let kept = (!violations.is_empty() || failure.is_some()).then(|| cluster.keep_folder().to_owned());
    Ok(Report {
        seed: options.seed,
        command: options.command,
        nodes: options.nodes,
        seconds,
        invalid: invalid(operations_count, seconds, &options.classes, &injections),
        operations: operations_count,
        injections,
        overlapping_seconds: report::overlapping_seconds(&faults),
        recovery_ms: whole.ok().map(|took| took.as_millis() as u64),
        longest_write_gap_ms: gaps.longest().as_millis() as u64,
        violations,
        failure,
        not_now,
        missing: options.missing,
        kept,
        peaks,
        aftermath,
        faults,
        course: report::course(&operations, seconds),
    })
}

/// Why a run has shown nothing, if it has not.
fn invalid(operations: Counts, seconds: f64, classes: &[Class], injections: &BTreeMap<Class, usize>) -> Vec<String> {
    let mut why = Vec::new();
    let rate = operations.done as f64 / seconds;
    if rate < OPERATIONS_PER_SECOND_MIN {
        why.push(format!("{rate:.0} operations a second are too few to show anything"));
    }
    let never: BTreeSet<String> =
        classes.iter().filter(|class| !injections.contains_key(class)).map(|class| class.name()).collect();
    if !never.is_empty() {
        why.push(format!("these faults never took effect: {never:?}"));
    }
    why
}

/// What is broken now, and what was.
struct Broken {
    /// With their places among all faults.
    now: Vec<(usize, Injected)>,
    faults: Vec<Fault>,
    violations: Vec<Violation>,
    /// Faults that could not be injected when their turn came, and why.
    not_now: Vec<String>,
    history: std::sync::Arc<History>,
}

impl Broken {
    fn now_ms(&self) -> u64 {
        self.history.now().as_millis() as u64
    }

    async fn inject(&mut self, class: Class, cluster: &mut Cluster, random: &mut StdRng) -> Result<()> {
        let begun_ms = self.now_ms();
        let mut injected =
            fault::inject(class, cluster, random).await.with_context(|| format!("{class:?} could not be injected"))?;
        if let Some(what) = injected.violation.take() {
            self.violated(if class == Class::BitRot { "bit-rot" } else { "process" }, what);
        }
        let (nodes, seen) = (injected.nodes.clone(), injected.seen.clone());
        let fault =
            Fault { class, kind: class.kind(), nodes, begun_ms, mended_ms: begun_ms, seen, whole_ms: None, writes_waited_ms: 0 };
        println!("{:>7.1} s  {fault}", begun_ms as f64 / 1e3);
        self.now.push((self.faults.len(), injected));
        self.faults.push(fault);
        Ok(())
    }

    async fn mend_all(&mut self, cluster: &mut Cluster) -> Result<()> {
        // The last one first: a process that stands still goes on before the network that it needs is looked at.
        while let Some((place, mut injected)) = self.now.pop() {
            let mended = fault::mend(&mut injected, cluster).await;
            self.faults[place].mended_ms = self.now_ms();
            mended.with_context(|| format!("{:?} of {:?} could not be mended", injected.class, injected.nodes))?;
        }
        Ok(())
    }

    fn violated(&mut self, check: &'static str, what: String) {
        self.violations.push(Violation { check, what });
    }

    /// Notes a node that has ended although nobody told it to.
    fn note_deserter(&mut self, cluster: &mut Cluster) -> Result<()> {
        if let Some((node, status)) = cluster.deserter()? {
            let what = format!("node {node} ended by itself with {status}: {}", last_lines(cluster, node));
            if !self.violations.iter().any(|violation| violation.what == what) {
                self.violated("process", what);
            }
        }
        Ok(())
    }

    /// Waits until the cluster is whole; that it comes to be is a promise.
    async fn until_whole(&mut self, cluster: &Cluster) -> Option<Duration> {
        let whole = cluster.until_whole(RECOVERY_MAX).await;
        whole.inspect_err(|fault| self.violations.push(Violation { check: "recovery", what: fault.to_string() })).ok()
    }
}

/// Breaks and mends for as long as the run lasts, or until a promise was seen to be broken.
async fn strike(options: &Options, cluster: &mut Cluster, broken: &mut Broken) -> Result<()> {
    let mut schedule = Schedule::new(options.seed, options.classes.clone());
    let end = Instant::now() + options.lasts;
    while Instant::now() < end && broken.violations.is_empty() {
        let Some(Blow { classes, lasts, quiet, details }) = schedule.next() else {
            tokio::time::sleep_until(end.into()).await;
            break;
        };
        let is_alone = classes.iter().any(|class| class.is_alone());
        if is_alone && broken.until_whole(cluster).await.is_none() {
            break;
        }
        let mut random = StdRng::seed_from_u64(details);
        for class in classes {
            // What another fault has done stands in the way sometimes. What is done to a whole cluster must be possible.
            match broken.inject(class, cluster, &mut random).await {
                Err(fault) if !is_alone => {
                    broken.note_deserter(cluster)?;
                    println!("{:>7.1} s  not now: {fault:#}", broken.now_ms() as f64 / 1e3);
                    broken.not_now.push(format!("{fault:#}"));
                }
                outcome => outcome?,
            }
        }
        tokio::time::sleep(lasts).await;
        broken.mend_all(cluster).await?;
        if is_alone {
            let whole = broken.until_whole(cluster).await;
            broken
                .faults
                .iter_mut()
                .next_back()
                .into_iter()
                .for_each(|fault| fault.whole_ms = whole.map(|took| took.as_millis() as u64));
        }
        tokio::time::sleep(quiet).await;
        broken.note_deserter(cluster)?;
    }
    Ok(())
}

fn last_lines(cluster: &Cluster, node: usize) -> String {
    let log = std::fs::read_to_string(cluster.log_path(node)).unwrap_or_default();
    let lines: Vec<&str> = log.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
