//! Everything that replicas and clients were ever seen to do, and what must hold of it: looked at after every write to a disk, every answer and every
//! finished operation.

use crate::documents::{Effect, effect};
use openraft::EntryPayload;
use ragged_raft::Store;
use ragged_raft::codec;
use ragged_raft::ids::ReplicaId;
use ragged_raft::shard::command::ShardReply;
use ragged_raft::simulation::{Promise, Sight, entries, sight};
use ragged_raft::snapshot::state_hash;
use ragged_raft::types::{Entry, LogId, Vote};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// A promise that was not kept.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// What was seen.
    pub what: String,
}

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A replica's vote never goes back, and after a crash it is not before what it has told others.
    VotesStay,
    /// An entry that a replica has told others to have is still there after a crash.
    StoredStays,
    /// One entry stands at an index of a term of a leader, and the same before it.
    LogsMatch,
    /// Who leads has everything that was committed under lesser votes.
    LeaderIsComplete,
    /// What was applied at an index is applied there everywhere, and is never cut off.
    CommittedStays,
    /// Replicas have the same rows at the same index.
    SameState,
    /// Members after each other decide by a common majority.
    MembersOverlap,
    /// What was acknowledged is in the log as it was sent, and after all that was acknowledged before it was sent.
    AcknowledgedStays,
    /// A read gives the newest state that anybody had been told of when it began, or a newer one.
    ReadsAreFresh,
    /// A replica does not fail by itself, nor a node refuse its own disk.
    NothingFails,
    /// After healing, the group works again within a bounded time.
    Converges,
    /// Nothing panics.
    NothingPanics,
    /// The simulated world itself works; when not, the run says nothing.
    WorldWorks,
}

pub type Verdict = Result<(), Violation>;

fn check(holds: bool, rule: Rule, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(Violation { rule, what: what() }) }
}

/// An entry as it was first seen.
struct Written {
    hash: u64,
    before: Option<LogId>,
    effect: Option<Effect>,
    voters: Option<Vec<BTreeSet<u64>>>,
}

/// What is known of a replica.
#[derive(Default)]
struct Known {
    vote: Option<Vote>,
    purged: Option<LogId>,
    applied: Option<LogId>,
    log: BTreeMap<u64, LogId>,
    promised_vote: Option<Vote>,
    promised_entry: Option<LogId>,
    /// Snapshots that it has been given and has not answered for.
    installing: u64,
}

impl Known {
    fn last(&self) -> Option<LogId> {
        self.log.last_key_value().map(|(_, id)| *id).max(self.purged)
    }
}

/// Everything that was seen.
#[derive(Default)]
pub struct Ledger {
    written: BTreeMap<LogId, Written>,
    committed: BTreeMap<u64, LogId>,
    /// Up to here the documents are those of the committed entries.
    modelled: u64,
    /// Values of each document, by the index that made them so; none where it was deleted.
    documents: BTreeMap<String, BTreeMap<u64, Option<String>>>,
    /// Idempotency keys and the index of their first write.
    keys: BTreeMap<[u8; 16], u64>,
    voters: Vec<(u64, Vec<BTreeSet<u64>>)>,
    states: HashMap<u64, u64>,
    replicas: BTreeMap<ReplicaId, Known>,
    leaders: BTreeSet<(u64, u64)>,
    /// The newest state that anybody has been told of.
    told: u64,
    /// How often replicas were looked at.
    pub looks: u64,
}

impl Ledger {
    /// Looks at a replica's disk.
    pub fn look(&mut self, store: &Arc<Store>, replica: ReplicaId) -> Verdict {
        self.looks += 1;
        let failed =
            |fault: std::io::Error| Violation { rule: Rule::NothingFails, what: format!("{replica} cannot be read: {fault}") };
        let seen = sight(store, replica).map_err(failed)?;
        self.look_at_vote(replica, &seen)?;
        self.look_at_log(store, replica, &seen)?;
        self.look_at_promises(replica, &seen)?;
        self.look_at_lead(replica, &seen)?;
        self.look_at_state(store, replica, &seen)
    }

    fn look_at_vote(&mut self, replica: ReplicaId, seen: &Sight) -> Verdict {
        let known = self.replicas.entry(replica).or_default();
        let least = [known.vote, known.promised_vote];
        let stays = least.iter().all(|vote| vote.is_none_or(|vote| seen.vote.is_some_and(|now| now >= vote)));
        known.vote = seen.vote;
        check(stays, Rule::VotesStay, || format!("{replica} had and promised {least:?}, now its vote is {:?}", seen.vote))
    }

    fn look_at_log(&mut self, store: &Arc<Store>, replica: ReplicaId, seen: &Sight) -> Verdict {
        let known = self.replicas.entry(replica).or_default();
        let purged = seen.purged.map_or(0, |id| id.index);
        known.purged = seen.purged;
        if seen.purged.is_some() {
            known.log = known.log.split_off(&(purged + 1));
        }
        let last = seen.last.map_or(0, |id| id.index);
        let cut_off = match seen.last {
            Some(_) => known.log.split_off(&(last + 1)),
            None => std::mem::take(&mut known.log),
        };
        if !cut_off.is_empty() {
            // What is cut off because another leader has overruled it was never committed, and is not promised any more.
            known.promised_entry = known.promised_entry.min(known.last());
        }
        for (index, id) in cut_off {
            // openraft cuts a log that conflicts with a snapshot off before it has installed that: see docs/reliability.md.
            let was_committed = self.committed.get(&index) == Some(&id) && known.installing == 0;
            check(!was_committed, Rule::CommittedStays, || format!("{replica} has cut off {id}, which was committed"))?;
        }
        let from = known.last().map_or(0, |id| id.index + 1);
        let failed = |fault: std::io::Error| Violation {
            rule: Rule::NothingFails,
            what: format!("the log of {replica} cannot be read: {fault}"),
        };
        for entry in entries(store, replica, from, last + 1).map_err(failed)? {
            let known = self.replicas.entry(replica).or_default();
            let before = known.last();
            known.log.insert(entry.log_id.index, entry.log_id);
            self.look_at_entry(replica, &entry, before)?;
        }
        let known = self.replicas.entry(replica).or_default();
        let is_mirrored = known.last() == seen.last;
        check(is_mirrored, Rule::LogsMatch, || {
            format!("the log of {replica} ends at {:?}, and was written to {:?}", seen.last, known.last())
        })
    }

    fn look_at_entry(&mut self, replica: ReplicaId, entry: &Entry, before: Option<LogId>) -> Verdict {
        let id = entry.log_id;
        let hash = codec::encode(entry).map(|frame| xxh3_64(&frame)).unwrap_or_default();
        let written = self.written.entry(id).or_insert_with(|| Written {
            hash,
            before,
            effect: match &entry.payload {
                EntryPayload::Normal(command) => effect(&command.0),
                EntryPayload::Blank | EntryPayload::Membership(_) => None,
            },
            voters: match &entry.payload {
                EntryPayload::Membership(members) => Some(members.get_joint_config().clone()),
                EntryPayload::Blank | EntryPayload::Normal(_) => None,
            },
        });
        let matches = written.hash == hash && (written.before == before || before.is_none());
        check(matches, Rule::LogsMatch, || {
            format!("{replica} has another entry {id}, or another before it ({before:?}, elsewhere {:?})", written.before)
        })
    }

    fn look_at_promises(&mut self, replica: ReplicaId, seen: &Sight) -> Verdict {
        let known = self.replicas.entry(replica).or_default();
        let has = seen.last.max(seen.applied);
        check(known.promised_entry <= has, Rule::StoredStays, || {
            format!("{replica} has told others that it has {:?}, and now it has {has:?}", known.promised_entry)
        })
    }

    fn look_at_lead(&mut self, replica: ReplicaId, seen: &Sight) -> Verdict {
        let Some(vote) = seen.vote.filter(|vote| vote.committed && vote.leader_id.node_id == replica.0) else { return Ok(()) };
        if !self.leaders.insert((vote.leader_id.term, vote.leader_id.node_id)) {
            return Ok(());
        }
        let known = self.replicas.entry(replica).or_default();
        let covered = seen.applied.max(seen.purged);
        let lacks = self.committed.iter().find(|(index, id)| {
            id.leader_id < vote.leader_id
                && covered.is_none_or(|covered| **index > covered.index)
                && known.log.get(index) != Some(id)
        });
        check(lacks.is_none(), Rule::LeaderIsComplete, || {
            format!("{replica} leads with {vote}, and lacks {lacks:?}, which is committed")
        })
    }

    fn look_at_state(&mut self, store: &Arc<Store>, replica: ReplicaId, seen: &Sight) -> Verdict {
        let known = self.replicas.entry(replica).or_default();
        let before = std::mem::replace(&mut known.applied, seen.applied);
        let Some(applied) = seen.applied.filter(|_| before != seen.applied) else { return Ok(()) };
        check(before < Some(applied), Rule::CommittedStays, || format!("{replica} had applied {before:?}, and now {applied}"))?;
        let from = before.map_or(0, |id| id.index + 1);
        // What a snapshot has brought says nothing of the entries that are still in the log.
        let is_logged = known.log.get(&applied.index) == Some(&applied);
        let before_it = known.log.range(from..applied.index).map(|(_, id)| *id).filter(|_| is_logged);
        let news: Vec<LogId> = before_it.chain([applied]).collect();
        for id in news {
            let first = *self.committed.entry(id.index).or_insert(id);
            check(first == id, Rule::CommittedStays, || format!("{replica} has applied {id}, and others {first} there"))?;
        }
        self.model()?;
        let failed = |fault: ragged_raft::ReadError| Violation {
            rule: Rule::NothingFails,
            what: format!("{replica} cannot be read: {fault}"),
        };
        let (index, hash) = state_hash(store, replica).map_err(failed)?;
        let first = *self.states.entry(index).or_insert(hash);
        check(first == hash, Rule::SameState, || format!("the rows of {replica} at {index} are not those of others"))
    }

    /// Does to the documents what the committed entries did.
    fn model(&mut self) -> Verdict {
        while let Some(id) = self.committed.get(&self.modelled) {
            let Some(written) = self.written.get(id) else { return Ok(()) };
            if let Some(Effect { document, value, key }) = &written.effect {
                let is_first = key.is_none_or(|key| *self.keys.entry(key).or_insert(id.index) == id.index);
                if is_first {
                    self.documents.entry(document.clone()).or_default().insert(id.index, value.clone());
                }
            }
            if let Some(voters) = &written.voters {
                if let Some((_, before)) = self.voters.last() {
                    let overlaps = before.iter().any(|old| voters.contains(old));
                    check(overlaps, Rule::MembersOverlap, || format!("{id} makes the voters {voters:?}, before {before:?}"))?;
                }
                check(voters.iter().all(|voters| !voters.is_empty()), Rule::MembersOverlap, || {
                    format!("{id} leaves nobody to vote")
                })?;
                self.voters.push((id.index, voters.clone()));
            }
            self.modelled += 1;
        }
        Ok(())
    }

    /// A replica has answered a peer.
    pub fn promised(&mut self, replica: ReplicaId, promise: Promise) {
        let known = self.replicas.entry(replica).or_default();
        if known.promised_vote.is_none_or(|vote| promise.vote >= vote) {
            known.promised_vote = Some(promise.vote);
        }
        known.promised_entry = known.promised_entry.max(promise.stored);
    }

    /// A replica has been given a snapshot, or has answered for one.
    pub fn installs(&mut self, replica: ReplicaId, begins: bool) {
        let known = self.replicas.entry(replica).or_default();
        known.installing = if begins { known.installing + 1 } else { known.installing.saturating_sub(1) };
    }

    /// A replica's node has crashed: what it had not promised may be gone.
    pub fn crashed(&mut self, replica: ReplicaId) {
        let Some(known) = self.replicas.get_mut(&replica) else { return };
        *known = Known { promised_vote: known.promised_vote, promised_entry: known.promised_entry, ..Known::default() };
    }

    /// The newest state that anybody has been told of: whoever begins now must be told of no older one.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// A write was acknowledged.
    pub fn acknowledged(&mut self, index: u64, sent: &Effect, reply: &ShardReply, told_before: u64) -> Verdict {
        let written = self.committed.get(&index).and_then(|id| self.written.get(id));
        let is_fitting = match reply {
            ShardReply::Upserted(_) => sent.value.is_some(),
            ShardReply::Deleted(_) => sent.value.is_none(),
            _ => false,
        };
        let is_there = written.is_some_and(|written| written.effect.as_ref() == Some(sent)) && index > told_before;
        self.told = self.told.max(index);
        check(is_there && is_fitting, Rule::AcknowledgedStays, || {
            format!("{sent:?} was acknowledged at {index} (begun after {told_before}), where it is not")
        })
    }

    /// A document was read in the state of an index.
    pub fn read(&mut self, document: &str, value: Option<&str>, index: u64, told_before: u64) -> Verdict {
        let expected = self.documents.get(document).and_then(|values| values.range(..=index).next_back());
        let expected = expected.and_then(|(_, value)| value.as_deref());
        let is_right = index >= told_before && value == expected && index < self.modelled;
        self.told = self.told.max(index);
        check(is_right, Rule::ReadsAreFresh, || {
            format!(
                "{document} was read as {value:?} in state {index}; it is {expected:?} there, and the read began after {told_before}"
            )
        })
    }

    /// How many entries are committed.
    pub fn committed(&self) -> u64 {
        self.modelled
    }

    /// How many leaders there were.
    pub fn leaders(&self) -> usize {
        self.leaders.len()
    }

    /// How often the voters were changed.
    pub fn changes(&self) -> usize {
        self.voters.len()
    }
}
