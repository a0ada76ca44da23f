// Small kernels with a race each, unless they are told to be right: what the search for races must find, and what it must not.
#include "warpgroup.cuh"

struct RacingArguments {
    u32* memory;  // of the GPU: at least as many as a launch has threads, from a multiple of 16 bytes on
    u32 is_right; // 1: there is no race
    u32 unused;
};

// The thread's own place.
DEVICE u32& place_of(const RacingArguments& arguments) { return arguments.memory[blockIdx.x * blockDim.x + threadIdx.x]; }

// What a thread of another warp has written is read behind a barrier of the block.
KERNEL(racing_between_warps, RacingArguments) {
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    shared[threadIdx.x] = threadIdx.x;
    if (arguments.is_right) synchronize_block();
    place_of(arguments) = shared[(threadIdx.x + WARP) % blockDim.x];
}

// A shuffle does not order memory.
KERNEL(racing_between_lanes, RacingArguments) {
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    shared[threadIdx.x] = shuffle_down(threadIdx.x, 1);
    if (arguments.is_right) synchronize_warp();
    place_of(arguments) = shared[threadIdx.x ^ 1];
}

// A place is written again when all have read it.
KERNEL(racing_to_write_again, RacingArguments) {
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    shared[threadIdx.x] = threadIdx.x;
    synchronize_block();
    place_of(arguments) = shared[(threadIdx.x + WARP) % blockDim.x];
    if (arguments.is_right) synchronize_block();
    shared[threadIdx.x] = 0;
}

// Blocks have places of their own.
KERNEL(racing_between_blocks, RacingArguments) {
    if (threadIdx.x == 0) arguments.memory[arguments.is_right ? blockIdx.x : 0] = blockIdx.x;
}

// A counter that blocks add to is not read by any.
KERNEL(racing_to_count, RacingArguments) {
    u32 before = count_up(arguments.memory, 1);
    if (!arguments.is_right && before == 0) arguments.memory[1] = arguments.memory[0];
}

// What a thread of another warp has copied, whether that has waited for it or not.
DEVICE u32 copied_by_others(const RacingArguments& arguments, u32* shared) {
    copy_16_bytes(shared + 4 * threadIdx.x, arguments.memory, true);
    commit_copies();
    if (arguments.is_right) wait_for_copies<0>();
    synchronize_block();
    return shared[(4 * threadIdx.x + 4 * WARP) % (4 * blockDim.x)];
}

// What a thread has asked for is there for others when it has waited for it and then met them.
KERNEL(racing_with_a_copy, RacingArguments) {
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    u32 read = copied_by_others(arguments, shared);
    wait_for_copies<0>();
    if (read == 0xffffffff) shared[0] = read;
}

// Barriers are of no use to whoever reads what was not waited for.
KERNEL(racing_with_a_copy_between_barriers, RacingArguments) {
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    u32 read = copied_by_others(arguments, shared);
    synchronize_block();
    wait_for_copies<0>();
    if (read == 0xffffffff) shared[0] = read;
}

// A copy is asked for when nobody reads its place any more, though it may come much later.
KERNEL(racing_with_a_later_copy, RacingArguments) {
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    shared[4 * threadIdx.x] = threadIdx.x;
    synchronize_block();
    u32 read = shared[(4 * threadIdx.x + 4 * WARP) % (4 * blockDim.x)];
    if (arguments.is_right) synchronize_block();
    copy_16_bytes(shared + 4 * threadIdx.x, arguments.memory, read < blockDim.x);
    commit_copies();
    wait_for_copies<0>();
}

// What a copy in bulk brings is read behind its barrier.
KERNEL(racing_with_a_copy_in_bulk, RacingArguments) {
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    Barrier* barrier = reinterpret_cast<Barrier*>(shared + 64);
    if (threadIdx.x == 0) {
        barrier->begin(1);
        publish_barriers();
    }
    synchronize_block();
    if (threadIdx.x == 0) {
        barrier->arrive_and_expect(128);
        copy_in_bulk(shared, arguments.memory, 128, *barrier);
    }
    if (arguments.is_right || threadIdx.x != 1) barrier->wait(0);
    u32 read = shared[threadIdx.x % 32];
    barrier->wait(0);
    if (read == 0xffffffff) shared[70 + threadIdx.x] = read;
}

// A copy in bulk is asked for when those who read what was there have said so.
KERNEL(racing_with_a_later_copy_in_bulk, RacingArguments) {
    u32* shared = reinterpret_cast<u32*>(shared_memory());
    Barrier* full = reinterpret_cast<Barrier*>(shared + 64);
    Barrier* empty = full + 1;
    if (threadIdx.x == 0) {
        full->begin(1);
        empty->begin(1);
        publish_barriers();
    }
    if (threadIdx.x < 32) shared[threadIdx.x] = 1;
    synchronize_block();
    if (threadIdx.x == WARP) {
        u32 read = shared[1];
        empty->arrive();
        if (!arguments.is_right) read = shared[2];
        if (read == 0xffffffff) shared[70] = read;
    } else if (threadIdx.x == 0) {
        empty->wait(0);
        full->arrive_and_expect(128);
        copy_in_bulk(shared, arguments.memory, 128, *full);
        full->wait(0);
    }
}

// The factors of a product may be written over when it has been waited for, not when it was begun.
KERNEL(racing_with_a_product, RacingArguments) {
    u8* shared = shared_memory();
    Barrier* read = reinterpret_cast<Barrier*>(shared + 16384);
    if (threadIdx.x == 0) {
        read->begin(WARPGROUP / WARP);
        publish_barriers();
    }
    for (u32 i = threadIdx.x; i < 16384 / 4; i += blockDim.x) reinterpret_cast<u32*>(shared)[i] = 0;
    synchronize_block();
    if (threadIdx.x < WARPGROUP) {
        float sums[4];
        begin_products();
        warpgroup_multiply<8>(sums, shared, shared + 8192, SWIZZLED_ROWS * SWIZZLED_ROW_BYTES, false);
        commit_products();
        if (arguments.is_right) wait_for_products<0>();
        if (lane_of(threadIdx.x) == 0) read->arrive();
        wait_for_products<0>();
        place_of(arguments) = float_bits(sums[0]);
    } else {
        read->wait(0);
        reinterpret_cast<u32*>(shared)[threadIdx.x - WARPGROUP] = 1;
    }
}
