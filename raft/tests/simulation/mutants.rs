//! Faults that no system survives: the world breaks its own rules on purpose, to show that the ledger notices.

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A disk says that it has synced, and has not.
    LyingDisk,
    /// The network answers in the place of a peer that it did not reach, with what that peer has answered before.
    ForgedAnswers,
    /// A client reads at a leader without asking it whether it still leads.
    StaleReads,
}
