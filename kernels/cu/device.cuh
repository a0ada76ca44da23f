// What all kernels stand on: types, half precision, sums over a warp, 16-byte copies, tensor cores.
//
// NVRTC is given no header of the toolkit, so that a machine with a driver and the runtime compiler is enough. Instructions that C++ has no name for
// are written as PTX here and nowhere else; the tests put `emulator.hpp` in their place and run the kernels on the processor.
#pragma once

typedef unsigned char u8;
typedef unsigned short half_bits; // an IEEE half-precision number, by its bits
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
constexpr float FLOAT_MAX = 3.402823466e38f;

// Eight halves, read and written at once.
struct alignas(16) Half8 {
    u32 pairs[4];
};

// Two and four floats, likewise.
struct alignas(8) Float2 {
    float values[2];
};

struct alignas(16) Float4 {
    float values[4];
};

#ifdef RAGGED_EMULATED
#include "emulator.hpp"
#else

#define KERNEL(name, Arguments) extern "C" __global__ void name(const __grid_constant__ Arguments arguments)
#define KERNEL_BOUNDS(name, Arguments, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Arguments arguments)
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__

// The block's shared memory, as much as the launch asked for, from a multiple of 1,024 on.
DEVICE u8* shared_memory() {
    extern __shared__ __align__(1024) u8 memory[];
    return memory;
}

DEVICE float half_to_float(half_bits bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// Structures are loaded and stored piece by piece; the compiler's own vectors are as wholes.
DEVICE Float4 load(const Float4* from) {
    float4 loaded = *reinterpret_cast<const float4*>(from);
    return {loaded.x, loaded.y, loaded.z, loaded.w};
}

DEVICE Float2 load(const Float2* from) {
    float2 loaded = *reinterpret_cast<const float2*>(from);
    return {loaded.x, loaded.y};
}

DEVICE Half8 load(const Half8* from) {
    uint4 loaded = *reinterpret_cast<const uint4*>(from);
    return {loaded.x, loaded.y, loaded.z, loaded.w};
}

// The compiler makes four stores of one of its own vectors where it knows where the parts come from.
DEVICE void store(Half8* to, const Half8& halves) {
    asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(halves.pairs[0]), "r"(halves.pairs[1]), "r"(halves.pairs[2]), "r"(halves.pairs[3])
                 : "memory");
}

// Two floats rounded to halves, `low` in the lower 16 bits.
DEVICE u32 floats_to_halves(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// 2 to the power of `x`, to about 2 units in the last place; 0 for minus infinity.
DEVICE float exp2_fast(float x) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

// 1 / x, to about 1 unit in the last place.
DEVICE float reciprocal_fast(float x) {
    float value;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

// 2 to the power of two halves at once, to about 2^-10 of the value.
DEVICE u32 exp2_fast_halves(u32 pair) {
    u32 values;
    asm("ex2.approx.f16x2 %0, %1;" : "=r"(values) : "r"(pair));
    return values;
}

DEVICE float shuffle_xor(float value, u32 mask) { return __shfl_xor_sync(ALL_LANES, value, mask); }

// The value of the lane that is `by` further on; where there is none, the lane's own.
DEVICE u32 shuffle_down(u32 value, u32 by) { return __shfl_down_sync(ALL_LANES, value, by); }

// The value of the first lane: tells the compiler that all lanes have the same.
DEVICE u32 same_in_warp(u32 value) { return __shfl_sync(ALL_LANES, value, 0); }

DEVICE void synchronize_warp() { __syncwarp(); }

DEVICE void synchronize_block() { __syncthreads(); }

DEVICE u32 float_bits(float value) { return __float_as_uint(value); }

DEVICE float float_of_bits(u32 bits) { return __uint_as_float(bits); }

DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }

// Adds to a counter that other threads add to, and returns what it was before.
DEVICE u32 count_up(u32* counter, u32 by) { return atomicAdd(counter, by); }

// Copies 16 bytes from global to shared memory behind the thread's back; zeros instead when `present` is false. Seen by this thread after
// `wait_for_copies`, by others after a barrier as well.
DEVICE void copy_16_bytes(void* to_shared, const void* from_global, bool present) {
    u32 to = static_cast<u32>(__cvta_generic_to_shared(to_shared));
    u32 bytes = present ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from_global), "r"(bytes) : "memory");
}

// Ends a group of copies.
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all groups of copies but the last `Pending` are there.
template <int Pending> DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory"); }

// Loads four 8 x 8 matrices of halves: lane `l` names row `l % 8` of matrix `l / 8`, and is given of each matrix the elements 2 * (l % 4) and the next
// one of row `l / 4`.
DEVICE void load_matrices(u32 (&matrices)[4], const void* row) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
}

// The same of the matrices transposed.
DEVICE void load_matrices_transposed(u32 (&matrices)[4], const void* row) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
}

// sums += a * b over a warp: a is 16 x 16, b 16 x 8, both halves, the sums f32. With g = lane / 4 and t = lane % 4, a lane holds of a the pairs at
// (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), each (row, first column); of b those at (2t, g) and (2t + 8, g), each (first row, column); of the
// sums those at (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1). PTX ISA, "Matrix fragments for mma.m16n8k16".
DEVICE void multiply_add(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same with other sums to begin with.
DEVICE void multiply_add_to(float (&sums)[4], float upper, float lower, const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %11, %11};"
                 : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(upper), "f"(lower));
}

// Whether it is so in any lane of the warp.
DEVICE bool any_lane(bool so) { return __any_sync(ALL_LANES, so); }

// The lowest bit that is set, from 0; there is one.
DEVICE u32 lowest_bit(u32 bits) { return __ffs(bits) - 1; }

#endif

DEVICE u32 lane_of(u32 thread) { return thread % WARP; }

DEVICE float sum_over_warp(float value) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        value += shuffle_xor(value, mask);
    }
    return value;
}

// Several sums at once.
template <int Count> DEVICE void sum_over_warp(float (&values)[Count]) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
#pragma unroll
        for (int i = 0; i < Count; ++i) {
            values[i] += shuffle_xor(values[i], mask);
        }
    }
}

DEVICE float maximum_over_warp(float value) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        value = fmaxf(value, shuffle_xor(value, mask));
    }
    return value;
}

// What the lanes behind this one have, added up.
DEVICE u32 sum_of_lanes_above(u32 value, u32 lane) {
    u32 sum = value;
    for (u32 by = 1; by < WARP; by *= 2) {
        u32 further = shuffle_down(sum, by);
        sum += lane + by < WARP ? further : 0;
    }
    return sum - value;
}

DEVICE void widen(const Half8& halves, float (&values)[8]) {
    for (int pair = 0; pair < 4; ++pair) {
        values[2 * pair] = half_to_float(static_cast<half_bits>(halves.pairs[pair] & 0xffff));
        values[2 * pair + 1] = half_to_float(static_cast<half_bits>(halves.pairs[pair] >> 16));
    }
}

DEVICE Half8 narrow(const float (&values)[8]) {
    Half8 halves;
    for (int pair = 0; pair < 4; ++pair) {
        halves.pairs[pair] = floats_to_halves(values[2 * pair], values[2 * pair + 1]);
    }
    return halves;
}
