// Runs the kernels on the processor, for tests on machines without a GPU: what device.cuh says in PTX is said here in C++, lane by lane.
//
// A block's threads are fibers of one thread of the processor. They run one at a time until a barrier or an exchange with their warp, in an order that is
// drawn anew each time, and whole warps fall behind for a while, so that a barrier that is missing shows. Shared memory is filled with a pattern that is not a number before each block; copies
// behind the thread's back come at once or at the last moment, by lot. Blocks run one after the other, in any order. Accesses that no barrier orders are found
// whatever the order was (races.hpp).
#pragma once
#include "races.hpp"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>

namespace emulator {

struct Dimensions {
    u32 x = 1, y = 1, z = 1;
};

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "the kernel is wrong: %s\n", what);
    std::abort();
}

// A seeded source of numbers: xorshift.
struct Random {
    u64 state = 0x9e3779b97f4a7c15ull;
    u32 below(u32 limit) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return static_cast<u32>((state >> 33) % limit);
    }
};

// Rounds for which a warp sleeps.
constexpr u32 ROUNDS_OF_SLEEP = 200;

struct Copy {
    void* to;
    const void* from;
    bool present;
    const void* source() const { return present ? from : nullptr; }
};

// Part of a product by a warpgroup that is begun: what one lane computes of it.
struct PartOfProduct {
    const void* sums;
    u32 group; // from 1
    std::function<void()> compute;
};

enum class Standing { Ready, AtBlockBarrier, AtWarpBarrier, AtCondition, Done };

struct Fiber {
    ucontext_t context;
    std::vector<u8> stack = std::vector<u8>(256 << 10);
    Standing standing = Standing::Ready;
    u32 exchanges = 0;
    std::function<bool()> condition;       // that ends its wait
    std::vector<Copy> copies;              // of the group that is not ended yet
    std::deque<std::vector<Copy>> groups; // ended, oldest first
    std::vector<const void*> arrived;      // where copies have been waited for that products are not shown yet
    bool may_multiply = false;             // products may touch registers
    std::vector<PartOfProduct> products;   // of the group that is not ended yet
    std::deque<std::vector<PartOfProduct>> product_groups; // ended, oldest first
    u32 groups_of_products = 0; // that were ended
};

// What the lanes of a warp show one another; two places in turn, so that nobody writes over what another still reads.
struct Warp {
    alignas(16) u8 shown[2][WARP][64];
    u32 arrived = 0;
};

struct Block {
    Dimensions grid, threads, index;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    std::vector<u8> shared_room;
    u8* shared = nullptr; // in it, from a multiple of 1,024 on
    u32 shared_bytes = 0;
    std::vector<std::function<void()>> copies_under_way; // in bulk
    std::vector<const void*> unknown_barriers; // to copies: they were begun and not published
    std::vector<bool> unseen; // by products, of each 16 bytes of shared memory: a thread has copied there and has not shown it
    ucontext_t scheduler;
    std::function<void()> kernel;
    u32 current = 0;
    Random random;
};

inline Block* block;

// Number of the 16 bytes of shared memory in which this place is.
inline u64 chunk_of(const void* in_shared) {
    u64 offset = reinterpret_cast<u64>(in_shared) - reinterpret_cast<u64>(block->shared);
    if (offset >= block->shared_bytes) fail("an address is outside of shared memory");
    return offset / 16;
}

inline void wait(Standing standing) {
    Fiber& fiber = *block->fibers[block->current];
    fiber.standing = standing;
    swapcontext(&fiber.context, &block->scheduler);
}

inline void wait_until(std::function<bool()> condition) {
    if (condition()) return;
    block->fibers[block->current]->condition = std::move(condition);
    wait(Standing::AtCondition);
}

// One of the copies under way arrives.
inline void carry_out_a_copy() {
    auto& copies = block->copies_under_way;
    u32 chosen = block->random.below(static_cast<u32>(copies.size()));
    auto copy = std::move(copies[chosen]);
    copies.erase(copies.begin() + chosen);
    copy();
}

inline void start() {
    block->kernel();
    block->fibers[block->current]->standing = Standing::Done;
    swapcontext(&block->fibers[block->current]->context, &block->scheduler);
}

// Where the other lanes are when this returns, they have come to the same place. That says nothing of their memory.
inline void arrive_with_warp(bool orders_memory = false) {
    u32 number = block->current / WARP;
    if (++block->warps[number].arrived < WARP) {
        wait(Standing::AtWarpBarrier);
        return;
    }
    block->warps[number].arrived = 0;
    for (u32 i = number * WARP; i < (number + 1) * WARP; ++i) {
        if (i != block->current) {
            if (block->fibers[i]->standing != Standing::AtWarpBarrier) fail("a lane is not where the others of its warp are");
            block->fibers[i]->standing = Standing::Ready;
        }
    }
    if (orders_memory) races::meet(number * WARP, WARP);
}

// Shows a value to the warp; returns where each lane's is.
template <typename T> struct Shown {
    const u8 (*places)[64];
    const T& of(u32 lane) const { return *reinterpret_cast<const T*>(places[lane]); }
};

template <typename T> Shown<T> show(const T& value) {
    static_assert(sizeof(T) <= 64);
    Fiber& fiber = *block->fibers[block->current];
    auto& places = block->warps[block->current / WARP].shown[fiber.exchanges++ % 2];
    std::memcpy(places[block->current % WARP], &value, sizeof(T));
    arrive_with_warp();
    return {places};
}

inline void run_block() {
    u32 threads = block->threads.x;
    block->warps.assign(threads / WARP, Warp());
    if (!block->copies_under_way.empty()) fail("a block ends before its copies");
    std::memset(block->shared, 0xff, block->shared_bytes);
    block->unseen.assign(block->shared_bytes / 16, false);
    block->unknown_barriers.clear();
    races::begin_block(threads, block->shared, block->shared_bytes);
    for (auto& fiber : block->fibers) {
        fiber->standing = Standing::Ready;
        fiber->exchanges = 0;
        fiber->copies.clear();
        fiber->groups.clear();
        fiber->arrived.clear();
        fiber->may_multiply = false;
        fiber->products.clear();
        fiber->product_groups.clear();
        fiber->groups_of_products = 0;
        getcontext(&fiber->context);
        fiber->context.uc_stack.ss_sp = fiber->stack.data();
        fiber->context.uc_stack.ss_size = fiber->stack.size();
        fiber->context.uc_link = nullptr;
        makecontext(&fiber->context, start, 0);
    }
    std::vector<u32> order(threads);
    for (u32 i = 0; i < threads; ++i) order[i] = i;
    std::vector<bool> sleeps(threads / WARP, false);
    for (u32 round = 0;; ++round) {
        // Some warps fall behind for a while, as far as barriers let them.
        if (round % ROUNDS_OF_SLEEP == 0) {
            for (u32 warp = 0; warp < sleeps.size(); ++warp) sleeps[warp] = block->random.below(3) == 0;
        }
        for (u32 i = threads - 1; i > 0; --i) std::swap(order[i], order[block->random.below(i + 1)]);
        bool ran = false;
        u32 waiting = 0, done = 0;
        if (!block->copies_under_way.empty() && block->random.below(4) == 0) carry_out_a_copy();
        for (auto& fiber : block->fibers) {
            if (fiber->standing == Standing::AtCondition && fiber->condition()) fiber->standing = Standing::Ready;
        }
        for (u32 i : order) {
            if (block->fibers[i]->standing == Standing::Ready && !sleeps[i / WARP]) {
                ran = true;
                block->current = i;
                races::run(i);
                swapcontext(&block->scheduler, &block->fibers[i]->context);
                races::run_nobody();
            }
        }
        for (auto& fiber : block->fibers) {
            waiting += fiber->standing == Standing::AtBlockBarrier;
            done += fiber->standing == Standing::Done;
        }
        if (done == threads) {
            for (auto& fiber : block->fibers) {
                if (!fiber->products.empty() || !fiber->product_groups.empty()) fail("a block ends before its products");
            }
            return;
        }
        if (waiting + done == threads) {
            races::meet(0, threads);
            for (auto& fiber : block->fibers) {
                if (fiber->standing == Standing::AtBlockBarrier) fiber->standing = Standing::Ready;
            }
        } else if (!ran) {
            bool woke = false;
            for (u32 i = 0; i < threads; ++i) woke |= block->fibers[i]->standing == Standing::Ready;
            if (!woke && !block->copies_under_way.empty()) {
                carry_out_a_copy();
                woke = true;
            }
            if (!woke) fail("its threads wait for one another at different places");
            sleeps.assign(sleeps.size(), false);
        }
    }
}

// Returns what is wrong; null when nothing is.
template <typename Arguments>
const char* launch(void (*kernel)(const Arguments&), const u32* grid, const u32* threads, u32 shared_bytes, const void* bytes, u64 seed) {
    Arguments arguments;
    std::memcpy(&arguments, bytes, sizeof arguments);
    Block made;
    block = &made;
    races::begin_launch();
    made.random.state ^= seed * 0x2545f4914f6cdd1dull + 1;
    made.grid = {grid[0], grid[1], grid[2]};
    made.threads = {threads[0], threads[1], threads[2]};
    if (threads[0] % WARP != 0 || threads[0] > 1024 || threads[1] != 1 || threads[2] != 1) fail("blocks are rows of whole warps");
    made.shared_room.resize(shared_bytes + 1024);
    made.shared = made.shared_room.data() + (1024 - reinterpret_cast<u64>(made.shared_room.data()) % 1024) % 1024;
    made.shared_bytes = shared_bytes;
    for (u32 i = 0; i < threads[0]; ++i) made.fibers.push_back(std::make_unique<Fiber>());
    made.kernel = [&] { kernel(arguments); };
    std::vector<u32> order(grid[0] * grid[1] * grid[2]);
    for (u32 i = 0; i < order.size(); ++i) order[i] = i;
    for (u32 i = static_cast<u32>(order.size()); i > 1; --i) std::swap(order[i - 1], order[made.random.below(i)]);
    for (u32 i : order) {
        made.index = {i % grid[0], i / grid[0] % grid[1], i / grid[0] / grid[1]};
        run_block();
    }
    return races::end_launch();
}

inline Dimensions thread_index() { return {block->current, 0, 0}; }

inline half_bits half_of(u32 pair, u32 index) { return static_cast<half_bits>(index == 0 ? pair & 0xffff : pair >> 16); }

} // namespace emulator

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block->index)
#define blockDim (emulator::block->threads)
#define gridDim (emulator::block->grid)

#define DEVICE static inline
#define DEVICE_MEMBER inline
#define KERNEL(name, Arguments)                                                                                                                         \
    static void name(const Arguments& arguments);                                                                                                       \
    extern "C" const char* launch_##name(const u32* grid, const u32* threads, u32 shared_bytes, const void* bytes, u32 size, u64 seed) {                         \
        if (size != sizeof(Arguments)) emulator::fail("its arguments have another size: " #name);                                                       \
        return emulator::launch<Arguments>(name, grid, threads, shared_bytes, bytes, seed);                                                                    \
    }                                                                                                                                                   \
    static void name(const Arguments& arguments)
#define KERNEL_BOUNDS(name, Arguments, threads, blocks) KERNEL(name, Arguments)

DEVICE u8* shared_memory() { return emulator::block->shared; }

DEVICE u32 float_bits(float value) {
    u32 bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

DEVICE float float_of_bits(u32 bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

DEVICE float minus_infinity() { return -INFINITY; }

DEVICE float half_to_float(half_bits bits) {
    u32 sign = static_cast<u32>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    if (exponent == 31) return float_of_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) return float_of_bits(sign | float_bits(std::ldexp(static_cast<float>(fraction), -24)));
    return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

template <typename Vector> DEVICE Vector load(const Vector* from) {
    if (reinterpret_cast<u64>(from) % alignof(Vector) != 0) emulator::fail("a load is not aligned to its size");
    return *from;
}

DEVICE void store(Half8* to, const Half8& halves) {
    if (reinterpret_cast<u64>(to) % 16 != 0) emulator::fail("a store is not aligned to 16 bytes");
    *to = halves;
}

// To nearest, ties to even.
DEVICE half_bits float_to_half(float value) {
    u32 bits = float_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return static_cast<half_bits>(sign | 0x7fff);
    if (rest >= 0x477ff000) return static_cast<half_bits>(sign | 0x7c00);
    if (rest < 0x38800000) { // below the smallest normal half: a multiple of 2^-24
        return static_cast<half_bits>(sign | static_cast<u32>(std::nearbyint(std::ldexp(float_of_bits(rest), 24))));
    }
    rest += 0xfff + (rest >> 13 & 1);
    return static_cast<half_bits>(sign | ((rest >> 13) - (112 << 10)));
}

DEVICE u32 floats_to_halves(float low, float high) { return float_to_half(low) | static_cast<u32>(float_to_half(high)) << 16; }

DEVICE float exp2_fast(float x) { return std::exp2(x); }

DEVICE float reciprocal_fast(float x) { return 1.0f / x; }

DEVICE u32 exp2_fast_halves(u32 pair) {
    return floats_to_halves(std::exp2(half_to_float(emulator::half_of(pair, 0))), std::exp2(half_to_float(emulator::half_of(pair, 1))));
}

DEVICE float shuffle_xor(float value, u32 mask) { return emulator::show(value).of((emulator::block->current % WARP) ^ mask); }

DEVICE u32 shuffle_down(u32 value, u32 by) {
    u32 lane = emulator::block->current % WARP;
    auto shown = emulator::show(value);
    return shown.of(lane + by < WARP ? lane + by : lane);
}

DEVICE u32 same_in_warp(u32 value) { return emulator::show(value).of(0); }

DEVICE void synchronize_warp() { emulator::arrive_with_warp(true); }

DEVICE void synchronize_block() { emulator::wait(emulator::Standing::AtBlockBarrier); }

DEVICE u32 count_up(u32* counter, u32 by) { return races::add(counter, by); }

DEVICE void copy_16_bytes(void* to_shared, const void* from_global, bool present) {
    if (reinterpret_cast<u64>(to_shared) % 16 != 0 || reinterpret_cast<u64>(from_global) % 16 != 0) emulator::fail("a copy is not aligned to 16 bytes");
    emulator::Copy copy{to_shared, from_global, present};
    emulator::block->unseen[emulator::chunk_of(to_shared)] = true;
    // What has come already is carried out again, which changes nothing: it counts as there only when it has been waited for.
    races::copy_begins(to_shared, copy.source(), 16);
    if (emulator::block->random.below(2) == 0) races::copy_comes(to_shared, copy.source(), 16);
    emulator::block->fibers[emulator::block->current]->copies.push_back(copy);
}

DEVICE void commit_copies() {
    auto& fiber = *emulator::block->fibers[emulator::block->current];
    fiber.groups.push_back(std::move(fiber.copies));
    fiber.copies.clear();
}

template <int Pending> DEVICE void wait_for_copies() {
    auto& fiber = *emulator::block->fibers[emulator::block->current];
    while (fiber.groups.size() > Pending) {
        for (const auto& copy : fiber.groups.front()) {
            races::copy_ends(copy.to, copy.source(), 16);
            fiber.arrived.push_back(copy.to);
        }
        fiber.groups.pop_front();
    }
}

DEVICE void load_matrices_by(u32 (&matrices)[4], const void* row, bool transposed) {
    if (reinterpret_cast<u64>(row) % 16 != 0) emulator::fail("a row of a matrix is not aligned to 16 bytes");
    auto rows = emulator::show(row);
    u32 lane = emulator::block->current % WARP;
    for (u32 matrix = 0; matrix < 4; ++matrix) {
        auto element = [&](u32 at_row, u32 at_column) { return static_cast<const half_bits*>(rows.of(matrix * 8 + at_row))[at_column]; };
        u32 first = lane % 4 * 2, other = lane / 4;
        u32 low = transposed ? element(first, other) : element(other, first);
        u32 high = transposed ? element(first + 1, other) : element(other, first + 1);
        matrices[matrix] = low | high << 16;
    }
    // The rows are read here and now, as the instruction would.
    emulator::arrive_with_warp();
}

DEVICE void load_matrices(u32 (&matrices)[4], const void* row) { load_matrices_by(matrices, row, false); }

DEVICE void load_matrices_transposed(u32 (&matrices)[4], const void* row) { load_matrices_by(matrices, row, true); }

DEVICE void multiply_add(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    struct Parts {
        u32 a[4], b[2];
    };
    auto parts = emulator::show(Parts{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    u32 lane = emulator::block->current % WARP, group = lane / 4, place = lane % 4;
    for (u32 i = 0; i < 4; ++i) {
        u32 upper_or_lower = i / 2, column = place * 2 + i % 2;
        double sum = sums[i];
        for (u32 k = 0; k < 16; ++k) {
            u32 holder = k % 8 / 2, part = k / 8;
            float left = half_to_float(emulator::half_of(parts.of(group * 4 + holder).a[part * 2 + upper_or_lower], k % 2));
            float right = half_to_float(emulator::half_of(parts.of(column * 4 + holder).b[part], k % 2));
            sum += static_cast<double>(left) * right;
        }
        sums[i] = static_cast<float>(sum);
    }
}

DEVICE void multiply_add_to(float (&sums)[4], float upper, float lower, const u32 (&a)[4], u32 b0, u32 b1) {
    sums[0] = sums[1] = upper;
    sums[2] = sums[3] = lower;
    multiply_add(sums, a, b0, b1);
}

DEVICE bool any_lane(bool so) {
    auto shown = emulator::show(so);
    bool any = false;
    for (u32 lane = 0; lane < WARP; ++lane) any |= shown.of(lane);
    return any;
}

DEVICE u32 lowest_bit(u32 bits) { return static_cast<u32>(__builtin_ctz(bits)); }
