// Hopper's own: products by a warpgroup of 128 threads whose factors stay in shared memory, and copies in bulk that report to a barrier there.
//
// Factors lie in tiles of rows of 64 halves, 128 bytes each, in which the 16-byte chunks of a row are exchanged by the row's number (chunk ^ row % 8): the
// layout that PTX calls 128-byte swizzling. Tiles begin at a multiple of 1,024 bytes. PTX ISA, "Asynchronous warpgroup level matrix instructions".
#pragma once
#include "device.cuh"

constexpr u32 WARPGROUP = 128;
constexpr u32 SWIZZLED_ROWS = 8;        // rows after which the exchange begins anew
constexpr u32 SWIZZLED_ROW_BYTES = 128; // of a row in a tile

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

// What the products have in their registers may be touched by the ones that follow.
DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends a group of products.
DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all groups of products but the last `Pending` are computed.
template <int Pending> DEVICE void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory"); }

// Names a swizzled factor in shared memory, whose rows of eight begin `stride` bytes after one another.
DEVICE u64 factor_at(const void* in_shared, u32 stride) {
    return static_cast<u64>((shared_address(in_shared) & 0x3ffff) >> 4) | static_cast<u64>(1) << 16 | static_cast<u64>(stride >> 4) << 32 |
           static_cast<u64>(1) << 62;
}

#define SUMS_4(s, at) "+f"(s[at]), "+f"(s[at + 1]), "+f"(s[at + 2]), "+f"(s[at + 3])
#define SUMS_16(s, at) SUMS_4(s, at), SUMS_4(s, at + 4), SUMS_4(s, at + 8), SUMS_4(s, at + 12)
#define SUMS_32(s, at) SUMS_16(s, at), SUMS_16(s, at + 16)
#define SUMS_64(s, at) SUMS_32(s, at), SUMS_32(s, at + 32)
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
template <u32 Columns> DEVICE void warpgroup_multiply(float (&sums)[Columns / 2], const void* a, const void* b, u32 b_stride, bool keeps) {
    u64 rows = factor_at(a, SWIZZLED_ROWS * SWIZZLED_ROW_BYTES), cols = factor_at(b, b_stride);
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

#endif
