//! The actor that keeps the node's memory within its budget.
//!
//! Every second it looks at what the process has. Partitions that hold more than their part together are unloaded, those unused for longest first. Vectors,
//! most of what partitions have in mapped files, are looked at where they are mapped as long as the pages of all of them would fit; of the partitions that would
//! not fit, searches read the vectors instead: exact searches go through so many within a second that giving pages back would come too late. When all of the process has more than the budget, partitions are unloaded sooner than they would be, and the others give back the pages of their mapped
//! files, again those unused for longest first, until enough is free. A page that was given back is in the system's cache of files: to touch it again costs
//! a microsecond, and reading it from the disk only where the machine itself has needed the memory.

use crate::address::Address;
use crate::memory::{MemoryLimits, ProcessMemory};
use crate::program_pages;
use crate::shard::loaded::{LoadedPartitions, PartitionId};
use crate::shards::Shards;
use procfs::ProcError;
use prometheus::{IntCounter, IntGauge, Registry};
use ractor::concurrency::Duration;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

/// How often it looks.
const PAUSE: Duration = Duration::from_secs(1);
/// A partition that was used within so long is in use: it would be loaded again at once.
const IN_USE: Duration = Duration::from_secs(2);
/// A partition that was not used for so long is unloaded when memory is short.
const UNUSED_WHEN_SHORT: Duration = Duration::from_secs(30);
/// How often something is said at most.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What the keeper counts.
#[derive(Clone)]
pub struct KeeperMetrics {
    budget_bytes: IntGauge,
    anonymous_bytes: IntGauge,
    mapped_bytes: IntGauge,
    /// Bytes of mapped files that were given back.
    pub given_back_bytes: IntCounter,
    unloaded: IntCounter,
    reading: IntGauge,
}

impl KeeperMetrics {
    /// Registers the metrics.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = KeeperMetrics {
            budget_bytes: IntGauge::new("ragged_memory_budget_bytes", "What the node keeps its resident memory within.")?,
            anonymous_bytes: IntGauge::new("ragged_memory_anonymous_bytes", "Memory that only the node can give back.")?,
            mapped_bytes: IntGauge::new("ragged_memory_mapped_bytes", "Pages of mapped files that are the node's.")?,
            given_back_bytes: IntCounter::new(
                "ragged_memory_given_back_bytes_total",
                "Bytes of mapped files that were given back to keep the budget.",
            )?,
            unloaded: IntCounter::new(
                "ragged_memory_partitions_unloaded_total",
                "Partitions that were unloaded to keep the budget, or the partitions' part of it.",
            )?,
            reading: IntGauge::new(
                "ragged_partitions_reading_vectors",
                "Loaded partitions whose vectors searches read from files, because their pages would not fit into the budget.",
            )?,
        };
        for gauge in [&metrics.budget_bytes, &metrics.anonymous_bytes, &metrics.mapped_bytes, &metrics.reading] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(metrics.given_back_bytes.clone()))?;
        registry.register(Box::new(metrics.unloaded.clone()))?;
        Ok(metrics)
    }

    fn note(&self, process: ProcessMemory) {
        self.anonymous_bytes.set(i64::try_from(process.anonymous).unwrap_or(i64::MAX));
        self.mapped_bytes.set(i64::try_from(process.mapped).unwrap_or(i64::MAX));
    }
}

/// What the keeper is started with.
#[derive(Clone)]
pub struct KeeperArguments {
    /// Told where the actor is.
    pub address: Arc<Address<KeeperMessage>>,
    /// Whose partitions give memory back.
    pub shards: Shards,
    /// What is to be kept.
    pub limits: MemoryLimits,
    /// Counters.
    pub metrics: KeeperMetrics,
}

/// The actor.
pub struct Keeper;

/// Messages of the keeper.
pub enum KeeperMessage {
    /// Time to look.
    Look,
    /// A panic on purpose, to test what stands above.
    #[cfg(test)]
    Panic,
}

/// What it knows.
pub struct KeeperState {
    arguments: KeeperArguments,
    /// What was mapped when it first looked: the program, which partitions have no part in.
    own_mapped: Option<u64>,
    /// When it last said something.
    told: Option<Instant>,
}

/// What was done because the process had more than its budget.
struct Relief {
    before: ProcessMemory,
    after: ProcessMemory,
    unloaded: u64,
}

impl Actor for Keeper {
    type Msg = KeeperMessage;
    type State = KeeperState;
    type Arguments = KeeperArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<KeeperMessage>,
        arguments: KeeperArguments,
    ) -> Result<KeeperState, ActorProcessingErr> {
        arguments.metrics.budget_bytes.set(i64::try_from(arguments.limits.budget).unwrap_or(i64::MAX));
        arguments.address.moved_to(myself.clone());
        myself.send_after(PAUSE, || KeeperMessage::Look);
        Ok(KeeperState { arguments, own_mapped: None, told: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<KeeperMessage>,
        message: KeeperMessage,
        state: &mut KeeperState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            KeeperMessage::Look => {
                let arguments = state.arguments.clone();
                let known = state.own_mapped;
                // Closing files, and giving pages back, take their time.
                let look = move || {
                    let own_mapped = known.unwrap_or_else(|| {
                        program_pages::give_back(); // the node has started, and will need few of them again
                        ProcessMemory::current().map_or(0, |process| process.mapped)
                    });
                    (own_mapped, arguments.keep(own_mapped))
                };
                let (own_mapped, kept) = tokio::task::spawn_blocking(look).await?;
                state.own_mapped = Some(own_mapped);
                match kept {
                    Ok(None) => {}
                    Ok(Some(relief)) => state.tell(&relief),
                    // A node without /proc goes on without a budget.
                    Err(fault) if state.may_tell() => {
                        tracing::warn!(%fault, "the system does not say what memory the node has: its budget is not kept");
                    }
                    Err(_) => {}
                }
                myself.send_after(PAUSE, || KeeperMessage::Look);
                Ok(())
            }
            #[cfg(test)]
            KeeperMessage::Panic => panic!("injected"),
        }
    }
}

impl KeeperState {
    /// Whether it is time to say something again.
    fn may_tell(&mut self) -> bool {
        let may = self.told.is_none_or(|at| at.elapsed() >= TOLD_EVERY);
        if may {
            self.told = Some(Instant::now());
        }
        may
    }

    fn tell(&mut self, relief: &Relief) {
        if !self.may_tell() {
            return;
        }
        let mib = |bytes: u64| bytes >> 20;
        let Relief { before, after, unloaded } = relief;
        let budget = self.arguments.limits.budget as u64;
        let (budget_mib, before_mib, after_mib) = (mib(budget), mib(before.resident), mib(after.resident));
        if after.resident > budget {
            tracing::warn!(
                budget_mib,
                before_mib,
                after_mib,
                anonymous_mib = mib(after.anonymous),
                mapped_mib = mib(after.mapped),
                unloaded,
                "the node has more than its budget of memory, and partitions cannot give more back: `ragged memory` says where it is"
            );
        } else {
            tracing::info!(
                budget_mib,
                before_mib,
                after_mib,
                unloaded,
                "mapped files were given back to keep the budget of memory"
            );
        }
    }
}

/// A partition that is loaded.
struct Resident {
    used: Instant,
    shard: Arc<LoadedPartitions>,
    id: PartitionId,
}

impl KeeperArguments {
    /// All partitions that are loaded, those unused for longest first.
    fn residents(&self) -> Vec<Resident> {
        let mut residents = Vec::new();
        for shard in self.shards.loaded_here() {
            residents.extend(shard.uses().into_iter().map(|(used, id)| Resident { used, shard: shard.clone(), id }));
        }
        residents.sort_by_key(|resident| resident.used);
        residents
    }

    /// Looks once. What had to be done, if anything.
    fn keep(&self, own_mapped: u64) -> Result<Option<Relief>, ProcError> {
        self.fit_partitions();
        let before = ProcessMemory::current()?;
        self.metrics.note(before);
        self.choose_who_reads(before.anonymous + own_mapped);
        if before.resident <= self.limits.budget as u64 {
            return Ok(None);
        }
        let unloaded = self.relieve()?;
        let after = ProcessMemory::current()?;
        self.metrics.note(after);
        self.metrics.given_back_bytes.inc_by(before.mapped.saturating_sub(after.mapped));
        Ok(Some(Relief { before, after, unloaded }))
    }

    /// Unloads partitions that do not fit into their part of the memory. Those that are in use stay, and the one that was used last, whatever it holds.
    fn fit_partitions(&self) {
        let residents = self.residents();
        let bytes_of = |resident: &Resident| resident.shard.peek(&resident.id).map_or(0, |partition| partition.memory_bytes());
        let sizes: Vec<usize> = residents.iter().map(bytes_of).collect();
        let mut held: usize = sizes.iter().sum();
        for (resident, size) in residents.iter().zip(sizes).rev().skip(1).rev() {
            if held <= self.limits.partitions {
                return;
            }
            if self.unload(resident, IN_USE) {
                held -= size;
            }
        }
    }

    /// Lets searches look at vectors where they are mapped in those partitions whose pages would all fit into the budget, beside what is `held` in any case:
    /// first in those that do and that are in use, so that they do not change with every search, then in those that were used last. The others read them.
    fn choose_who_reads(&self, held: u64) {
        let looked_at = |resident: Resident| {
            let partition = resident.shard.peek(&resident.id)?;
            let stays = !partition.reads_vectors() && resident.used.elapsed() < UNUSED_WHEN_SHORT;
            Some((Reverse((stays, resident.used)), partition.mapped_bytes(), partition))
        };
        let mut partitions: Vec<_> = self.residents().into_iter().filter_map(looked_at).collect();
        partitions.sort_by_key(|(first, ..)| *first);
        let needed: usize = partitions.iter().map(|(_, (needed, _), _)| needed).sum();
        let mut free = self.limits.wanted().saturating_sub(held as usize + needed);
        let mut reading = 0;
        for (_, (_, vectors), partition) in partitions {
            let fits = vectors <= free;
            free -= if fits { vectors } else { 0 };
            reading += i64::from(!fits);
            partition.read_vectors(!fits);
        }
        self.metrics.reading.set(reading);
    }

    /// Gives memory back until enough of the budget is free. How many partitions were unloaded.
    fn relieve(&self) -> Result<u64, ProcError> {
        let wanted = self.limits.wanted() as u64;
        let mut unloaded = 0;
        let mut left = Vec::new();
        for resident in self.residents() {
            if self.unload(&resident, UNUSED_WHEN_SHORT) {
                unloaded += 1;
                if ProcessMemory::current()?.resident <= wanted {
                    return Ok(unloaded);
                }
            } else {
                left.push(resident);
            }
        }
        for resident in left {
            if let Some(partition) = resident.shard.peek(&resident.id) {
                partition.give_back();
                if ProcessMemory::current()?.resident <= wanted {
                    break;
                }
            }
        }
        Ok(unloaded)
    }

    fn unload(&self, resident: &Resident, unused: Duration) -> bool {
        let has_unloaded = resident.shard.unload_if_unused(&resident.id, unused);
        self.metrics.unloaded.inc_by(u64::from(has_unloaded));
        has_unloaded
    }
}
