//! What a product multiplies.

use crate::precision::Precision;

/// The numbers of a product: those of its activations and its weights. A [`Precision`] says which product of an encoder has which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// IEEE single precision.
    F32,
    /// The upper half of an f32. Sums are f32.
    Bf16,
    /// Weights of -127 to 127 with a factor for each output, activations of 0 to 255 with a factor and a zero for each token. Sums are whole.
    Int8,
}

impl Numbers {
    /// All, in their order.
    pub(crate) const ALL: [Numbers; 3] = [Numbers::F32, Numbers::Bf16, Numbers::Int8];
}

impl From<Numbers> for Precision {
    /// The precision of an encoder whose feed-forward networks multiply these.
    fn from(numbers: Numbers) -> Self {
        match numbers {
            Numbers::F32 => Precision::F32,
            Numbers::Bf16 => Precision::Bf16,
            Numbers::Int8 => Precision::Int8,
        }
    }
}
