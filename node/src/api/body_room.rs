//! The memory that bodies of requests have together, while the requests are being answered.

use crate::api::problem::Problem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Room for bodies.
pub struct BodyRoom {
    taken: AtomicUsize,
    bytes_max: usize,
}

/// What one body has of it, until it is dropped.
pub struct BodyPlace {
    room: Arc<BodyRoom>,
    bytes: AtomicUsize,
}

/// Bodies up to this long need no place: searches, and most else that is not an upload, are never refused for the uploads of others.
const FREE_BYTES: usize = 64 << 10;

impl BodyRoom {
    /// So many bytes for all bodies together.
    pub fn new(bytes_max: usize) -> Arc<BodyRoom> {
        Arc::new(BodyRoom { taken: AtomicUsize::new(0), bytes_max })
    }

    /// A place that has nothing yet.
    pub fn place(self: &Arc<Self>) -> BodyPlace {
        BodyPlace { room: self.clone(), bytes: AtomicUsize::new(0) }
    }

    /// Bytes that are taken.
    pub fn bytes(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Bytes that there are.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }
}

impl BodyPlace {
    /// Makes it so large; refused when there is no room for that. One at a time does this.
    pub fn grow_to(&self, bytes: usize) -> Result<(), Problem> {
        if bytes <= FREE_BYTES {
            return Ok(());
        }
        let more = bytes.saturating_sub(self.bytes.load(Ordering::Relaxed));
        let taken = self.room.taken.fetch_add(more, Ordering::Relaxed);
        if taken.saturating_add(more) > self.room.bytes_max {
            self.room.taken.fetch_sub(more, Ordering::Relaxed);
            let detail = format!(
                "the requests that this node is answering have {taken} bytes, and it has memory for {}",
                self.room.bytes_max
            );
            return Err(Problem::unavailable("bodies_overloaded", detail));
        }
        self.bytes.fetch_add(more, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for BodyPlace {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_no_more_than_there_is_and_leave_it_to_others() {
        const K: usize = FREE_BYTES;
        let room = BodyRoom::new(10 * K);
        let (one, other) = (room.place(), room.place());
        one.grow_to(6 * K).unwrap();
        one.grow_to(4 * K).unwrap(); // it has that already
        assert_eq!(other.grow_to(5 * K).unwrap_err().code, "bodies_overloaded");
        assert_eq!(room.bytes(), 6 * K, "what was refused takes nothing");
        other.grow_to(4 * K).unwrap();
        room.place().grow_to(K).unwrap(); // a small one is let in when all is taken
        drop(one);
        other.grow_to(10 * K).unwrap();
        drop(other);
        assert_eq!(room.bytes(), 0);
    }
}
