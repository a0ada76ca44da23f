//! `ragged-chaos`: starts a cluster of the real binary, breaks it in the ways that a machine room does, and checks what clients were told against what
//! docs/consistency.md promises.
//!
//! A [`schedule`] drawn from a seed says which [`fault`] comes when to the [`cluster`], its [`network`], and the nodes' [`disk`]s and [`clock`]s; a [`workload`] writes its
//! [`history`] meanwhile, and [`resources`] are watched; the [`verdict`] is by [`linearizability`], checked again by [`intervals`], and by the [`aftermath`].
//! A [`run`] is all of it; its [`report`] becomes a [`page`].

mod aftermath;
mod clock;
mod cluster;
mod command;
mod disk;
mod fault;
mod history;
mod intervals;
mod linearizability;
mod mutants;
mod network;
mod page;
mod points;
mod report;
mod resources;
mod run;
mod schedule;
mod throttle;
mod verdict;
mod workload;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use cluster::Installation;
use fault::Class;
use report::{Aftermath, Report};
use run::Options;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long a connection may take that is to show whether one comes about.
const PROBE_TIMEOUT: Duration = Duration::from_millis(300);

/// Exit codes: what a run has shown.
const VIOLATED: u8 = 1;
const HARNESS_FAILED: u8 = 2;
const INVALID: u8 = 3;

/// Breaks clusters on purpose, and checks what they promised.
#[derive(Parser)]
#[command(
    name = "ragged-chaos",
    version,
    after_help = "Exit codes: 0 every promise was kept, 1 one was not, 2 the run itself failed, 3 it has shown nothing"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a cluster, break it, and check it
    Run(Run),
    /// Do again what a seed gives, with the default nodes, faults and time
    Replay {
        /// The seed
        seed: u64,
        /// The program `ragged`
        #[arg(long, value_name = "FILE", default_value = "target/release/ragged")]
        binary: PathBuf,
    },
    /// List the faults, and which of them can be injected here
    List {
        /// Nodes of the cluster
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=15))]
        nodes: u8,
    },
    /// Switch known bugs on, and see that the checks find them; needs a build with the feature `mutants`
    Mutants(ForTests),
    /// Kill a node at each of the named points of the code, and check what it comes back with; needs a build with the feature `failpoints`
    Points(ForTests),
    /// Say by the exit code whether a connection comes about; run inside a node's network
    #[command(hide = true)]
    Probe {
        /// Where to
        address: SocketAddr,
    },
}

#[derive(clap::Args)]
struct Run {
    /// Nodes of the cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=15))]
    nodes: u8,
    /// Faults, separated by commas; all that can be injected here, by default
    #[arg(long, value_delimiter = ',')]
    faults: Vec<Class>,
    /// Seconds for which it is broken
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// What everything is drawn from; another one each time, by default
    #[arg(long)]
    seed: Option<u64>,
    /// Folder for the report
    #[arg(long, value_name = "FOLDER")]
    report: Option<PathBuf>,
    /// The program `ragged`
    #[arg(long, value_name = "FILE", default_value = "target/release/ragged")]
    binary: PathBuf,
}

#[derive(clap::Args)]
struct ForTests {
    /// Only these; all, by default
    names: Vec<String>,
    /// The program `ragged`, in a build for tests
    #[arg(long, value_name = "FILE", default_value = "target/release/ragged-mutants")]
    binary: PathBuf,
}

impl ForTests {
    /// Does something with the program; whether that showed what it should.
    fn with<F: Future<Output = Result<bool>>>(self, work: impl FnOnce(Installation, Vec<String>) -> F) -> Result<bool> {
        let installation = installation(&self.binary)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(work(installation, self.names))
    }
}

fn ended_well(result: Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(VIOLATED),
        Err(fault) => {
            eprintln!("ragged-chaos: {fault:#}");
            ExitCode::from(HARNESS_FAILED)
        }
    }
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Probe { address } => match TcpStream::connect_timeout(&address, PROBE_TIMEOUT) {
            Ok(_) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Command::List { nodes } => {
            for class in Class::value_variants() {
                let here = class.missing(usize::from(nodes)).map(|why| format!(" Not here: {why}.")).unwrap_or_default();
                println!("{:<16} {}.{here}", class.name(), class.meaning().trim_end_matches('.'));
            }
            ExitCode::SUCCESS
        }
        Command::Run(run) => ended(start(run)),
        Command::Mutants(of) => ended_well(of.with(|installation, names| async { mutants::run(installation, names).await })),
        Command::Points(of) => ended_well(of.with(|installation, names| async { points::run(installation, names).await })),
        Command::Replay { seed, binary } => {
            ended(start(Run { nodes: 3, faults: Vec::new(), seconds: 60, seed: Some(seed), report: None, binary }))
        }
    }
}

fn ended(run: Result<Report>) -> ExitCode {
    match run {
        Ok(report) if !report.violations.is_empty() => ExitCode::from(VIOLATED),
        Ok(Report { failure: Some(_), .. }) => ExitCode::from(HARNESS_FAILED),
        Ok(report) if !report.invalid.is_empty() => ExitCode::from(INVALID),
        Ok(_) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("ragged-chaos: the run itself failed, which says nothing of the cluster: {fault:#}");
            ExitCode::from(HARNESS_FAILED)
        }
    }
}

/// What nodes are started from. Called before there are threads: from then on the process has mounts of its own.
fn installation(binary: &Path) -> Result<Installation> {
    if command::is_root() {
        command::keep_mounts_private()?;
    }
    let binary = binary.canonicalize().with_context(|| format!("{}: build it first, or say --binary", binary.display()))?;
    Ok(Installation { binary, model_dir: std::env::var_os("RAGGED_MODEL_DIR").map(PathBuf::from), environment: Vec::new() })
}

fn start(run: Run) -> Result<Report> {
    let nodes = usize::from(run.nodes);
    let wanted = if run.faults.is_empty() { Class::value_variants() } else { &run.faults };
    let missing: BTreeMap<Class, &'static str> =
        wanted.iter().filter_map(|class| class.missing(nodes).map(|why| (*class, why))).collect();
    for (class, why) in &missing {
        println!("{} cannot be injected here: {why}", class.name());
    }
    ensure!(run.faults.is_empty() || missing.is_empty(), "faults were asked for that cannot be injected here");
    let classes: Vec<Class> = wanted.iter().copied().filter(|class| !missing.contains_key(class)).collect();
    let seed = run.seed.unwrap_or_else(rand::random);
    let installation = installation(&run.binary)?;
    let names = classes.iter().map(|class| class.name()).collect::<Vec<_>>().join(",");
    let again = format!("ragged-chaos run --seed {seed} --nodes {nodes} --seconds {} --faults {names}", run.seconds);
    println!("{again}");
    let lasts = Duration::from_secs(run.seconds);
    let options = Options { nodes, classes, missing, lasts, seed, command: again, installation };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(run::run(options))?;
    tell(&report);
    if let Some(folder) = run.report {
        write(&report, &folder)?;
    }
    Ok(report)
}

fn tell(report: &Report) {
    let Report { operations, .. } = report;
    println!(
        "{} operations answered, {} refused, {} of unknown outcome in {:.0} s ({:.0} a second)",
        operations.done,
        operations.refused,
        operations.unknown,
        report.seconds,
        operations.done as f64 / report.seconds
    );
    let injected: Vec<String> = report.injections.iter().map(|(class, count)| format!("{} {count}", class.name())).collect();
    println!("injected {}: {}; two at once for {:.0} s", report.faults.len(), injected.join(", "), report.overlapping_seconds);
    println!(
        "whole again after {}; no write was acknowledged for {} ms at the longest",
        report.recovery_ms.map_or("-".to_owned(), |ms| format!("{ms} ms")),
        report.longest_write_gap_ms
    );
    let Aftermath { read, found, gone } = report.aftermath;
    println!("{read} documents read through every node: {found} there and found, {gone} deleted and not found");
    for (node, peak) in report.peaks.iter().enumerate() {
        let memory = peak.memory_bytes >> 20;
        println!("node {node}: at most {memory} MiB, {} descriptors, {} threads", peak.descriptors, peak.threads);
    }
    for violation in &report.violations {
        println!("VIOLATION ({}): {}", violation.check, violation.what);
    }
    for why in &report.invalid {
        println!("INVALID: {why}");
    }
    if !report.not_now.is_empty() {
        println!("{} faults could not be injected when their turn came", report.not_now.len());
    }
    if let Some(fault) = &report.failure {
        println!("the run itself failed, which says nothing of the cluster: {fault}");
    }
    match &report.kept {
        Some(folder) => println!("the nodes' data and logs are in {}", folder.display()),
        None if report.violations.is_empty() && report.invalid.is_empty() && report.failure.is_none() => {
            println!("every promise was kept")
        }
        None => {}
    }
}

fn write(report: &Report, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(format!("run-{}.json", report.seed));
    std::fs::write(&path, serde_json::to_vec_pretty(report)?).with_context(|| path.display().to_string())?;
    let path = path.with_extension("html");
    std::fs::write(&path, page::page(report)).with_context(|| path.display().to_string())?;
    println!("report: {}", path.display());
    Ok(())
}
