// Layer normalisation in place: one warp for two rows. The product before it has added the residual and the bias already.
#include "rows.cuh"

struct LayerNormArguments {
    half_bits* hidden;  // rows x size
    const float* scale; // size
    const float* shift; // size
    u32 rows;
    u32 size;
    float epsilon;
    u32 unused;
};

constexpr int ROWS_OF_WARP = 2;

template <int Groups> DEVICE void layer_norm(const LayerNormArguments& arguments) {
    u32 first = (blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP) * ROWS_OF_WARP, lane = lane_of(threadIdx.x), size = arguments.size;
    if (first >= arguments.rows) {
        return;
    }
    Row<Groups> rows[ROWS_OF_WARP];
    half_bits* places[ROWS_OF_WARP];
#pragma unroll
    for (int i = 0; i < ROWS_OF_WARP; ++i) {
        // The last row is there twice when its number is odd, and written once.
        u32 row = first + i < arguments.rows ? first + i : first;
        places[i] = arguments.hidden + static_cast<u64>(row) * size;
        load_row(rows[i], places[i], lane, size);
    }
    normalize(rows, lane, size, arguments.scale, arguments.shift, arguments.epsilon);
#pragma unroll
    for (int i = 0; i < ROWS_OF_WARP; ++i) {
        if (first + i < arguments.rows) {
            store_row(rows[i], places[i], lane, size);
        }
    }
}

KERNEL(layer_norm_512, LayerNormArguments) { layer_norm<GROUPS_OF_512>(arguments); }
KERNEL(layer_norm_1024, LayerNormArguments) { layer_norm<GROUPS_OF_1024>(arguments); }
