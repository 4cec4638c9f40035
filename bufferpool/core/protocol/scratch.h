// Scratch pages that were written, and are not discardable, can neither be evicted nor flushed: no other space gets
// their frames. They are said to be *kept*. So an eighth of the budget is set apart for the other spaces, which kept
// pages may not use. And an eighth of the rest is set apart for the scratch pages of other clients, which the private
// pages of one client may not use.
//
//   count    adds a page to the number in Header::kept, before the page is written (may_keep_one)
//   uncount  subtracts it: the page was dropped (drop.h), or was not written after all
//   recount  counts all kept pages, in a pass over the entries of their spaces. A client does so before it refuses to
//            keep one more
//
// The number may be too high: after a death, or if pages were dropped during a pass. The next recount corrects it. It
// is never too low (except before replaced_absent() is called), and check() verifies that. So counting a page takes a
// few steps, in a pool of any size. The process of a client alone counts the client's private pages
// (Segment::own_kept): its number is too high after another client has removed a private space of this client.
#pragma once

#include "protocol/client.h"

namespace bp {

struct ScratchShare {
    bool is_own;       // in: the page belongs to a private space of this client
    bool own_is_full;  // out, with EXHAUSTED: this client has as many private pages as one client may have
    u32 used, most;    // out, with EXHAUSTED: how many pages are counted, and how many may be
    u32 budget;        // out: the budget of the pool at the beginning
    u32 pass;          // out: the pass in which the page was counted
};

// Counts the kept pages of the spaces for which `wanted(slot)` is true. It reads each entry once, so a page that moves
// to another frame meanwhile counts once. False: there is no memory for the list of spaces.
template <class Wanted>
bool count_pages(Segment& s, u32& n, Wanted wanted) {
    Vec<EntryRun> runs;
    auto has_kept = [&](SpaceSlot& t) {
        return t.state.load_acquire() != SPACE_FREE && keeps_written(t) && wanted(t);
    };
    if (!entry_runs(s, runs, has_kept)) return false;
    EntryLook look(s);
    n = 0;
    for (const EntryRun& run : runs)
        for (u64 page = s.next_page(run.first, run.end); page < run.end; page = s.next_page(page + 1, run.end)) {
            u64 e = s.entries[page].load_acquire();
            n += entry::is_there(e) && (e & entry::DIRTY);
        }
    return true;
}

// Counts all kept pages in a pass. During the pass no client subtracts from the number, because the dropped page may be
// one that the pass has not met. Pages that clients count during the pass are added to its sum, because the pass may
// have missed them. `missing`: how many more kept pages there are than the number says. Then the number is corrected
// only with `repair`.
inline Status recount_kept(Segment& s, bool repair, u32& missing) {
    constexpr u64 PASS = u64(1) << 32;
    u64 before = s.header->kept.load_seq_cst();
    while (!is_being_counted(before) && !s.header->kept.cas_seq_cst(before, before + PASS)) {}
    if (!is_being_counted(before)) before += PASS;  // else another client is counting, or has died while it counted
    u32 n;
    bool counted = count_pages(s, n, [](SpaceSlot&) { return true; });
    u64 now = s.header->kept.load_seq_cst();
    missing = 0;
    while (kept_pass(now) == kept_pass(before)) {
        u32 more = kept_pages(now) - std::min(kept_pages(now), kept_pages(before));
        missing = counted && n > kept_pages(now) ? n - kept_pages(now) : 0;
        u32 pages = !counted || (missing && !repair) ? kept_pages(now) : n + more;
        if (s.header->kept.cas_seq_cst(now, (now & ~(PASS - 1)) + PASS + pages)) break;
        missing = 0;
    }
    return counted ? Status::OK : Status::NO_MEMORY;
}

// ---- the private pages of this client ------------------------------------------

inline u32 most_own(u32 most) { return most - most / 8; }

inline bool count_own(Segment& s, u32 most) {
    u32 n = s.own_kept.load_relaxed();
    while (n < most)
        if (s.own_kept.cas_seq_cst(n, n + 1)) return true;
    return false;
}

// May this client keep one more private page? OK: the page is counted.
inline Status may_keep_own(Segment& s, ScratchShare& share) {
    u32 most = most_own(share.most), n;
    if (count_own(s, most)) return Status::OK;
    if (!count_pages(s, n, [&](SpaceSlot& t) { return is_own(s, t); })) return Status::NO_MEMORY;
    s.own_kept.store_seq_cst(n);
    if (count_own(s, most)) return Status::OK;
    share.own_is_full = true;
    share.used = n;
    share.most = most;
    return Status::EXHAUSTED;
}

// ---- one page ------------------------------------------------------------------

// May one more page be kept? OK: the page is counted. EXHAUSTED: no.
inline Status may_keep_one(Segment& s, ScratchShare& share) {
    share.budget = s.header->budget_frames.load_relaxed();
    u32 budget = s.page_budget(), missing;
    share.most = budget - (budget >= 8 ? budget / 8 : 1);
    if (share.is_own)
        if (Status r = may_keep_own(s, share); r != Status::OK) return r;
    Status status = Status::OK;
    for (bool counted_anew = false; status == Status::OK; counted_anew = true) {
        u64 w = s.header->kept.load_seq_cst();
        while (kept_pages(w) < share.most) {
            share.pass = kept_pass(w);
            if (s.header->kept.cas_seq_cst(w, w + 1)) return Status::OK;
        }
        share.used = kept_pages(w);
        status = counted_anew ? Status::EXHAUSTED : recount_kept(s, true, missing);
    }
    if (share.is_own) uncount_own(s);
    return status;
}

// Uncounts a page that is not an additional one: it was not written, or another client had written it already.
inline void not_kept(Segment& s, const ScratchShare& share) {
    uncount_kept(s, share.pass);
    if (share.is_own) uncount_own(s);
}

// Counts a page that was not counted before its write, because it was kept already, and then was dropped before it was
// written.
inline void replaced_absent(Segment& s, bool is_own) {
    u64 w = s.header->kept.load_seq_cst();
    while (!s.header->kept.cas_seq_cst(w, w + 1)) {}
    if (is_own) count_own(s, ~u32(0));
}

}  // namespace bp
