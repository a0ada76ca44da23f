// Hopper's own: products by a warpgroup of 128 threads whose factors stay in shared memory, and copies in bulk that report to a barrier there.
//
// Factors lie in tiles of rows of 64 halves, 128 bytes each, in which the 16-byte chunks of a row are exchanged by the row's number (chunk ^ row % 8): the
// layout that PTX calls 128-byte swizzling. Rows of 32 halves, 64 bytes, are exchanged by the number of their pair (chunk ^ row / 2 % 4): 64-byte swizzling.
// Tiles begin at a multiple of the bytes of eight rows. PTX ISA, "Asynchronous warpgroup level matrix instructions".
#pragma once
#include "device.cuh"

constexpr u32 WARPGROUP = 128;
constexpr u32 SWIZZLED_ROWS = 8;        // rows after which the exchange begins anew
constexpr u32 SWIZZLED_ROW_BYTES = 128; // of a row in a tile, where nothing else is said

// Where a 16-byte chunk of a row is in a tile of rows of so many bytes, 64 or 128: bits 4 and up of an address are exchanged by its bits 7 and up.
template <u32 RowBytes> DEVICE u32 swizzled(u32 row, u32 chunk) {
    static_assert(RowBytes == 64 || RowBytes == 128, "rows of a factor are 64 or 128 bytes long");
    u32 offset = row * RowBytes + chunk * 16;
    return offset ^ (offset >> 7 & (RowBytes / 16 - 1)) << 4;
}

#if defined(RAGGED_EMULATED)
#include "emulator_warpgroup.hpp"
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)

DEVICE u32 shared_address(const void* in_shared) { return static_cast<u32>(__cvta_generic_to_shared(in_shared)); }

// A barrier in shared memory: a phase of it ends when so many threads have arrived and all bytes that were announced are there.
struct Barrier {
    u64 state;

    DEVICE_MEMBER void begin(u32 arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory"); }

    DEVICE_MEMBER void arrive() { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory"); }

    // Arrives, and announces bytes that copies will bring.
    DEVICE_MEMBER void arrive_and_expect(u32 bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes) : "memory");
    }

    // Waits for the end of the phase of this parity; the first phase has parity 0.
    DEVICE_MEMBER void wait(u32 parity) {
        asm volatile("{\n"
                     ".reg .pred ended;\n"
                     "again:\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
                     "@ended bra.uni done;\n"
                     "bra.uni again;\n"
                     "done:\n"
                     "}" ::"r"(shared_address(this)), "r"(parity)
                     : "memory");
    }
};

// Makes barriers that were begun known to copies; a barrier of the block must follow.
DEVICE void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Copies a multiple of 16 bytes from global to shared memory, behind the thread's back; `barrier` counts them.
DEVICE void copy_in_bulk(void* to_shared, const void* from_global, u32 bytes, Barrier& barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to_shared)),
                 "l"(from_global), "r"(bytes), "r"(shared_address(&barrier))
                 : "memory");
}

// Shows the products what this thread has copied or written into shared memory; a barrier must follow.
DEVICE void publish_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Before products: what they read or write here is computed. After the wait for them: nothing that uses it is moved to before the wait. Of registers the
// compiler does not know that what stands between has anything to do with them.
template <u32 Count> DEVICE void keep_in_place(float (&values)[Count]) {
#pragma unroll
    for (u32 i = 0; i < Count; ++i) {
        asm volatile("" : "+f"(values[i])::"memory");
    }
}

template <u32 Count> DEVICE void keep_in_place(u32 (&parts)[Count][4]) {
#pragma unroll
    for (u32 i = 0; i < Count * 4; ++i) {
        asm volatile("" : "+r"(parts[i / 4][i % 4])::"memory");
    }
}

// What the products have in their registers may be touched by the ones that follow.
DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends a group of products.
DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all groups of products but the last `Pending` are computed.
template <int Pending> DEVICE void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory"); }

// Names a swizzled factor in shared memory, whose rows of eight begin `stride` bytes after one another.
template <u32 RowBytes> DEVICE u64 factor_at(const void* in_shared, u32 stride) {
    constexpr u64 SWIZZLING = RowBytes == 128 ? 1 : 2;
    return static_cast<u64>((shared_address(in_shared) & 0x3ffff) >> 4) | static_cast<u64>(1) << 16 | static_cast<u64>(stride >> 4) << 32 |
           SWIZZLING << 62;
}

#define SUMS_4(s, at) "+f"(s[at]), "+f"(s[at + 1]), "+f"(s[at + 2]), "+f"(s[at + 3])
#define SUMS_16(s, at) SUMS_4(s, at), SUMS_4(s, at + 4), SUMS_4(s, at + 8), SUMS_4(s, at + 12)
#define SUMS_32(s, at) SUMS_16(s, at), SUMS_16(s, at + 16)
#define SUMS_64(s, at) SUMS_32(s, at), SUMS_32(s, at + 32)
#define NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define NAMES_32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES_64                                                                                                                                        \
    NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES_128                                                                                                                                       \
    NAMES_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"          \
             ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122"         \
             ",%123,%124,%125,%126,%127"
#define WARPGROUP_PRODUCT(columns, names, a, b, keeps, ...)                                                                                             \
    asm volatile("{\n"                                                                                                                                  \
                 ".reg .pred keeps;\n"                                                                                                                  \
                 "setp.ne.b32 keeps, " keeps ", 0;\n"                                                                                                   \
                 "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.f16.f16 {" names "}, " a ", " b ", keeps, 1, 1, 0, 0;\n"                         \
                 "}"                                                                                                                                    \
                 : __VA_ARGS__                                                                                                                          \
                 : "l"(rows), "l"(cols), "r"(keep))

// sums = (keeps ? sums : 0) + a * b^T over a warpgroup, not before `wait_for_products`: a is 64 rows of 16 halves, b Columns rows of 16. A lane of warp w
// holds of the sums those that `multiply_add` gives it of rows 16 w to 16 w + 15, for each eight columns four.
template <u32 Columns, u32 RowBytes = SWIZZLED_ROW_BYTES>
DEVICE void warpgroup_multiply(float (&sums)[Columns / 2], const void* a, const void* b, u32 b_stride, bool keeps) {
    u64 rows = factor_at<RowBytes>(a, SWIZZLED_ROWS * RowBytes), cols = factor_at<RowBytes>(b, b_stride);
    u32 keep = keeps;
    if constexpr (Columns == 8) {
        WARPGROUP_PRODUCT(8, "%0,%1,%2,%3", "%4", "%5", "%6", SUMS_4(sums, 0));
    } else if constexpr (Columns == 64) {
        WARPGROUP_PRODUCT(64, NAMES_32, "%32", "%33", "%34", SUMS_32(sums, 0));
    } else if constexpr (Columns == 128) {
        WARPGROUP_PRODUCT(128, NAMES_64, "%64", "%65", "%66", SUMS_64(sums, 0));
    } else {
        static_assert(Columns == 256, "there are products of 8, 64, 128 and 256 columns");
        WARPGROUP_PRODUCT(256, NAMES_128, "%128", "%129", "%130", SUMS_64(sums, 0), SUMS_64(sums, 64));
    }
}

#define WARPGROUP_PRODUCT_OF_REGISTERS(columns, names, a_names, b_name, ...)                                                                            \
    asm volatile("{\n"                                                                                                                                  \
                 ".reg .pred keeps;\n"                                                                                                                  \
                 "setp.eq.b32 keeps, 0, 0;\n"                                                                                                           \
                 "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.f16.f16 {" names "}, {" a_names "}, " b_name ", keeps, 1, 1, 1;\n"               \
                 "}"                                                                                                                                    \
                 : __VA_ARGS__                                                                                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(factor))

// sums += a * b likewise, with a in registers, in which a lane of each warp holds what `multiply_add` asks for of its sixteen rows, and with b as 16 rows of
// Columns halves, each row whole in a tile of such rows.
template <u32 Columns> DEVICE void warpgroup_multiply_registers(float (&sums)[Columns / 2], const u32 (&a)[4], const void* b) {
    constexpr u32 ROW_BYTES = Columns * sizeof(half_bits);
    // b is read by columns, and a tile is as wide as they are many: the stride is that from its first eight rows to the other eight.
    u64 factor = factor_at<ROW_BYTES>(b, SWIZZLED_ROWS * ROW_BYTES);
    if constexpr (Columns == 32) {
        WARPGROUP_PRODUCT_OF_REGISTERS(32, NAMES_16, "%16,%17,%18,%19", "%20", SUMS_16(sums, 0));
    } else {
        static_assert(Columns == 64, "there are products of 32 and 64 columns");
        WARPGROUP_PRODUCT_OF_REGISTERS(64, NAMES_32, "%32,%33,%34,%35", "%36", SUMS_32(sums, 0));
    }
}

#endif
