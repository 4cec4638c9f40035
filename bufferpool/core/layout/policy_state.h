// What the replacement policy (policy/policy.h) keeps in the segment: its state, and the elements of its rings.
#pragma once

#include "layout/words.h"

namespace bp {

constexpr u32 STAMP_MASK = 0x7fffffffu;
// Signed distance of two 31-bit stamps, safe across wrap-around.
constexpr int stamp_diff(u32 a, u32 b) { return int((a - b) << 1) >> 1; }

// The mode determines how the policy chooses victims. policy/duelling.h chooses the mode.
enum PolicyMode : u32 {
    MODE_ADAPTIVE,  // the split between the rings moves with the ghosts' votes
    MODE_RECENCY,   // one ring, a clock: keeps what was used last
    MODE_LOOP,      // a small cold ring: keeps most of what is hot, however long the loop
    MODES
};

struct RingState {
    u32 head;
    u32 gaps;              // how many elements are GAP: they have no page
    alignas(8) u32 count;  // the number of elements. It and `capacity` change by one store when a ring grows
    u32 capacity;          // the most elements; 0: as many as have memory
};

struct PolicyState {
    u32 now;       // counts misses (31 bits)
    u32 hev;       // counts evictions from the hot ring (31 bits)
    u32 frames;    // C: the budget
    u32 cold_target;  // S: target size of the cold ring
    u32 aside;  // pages set aside: dirty pages in no ring, which must be flushed or dropped first
    u32 mode;  // a PolicyMode
    RingState cold, hot;
};

// An element of a ring: a page, and the stamp of when it was added.
constexpr u64 GAP = ~u64(0);
constexpr u32 element_page(u64 e) { return u32(e >> 32); }
constexpr u32 element_stamp(u64 e) { return u32(e) & STAMP_MASK; }
constexpr u64 element(u32 page, u32 stamp) { return u64(page) << 32 | (stamp & STAMP_MASK); }

}  // namespace bp
