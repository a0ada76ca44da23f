// The attention of attention.cu with Hopper's products by warpgroups.
//
// A block takes 128 queries of one head of one sequence, 64 to a warpgroup, and goes through keys and values 64 at a time. Queries, keys and values lie in
// shared memory as the products read them: rows of one head, whose 16-byte chunks are exchanged. Scores are products of factors in shared memory; weights stay
// in the registers in which they were computed and are a factor there. Three steps of keys and values are on their way while one is computed. What a warpgroup
// leaves of the tensor cores while it computes weights, and of the rest while it multiplies, the others of the multiprocessor use: so none waits for
// products with work of its own at hand, which would take registers that let fewer of them be there.
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

    // Asks for the rows from `first` on of `from`, which has a row 0; those from `end` on are zeros. Each of so many threads brings a share of them.
    template <u32 Threads> DEVICE_MEMBER void copy_from(const half_bits* from, u32 pitch, u32 first, u32 end) {
        constexpr u32 TOGETHER = Threads / CHUNKS; // rows
        static_assert(Rows % TOGETHER == 0, "every thread brings as much");
        u32 number = threadIdx.x % CHUNKS;
#pragma unroll
        for (u32 i = 0; i < Rows / TOGETHER; ++i) {
            u32 row = i * TOGETHER + threadIdx.x / CHUNKS;
            bool present = first + row < end;
            copy_16_bytes(chunk(row, number), from + (present ? (first + row) * pitch : 0) + number * 8, present);
        }
    }
};

template <u32 Head> struct AttentionStep {
    HeadRows<Head, STEP_KEYS> keys, values;
};

// What a block of so many warpgroups has in shared memory, and how its threads fill it.
template <u32 Head, u32 Groups> struct WarpgroupAttentionMemory {
    static constexpr u32 THREADS = Groups * WARPGROUP;
    static constexpr u32 STEPS_THERE = Groups == 1 ? 2 : 4; // steps whose keys and values there is room for
    static constexpr u32 STEPS_AHEAD = STEPS_THERE - 1;     // steps that are asked for while one is computed
    HeadRows<Head, Groups * GROUP_QUERIES> queries;
    AttentionStep<Head> steps[STEPS_THERE];

    DEVICE_MEMBER AttentionStep<Head>& at(u32 step) { return steps[step % STEPS_THERE]; }

    // Asks for the keys and values of a step if there is one, as one group of copies.
    DEVICE_MEMBER void ask_for(const half_bits* from_keys, const half_bits* from_values, u32 pitch, u32 step, u32 length) {
        u32 first = step * STEP_KEYS;
        if (first < length) {
            at(step).keys.template copy_from<THREADS>(from_keys, pitch, first, length);
            at(step).values.template copy_from<THREADS>(from_values, pitch, first, length);
        }
        commit_copies();
    }
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

// What a lane holds of two 16 x 8 tiles of sums is what it must hold of a 16 x 16 factor. Powers of two are computed as floats: of halves the chip computes no
// two at once either, and has to put them together. What is added up, by a product with ones, are the weights as the product with the values takes them; of each
// row's sum there are two of the same.
template <u32 Head> DEVICE void weigh(u32 (&weights)[STEP_KEYS / 16][4], Attended<Head>& attended, const float (&scores)[STEP_KEYS / 2]) {
    float sums[4] = {};
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
    attended.sums[0] += sums[0];
    attended.sums[1] += sums[2];
}

// Heads are the fastest to change: blocks that run at once read neighbouring parts of the same rows. blockIdx.x is the head, blockIdx.y the tile.
template <u32 Head, u32 Groups> DEVICE void attend_by_warpgroups(const AttentionArguments& arguments) {
    AttentionTile tile = arguments.tiles[blockIdx.y];
    if (tile.length == 0) {
        return;
    }
    using Memory = WarpgroupAttentionMemory<Head, Groups>;
    auto& memory = *reinterpret_cast<Memory*>(shared_memory());
    u32 pitch = 3 * arguments.heads * Head;
    const half_bits* queries = arguments.projections + static_cast<u64>(tile.first_row) * pitch + blockIdx.x * Head;
    const half_bits* keys = queries + arguments.heads * Head;
    const half_bits* values = keys + arguments.heads * Head;
    memory.queries.template copy_from<Memory::THREADS>(queries, pitch, tile.first_query, tile.length);
    for (u32 step = 0; step < Memory::STEPS_AHEAD; ++step) {
        memory.ask_for(keys, values, pitch, step, tile.length);
    }
    u32 steps = (tile.length + STEP_KEYS - 1) / STEP_KEYS;
    // After it, what is there of a step is there for all threads, and the place of the one before is free.
    auto enter = [&](u32 step) {
        wait_for_copies<Memory::STEPS_AHEAD - 1>();
        publish_copies();
        synchronize_block();
        memory.ask_for(keys, values, pitch, step + Memory::STEPS_AHEAD, tile.length);
    };

    // All lanes of a warp take the same way: products are under way on it.
    u32 warp = same_in_warp(threadIdx.x / WARP), lane = lane_of(threadIdx.x), warpgroup = warp / (WARPGROUP / WARP);
    if (tile.first_query + warpgroup * GROUP_QUERIES >= tile.length) {
        // The queries of this warpgroup are all past the end: it has nothing to do but to bring keys and values.
        for (u32 step = 0; step < steps; ++step) {
            enter(step);
        }
        synchronize_block();
        return;
    }

    Attended<Head> attended = {};
    for (u32 step = 0; step < steps; ++step) {
        enter(step);
        AttentionStep<Head>& there = memory.at(step);
        float scores[STEP_KEYS / 2];
        multiply_queries<Head>(scores, memory.queries.row(warpgroup * GROUP_QUERIES), there.keys.bytes);
        u32 first_key = step * STEP_KEYS;
        if (first_key + STEP_KEYS > tile.length) {
            leave_out(scores, tile.length - first_key, lane % 4);
        }
        raise(attended, scores, step == 0);
        u32 weights[STEP_KEYS / 16][4];
        weigh(weights, attended, scores);
        multiply_weights<Head>(attended.result, weights, there.values.bytes);
    }
    // Nobody reads the queries any more: their place takes the result, each warp's its own sixteen.
    synchronize_block();
    u32 first_of_warp = warp * 16;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        float factor = reciprocal_fast(attended.sums[half]);
#pragma unroll
        for (u32 n = 0; n < Head / 8; ++n) {
            const float* two = attended.result + n * 4 + 2 * half;
            u32* at = reinterpret_cast<u32*>(memory.queries.chunk(first_of_warp + lane / 4 + 8 * half, n)) + lane % 4;
            *at = floats_to_halves(two[0] * factor, two[1] * factor);
        }
    }
    synchronize_warp();
    u64 context_pitch = static_cast<u64>(arguments.heads) * Head;
    half_bits* context = arguments.context + tile.first_row * context_pitch + blockIdx.x * Head;
    constexpr u32 CHUNKS = Head / 8;
#pragma unroll
    for (u32 i = lane; i < 16 * CHUNKS; i += WARP) {
        u32 row = first_of_warp + i / CHUNKS;
        if (tile.first_query + row < tile.length) {
            half_bits* to = context + (tile.first_query + row) * context_pitch + i % CHUNKS * 8;
            store(reinterpret_cast<Half8*>(to), load(reinterpret_cast<const Half8*>(memory.queries.chunk(row, i % CHUNKS))));
        }
    }
}

KERNEL_BOUNDS(warpgroup_attention_32, AttentionArguments, 2 * WARPGROUP, 3) { attend_by_warpgroups<32, 2>(arguments); }
KERNEL_BOUNDS(warpgroup_attention_64, AttentionArguments, 2 * WARPGROUP, 2) { attend_by_warpgroups<64, 2>(arguments); }
// Where no sequence has more than 64 tokens, a second warpgroup would be idle.
KERNEL_BOUNDS(short_attention_32, AttentionArguments, WARPGROUP, 6) { attend_by_warpgroups<32, 1>(arguments); }
KERNEL_BOUNDS(short_attention_64, AttentionArguments, WARPGROUP, 5) { attend_by_warpgroups<64, 1>(arguments); }

#endif
