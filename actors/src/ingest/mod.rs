//! Ingestion: an upload is checked, parsed, cut into chunks, embedded and replicated, in this order, a file each.

pub mod chunk;
pub mod document;
pub mod html;
pub mod import;
pub mod jobs;
pub mod parse;
pub mod pipeline;

pub use document::UploadDocument;
pub use import::{Import, ImportOutcome, ImportRefusal};
pub use jobs::{JobsActor, JobsArguments, JobsMessage};
pub use pipeline::{Pipeline, Uploaded};
