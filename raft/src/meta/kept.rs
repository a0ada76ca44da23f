//! Rows of the meta group that every request needs, kept in memory for as long as nothing is applied: what they say then is what the database says.

use parking_lot::RwLock;
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

/// Rows that are kept at most. Keys, collections and places are some hundred bytes each.
const ROWS_MAX: usize = 4096;

/// Rows by their keys.
#[derive(Default)]
pub(super) struct KeptRows {
    rows: RwLock<Rows>,
}

#[derive(Default)]
struct Rows {
    /// Index of the last entry that was applied before any of them was read.
    as_of: u64,
    by_key: HashMap<Vec<u8>, Arc<dyn Any + Send + Sync>>,
}

impl KeptRows {
    /// A row, unless something has been applied since it was read.
    pub(super) fn get<T: Send + Sync + 'static>(&self, applied: u64, key: &[u8]) -> Option<Arc<T>> {
        let rows = self.rows.read();
        let row = rows.by_key.get(key).filter(|_| rows.as_of == applied)?;
        row.clone().downcast().ok()
    }

    /// Keeps a row that was read when `as_of` had been applied, or later.
    pub(super) fn keep<T: Send + Sync + 'static>(&self, as_of: u64, key: Vec<u8>, row: Arc<T>) {
        let mut rows = self.rows.write();
        if rows.as_of < as_of || rows.by_key.len() >= ROWS_MAX {
            *rows = Rows { as_of: rows.as_of.max(as_of), by_key: HashMap::new() };
        }
        // What was read before the others may have changed since.
        if rows.as_of == as_of {
            rows.by_key.insert(key, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(kept: &KeptRows, applied: u64, key: &[u8]) -> Option<u32> {
        kept.get(applied, key).map(|row| *row)
    }

    #[test]
    fn a_row_is_known_until_something_is_applied() {
        let kept = KeptRows::default();
        assert_eq!(get(&kept, 0, b"a"), None);
        kept.keep(5, b"a".to_vec(), Arc::new(1u32));
        kept.keep(5, b"b".to_vec(), Arc::new(2u32));
        assert_eq!((get(&kept, 5, b"a"), get(&kept, 5, b"b")), (Some(1), Some(2)));
        assert_eq!(get(&kept, 6, b"a"), None);
        kept.keep(6, b"b".to_vec(), Arc::new(3u32));
        assert_eq!((get(&kept, 6, b"a"), get(&kept, 6, b"b")), (None, Some(3)));
        // Read before the entry was applied that the others have seen.
        kept.keep(5, b"a".to_vec(), Arc::new(1u32));
        assert_eq!((get(&kept, 5, b"a"), get(&kept, 6, b"a")), (None, None));
        assert_eq!(kept.get::<String>(6, b"b"), None, "a row is of one type");
    }

    #[test]
    fn rows_are_bounded() {
        let kept = KeptRows::default();
        for number in 0..10 * ROWS_MAX as u32 {
            kept.keep(1, number.to_be_bytes().to_vec(), Arc::new(number));
            assert_eq!(get(&kept, 1, &number.to_be_bytes()), Some(number));
            assert!(kept.rows.read().by_key.len() <= ROWS_MAX);
        }
    }
}
