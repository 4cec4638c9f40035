// Scratch pages that are not discardable can neither be evicted nor flushed: no other space gets their frames. So an
// eighth of the budget is kept for the other spaces, and no client's scratch pages may use it. A process counts these
// pages when it has used up its allowance, a part of what was left at its last count: a death leaves no wrong counter.
#pragma once

#include "protocol/client.h"

namespace bp {

constexpr u64 ALLOWANCE_NS = 100'000'000;  // after that an allowance is void: other clients have written meanwhile

struct ScratchShare {
    u32 used, most;
};

inline bool is_kept(const SpaceSlot& slot) {
    return slot.kind.load_relaxed() == KIND_SCRATCH && !(slot.flags.load_relaxed() & SPACE_DISCARDABLE);
}

// Which run a page is in; null: in none of them. The runs are in order, and do not overlap.
inline const EntryRun* run_of(const Vec<EntryRun>& runs, u64 page) {
    auto after = std::upper_bound(runs.begin(), runs.end(), EntryRun{page, 0, 0});
    return after != runs.begin() && page < after[-1].end ? after - 1 : nullptr;
}

inline Status scratch_share(Segment& s, ScratchShare& share) {
    u32 budget = s.page_budget();
    Vec<EntryRun> runs;
    if (!entry_runs(s, runs, [](SpaceSlot& t) { return t.state.load_acquire() != SPACE_FREE && is_kept(t); }))
        return Status::NO_MEMORY;
    share = {0, budget - (budget >= 8 ? budget / 8 : 1)};
    s.has_frame(s.g.max_frames - 1);
    for (u32 f = 0; f < s.ready && !runs.empty(); f++) {
        u64 w = s.frames[f].word.load_acquire();
        u64 page = frame::page(w);
        if (frame::state(w) != LIVE || !s.has_page(u32(page)) || !(s.entries[page].load_relaxed() & entry::DIRTY))
            continue;
        share.used += run_of(runs, page) != nullptr;
    }
    return Status::OK;
}

// May one more page be kept? EXHAUSTED: no. Each client gets its part of a quarter of what is left, and counts again
// then.
inline Status may_keep_one(Segment& s, ScratchShare& share) {
    u64 now = prim::now_ns();
    u32 left = s.scratch_left.load_relaxed();
    if (left && now < s.scratch_until_ns.load_relaxed()) {
        s.scratch_left.store_relaxed(left - 1);
        return Status::OK;
    }
    if (Status r = scratch_share(s, share); r != Status::OK) return r;
    if (share.used >= share.most) return Status::EXHAUSTED;
    u32 clients = 0;
    for (u32 c = 0; c < s.g.max_clients; c++) clients += s.clients[c].state.load_relaxed() == CLIENT_LIVE;
    s.scratch_left.store_relaxed((share.most - share.used) / 4 / (clients ? clients : 1));
    s.scratch_until_ns.store_relaxed(now + ALLOWANCE_NS);
    return Status::OK;
}

}  // namespace bp
