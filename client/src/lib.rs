//! The wire types of ragged's `/api/v1`, and the client that uses them.
//!
//! The node serialises these very types, its OpenAPI document is generated from them, and the command line and the
//! end-to-end tests read them back: a field exists once.

#![cfg_attr(test, allow(clippy::unwrap_used))] // a test that unwraps fails, and says where

pub mod client;
pub mod cluster;
pub mod collection;
pub mod document;
pub mod error;
pub mod filter;
pub mod job;
pub mod memory;
pub mod metadata;
pub mod problem;
mod recall;
pub mod search;
pub mod status;

pub use client::{Client, ClientBuilder, ImportOptions, Key, ListOptions, RetryPolicy, UploadFile, UploadOptions, UploadReply};
pub use cluster::*;
pub use collection::*;
pub use document::*;
pub use error::ClientError;
pub use filter::*;
pub use job::*;
pub use memory::*;
pub use metadata::Metadata;
pub use problem::*;
pub use recall::{Recall, UnknownRecall};
pub use search::*;
pub use status::*;
