// Opening a space, under the directory lock (removing one: client.h):
//
//   slot   FREE -> OPENING            begin_space, then entries get their memory
//          OPENING -> LIVE            finish_space: a new generation, and from then on handles of it work
//          OPENING -> FREE            no memory for the entries
//          OPENING -> CLOSED          by the client that inherits the lock (repair_directory)
#pragma once

#include "protocol/client.h"

namespace bp {

// The first slot without a space that has generations left. NONE if there is none.
inline u32 free_slot(Segment& s) {
    for (u32 i = 0; i < MAX_SPACES; i++) {
        SpaceSlot& t = s.spaces[i];
        bool used_up = space_generation(t.extent.load_relaxed()) + 2 > GENERATIONS_MOST;
        if (t.state.load_acquire() == SPACE_FREE && !used_up) return i;
    }
    return NONE;
}

// A run of entries for `n` pages that no space has: first fit, in whole OS pages. NONE if there is none.
inline u32 free_run(Segment& s, u64 n) {
    u64 at = 0, unit = s.g.os_page / 8;
    n = round_up(n, unit);
    for (bool moved = true; moved;) {
        moved = false;
        for (u32 i = 0; i < MAX_SPACES; i++) {
            SpaceSlot& t = s.spaces[i];
            if (t.state.load_acquire() == SPACE_FREE) continue;
            u64 first = t.first_entry.load_relaxed(), end = first + round_up(t.max_pages.load_relaxed(), unit);
            if (at < end && first < at + n) {
                at = end;
                moved = true;
            }
        }
    }
    return at + n <= s.g.max_pages ? u32(at) : NONE;
}

// The slot is ours to fill in, and its first `pages` entries have memory. 0 or -errno: then it is free again.
inline int begin_space(Segment& s, SpaceSlot& t, u32 first_entry, u32 max_pages, u64 pages) {
    t.first_entry.store_relaxed(first_entry);
    t.max_pages.store_relaxed(max_pages);
    t.state.store_seq_cst(SPACE_OPENING);
    BP_POINT("space.opening");
    t.entries_ready.store_relaxed(0);
    int r = plug_entries(s, t, pages);
    if (r) t.state.store_seq_cst(SPACE_FREE);
    return r;
}

// All other fields have been filled in.
inline void finish_space(SpaceSlot& t, u64 pages) {
    u64 generation = space_generation(t.extent.load_relaxed()) + 1;
    t.reserved.store_relaxed(space_extent(generation, pages));
    t.sum.store_relaxed(space_sum(t));
    t.extent.store_seq_cst(space_extent(generation, pages));
    t.state.store_seq_cst(SPACE_LIVE);
    BP_POINT("space.live");
}

}  // namespace bp
