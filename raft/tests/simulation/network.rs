//! What is between the nodes: messages take time, overtake each other, come twice, get lost, and some ways are cut.

use crate::mutants::Mutant;
use crate::world::World;
use futures::FutureExt;
use futures::future::BoxFuture;
use ragged_raft::network::{Destination, PeerError, Transport};
use ragged_raft::simulation::promise;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// How long a file takes to be given up, whose sender hears nothing.
const FILE_TIMEOUT: Duration = Duration::from_secs(10);

/// How the network is.
pub struct Conditions {
    /// Ways that nothing gets through.
    pub cut: BTreeSet<(usize, usize)>,
    /// Of a thousand messages, so many are lost.
    pub lost: u32,
    /// Of a thousand requests, so many come twice.
    pub doubled: u32,
    /// How long a message takes at least, and at most, in microseconds.
    pub takes_us: (u64, u64),
    /// How many of what there were.
    pub delivered: u64,
    pub dropped: u64,
    /// What each peer has answered last, for a network that is broken on purpose.
    answers: BTreeMap<usize, Vec<u8>>,
}

impl Default for Conditions {
    fn default() -> Self {
        let (cut, answers) = (BTreeSet::new(), BTreeMap::new());
        Conditions { cut, lost: 0, doubled: 0, takes_us: (100, 2_000), delivered: 0, dropped: 0, answers }
    }
}

impl Conditions {
    /// Makes the network a good one.
    pub fn mend(&mut self) {
        let before = std::mem::take(self);
        (self.delivered, self.dropped) = (before.delivered, before.dropped);
    }
}

/// The network as a node sees it.
pub struct Wire {
    world: Weak<World>,
    from: usize,
}

impl Wire {
    pub fn new(world: &Arc<World>, from: usize) -> Wire {
        Wire { world: Arc::downgrade(world), from }
    }
}

/// What comes back, or why nothing does.
type Answer = Result<Vec<u8>, String>;

impl Transport for Wire {
    fn ask(&self, to: Destination, request: Vec<u8>, within: Duration) -> BoxFuture<'static, Result<Vec<u8>, PeerError>> {
        let (give, answer) = oneshot::channel();
        if let Some(world) = self.world.upgrade() {
            if world.chances(world.network.lock().doubled) {
                tokio::spawn(deliver(world.clone(), self.from, to, request.clone(), oneshot::channel().0));
            }
            tokio::spawn(deliver(world, self.from, to, request, give));
        }
        heard(to, answer, within).boxed()
    }

    fn send_file(&self, to: Destination, offer: Vec<u8>, file: PathBuf) -> BoxFuture<'static, Result<Vec<u8>, PeerError>> {
        let (give, answer) = oneshot::channel();
        // Read at once: when the sender gives up it removes the file.
        if let (Some(world), Ok(bytes)) = (self.world.upgrade(), std::fs::read(file)) {
            tokio::spawn(deliver_file(world, self.from, to, offer, bytes, give));
        }
        heard(to, answer, FILE_TIMEOUT).boxed()
    }
}

/// The answer when there is one in time; whoever waits for one that was lost waits.
async fn heard(to: Destination, answer: oneshot::Receiver<Answer>, within: Duration) -> Result<Vec<u8>, PeerError> {
    let heard = async {
        match answer.await {
            Ok(answer) => answer,
            Err(_) => std::future::pending().await,
        }
    };
    let heard = timeout(within, heard).await.unwrap_or_else(|_| Err("no answer in time".into()));
    heard.map_err(|why| PeerError { destination: to, why })
}

/// A message on its way. False when it does not arrive.
async fn travels(world: &World, from: usize, to: usize, slower: u64) -> bool {
    let takes = world.message_takes() * slower as u32;
    sleep(takes).await;
    let lost = world.chances(world.network.lock().lost);
    let mut network = world.network.lock();
    let arrives = !lost && !network.cut.contains(&(from, to));
    if arrives {
        network.delivered += 1
    } else {
        network.dropped += 1
    }
    arrives
}

async fn deliver(world: Arc<World>, from: usize, to: Destination, request: Vec<u8>, give: oneshot::Sender<Answer>) {
    let Some(target) = world.number(to.node) else { return };
    if !travels(&world, from, target, 1).await {
        if world.mutant == Some(Mutant::ForgedAnswers)
            && let Some(answer) = world.network.lock().answers.get(&target).cloned()
        {
            let _ = give.send(Ok(answer));
        }
        return;
    }
    world.note(&format!("{from} asks {target}"), &request);
    let Some((host, group)) = world.running(target).filter(|(_, group)| group.group().replica() == to.replica) else {
        let _ = give.send(Err("nobody is there".into()));
        return;
    };
    let asked = request.clone();
    let Ok(Ok(answer)) = host.spawn(async move { group.group().answer(&asked).await }).await else { return };
    if let Some(promised) = promise(&request, &answer) {
        if promised.stored.is_some() && world.mutant == Some(Mutant::ForgedAnswers) {
            world.network.lock().answers.insert(target, answer.clone());
        }
        world.promised(to.replica, promised);
    }
    world.note(&format!("{target} answers {from}"), &answer);
    if travels(&world, target, from, 1).await {
        let _ = give.send(Ok(answer));
    }
}

async fn deliver_file(
    world: Arc<World>,
    from: usize,
    to: Destination,
    offer: Vec<u8>,
    mut bytes: Vec<u8>,
    give: oneshot::Sender<Answer>,
) {
    let Some(target) = world.number(to.node) else { return };
    if !travels(&world, from, target, 20).await {
        return;
    }
    let Some((host, group)) = world.running(target).filter(|(_, group)| group.group().replica() == to.replica) else {
        let _ = give.send(Err("nobody is there".into()));
        return;
    };
    // A file that is cut or changed on its way is refused by what it says of itself.
    if world.chances(50) {
        bytes.truncate(world.below(bytes.len() as u64 + 1) as usize);
    } else if world.chances(50) && !bytes.is_empty() {
        let at = world.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << world.below(8);
    }
    world.note(&format!("{from} sends {target} a snapshot"), &bytes);
    let file = group.group().store().snapshot_folder().join(format!("received-{}", world.next_number()));
    if std::fs::write(&file, &bytes).is_err() {
        return;
    }
    let offered = offer.clone();
    world.installs(to.replica, true);
    let installed = host.spawn(async move { group.group().install(&offered, file).await }).await;
    world.installs(to.replica, false);
    let Ok(Ok(answer)) = installed else { return };
    world.note(&format!("{target} has the snapshot of {from}, or not"), &answer);
    if travels(&world, target, from, 1).await {
        let _ = give.send(Ok(answer));
    }
}
