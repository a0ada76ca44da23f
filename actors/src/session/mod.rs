//! Sessions: who asks, and how much they may ask at once.

mod actor;
mod directory;
mod key;

pub use actor::{Permit, Principal, SessionActor, SessionArguments, SessionMessage};
pub use directory::Sessions;
pub use key::{ApiKey, KeyError};
