//! An API key, which never shows in logs.

use crate::error::ClientError;
use reqwest::header::HeaderValue;

/// An API key. Its `Debug` form does not contain it, and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The bearer header of this key, marked so that HTTP libraries do not log it either.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when the key has characters that cannot stand in a header.
    pub(crate) fn bearer(&self) -> Result<HeaderValue, ClientError> {
        let mut header = HeaderValue::from_str(&format!("Bearer {}", self.0)).map_err(|_| {
            ClientError::Invalid("the key has characters that a key cannot have, such as a line break".to_owned())
        })?;
        header.set_sensitive(true);
        Ok(header)
    }
}

impl<T: Into<String>> From<T> for Key {
    fn from(key: T) -> Self {
        Key(key.into())
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Key(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_show_in_debug_output() {
        let key = Key::from("secret-of-the-cluster");
        let header = key.bearer().expect("plain letters make a header");
        assert_eq!(header.as_bytes(), b"Bearer secret-of-the-cluster");
        for shown in [format!("{key:?}"), format!("{header:?}"), format!("{:#?}", Some(&key))] {
            assert!(!shown.contains("secret"), "{shown}");
        }
    }

    #[test]
    fn a_key_with_a_line_break_is_refused_without_being_shown() {
        let error = Key::from("secret\n").bearer().expect_err("a line break cannot stand in a header");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
