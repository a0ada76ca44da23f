//! What turns token sequences into vectors.

use crate::configuration::EncoderConfiguration;
use crate::tokenizer::TokenSequence;

/// A device that turns token sequences into vectors. All devices give the same vectors for the same input, within
/// a cosine of 0.9999 of one another; those that compute with halves within 0.9995, and those that do with whole numbers within 0.99.
pub trait Device: Send + Sync {
    /// A short name for logs and reports: the kind of the device and what it uses.
    fn name(&self) -> &str;

    /// Embeds `sequences`, which need no padding. Returns one vector of
    /// [`Model::dimension`](crate::Model::dimension) values and Euclidean length one for each sequence, in the
    /// order of `sequences`, one after the other. Blocks the calling thread until all are done; several threads may
    /// call at once.
    ///
    /// # Errors
    /// A sequence that is empty, too long, or holds a token that the model does not have is an error that names it,
    /// and nothing is computed. [`DeviceError::Panicked`] and [`DeviceError::Stopped`] are faults of this program.
    fn embed(&self, sequences: &[TokenSequence]) -> Result<Vec<f32>, DeviceError>;

    /// Bytes of this process's memory that its weights take.
    fn weights_bytes(&self) -> usize {
        0
    }

    /// Whether it answers no more, and is to be opened anew.
    fn is_lost(&self) -> bool {
        false
    }

    /// How many calls of [`Device::embed`] keep it busy.
    fn batches_in_flight(&self) -> usize {
        1
    }
}

/// Refuses sequences that no device can embed.
pub(crate) fn check_sequences(configuration: &EncoderConfiguration, sequences: &[TokenSequence]) -> Result<(), DeviceError> {
    let (limit, vocabulary) = (configuration.positions, configuration.vocabulary_size);
    for (index, sequence) in sequences.iter().enumerate() {
        if sequence.is_empty() {
            return Err(DeviceError::EmptySequence { sequence: index });
        }
        if sequence.len() > limit {
            return Err(DeviceError::SequenceTooLong { sequence: index, tokens: sequence.len(), limit });
        }
        let unknown = sequence.0.iter().find(|token| **token as usize >= vocabulary);
        if let Some(token) = unknown {
            return Err(DeviceError::TokenOutOfRange { sequence: index, token: *token, vocabulary });
        }
    }
    Ok(())
}

/// Why a device did not start or did not embed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A sequence without tokens has no vector. The tokenizer never makes one: an empty text has its special tokens.
    #[error("sequence {sequence} is empty: a vector needs at least one token")]
    EmptySequence {
        /// Position of the sequence in the call.
        sequence: usize,
    },
    /// More tokens than the model has positions.
    #[error("sequence {sequence} has {tokens} tokens, more than the model's {limit} positions: truncate it")]
    SequenceTooLong {
        /// Position of the sequence in the call.
        sequence: usize,
        /// Its number of tokens.
        tokens: usize,
        /// The largest number that the model takes.
        limit: usize,
    },
    /// A token id that the model's vocabulary does not have, as when tokenizer and weights do not belong together.
    #[error("sequence {sequence} holds token {token}, but the model has {vocabulary}: do tokenizer and weights belong together?")]
    TokenOutOfRange {
        /// Position of the sequence in the call.
        sequence: usize,
        /// The token id.
        token: u32,
        /// Number of tokens of the model.
        vocabulary: usize,
    },
    /// The instruction set was asked for but this processor does not have it.
    #[error("this processor does not have {0}: leave the choice to the program or name another set")]
    InstructionsUnavailable(crate::Instructions),
    /// The precision was asked for but this processor does not have the instructions for it.
    #[error(
        "this processor cannot compute with {precision} ({instructions}): use another precision, or leave the choice to the program"
    )]
    PrecisionUnavailable {
        /// The precision.
        precision: crate::Precision,
        /// The instruction set.
        instructions: crate::Instructions,
    },
    /// A worker thread did not start.
    #[error("cannot start an encoder thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The model's weights could not be read.
    #[error(transparent)]
    Model(#[from] crate::ModelError),
    /// The device computes with halves, and this sequence needs larger numbers. Another device can embed it.
    #[error("sequence {sequence} leads to numbers that are too large for the device")]
    BeyondHalves {
        /// Position of the sequence in the call.
        sequence: usize,
    },
    /// The GPU failed. Another device can embed the same sequences.
    #[error(transparent)]
    Gpu(#[from] crate::cuda::GpuError),
    /// The encoder panicked: a bug. The device goes on working.
    #[error("the encoder panicked (a bug, please report it): {0}")]
    Panicked(String),
    /// The device's threads are gone.
    #[error("the encoder's threads have stopped")]
    Stopped,
}
