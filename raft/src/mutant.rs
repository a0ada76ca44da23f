//! Known bugs that are switched on by name, so that the checks of `ragged-chaos` can be checked: docs/mutants.md.
//!
//! They are in a build with the feature `mutants` only. Without it [`is_on`] is `false` when the program is compiled, and nothing of them is left in it.

macro_rules! mutants {
    ($($(#[doc = $promise:literal])+ $variant:ident = $name:literal,)+) => {
        /// A known bug, and the promise that it breaks.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[doc = $promise])+ $variant,)+
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Mutant] = &[$(Mutant::$variant,)+];

            /// What it is switched on by.
            pub const fn name(self) -> &'static str {
                match self { $(Mutant::$variant => $name,)+ }
            }

            /// What it does, and which promise that breaks, in a line.
            pub const fn meaning(self) -> &'static str {
                match self { $(Mutant::$variant => concat!($($promise),+).trim_ascii(),)+ }
            }
        }
    };
}

mutants! {
    /// Nothing is ever synced: what was acknowledged is lost with the power.
    SkipSync = "skip-sync",
    /// Log entries count as durable as soon as they are written: what was acknowledged is lost with the power.
    LogWithoutPersisting = "log-without-persisting",
    /// A start forgets the vote: a replica follows a leader that was replaced, and gives up what its successor had acknowledged.
    VoteWithoutPersisting = "vote-without-persisting",
    /// The leader counts followers that do not answer: a write is acknowledged that no majority has.
    AcknowledgeBeforeMajority = "acknowledge-before-majority",
    /// Rows are kept in memory while the log that made them is purged: a kill takes both.
    PurgeBeforeDurable = "purge-before-durable",
    /// Keys do not name the collection: one collection's documents replace another's.
    DropKeyPrefix = "drop-key-prefix",
    /// Replica ids are counted from the same start on every node: two replicas of a group have one id, and it gets no second one.
    ReuseReplicaId = "reuse-replica-id",
    /// Each entry is applied two times: a document is stored twice by one upload.
    ApplyTwice = "apply-twice",
    /// The table of idempotency keys is not read: a repeated upload is carried out again.
    ForgetIdempotency = "forget-idempotency",
    /// Strong reads are answered by whatever replica, as it is: they miss what was acknowledged.
    StaleStrongRead = "stale-strong-read",
    /// A leader answers strong reads without asking whether it still leads: they miss what another one acknowledged.
    UnconfirmedReadIndex = "unconfirmed-read-index",
    /// A read does not wait for the write that its token names.
    TokenNotAwaited = "token-not-awaited",
    /// The files of a vector segment are not compared with their checksums: rotten bits are served.
    SkipChecksum = "skip-checksum",
    /// A snapshot that was cut off is installed as if it were whole: a replica lacks rows.
    InstallTornSnapshot = "install-torn-snapshot",
    /// A snapshot leaves out rows: a replica that was filled by it lacks texts.
    SnapshotMissesRows = "snapshot-misses-rows",
    /// A snapshot is put over the rows that are there: what was deleted meanwhile comes back.
    InstallOverOldRows = "install-over-old-rows",
    /// The mark of what is applied is written before the rows: a kill in between leaves a replica without them.
    MarkBeforeRows = "mark-before-rows",
    /// A start forgets who is in the group: after all its nodes were killed it has no leader any more.
    MembershipForgotten = "membership-forgotten",
    /// A data folder that lost synced writes is served, instead of refused.
    IgnoreWatermark = "ignore-watermark",
    /// A partition that is loaded has its checkpoint only: rows that came after it are not found.
    LoseTail = "lose-tail",
    /// Deleted rows of a vector segment take the places of those that are there.
    IgnoreDeletions = "ignore-deletions",
    /// Deleting a document leaves the rows of its chunks: they take other documents' places in searches.
    DeleteKeepsRows = "delete-keeps-rows",
    /// Deleting says that it is done, and does nothing.
    DeleteNotDone = "delete-not-done",
    /// Replacing a document leaves its old chunks: they take other documents' places in searches, and are counted.
    UpdateKeepsChunks = "update-keeps-chunks",
    /// Loaded partitions are not told of writes: a search misses what was acknowledged before it.
    SearchMissesFresh = "search-misses-fresh",
    /// What the last shard found is left out of a search.
    MergeDropsShard = "merge-drops-shard",
    /// The filter of a search is not looked at.
    FilterIgnored = "filter-ignored",
    /// A job that is under way is not noted as such: after a kill nobody goes on with it.
    LoseJobStage = "lose-job-stage",
    /// An import counts what it was sent, not what was stored.
    ImportAnswersEarly = "import-answers-early",
    /// The vectors of a batch are given to the wrong chunks.
    VectorsSwapped = "vectors-swapped",
    /// A page of a listing goes on behind the document after its last.
    ListingSkips = "listing-skips",
    /// A collection that was made on another node is denied, without asking whether there is one.
    MetadataNotAsked = "metadata-not-asked",
    /// A write of unknown outcome is told as refused: it takes effect all the same.
    UnknownAsRefused = "unknown-as-refused",
    /// A write of unknown outcome is sent again: it takes effect twice.
    RetryUnknownWrite = "retry-unknown-write",
    /// A replica that is still being filled answers reads: they miss what was acknowledged long ago.
    AnswersWhileFilled = "answers-while-filled",
}

/// Whether a mutant is on: never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is_on(_mutant: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use switch::{UnknownMutant, is_on, switch_on};

#[cfg(feature = "mutants")]
mod switch {
    use super::Mutant;
    use std::sync::OnceLock;

    /// A bit for each mutant that is on.
    static ON: OnceLock<u64> = OnceLock::new();
    const _: () = assert!(Mutant::ALL.len() <= 64, "a bit each");

    /// A name that no mutant has.
    #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
    #[error("there is no mutant {0}")]
    pub struct UnknownMutant(pub String);

    /// Switches mutants on, by their names, separated by commas. Once in a process: what was first counts.
    pub fn switch_on(names: &str) -> Result<Vec<Mutant>, UnknownMutant> {
        let mut mutants = Vec::new();
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let found = Mutant::ALL.iter().find(|mutant| mutant.name() == name);
            mutants.push(*found.ok_or_else(|| UnknownMutant(name.to_owned()))?);
        }
        ON.get_or_init(|| mutants.iter().fold(0, |on, mutant| on | bit(*mutant)));
        Ok(mutants)
    }

    /// Whether a mutant is on.
    pub fn is_on(mutant: Mutant) -> bool {
        ON.get().is_some_and(|on| on & bit(mutant) != 0)
    }

    fn bit(mutant: Mutant) -> u64 {
        1 << mutant as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_has_a_name_of_its_own_and_says_what_it_breaks() {
        let mut names: Vec<&str> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Mutant::ALL.len());
        assert!(Mutant::ALL.iter().all(|mutant| mutant.meaning().ends_with('.')));
        assert!(Mutant::ALL.iter().all(|mutant| !is_on(*mutant)), "nothing is on by itself");
    }

    #[cfg(not(feature = "mutants"))]
    #[test]
    fn without_the_feature_the_compiler_knows_that_none_is_on() {
        const NEVER: bool = is_on(Mutant::SkipSync);
        const { assert!(!NEVER) };
    }

    #[cfg(feature = "mutants")]
    #[test]
    fn a_name_that_is_not_known_is_refused() {
        assert_eq!(switch_on("skip-sync,nonsense"), Err(UnknownMutant("nonsense".into())));
    }
}
