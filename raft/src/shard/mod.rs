//! The shard groups: documents, their chunks and vectors, and the jobs that bring them in.

pub mod changes;
pub mod command;
pub mod group;
mod machine;
pub mod reader;
pub mod rows;
