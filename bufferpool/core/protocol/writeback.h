// Write-back: chooses the dirty pages that may be written now, and makes them clean after the store has synced (rule
// 6). In between, the caller has the store write them.
//
//   entry  RESIDENT(f, dirty) -> RESIDENT(f, dirty, flusher me)    begin
//          RESIDENT(f, dirty, flusher me) -> RESIDENT(f)           synced
//          RESIDENT(g, dirty, flusher me) -> RESIDENT(g, dirty)    a newer version was published
//          The same with PENDING (publish_many.h) for RESIDENT: a flush takes the version that readers see.
//          RESIDENT(f, dirty, no ring) -> RESIDENT(f, dirty, cold) -> RESIDENT(f)   synced, of a page set aside
#pragma once

#include "protocol/client.h"
#include "protocol/probes.h"

namespace bp {

struct FlushItem {
    u32 page, frame;
};

// Calls `visit(page, lsn, rec_lsn)` for the dirty pages among the entries [first, first + count), in order, until it
// returns false. It scans entries and not frames, so that it visits every page that is dirty all the time, even if a
// publish or a compaction moves the page to another frame meanwhile.
template <class F>
void each_dirty(Segment& s, u64 first, u64 count, F visit) {
    EntryLook look(s);
    u64 end = std::min(first + count, s.g.max_pages);
    for (u64 page = s.next_page(first, end); page < end; page = s.next_page(page + 1, end)) {  // rule 9
        for (;;) {
            u64 e = s.entries[page].load_acquire();
            u32 f = entry::frame(e);
            if (!entry::is_there(e) || !(e & entry::DIRTY) || !s.has_frame(f)) break;
            // While the frame is pinned, its slot belongs to this page. Without the pin, the page could move to another
            // frame and back, and the slot could be read while it belongs to another page.
            Status status = pin_there(s, u32(page), f);
            if (status == Status::CORRUPT) break;  // the entry or the frame's word is damaged
            if (status == Status::WAIT && entry::is_pending(e)) wait_entry(s, u32(page), e);  // its owner may be dead
            if (status != Status::OK && status != Status::TOO_MANY_PINS) continue;
            u64 lsn = s.frames[f].lsn.load_relaxed(), rec_lsn = s.frames[f].rec_lsn.load_relaxed();
            if (status == Status::OK) unpin(s, f);
            if (!visit(u32(page), lsn, rec_lsn)) return;
            break;
        }
    }
}

// The dirty pages of a range: their number, the highest LSN, and the LSN of the oldest change that the store lacks.
// LSNs of 0, of pages that were written without one, are not considered.
struct DirtyRange {
    u64 pages = 0, lsn = 0, rec_lsn = ~u64(0);
};

inline DirtyRange dirty_range(Segment& s, u64 first, u64 count) {
    DirtyRange out;
    each_dirty(s, first, count, [&](u32, u64 lsn, u64 rec_lsn) {
        out.pages++;
        if (lsn) out.lsn = std::max(out.lsn, lsn);
        if (rec_lsn) out.rec_lsn = std::min(out.rec_lsn, rec_lsn);
        return true;
    });
    return out;
}

// Clears the flusher field, and the dirty bit if the store has the version that the entry names. A page that was set
// aside is added to a ring before it becomes clean: if the client dies in between, the page is still dirty. The page
// also remains dirty if the memory lock cannot be taken within `slices`: then the next flush writes it once more.
inline void settle_flushed(Segment& s, const FlushItem& it, bool synced, u32& slices) {
    bool aside = false;
    auto settle = [&](u64 e) {
        aside = false;
        if (!entry::is_there(e) || entry::flusher(e) != s.me) return e;
        bool clean = synced && entry::frame(e) == it.frame;
        aside = clean && entry::is_aside(e);
        return aside ? e : entry::with_flusher(clean ? e & ~entry::DIRTY : e, 0);
    };
    settle_entry(s, it.page, settle);
    if (!aside) return;
    if (!lock_memory(s, false, slices)) {
        synced = false;
        slices = 0;  // so that the next pages do not wait again
        settle_entry(s, it.page, settle);
        return;
    }
    bring_back_locked(s, it.page);  // no search sets it aside again before it is clean
    settle_entry(s, it.page, settle);
    unlock_memory(s);
}

// Ends a flush, after the store has synced (`synced`) or failed: a page becomes clean only if it was stored, and only
// if the entry still names the frame that was written. If a newer version was published meanwhile, the oldest of its
// changes that the store lacks is newer than the stored version. So its recovery LSN is raised: otherwise a page that
// is written all the time would hold back checkpoints for ever.
inline void end_flush(Segment& s, Intent& intent, const Vec<FlushItem>& items, bool synced) {
    BP_POINT("flush.synced");
    u32 slices = PATIENT_SLICES;
    for (const FlushItem& it : items) {
        u32 newer;
        if (synced && pin_there(s, it.page, newer) == Status::OK) {
            u64 stored = s.frames[it.frame].lsn.load_relaxed();
            auto& rec_lsn = s.frames[newer].rec_lsn;
            if (newer != it.frame && rec_lsn.load_relaxed() && rec_lsn.load_relaxed() < stored)
                rec_lsn.store_relaxed(stored);
            unpin(s, newer);
        }
        settle_flushed(s, it, synced, slices);
        BP_POINT("flush.cleaned");
        if (synced) probe_flush(s, it.page);
        unpin(s, it.frame);
    }
    intent.op.store_release(u32(Op::NONE));
}

// Takes the flusher field of a dirty page. It tries again when another client changes the entry, and waits for another
// flusher, which is reaped if it is dead. Returns false if the page is no longer dirty, or the wait was interrupted.
// Every flush takes its pages in order, so two flushers never wait for each other.
inline bool begin_flush_of(Segment& s, u32 page) {
    Atomic<u64>& word = s.entries[page];
    for (;;) {
        u64 e = word.load_acquire();
        if (!entry::is_there(e) || !(e & entry::DIRTY) || !s.has_frame(entry::frame(e))) return false;
        if (entry::flusher(e) == s.me) return false;
        if (entry::flusher(e)) {
            wait_entry(s, page, e);
            if (s.interrupted && s.interrupted(s)) return false;
            continue;
        }
        if (word.cas_seq_cst(e, entry::with_flusher(e, s.me))) return true;
    }
}

// The pages that a flush is asked for: of the entries [first, first + count), at most `most` dirty pages whose LSN is
// at most `lsn`.
struct FlushRequest {
    u32 first;
    u64 count, lsn;
    size_t most;
};

// The pages that a flush has taken, in page order.
struct FlushTaken {
    Vec<FlushItem> items{};
    u64 held_back = 0;  // dirty pages that were not taken: because of their LSN, or because they changed meanwhile
    u64 next = 0;       // the entry at which the next flush continues; 0: the range is done
};

// Takes the flusher field and a pin of each page that is asked for. The intent covers them until end_flush. NO_MEMORY:
// nothing was taken.
inline Status begin_flush(Segment& s, Intent& intent, const FlushRequest& want, FlushTaken& out) {
    EntryLook look(s);
    // 1. The candidates, and memory for the list of those that are taken.
    Vec<u32> pages;
    bool room = true;
    each_dirty(s, want.first, want.count, [&](u32 page, u64 page_lsn, u64) {
        if (page_lsn > want.lsn) out.held_back++;
        else room = pages.push(page);
        return room && pages.size() < want.most;
    });
    if (!room || !out.items.reserve(pages.size())) return Status::NO_MEMORY;
    if (pages.empty()) return Status::OK;
    if (pages.size() >= want.most) out.next = u64(pages.back()) + 1;  // even if some of them cannot be taken
    // 2. The intent, then the fields.
    intent.page.store_relaxed(pages.front());
    intent.old.store_relaxed(pages.back());
    intent.since.store_relaxed(s.tick());
    intent.op.store_release(u32(Op::FLUSH));
    s.claims.add();
    BP_POINT("flush.intent");
    for (u32 page : pages) {
        if (!begin_flush_of(s, page)) continue;
        BP_POINT("flush.owned");
        // The pin keeps this version for the store, even if a writer publishes a newer one meanwhile.
        u32 pinned;
        bool ok = pin_there(s, page, pinned) == Status::OK;
        // The list has memory: see above.
        if (ok && s.frames[pinned].lsn.load_relaxed() <= want.lsn && out.items.push({page, pinned})) continue;
        if (ok) unpin(s, pinned);
        out.held_back++;
        settle_entry(s, page, [&](u64 v) {
            return entry::flusher(v) == s.me && entry::is_there(v) ? entry::with_flusher(v, 0) : v;
        });
    }
    return Status::OK;
}

}  // namespace bp
