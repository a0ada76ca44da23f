// See races.hpp. This file is compiled without reports of its own accesses.
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#include "races.hpp"
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace races {
namespace {

constexpr u32 WARP_LANES = 32;
constexpr u32 BARRIERS = 64;        // that a block may have in shared memory
constexpr u32 CELL_BYTES = 4;       // bytes that are looked at together: kernels write no less at once
constexpr u32 PAGE_CELLS = 1024;
constexpr u32 NOBODY = 0xffffffff;

// How far each thread was seen. Behind the threads: copies in bulk of each barrier, counted by its phases, and products of each warp, counted by their groups.
using Clock = std::vector<u32>;

// Something that happened: who did it, and when by its own clock. Times begin with 1.
struct Moment {
    u32 who = 0, when = 0;
    bool is_known_to(const Clock& clock) const { return when <= clock[who]; }
};

// Accesses of one kind, of each thread the last.
class Accesses {
    Moment last;
    std::unique_ptr<Clock> of_all; // when there are several that do not know of one another
    const void* code = nullptr;    // of the last one

  public:
    bool empty() const { return last.when == 0; }
    const void* where() const { return code; }

    // Some access the clock does not know of; `when` is 0 when it knows all.
    Moment unknown_to(const Clock& clock) const {
        if (!of_all) return last.is_known_to(clock) ? Moment() : last;
        for (u32 who = 0; who < of_all->size(); ++who) {
            if ((*of_all)[who] > clock[who]) return {who, (*of_all)[who]};
        }
        return Moment();
    }

    void add(Moment access, const Clock& clock, const void* at) {
        code = at;
        // What a product reads may come later than what a later product of the warp has read.
        if (access.who == last.who) access.when = std::max(access.when, last.when);
        if (of_all) {
            access.when = std::max(access.when, (*of_all)[access.who]);
            (*of_all)[access.who] = access.when;
        } else if (!last.is_known_to(clock) && last.who != access.who) {
            of_all = std::make_unique<Clock>(clock.size(), 0);
            (*of_all)[last.who] = last.when;
            (*of_all)[access.who] = access.when;
        }
        last = access;
    }

    // All before it are known to it.
    void replace(Moment access, const void* at) {
        of_all.reset();
        last = access;
        code = at;
    }

    void clear() { *this = Accesses(); }
};

enum Kind { Read, Write, Addition };
constexpr u32 KINDS = 3;
const char* const NAMES[KINDS] = {"read", "write", "addition"};

bool may_meet(Kind one, Kind other) { return (one == Read && other == Read) || (one == Addition && other == Addition); }

// What was done to four bytes.
struct Cell {
    u64 block = 0; // whose accesses these are
    Accesses of_block[KINDS];
    const void* by_earlier_blocks[KINDS] = {}; // the code of one such access
    const void* awaited = nullptr;             // the code that asked for a copy to here, which has not been waited for
};

struct Page {
    Cell cells[PAGE_CELLS];
};

struct BlockBarrier {
    Clock told;              // up to now
    std::vector<Clock> seen; // when each phase ended
};

struct Detector {
    u64 memory_begin = 0, memory_end = 0, shared_begin = 0, shared_end = 0;
    std::string library;
    std::unordered_map<u64, std::unique_ptr<Page>> memory; // by the page's number
    u64 page_number = 0;                                   // of the page that was looked for last
    Page* page = nullptr;
    std::vector<Cell> shared;
    u64 block = 0; // counted from 1 over all launches
    u32 threads = 0, running = NOBODY, product_group = 0;
    std::vector<Clock> clocks;
    std::unordered_map<const void*, u32> barrier_numbers;
    std::vector<BlockBarrier> barriers;
    std::vector<Clock> bulk_copies; // what their threads knew when they were begun
    std::vector<Moment> bulk_moments;
    bool found = false;
    std::string report;

    u32 of_copies(u32 barrier) const { return threads + barrier; }
    u32 of_products(u32 warp) const { return threads + BARRIERS + warp; }
    bool is_shared(u64 address) const { return address >= shared_begin && address < shared_end; }
    bool is_memory(u64 address) const { return address >= memory_begin && address < memory_end; }

    // The cell of an address that is in the GPU's memory.
    Cell& cell(u64 address) {
        if (is_shared(address)) return shared[(address - shared_begin) / CELL_BYTES];
        u64 number = address / CELL_BYTES / PAGE_CELLS;
        if (page == nullptr || page_number != number) {
            auto& there = memory[number];
            if (!there) there = std::make_unique<Page>();
            page = there.get();
            page_number = number;
        }
        return page->cells[address / CELL_BYTES % PAGE_CELLS];
    }

    void begin_cell(Cell& cell) {
        if (cell.block == block) return;
        cell.awaited = nullptr;
        for (u32 kind = 0; kind < KINDS; ++kind) {
            if (!cell.of_block[kind].empty()) cell.by_earlier_blocks[kind] = cell.of_block[kind].where();
            cell.of_block[kind].clear();
        }
        cell.block = block;
    }

    // Looks for others that it must not meet, and notes it.
    void access(Kind kind, u64 address, u32 bytes, Moment moment, const Clock& clock, const void* code) {
        for (u64 at = address / CELL_BYTES * CELL_BYTES; at < address + bytes; at += CELL_BYTES) {
            Cell& there = cell(at);
            begin_cell(there);
            if (there.awaited != nullptr) tell(kind, at, moment, code, Write, "a copy that was not waited for", there.awaited);
            for (u32 other = 0; other < KINDS; ++other) {
                if (may_meet(kind, static_cast<Kind>(other))) continue;
                if (there.by_earlier_blocks[other] != nullptr) {
                    tell(kind, at, moment, code, other, "another block", there.by_earlier_blocks[other]);
                }
                Moment unknown = there.of_block[other].unknown_to(clock);
                if (unknown.when != 0 && unknown.who != moment.who) {
                    tell(kind, at, moment, code, other, name(unknown.who).c_str(), there.of_block[other].where());
                }
            }
            if (kind == Write) {
                there.of_block[Write].replace(moment, code);
            } else {
                there.of_block[kind].add(moment, clock, code);
            }
        }
    }

    void access_by_running(Kind kind, const void* place, u32 bytes, const void* code) {
        u64 address = reinterpret_cast<u64>(place);
        if (running == NOBODY || (!is_shared(address) && !is_memory(address))) return;
        if (kind != Read && bytes < CELL_BYTES && !found) {
            found = true;
            report = "the kernel writes less than four bytes at once: the cells in which races are looked for must be smaller";
        }
        Clock& clock = clocks[running];
        Moment moment{running, clock[running]};
        if (product_group != 0) moment = {of_products(running / WARP_LANES), product_group};
        access(kind, address, bytes, moment, clock, code);
    }

    void access_by_bulk_copy(BulkCopy copy, void* to, const void* from, u32 bytes, const void* code) {
        access(Read, reinterpret_cast<u64>(from), bytes, bulk_moments[copy.number], bulk_copies[copy.number], code);
        access(Write, reinterpret_cast<u64>(to), bytes, bulk_moments[copy.number], bulk_copies[copy.number], code);
    }

    // A copy to there was asked for by this code; null: it was waited for.
    void await(const void* place, u32 bytes, const void* code) {
        u64 address = reinterpret_cast<u64>(place);
        for (u64 at = address; at < address + bytes; at += CELL_BYTES) cell(at).awaited = code;
    }

    std::string name(u32 who) const {
        if (who < threads) return "thread " + std::to_string(who);
        if (who < threads + BARRIERS) return "a copy in bulk";
        return "a product of warp " + std::to_string(who - threads - BARRIERS);
    }

    // The lines of source in which the code is.
    std::string lines(const void* code) const {
        Dl_info where;
        if (dladdr(code, &where) == 0) return "?";
        char command[4096];
        u64 offset = reinterpret_cast<u64>(code) - reinterpret_cast<u64>(where.dli_fbase) - 1;
        std::snprintf(command, sizeof command, "addr2line -Cfpise '%s' 0x%llx 2>/dev/null", library.c_str(), offset);
        std::string lines;
        if (FILE* output = popen(command, "r")) {
            for (int read = std::fgetc(output); read != EOF; read = std::fgetc(output)) lines += static_cast<char>(read);
            pclose(output);
        }
        return lines.empty() ? "?\n" : lines;
    }

    void tell(Kind kind, u64 address, Moment moment, const void* code, u32 other_kind, const char* other, const void* other_code) {
        if (found) return;
        found = true;
        report = "a race: a ";
        report += NAMES[kind];
        report += " by " + name(moment.who) + " and a " + NAMES[other_kind] + " by " + other + " of the same place in " +
                  (is_shared(address) ? "shared memory, byte " + std::to_string(address - shared_begin) : "the GPU's memory") + "\n" + lines(code) + "and\n" +
                  lines(other_code);
    }

    u32 barrier_number(const void* barrier) {
        auto [place, is_new] = barrier_numbers.try_emplace(barrier, static_cast<u32>(barriers.size()));
        if (is_new) {
            if (barriers.size() == BARRIERS) std::fprintf(stderr, "a block has more barriers than races are looked for with\n"), std::abort();
            barriers.push_back({Clock(width(), 0), {}});
        }
        return place->second;
    }

    u32 width() const { return threads + BARRIERS + threads / WARP_LANES; }
};

Detector detector;

void join(Clock& clock, const Clock& other) {
    for (u32 i = 0; i < clock.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

} // namespace

void begin_launch() {
    detector.memory.clear();
    detector.page = nullptr;
    detector.found = false;
}

const char* end_launch() {
    detector.running = NOBODY;
    return detector.found ? detector.report.c_str() : nullptr;
}

void begin_block(u32 threads, const void* shared, u32 shared_bytes) {
    ++detector.block;
    detector.threads = threads;
    detector.running = NOBODY;
    detector.product_group = 0;
    detector.shared_begin = reinterpret_cast<u64>(shared);
    detector.shared_end = detector.shared_begin + shared_bytes;
    detector.shared = std::vector<Cell>((shared_bytes + CELL_BYTES - 1) / CELL_BYTES);
    detector.clocks.assign(threads, Clock(detector.width(), 0));
    for (u32 i = 0; i < threads; ++i) detector.clocks[i][i] = 1;
    detector.barrier_numbers.clear();
    detector.barriers.clear();
    detector.bulk_copies.clear();
    detector.bulk_moments.clear();
}

void run(u32 thread) { detector.running = thread; }

void run_nobody() { detector.running = NOBODY; }

void meet(u32 first, u32 count) {
    Clock all = detector.clocks[first];
    for (u32 i = first + 1; i < first + count; ++i) join(all, detector.clocks[i]);
    for (u32 i = first; i < first + count; ++i) {
        detector.clocks[i] = all;
        ++detector.clocks[i][i];
    }
}

void copy_begins(void* to, const void* from, u32 bytes) {
    const void* code = __builtin_return_address(0);
    if (from != nullptr) detector.access_by_running(Read, from, bytes, code);
    detector.access_by_running(Write, to, bytes, code);
    detector.await(to, bytes, code);
}

void copy_comes(void* to, const void* from, u32 bytes) {
    if (from != nullptr) {
        std::memcpy(to, from, bytes);
    } else {
        std::memset(to, 0, bytes);
    }
}

void copy_ends(void* to, const void* from, u32 bytes) {
    const void* code = __builtin_return_address(0);
    detector.await(to, bytes, nullptr);
    if (from != nullptr) detector.access_by_running(Read, from, bytes, code);
    detector.access_by_running(Write, to, bytes, code);
    copy_comes(to, from, bytes);
}

u32 add(u32* to, u32 value) {
    detector.access_by_running(Addition, to, sizeof *to, __builtin_return_address(0));
    u32 before = *to;
    *to += value;
    return before;
}

u64 peek(const u64* state) { return *state; }

void poke(u64* state, u64 value) { *state = value; }

void barrier_begins(const void* barrier) {
    detector.access_by_running(Write, barrier, sizeof(u64), __builtin_return_address(0));
    detector.barrier_number(barrier);
}

void arrive(const void* barrier) {
    detector.access_by_running(Addition, barrier, sizeof(u64), __builtin_return_address(0));
    Clock& clock = detector.clocks[detector.running];
    join(detector.barriers[detector.barrier_number(barrier)].told, clock);
    ++clock[detector.running];
}

void phase_ends(const void* barrier) {
    u32 number = detector.barrier_number(barrier);
    BlockBarrier& there = detector.barriers[number];
    there.told[detector.of_copies(number)] = static_cast<u32>(there.seen.size() + 1);
    there.seen.push_back(there.told);
}

void acquire(const void* barrier, u32 phase) {
    detector.access_by_running(Addition, barrier, sizeof(u64), __builtin_return_address(0));
    join(detector.clocks[detector.running], detector.barriers[detector.barrier_number(barrier)].seen.at(phase));
}

BulkCopy bulk_copy_begins(void* to, const void* from, u32 bytes, const void* barrier) {
    u32 number = detector.barrier_number(barrier);
    detector.bulk_copies.push_back(detector.clocks[detector.running]);
    detector.bulk_moments.push_back({detector.of_copies(number), static_cast<u32>(detector.barriers[number].seen.size() + 1)});
    BulkCopy copy{static_cast<u32>(detector.bulk_copies.size() - 1)};
    detector.access_by_bulk_copy(copy, to, from, bytes, __builtin_return_address(0));
    return copy;
}

void bulk_copy_ends(BulkCopy copy, void* to, const void* from, u32 bytes) {
    detector.access_by_bulk_copy(copy, to, from, bytes, __builtin_return_address(0));
    std::memcpy(to, from, bytes);
}

void begin_product(u32 group) { detector.product_group = group; }

void end_product() { detector.product_group = 0; }

void products_are_there(u32 groups) {
    u32& seen = detector.clocks[detector.running][detector.of_products(detector.running / WARP_LANES)];
    seen = std::max(seen, groups);
}

} // namespace races

extern "C" void memory_is(const void* begin, const void* end, const char* library) {
    races::detector.memory_begin = reinterpret_cast<u64>(begin);
    races::detector.memory_end = reinterpret_cast<u64>(end);
    races::detector.library = library;
}

// What the compiler calls at each access.
#define REPORT(name, kind, bytes)                                                                                                                       \
    extern "C" void name(const void* place) { races::detector.access_by_running(races::kind, place, bytes, __builtin_return_address(0)); }
#define REPORTS(bytes)                                                                                                                                  \
    REPORT(__tsan_read##bytes, Read, bytes)                                                                                                             \
    REPORT(__tsan_write##bytes, Write, bytes)                                                                                                           \
    REPORT(__tsan_unaligned_read##bytes, Read, bytes)                                                                                                   \
    REPORT(__tsan_unaligned_write##bytes, Write, bytes)                                                                                                 \
    REPORT(__tsan_volatile_read##bytes, Read, bytes)                                                                                                    \
    REPORT(__tsan_volatile_write##bytes, Write, bytes)

REPORTS(1)
REPORTS(2)
REPORTS(4)
REPORTS(8)
REPORTS(16)

extern "C" void __tsan_read_range(const void* place, u64 bytes) {
    races::detector.access_by_running(races::Read, place, static_cast<u32>(bytes), __builtin_return_address(0));
}

extern "C" void __tsan_write_range(const void* place, u64 bytes) {
    races::detector.access_by_running(races::Write, place, static_cast<u32>(bytes), __builtin_return_address(0));
}

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(const void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(const void*, const void*) {}
extern "C" void __tsan_vptr_read(const void*) {}
