// Loans: the part of the pool's budget that objects have instead of pages. One word (Header::loan) has two numbers of
// frames, lent and granted:
//
//   borrow       lent + n   from now on pages may use n frames less: no more holes get memory for them
//                shrink     pages are evicted until they use no more than that
//                granted    rises to what pages do not use, and at most to lent: objects may use it
//   give back    granted and lent fall, by one CAS, under the lock of the objects, and not below what the objects use
//
// So pages and objects together never use more memory than the budget, and a death between the steps loses nothing: the
// next borrower has granted what is lent and not granted.
#pragma once

#include "protocol/object_index.h"
#include "protocol/shrink.h"

namespace bp {

constexpr u32 PAGES_KEEP = 4;  // frames that are never lent

inline u64 frames_for(Segment& s, u64 os_pages) {
    u64 per = s.g.page_size / s.g.os_page;
    return (os_pages + per - 1) / per;
}

// The most frames that may be lent: the limits of all caches together; if one has no limit, at least half of the
// budget. Both count the whole budget of all page sizes, and what is lent is at most the part of the pool's own size.
inline u32 most_lent(Segment& s) {
    u64 budget = s.header->budget_frames.load_relaxed(), sum = 0;
    u64 whole = std::max(budget, s.header->whole_budget_bytes.load_relaxed() >> s.g.page_shift);
    bool unlimited = false;
    for (CacheSlot& cache : s.objects.header->caches) {
        if (!cache.state.load_acquire()) continue;
        u64 limit = cache.limit.load_relaxed() / s.g.page_size;
        sum += limit < whole ? limit : whole;
        unlimited |= limit == 0;
    }
    // A small limit bounds the bytes of a cache's records; the log pages, with the dead space in them, need more room.
    u64 least = unlimited ? whole : sum ? std::max(sum, frames_for(s, 4 * log_bytes(s) / s.g.os_page)) : 0;
    if (sum < whole / 2) sum = std::min(least, whole / 2);
    u64 kept = PAGES_KEEP + std::min<u64>(s.header->shares.reserved.load_relaxed(), most_reserved(u32(budget)));
    u64 most = budget > kept ? budget - kept : 0;
    return u32(sum < most ? sum : most);
}

// Grants what is lent, as far as pages do not use it. Returns true if objects may use more than before.
inline bool grant(Segment& s) {
    if (!lock_memory(s)) return false;
    u32 budget = s.header->budget_frames.load_relaxed(), resident = s.header->resident.load_relaxed();
    u32 room = budget > resident ? budget - resident : 0;
    u64 w = s.header->loan.load_seq_cst();
    u32 to = std::min(loan::lent(w), room);
    bool more = to > loan::granted(w);
    if (more) more = s.header->loan.cas_seq_cst(w, loan::word(loan::lent(w), to));
    unlock_memory(s);
    return more;
}

// Lends the objects more memory, at least `pages` OS pages if their limits allow. Returns true if they got any.
inline bool borrow(Segment& s, u64 pages) {
    u64 w = s.header->loan.load_seq_cst();
    u32 most = most_lent(s), lent = loan::lent(w), step = most / 16;
    u64 wanted = u64(lent) + std::max<u64>(frames_for(s, pages), step);
    u32 to = u32(std::min<u64>(wanted, most));
    if (to > lent && loan::granted(w) + frames_for(s, pages) > lent)
        s.header->loan.cas_seq_cst(w, loan::word(to, loan::granted(w)));
    BP_POINT("loan.lent");
    w = s.header->loan.load_seq_cst();
    if (loan::granted(w) >= loan::lent(w)) return false;
    u32 resident = s.header->resident.load_relaxed(), may = s.page_budget();
    if (resident > may) {
        Reclaimed done;
        shrink(s, resident - may, BUDGET, true, done);
    }
    BP_POINT("loan.shrunk");
    return grant(s);
}

// Reduces the loan to `frames`, or to what the objects use if that is more. Returns how many frames pages may have
// again.
inline u32 give_back_loan(Segment& s, u32 frames) {
    if (!lock_objects(s)) return 0;
    u32 used = u32(frames_for(s, s.objects.header->used.load_relaxed()));
    u64 w = s.header->loan.load_seq_cst();
    u32 to = std::max(used, frames), before;
    do before = loan::lent(w);
    while (!s.header->loan.cas_seq_cst(w, loan::word(std::min(before, to), std::min(loan::granted(w), to))));
    unlock_objects(s);
    return before > to ? before - to : 0;
}

}  // namespace bp
