// Rows of the hidden state, one to a warp: a lane holds every 32nd group of eight values.
#pragma once
#include "device.cuh"

// Groups of eight values that a lane holds at most: rows of up to 1,024 values.
constexpr int LANE_GROUPS = 4;

struct Row {
    float values[LANE_GROUPS][8];
};

// Calls `each(group, column)` for the lane's groups; `column` is the first of eight.
template <typename Each> DEVICE void for_groups(u32 lane, u32 size, Each each) {
#pragma unroll
    for (int group = 0; group < LANE_GROUPS; ++group) {
        u32 column = (group * WARP + lane) * 8;
        if (column < size) {
            each(group, column);
        }
    }
}

// Layer normalisation, Ba et al. (2016): (x - mean) / sqrt(variance + epsilon) * scale + shift. In f32; the variance is that of the differences from
// the mean, which no large mean spoils.
DEVICE void normalize(Row& row, u32 lane, u32 size, const float* scale, const float* shift, float epsilon) {
    float sum = 0;
    for_groups(lane, size, [&](int group, u32) {
        for (int i = 0; i < 8; ++i) {
            sum += row.values[group][i];
        }
    });
    float mean = sum_over_warp(sum) / size;
    float squares = 0;
    for_groups(lane, size, [&](int group, u32) {
        for (int i = 0; i < 8; ++i) {
            float difference = row.values[group][i] - mean;
            squares += difference * difference;
        }
    });
    float factor = 1.0f / sqrtf(sum_over_warp(squares) / size + epsilon);
    for_groups(lane, size, [&](int group, u32 column) {
        for (int i = 0; i < 8; ++i) {
            row.values[group][i] = (row.values[group][i] - mean) * factor * scale[column + i] + shift[column + i];
        }
    });
}

DEVICE void load_row(Row& row, const half_bits* from, u32 lane, u32 size) {
    for_groups(lane, size, [&](int group, u32 column) { widen(*reinterpret_cast<const Half8*>(from + column), row.values[group]); });
}

DEVICE void store_row(const Row& row, half_bits* to, u32 lane, u32 size) {
    for_groups(lane, size, [&](int group, u32 column) { *reinterpret_cast<Half8*>(to + column) = narrow(row.values[group]); });
}
