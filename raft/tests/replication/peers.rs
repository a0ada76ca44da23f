//! A group of several replicas, each on a store of its own, over a transport that can be cut.

use crate::fixture::*;
use futures::FutureExt;
use futures::future::BoxFuture;
use ragged_raft::group::{Beginning, Ground};
use ragged_raft::ids::{NodeId, ReplicaId, ShardId};
use ragged_raft::membership::Standing;
use ragged_raft::network::{Destination, PeerError, Transport};
use ragged_raft::recovery::{RecoveryError, log_end, make_sole_voter};
use ragged_raft::shard::command::ShardReply;
use ragged_raft::shard::group::ShardGroup;
use ragged_raft::{ProposeError, Store};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SHARD: ShardId = ShardId(2);
const PATIENCE: Duration = Duration::from_secs(30);

/// Everything that is connected.
#[derive(Default)]
struct Wires {
    replicas: Mutex<HashMap<ReplicaId, ShardGroup>>,
    cut: Mutex<HashSet<NodeId>>,
    files: Mutex<Vec<ReplicaId>>,
}

impl Wires {
    fn target(&self, from: NodeId, to: Destination) -> Result<ShardGroup, PeerError> {
        let cut = self.cut.lock().unwrap();
        let replica = self.replicas.lock().unwrap().get(&to.replica).cloned();
        replica
            .filter(|_| !cut.contains(&from) && !cut.contains(&to.node))
            .ok_or(PeerError { destination: to, why: "the wire is cut".into() })
    }
}

/// The end of the wires at one node.
struct End {
    node: NodeId,
    wires: Arc<Wires>,
}

impl Transport for End {
    fn ask(&self, to: Destination, request: Vec<u8>, _within: Duration) -> BoxFuture<'static, Result<Vec<u8>, PeerError>> {
        let (from, wires) = (self.node, self.wires.clone());
        async move {
            let answer = wires.target(from, to)?.group().answer(&request).await.unwrap();
            wires.target(from, to).map(|_| answer)
        }
        .boxed()
    }

    fn send_file(&self, to: Destination, offer: Vec<u8>, file: PathBuf) -> BoxFuture<'static, Result<Vec<u8>, PeerError>> {
        let (from, wires) = (self.node, self.wires.clone());
        async move {
            let target = wires.target(from, to)?;
            wires.files.lock().unwrap().push(to.replica);
            let received = target.group().store().snapshot_folder().join(format!("received-{}", to.replica.0));
            std::fs::copy(file, &received).unwrap();
            Ok(target.group().install(&offer, received).await.unwrap())
        }
        .boxed()
    }
}

/// A node with a replica of one shard.
struct Member {
    folder: TempDir,
    store: Arc<Store>,
    group: ShardGroup,
}

impl Member {
    async fn start(wires: &Arc<Wires>, beginning: Beginning) -> Member {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let group = Member::run(wires, &store, beginning).await;
        Member { folder, store, group }
    }

    async fn run(wires: &Arc<Wires>, store: &Arc<Store>, beginning: Beginning) -> ShardGroup {
        let transport = Arc::new(End { node: store.node(), wires: wires.clone() });
        let group = ShardGroup::start(Ground { store: store.clone(), beginning, transport }, SHARD).await.unwrap();
        wires.replicas.lock().unwrap().insert(group.group().replica(), group.clone());
        group
    }

    fn id(&self) -> ReplicaId {
        self.group.group().replica()
    }

    fn destination(&self) -> Destination {
        Destination { node: self.store.node(), replica: self.id() }
    }

    /// Ends the replica's tasks and lets go of its store.
    async fn stop(self, wires: &Wires) -> TempDir {
        wires.replicas.lock().unwrap().remove(&self.id());
        self.group.shutdown().await;
        self.folder
    }

    async fn restart(folder: TempDir, wires: &Arc<Wires>) -> Member {
        let store = reopen(folder.path());
        let group = Member::run(wires, &store, Beginning::Join).await;
        Member { folder, store, group }
    }

    async fn until(&self, what: &str, holds: impl Fn(&Standing) -> bool) -> Standing {
        let group = self.group.group();
        let wait = async {
            let mut standing = group.standing();
            while !holds(&standing) {
                standing = group.standing_changed(&standing).await;
            }
            standing
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: {:?}", group.standing()))
    }

    async fn add(&self, learner: &Member) {
        let group = self.group.group();
        group.add_learner(&group.standing(), learner.destination()).await.unwrap();
        let id = learner.id();
        let caught_up = |standing: &Standing| standing.matching.get(&id).is_some_and(|index| *index >= standing.last_index);
        self.until("the learner catches up", caught_up).await;
    }
}

/// Three voters, the first of which leads.
async fn three(wires: &Arc<Wires>) -> Vec<Member> {
    let first = Member::start(wires, Beginning::Found).await;
    let (second, third) = (Member::start(wires, Beginning::Join).await, Member::start(wires, Beginning::Join).await);
    first.add(&second).await;
    first.add(&third).await;
    let voters = BTreeSet::from([first.id(), second.id(), third.id()]);
    first.group.group().set_voters(&first.group.group().standing(), &voters).await.unwrap();
    first.until("all vote", |standing| standing.voters == voters && !standing.is_changing).await;
    vec![first, second, third]
}

/// Writes a new document. A leader takes no writes before a majority has answered it for the first time; then it is tried again.
async fn write(leader: &Member, id: &str) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match leader.group.propose(upsert(vec![document(id, &["one", "two"])], 1)).await {
            Ok(applied) => {
                assert_eq!(applied.reply, ShardReply::Upserted(vec![upserted(id, 2, 1)]));
                return applied.index;
            }
            Err(ProposeError::NotLeader { leader: None }) if Instant::now() < deadline => tokio::task::yield_now().await,
            Err(fault) => panic!("{fault}"),
        }
    }
}

/// All come to the same index, this one at least, and their rows are the same there. A leader may write after it, an entry of its own for one.
async fn assert_same(members: &[Member], index: u64) {
    let mut index = index;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut hashes = HashSet::new();
        for member in members {
            member.group.wait_applied(index, PATIENCE).await.unwrap();
            hashes.insert(member.group.group().state_hash().await.unwrap());
        }
        index = hashes.iter().map(|(index, _)| *index).max().unwrap();
        if hashes.iter().all(|(other, _)| *other == index) {
            assert_eq!(hashes.len(), 1, "the same index, and not the same state: {hashes:?}");
            break;
        }
        assert!(Instant::now() < deadline, "they do not come to the same index: {hashes:?}");
    }
    for member in members {
        check_partition(&member.group.reader(), TENANT, COLLECTION);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_hold_the_same_and_the_leadership_can_be_handed_on() {
    let wires = Arc::new(Wires::default());
    let members = three(&wires).await;
    for leader in [1, 2, 0] {
        let member = &members[leader];
        let current = members.iter().find(|member| member.group.group().standing().leads()).unwrap();
        current.group.group().transfer_leader(member.id()).await.unwrap();
        member.until("it takes the leadership", Standing::leads).await;
        let index = write(member, &format!("d{leader}")).await;
        assert_same(&members, index).await;
        let follower = &members[(leader + 1) % 3].group;
        let refused = follower.propose(upsert(vec![document("x", &["x"])], 1)).await;
        assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_is_gone_another_one_leads_with_everything_that_was_acknowledged() {
    let wires = Arc::new(Wires::default());
    let mut members = three(&wires).await;
    for number in 0..20 {
        write(&members[0], &format!("d{number}")).await;
    }
    let once = upsert_once(vec![document("once", &["once"])], 9, 9, 1);
    let first = members[0].group.propose(once.clone()).await.unwrap();
    let gone = members.remove(0);
    let gone_id = gone.id();
    let folder = gone.stop(&wires).await;

    let standing = members[0].until("a new leader", |standing| standing.leader.is_some_and(|leader| leader != gone_id)).await;
    let leader = members.iter().find(|member| Some(member.id()) == standing.leader).unwrap();
    let index = write(leader, "after").await;
    let again = leader.group.propose(once).await.unwrap();
    assert_eq!(again.reply, first.reply, "a write that is sent again is applied once");
    assert_eq!(check_partition(&leader.group.reader(), TENANT, COLLECTION).len(), 22);

    members.push(Member::restart(folder, &wires).await);
    assert_same(&members, index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_replica_gets_a_snapshot_of_what_the_log_does_not_have_any_more() {
    let wires = Arc::new(Wires::default());
    let first = Member::start(&wires, Beginning::Found).await;
    let writes = (0..7_000u32).map(|number| {
        let group = first.group.clone();
        async move {
            let id = format!("d{}", number % 300);
            group.propose(upsert(vec![document(&id, &["text"])], u64::from(number))).await.unwrap().index
        }
    });
    let index = futures::StreamExt::fold(
        futures::StreamExt::buffer_unordered(futures::stream::iter(writes), 256),
        0,
        |last: u64, index| async move { last.max(index) },
    )
    .await;
    let second = Member::start(&wires, Beginning::Join).await;
    first.add(&second).await;
    assert!(wires.files.lock().unwrap().contains(&second.id()), "it was sent a snapshot");
    assert_same(&[first, second], index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_keeps_large_entries_for_a_replica_that_is_away_and_lets_go_of_what_all_have() {
    let wires = Arc::new(Wires::default());
    let mut members = three(&wires).await;
    let text = "word ".repeat(200_000);
    let large = |number: u32| upsert(vec![document(&format!("d{number}"), &[&text])], 1);
    let away = members.remove(2).stop(&wires).await;
    let before = wires.files.lock().unwrap().len();
    for number in 0..20 {
        members[0].group.propose(large(number)).await.unwrap();
    }
    members.push(Member::restart(away, &wires).await);
    let index = members[0].group.group().applied_index();
    assert_same(&members, index).await;
    assert_eq!(wires.files.lock().unwrap().len(), before, "it was fed from the log");

    for number in 20..40 {
        members[0].group.propose(large(number)).await.unwrap();
    }
    let index = members[0].group.group().applied_index();
    assert_same(&members, index).await;
    let leader = members.remove(0).stop(&wires).await;
    let entries = log_entries(leader.path());
    assert!(entries < 20, "{entries} entries of a megabyte are left, which all have");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_cannot_say_what_holds_and_the_others_go_on() {
    let wires = Arc::new(Wires::default());
    let members = three(&wires).await;
    write(&members[0], "before").await;
    wires.cut.lock().unwrap().insert(members[0].store.node());
    let cut = members[0].id();
    let standing = members[1].until("a new leader", |standing| standing.leader.is_some_and(|leader| leader != cut)).await;
    let refused = members[0].group.linearizable().await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    let leader = members.iter().find(|member| Some(member.id()) == standing.leader).unwrap();
    let index = write(leader, "meanwhile").await;
    wires.cut.lock().unwrap().clear();
    assert_same(&members, index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_in_flight_until_a_new_leader_has_decided_it() {
    let wires = Arc::new(Wires::default());
    let members = three(&wires).await;
    write(&members[0], "before").await;
    assert!(members[0].group.group().settled(PATIENCE).await);
    wires.cut.lock().unwrap().insert(members[0].store.node());
    let group = members[0].group.clone();
    let undecided = tokio::spawn(async move { group.propose(upsert(vec![document("undecided", &["x"])], 1)).await });
    let deadline = Instant::now() + PATIENCE;
    while members[0].group.group().settled(Duration::ZERO).await {
        assert!(Instant::now() < deadline, "the write is not in flight");
        tokio::task::yield_now().await;
    }
    let cut = members[0].id();
    let standing = members[1].until("a new leader", |standing| standing.leader.is_some_and(|leader| leader != cut)).await;
    write(members.iter().find(|member| Some(member.id()) == standing.leader).unwrap(), "meanwhile").await;
    assert!(!members[0].group.group().settled(Duration::from_millis(50)).await, "nobody has told it anything");
    wires.cut.lock().unwrap().clear();
    assert!(members[0].group.group().settled(PATIENCE).await);
    let outcome = undecided.await.unwrap();
    assert!(matches!(outcome, Err(ProposeError::UnknownOutcome { .. })), "the new leader does not have it: {outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_majority_is_lost_goes_on_alone_and_grows_again() {
    let wires = Arc::new(Wires::default());
    let members = three(&wires).await;
    for number in 0..20 {
        write(&members[0], &format!("d{number}")).await;
    }
    let last = members[0].group.group().applied_index();
    assert_same(&members, last).await;
    let ids: Vec<ReplicaId> = members.iter().map(Member::id).collect();
    let mut folders = Vec::new();
    for member in members {
        folders.push(member.stop(&wires).await);
    }
    // One that follows, not the one that led.
    let folder = folders.remove(2);
    let end = {
        let store = reopen(folder.path());
        assert!(matches!(make_sole_voter(&store, ReplicaId(77)), Err(RecoveryError::Empty(_))), "one that has nothing");
        let before = log_end(&store, ids[2]).unwrap().unwrap();
        let end = make_sole_voter(&store, ids[2]).unwrap();
        assert!(end > before && log_end(&store, ids[2]).unwrap() == Some(end), "{before:?} {end:?}");
        store.close();
        end
    };
    let survivor = Member::restart(folder, &wires).await;
    assert_eq!(survivor.id(), ids[2], "it is the same replica");
    survivor.until("it leads alone", |standing| standing.leads() && standing.voters.len() == 1).await;
    let index = write(&survivor, "after").await;
    assert!(index > end.index && end.index > last);
    assert_eq!(check_partition(&survivor.group.reader(), TENANT, COLLECTION).len(), 21);
    let newcomer = Member::start(&wires, Beginning::Join).await;
    survivor.add(&newcomer).await;
    let voters = BTreeSet::from([survivor.id(), newcomer.id()]);
    survivor.group.group().set_voters(&survivor.group.group().standing(), &voters).await.unwrap();
    let index = write(&survivor, "both").await;
    assert_same(&[survivor, newcomer], index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_decided_on_other_members_is_refused() {
    let wires = Arc::new(Wires::default());
    let (first, second) = (Member::start(&wires, Beginning::Found).await, Member::start(&wires, Beginning::Join).await);
    let seen = first.group.group().standing();
    first.add(&second).await;
    let outdated = first.group.group().remove_learner(&seen, second.id()).await;
    assert!(outdated.is_err(), "{outdated:?}");
    let seen = first.group.group().standing();
    first.group.group().remove_learner(&seen, second.id()).await.unwrap();
    first.until("it has left", |standing| !standing.nodes.contains_key(&second.id())).await;
}
