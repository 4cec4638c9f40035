// Scratch pages that are not discardable can neither be evicted nor flushed: no other space gets their frames. So an
// eighth of the budget is kept for the other spaces, and no client's scratch pages may use it.
//
//   count    adds a page, before it is written (may_keep_one)
//   uncount  subtracts it: it was dropped (drop.h), or was not written after all
//   recount  counts all of them, in a pass over the frames. The client that finds the share used up does so
//
// The number may be too high: after a death, or if a pass ran between a drop and its uncount. The next recount finds
// that. So a page costs a few steps, in a pool of any size, and a pass is made only before a page is refused.
#pragma once

#include "protocol/client.h"

namespace bp {

struct ScratchShare {
    u32 used, most;
    u32 pass;  // out: the pass in which the page was counted
};

// Which run a page is in; null: in none of them. The runs are in order, and do not overlap.
inline const EntryRun* run_of(const Vec<EntryRun>& runs, u64 page) {
    auto after = std::upper_bound(runs.begin(), runs.end(), EntryRun{page, 0, 0});
    return after != runs.begin() && page < after[-1].end ? after - 1 : nullptr;
}

// Counts all. Pages that others count meanwhile are added, because the pass may have missed them.
inline Status recount_kept(Segment& s) {
    u64 before = s.header->kept.load_seq_cst();
    Vec<EntryRun> runs;
    if (!entry_runs(s, runs, [](SpaceSlot& t) { return t.state.load_acquire() != SPACE_FREE && is_kept(t); }))
        return Status::NO_MEMORY;
    u32 n = 0;
    s.has_frame(s.g.max_frames - 1);
    for (u32 f = 0; f < s.ready && !runs.empty(); f++) {
        u64 w = s.frames[f].word.load_acquire();
        u64 page = frame::page(w);
        if (frame::state(w) != LIVE || !s.has_page(u32(page)) || !(s.entries[page].load_relaxed() & entry::DIRTY))
            continue;
        n += run_of(runs, page) != nullptr;
    }
    u64 now = s.header->kept.load_seq_cst();
    while (kept_pass(now) == kept_pass(before)) {
        u32 more = kept_pages(now) > kept_pages(before) ? kept_pages(now) - kept_pages(before) : 0;
        if (s.header->kept.cas_seq_cst(now, u64(kept_pass(before) + 1) << 32 | (n + more))) break;
    }
    return Status::OK;
}

// May one more page be kept? OK: it is counted. EXHAUSTED: no.
inline Status may_keep_one(Segment& s, ScratchShare& share) {
    u32 budget = s.page_budget();
    share.most = budget - (budget >= 8 ? budget / 8 : 1);
    for (bool counted_anew = false;; counted_anew = true) {
        u64 w = s.header->kept.load_seq_cst();
        while (kept_pages(w) < share.most) {
            share.pass = kept_pass(w);
            if (s.header->kept.cas_seq_cst(w, w + 1)) return Status::OK;
        }
        share.used = kept_pages(w);
        if (counted_anew) return Status::EXHAUSTED;
        if (Status r = recount_kept(s); r != Status::OK) return r;
    }
}

}  // namespace bp
