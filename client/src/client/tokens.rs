//! The last write of each collection, for reading one's own writes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Collections that tokens are kept for at most; beyond that the map starts anew, and searches fall back to `eventual`.
const COLLECTIONS_MAX: usize = 100_000;

/// Tokens by collection.
#[derive(Debug, Default)]
pub(crate) struct WriteTokens(Mutex<HashMap<String, String>>);

impl WriteTokens {
    /// Keeps the token of a write; an empty one names no write.
    pub(crate) fn remember(&self, collection: &str, token: &str) {
        if token.is_empty() {
            return;
        }
        let mut tokens = self.lock();
        if tokens.len() >= COLLECTIONS_MAX && !tokens.contains_key(collection) {
            tokens.clear();
        }
        tokens.insert(collection.to_owned(), token.to_owned());
    }

    /// The token of the last write to a collection.
    pub(crate) fn last(&self, collection: &str) -> Option<String> {
        self.lock().get(collection).cloned()
    }

    /// Forgets a collection that was deleted: a new one of the same name has other tokens.
    pub(crate) fn forget(&self, collection: &str) {
        self.lock().remove(collection);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        // The map is whole after every statement, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_token_of_each_collection_is_kept_and_an_empty_one_changes_nothing() {
        let tokens = WriteTokens::default();
        tokens.remember("a", "1");
        tokens.remember("b", "2");
        tokens.remember("a", "3");
        tokens.remember("a", "");
        assert_eq!(tokens.last("a").as_deref(), Some("3"));
        assert_eq!(tokens.last("b").as_deref(), Some("2"));
        tokens.forget("a");
        assert_eq!(tokens.last("a"), None);
    }
}
