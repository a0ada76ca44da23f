// Attention by warpgroups, by blocks that stay: each takes tile after tile, and while it computes one, the next is on its way.
//
// One warp of a block brings queries, keys and values; its warpgroups compute, 64 queries each. What is brought goes into a ring of places in shared memory, a
// tile's queries into one and the keys and values of a step into another, in the order in which they are needed. Of each place one barrier says when it is
// full and one when it is free again; nothing else is waited for. Two tiles of a text whose keys and values fit into the ring use them both: they come once.
// Products and weights are those of attention_warpgroup.cu, but no maximum is looked for after the first step: a weight too large for a half makes the sum of
// all infinite, which is seen, and the step is done again with a new maximum.
#include "attention_warpgroup.cuh"

#if defined(RAGGED_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What those who compute a tile are told of it; it lies beside its queries.
struct TileAtHand {
    AttentionTile tile; // of length 0: the work is done
    u32 head;
    u32 keys_at; // which of all that was brought is the first step's keys and values; those of the other steps follow
    u32 keys_come; // whether they are behind these queries, not those of a tile before
    u32 is_last; // whether no tile uses these keys and values after it
};

// Room for the queries of a tile, or for the keys and values of a step.
template <u32 Head, u32 Groups> union Place {
    HeadRows<Head, Groups * GROUP_QUERIES> queries;
    AttentionStep<Head> step;
};

// What a block has in shared memory. `at` counts everything that is brought, from 0.
template <u32 Head, u32 Groups> struct StayingMemory {
    static constexpr u32 PLACES = Groups == 2 ? (Head == 32 ? 8 : 6) : (Head == 32 ? 6 : 3);
    static constexpr u32 SPAN = (PLACES - 1) * STEP_KEYS; // keys that there are places for beside the queries; for more keys the queries are brought again
    Place<Head, Groups> places[PLACES];
    TileAtHand tiles[PLACES];
    Barrier full[PLACES], free[PLACES];

    DEVICE_MEMBER HeadRows<Head, Groups * GROUP_QUERIES>& queries(u32 at) { return places[at % PLACES].queries; }

    DEVICE_MEMBER AttentionStep<Head>& step(u32 at) { return places[at % PLACES].step; }

    DEVICE_MEMBER TileAtHand& tile(u32 at) { return tiles[at % PLACES]; }

    DEVICE_MEMBER void begin() {
        for (u32 i = 0; i < PLACES; ++i) {
            full[i].begin(WARP);
            free[i].begin(Groups * WARPGROUP / WARP);
        }
    }

    DEVICE_MEMBER void wait_for(u32 at) { full[at % PLACES].wait(at / PLACES % 2); }

    // By each warp that computes, of what it has waited for.
    DEVICE_MEMBER void release(u32 at, u32 lane) {
        synchronize_warp();
        if (lane == 0) {
            free[at % PLACES].arrive();
        }
    }
};

DEVICE u32 steps_of(u32 length) { return (length + STEP_KEYS - 1) / STEP_KEYS; }

// The warp that brings.
template <u32 Head, u32 Groups> struct Bringer {
    using Memory = StayingMemory<Head, Groups>;
    static constexpr u32 AHEAD = 2; // what is under way before the oldest of it is waited for
    static_assert(AHEAD < Memory::PLACES, "there is a place for all that is under way");
    Memory& memory;
    const AttentionArguments& arguments;
    u32 lane;
    u32 asked, shown; // so much has been asked for, and so much of it shown to those who compute

    DEVICE_MEMBER void show_oldest() {
        publish_copies();
        memory.full[shown % Memory::PLACES].arrive();
        ++shown;
    }

    DEVICE_MEMBER void show_all() {
        wait_for_copies<0>();
        while (shown < asked) {
            show_oldest();
        }
    }

    // Waits until the next place is free. Those who compute may need all that is under way before they free it.
    DEVICE_MEMBER void enter() {
        if (asked >= Memory::PLACES) {
            Barrier& free = memory.free[asked % Memory::PLACES];
            u32 parity = (asked / Memory::PLACES - 1) % 2;
            if (any_lane(!free.has_ended(parity))) {
                show_all();
                free.wait(parity);
            }
        }
    }

    DEVICE_MEMBER void leave() {
        commit_copies();
        ++asked;
        if (asked - shown > AHEAD) {
            wait_for_copies<AHEAD>();
            show_oldest();
        }
    }

    // All tiles of the block, and that there are no more. Heads are the fastest to change: blocks that run at once read neighbouring parts of the same rows.
    DEVICE_MEMBER void bring_all() {
        u32 heads = arguments.heads, together = arguments.together;
        u32 units = (arguments.tile_count + together - 1) / together * heads;
        for (u32 unit = blockIdx.x; unit < units; unit += gridDim.x) {
            u32 head = unit % heads, first = unit / heads * together;
            AttentionTile tile = arguments.tiles[first], next = {};
            if (together == 2 && first + 1 < arguments.tile_count) {
                next = arguments.tiles[first + 1];
            }
            // Its keys and values stay only if those of all steps and the next tile's queries have places at once.
            bool both = next.length > 0 && next.first_row == tile.first_row && tile.length <= Memory::SPAN;
            if (tile.length > 0) {
                bring(tile, head, asked + 1, !both);
            }
            if (next.length > 0) {
                bring(next, head, both ? asked - steps_of(next.length) : asked + 1, true);
            }
        }
        enter();
        tell({}, 0, 0, false, true);
        leave();
        show_all();
    }

    DEVICE_MEMBER void tell(const AttentionTile& tile, u32 head, u32 keys_at, bool keys_come, bool is_last) {
        if (lane == 0) {
            memory.tile(asked) = {tile, head, keys_at, keys_come, is_last};
        }
    }

    // A tile's queries, and its keys and values if they are to come after them.
    DEVICE_MEMBER void bring(const AttentionTile& tile, u32 head, u32 keys_at, bool is_last) {
        u32 pitch = 3 * arguments.heads * Head;
        const half_bits* queries = arguments.projections + static_cast<u64>(tile.first_row) * pitch + head * Head;
        const half_bits* keys = queries + arguments.heads * Head;
        const half_bits* values = keys + arguments.heads * Head;
        bool keys_come = keys_at > asked;
        for (u32 first = 0; first < tile.length; first += STEP_KEYS) {
            if (first % Memory::SPAN == 0) {
                enter();
                tell(tile, head, keys_at, keys_come, is_last);
                memory.queries(asked).template copy_from<WARP>(queries, pitch, tile.first_query, tile.length, lane);
                leave();
            }
            if (!keys_come) {
                return;
            }
            enter();
            memory.step(asked).keys.template copy_from<WARP>(keys, pitch, first, tile.length, lane);
            memory.step(asked).values.template copy_from<WARP>(values, pitch, first, tile.length, lane);
            leave();
        }
    }
};

// Of four lanes, this is number `place`; part n of each is a quarter of its chunk n. Afterwards each has the chunk of its own number.
DEVICE void exchange_quarters(u32 (&parts)[4], u32 place) {
#pragma unroll
    for (u32 bit = 1; bit < 4; bit *= 2) {
        bool upper = (place & bit) != 0;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if ((i & bit) == 0) {
                u32 got = shuffle_xor(upper ? parts[i] : parts[i + bit], bit);
                parts[i] = upper ? got : parts[i];
                parts[i + bit] = upper ? parts[i + bit] : got;
            }
        }
    }
}

// Writes a warp's sixteen rows, of which the first is `query` of its sequence.
template <u32 Head> DEVICE void write_result(const Attended<Head>& attended, const AttentionArguments& arguments, const TileAtHand& at_hand, u32 query, u32 lane) {
    u64 pitch = static_cast<u64>(arguments.heads) * Head;
    half_bits* context = arguments.context + at_hand.tile.first_row * pitch + at_hand.head * Head;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        u32 row = query + lane / 4 + 8 * half;
        float factor = reciprocal_fast(attended.sums[half]);
#pragma unroll
        for (u32 c = 0; c < Head / 8; c += 4) {
            u32 parts[4];
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                const float* two = attended.result + (c + n) * 4 + 2 * half;
                parts[n] = floats_to_halves(two[0] * factor, two[1] * factor);
            }
            exchange_quarters(parts, lane % 4);
            if (row < at_hand.tile.length) {
                store(reinterpret_cast<Half8*>(context + row * pitch + (c + lane % 4) * 8), {parts[0], parts[1], parts[2], parts[3]});
            }
        }
    }
}

// Scores and weights of one step, whose keys from `keys` on are not there. The maximum is brought up first if `raises`, and otherwise only if it must be.
template <u32 Head>
DEVICE void weigh_step(u32 (&weights)[STEP_KEYS / 16][4], Attended<Head>& attended, const u8* queries, const u8* step_keys, u32 keys, bool first, u32 lane) {
    for (bool raises = first;; raises = true) {
        float scores[STEP_KEYS / 2];
        multiply_queries<Head>(scores, queries, step_keys);
        if (keys < STEP_KEYS) {
            leave_out(scores, keys, lane % 4);
        }
        if (raises) {
            raise(attended, scores, first);
        }
        float sums[4] = {};
        weigh(weights, sums, attended, scores);
        // What is not finite after that will stay so.
        if (raises || !any_lane(!(fmaxf(sums[0], sums[2]) < FLOAT_MAX))) {
            add_to_sums(attended, sums);
            return;
        }
    }
}

// A warpgroup's queries of the tile at `queries_at`. Returns where the next tile is. What of the tile's description is read where it is needed takes no
// register until then.
template <u32 Head, u32 Groups>
DEVICE u32 attend_to(StayingMemory<Head, Groups>& memory, const AttentionArguments& arguments, u32 queries_at, u32 length, u32 warp, u32 lane) {
    u32 warpgroup = warp / (WARPGROUP / WARP);
    // If its queries are all past the end, it only says that it needs nothing.
    auto is_idle = [&] { return memory.tile(queries_at).tile.first_query + warpgroup * GROUP_QUERIES >= length; };
    u32 at = same_in_warp(memory.tile(queries_at).keys_at);
    Attended<Head> attended = {};
    for (u32 first_key = 0; first_key < length; first_key += STEP_KEYS) {
        if (at == queries_at + memory.PLACES) { // their own place again
            memory.release(queries_at, lane);
            queries_at = at++;
            memory.wait_for(queries_at);
        }
        memory.wait_for(at);
        if (!is_idle()) {
            AttentionStep<Head>& there = memory.step(at);
            u32 weights[STEP_KEYS / 16][4];
            const u8* queries = memory.queries(queries_at).row(warpgroup * GROUP_QUERIES);
            weigh_step<Head>(weights, attended, queries, there.keys.bytes, length - first_key, first_key == 0, lane);
            multiply_weights<Head>(attended.result, weights, there.values.bytes);
        }
        if (memory.tile(queries_at).is_last) {
            memory.release(at, lane);
        }
        ++at;
    }
    if (!is_idle()) {
        const TileAtHand& at_hand = memory.tile(queries_at);
        write_result(attended, arguments, at_hand, at_hand.tile.first_query + warp * 16, lane);
    }
    u32 next = memory.tile(queries_at).keys_come ? at : queries_at + 1;
    memory.release(queries_at, lane);
    return next;
}

template <u32 Head, u32 Groups> DEVICE void attend_staying(const AttentionArguments& arguments) {
    using Memory = StayingMemory<Head, Groups>;
    static_assert(sizeof(Memory) <= sizeof(Memory::places) + 1024, "the launch leaves so much for all but the places");
    auto& memory = *reinterpret_cast<Memory*>(shared_memory());
    // All lanes of a warp take the same way: products are under way on it.
    u32 warp = same_in_warp(threadIdx.x / WARP), lane = lane_of(threadIdx.x);
    if (threadIdx.x == 0) {
        memory.begin();
    }
    synchronize_block();
    if (warp == Groups * WARPGROUP / WARP) {
        Bringer<Head, Groups>{memory, arguments, lane, 0, 0}.bring_all();
        return;
    }
    for (u32 at = 0;;) {
        memory.wait_for(at);
        u32 length = same_in_warp(memory.tile(at).tile.length);
        if (length == 0) {
            return;
        }
        at = attend_to<Head, Groups>(memory, arguments, at, length, warp, lane);
    }
}

KERNEL_BOUNDS(staying_attention_32, AttentionArguments, 2 * WARPGROUP + WARP, 2) { attend_staying<32, 2>(arguments); }
KERNEL_BOUNDS(staying_attention_64, AttentionArguments, 2 * WARPGROUP + WARP, 2) { attend_staying<64, 2>(arguments); }
// Where no sequence has more than 64 tokens, a second warpgroup would be idle.
KERNEL_BOUNDS(short_staying_attention_32, AttentionArguments, WARPGROUP + WARP, 4) { attend_staying<32, 1>(arguments); }
KERNEL_BOUNDS(short_staying_attention_64, AttentionArguments, WARPGROUP + WARP, 4) { attend_staying<64, 1>(arguments); }

#endif
