//! Memory: one budget, and what the parts of the node get of it.
//!
//! What is given is taken; what is not, 0 in the file, is given out of the budget by [`Memory::give_out`]. The parts never get all of it: files of
//! indexes are mapped into memory, and what the parts leave is for those.

use crate::config::byte_size::{ByteSize, GIB, KIB, MIB};
use crate::config::error::ConfigError;
use serde::{Deserialize, Serialize};

/// What a node needs before it holds anything: program, encoder, tokenizer, stacks.
const IDLE_BYTES: u64 = 80 * MIB;
/// The default budget is not less, however small the machine.
const DEFAULT_BUDGET_BYTES_MIN: u64 = 256 * MIB;
/// The default budget's part of the machine's memory: the system keeps files in the rest.
const DEFAULT_BUDGET_PART: u64 = 2;
/// tantivy takes no less than 15,000,000 bytes for a writer.
const TEXT_WRITER_BYTES_MIN: u64 = 15 * MIB;
/// Memory of a machine that does not say how much it has.
const MACHINE_BYTES: u64 = 2 * GIB;

/// Budgets of memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// What the node keeps its resident memory within.
    pub budget_bytes: ByteSize,
    /// RocksDB's block cache.
    pub block_cache_bytes: ByteSize,
    /// RocksDB's write buffers.
    pub write_buffer_bytes: ByteSize,
    /// What hits have shown lately.
    pub content_cache_bytes: ByteSize,
    /// Vectors of queries that were embedded lately.
    pub query_cache_bytes: ByteSize,
    /// Indexes of loaded partitions.
    pub partitions_bytes: ByteSize,
    /// A writer of the index of words.
    pub text_writer_bytes: ByteSize,
    /// Bodies of requests that are being answered.
    pub bodies_bytes: ByteSize,
    /// A partition that nobody used for so long is unloaded.
    pub partition_idle_ms: u64,
}

/// A part that is given its memory out of the budget.
struct Share {
    key: &'static str,
    /// What it cannot do without.
    least: u64,
    /// Its part of what is left once everybody has the least, in sixteenths.
    sixteenths: u64,
    /// More would bring little: it is better left to mapped files.
    most: u64,
}

impl Memory {
    /// Everything is to be given out of a budget that follows the machine.
    pub fn unset() -> Memory {
        let unset = ByteSize(0);
        Memory {
            budget_bytes: unset,
            block_cache_bytes: unset,
            write_buffer_bytes: unset,
            content_cache_bytes: unset,
            query_cache_bytes: unset,
            partitions_bytes: unset,
            text_writer_bytes: unset,
            bodies_bytes: unset,
            partition_idle_ms: 600_000,
        }
    }

    /// Refuses values outside of their ranges; 0 leaves a part to the budget.
    pub fn check(&self) -> Result<(), ConfigError> {
        let within = |key: &'static str, value: ByteSize, least: u64, most: u64, expected: &'static str| {
            let is_fine = value.0 == 0 || (least..=most).contains(&value.0);
            if is_fine { Ok(()) } else { Err(ConfigError::Range { key, value: value.to_string(), expected }) }
        };
        let (any, writer) = ("1 MiB to 16384 GiB, or 0 for the default", "15 MiB to 2 GiB, or 0 for the default");
        let most = 1 << 44;
        within("memory.budget_bytes", self.budget_bytes, MIB, most, any)?;
        within("memory.block_cache_bytes", self.block_cache_bytes, MIB, most, any)?;
        within("memory.write_buffer_bytes", self.write_buffer_bytes, MIB, most, any)?;
        within("memory.content_cache_bytes", self.content_cache_bytes, MIB, most, any)?;
        let queries = "64 KiB to 16384 GiB, or 0 for the default";
        within("memory.query_cache_bytes", self.query_cache_bytes, 64 * KIB, most, queries)?;
        within("memory.partitions_bytes", self.partitions_bytes, MIB, most, any)?;
        within("memory.text_writer_bytes", self.text_writer_bytes, TEXT_WRITER_BYTES_MIN, 2 * GIB, writer)?;
        within("memory.bodies_bytes", self.bodies_bytes, 1, most, any)
    }

    /// Gives the parts that are not set what they get of the budget, on a machine with so much memory, for bodies of at most so many bytes. Refuses
    /// a budget that is less than what is set and what the other parts cannot do without.
    pub fn give_out(&mut self, machine_bytes: Option<u64>, max_body_bytes: ByteSize) -> Result<(), ConfigError> {
        if self.bodies_bytes.0 != 0 && self.bodies_bytes < max_body_bytes {
            return Err(ConfigError::NoRoomForBody { room: self.bodies_bytes, body: max_body_bytes });
        }
        let parts = self.parts(max_body_bytes);
        let needed = |(value, share): &(&mut ByteSize, Share)| if value.0 == 0 { share.least } else { value.0 };
        let needed_bytes = parts.iter().map(needed).fold(IDLE_BYTES, u64::saturating_add);
        let set: Vec<String> =
            parts.iter().filter(|(value, _)| value.0 != 0).map(|(value, share)| format!("{} = {value}", share.key)).collect();
        let budget = match self.budget_bytes.0 {
            0 => (machine_bytes.unwrap_or(MACHINE_BYTES) / DEFAULT_BUDGET_PART).max(DEFAULT_BUDGET_BYTES_MIN).max(needed_bytes),
            budget if budget < needed_bytes => {
                return Err(ConfigError::SmallBudget {
                    budget: self.budget_bytes,
                    needed: ByteSize(needed_bytes.next_multiple_of(MIB)),
                    idle: ByteSize(IDLE_BYTES),
                    set: if set.is_empty() { String::new() } else { format!(", with {}", set.join(", ")) },
                });
            }
            budget => budget,
        };
        let spare = budget - needed_bytes;
        for (value, share) in self.parts(max_body_bytes) {
            if value.0 == 0 {
                let more = spare / 16 * share.sixteenths;
                // Whole MiB, which people can read.
                *value = ByteSize((share.least + more).min(share.most.max(share.least)) / MIB * MIB);
            }
        }
        self.budget_bytes = ByteSize(budget / MIB * MIB);
        Ok(())
    }

    /// The parts that share the budget. Their shares leave a quarter, and what the most of them leaves, for mapped files.
    fn parts(&mut self, max_body_bytes: ByteSize) -> [(&mut ByteSize, Share); 7] {
        let share = |key, least, sixteenths, most| Share { key, least, sixteenths, most };
        let body = max_body_bytes.0.next_multiple_of(MIB);
        [
            (&mut self.block_cache_bytes, share("memory.block_cache_bytes", 8 * MIB, 2, 32 * MIB)),
            (&mut self.write_buffer_bytes, share("memory.write_buffer_bytes", 8 * MIB, 2, 64 * MIB)),
            (&mut self.content_cache_bytes, share("memory.content_cache_bytes", MIB, 1, 32 * MIB)),
            (&mut self.query_cache_bytes, share("memory.query_cache_bytes", MIB, 1, 8 * MIB)),
            (&mut self.partitions_bytes, share("memory.partitions_bytes", 8 * MIB, 4, u64::MAX)),
            (&mut self.text_writer_bytes, share("memory.text_writer_bytes", TEXT_WRITER_BYTES_MIN, 1, 32 * MIB)),
            (&mut self.bodies_bytes, share("memory.bodies_bytes", body, 2, 512 * MIB)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BODY: ByteSize = ByteSize(32 * MIB);

    fn values(memory: &mut Memory) -> Vec<u64> {
        memory.parts(BODY).iter().map(|(value, _)| value.0).collect()
    }

    fn given_out(budget: u64, machine: Option<u64>) -> Memory {
        let mut memory = Memory { budget_bytes: ByteSize(budget), ..Memory::unset() };
        memory.give_out(machine, BODY).unwrap();
        memory
    }

    #[test]
    fn the_default_budget_is_half_of_the_machine() {
        assert_eq!(given_out(0, Some(24 * GIB)).budget_bytes, ByteSize(12 * GIB));
        assert_eq!(given_out(0, Some(100 * MIB)).budget_bytes, ByteSize(DEFAULT_BUDGET_BYTES_MIN));
        assert_eq!(given_out(0, None).budget_bytes, ByteSize(GIB));
    }

    #[test]
    fn a_large_budget_is_left_to_mapped_files_and_partitions() {
        let memory = given_out(12 * GIB, None);
        let caches = [memory.block_cache_bytes, memory.write_buffer_bytes, memory.content_cache_bytes, memory.text_writer_bytes];
        assert_eq!(caches, [32, 64, 32, 32].map(|mib| ByteSize(mib * MIB)));
        assert!(memory.partitions_bytes > ByteSize(2 * GIB) && memory.partitions_bytes < ByteSize(3 * GIB));
    }

    #[test]
    fn what_is_set_stays_and_raises_a_budget_that_is_not() {
        let mut memory = Memory { partitions_bytes: ByteSize(3 * GIB), ..Memory::unset() };
        memory.give_out(Some(2 * GIB), BODY).unwrap();
        assert_eq!(memory.partitions_bytes, ByteSize(3 * GIB));
        assert!(memory.budget_bytes > ByteSize(3 * GIB));
    }

    #[test]
    fn a_budget_that_is_less_than_what_is_set_is_refused_with_both() {
        let mut memory = Memory { budget_bytes: ByteSize(512 * MIB), partitions_bytes: ByteSize(GIB), ..Memory::unset() };
        let line = memory.give_out(None, BODY).unwrap_err().to_string();
        assert!(line.contains("memory.budget_bytes is 512 MiB") && line.contains("memory.partitions_bytes = 1 GiB"), "{line}");
        let mut tiny = Memory { budget_bytes: ByteSize(64 * MIB), ..Memory::unset() };
        let line = tiny.give_out(None, BODY).unwrap_err().to_string();
        assert!(line.contains("153 MiB"), "{line}");
    }

    proptest! {
        #[test]
        fn the_parts_fit_into_the_budget(budget in 153 * MIB..64 * GIB, set in prop::option::of((0..7_usize, MIB..4 * GIB))) {
            let mut memory = Memory { budget_bytes: ByteSize(budget), ..Memory::unset() };
            if let Some((part, bytes)) = set {
                *memory.parts(BODY)[part].0 = ByteSize(bytes);
            }
            let before = values(&mut memory);
            if memory.give_out(None, BODY).is_ok() {
                let after = values(&mut memory);
                prop_assert!(after.iter().sum::<u64>() + IDLE_BYTES <= budget);
                let leasts: Vec<u64> = memory.parts(BODY).iter().map(|(_, share)| share.least).collect();
                for ((before, after), least) in before.iter().zip(&after).zip(leasts) {
                    let is_right = if *before == 0 { *after >= least } else { before == after };
                    prop_assert!(is_right, "{before} became {after}, at least {least}");
                }
            } else {
                prop_assert!(set.is_some());
            }
        }
    }
}
