// Releases what a dead client held among the objects: the lock, its loads, its pins, and the blocks that it was
// filling. The reaper may die at any step; another reaper then begins again.
#pragma once

#include "protocol/object_write.h"

namespace bp {

inline bool is_busy_of(Segment& s, u32 b, u32 c) {
    u64 w = s.objects.blocks[b].word.load_acquire();
    return block::state(w) == BLOCK_BUSY && block::owner(w) == c;
}

// Ends the dead client's loads without a value, so that the next client that wants one loads it. Returns false if we
// cannot get the lock.
inline bool reap_loads(Segment& s, u32 c) {
    Objects& o = s.objects;
    for (u32 e = 0, n = o.header->entries_high.load_relaxed(); e < n && has_entry(s, e); e++) {
        ObjectEntry& entry = o.entries[e];
        if (entry.owner.load_relaxed() != c) continue;
        if (!lock_objects(s, false)) return false;
        bool wake = false;
        EntryKind state = object::state(entry.word.load_relaxed());
        if (entry.owner.load_relaxed() == c && (state == OBJECT_LOADING || state == OBJECT_LIVE))
            wake = end_load_locked(s, e);
        if (entry.owner.load_relaxed() == c) entry.owner.store_relaxed(0);
        unlock_objects(s);
        if (wake) wake_waiters(s, e);
        BP_POINT("reap.load");
    }
    return true;
}

inline bool reap_blocks(Segment& s, u32 c) {
    u32 n = s.objects.header->blocks_high.load_relaxed();
    for (u32 b = 0; b < n && has_block(s, b); b++) {
        if (!is_busy_of(s, b, c)) continue;
        if (!lock_objects(s, false)) return false;
        bool ours = is_busy_of(s, b, c) && is_whole_block(s, b);
        u64 w = s.objects.blocks[b].word.load_relaxed();
        if (ours) s.objects.blocks[b].word.store_release(block::word(BLOCK_BUSY, block::size_class(w), s.me));
        unlock_objects(s);
        if (ours) strip_block(s, b, c);
        if (ours && is_busy_of(s, b, c)) return false;
        BP_POINT("reap.block");
    }
    return true;
}

inline void reap_object_pins(Segment& s, u32 c) {
    u64 w = s.objects.header->rows_ready[c].load_seq_cst();
    u32 n = is_doubled(w) && u32(w) <= s.objects.at.max_blocks ? u32(w) : 0;
    for (u32 b = 0; b < n; b++) {
        Atomic<u32>& count = s.object_pins(c)[b];
        if (count.load_relaxed()) count.store_seq_cst(0);
    }
}

// Returns false if this process cannot map the objects or get their lock, and so cannot reap the client.
inline bool reap_objects(Segment& s, u32 c) {
    int r = map_objects(s);
    if (r == -ENOENT || r == -EUCLEAN) return true;  // EUCLEAN: damaged; no client can use them
    if (r) return false;
    LockWord& lock = s.header->objects;
    u32 w = lock.word.load_seq_cst();
    while ((w & lock_word::OWNER) == c) {
        if (!take(s, lock, w, lock_word::REPAIR | lock_word::WAITED)) continue;
        rebuild_objects(s);
        repaired(s, lock);
        release(s, lock);
        break;
    }
    BP_POINT("reap.objects");
    if (!reap_loads(s, c)) return false;
    reap_object_pins(s, c);
    BP_POINT("reap.views");
    return reap_blocks(s, c) && sweep_blocks(s);
}

}  // namespace bp
