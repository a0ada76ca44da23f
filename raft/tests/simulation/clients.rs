//! Clients: each writes, deletes and reads documents through whatever node, one operation after the other, and tells the ledger what it was told.

use crate::documents::{COLLECTION, Effect, TENANT};
use crate::mutants::Mutant;
use crate::world::World;
use ragged_raft::ProposeError;
use ragged_raft::shard::group::{Applied, ShardGroup};
use ragged_raft::simulation::Host;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const CLIENTS: usize = 3;
const DOCUMENTS: u64 = 4;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Starts the clients.
pub fn start(world: &Arc<World>) -> Vec<JoinHandle<()>> {
    (0..CLIENTS).map(|_| tokio::spawn(work(world.clone()))).collect()
}

async fn work(world: Arc<World>) {
    loop {
        sleep(world.between(Duration::from_millis(2), Duration::from_millis(80))).await;
        match world.below(100) {
            0..50 => drop(write(&world).await),
            50..80 => read_at_leader(&world).await,
            80..90 => read_at_follower(&world).await,
            _ => read_with_token(&world).await,
        }
    }
}

/// Writes until a write is acknowledged.
pub async fn write_once(world: &Arc<World>) {
    while !write(world).await {
        sleep(Duration::from_millis(50)).await;
    }
}

fn document(world: &World) -> String {
    format!("d{}", world.below(DOCUMENTS))
}

/// A node that leads as it thinks, or any.
fn target(world: &World) -> Option<(Arc<Host>, ShardGroup)> {
    let mut running = world.all_running();
    let leading: Vec<usize> = (0..running.len()).filter(|at| running[*at].2.group().leads()).collect();
    let at = if leading.is_empty() || world.chances(100) {
        world.below(running.len() as u64) as usize
    } else {
        leading[world.below(leading.len() as u64) as usize]
    };
    if running.is_empty() {
        return None;
    }
    let (_, host, group) = running.swap_remove(at);
    Some((host, group))
}

/// Runs a request on a node. None when there is no answer.
async fn on<T: Send + 'static>(host: &Arc<Host>, request: impl Future<Output = T> + Send + 'static) -> Option<T> {
    timeout(PATIENCE, host.spawn(request)).await.ok()?.ok()
}

/// Writes or deletes a document; one whose outcome is not known is sometimes sent again, under its idempotency key. True once it is acknowledged.
async fn write(world: &Arc<World>) -> bool {
    let number = world.next_number();
    let deletes = world.chances(100);
    let key = (!deletes && world.chances(500)).then(|| {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    });
    let effect = Effect { document: document(world), value: (!deletes).then(|| format!("v{number}")), key };
    for _ in 0..3 {
        let told = world.told();
        let Some((host, group)) = target(world) else { return false };
        let command = effect.command(world.now().as_millis() as u64);
        let answer = on(&host, async move { group.propose(command).await }).await;
        match answer {
            Some(Ok(Applied { index, reply })) => {
                world.note(&format!("{effect:?} is acknowledged at {index}: {reply:?}"), &index.to_le_bytes());
                world.with_ledger(|ledger| ledger.acknowledged(index, &effect, &reply, told));
                world.counts.lock().writes += 1;
                return true;
            }
            Some(Err(ProposeError::NotLeader { .. } | ProposeError::Overloaded | ProposeError::Stopped(_))) => return false,
            Some(Err(_)) | None => {
                world.counts.lock().unknown += 1;
                if effect.key.is_none() {
                    return false;
                }
            }
        }
    }
    false
}

/// A document and the index of the state that it is read in.
fn look_up(group: &ShardGroup, document: &str) -> (Option<String>, u64) {
    let value = group.reader().text(TENANT, COLLECTION, document).unwrap();
    (value, group.group().applied_index())
}

fn was_read(world: &World, document: &str, told: u64, answer: Option<Option<(Option<String>, u64)>>) {
    let Some(Some((value, index))) = answer else { return };
    world.note(&format!("{document} is read as {value:?} in {index}"), &index.to_le_bytes());
    world.with_ledger(|ledger| ledger.read(document, value.as_deref(), index, told));
    world.counts.lock().reads += 1;
}

/// A strong read, as a leader serves it.
async fn read_at_leader(world: &Arc<World>) {
    let (document, told) = (document(world), world.told());
    let Some((host, group)) = target(world) else { return };
    let (wanted, trusts) = (document.clone(), world.mutant == Some(Mutant::StaleReads) && group.group().leads());
    let answer = on(&host, async move {
        if !trusts {
            group.linearizable().await.ok()?;
        }
        Some(look_up(&group, &wanted))
    });
    was_read(world, &document, told, answer.await);
}

/// A strong read, as another replica serves it: the leader says which index is to be waited for.
async fn read_at_follower(world: &Arc<World>) {
    let (document, told) = (document(world), world.told());
    let Some((host, group)) = target(world) else { return };
    let Some(Ok(index)) = on(&host, async move { group.linearizable().await }).await else { return };
    read_at_any(world, document, told, index).await;
}

/// A read with the token of the newest state that anybody was told of.
async fn read_with_token(world: &Arc<World>) {
    let (document, told) = (document(world), world.told());
    read_at_any(world, document, told, told).await;
}

async fn read_at_any(world: &Arc<World>, document: String, told: u64, index: u64) {
    let mut running = world.all_running();
    if running.is_empty() {
        return;
    }
    let (_, host, group) = running.swap_remove(world.below(running.len() as u64) as usize);
    let wanted = document.clone();
    let answer = on(&host, async move {
        group.wait_applied(index, PATIENCE).await.ok()?;
        Some(look_up(&group, &wanted))
    });
    was_read(world, &document, told, answer.await);
}
