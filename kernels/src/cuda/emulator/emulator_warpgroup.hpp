// What warpgroup.cuh says in PTX, in C++.
//
// Products are computed at once or when they are waited for, and copies in bulk come at once or later, by lot.
#pragma once

// A barrier's state: threads that are still to arrive in this phase, threads of a phase, phases that have ended, bytes that are still to come.
struct Barrier {
    u64 state;

    struct Parts {
        unsigned char left, arrivals;
        unsigned short phase;
        int bytes;
    };

    Parts parts() const {
        u64 now = races::peek(&state);
        Parts parts;
        std::memcpy(&parts, &now, sizeof parts);
        return parts;
    }

    void put(Parts parts) {
        if (parts.left == 0 && parts.bytes == 0) {
            parts.left = parts.arrivals;
            ++parts.phase;
            races::phase_ends(this);
        }
        u64 now;
        std::memcpy(&now, &parts, sizeof now);
        races::poke(&state, now);
    }

    void begin(u32 arrivals) {
        races::barrier_begins(this);
        emulator::block->unknown_barriers.push_back(this);
        put({static_cast<unsigned char>(arrivals), static_cast<unsigned char>(arrivals), 0, 0});
    }

    void arrive_and_expect(u32 bytes) {
        races::arrive(this);
        Parts now = parts();
        if (now.left == 0) emulator::fail("more threads arrive at a barrier than were announced");
        --now.left;
        now.bytes += static_cast<int>(bytes);
        put(now);
    }

    void arrive() { arrive_and_expect(0); }

    void complete(u32 bytes) {
        Parts now = parts();
        now.bytes -= static_cast<int>(bytes);
        put(now);
    }

    void wait(u32 parity) {
        u32 ended = parts().phase, awaited = ended % 2 == parity ? ended : ended - 1;
        emulator::wait_until([=] { return parts().phase % 2 != parity; });
        // Before the first phase there is one that has ended already.
        if (ended != 0 || awaited == 0) races::acquire(this, awaited);
    }
};

DEVICE void publish_barriers() { emulator::block->unknown_barriers.clear(); }

DEVICE void copy_in_bulk(void* to_shared, const void* from_global, u32 bytes, Barrier& barrier) {
    if (reinterpret_cast<u64>(to_shared) % 16 != 0 || reinterpret_cast<u64>(from_global) % 16 != 0 || bytes % 16 != 0) {
        emulator::fail("a copy in bulk is not aligned to 16 bytes");
    }
    const u8* shared = emulator::block->shared;
    if (static_cast<u8*>(to_shared) < shared || static_cast<u8*>(to_shared) + bytes > shared + emulator::block->shared_bytes) {
        emulator::fail("a copy in bulk goes past shared memory");
    }
    races::BulkCopy begun = races::bulk_copy_begins(to_shared, from_global, bytes, &barrier);
    auto& unknown = emulator::block->unknown_barriers;
    if (std::find(unknown.begin(), unknown.end(), &barrier) != unknown.end()) emulator::fail("a copy is to report to a barrier that was not published");
    auto copy = [=, &barrier] {
        races::bulk_copy_ends(begun, to_shared, from_global, bytes);
        barrier.complete(bytes);
    };
    if (emulator::block->random.below(2) == 0) {
        copy();
    } else {
        emulator::block->copies_under_way.push_back(copy);
    }
}

DEVICE void publish_copies() {
    auto& fiber = *emulator::block->fibers[emulator::block->current];
    for (const void* to : fiber.arrived) emulator::block->unseen[emulator::chunk_of(to)] = false;
    fiber.arrived.clear();
}

// The sums lie in memory that the products know.
template <u32 Count> DEVICE void keep_in_place(float (&)[Count]) {}
template <u32 Count> DEVICE void keep_in_place(u32 (&)[Count][4]) {}

DEVICE void begin_products() { emulator::block->fibers[emulator::block->current]->may_multiply = true; }

DEVICE void commit_products() {
    auto& fiber = *emulator::block->fibers[emulator::block->current];
    fiber.product_groups.push_back(std::move(fiber.products));
    fiber.products.clear();
    fiber.may_multiply = false;
    ++fiber.groups_of_products;
}

// A product is the whole warp's, so who has waited for it knows that all lanes have computed theirs.
template <int Pending> DEVICE void wait_for_products() {
    auto& fiber = *emulator::block->fibers[emulator::block->current];
    while (fiber.product_groups.size() > Pending) {
        for (const auto& part : fiber.product_groups.front()) {
            races::begin_product(part.group);
            part.compute();
            races::end_product();
        }
        fiber.product_groups.pop_front();
    }
    races::products_are_there(fiber.groups_of_products - static_cast<u32>(fiber.product_groups.size()));
    emulator::arrive_with_warp();
}

namespace emulator {

// A swizzled factor in shared memory, as its descriptor names it.
struct Factor {
    const u8* begin; // may be within a row
    u32 row_bytes;   // 64 or 128
    u32 stride;      // bytes from eight rows to the next eight
};

// A half of a row of a factor.
inline float value_of(const Factor& factor, u32 row, u32 column) {
    u64 offset = static_cast<u64>(factor.begin - block->shared) + static_cast<u64>(row / SWIZZLED_ROWS) * factor.stride +
                 row % SWIZZLED_ROWS * factor.row_bytes + column * 2;
    // Bits 4 to 6 of an address are exchanged by its bits 7 to 9; where rows are of 64 bytes, bits 4 and 5 by bits 7 and 8.
    offset ^= (offset >> 7 & (factor.row_bytes / 16 - 1)) << 4;
    const u8* at = block->shared + offset;
    if (block->unseen[chunk_of(at)]) fail("a product reads what was copied and is not shown to it yet");
    half_bits bits;
    std::memcpy(&bits, at, 2);
    return half_to_float(bits);
}

inline void check(const Factor& factor) {
    u64 offset = static_cast<u64>(factor.begin - block->shared);
    if (factor.row_bytes != 64 && factor.row_bytes != 128) fail("a factor has rows of another length");
    if (offset % 16 != 0 || factor.stride % (SWIZZLED_ROWS * factor.row_bytes) != 0) fail("a factor is not aligned");
    // Products of a factor that begins in the middle of eight rows would need its offset from them.
    if (offset % (SWIZZLED_ROWS * factor.row_bytes) >= factor.row_bytes) fail("a factor does not begin in the first of eight rows");
}

// Begins what this lane computes of a product: its sums are computed at once or when they are waited for, by lot, and are not numbers until then. `read` reads
// what the lane does not need and the product may read for it all the same.
template <u32 Count, typename Left, typename Right, typename Read>
void begin_product(float (&sums)[Count], bool keeps, Left left, Right right, Read read) {
    Fiber& fiber = *block->fibers[block->current];
    if (!fiber.may_multiply) fail("products are begun without a fence");
    u32 thread = block->current % WARPGROUP;
    auto under_way = [&](const std::vector<PartOfProduct>& group) {
        return std::any_of(group.begin(), group.end(), [&](const PartOfProduct& part) { return part.sums == sums; });
    };
    bool follows = under_way(fiber.products) || std::any_of(fiber.product_groups.begin(), fiber.product_groups.end(), under_way);
    std::vector<float> before;
    if (keeps && !follows) before.assign(sums, sums + Count);
    auto compute = [=, &sums] {
        read();
        for (u32 i = 0; i < Count; ++i) {
            u32 row = thread / WARP * 16 + thread % WARP / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
            double sum = !keeps ? 0.0 : follows ? sums[i] : before[i];
            for (u32 k = 0; k < 16; ++k) sum += static_cast<double>(left(row, k)) * right(k, column);
            sums[i] = static_cast<float>(sum);
        }
    };
    u32 group = fiber.groups_of_products + 1;
    if (!follows && block->random.below(2) == 0) {
        races::begin_product(group);
        compute();
        races::end_product();
        return;
    }
    // What a product before it has computed by then, it must find there.
    if (!follows) std::fill(sums, sums + Count, NAN);
    fiber.products.push_back({sums, group, compute});
}

} // namespace emulator

template <u32 Columns, u32 RowBytes = SWIZZLED_ROW_BYTES>
DEVICE void warpgroup_multiply(float (&sums)[Columns / 2], const void* a, const void* b, u32 b_stride, bool keeps) {
    emulator::Factor rows{static_cast<const u8*>(a), RowBytes, SWIZZLED_ROWS * RowBytes}, columns{static_cast<const u8*>(b), RowBytes, b_stride};
    emulator::check(rows);
    emulator::check(columns);
    emulator::begin_product(sums, keeps, [=](u32 row, u32 k) { return emulator::value_of(rows, row, k); },
                            [=](u32 k, u32 column) { return emulator::value_of(columns, column, k); },
                            // Which warp reads which rows of the first factor is nowhere said: each reads those of all.
                            [=, lane = emulator::block->current % WARP] {
                                for (u32 row = lane / 4; row < WARPGROUP / 2; row += SWIZZLED_ROWS) {
                                    volatile float value = emulator::value_of(rows, row, lane % 4 * 4);
                                    static_cast<void>(value);
                                }
                            });
}

template <u32 Columns> DEVICE void warpgroup_multiply_registers(float (&sums)[Columns / 2], const u32 (&a)[4], const void* b) {
    constexpr u32 ROW_BYTES = Columns * sizeof(half_bits);
    emulator::Factor by_columns{static_cast<const u8*>(b), ROW_BYTES, SWIZZLED_ROWS * ROW_BYTES};
    emulator::check(by_columns);
    // The registers are the lanes' own until the product reads them, which is when it is computed.
    struct Parts {
        const u32* of;
    };
    auto shown = emulator::show(Parts{a});
    std::vector<const u32*> lanes;
    for (u32 lane = 0; lane < WARP; ++lane) lanes.push_back(shown.of(lane).of);
    emulator::begin_product(sums, true,
                            [=](u32 row, u32 k) {
                                u32 holder = row % 8 * 4 + k % 8 / 2, part = k / 8 * 2 + row % 16 / 8;
                                return half_to_float(emulator::half_of(lanes[holder][part], k % 2));
                            },
                            [=](u32 k, u32 column) { return emulator::value_of(by_columns, k, column); }, [] {});
}
