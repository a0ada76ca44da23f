// Multi-head self-attention over packed sequences, without padding and without the matrix of scores in memory. attention_warpgroup.cu is the one for Hopper.
//
// Dao, "FlashAttention-2" (2023): a block takes 128 queries of one head of one sequence and goes through the sequence's keys and values, 32 at a time,
// while the next 32 are on their way to shared memory. Scores, their running maximum and sum, and the result stay in registers, in f32; both products are
// on the tensor cores. Queries come scaled by log2(e) / sqrt(head dimension), so that the softmax is one of powers of two.
#include "attention.cuh"

constexpr u32 TILE = 32; // keys of a step: few, so that registers suffice for many blocks at once

// Sixteens of queries that a warp has: two where registers suffice, so that what it loads of keys and values serves twice.
template <u32 Head> constexpr u32 SIXTEENS = Head == 32 ? 2 : 1;
template <u32 Head> constexpr u32 ATTENTION_THREADS = QUERIES / 16 / SIXTEENS<Head> * WARP;

// So many rows of one head in shared memory. Rows are 16 bytes further apart than they are long, so that the eight rows of a matrix lie in
// different banks.
template <u32 Head, u32 Rows> struct Tile {
    static constexpr u32 PITCH = Head + 8;
    half_bits values[Rows * PITCH];

    DEVICE_MEMBER half_bits* at(u32 row, u32 column) { return values + row * PITCH + column; }

    // Asks for the rows from `first` on of `from`; those from `end` on are zeros.
    DEVICE_MEMBER void copy_from(const half_bits* from, u64 pitch, u32 first, u32 end) {
        constexpr u32 CHUNKS = Head / 8;
        for (u32 i = threadIdx.x; i < Rows * CHUNKS; i += blockDim.x) {
            u32 row = i / CHUNKS, column = i % CHUNKS * 8;
            bool present = first + row < end;
            copy_16_bytes(at(row, column), from + (present ? first + row : first) * pitch + column, present);
        }
    }
};

template <u32 Head> struct AttentionMemory {
    Tile<Head, QUERIES> queries;
    Tile<Head, TILE> keys[2];
    Tile<Head, TILE> values[2];
};

// blockIdx.x is the tile, blockIdx.y the head.
template <u32 Head> DEVICE void attend(const AttentionArguments& arguments) {
    AttentionTile tile = arguments.tiles[blockIdx.x];
    if (tile.length == 0) {
        return;
    }
    auto& memory = *reinterpret_cast<AttentionMemory<Head>*>(shared_memory());
    u32 warp = threadIdx.x / WARP, lane = lane_of(threadIdx.x), group = lane / 4, place = lane % 4;
    u64 pitch = 3ull * arguments.heads * Head;
    const half_bits* queries = arguments.projections + tile.first_row * pitch + blockIdx.y * Head;
    const half_bits* keys = queries + arguments.heads * Head;
    const half_bits* values = keys + arguments.heads * Head;

    memory.queries.copy_from(queries, pitch, tile.first_query, tile.length);
    memory.keys[0].copy_from(keys, pitch, 0, tile.length);
    memory.values[0].copy_from(values, pitch, 0, tile.length);
    commit_copies();

    constexpr u32 MINE = SIXTEENS<Head>;
    u32 first_of_warp = warp * MINE * 16;
    // Of each sixteen of the warp's queries:
    u32 query_parts[MINE][Head / 16][4];
    float result[MINE][Head / 8][4] = {};
    float largest[MINE][2] = {}; // about the largest score so far, of the rows `group` and `group + 8`
    float sums[MINE][4] = {}; // of the weights of the rows `group`, twice, and `group + 8`, twice
    // A warp whose queries are all past the end has nothing to do but to bring keys and values.
    bool idle = tile.first_query + first_of_warp >= tile.length;

    u32 steps = (tile.length + TILE - 1) / TILE;
    for (u32 step = 0; step < steps; ++step) {
        u32 first_key = step * TILE;
        Tile<Head, TILE>& key_tile = memory.keys[step % 2];
        Tile<Head, TILE>& value_tile = memory.values[step % 2];
        if (step + 1 < steps) {
            memory.keys[(step + 1) % 2].copy_from(keys, pitch, first_key + TILE, tile.length);
            memory.values[(step + 1) % 2].copy_from(values, pitch, first_key + TILE, tile.length);
        }
        commit_copies();
        wait_for_copies<1>();
        synchronize_block();
        if (!idle) {
            if (step == 0) {
#pragma unroll
                for (u32 m = 0; m < MINE; ++m) {
#pragma unroll
                    for (u32 k = 0; k < Head / 16; ++k) {
                        load_matrices(query_parts[m][k], memory.queries.at(first_of_warp + m * 16 + lane % 16, k * 16 + lane / 16 * 8));
                    }
                }
            }

            // Scores less the maximum so far.
            float scores[MINE][TILE / 8][4];
#pragma unroll
            for (u32 k = 0; k < Head / 16; ++k) {
#pragma unroll
                for (u32 n = 0; n < TILE / 8; n += 2) {
                    u32 parts[4];
                    load_matrices(parts, key_tile.at(n * 8 + lane / 16 * 8 + lane % 8, k * 16 + lane / 8 % 2 * 8));
#pragma unroll
                    for (u32 m = 0; m < MINE; ++m) {
                        if (k == 0) {
                            multiply_add_to(scores[m][n], -largest[m][0], -largest[m][1], query_parts[m][k], parts[0], parts[1]);
                            multiply_add_to(scores[m][n + 1], -largest[m][0], -largest[m][1], query_parts[m][k], parts[2], parts[3]);
                        } else {
                            multiply_add(scores[m][n], query_parts[m][k], parts[0], parts[1]);
                            multiply_add(scores[m][n + 1], query_parts[m][k], parts[2], parts[3]);
                        }
                    }
                }
            }
            if (first_key + TILE > tile.length) {
#pragma unroll
                for (u32 n = 0; n < TILE / 8; ++n) {
#pragma unroll
                    for (u32 i = 0; i < 4; ++i) {
                        if (first_key + n * 8 + place * 2 + i % 2 >= tile.length) {
#pragma unroll
                            for (u32 m = 0; m < MINE; ++m) {
                                scores[m][n][i] = minus_infinity();
                            }
                        }
                    }
                }
            }

#pragma unroll
            for (u32 m = 0; m < MINE; ++m) {
                // The four lanes of a group share a row. Every step has a key that is there, so what is found is finite.
                float above[2];
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    float maximum = scores[m][0][2 * half];
#pragma unroll
                    for (u32 n = 0; n < TILE / 8; ++n) {
                        maximum = fmaxf(maximum, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                    }
                    maximum = fmaxf(maximum, shuffle_xor(maximum, 1));
                    above[half] = fmaxf(maximum, shuffle_xor(maximum, 2));
                }
                // The first maximum is taken as it is; a later one only when weights would become too large: all are divided by their sum in the end.
                bool first = step == 0;
                if (first || any_lane(fmaxf(above[0], above[1]) > LEEWAY)) {
#pragma unroll
                    for (u32 half = 0; half < 2; ++half) {
                        float rise = first ? above[half] : fmaxf(above[half], 0.0f);
                        float shrink = exp2_fast(-rise);
                        largest[m][half] += rise;
                        sums[m][2 * half] *= shrink;
#pragma unroll
                        for (u32 n = 0; n < Head / 8; ++n) {
                            result[m][n][2 * half] *= shrink;
                            result[m][n][2 * half + 1] *= shrink;
                        }
#pragma unroll
                        for (u32 n = 0; n < TILE / 8; ++n) {
                            scores[m][n][2 * half] -= rise;
                            scores[m][n][2 * half + 1] -= rise;
                        }
                    }
                }
            }

#pragma unroll
            for (u32 k = 0; k < TILE / 16; ++k) {
                // What a lane holds of two 16 x 8 tiles of sums is what it must hold of a 16 x 16 factor. Weights are halves for the product, so they are
                // computed as halves, two at once; a product with ones adds them up.
                u32 weights[MINE][4];
#pragma unroll
                for (u32 m = 0; m < MINE; ++m) {
#pragma unroll
                    for (u32 i = 0; i < 4; ++i) {
                        const float* two = scores[m][2 * k + i / 2] + i % 2 * 2;
                        weights[m][i] = exp2_fast_halves(floats_to_halves(two[0], two[1]));
                    }
                    multiply_add(sums[m], weights[m], TWO_ONES, TWO_ONES);
                }
#pragma unroll
                for (u32 n = 0; n < Head / 8; n += 2) {
                    u32 parts[4];
                    load_matrices_transposed(parts, value_tile.at(k * 16 + lane % 16, n * 8 + lane / 16 * 8));
#pragma unroll
                    for (u32 m = 0; m < MINE; ++m) {
                        multiply_add(result[m][n], weights[m], parts[0], parts[1]);
                        multiply_add(result[m][n + 1], weights[m], parts[2], parts[3]);
                    }
                }
            }
        }
        // The tiles of this step are written over in the next but one.
        synchronize_block();
    }
    if (idle) {
        return;
    }

#pragma unroll
    for (u32 m = 0; m < MINE; ++m) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            float factor = 1.0f / sums[m][2 * half];
#pragma unroll
            for (u32 n = 0; n < Head / 8; ++n) {
                // A warp's queries are read by itself only, and have been: their place takes the result.
                u32* at = reinterpret_cast<u32*>(memory.queries.at(first_of_warp + m * 16 + group + 8 * half, n * 8 + place * 2));
                *at = floats_to_halves(result[m][n][2 * half] * factor, result[m][n][2 * half + 1] * factor);
            }
        }
    }
    synchronize_warp();
    u64 context_pitch = static_cast<u64>(arguments.heads) * Head;
    half_bits* context = arguments.context + tile.first_row * context_pitch + blockIdx.y * Head;
    for (u32 i = lane; i < MINE * 16 * (Head / 8); i += WARP) {
        u32 row = first_of_warp + i / (Head / 8), column = i % (Head / 8) * 8;
        if (tile.first_query + row < tile.length) {
            half_bits* to = context + (tile.first_query + row) * context_pitch + column;
            store(reinterpret_cast<Half8*>(to), load(reinterpret_cast<const Half8*>(memory.queries.at(row, column))));
        }
    }
}

KERNEL_BOUNDS(attention_32, AttentionArguments, ATTENTION_THREADS<32>, 4) { attend<32>(arguments); }
KERNEL_BOUNDS(attention_64, AttentionArguments, ATTENTION_THREADS<64>, 2) { attend<64>(arguments); }
