//! Named points of the code at which a node can be killed, in a build with the feature `failpoints`: what a crash leaves there is looked at by
//! `ragged-chaos points`. Without the feature, [`hit`] does nothing, and nothing of it is left in the program.

macro_rules! points {
    ($($(#[doc = $meaning:literal])+ $variant:ident = $name:literal $moment:ident,)+) => {
        /// A point of the code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $($(#[doc = $meaning])+ $variant,)+
        }

        impl Point {
            /// All of them.
            pub const ALL: &[Point] = &[$(Point::$variant,)+];

            /// What it is named by.
            pub const fn name(self) -> &'static str {
                match self { $(Point::$variant => $name,)+ }
            }

            /// Where it is, in a line.
            pub const fn meaning(self) -> &'static str {
                match self { $(Point::$variant => concat!($($meaning),+).trim_ascii(),)+ }
            }

            /// When a node comes by.
            pub const fn moment(self) -> Moment {
                match self { $(Point::$variant => Moment::$moment,)+ }
            }
        }
    };
}

/// When a node comes by a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// While it serves reads and writes.
    Working,
    /// Each time that it starts.
    Starting,
    /// When it founds a cluster.
    Founding,
    /// When it joins a cluster, and gets its replicas.
    Joining,
    /// When it is the meta group's leader, and another node joins.
    Admitting,
    /// When it sends a snapshot.
    Sending,
    /// When it is sent a snapshot.
    Filled,
    /// When it comes back after it led on its own, and its log is not the others'.
    Overruled,
    /// When its replicas are moved to others.
    Drained,
    /// When it is told to stop.
    Stopping,
}

impl Moment {
    /// What it is named by.
    pub const fn name(self) -> &'static str {
        match self {
            Moment::Working => "working",
            Moment::Starting => "starting",
            Moment::Founding => "founding",
            Moment::Joining => "joining",
            Moment::Admitting => "admitting",
            Moment::Sending => "sending",
            Moment::Filled => "filled",
            Moment::Overruled => "overruled",
            Moment::Drained => "drained",
            Moment::Stopping => "stopping",
        }
    }
}

points! {
    /// Before entries are written to the log.
    LogAppendBefore = "log-append-before" Working,
    /// Entries are written, and not synced.
    LogAppendWritten = "log-append-written" Working,
    /// Entries are synced, and nobody has been told.
    LogAppendDurable = "log-append-durable" Working,
    /// Before the write-ahead log is synced.
    SyncBefore = "sync-before" Working,
    /// It is synced, and the watermark does not say so yet.
    SyncAfter = "sync-after" Working,
    /// The watermark says so.
    WatermarkAfter = "watermark-after" Working,
    /// Before a vote is written.
    VoteBefore = "vote-before" Working,
    /// A vote is written, and not synced.
    VoteWritten = "vote-written" Working,
    /// A vote is synced, and nobody has been told.
    VoteDurable = "vote-durable" Working,
    /// How far the log is committed has been written.
    CommittedSaved = "committed-saved" Working,
    /// Before the end of a log that is not the leader's is removed.
    TruncateBefore = "truncate-before" Overruled,
    /// It is removed.
    TruncateAfter = "truncate-after" Overruled,
    /// Before the beginning of a log is purged.
    PurgeBefore = "purge-before" Working,
    /// It is purged.
    PurgeAfter = "purge-after" Working,
    /// Before an entry is applied.
    ApplyBefore = "apply-before" Working,
    /// It is applied, and nobody has been told.
    ApplyAfter = "apply-after" Working,
    /// The rows of a shard's command are written, and the partition has not been told.
    ShardApplied = "shard-applied" Working,
    /// Before a change of the members is applied.
    MembershipBefore = "membership-before" Joining,
    /// It is applied.
    MembershipAfter = "membership-after" Joining,
    /// Before the reply to an idempotent write is put beside its rows.
    IdempotencyBefore = "idempotency-before" Working,
    /// It is put there, and not written.
    IdempotencyAfter = "idempotency-after" Working,
    /// Before a job's row is put into a batch.
    JobPutBefore = "job-put-before" Working,
    /// It is put there, and not written.
    JobPutAfter = "job-put-after" Working,
    /// Before a snapshot is written out.
    SnapshotWriteBefore = "snapshot-write-before" Sending,
    /// It is written out and synced, under another name.
    SnapshotRenameBefore = "snapshot-rename-before" Sending,
    /// It has its name.
    SnapshotRenameAfter = "snapshot-rename-after" Sending,
    /// A snapshot has been received, and nothing was done with it.
    SnapshotReceived = "snapshot-received" Filled,
    /// Before the rows of a snapshot are written beside the replica's.
    SnapshotStageBefore = "snapshot-stage-before" Filled,
    /// They are written beside them.
    SnapshotStaged = "snapshot-staged" Filled,
    /// They are the replica's, and the old ones are still there.
    SnapshotSwitched = "snapshot-switched" Filled,
    /// The old rows are gone.
    SnapshotInstalled = "snapshot-installed" Filled,
    /// Before the store's identity, with its replicas, is written.
    StoreIdentityBefore = "store-identity-before" Starting,
    /// It is written and synced.
    StoreIdentityAfter = "store-identity-after" Starting,
    /// Before the rows and the log of a replica that was given up are removed.
    ReplicaDropBefore = "replica-drop-before" Drained,
    /// They are removed.
    ReplicaDropAfter = "replica-drop-after" Drained,
    /// Before a segment is begun.
    SegmentBefore = "segment-before" Working,
    /// A segment's vectors are synced.
    SegmentVectorsWritten = "segment-vectors-written" Working,
    /// A segment is whole, and nothing names it.
    SegmentWritten = "segment-written" Working,
    /// Before the manifest names a segment.
    ManifestBefore = "manifest-before" Working,
    /// It names it.
    ManifestAfter = "manifest-after" Working,
    /// A file is written and synced, and has not its name.
    FileRenameBefore = "file-rename-before" Working,
    /// It has its name, and the folder is not synced.
    FileRenameAfter = "file-rename-after" Working,
    /// Before the text index is committed.
    TextCommitBefore = "text-commit-before" Working,
    /// It is committed.
    TextCommitAfter = "text-commit-after" Working,
    /// A job is durable, and nobody has been told.
    JobSubmitted = "job-submitted" Working,
    /// Before a job reaches a stage.
    JobStageBefore = "job-stage-before" Working,
    /// It has reached it.
    JobStageAfter = "job-stage-after" Working,
    /// Some of a job's documents are stored, and the job does not say so yet.
    JobSliceStored = "job-slice-stored" Working,
    /// A job has ended, and what was uploaded for it is still there.
    JobEnded = "job-ended" Working,
    /// One shard of an upload is written.
    UploadShardWritten = "upload-shard-written" Working,
    /// A batch of an import is stored.
    ImportBatchStored = "import-batch-stored" Working,
    /// Before a deleted collection is cleared out of the shards.
    CollectionDropBefore = "collection-drop-before" Working,
    /// It is cleared out of one of them.
    CollectionDropShard = "collection-drop-shard" Working,
    /// Before the first key is written.
    AdminKeyBefore = "admin-key-before" Founding,
    /// The cluster is founded, and has no authority yet.
    ClusterFounded = "cluster-founded" Founding,
    /// It has one, and the founder has no certificate yet.
    ClusterEstablished = "cluster-established" Founding,
    /// Before a cluster is asked to let this node in.
    JoinBefore = "join-before" Joining,
    /// It has let it in, and the node has not noted that.
    JoinAnswered = "join-answered" Joining,
    /// The node's identity is written, and has not its name.
    IdentityRenameBefore = "identity-rename-before" Joining,
    /// It has its name.
    IdentityRenameAfter = "identity-rename-after" Joining,
    /// Before a node that asks is let in.
    AdmitBefore = "admit-before" Admitting,
    /// It is in, and has not been told.
    AdmitAfter = "admit-after" Admitting,
    /// Before the reconciler makes a step.
    StepBefore = "step-before" Admitting,
    /// It is made.
    StepAfter = "step-after" Admitting,
    /// A node keeps a new replica that the group does not know of.
    GrowHosted = "grow-hosted" Admitting,
    /// Before a new replica is begun.
    HostBefore = "host-before" Joining,
    /// It runs.
    HostAfter = "host-after" Joining,
    /// Before a replica that has left its group is given up.
    UnhostBefore = "unhost-before" Drained,
    /// It does not run any more, and its files are still there.
    UnhostEnded = "unhost-ended" Drained,
    /// Before what the node leads is handed on.
    HandOverBefore = "hand-over-before" Stopping,
    /// It is handed on.
    HandOverAfter = "hand-over-after" Stopping,
}

/// The node comes by a point: nothing happens, in this build.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn hit(_point: Point) {}

/// The node comes by a point, and dies there when that was asked for.
#[cfg(feature = "failpoints")]
pub fn hit(point: Point) {
    fail::fail_point!(point.name(), |_| {
        // Not through the logger, which may be buffered.
        eprintln!("ragged: killed at the point {}", point.name());
        die()
    });
}

/// As kill(1) does it: nothing is flushed, nothing is dropped.
#[cfg(feature = "failpoints")]
fn die() {
    // SAFETY: getpid and kill take and give plain numbers.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    std::thread::sleep(std::time::Duration::from_secs(60)); // the signal comes before this ends
}

/// A setting that names no point, or is not understood.
#[cfg(feature = "failpoints")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("fail points: {0}")]
pub struct UnknownPoint(String);

/// Arms points, by lines or a list separated by `;` of `NAME=ACTION`, where the action is of the crate `fail`: `3*off->return` dies when the node comes
/// by for the fourth time.
#[cfg(feature = "failpoints")]
pub fn arm(settings: &str) -> Result<(), UnknownPoint> {
    for setting in settings.split([';', '\n']).map(str::trim).filter(|setting| !setting.is_empty()) {
        let (name, action) = setting.split_once('=').ok_or_else(|| UnknownPoint(format!("{setting} is not NAME=ACTION")))?;
        if !Point::ALL.iter().any(|point| point.name() == name) {
            return Err(UnknownPoint(format!("there is no point {name}")));
        }
        fail::cfg(name, action).map_err(UnknownPoint)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn sources(folder: &Path, into: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("failpoints.rs") {
                into.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn every_point_is_in_the_code_once_and_has_a_name_of_its_own() {
        let mut code = String::new();
        for crate_folder in ["raft", "actors"] {
            sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(crate_folder).join("src"), &mut code);
        }
        for point in Point::ALL {
            let places = code.matches(&format!("Point::{point:?})")).count();
            assert_eq!(places, 1, "{point:?} is to be hit at one place");
        }
        let mut names: Vec<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Point::ALL.len());
        assert!(names.len() >= 40);
    }
}
