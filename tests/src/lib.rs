//! End-to-end tests: real nodes of the real binary, over HTTP. This library starts them; the tests are in `tests/tests`, a file a subject.

pub mod cluster;
pub mod import;
pub mod node;
pub mod shared;

pub use node::{Answer, Node, ragged};
