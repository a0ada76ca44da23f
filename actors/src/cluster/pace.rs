//! How fast a node sends snapshots, so that moving replicas leaves room for everything else.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// A rate that all transfers of a node share.
pub struct Pace {
    bytes_per_second: u64,
    /// When the bytes that were let go so far will have been sent.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    /// So many bytes a second, at least one.
    pub fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second: bytes_per_second.max(1), free_at: Mutex::new(None) }
    }

    /// Waits for the turn of so many bytes, behind those that were asked for before.
    pub async fn take(&self, bytes: usize) {
        tokio::time::sleep_until(self.turn(Instant::now(), bytes).into()).await;
    }

    fn turn(&self, now: Instant, bytes: usize) -> Instant {
        let mut free_at = self.free_at.lock();
        let turn = free_at.map_or(now, |free_at| free_at.max(now));
        *free_at = Some(turn + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_share_the_rate_and_a_pause_is_not_made_up_for() {
        let (pace, begun) = (Pace::new(1_000), Instant::now());
        let turns = [0; 4].map(|_| pace.turn(begun, 500).duration_since(begun).as_millis());
        assert_eq!(turns, [0, 500, 1_000, 1_500]);
        let later = begun + Duration::from_secs(60);
        assert_eq!(pace.turn(later, 500), later);
        assert_eq!(pace.turn(later, 500).duration_since(later).as_millis(), 500);
    }
}
