// The static probes (os/probe.h) and their arguments. A pool is named by the inode of its file, which `ls -i` shows.
//
//   load, evict, publish, flush   pool, number of the space's slot, page number
//   reclaim                       pool, bytes that the kernel took back, reason (layout.h, enum Reason)
#pragma once

#include "os/probe.h"
#include "protocol/segment.h"

namespace bp {

struct TracedPage {
    u64 space = ~u64(0), number = ~u64(0);  // these values: no space has the entry
};

// The space of an entry, and the number of its page there. It searches the slots, and only if a tool is attached.
inline TracedPage traced_page(Segment& s, u32 entry) {
    for (u32 i = 0, n = s.space_count(); i < n; i++) {
        u32 first = s.spaces[i].first_entry.load_relaxed();
        if (s.spaces[i].state.load_relaxed() && entry - first < s.spaces[i].max_pages.load_relaxed())
            return {i, entry - first};
    }
    return {};
}

#define BP_PROBE_PAGE(name, s, entry)                               \
    do {                                                            \
        if (BP_PROBE_ON(name)) {                                    \
            [[maybe_unused]] TracedPage at = traced_page(s, entry); \
            BP_PROBE(name, (s).inode, at.space, at.number);         \
        }                                                           \
    } while (0)

inline void probe_load(Segment& s, u32 entry) { BP_PROBE_PAGE(load, s, entry); }
inline void probe_evict(Segment& s, u32 entry) { BP_PROBE_PAGE(evict, s, entry); }
inline void probe_publish(Segment& s, u32 entry) { BP_PROBE_PAGE(publish, s, entry); }
inline void probe_flush(Segment& s, u32 entry) { BP_PROBE_PAGE(flush, s, entry); }

// Counts memory that the kernel has taken back, and fires the probe. It is the only place that counts it, so that the
// probe misses none of it.
inline void count_reclaimed(Segment& s, u64 bytes, Reason reason) {
    s.counters().reclaimed_bytes[reason].add_relaxed(bytes);
    if (BP_PROBE_ON(reclaim)) BP_PROBE(reclaim, s.inode, bytes, reason);
}

#undef BP_PROBE_PAGE

}  // namespace bp
