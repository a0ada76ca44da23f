//! The meta group: what the cluster must agree on and what is small.

pub mod collection;
pub mod command;
pub mod group;
mod kept;
mod machine;
pub mod node;

pub use group::{ClusterRow, Founding, MetaGroup};
