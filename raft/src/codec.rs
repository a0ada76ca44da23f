//! The one place that knows how values become bytes: bincode in a frame of version, length and checksum.
//!
//! A frame is `version u8 | length u32 LE | crc32 u32 LE | payload`; the checksum is over the payload.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of the frame and of bincode's settings.
const VERSION: u8 = 1;
/// Bytes before the payload.
const HEADER_BYTES: usize = 9;
/// Longest payload: the largest log entry, with room to spare.
pub const PAYLOAD_BYTES_MAX: usize = 128 << 20;

/// Why bytes could not be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by a version of ragged that this one does not know.
    #[error("frame version {0} is not known to this version of ragged")]
    UnknownVersion(u8),
    /// Longer than anything that is ever written.
    #[error("a payload of {0} bytes is over the limit of {PAYLOAD_BYTES_MAX}")]
    TooLong(usize),
    /// Bytes are missing, or there are too many.
    #[error("the frame should have {expected} bytes and has {found}")]
    WrongLength {
        /// What the header says.
        expected: usize,
        /// What is there.
        found: usize,
    },
    /// The payload is not what was written.
    #[error("the checksum does not match: the data is corrupt")]
    Checksum,
    /// The payload is not a value of the wanted type.
    #[error("the payload cannot be decoded: {0}")]
    Malformed(String),
}

impl From<CodecError> for std::io::Error {
    fn from(fault: CodecError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, fault)
    }
}

fn settings() -> Configuration<LittleEndian, Fixint, Limit<PAYLOAD_BYTES_MAX>> {
    bincode::config::standard().with_fixed_int_encoding().with_limit::<PAYLOAD_BYTES_MAX>()
}

/// A value as a frame.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![0; HEADER_BYTES];
    bincode::serde::encode_into_std_write(value, &mut frame, settings())
        .map_err(|fault| CodecError::Malformed(fault.to_string()))?;
    let length = frame.len() - HEADER_BYTES;
    if length > PAYLOAD_BYTES_MAX {
        return Err(CodecError::TooLong(length));
    }
    let checksum = crc32fast::hash(&frame[HEADER_BYTES..]);
    frame[0] = VERSION;
    frame[1..5].copy_from_slice(&(length as u32).to_le_bytes());
    frame[5..9].copy_from_slice(&checksum.to_le_bytes());
    Ok(frame)
}

/// The value of a frame that fills `frame` exactly.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, CodecError> {
    let Some((header, payload)) = frame.split_at_checked(HEADER_BYTES) else {
        return Err(CodecError::WrongLength { expected: HEADER_BYTES, found: frame.len() });
    };
    if header[0] != VERSION {
        return Err(CodecError::UnknownVersion(header[0]));
    }
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > PAYLOAD_BYTES_MAX {
        return Err(CodecError::TooLong(length));
    }
    if payload.len() != length {
        return Err(CodecError::WrongLength { expected: HEADER_BYTES + length, found: frame.len() });
    }
    let checksum = u32::from_le_bytes([header[5], header[6], header[7], header[8]]);
    if crc32fast::hash(payload) != checksum {
        return Err(CodecError::Checksum);
    }
    let (value, used) =
        bincode::serde::decode_from_slice(payload, settings()).map_err(|fault| CodecError::Malformed(fault.to_string()))?;
    if used != length {
        return Err(CodecError::Malformed(format!("{} bytes are left over", length - used)));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Value = (u64, String, Vec<(u8, Option<String>)>);

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(value: Value) {
            prop_assert_eq!(decode::<Value>(&encode(&value).unwrap()).unwrap(), value);
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode::<Value>(&bytes).is_err());
        }

        #[test]
        fn a_changed_or_cut_frame_is_an_error(value: Value, at: prop::sample::Index, bit in 0u8..8) {
            let frame = encode(&value).unwrap();
            let mut changed = frame.clone();
            let at = at.index(changed.len());
            changed[at] ^= 1 << bit;
            prop_assert!(decode::<Value>(&changed).is_err());
            prop_assert!(decode::<Value>(&frame[..at]).is_err());
        }

        #[test]
        fn a_well_framed_lie_about_lengths_is_an_error(payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut frame = vec![VERSION];
            frame.extend((payload.len() as u32).to_le_bytes());
            frame.extend(crc32fast::hash(&payload).to_le_bytes());
            frame.extend(&payload);
            // Whatever it decodes to, it does not panic nor ask for more memory than the limit.
            let _ = decode::<Vec<Vec<u64>>>(&frame);
        }
    }
}
