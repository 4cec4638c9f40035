// Loans: the part of the pool's budget that objects have instead of pages. One word says how much is lent, and how much
// of it is granted:
//
//   borrow       lent + n   pages may have so much less from now on: no hole gets memory above it
//                shrink     pages are evicted, until so many frames have left
//                granted    objects may use what pages do not have: at most what is lent
//   give back    granted - n (under the lock of the objects, not below what they use), then lent - n
//
// So the memory of pages and objects together is never above the budget, and a death between the steps loses nothing:
// what is lent and not granted is asked for again by the next borrower.
#pragma once

#include "protocol/object_index.h"
#include "protocol/shrink.h"

namespace bp {

constexpr u32 PAGES_KEEP = 4;  // frames that pages keep

inline u64 frames_for(Segment& s, u64 os_pages) {
    u64 per = s.g.page_size / s.g.os_page;
    return (os_pages + per - 1) / per;
}

// The most that may be lent: the limits of all caches together; half of the budget for those without one.
inline u32 most_lent(Segment& s) {
    u64 budget = s.header->budget_frames.load_relaxed(), sum = 0;
    bool unlimited = false;
    for (CacheSlot& cache : s.objects.header->caches) {
        if (!cache.state.load_acquire()) continue;
        u64 limit = cache.limit.load_relaxed() / s.g.page_size;
        sum += limit < budget ? limit : budget;
        unlimited |= limit == 0;
    }
    // A small limit bounds the bytes of a cache; its log pages, and the dead space in them, need room all the same.
    u64 least = unlimited ? budget : sum ? std::max(sum, frames_for(s, 4 * log_bytes(s) / s.g.os_page)) : 0;
    if (sum < budget / 2) sum = std::min(least, budget / 2);
    u64 kept = PAGES_KEEP + std::min<u64>(s.header->shares.reserved.load_relaxed(), most_reserved(u32(budget)));
    u64 most = budget > kept ? budget - kept : 0;
    return u32(sum < most ? sum : most);
}

// Grants what is lent, as far as pages have left it. Whether objects may use more now.
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

// Lends the objects more memory, at least `pages` OS pages if their limit allows. Whether they got any.
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

// Gives back what is lent above `frames`, as far as objects do not use it. Returns the frames that pages may have
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
