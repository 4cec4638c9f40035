// Write-back: which dirty pages may be written now, and what is true of them
// once the store has synced (rule 6). The writing itself is the store's.
//
//   entry  RESIDENT(f, dirty) -> RESIDENT(f, dirty, flusher me)    begin
//          RESIDENT(f, dirty, flusher me) -> RESIDENT(f)           synced
//          RESIDENT(g, dirty, flusher me) -> RESIDENT(g, dirty)    a newer version came
#pragma once

#include <algorithm>
#include <vector>

#include "client.h"

namespace bp {

struct FlushItem {
    u32 page, frame;
};

// Takes the flusher field and a pin of up to `most` dirty pages of the entries
// [first, first + count) whose LSN is at most `lsn`, in page order. `held_back`
// counts the dirty pages above it. The intent covers them until end_flush.
inline void begin_flush(Segment& s, Intent& intent, u32 first, u64 count, u64 lsn, size_t most,
                        std::vector<FlushItem>& out, u64& held_back) {
    // 1. Candidates, by frame: the pool is smaller than the space.
    std::vector<u32> pages;
    s.has_frame(s.g.max_frames - 1);
    for (u32 f = 0; f < s.ready; f++) {
        u64 w = s.frames[f].word.load_acquire();
        u32 page = frame::page(w);
        if (frame::state(w) != LIVE || page < first || page - first >= count || !s.has_page(page)) continue;
        u64 e = s.entries[page].load_acquire();
        if (!entry::is_resident_in(e, f) || !(e & entry::DIRTY)) continue;
        if (s.frames[f].lsn.load_relaxed() > lsn) held_back++;
        else pages.push_back(page);
    }
    std::sort(pages.begin(), pages.end());
    pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
    if (pages.size() > most) pages.resize(most);
    if (pages.empty()) return;
    // 2. The intent, then the fields.
    intent.page.store_relaxed(pages.front());
    intent.old.store_relaxed(pages.back());
    intent.op.store_release(u32(Op::FLUSH));
    BP_POINT("flush.intent");
    for (u32 page : pages) {
        Atomic<u64>& word = s.entries[page];
        u64 e = word.load_acquire();
        u32 f = entry::frame(e);
        if (entry::state(e) != RESIDENT || !(e & entry::DIRTY) || entry::flusher(e) || !s.has_frame(f)) continue;
        if (!word.cas_seq_cst(e, entry::with_flusher(e, s.me))) continue;
        BP_POINT("flush.owned");
        // The pin keeps the image: a writer may publish a newer one meanwhile.
        u32 pinned;
        bool ok = pin(s, page, pinned) == Status::OK;
        if (ok && s.frames[pinned].lsn.load_relaxed() <= lsn) {
            out.push_back({page, pinned});
            continue;
        }
        if (ok) unpin(s, pinned);
        settle_entry(s, page, [&](u64 v) { return entry::with_flusher(v, 0); });
    }
}

// After the store has synced (`synced`), or has failed: clean only what is
// stored, and only if the entry still names the frame that was written.
inline void end_flush(Segment& s, Intent& intent, const std::vector<FlushItem>& items, bool synced) {
    for (const FlushItem& it : items) {
        settle_entry(s, it.page, [&](u64 e) {
            if (entry::state(e) != RESIDENT || entry::flusher(e) != s.me) return e;
            u64 r = entry::with_flusher(e, 0);
            return synced && entry::frame(e) == it.frame ? r & ~entry::DIRTY : r;
        });
        BP_POINT("flush.cleaned");
        unpin(s, it.frame);
    }
    intent.op.store_release(u32(Op::NONE));
}

}  // namespace bp
