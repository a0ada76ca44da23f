//! The allocator of the whole process, of RocksDB too: jemalloc.
//!
//! Searches allocate and free much from several threads at once; with the system's allocator they spent an eighth of their time there.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// What jemalloc reads when it starts: few arenas, since threads that search are few and each arena keeps freed pages of its own, and
/// freed pages given back after two seconds, by a thread of its own.
#[unsafe(export_name = "malloc_conf")]
pub static CONFIGURATION: &[u8; 53] = b"narenas:4,background_thread:true,dirty_decay_ms:2000\0";
