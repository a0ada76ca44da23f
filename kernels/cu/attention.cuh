// What both kernels of attention are told, and what they have in common.
#pragma once
#include "device.cuh"

// Tile of queries of one sequence.
struct AttentionTile {
    u32 first_row;   // of the sequence
    u32 length;      // of the sequence; 0 for a tile that is not there
    u32 first_query; // in the sequence
};

struct AttentionArguments {
    const half_bits* projections; // rows x (queries, keys, values), each heads x Head values
    half_bits* context;           // rows x heads x Head values
    const AttentionTile* tiles;   // of all sequences
    u32 heads;
    u32 unused;
};

constexpr u32 QUERIES = 128; // of a tile
constexpr float LEEWAY = 8;  // powers of two by which a weight may be above one: halves hold twice as many
constexpr u32 TWO_ONES = 0x3c003c00; // as halves
