// One vector of length 1 for each sequence, from its rows: their mean, or the first of them. One block for each sequence.
#include "rows.cuh"

struct PoolArguments {
    const half_bits* hidden; // rows x size
    const u32* first_rows;   // sequences
    const u32* lengths;      // sequences: rows of each that count, at least 1
    float* vectors;          // sequences x size
    u32 size;
    u32 first_only; // 1: the first row instead of the mean
};

// Shared memory: a row of floats for each warp.
template <int Groups> DEVICE void pool(const PoolArguments& arguments) {
    float* sums = reinterpret_cast<float*>(shared_memory());
    u32 warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = lane_of(threadIdx.x), size = arguments.size;
    u32 length = arguments.first_only ? 1 : arguments.lengths[blockIdx.x];
    const half_bits* first = arguments.hidden + static_cast<u64>(arguments.first_rows[blockIdx.x]) * size;
    Row<Groups> sum = {};
#pragma unroll 4
    for (u32 i = warp; i < length; i += warps) {
        Row<Groups> row;
        load_row(row, first + static_cast<u64>(i) * size, lane, size);
        for_groups<Groups>(lane, size, [&](int group, u32) {
            for (int value = 0; value < 8; ++value) {
                sum.values[group][value] += row.values[group][value];
            }
        });
    }
    for_groups<Groups>(lane, size, [&](int group, u32 column) {
        for (int value = 0; value < 8; ++value) {
            sums[warp * size + column + value] = sum.values[group][value];
        }
    });
    synchronize_block();
    // Each warp adds up all columns, so that each knows the length; it writes its own columns only.
    float squares = 0;
    for (u32 column = lane; column < size; column += WARP) {
        float total = 0;
        for (u32 i = 0; i < warps; ++i) {
            total += sums[i * size + column];
        }
        squares += total * total;
    }
    squares = sum_over_warp(squares);
    // The sum points where the mean does, and only the direction is kept. A vector of zeros stays as it is.
    float factor = squares > 0 ? 1.0f / sqrtf(squares) : 0.0f;
    for (u32 column = threadIdx.x; column < size; column += blockDim.x) {
        float total = 0;
        for (u32 i = 0; i < warps; ++i) {
            total += sums[i * size + column];
        }
        arguments.vectors[static_cast<u64>(blockIdx.x) * size + column] = total * factor;
    }
}

KERNEL(pool_512, PoolArguments) { pool<GROUPS_OF_512>(arguments); }
KERNEL(pool_1024, PoolArguments) { pool<GROUPS_OF_1024>(arguments); }
