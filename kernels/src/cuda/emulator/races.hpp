// Finds races of the kernels: two accesses to the same place of which one writes, with nothing between them that lets the one know of the other, in whatever order
// they happened to come this time. The compiler reports every access (`-fsanitize=thread`, whose functions races.cpp has in place of the usual ones), the
// emulator what orders them.
//
// Each thread has a clock, and knows how far it has seen those of others (Flanagan and Freund, "FastTrack", 2009). Only barriers of a block, of a warp and in
// shared memory tell it more: shuffles and products of warps do not order memory, though the hardware mostly goes along. Copies that come behind a thread's back
// count from when they are asked for until they are waited for.
#pragma once

// The GPU's memory lies between these; `library` is the file of this library.
extern "C" void memory_is(const void* begin, const void* end, const char* library);

namespace races {

void begin_launch();
// What was found first since then; null when nothing was. Valid until the next launch.
const char* end_launch();

// A block of so many threads begins; they know of nothing. Other blocks of the launch never know of this one.
void begin_block(u32 threads, const void* shared, u32 shared_bytes);

// Whose accesses follow: a thread's, or nobody's.
void run(u32 thread);
void run_nobody();

// All threads of the block, or so many from `first` on, are where they wait for one another.
void meet(u32 first, u32 count);

// The thread that runs has asked for a copy, which may come at any time until it has waited for it; zeros when there is no `from`. Nobody may touch the place until
// then, whatever barriers there are.
void copy_begins(void* to, const void* from, u32 bytes);
// It comes, and may come once more.
void copy_comes(void* to, const void* from, u32 bytes);
// It comes for the last time, and was waited for.
void copy_ends(void* to, const void* from, u32 bytes);

// An atomic addition.
u32 add(u32* to, u32 value);

// State of a barrier in shared memory, which is no access to it of the kind that is looked at.
u64 peek(const u64* state);
void poke(u64* state, u64 value);

// The thread begins a barrier, tells it what it knows, and is told what all others had told it when a phase ended, which are counted from 0.
void barrier_begins(const void* barrier);
void arrive(const void* barrier);
void phase_ends(const void* barrier);
void acquire(const void* barrier, u32 phase);

// A copy in bulk by the thread that runs: until the phase of the barrier has ended that it is in now.
struct BulkCopy {
    u32 number;
};
BulkCopy bulk_copy_begins(void* to, const void* from, u32 bytes, const void* barrier);
void bulk_copy_ends(BulkCopy copy, void* to, const void* from, u32 bytes);

// What the thread reads until `end_product` is read by its warp, at any time until products of so many groups have been waited for.
void begin_product(u32 group);
void end_product();
void products_are_there(u32 groups);

} // namespace races
