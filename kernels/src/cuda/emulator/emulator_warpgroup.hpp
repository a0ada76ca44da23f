// What warpgroup.cuh says in PTX, in C++.
//
// Products are computed at once; copies in bulk come at once or later, by lot.
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
        Parts parts;
        std::memcpy(&parts, &state, sizeof parts);
        return parts;
    }

    void put(Parts parts) {
        if (parts.left == 0 && parts.bytes == 0) {
            parts.left = parts.arrivals;
            ++parts.phase;
        }
        std::memcpy(&state, &parts, sizeof parts);
    }

    void begin(u32 arrivals) { put({static_cast<unsigned char>(arrivals), static_cast<unsigned char>(arrivals), 0, 0}); }

    void arrive_and_expect(u32 bytes) {
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
        emulator::wait_until([=] { return parts().phase % 2 != parity; });
    }
};

DEVICE void publish_barriers() {}

DEVICE void copy_in_bulk(void* to_shared, const void* from_global, u32 bytes, Barrier& barrier) {
    if (reinterpret_cast<u64>(to_shared) % 16 != 0 || reinterpret_cast<u64>(from_global) % 16 != 0 || bytes % 16 != 0) {
        emulator::fail("a copy in bulk is not aligned to 16 bytes");
    }
    const u8* shared = emulator::block->shared;
    if (static_cast<u8*>(to_shared) < shared || static_cast<u8*>(to_shared) + bytes > shared + emulator::block->shared_bytes) {
        emulator::fail("a copy in bulk goes past shared memory");
    }
    auto copy = [=, &barrier] {
        std::memcpy(to_shared, from_global, bytes);
        barrier.complete(bytes);
    };
    if (emulator::block->random.below(2) == 0) {
        copy();
    } else {
        emulator::block->copies_under_way.push_back(copy);
    }
}

DEVICE void begin_products() {}
DEVICE void commit_products() {}

// A product is the whole warp's, so who has waited for it knows that all lanes have computed theirs.
template <int Pending> DEVICE void wait_for_products() { emulator::arrive_with_warp(); }

// The half in this column of a row of a swizzled factor; the factor may begin within a row.
DEVICE float factor_value(const void* factor, u32 stride, u32 row, u32 column) {
    u64 begin = reinterpret_cast<u64>(factor), at = begin - reinterpret_cast<u64>(emulator::block->shared);
    u64 offset = at + static_cast<u64>(row / SWIZZLED_ROWS) * stride + row % SWIZZLED_ROWS * SWIZZLED_ROW_BYTES + column * 2;
    // Bits 4 to 6 of an address are exchanged by its bits 7 to 9.
    offset ^= (offset >> 7 & 7) << 4;
    half_bits bits;
    std::memcpy(&bits, emulator::block->shared + offset, 2);
    return half_to_float(bits);
}

template <u32 Columns> DEVICE void warpgroup_multiply(float (&sums)[Columns / 2], const void* a, const void* b, u32 b_stride, bool keeps) {
    u32 thread = emulator::block->current % WARPGROUP, warp = thread / WARP, lane = thread % WARP;
    for (u32 i = 0; i < Columns / 2; ++i) {
        u32 row = warp * 16 + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        double sum = keeps ? sums[i] : 0.0;
        for (u32 k = 0; k < 16; ++k) {
            sum += static_cast<double>(factor_value(a, SWIZZLED_ROWS * SWIZZLED_ROW_BYTES, row, k)) * factor_value(b, b_stride, column, k);
        }
        sums[i] = static_cast<float>(sum);
    }
}
