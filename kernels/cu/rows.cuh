// Rows of the hidden state, one to a warp: a lane holds every 32nd group of eight values.
#pragma once
#include "device.cuh"

// Groups of eight values that a lane holds at most: rows of up to 512 and up to 1,024 values. The fewer, the more rows are under way at once.
constexpr int GROUPS_OF_512 = 2;
constexpr int GROUPS_OF_1024 = 4;

template <int Groups> struct Row {
    float values[Groups][8];
};

// Calls `each(group, column)` for the lane's groups; `column` is the first of eight.
template <int Groups, typename Each> DEVICE void for_groups(u32 lane, u32 size, Each each) {
#pragma unroll
    for (int group = 0; group < Groups; ++group) {
        u32 column = (group * WARP + lane) * 8;
        if (column < size) {
            each(group, column);
        }
    }
}

DEVICE void load_floats(float (&values)[8], const float* from) {
    const Float4* fours = reinterpret_cast<const Float4*>(from);
    Float4 low = load(fours), high = load(fours + 1);
    for (int i = 0; i < 4; ++i) {
        values[i] = low.values[i];
        values[4 + i] = high.values[i];
    }
}

// Layer normalisation, Ba et al. (2016): (x - mean) / sqrt(variance + epsilon) * scale + shift. In f32; the variance is that of the differences from
// the mean, which no large mean spoils. Rows share what is loaded of scale and shift, and wait for one another's sums together.
template <int Groups, int Rows>
DEVICE void normalize(Row<Groups> (&rows)[Rows], u32 lane, u32 size, const float* scale, const float* shift, float epsilon) {
    float part = 1.0f / static_cast<float>(size), means[Rows], factors[Rows];
#pragma unroll
    for (int row = 0; row < Rows; ++row) {
        float sum = 0;
        for_groups<Groups>(lane, size, [&](int group, u32) {
            for (int i = 0; i < 8; ++i) {
                sum += rows[row].values[group][i];
            }
        });
        means[row] = sum;
    }
    sum_over_warp(means);
#pragma unroll
    for (int row = 0; row < Rows; ++row) {
        means[row] *= part;
        float squares = 0;
        for_groups<Groups>(lane, size, [&](int group, u32) {
            for (int i = 0; i < 8; ++i) {
                float difference = rows[row].values[group][i] - means[row];
                squares += difference * difference;
            }
        });
        factors[row] = squares;
    }
    sum_over_warp(factors);
#pragma unroll
    for (int row = 0; row < Rows; ++row) {
        factors[row] = 1.0f / sqrtf(factors[row] * part + epsilon);
    }
    for_groups<Groups>(lane, size, [&](int group, u32 column) {
        float scales[8], shifts[8];
        load_floats(scales, scale + column);
        load_floats(shifts, shift + column);
#pragma unroll
        for (int row = 0; row < Rows; ++row) {
            for (int i = 0; i < 8; ++i) {
                rows[row].values[group][i] = (rows[row].values[group][i] - means[row]) * factors[row] * scales[i] + shifts[i];
            }
        }
    });
}

template <int Groups> DEVICE void load_row(Row<Groups>& row, const half_bits* from, u32 lane, u32 size) {
    for_groups<Groups>(lane, size, [&](int group, u32 column) { widen(load(reinterpret_cast<const Half8*>(from + column)), row.values[group]); });
}

template <int Groups> DEVICE void store_row(const Row<Groups>& row, half_bits* to, u32 lane, u32 size) {
    for_groups<Groups>(lane, size, [&](int group, u32 column) { store(reinterpret_cast<Half8*>(to + column), narrow(row.values[group])); });
}
