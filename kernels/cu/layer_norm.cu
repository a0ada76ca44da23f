// Layer normalisation in place: one warp for each row. The product before it has added the residual and the bias already.
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

KERNEL(layer_norm, LayerNormArguments) {
    u32 row_index = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row_index >= arguments.rows) {
        return;
    }
    u32 lane = lane_of(threadIdx.x);
    half_bits* place = arguments.hidden + static_cast<u64>(row_index) * arguments.size;
    Row row;
    load_row(row, place, lane, arguments.size);
    normalize(row, lane, arguments.size, arguments.scale, arguments.shift, arguments.epsilon);
    store_row(row, place, lane, arguments.size);
}
