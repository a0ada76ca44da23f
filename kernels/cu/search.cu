// Exact search: inner products of queries with rows of halves, of which only those are kept that may be among the best. The scores are never in memory
// as a whole.
//
// Queries are f32 and are rounded to halves for the tensor cores. What that changes of a score is at most the length of what was rounded away times that of the
// longest row (Cauchy and Schwarz): the query's margin. A row is a candidate when its score is within twice the margin of the best; the few that are left in
// the end are scored again from the query's own values, so that hits are exact.
//
// Rows lie in the order in which the tensor cores of Hopper read them: 64 rows to a group, a group in tiles of 64 values, a tile's 16-byte chunks exchanged by
// the row's number (`warpgroup.cuh`). Groups lie in slabs.
#include "warpgroup.cuh"

// A row and its score.
struct Candidate {
    float score;
    u32 row;
};

// What stands of one query.
struct Standing {
    float threshold; // the least score that is wanted
    float margin;    // by how much a score may be off
    float factor;    // that the query was multiplied by: a power of two
    u32 found;       // candidates, also those beyond the room for them
};

constexpr u32 CHUNK = 8;                        // halves that are read at once
constexpr u32 TILE_CHUNKS = 8;                  // chunks of a row that lie in one tile
constexpr u32 TILE_VALUES = TILE_CHUNKS * CHUNK;
constexpr u32 GROUP_ROWS = 64;
constexpr u32 OCTET = SWIZZLED_ROWS;            // rows that a sample takes together
constexpr u32 OCTET_BYTES = OCTET * SWIZZLED_ROW_BYTES;
constexpr u32 TILE_BYTES = GROUP_ROWS * SWIZZLED_ROW_BYTES;
constexpr u32 SLAB_GROUPS = 1024;

// Where the chunk of a row begins, in bytes behind the beginning of its group; the group has so many rows.
DEVICE u32 chunk_offset(u32 row, u32 chunk, u32 group_rows) {
    return chunk / TILE_CHUNKS * group_rows * SWIZZLED_ROW_BYTES + row * SWIZZLED_ROW_BYTES + ((chunk ^ row) % TILE_CHUNKS) * (CHUNK * 2);
}

// Where the group begins that a row is in.
DEVICE const u8* group_at(const u8* const* slabs, u32 group, u32 size) {
    return slabs[group / SLAB_GROUPS] + static_cast<u64>(group % SLAB_GROUPS) * GROUP_ROWS * size * sizeof(half_bits);
}

struct PrepareArguments {
    const float* queries; // queries x dimension
    u8* columns;          // of halves, `size` for each query, in groups of 8 rows
    float* scaled;        // columns x size
    Standing* standing;   // columns
    u32* overflows;       // columns
    u32 queries_there;
    u32 dimension;
    u32 size;            // a multiple of 64
    float longest;       // Euclidean length of the longest row
};

// Makes a column of a query: one warp for each. Columns past the queries are zeros whose scores are never wanted.
KERNEL(prepare_queries, PrepareArguments) {
    u32 column = blockIdx.x, lane = lane_of(threadIdx.x);
    bool there = column < arguments.queries_there;
    const float* query = arguments.queries + static_cast<u64>(column) * arguments.dimension;
    float largest = 0;
    for (u32 i = lane; there && i < arguments.dimension; i += WARP) {
        float size = fabsf(query[i]);
        largest = fmaxf(largest, size <= FLOAT_MAX ? size : 0.0f);
    }
    largest = maximum_over_warp(largest);
    // 2^8 for the largest: no value is too large for a half, or small for no need, and sums of products stay far below what f32 holds.
    int exponent = largest > 0 ? 8 - (static_cast<int>(float_bits(largest) >> 23) - 127) : 0;
    exponent = exponent < -120 ? -120 : exponent > 120 ? 120 : exponent;
    float factor = float_of_bits(static_cast<u32>(exponent + 127) << 23);
    float lost = 0, whole = 0;
    float* scaled = arguments.scaled + static_cast<u64>(column) * arguments.size;
    u8* group = arguments.columns + static_cast<u64>(column / OCTET) * OCTET * arguments.size * sizeof(half_bits);
    for (u32 chunk = lane; chunk < arguments.size / CHUNK; chunk += WARP) {
        float values[CHUNK], rounded[CHUNK];
        for (u32 i = 0; i < CHUNK; ++i) {
            u32 at = chunk * CHUNK + i;
            values[i] = there && at < arguments.dimension ? query[at] * factor : 0.0f;
            scaled[at] = values[i];
        }
        Half8 halves = narrow(values);
        store(reinterpret_cast<Half8*>(group + chunk_offset(column % OCTET, chunk, OCTET)), halves);
        widen(halves, rounded);
        for (u32 i = 0; i < CHUNK; ++i) {
            float difference = values[i] - rounded[i];
            lost += difference * difference;
            whole += values[i] * values[i];
        }
    }
    lost = sum_over_warp(lost);
    whole = sum_over_warp(whole);
    if (lane == 0) {
        // The second part is for the sums of the tensor cores: at each step of sixteen values up to seventeen numbers are cut off at 2^-24 of the largest.
        float margin = arguments.longest * (sqrtf(lost) + sqrtf(whole) * static_cast<float>(arguments.size) * (1.0f / (1 << 23)));
        arguments.standing[column] = {there ? minus_infinity() : -minus_infinity(), margin, factor, 0};
        arguments.overflows[column] = 0;
    }
}

struct ScoreArguments {
    const u8* const* slabs;   // of rows, `SLAB_GROUPS` groups each
    const u8* columns;        // of the queries, as `prepare_queries` makes them; a multiple of a block's columns
    const u32* allowed;       // one bit for each row, from the lowest; null when all are
    Standing* standing;       // columns
    Candidate* candidates;    // columns x capacity
    u32 size;     // of a row, a multiple of 64
    u32 rows;     // that there are
    u32 first;    // eight rows that are looked at first; with a step of 1 they begin a group
    u32 step;     // from eight rows that are looked at to the next eight
    u32 count;    // how many eights are looked at
    u32 capacity; // candidates of a column
    u32 sampled;  // 1: every score goes to the place of its row among those looked at, whatever it is; minus infinity where it is not wanted
    u32 stages;   // tiles of rows that `scan` holds
};

// The row that is the `number`th of those looked at.
DEVICE u32 row_at(const ScoreArguments& arguments, u32 number) { return (arguments.first + number / OCTET * arguments.step) * OCTET + number % OCTET; }

// Where a group begins of the rows that are looked at, when all are from the first on, which begins a group.
DEVICE const u8* group_looked_at(const ScoreArguments& arguments, u32 group) {
    return group_at(arguments.slabs, arguments.first / (GROUP_ROWS / OCTET) + group, arguments.size);
}

// Keeps a score if it is wanted: that of the `number`th row looked at.
DEVICE void offer(const ScoreArguments& arguments, u32 column, float score, float threshold, u32 number) {
    // Written so that what is not a number is not wanted.
    bool wanted = score >= threshold;
    if (!wanted && !arguments.sampled) {
        return;
    }
    u32 row = row_at(arguments, number);
    if (number >= arguments.count * OCTET || row >= arguments.rows) {
        wanted = false;
    } else if (arguments.allowed != nullptr && (arguments.allowed[row / 32] >> row % 32 & 1) == 0) {
        wanted = false;
    }
    Candidate* candidates = arguments.candidates + static_cast<u64>(column) * arguments.capacity;
    if (arguments.sampled) {
        if (number < arguments.count * OCTET) {
            candidates[number] = {wanted ? score : minus_infinity(), row};
        }
    } else if (wanted) {
        u32 index = count_up(&arguments.standing[column].found, 1);
        if (index < arguments.capacity) {
            candidates[index] = {score, row};
        }
    }
}

constexpr u32 SCORE_WARPS = 4;
constexpr u32 ROW_TILES = 2; // of 16 rows, for each warp
constexpr u32 INNER = 32;    // values of a row that four lanes read at once

// Scores by the tensor cores of any GPU. The order in which a product runs through its inner dimension is free, so a lane takes 16 bytes of a row where the
// plain order would have it take four times 4, and rows go straight into registers. Shared memory: the block's columns, in the order in which lanes need them.
template <u32 ColumnTiles> DEVICE void score(const ScoreArguments& arguments) {
    Half8* columns = reinterpret_cast<Half8*>(shared_memory());
    u32 warp = threadIdx.x / WARP, lane = lane_of(threadIdx.x), group = lane / 4, place = lane % 4;
    u32 steps = arguments.size / INNER, first_column = blockIdx.y * ColumnTiles * 8;
    const u8* block_columns = arguments.columns + static_cast<u64>(first_column) * arguments.size * sizeof(half_bits);
    for (u32 i = threadIdx.x; i < steps * ColumnTiles * WARP; i += blockDim.x) {
        u32 to_lane = i % WARP, tile = i / WARP % ColumnTiles, step = i / WARP / ColumnTiles;
        const u8* octet = block_columns + static_cast<u64>(tile) * OCTET * arguments.size * sizeof(half_bits);
        store(columns + i, load(reinterpret_cast<const Half8*>(octet + chunk_offset(to_lane / 4, step * 4 + to_lane % 4, OCTET))));
    }
    synchronize_block();

    constexpr u32 BLOCK_ROWS = SCORE_WARPS * ROW_TILES * 16;
    u32 count = arguments.count * OCTET;
    for (u32 block = blockIdx.x; block * BLOCK_ROWS < count; block += gridDim.x) {
        u32 first = block * BLOCK_ROWS + warp * ROW_TILES * 16;
        if (first >= count) {
            continue;
        }
        // The lanes have gone ways of their own at the end of the block before, and multiply together.
        synchronize_warp();
        // The lane's rows, two for each tile. Those past the end are read as the last row, and passed over later.
        const u8* rows[2 * ROW_TILES];
        u32 exchanged[2 * ROW_TILES];
#pragma unroll
        for (u32 i = 0; i < 2 * ROW_TILES; ++i) {
            u32 number = first + i * 8 + group;
            u32 row = row_at(arguments, number < count ? number : count - 1);
            rows[i] = group_at(arguments.slabs, row / GROUP_ROWS, arguments.size);
            exchanged[i] = row % GROUP_ROWS;
        }
        float sums[ROW_TILES][ColumnTiles][4] = {};
        for (u32 step = 0; step < steps; ++step) {
            Half8 parts[2 * ROW_TILES];
#pragma unroll
            for (u32 i = 0; i < 2 * ROW_TILES; ++i) {
                parts[i] = load(reinterpret_cast<const Half8*>(rows[i] + chunk_offset(exchanged[i], step * 4 + place, GROUP_ROWS)));
            }
#pragma unroll
            for (u32 tile = 0; tile < ColumnTiles; ++tile) {
                Half8 column = load(columns + (step * ColumnTiles + tile) * WARP + lane);
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
#pragma unroll
            for (u32 of_two = 0; of_two < 2; ++of_two) {
                u32 column = first_column + tile * 8 + place * 2 + of_two;
                float threshold = arguments.standing[column].threshold;
#pragma unroll
                for (u32 i = 0; i < 2 * ROW_TILES; ++i) {
                    offer(arguments, column, sums[i / 2][tile][i % 2 * 2 + of_two], threshold, first + i * 8 + group);
                }
            }
        }
    }
}

KERNEL_BOUNDS(score_8, ScoreArguments, SCORE_WARPS * WARP, 1) { score<1>(arguments); }
KERNEL_BOUNDS(score_32, ScoreArguments, SCORE_WARPS * WARP, 1) { score<4>(arguments); }
KERNEL_BOUNDS(score_128, ScoreArguments, SCORE_WARPS * WARP, 1) { score<16>(arguments); }

#if defined(RAGGED_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr u32 SCAN_GROUPS = 2; // warpgroups that multiply, in turn: while one looks at its scores, the other multiplies
constexpr u32 SCAN_THREADS = SCAN_GROUPS * WARPGROUP + WARP;

// So many bits, all of which are set.
template <u32 Bits> constexpr u32 EIGHTS_ALL = Bits == 32 ? 0xffffffffu : (1u << Bits % 32) - 1;

// Scores by warpgroups: one warp asks for rows, tile after tile, as far ahead as there is room; the warpgroups multiply each a group of 64 rows, one after the
// other. They take turns for another reason too: a barrier tells the phase that is looked for only from the one before, so the tiles must be waited for in
// their order.
// Shared memory: columns, `stages` tiles of rows, thresholds, barriers.
template <u32 Columns> DEVICE void scan(const ScoreArguments& arguments) {
    u32 tiles = arguments.size / TILE_VALUES, stages = arguments.stages, first_column = blockIdx.y * Columns;
    u32 octet_bytes = tiles * OCTET_BYTES;
    u8* columns = shared_memory();
    u8* rows = columns + Columns / OCTET * octet_bytes;
    float* thresholds = reinterpret_cast<float*>(rows + stages * TILE_BYTES);
    Barrier* full = reinterpret_cast<Barrier*>(thresholds + Columns);
    Barrier* empty = full + stages;
    Barrier& columns_there = empty[stages];
    Barrier* turns = &columns_there + 1; // of the warpgroups
    for (u32 i = threadIdx.x; i < Columns; i += blockDim.x) {
        thresholds[i] = arguments.standing[first_column + i].threshold;
    }
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < stages; ++i) {
            full[i].begin(1);
            empty[i].begin(WARPGROUP / WARP);
        }
        columns_there.begin(1);
        for (u32 i = 0; i < SCAN_GROUPS; ++i) {
            turns[i].begin(WARPGROUP / WARP);
        }
        publish_barriers();
    }
    synchronize_block();

    u32 groups = (arguments.count * OCTET + GROUP_ROWS - 1) / GROUP_ROWS, warpgroup = threadIdx.x / WARPGROUP;
    if (warpgroup == SCAN_GROUPS) {
        if (lane_of(threadIdx.x) != 0) {
            return;
        }
        columns_there.arrive_and_expect(Columns / OCTET * octet_bytes);
        copy_in_bulk(columns, arguments.columns + static_cast<u64>(first_column) / OCTET * octet_bytes, Columns / OCTET * octet_bytes, columns_there);
        u32 stage = 0, parity = 1;
        const u8* begin = groups > blockIdx.x ? group_looked_at(arguments, blockIdx.x) : nullptr;
        for (u32 group = blockIdx.x; group < groups; group += gridDim.x) {
            u32 next_group = group + gridDim.x;
            const u8* next = begin;
            // The eights of a sample lie apart. Past the end the last one is there again.
            const u8* eights[GROUP_ROWS / OCTET];
#pragma unroll
            for (u32 i = 0; i < GROUP_ROWS / OCTET; ++i) {
                u32 eight = group * (GROUP_ROWS / OCTET) + i;
                u32 row = row_at(arguments, (eight < arguments.count ? eight : arguments.count - 1) * OCTET);
                eights[i] = group_at(arguments.slabs, row / GROUP_ROWS, arguments.size) + row % GROUP_ROWS * SWIZZLED_ROW_BYTES;
            }
            for (u32 tile = 0; tile < tiles; ++tile) {
                empty[stage].wait(parity);
                full[stage].arrive_and_expect(TILE_BYTES);
                u8* to = rows + stage * TILE_BYTES;
                if (arguments.step == 1) {
                    copy_in_bulk(to, begin + tile * TILE_BYTES, TILE_BYTES, full[stage]);
                } else {
#pragma unroll
                    for (u32 i = 0; i < GROUP_ROWS / OCTET; ++i) {
                        copy_in_bulk(to + i * OCTET_BYTES, eights[i] + tile * TILE_BYTES, OCTET_BYTES, full[stage]);
                    }
                }
                stage = stage + 1 == stages ? 0 : stage + 1;
                parity ^= stage == 0;
                if (tile == 0 && arguments.step == 1) {
                    // While the first tile is on its way: finding the next group takes a while.
                    next = next_group < groups ? group_looked_at(arguments, next_group) : begin;
                }
            }
            begin = next;
        }
        return;
    }

    columns_there.wait(0);
    u32 warp = threadIdx.x % WARPGROUP / WARP, lane = lane_of(threadIdx.x);
    // The warpgroups share the stages: each passes over those of the other's groups.
    u32 stage = warpgroup * tiles % stages, parity = warpgroup * tiles / stages % 2;
    u32 turn_parity = warpgroup == 0; // the first turn is there from the beginning
    for (u32 group = blockIdx.x + warpgroup * gridDim.x; group < groups; group += SCAN_GROUPS * gridDim.x) {
        float sums[Columns / 2];
        u32 before = 0;
        turns[warpgroup].wait(turn_parity);
        turn_parity ^= 1;
        for (u32 tile = 0; tile < tiles; ++tile) {
            full[stage].wait(parity);
            begin_products();
#pragma unroll
            for (u32 part = 0; part < TILE_CHUNKS / 2; ++part) {
                const u8* factor = columns + tile * OCTET_BYTES + part * 32;
                warpgroup_multiply<Columns>(sums, rows + stage * TILE_BYTES + part * 32, factor, octet_bytes, tile + part > 0);
            }
            commit_products();
            if (tile > 0) {
                wait_for_products<1>();
                if (lane == 0) {
                    empty[before].arrive();
                }
            }
            before = stage;
            stage = stage + 1 == stages ? 0 : stage + 1;
            parity ^= stage == 0;
        }
        synchronize_warp();
        if (lane == 0) {
            turns[(warpgroup + 1) % SCAN_GROUPS].arrive();
        }
        wait_for_products<0>();
        if (lane == 0) {
            empty[before].arrive();
        }
        u32 passed = stage + (SCAN_GROUPS - 1) * tiles;
        stage = passed % stages;
        parity ^= passed / stages % 2;

        // Which eights of columns have a score that is wanted? Few have: what is done with them is not unrolled, so that the code stays small.
        u32 wanted = arguments.sampled ? EIGHTS_ALL<Columns / 8> : 0;
#pragma unroll
        for (u32 eight = 0; eight < Columns / 8; ++eight) {
            Float2 least = load(reinterpret_cast<const Float2*>(thresholds + eight * 8 + lane % 4 * 2));
            const float* four = sums + eight * 4;
            // What is not a number is passed over by the maximum, and wanted by nobody.
            if (fmaxf(four[0], four[2]) >= least.values[0] || fmaxf(four[1], four[3]) >= least.values[1]) {
                wanted |= 1u << eight;
            }
        }
        u32 number = group * GROUP_ROWS + warp * 16 + lane / 4;
        while (wanted != 0) {
            u32 chosen = lowest_bit(wanted);
            wanted &= wanted - 1;
            float four[4];
#pragma unroll
            for (u32 eight = 0; eight < Columns / 8; ++eight) {
                for (u32 i = 0; i < 4; ++i) {
                    four[i] = eight == 0 || eight == chosen ? sums[eight * 4 + i] : four[i];
                }
            }
            u32 column = chosen * 8 + lane % 4 * 2;
#pragma unroll 1
            for (u32 i = 0; i < 4; ++i) {
                u32 of_two = i % 2;
                float score = i == 0 ? four[0] : i == 1 ? four[1] : i == 2 ? four[2] : four[3];
                offer(arguments, first_column + column + of_two, score, thresholds[column + of_two], number + i / 2 * 8);
            }
        }
    }
}

KERNEL_BOUNDS(scan_8, ScoreArguments, SCAN_THREADS, 1) { scan<8>(arguments); }
KERNEL_BOUNDS(scan_64, ScoreArguments, SCAN_THREADS, 1) { scan<64>(arguments); }
KERNEL_BOUNDS(scan_128, ScoreArguments, SCAN_THREADS, 1) { scan<128>(arguments); }
KERNEL_BOUNDS(scan_256, ScoreArguments, SCAN_THREADS, 1) { scan<256>(arguments); }

#endif

struct SelectArguments {
    const u8* const* slabs;
    const float* scaled;   // the queries' own values: columns x size
    Candidate* candidates; // columns x capacity, written over by those that are kept, in no order
    Standing* standing;    // columns
    u32* overflows;        // columns: added to when more were found than there was room for
    u32* kept;             // columns: how many are kept
    Candidate* hits;       // columns x wanted: those that are kept, with the scores of the query as it was asked
    u32 size;
    u32 capacity;
    u32 wanted;  // at most `capacity`
    u32 sampled; // so many scores of a sample are there: only the threshold that they give is wanted; 0: candidates are
};

// Greater for the better candidate: by score, then by the lower row. The bits of a float are in the order of its value once those of negative ones are
// turned over.
DEVICE u64 rank_of(Candidate candidate) {
    // Minus zero is as good as zero.
    u32 bits = float_bits(candidate.score + 0.0f);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<u64>(bits) << 32 | static_cast<u32>(~candidate.row);
}

// The least score of this rank; minus infinity below all scores.
DEVICE float score_of(u64 rank) {
    u32 bits = static_cast<u32>(rank >> 32);
    float score = float_of_bits(bits >> 31 ? bits & 0x7fffffff : ~bits);
    return score >= minus_infinity() ? score : minus_infinity();
}

// The lowest rank of this score.
DEVICE u64 rank_of_score(float score) { return rank_of({score, 0xffffffffu}); }

constexpr u32 DIGITS = 256;
constexpr u32 LANE_DIGITS = DIGITS / WARP;

// What the threads of a selecting block share.
struct SelectMemory {
    u32 histogram[DIGITS];
    u64 prefix;  // the digits that are known of the rank that is looked for
    u32 wanted;  // of those with these digits
    u32 is_exact; // all with these digits are wanted
    u32 places;
};

// The rank of the last one of the `wanted` best of at least as many candidates, or one between it and the next: found digit by digit, from the highest,
// by counting how many candidates have each value of the digit. Ranks differ, so exactly as many are at least as good.
DEVICE u64 last_rank(SelectMemory& memory, const Candidate* candidates, u32 count, u32 wanted) {
    u32 lane = lane_of(threadIdx.x);
    if (threadIdx.x == 0) {
        memory.prefix = 0;
        memory.wanted = wanted;
    }
    for (int shift = 56;; shift -= 8) {
        for (u32 i = threadIdx.x; i < DIGITS; i += blockDim.x) {
            memory.histogram[i] = 0;
        }
        synchronize_block();
        u64 prefix = memory.prefix;
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
            u64 rank = rank_of(candidates[i]);
            if (shift == 56 || rank >> (shift + 8) == prefix >> (shift + 8)) {
                count_up(&memory.histogram[rank >> shift & (DIGITS - 1)], 1);
            }
        }
        synchronize_block();
        if (threadIdx.x < WARP) {
            // Each lane has eight digits, the lanes in order: how many candidates have a greater one?
            u32 own = 0;
            for (u32 i = 0; i < LANE_DIGITS; ++i) {
                own += memory.histogram[lane * LANE_DIGITS + i];
            }
            u32 greater = sum_of_lanes_above(own, lane), left = memory.wanted;
            synchronize_warp();
            if (greater < left && left <= greater + own) {
                u32 digit = lane * LANE_DIGITS + LANE_DIGITS - 1;
                left -= greater;
                while (memory.histogram[digit] < left) {
                    left -= memory.histogram[digit--];
                }
                memory.prefix = prefix | static_cast<u64>(digit) << shift;
                memory.wanted = left;
                memory.is_exact = memory.histogram[digit] == left || shift == 0;
            }
        }
        synchronize_block();
        if (memory.is_exact) {
            u64 rank = memory.prefix;
            synchronize_block();
            return rank;
        }
    }
}

// Moves those to the front that are at least so good; returns how many they are. What the threads read is in their hands before any of them writes, and
// they write only where has been read.
DEVICE u32 keep(SelectMemory& memory, Candidate* candidates, u32 count, u64 least) {
    if (threadIdx.x == 0) {
        memory.places = 0;
    }
    synchronize_block();
    for (u32 first = 0; first < count; first += blockDim.x) {
        u32 i = first + threadIdx.x;
        Candidate candidate = candidates[i < count ? i : 0];
        synchronize_block();
        if (i < count && rank_of(candidate) >= least) {
            candidates[count_up(&memory.places, 1)] = candidate;
        }
        synchronize_block();
    }
    u32 kept = memory.places;
    synchronize_block();
    return kept;
}

// The score of a row from the query's own values, over a warp.
DEVICE float exact_score(const SelectArguments& arguments, const float* query, u32 row, u32 lane) {
    const u8* group = group_at(arguments.slabs, row / GROUP_ROWS, arguments.size);
    float sum = 0;
    for (u32 chunk = lane; chunk < arguments.size / CHUNK; chunk += WARP) {
        float values[CHUNK];
        widen(load(reinterpret_cast<const Half8*>(group + chunk_offset(row % GROUP_ROWS, chunk, GROUP_ROWS))), values);
        for (u32 i = 0; i < CHUNK; ++i) {
            sum += values[i] * query[chunk * CHUNK + i];
        }
    }
    return sum_over_warp(sum);
}

// Keeps the best candidates of one query: one block for each.
KERNEL_BOUNDS(select_best, SelectArguments, 512, 1) {
    SelectMemory& memory = *reinterpret_cast<SelectMemory*>(shared_memory());
    Candidate* candidates = arguments.candidates + static_cast<u64>(blockIdx.x) * arguments.capacity;
    Standing& standing = arguments.standing[blockIdx.x];
    float margin = standing.margin, factor = standing.factor;
    if (arguments.sampled != 0) {
        // As many rows as are wanted have this score or more.
        float least = arguments.sampled >= arguments.wanted ? score_of(last_rank(memory, candidates, arguments.sampled, arguments.wanted)) : minus_infinity();
        if (threadIdx.x == 0) {
            standing.threshold = least - 2 * margin;
        }
        return;
    }
    u32 found = standing.found, count = found < arguments.capacity ? found : arguments.capacity;
    if (threadIdx.x == 0 && found > arguments.capacity) {
        arguments.overflows[blockIdx.x] += 1;
    }
    if (count > arguments.wanted) {
        float least = score_of(last_rank(memory, candidates, count, arguments.wanted)) - 2 * margin;
        count = keep(memory, candidates, count, rank_of_score(least));
    }
    for (u32 i = threadIdx.x / WARP; i < count; i += blockDim.x / WARP) {
        u32 lane = lane_of(threadIdx.x);
        float exact = exact_score(arguments, arguments.scaled + static_cast<u64>(blockIdx.x) * arguments.size, candidates[i].row, lane);
        synchronize_warp();
        if (lane == 0) {
            candidates[i].score = exact >= minus_infinity() ? exact : minus_infinity();
        }
    }
    synchronize_block();
    if (count > arguments.wanted) {
        count = keep(memory, candidates, count, last_rank(memory, candidates, count, arguments.wanted));
    }
    float least = -minus_infinity();
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        Candidate candidate = candidates[i];
        arguments.hits[static_cast<u64>(blockIdx.x) * arguments.wanted + i] = {candidate.score / factor, candidate.row};
        least = fminf(least, candidate.score);
    }
    // More rows are looked at after this: those that may be better than the last of these.
    least = -maximum_over_warp(-least);
    float* leasts = reinterpret_cast<float*>(memory.histogram);
    if (lane_of(threadIdx.x) == 0) {
        leasts[threadIdx.x / WARP] = least;
    }
    synchronize_block();
    if (threadIdx.x == 0) {
        for (u32 i = 1; i < blockDim.x / WARP; ++i) {
            least = fminf(least, leasts[i]);
        }
        if (count == arguments.wanted) {
            standing.threshold = least - margin;
        }
        standing.found = count;
        arguments.kept[blockIdx.x] = count;
    }
}
