// Advice: what the hit ratio would be with another budget, from miniature pools.
//
//   +--------+-----------+---------+----------------------------------+
//   | Advice | rows      | index   | rings                            |   one area of the segment
//   | head   | 40 B[]    | u16[]   | for each shadow: cold, hot u64[] |
//   +--------+-----------+---------+----------------------------------+
//
//   row      a page, and its state in each of nine shadows (policy/sampled_pages.h)
//
// One page in 2^shift is sampled (is_sampled), with all of its references (SHARDS: Waldspurger et al., FAST 2015). A
// shadow runs the pool's own policy (policy.h) over the sampled pages, with 2^-shift of
// the frames of the budget that it stands for. Its misses are divided by the expected number of
// sampled references (all references times 2^-shift), not by the actual one (SHARDS_adj), and the
// curve is moved so that at the present budget it has the miss ratio of the pool itself.
// When the rows are full, ghosts are dropped, oldest first, and if that is not enough
// the sampling rate is halved (fixed-size SHARDS): the memory never grows.
//
// Sampling: see protocol/sampler.h. A client holds the advice lock while it works on the shadows. Only
// advise() and a growth of the shadows' memory wait for that lock; others do without it if it is held. When its owner
// has died, the shadows start anew: nothing else depends on them. No value in them is used as an
// index unchecked, and every loop is bounded by the checked geometry.
#pragma once

#include "layout/policy_state.h"

namespace bp {

constexpr u32 SHADOWS = 9;
// Their sizes, in eighths of the budget.
constexpr u32 SHADOW_EIGHTHS[SHADOWS] = {1, 2, 4, 6, 8, 12, 16, 32, 64};

constexpr u32 shadow_frames(u32 frames, u32 shift, u32 i) {
    u64 scaled = u64(frames) * SHADOW_EIGHTHS[i], one = u64(8) << shift;
    u64 n = (scaled + one / 2) / one;
    return n ? u32(n) : 1;
}

struct AdviceRow {
    u32 page;  // NONE: free, and state[0] is the next free row
    u32 state[SHADOWS];
};

constexpr u32 page_hash(u32 page) {  // the finalizer of MurmurHash3 (Appleby, public domain)
    u32 h = page + 0x9e3779b9;
    h = (h ^ h >> 16) * 0x85ebca6b;
    h = (h ^ h >> 13) * 0xc2b2ae35;
    return h ^ h >> 16;
}
// Is a page sampled? One page of every 2^shift neighbours is, so that a loop, a scan or a table has its share
// of the sample: each of the lowest `shift` bits of the page's number must be equal to a bit of the hash of the higher
// bits. A page that is sampled at a lower rate is sampled at every higher rate.
constexpr bool is_sampled(u32 page, u32 shift) {
    for (u32 bit = 0; bit < shift; bit++)
        if ((page >> bit & 1) != (page_hash((page >> bit >> 1) ^ bit * 0x9e3779b9u) & 1)) return false;
    return true;
}

struct AdviceGeometry {
    static constexpr u32 MOST_FRAMES = 512;  // frames of the shadow with the pool's own budget
    static constexpr u32 MOST_ROWS = 8192, LEAST_SHIFT = 1;
    u32 shift = 0, rows, slots = 256, capacity[SHADOWS];
    u64 rows_at, index_at, rings_at, bytes;

    explicit constexpr AdviceGeometry(u32 max_frames, u32 least_shift = LEAST_SHIFT);
};

struct Advice {
    Atomic<u32> shift;       // one page in 2^shift is sampled
    Atomic<u32> epoch;       // a page is recorded once in an epoch; 1..255
    Atomic<u32> unit;        // length of an epoch in samples
    u32 frames;              // the budget that the shadows represent; 0: they must start anew
    u32 first_free;          // row
    u32 resets, halvings;
    u64 references;          // of all pages, since the last reset
    double expected;         // the expected number of sampled references, decayed
    double missed[SHADOWS];  // misses of each shadow, decayed
    double missed_by_pool;   // the pool's own misses times 2^-shift, decayed
    struct Reading {
        u64 at_ns, references;
    } earlier, later;        // two readings of the pool's counters, for the rate
    PolicyState shadow[SHADOWS];
};

constexpr AdviceGeometry::AdviceGeometry(u32 max_frames, u32 least_shift) {
    u32 most = MOST_FRAMES;
    shift = least_shift;
    while (max_frames >> shift > most) shift++;
    u32 largest = shadow_frames(max_frames, shift, SHADOWS - 1);
    rows = largest * 2 + 64 < MOST_ROWS ? largest * 2 + 64 : MOST_ROWS;
    while (slots < rows + rows / 2) slots *= 2;
    rows_at = (sizeof(Advice) + 63) / 64 * 64;
    index_at = rows_at + u64(rows) * sizeof(AdviceRow);
    rings_at = (index_at + slots * 2 + 7) / 8 * 8;
    bytes = rings_at;
    for (u32 i = 0; i < SHADOWS; i++) {
        capacity[i] = shadow_frames(max_frames, shift, i) + 4;
        bytes += 16ull * capacity[i];
    }
}

// The bytes of the shadows that suffice for every pool of at most `max_frames` frames. (The exact need is not
// monotonic, because the sampling rate depends on the size.)
constexpr u64 advice_bytes(u32 max_frames) {
    constexpr u32 LARGEST = AdviceGeometry::MOST_FRAMES << AdviceGeometry::LEAST_SHIFT;
    if (max_frames <= LARGEST) return AdviceGeometry(max_frames).bytes;
    return AdviceGeometry(LARGEST).bytes + SHADOWS * 16ull * (SHADOW_EIGHTHS[SHADOWS - 1] / 8);
}

}  // namespace bp
