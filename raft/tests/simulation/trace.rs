//! What happens in a run, in its order: as a hash, by which two runs are compared, and as lines for people.

use xxhash_rust::xxh3::Xxh3;

/// The trace of a run.
pub struct Trace {
    hash: Xxh3,
    is_shown: bool,
    /// Things that happened.
    pub steps: u64,
}

impl Trace {
    pub fn new(is_shown: bool) -> Trace {
        Trace { hash: Xxh3::new(), is_shown, steps: 0 }
    }

    /// Something happened at this virtual time, with these bytes in it.
    pub fn note(&mut self, at_us: u64, what: &str, bytes: &[u8]) {
        self.steps += 1;
        self.hash.update(&at_us.to_le_bytes());
        self.hash.update(what.as_bytes());
        self.hash.update(bytes);
        if self.is_shown {
            println!("{:>12.3} ms  {what}  [{} bytes, trace {:016x}]", at_us as f64 / 1e3, bytes.len(), self.hash.digest());
        }
    }

    pub fn digest(&self) -> u64 {
        self.hash.digest()
    }
}
