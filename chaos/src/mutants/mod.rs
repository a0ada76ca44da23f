//! Known bugs of the system, and the smallest scenario that shows each: a check that was never seen to fail shows nothing. docs/mutants.md has the table.
//!
//! A [`Case`] names in advance the checks by which its mutant may be caught: what else goes wrong with it does not count, nor does a scenario that fails
//! without it.

mod one_node;
mod power;
mod replicas;
pub mod stage;

use crate::cluster::Installation;
use crate::verdict::Violation;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The variable that switches mutants on.
const VARIABLE: &str = "RAGGED_MUTANT";
/// How long a scenario may take in all; one that hangs has shown nothing.
const SCENARIO_TIMEOUT: Duration = Duration::from_secs(150);

/// What is done to a cluster, and looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scenario {
    Documents,
    Segments,
    PowerLoss,
    LostLog,
    Purge,
    Jobs,
    Formation,
    Metadata,
    KilledAll,
    IsolatedFollower,
    IsolatedLeader,
    SecondVote,
    Snapshot,
    KilledFollower,
    KilledLeaders,
    NewNode,
}

/// A mutant, where it shows, and by which checks.
struct Case {
    mutant: &'static str,
    scenario: Scenario,
    checks: &'static [&'static str],
}

const fn case(mutant: &'static str, scenario: Scenario, checks: &'static [&'static str]) -> Case {
    Case { mutant, scenario, checks }
}

const CASES: &[Case] = &[
    case("skip-sync", Scenario::PowerLoss, &["durability"]),
    case("log-without-persisting", Scenario::PowerLoss, &["durability"]),
    case("ignore-watermark", Scenario::LostLog, &["detection"]),
    case("purge-before-durable", Scenario::Purge, &["durability", "recovery"]),
    case("drop-key-prefix", Scenario::Documents, &["isolation"]),
    case("apply-twice", Scenario::Documents, &["exactly-once"]),
    case("forget-idempotency", Scenario::Documents, &["exactly-once"]),
    case("delete-not-done", Scenario::Documents, &["deletes"]),
    case("delete-keeps-rows", Scenario::Documents, &["search"]),
    case("update-keeps-chunks", Scenario::Documents, &["counts"]),
    case("search-misses-fresh", Scenario::Documents, &["search"]),
    case("merge-drops-shard", Scenario::Documents, &["search"]),
    case("filter-ignored", Scenario::Documents, &["filter"]),
    case("listing-skips", Scenario::Documents, &["listing"]),
    case("import-answers-early", Scenario::Documents, &["durability"]),
    case("lose-tail", Scenario::Segments, &["search"]),
    case("ignore-deletions", Scenario::Segments, &["deletions"]),
    case("skip-checksum", Scenario::Segments, &["corruption"]),
    case("vectors-swapped", Scenario::Jobs, &["search"]),
    case("lose-job-stage", Scenario::Jobs, &["jobs"]),
    case("reuse-replica-id", Scenario::Formation, &["formation"]),
    case("metadata-not-asked", Scenario::Metadata, &["metadata"]),
    case("vote-without-persisting", Scenario::SecondVote, &["durability"]),
    case("membership-forgotten", Scenario::KilledAll, &["recovery"]),
    case("stale-strong-read", Scenario::IsolatedFollower, &["strong-read"]),
    case("token-not-awaited", Scenario::IsolatedFollower, &["session"]),
    case("unconfirmed-read-index", Scenario::IsolatedLeader, &["strong-read"]),
    case("acknowledge-before-majority", Scenario::IsolatedLeader, &["durability"]),
    case("install-torn-snapshot", Scenario::Snapshot, &["replicas"]),
    case("snapshot-misses-rows", Scenario::Snapshot, &["replicas"]),
    case("install-over-old-rows", Scenario::Snapshot, &["replicas"]),
    case("mark-before-rows", Scenario::KilledFollower, &["replicas"]),
    case("unknown-as-refused", Scenario::KilledLeaders, &["refusals"]),
    case("retry-unknown-write", Scenario::KilledLeaders, &["exactly-once"]),
    case("answers-while-filled", Scenario::NewNode, &["new-node"]),
];

impl Scenario {
    async fn run(self, installation: &Installation) -> Result<Vec<Violation>> {
        use stage::Stage;
        let mut stage = match self {
            Scenario::Formation => return replicas::formation(installation).await,
            Scenario::NewNode => return replicas::new_node(installation).await,
            Scenario::PowerLoss | Scenario::LostLog => Stage::unarmed(1, installation).await?,
            Scenario::KilledAll | Scenario::IsolatedLeader => Stage::unarmed(replicas::NODES, installation).await?,
            Scenario::Documents | Scenario::Segments | Scenario::Purge | Scenario::Jobs => Stage::armed(1, installation).await?,
            _ => Stage::armed(replicas::NODES, installation).await?,
        };
        match self {
            Scenario::Documents => one_node::documents(&mut stage).await,
            Scenario::Segments => one_node::segments(&mut stage).await,
            Scenario::PowerLoss => one_node::power_loss(&mut stage).await,
            Scenario::LostLog => one_node::lost_log(&mut stage).await,
            Scenario::Purge => one_node::purge(&mut stage).await,
            Scenario::Jobs => one_node::jobs(&mut stage).await,
            Scenario::Metadata => replicas::metadata(&mut stage).await,
            Scenario::KilledAll => replicas::killed_all(&mut stage).await,
            Scenario::IsolatedFollower => replicas::isolated_follower(&mut stage).await,
            Scenario::IsolatedLeader => replicas::isolated_leader(&mut stage).await,
            Scenario::SecondVote => replicas::second_vote(&mut stage).await,
            Scenario::Snapshot => replicas::snapshot(&mut stage).await,
            Scenario::KilledFollower => replicas::killed_follower(&mut stage).await,
            Scenario::KilledLeaders => replicas::killed_leaders(&mut stage).await,
            Scenario::Formation | Scenario::NewNode => Ok(()), // they return above
        }
        // What was found before something stood in the way was found.
        .or_else(|fault| if stage.found.is_empty() { Err(fault) } else { Ok(()) })?;
        Ok(stage.found)
    }

    async fn run_in_time(self, installation: &Installation) -> Result<Vec<Violation>> {
        tokio::time::timeout(SCENARIO_TIMEOUT, self.run(installation)).await.context("the scenario did not end in time")?
    }
}

/// What came of a mutant.
enum Fate {
    Caught(Violation),
    Missed(String),
}

/// A line of what a build for tests has: `mutant` or `point`, its name, when nodes come by, what it is.
pub struct Listed {
    /// Its name.
    pub name: String,
    /// When nodes come by; of points only.
    pub moment: String,
    /// What it is.
    pub meaning: String,
}

/// What a build for tests has of a kind.
pub fn list(installation: &Installation, kind: &str) -> Result<Vec<Listed>> {
    let output = std::process::Command::new(&installation.binary).arg("testing").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut listed = Vec::new();
    for line in text.lines() {
        if let [of, name, moment, meaning] = line.split('\t').collect::<Vec<_>>()[..]
            && of == kind
        {
            listed.push(Listed { name: name.into(), moment: moment.into(), meaning: meaning.into() });
        }
    }
    let file = installation.binary.display();
    ensure!(!listed.is_empty(), "{file} has no {kind}: build it with `--features mutants,failpoints`");
    Ok(listed)
}

/// Those that were asked for; all when none was.
pub fn choose(listed: Vec<Listed>, names: &[String]) -> Result<Vec<Listed>> {
    if let Some(unknown) = names.iter().find(|name| !listed.iter().any(|one| one.name == **name)) {
        bail!("there is no {unknown}");
    }
    Ok(listed.into_iter().filter(|one| names.is_empty() || names.contains(&one.name)).collect())
}

/// Runs each mutant's scenario, and says which were caught; whether all were.
pub async fn run(installation: Installation, names: Vec<String>) -> Result<bool> {
    let mutants = choose(list(&installation, "mutant")?, &names)?;
    let begun = Instant::now();
    let mut by_scenario: BTreeMap<Scenario, Vec<(&Listed, &Case)>> = BTreeMap::new();
    let mut fates: Vec<(&Listed, &'static str, Fate)> = Vec::new();
    for mutant in &mutants {
        match CASES.iter().find(|case| case.mutant == mutant.name) {
            Some(case) => by_scenario.entry(case.scenario).or_default().push((mutant, case)),
            None => fates.push((mutant, "none", Fate::Missed("no scenario is known for it".into()))),
        }
    }
    for (scenario, cases) in by_scenario {
        let name = name_of(scenario);
        let sound = is_sound(scenario, &installation).await;
        println!(
            "{name}: {}",
            sound.as_ref().map_or_else(ToString::to_string, |took| format!("passes without a mutant ({took:.1?})"))
        );
        for (mutant, case) in cases {
            let fate = match &sound {
                Ok(_) => fate_of(&installation, case).await,
                Err(why) => Fate::Missed(why.clone()),
            };
            match &fate {
                Fate::Caught(violation) => println!("  {}: caught by {}: {}", mutant.name, violation.check, violation.what),
                Fate::Missed(why) => println!("  {}: MISSED: {why}", mutant.name),
            }
            fates.push((mutant, name, fate));
        }
    }
    tell(&fates, begun.elapsed());
    Ok(fates.iter().all(|(_, _, fate)| matches!(fate, Fate::Caught(_))))
}

/// Whether a scenario passes on nodes that are as they should be; how long that took.
async fn is_sound(scenario: Scenario, installation: &Installation) -> Result<Duration, String> {
    let begun = Instant::now();
    match scenario.run_in_time(installation).await {
        Ok(found) if found.is_empty() => Ok(begun.elapsed()),
        Ok(found) => Err(format!("FAILS WITHOUT A MUTANT: {}", shown(&found))),
        Err(fault) => Err(format!("COULD NOT BE PLAYED: {fault:#}")),
    }
}

async fn fate_of(installation: &Installation, case: &Case) -> Fate {
    let mut mutated = installation.clone();
    mutated.environment.push((VARIABLE.into(), case.mutant.into()));
    match case.scenario.run_in_time(&mutated).await {
        Ok(found) => match found.iter().find(|violation| case.checks.contains(&violation.check)) {
            Some(violation) => Fate::Caught(violation.clone()),
            None if found.is_empty() => Fate::Missed("the scenario passes with it".into()),
            None => Fate::Missed(format!("not by {}, but: {}", case.checks.join(" or "), shown(&found))),
        },
        Err(fault) => {
            Fate::Missed(format!("not by {}, but the scenario could not be played: {fault:#}", case.checks.join(" or ")))
        }
    }
}

fn shown(found: &[Violation]) -> String {
    let lines: Vec<String> = found.iter().take(4).map(|violation| format!("{}: {}", violation.check, violation.what)).collect();
    lines.join("; ")
}

fn name_of(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::Documents => "documents",
        Scenario::Segments => "segments",
        Scenario::PowerLoss => "power-loss",
        Scenario::LostLog => "lost-log",
        Scenario::Purge => "purge",
        Scenario::Jobs => "jobs",
        Scenario::Formation => "formation",
        Scenario::Metadata => "metadata",
        Scenario::KilledAll => "killed-all",
        Scenario::IsolatedFollower => "isolated-follower",
        Scenario::IsolatedLeader => "isolated-leader",
        Scenario::SecondVote => "second-vote",
        Scenario::Snapshot => "snapshot",
        Scenario::KilledFollower => "killed-follower",
        Scenario::KilledLeaders => "killed-leaders",
        Scenario::NewNode => "new-node",
    }
}

fn tell(fates: &[(&Listed, &'static str, Fate)], took: Duration) {
    println!("\n{:<28} {:<18} {:<8} by", "mutant", "scenario", "fate");
    for (mutant, scenario, fate) in fates {
        let (fate, by) = match fate {
            Fate::Caught(violation) => ("caught", violation.check),
            Fate::Missed(_) => ("MISSED", "-"),
        };
        println!("{:<28} {scenario:<18} {fate:<8} {by}", mutant.name);
    }
    let caught = fates.iter().filter(|(_, _, fate)| matches!(fate, Fate::Caught(_))).count();
    println!("{caught} of {} mutants caught in {:.0} s", fates.len(), took.as_secs_f64());
}
