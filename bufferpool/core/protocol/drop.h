// Dropping pages: without write-back, whatever they hold.
#pragma once

#include "protocol/page.h"

namespace bp {

// Drops one page whatever it holds, waiting at most `patience` slices for whoever
// is changing it; with `clean_only`, not if it is dirty by then. `freed` counts frames
// that became FREE. False: not in time.
inline bool drop_page(Segment& s, Intent& intent, u32 page, int patience, u32& freed, bool clean_only = false) {
    for (int waits = 0; waits <= patience;) {
        u64 e = s.entries[page].load_acquire();
        if (entry::state(e) == ABSENT) {
            forget(s, page);
            return true;
        }
        if (clean_only && (e & entry::DIRTY)) return true;
        bool open = entry::state(e) == RESIDENT && entry::owner(e) == 0 && entry::flusher(e) == 0;
        if (open && s.entries[page].cas_seq_cst(e, entry::with_owner(e, s.me))) {
            u32 f = entry::frame(e);
            if (!s.has_frame(f)) return end_write(s, page), false;
            if (discard(s, intent, page, f)) {
                free_frame(s, f);
                freed++;
            }
            return true;
        }
        if (open) continue;
        wait_entry(s, page, e);
        waits++;
        if (s.interrupted && s.interrupted(s)) return false;
    }
    return false;
}

constexpr int PATIENT = 500, HASTY = 5;  // slices of a wait

// Drops `count` pages from `first`, without write-back; frees their frames.
inline Status drop_range(Segment& s, u32 first, u64 count, u32& freed) {
    OpSlot op(s);
    if (!op.valid()) return Status::INTERRUPTED;
    for (u64 i = 0; i < count; i++)
        if (s.has_page(u32(first + i)) && !drop_page(s, op.intent(), u32(first + i), PATIENT, freed))
            return Status::WAIT;
    return Status::OK;
}

// Drops the clean pages of a range (a file that somebody else has changed):
// readers keep what they have pinned, whoever comes next loads anew.
inline Status drop_clean(Segment& s, u32 first, u64 count, u32& freed) {
    OpSlot op(s);
    if (!op.valid()) return Status::INTERRUPTED;
    for (u64 i = 0; i < count; i++) {
        u32 page = u32(first + i);
        if (!s.has_page(page) || entry::state(s.entries[page].load_acquire()) != RESIDENT) continue;
        if (!drop_page(s, op.intent(), page, PATIENT, freed, true)) return Status::WAIT;
    }
    return Status::OK;
}

}  // namespace bp
