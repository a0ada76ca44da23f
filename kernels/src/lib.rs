//! The text encoder of ragged, and search over its vectors.
//!
//! A text passes through this crate in this order: [`tokenizer`] turns it into token ids, a [`device`] turns token
//! ids into a vector with the weights of a [`model`]; [`approximate`] finds the vectors that may be near another, and
//! [`exact`] compares them. The crate knows nothing of
//! tenants, documents, actors or networks; it depends on no other crate of the workspace.

#![cfg_attr(test, allow(clippy::unwrap_used))] // a test that unwraps fails, and says where

pub mod approximate;
pub mod configuration;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod exact;
pub mod instructions;
pub mod model;
pub mod precision;
pub mod row_file;
pub mod tokenizer;
pub mod weights;

pub use approximate::{ApproximateIndex, IndexError};
pub use configuration::{Activation, EncoderConfiguration, Pooling};
pub use cpu::CpuDevice;
pub use cuda::{CudaDevice, GpuError};
pub use device::{Device, DeviceError};
pub use exact::Scored;
pub use instructions::Instructions;
pub use model::{Model, ModelError};
pub use precision::{Precision, UnknownPrecision};
pub use row_file::RowFile;
pub use tokenizer::{TextTokenizer, TokenSequence, TokenizeError};
pub use weights::{Tensor, Weights};

mod lanes;
mod tiles;

#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod test_support;
