// Exact search: inner products of queries with rows of halves, of which only those are kept that may be among the best. The scores are never in memory
// as a whole.
//
// Queries are f32. Each is two halves, its value rounded and what that left, in two neighbouring columns of the product, so that scores are nearly as exact
// as in f32 though the tensor cores multiply halves. The rows are read once for all columns of a block and straight into registers: the order in which
// a product runs through its inner dimension is free, so a lane takes 16 bytes of a row where the plain order would have it take four times 4.
#include "device.cuh"

// A row and its score.
struct Candidate {
    float score;
    u32 row;
};

struct ScoreArguments {
    const half_bits* rows;    // each `size` values, one after the other
    const half_bits* columns; // of the queries: columns x size, two for each query, a multiple of a block's columns
    const u32* allowed;       // one bit for each row, from the lowest; null when all are
    const float* thresholds;  // one for each query: the least score that is wanted
    Candidate* candidates;    // queries x capacity
    u32* counts;              // one for each query: candidates found, also those beyond the capacity
    u32 queries;
    u32 size;     // of a row, a multiple of 32
    u32 first;    // row that is looked at
    u32 step;     // from one row that is looked at to the next
    u32 count;    // rows that are looked at
    u32 capacity; // candidates of a query
    u32 base;     // number that row 0 has in `allowed` and in candidates
    u32 unused;
};

constexpr u32 SCORE_WARPS = 4;
constexpr u32 ROW_TILES = 2; // of 16 rows, for each warp
constexpr u32 INNER = 32;    // values of a row that four lanes read at once

// Shared memory: the block's columns, in the order in which lanes need them.
template <u32 ColumnTiles> DEVICE void score(const ScoreArguments& arguments) {
    Half8* columns = reinterpret_cast<Half8*>(shared_memory());
    u32 warp = threadIdx.x / WARP, lane = lane_of(threadIdx.x), group = lane / 4, place = lane % 4;
    u32 steps = arguments.size / INNER, first_column = blockIdx.y * ColumnTiles * 8;
    for (u32 i = threadIdx.x; i < steps * ColumnTiles * WARP; i += blockDim.x) {
        u32 to_lane = i % WARP, tile = i / WARP % ColumnTiles, step = i / WARP / ColumnTiles;
        u64 column = first_column + tile * 8 + to_lane / 4;
        columns[i] = *reinterpret_cast<const Half8*>(arguments.columns + column * arguments.size + step * INNER + to_lane % 4 * 8);
    }
    synchronize_block();

    constexpr u32 BLOCK_ROWS = SCORE_WARPS * ROW_TILES * 16;
    for (u64 block = blockIdx.x; block * BLOCK_ROWS < arguments.count; block += gridDim.x) {
        u64 first = block * BLOCK_ROWS + warp * ROW_TILES * 16;
        if (first >= arguments.count) {
            continue;
        }
        // The lanes have gone ways of their own at the end of the block before, and multiply together.
        synchronize_warp();
        // The lane's rows, two for each tile. Those past the end are read as the last row, and passed over later.
        const half_bits* rows[2 * ROW_TILES];
#pragma unroll
        for (u32 i = 0; i < 2 * ROW_TILES; ++i) {
            u64 number = first + i * 8 + group;
            number = number < arguments.count ? number : arguments.count - 1;
            rows[i] = arguments.rows + (arguments.first + number * arguments.step) * arguments.size + place * 8;
        }
        float sums[ROW_TILES][ColumnTiles][4] = {};
        for (u32 step = 0; step < steps; ++step) {
            Half8 parts[2 * ROW_TILES];
#pragma unroll
            for (u32 i = 0; i < 2 * ROW_TILES; ++i) {
                parts[i] = *reinterpret_cast<const Half8*>(rows[i] + step * INNER);
            }
#pragma unroll
            for (u32 tile = 0; tile < ColumnTiles; ++tile) {
                Half8 column = columns[(step * ColumnTiles + tile) * WARP + lane];
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
#pragma unroll
                    for (u32 i = 0; i < ROW_TILES; ++i) {
                        const Half8 &upper = parts[2 * i], &lower = parts[2 * i + 1];
                        u32 a[4] = {upper.pairs[2 * half], lower.pairs[2 * half], upper.pairs[2 * half + 1], lower.pairs[2 * half + 1]};
                        multiply_add(sums[i][tile], a, column.pairs[2 * half], column.pairs[2 * half + 1]);
                    }
                }
            }
        }
#pragma unroll
        for (u32 tile = 0; tile < ColumnTiles; ++tile) {
            u32 query = (first_column + tile * 8) / 2 + place;
            if (query >= arguments.queries) {
                continue;
            }
            float threshold = arguments.thresholds[query];
#pragma unroll
            for (u32 i = 0; i < 2 * ROW_TILES; ++i) {
                u64 number = first + i * 8 + group;
                float total = sums[i / 2][tile][i % 2 * 2] + sums[i / 2][tile][i % 2 * 2 + 1];
                // Written so that what is not a number is not wanted.
                if (!(total >= threshold) || number >= arguments.count) {
                    continue;
                }
                u32 row = arguments.base + arguments.first + static_cast<u32>(number) * arguments.step;
                if (arguments.allowed != nullptr && (arguments.allowed[row / 32] >> row % 32 & 1) == 0) {
                    continue;
                }
                u32 index = count_up(&arguments.counts[query], 1);
                if (index < arguments.capacity) {
                    arguments.candidates[static_cast<u64>(query) * arguments.capacity + index] = {total, row};
                }
            }
        }
    }
}

KERNEL_BOUNDS(score_8, ScoreArguments, SCORE_WARPS * WARP, 1) { score<1>(arguments); }
KERNEL_BOUNDS(score_32, ScoreArguments, SCORE_WARPS * WARP, 1) { score<4>(arguments); }
KERNEL_BOUNDS(score_128, ScoreArguments, SCORE_WARPS * WARP, 1) { score<16>(arguments); }

struct SelectArguments {
    Candidate* candidates; // queries x capacity, written over by those that are kept, in no order
    u32* counts;           // queries: before, those found; after, those kept
    float* thresholds;     // queries: after, the score of the last one kept, or as it was when there are fewer than wanted
    u32* overflows;        // queries: added to when more were found than there was room for, and all count
    Candidate* hits;       // queries x wanted: those that are kept once more, without gaps between queries; null when they are not wanted
    u32 capacity;
    u32 wanted;     // at most `capacity`
    u32 forget_all; // 1: the threshold only is wanted, nothing is kept
    u32 unused;
};

// Greater for the better candidate: by score, then by the lower row. The bits of a float are in the order of its value once those of negative ones are
// turned over.
DEVICE u64 rank_of(Candidate candidate) {
    // Minus zero is as good as zero.
    u32 bits = float_bits(candidate.score + 0.0f);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<u64>(bits) << 32 | static_cast<u32>(~candidate.row);
}

constexpr u32 DIGITS = 256;

// Keeps the best candidates of one query: one block for each. The rank of the last one that is wanted is found digit by digit, from the highest, by
// counting how many candidates have each value of the digit; ranks differ, so as many as wanted are at least as good.
KERNEL_BOUNDS(select_best, SelectArguments, 1024, 1) {
    u32* histogram = reinterpret_cast<u32*>(shared_memory()); // DIGITS, then four values that all threads share
    u32* shared = histogram + DIGITS;
    Candidate* candidates = arguments.candidates + static_cast<u64>(blockIdx.x) * arguments.capacity;
    u32 found = arguments.counts[blockIdx.x];
    u32 count = found < arguments.capacity ? found : arguments.capacity;
    // Of a sample any part will do: the score that it gives is reached by as many rows as are wanted.
    if (threadIdx.x == 0 && found > arguments.capacity && !arguments.forget_all) {
        count_up(&arguments.overflows[blockIdx.x], 1);
    }
    u64 last = 0;
    if (count >= arguments.wanted) {
        u32 wanted = arguments.wanted;
        for (int shift = 56; shift >= 0; shift -= 8) {
            for (u32 i = threadIdx.x; i < DIGITS; i += blockDim.x) {
                histogram[i] = 0;
            }
            synchronize_block();
            for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
                u64 rank = rank_of(candidates[i]);
                if (shift == 56 || rank >> (shift + 8) == last >> (shift + 8)) {
                    count_up(&histogram[rank >> shift & (DIGITS - 1)], 1);
                }
            }
            synchronize_block();
            if (threadIdx.x == 0) {
                u32 digit = DIGITS - 1, left = wanted;
                while (histogram[digit] < left) {
                    left -= histogram[digit--];
                }
                shared[0] = digit;
                shared[1] = left;
            }
            synchronize_block();
            last |= static_cast<u64>(shared[0]) << shift;
            wanted = shared[1];
            synchronize_block();
        }
    }
    if (threadIdx.x == 0) {
        shared[2] = 0;
    }
    synchronize_block();
    u32 kept = arguments.forget_all ? 0 : count < arguments.wanted ? count : arguments.wanted;
    // Those that are kept move to the front, block by block: what a block's threads read is in their hands before any of them writes, and they write
    // only where has been read.
    for (u32 first = 0; first < count; first += blockDim.x) {
        u32 i = first + threadIdx.x;
        Candidate candidate = candidates[i < count ? i : 0];
        bool good = i < count && rank_of(candidate) >= last;
        if (good && last != 0 && rank_of(candidate) == last) {
            arguments.thresholds[blockIdx.x] = candidate.score;
        }
        synchronize_block();
        if (good && !arguments.forget_all) {
            u32 place = count_up(&shared[2], 1);
            candidates[place] = candidate;
            if (arguments.hits != nullptr) {
                arguments.hits[static_cast<u64>(blockIdx.x) * arguments.wanted + place] = candidate;
            }
        }
        synchronize_block();
    }
    if (threadIdx.x == 0) {
        arguments.counts[blockIdx.x] = kept;
    }
}
