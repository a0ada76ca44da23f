// Word and position embeddings, summed and normalised: one warp for each token.
#include "rows.cuh"

struct EmbedArguments {
    const half_bits* words;     // vocabulary x hidden
    const half_bits* positions; // positions x hidden, with the embedding of token type 0 in each
    const float* scale;         // hidden
    const float* shift;         // hidden
    const u32* tokens;          // rows
    const u32* places;          // rows: the position of each token in its sequence
    half_bits* hidden;          // rows x hidden
    u32 rows;
    u32 size; // of the hidden state
    float epsilon;
    u32 unused;
};

template <int Groups> DEVICE void embed(const EmbedArguments& arguments) {
    u32 row_index = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row_index >= arguments.rows) {
        return;
    }
    u32 lane = lane_of(threadIdx.x);
    u64 size = arguments.size;
    Row<Groups> rows[1], position;
    Row<Groups>& row = rows[0];
    load_row(row, arguments.words + arguments.tokens[row_index] * size, lane, arguments.size);
    load_row(position, arguments.positions + arguments.places[row_index] * size, lane, arguments.size);
    for_groups<Groups>(lane, arguments.size, [&](int group, u32) {
        for (int i = 0; i < 8; ++i) {
            row.values[group][i] += position.values[group][i];
        }
    });
    normalize(rows, lane, arguments.size, arguments.scale, arguments.shift, arguments.epsilon);
    store_row(row, arguments.hidden + row_index * size, lane, arguments.size);
}

KERNEL(embed_512, EmbedArguments) { embed<GROUPS_OF_512>(arguments); }
KERNEL(embed_1024, EmbedArguments) { embed<GROUPS_OF_1024>(arguments); }
