//! The simulated cluster: its nodes, what is between them, and what was seen of them. Everything in it is drawn from one seed.

use crate::clients;
use crate::disk::{Crash, Disk};
use crate::faults;
use crate::ledger::{Ledger, Rule, Verdict, Violation};
use crate::members;
use crate::mutants::Mutant;
use crate::network::{Conditions, Wire};
use crate::trace::Trace;
use parking_lot::Mutex;
use ragged_raft::group::{Beginning, Ground};
use ragged_raft::ids::{NodeId, ReplicaId, ShardId};
use ragged_raft::shard::group::ShardGroup;
use ragged_raft::simulation::{Fate, Host, Promise, chance};
use ragged_raft::{Store, StoreOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once, Weak};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

pub const SHARD: ShardId = ShardId(0);
/// Small, since opening a database costs what its buffers cost; a run writes much less.
const STORE: StoreOptions = StoreOptions { block_cache_bytes: 1 << 20, write_buffer_bytes: 2 << 20 };
/// After everything is mended, how long the group may take until it works again.
const RECOVERS_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked whether something is so.
const LOOKS_EVERY: Duration = Duration::from_millis(20);

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
pub struct Plot {
    pub seed: u64,
    pub mutant: Option<Mutant>,
    /// Whether what happens is printed.
    pub is_shown: bool,
}

/// What a run has come to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Hash of everything that happened, in its order.
    pub trace: u64,
    pub steps: u64,
    pub looks: u64,
    pub messages: u64,
    pub dropped: u64,
    pub faults: BTreeMap<&'static str, u64>,
    pub leaders: u64,
    pub changes: u64,
    pub entries: u64,
    pub writes: u64,
    pub reads: u64,
    pub unknown: u64,
    /// How long the group took to work again after everything was mended.
    pub recovered_ms: u64,
    pub virtual_ms: u64,
    pub violation: Option<Violation>,
}

/// A node.
struct Node {
    disk: Disk,
    /// Its id, once it has ever started.
    id: Option<NodeId>,
    host: Option<Arc<Host>>,
    /// Its replica, running or not.
    replica: Option<ReplicaId>,
    /// What runs on it, once it has started.
    group: Option<ShardGroup>,
    /// The store of what has been ended in order: what it was at is done to its end, and answered, until something else runs there.
    ending: Option<Arc<Store>>,
    /// Tells what runs on it from what ran before.
    running: u64,
}

pub struct World {
    pub mutant: Option<Mutant>,
    pub network: Mutex<Conditions>,
    /// Of a thousand syncs of a node, so many take long.
    pub slow_disks: Mutex<Vec<u32>>,
    pub counts: Mutex<Outcome>,
    nodes: Mutex<Vec<Node>>,
    ledger: Mutex<Ledger>,
    trace: Mutex<Trace>,
    violation: Mutex<Option<Violation>>,
    chance: Mutex<StdRng>,
    began: Instant,
    numbers: Mutex<u64>,
}

thread_local! {
    /// Panics on this thread: tokio keeps those of tasks from whoever does not wait for them.
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Has panics counted, in all runs to come.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let say = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            say(panic);
        }));
    });
}

/// Runs a seed to its end.
pub fn run(plot: Plot, folder: &Path) -> Outcome {
    count_panics();
    chance::seed(plot.seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let folder = folder.join(plot.seed.to_string());
    let outcome = runtime.block_on(async {
        let world = World::new(plot, &folder);
        let verdict = world.clone().live().await;
        world.outcome(verdict)
    });
    drop(runtime);
    let panicked = PANICS.take() > 0;
    let violation = Violation { rule: Rule::NothingPanics, what: "a task has panicked, see above".into() };
    let outcome = Outcome { violation: outcome.violation.or(panicked.then_some(violation)), ..outcome };
    let _ = std::fs::remove_dir_all(&folder); // what is left goes with the folder above it
    outcome
}

impl World {
    fn new(plot: Plot, folder: &Path) -> Arc<World> {
        let mut chance = StdRng::seed_from_u64(plot.seed);
        let size = chance.random_range(3..=5);
        let node = |number: usize| Node {
            disk: Disk::new(folder.join(number.to_string())),
            id: None,
            host: None,
            replica: None,
            group: None,
            ending: None,
            running: 0,
        };
        Arc::new(World {
            mutant: plot.mutant,
            network: Mutex::default(),
            slow_disks: Mutex::new(vec![0; size]),
            counts: Mutex::default(),
            nodes: Mutex::new((0..size).map(node).collect()),
            ledger: Mutex::default(),
            trace: Mutex::new(Trace::new(plot.is_shown)),
            violation: Mutex::default(),
            chance: Mutex::new(chance),
            began: Instant::now(),
            numbers: Mutex::default(),
        })
    }

    /// The whole of a run.
    async fn live(self: Arc<Self>) -> Verdict {
        let life = async {
            for number in 0..self.size() {
                let beginning = if number == 0 { Beginning::Found } else { Beginning::Join };
                self.start(number, beginning).await;
            }
            let goal = members::first_goal(&self);
            members::until_reached(&self, &goal).await;
            let members = tokio::spawn(members::keep_changing(self.clone()));
            let clients = clients::start(&self);
            faults::break_things(&self).await;
            members.abort();
            self.mend().await;
            let mended = self.now();
            clients::write_once(&self).await;
            members::until_reached(&self, &members::another_goal(&self)).await;
            self.until_same().await;
            self.counts.lock().recovered_ms = (self.now() - mended).as_millis() as u64;
            clients.iter().for_each(tokio::task::JoinHandle::abort);
        };
        tokio::select! {
            biased;
            violation = self.violated() => Err(violation),
            lived = timeout(faults::LASTS + RECOVERS_WITHIN, life) => lived.map_err(|_| {
                let what = format!("the group does not work again within {RECOVERS_WITHIN:?}: {}", self.standings());
                Violation { rule: Rule::Converges, what }
            }),
        }
    }

    async fn violated(&self) -> Violation {
        loop {
            if let Some(violation) = self.violation.lock().clone() {
                return violation;
            }
            sleep(LOOKS_EVERY).await;
        }
    }

    fn outcome(&self, verdict: Verdict) -> Outcome {
        let (ledger, trace, network) = (self.ledger.lock(), self.trace.lock(), self.network.lock());
        let counts = self.counts.lock().clone();
        Outcome {
            trace: trace.digest(),
            steps: trace.steps,
            looks: ledger.looks,
            messages: network.delivered,
            dropped: network.dropped,
            leaders: ledger.leaders() as u64,
            changes: ledger.changes() as u64,
            entries: ledger.committed(),
            virtual_ms: self.now().as_millis() as u64,
            violation: verdict.err().or(self.violation.lock().clone()),
            ..counts
        }
    }

    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Notes that something happened.
    pub fn note(&self, what: &str, bytes: &[u8]) {
        self.trace.lock().note(self.now().as_micros() as u64, what, bytes);
    }

    /// Notes that something was broken.
    pub fn broke(&self, fault: &'static str, what: &str) {
        self.note(what, fault.as_bytes());
        *self.counts.lock().faults.entry(fault).or_default() += 1;
    }

    /// Asks the ledger; the run ends when a rule is broken.
    pub fn with_ledger(&self, ask: impl FnOnce(&mut Ledger) -> Verdict) {
        if let Err(violation) = ask(&mut self.ledger.lock()) {
            self.violate(violation);
        }
    }

    pub fn violate(&self, violation: Violation) {
        self.note(&format!("violation of {:?}: {}", violation.rule, violation.what), b"");
        self.violation.lock().get_or_insert(violation);
    }

    /// A replica has answered a peer.
    pub fn promised(&self, replica: ReplicaId, promise: Promise) {
        self.ledger.lock().promised(replica, promise);
    }

    /// A replica has been given a snapshot, or has answered for one.
    pub fn installs(&self, replica: ReplicaId, begins: bool) {
        self.ledger.lock().installs(replica, begins);
    }

    pub fn told(&self) -> u64 {
        self.ledger.lock().told()
    }

    /// A number below this one.
    pub fn below(&self, end: u64) -> u64 {
        self.chance.lock().random_range(0..end.max(1))
    }

    /// Whether something happens that does so many times of a thousand.
    pub fn chances(&self, of_a_thousand: u32) -> bool {
        self.below(1_000) < u64::from(of_a_thousand)
    }

    pub fn between(&self, from: Duration, until: Duration) -> Duration {
        from + Duration::from_micros(self.below((until - from).as_micros() as u64))
    }

    pub fn message_takes(&self) -> Duration {
        let (from, until) = self.network.lock().takes_us;
        // Few take long: those are overtaken.
        let until = if self.chances(30) { until * 20 } else { until };
        self.between(Duration::from_micros(from), Duration::from_micros(until))
    }

    /// A number that was not given before.
    pub fn next_number(&self) -> u64 {
        let mut numbers = self.numbers.lock();
        *numbers += 1;
        *numbers
    }

    pub fn size(&self) -> usize {
        self.nodes.lock().len()
    }

    /// Which node has this id.
    pub fn number(&self, id: NodeId) -> Option<usize> {
        self.nodes.lock().iter().position(|node| node.id == Some(id))
    }

    /// What runs on a node, paused or not.
    pub fn running(&self, number: usize) -> Option<(Arc<Host>, ShardGroup)> {
        let nodes = self.nodes.lock();
        let node = nodes.get(number)?;
        Some((node.host.clone()?, node.group.clone()?))
    }

    /// All nodes that run.
    pub fn all_running(&self) -> Vec<(usize, Arc<Host>, ShardGroup)> {
        (0..self.size()).filter_map(|number| self.running(number).map(|(host, group)| (number, host, group))).collect()
    }

    pub fn host(&self, number: usize) -> Option<Arc<Host>> {
        self.nodes.lock()[number].host.clone()
    }

    /// The node that leads with the greatest term, as far as the nodes know.
    pub fn leader(&self) -> Option<(usize, Arc<Host>, ShardGroup)> {
        let leads = |(_, _, group): &(usize, Arc<Host>, ShardGroup)| group.group().leads();
        self.all_running().into_iter().filter(leads).max_by_key(|(_, _, group)| group.group().standing().term)
    }

    fn standings(&self) -> String {
        let standing =
            |(number, _, group): &(usize, Arc<Host>, ShardGroup)| format!("node {number}: {:?}", group.group().standing());
        self.all_running().iter().map(standing).collect::<Vec<_>>().join("; ")
    }

    /// Starts a node that does not run, and waits until it does or has crashed again.
    pub async fn start(self: &Arc<Self>, number: usize, beginning: Beginning) {
        let (host, folder) = {
            let mut nodes = self.nodes.lock();
            let node = &mut nodes[number];
            if node.host.is_some() {
                return;
            }
            let host = Host::new(NodeFate { world: Arc::downgrade(self), number });
            node.host = Some(host.clone());
            (host, node.disk.folder())
        };
        self.note(&format!("{number} starts"), b"");
        let opening = host.spawn(async move { Store::open_with(&folder, STORE, Box::new(|_| {})) });
        let store = match opening.await {
            Ok(Ok(store)) => store,
            Ok(Err(fault)) => {
                return self
                    .violate(Violation { rule: Rule::NothingFails, what: format!("node {number} does not start: {fault}") });
            }
            Err(_) => return, // it was killed meanwhile
        };
        self.nodes.lock()[number].id = Some(store.node());
        self.start_group(number, &host, store, beginning).await;
    }

    /// Starts the replica of a node that runs.
    async fn start_group(self: &Arc<Self>, number: usize, host: &Arc<Host>, store: Arc<Store>, beginning: Beginning) {
        let transport = Arc::new(Wire::new(self, number));
        let started = host.spawn(ShardGroup::start(Ground { store, beginning, transport }, SHARD)).await;
        let group = match started {
            Ok(Ok(group)) => group,
            Ok(Err(fault)) => {
                return self.violate(Violation {
                    rule: Rule::NothingFails,
                    what: format!("the replica of node {number} does not start: {fault}"),
                });
            }
            Err(_) => return,
        };
        if host.is_dead() {
            return; // killed in the moment in which it had started
        }
        let store = group.group().store().clone();
        self.with_ledger(|ledger| ledger.look(&store, group.group().replica()));
        self.note(&format!("{number} runs"), &group.group().replica().0.to_le_bytes());
        let (world, watched, running) = (Arc::downgrade(self), group.clone(), self.next_number());
        let mut nodes = self.nodes.lock();
        nodes[number].replica = Some(group.group().replica());
        nodes[number].group = Some(group);
        nodes[number].ending = None;
        nodes[number].running = running;
        drop(nodes);
        host.spawn(async move {
            let why = watched.failed().await;
            let is_current = |node: &Node| node.running == running && node.group.is_some();
            if let Some(world) = Weak::upgrade(&world)
                && is_current(&world.nodes.lock()[number])
            {
                world.violate(Violation {
                    rule: Rule::NothingFails,
                    what: format!("the replica of node {number} has failed: {why}"),
                });
            }
        });
    }

    /// Ends a node where it is.
    pub fn crash(&self, number: usize, crash: Crash) {
        let mut nodes = self.nodes.lock();
        let node = &mut nodes[number];
        let Some(host) = node.host.take() else { return };
        host.kill();
        let (group, ending, replica) = (node.group.take(), node.ending.take(), node.replica);
        let keeps_watermark = self.mutant != Some(Mutant::LyingDisk);
        let crashed = node.disk.crash(crash, keeps_watermark, &mut self.chance.lock());
        drop(nodes);
        drop((group, ending));
        if let Err(fault) = crashed {
            self.violate(broken_disk(&fault));
        }
        if let Some(replica) = replica {
            self.ledger.lock().crashed(replica);
        }
    }

    /// Nobody asks the replica of a node any more. What it is still at is looked at.
    fn ends_in_order(&self, number: usize) {
        let node = &mut self.nodes.lock()[number];
        node.ending = node.group.take().map(|group| group.group().store().clone());
    }

    /// Where the replica of a node writes, as long as it does.
    fn written(&self, number: usize) -> Option<Arc<Store>> {
        let nodes = self.nodes.lock();
        let node = nodes.get(number)?;
        node.group.as_ref().map(|group| group.group().store().clone()).or_else(|| node.ending.clone())
    }

    /// Ends a node in order.
    pub async fn stop(&self, number: usize) {
        let Some((host, group)) = self.running(number) else { return };
        self.ends_in_order(number);
        let stopped = host.spawn(async move {
            group.shutdown().await;
            group.group().store().close();
        });
        let _ = stopped.await; // it may be killed meanwhile
        if self.nodes.lock()[number].host.as_ref().is_some_and(|current| Arc::ptr_eq(current, &host)) {
            self.crash(number, Crash::Process);
        }
    }

    /// Ends the replica of a node, and starts it again in the same process, as is done when its actor has failed; under a new id when it is to be `retired`.
    pub async fn restart_group(self: &Arc<Self>, number: usize, retired: bool) {
        let Some((host, group)) = self.running(number) else { return };
        self.ends_in_order(number);
        let store = group.group().store().clone();
        let ended = host.spawn(async move {
            group.shutdown().await;
            drop(group);
        });
        if ended.await.is_err() {
            return;
        }
        let name = SHARD.group_name();
        if retired {
            let retiring = store.clone();
            let retired = host.spawn(async move { retiring.retire_replica(&name) }).await;
            match retired {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => {
                    return self.violate(Violation {
                        rule: Rule::NothingFails,
                        what: format!("a replica of node {number} is not retired: {fault}"),
                    });
                }
                Err(_) => return,
            }
        }
        self.start_group(number, &host, store, Beginning::Join).await;
    }

    /// Mends everything that is broken.
    async fn mend(self: &Arc<Self>) {
        self.network.lock().mend();
        self.slow_disks.lock().fill(0);
        self.note("everything is mended", b"");
        for number in 0..self.size() {
            if let Some(host) = self.host(number) {
                host.resume();
            }
            self.start(number, Beginning::Join).await;
        }
    }

    /// Waits until there is a leader, and all its members have applied the same.
    async fn until_same(&self) {
        while !self.is_same() {
            sleep(LOOKS_EVERY).await;
        }
    }

    fn is_same(&self) -> bool {
        let Some((_, _, leader)) = self.leader() else { return false };
        let standing = leader.group().standing();
        let applied = leader.group().applied_index();
        let has_same = |replica: &ReplicaId| {
            let running = self.all_running();
            let member = running.iter().find(|(_, _, group)| group.group().replica() == *replica);
            member.is_some_and(|(_, _, group)| group.group().applied_index() == applied)
        };
        applied == standing.last_index && standing.nodes.keys().all(has_same)
    }
}

fn broken_disk(fault: &std::io::Error) -> Violation {
    Violation { rule: Rule::WorldWorks, what: format!("a simulated disk cannot be kept: {fault}") }
}

/// What the world does to a node.
struct NodeFate {
    world: Weak<World>,
    number: usize,
}

impl Fate for NodeFate {
    fn work_takes(&self) -> Duration {
        let Some(world) = self.world.upgrade() else { return Duration::ZERO };
        if world.chances(20) { world.between(Duration::ZERO, Duration::from_millis(20)) } else { Duration::ZERO }
    }

    fn worked(&self) {
        let Some(world) = self.world.upgrade() else { return };
        let Some(store) = world.written(self.number) else { return };
        if let Some(replica) = store.replica_of(&SHARD.group_name()) {
            world.with_ledger(|ledger| ledger.look(&store, replica));
        }
    }

    fn sync_takes(&self) -> Duration {
        let Some(world) = self.world.upgrade() else { return Duration::ZERO };
        let is_slow = world.chances(world.slow_disks.lock()[self.number]);
        let until = Duration::from_millis(if is_slow { 800 } else { 4 });
        world.between(Duration::from_micros(200), until)
    }

    fn synced(&self) {
        let Some(world) = self.world.upgrade() else { return };
        if world.mutant == Some(Mutant::LyingDisk) {
            return;
        }
        let synced = world.nodes.lock()[self.number].disk.sync();
        if let Err(fault) = synced {
            world.violate(broken_disk(&fault));
        }
    }
}

/// Space that runs need, with what the store keeps free besides.
const FOLDER_BYTES_MIN: u64 = 512 << 20;

/// A folder for runs: in memory, unless there is little room, as in a container.
pub fn memory() -> tempfile::TempDir {
    let folder = PathBuf::from("/dev/shm");
    let free = rustix::fs::statvfs(&folder).map_or(0, |disk| disk.f_bavail * disk.f_frsize);
    let made = if free >= FOLDER_BYTES_MIN { tempfile::tempdir_in(folder) } else { tempfile::tempdir() };
    made.unwrap()
}
