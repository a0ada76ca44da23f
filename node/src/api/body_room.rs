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
    bytes: usize,
}

impl BodyRoom {
    /// So many bytes for all bodies together.
    pub fn new(bytes_max: usize) -> Arc<BodyRoom> {
        Arc::new(BodyRoom { taken: AtomicUsize::new(0), bytes_max })
    }

    /// A place that has nothing yet.
    pub fn place(self: &Arc<Self>) -> BodyPlace {
        BodyPlace { room: self.clone(), bytes: 0 }
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
    /// Makes it so large; refused when there is no room for that.
    pub fn grow_to(&mut self, bytes: usize) -> Result<(), Problem> {
        let more = bytes.saturating_sub(self.bytes);
        let taken = self.room.taken.fetch_add(more, Ordering::Relaxed);
        if taken.saturating_add(more) > self.room.bytes_max {
            self.room.taken.fetch_sub(more, Ordering::Relaxed);
            let detail = format!(
                "the requests that this node is answering have {taken} bytes, and it has memory for {}",
                self.room.bytes_max
            );
            return Err(Problem::unavailable("bodies_overloaded", detail));
        }
        self.bytes += more;
        Ok(())
    }
}

impl Drop for BodyPlace {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_no_more_than_there_is_and_leave_it_to_others() {
        let room = BodyRoom::new(10);
        let (mut one, mut other) = (room.place(), room.place());
        one.grow_to(6).unwrap();
        one.grow_to(4).unwrap(); // it has that already
        assert_eq!(other.grow_to(5).unwrap_err().code, "bodies_overloaded");
        assert_eq!(room.bytes(), 6, "what was refused takes nothing");
        other.grow_to(4).unwrap();
        drop(one);
        other.grow_to(10).unwrap();
        drop(other);
        assert_eq!(room.bytes(), 0);
    }
}
