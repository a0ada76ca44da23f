// What the kernels of attention by warpgroups have in common: rows of heads in shared memory, scores, weights and results of 64 queries and 64 keys.
#pragma once
#include "attention.cuh"
#include "warpgroup.cuh"

#if defined(RAGGED_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr u32 GROUP_QUERIES = 64; // of a warpgroup
constexpr u32 STEP_KEYS = 64;     // keys of a step
static_assert(QUERIES == 2 * GROUP_QUERIES, "a block has two warpgroups, or one where a tile has half as many queries");

// So many rows of one head in shared memory.
template <u32 Head, u32 Rows> struct HeadRows {
    static constexpr u32 ROW_BYTES = Head * sizeof(half_bits);
    static constexpr u32 CHUNKS = ROW_BYTES / 16;
    u8 bytes[Rows * ROW_BYTES];

    DEVICE_MEMBER u8* row(u32 number) { return bytes + number * ROW_BYTES; }

    // These 16 bytes of a row.
    DEVICE_MEMBER u8* chunk(u32 row, u32 number) { return bytes + swizzled<ROW_BYTES>(row, number); }

    // Asks for the rows from `first` on of `from`, which has a row 0; those from `end` on are zeros. Each of so many threads brings a share of them, this one
    // being number `thread` of them.
    template <u32 Threads> DEVICE_MEMBER void copy_from(const half_bits* from, u32 pitch, u32 first, u32 end, u32 thread) {
        constexpr u32 TOGETHER = Threads / CHUNKS; // rows
        static_assert(Rows % TOGETHER == 0, "every thread brings as much");
        u32 number = thread % CHUNKS;
#pragma unroll 4 // of a single warp's many, few addresses at once
        for (u32 i = 0; i < Rows / TOGETHER; ++i) {
            u32 row = i * TOGETHER + thread / CHUNKS;
            bool present = first + row < end;
            copy_16_bytes(chunk(row, number), from + (present ? (first + row) * pitch : 0) + number * 8, present);
        }
    }
};

template <u32 Head> struct AttentionStep {
    HeadRows<Head, STEP_KEYS> keys, values;
};

// What a thread has of 64 queries: of the rows `group` and `group + 8` of its warp's sixteen.
template <u32 Head> struct Attended {
    float result[Head / 2]; // for each eight columns two of the one row and two of the other
    float sums[2];          // of the weights
    float largest[2];       // about the largest score so far
};

template <u32 Head> DEVICE void multiply_queries(float (&scores)[STEP_KEYS / 2], const u8* queries, const u8* keys) {
    constexpr u32 ROW_BYTES = Head * sizeof(half_bits);
    begin_products();
#pragma unroll
    for (u32 k = 0; k < Head / 16; ++k) {
        warpgroup_multiply<STEP_KEYS, ROW_BYTES>(scores, queries + k * 32, keys + k * 32, SWIZZLED_ROWS * ROW_BYTES, k > 0);
    }
    commit_products();
    wait_for_products<0>();
    keep_in_place(scores);
}

template <u32 Head> DEVICE void multiply_weights(float (&result)[Head / 2], u32 (&weights)[STEP_KEYS / 16][4], const u8* values) {
    constexpr u32 ROW_BYTES = Head * sizeof(half_bits);
    keep_in_place(result);
    keep_in_place(weights);
    begin_products();
#pragma unroll
    for (u32 k = 0; k < STEP_KEYS / 16; ++k) {
        warpgroup_multiply_registers<Head>(result, weights[k], values + k * 16 * ROW_BYTES);
    }
    commit_products();
    wait_for_products<0>();
    keep_in_place(result);
    keep_in_place(weights);
}

// Scores of keys that are not there, of which there are `keys`.
DEVICE void leave_out(float (&scores)[STEP_KEYS / 2], u32 keys, u32 place) {
#pragma unroll
    for (u32 i = 0; i < STEP_KEYS / 2; ++i) {
        if (i / 4 * 8 + place * 2 + i % 2 >= keys) {
            scores[i] = minus_infinity();
        }
    }
}

// Brings the maximum up to what these scores ask for. The first one is taken as it is; a later one only when weights would become too large: all are divided
// by their sum in the end.
template <u32 Head> DEVICE void raise(Attended<Head>& attended, const float (&scores)[STEP_KEYS / 2], bool first) {
    // The four lanes of a group share a row. Every step has a key that is there, so what is found is finite.
    float maximum[2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        float most = scores[2 * half];
#pragma unroll
        for (u32 n = 0; n < STEP_KEYS / 8; ++n) {
            most = fmaxf(most, fmaxf(scores[n * 4 + 2 * half], scores[n * 4 + 2 * half + 1]));
        }
        most = fmaxf(most, shuffle_xor(most, 1));
        maximum[half] = fmaxf(most, shuffle_xor(most, 2));
    }
    if (first) {
        attended.largest[0] = maximum[0];
        attended.largest[1] = maximum[1];
    } else if (any_lane(fmaxf(maximum[0] - attended.largest[0], maximum[1] - attended.largest[1]) > LEEWAY)) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            float rise = fmaxf(maximum[half] - attended.largest[half], 0.0f);
            float shrink = exp2_fast(-rise);
            attended.largest[half] += rise;
            attended.sums[half] *= shrink;
#pragma unroll
            for (u32 n = 0; n < Head / 8; ++n) {
                attended.result[n * 4 + 2 * half] *= shrink;
                attended.result[n * 4 + 2 * half + 1] *= shrink;
            }
        }
    }
}

// The weights of these scores, and their sums, twice for each row. What a lane holds of two 16 x 8 tiles of sums is what it must hold of a 16 x 16 factor. Powers
// of two are computed as floats: of halves the chip computes no two at once either, and has to put them together. What is added up, by a product with ones, are
// the weights as the product with the values takes them.
template <u32 Head>
DEVICE void weigh(u32 (&weights)[STEP_KEYS / 16][4], float (&sums)[4], const Attended<Head>& attended, const float (&scores)[STEP_KEYS / 2]) {
#pragma unroll
    for (u32 k = 0; k < STEP_KEYS / 16; ++k) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const float* two = scores + k * 8 + i * 2;
            float largest = attended.largest[i % 2];
            weights[k][i] = floats_to_halves(exp2_fast(two[0] - largest), exp2_fast(two[1] - largest));
        }
        multiply_add(sums, weights[k], TWO_ONES, TWO_ONES);
    }
}

template <u32 Head> DEVICE void add_to_sums(Attended<Head>& attended, const float (&sums)[4]) {
    attended.sums[0] += sums[0];
    attended.sums[1] += sums[2];
}

#endif
