// Counters: how those of a departed client are added to the totals (a fold), and how all are summed.
//
// The header has two copies of the totals. A fold fills the inactive copy, and makes it active by one store of
// `folded`, which also names the client:
//
//   fill totals[1 - copy] · folded = (1 - copy, client, generation) · client's `folded` = 1
//
// So a client is counted exactly once at every moment: in its slot before the store, in the
// totals after it, even if the folding client dies in between. A sum never decreases.
#pragma once

#include <algorithm>
#include <cstring>

#include "protocol/segment.h"

namespace bp {

// Adds a client's counters to the totals, exactly once even if it is called several times.
// Needs the memory lock.
inline void fold_counters(Segment& s, u32 c) {
    Client& slot = s.clients[c - 1];
    u64 name = u64(c) << 1 | slot.generation.load_relaxed() << 16;
    u64 done = s.header->folded.load_acquire();
    u32 other = u32(done >> 1) & CLIENTS_LIMIT;
    if (s.has_slot(other) && s.clients[other - 1].generation.load_relaxed() == done >> 16)
        s.clients[other - 1].folded.store_release(1);  // completes the last fold, in case its client died before this
    if (slot.folded.load_relaxed()) return;
    u64 copy = done & 1;
    auto from = reinterpret_cast<Atomic<u64>*>(&s.header->totals[copy]);
    auto to = reinterpret_cast<Atomic<u64>*>(&s.header->totals[1 - copy]);
    auto add = reinterpret_cast<Atomic<u64>*>(&slot.counters);
    // A sum that reads a value that is filled in here also sees the `folded` of the last fold, which made this copy
    // inactive, and so starts over.
    fence_release();
    for (u32 i = 0; i < COUNTERS; i++) to[i].store_relaxed(from[i].load_relaxed() + add[i].load_relaxed());
    bool used = s.has_pins(c);  // then its row of uses has memory, too
    for (u32 i = 0, n = s.space_count(); i < n; i++) {
        Uses &sum = s.use_row(u32(1 - copy))[i], &before = s.use_row(u32(copy))[i], &own = s.uses_of(c)[i];
        sum.hits.store_relaxed(before.hits.load_relaxed() + (used ? own.hits.load_relaxed() : 0));
        sum.misses.store_relaxed(before.misses.load_relaxed() + (used ? own.misses.load_relaxed() : 0));
    }
    BP_POINT("fold.filled");
    s.header->folded.store_release(name | (1 - copy));
    BP_POINT("fold.switched");
    slot.folded.store_release(1);
}

// Visits all counters, those of the present clients and the totals of the past ones: visit(counters, row of uses or
// null). It works like the reader of a sequence lock (hence the acquire loads, which come before the second load of
// `folded`): the result is valid if `folded` has not changed between its two loads, so that no client was counted twice
// or not at all. Otherwise it tries again, a thousand times at most. `begin` is called in each try, between the first
// load of `folded` and the visits. It needs no lock, and writes nothing. False: `begin` has failed, or there was a fold
// in every try.
template <class Begin, class Visit>
bool each_counted(Segment& s, Begin begin, Visit visit) {
    for (int tries = 0; tries < 1000; tries++) {
        u64 folded = s.header->folded.load_seq_cst();
        if (!begin()) return false;
        visit(s.header->totals[folded & 1], s.use_row(folded & 1));
        for (u32 c = 1, slots = s.slots(); c <= slots; c++) {
            Client& slot = s.clients[c - 1];
            if (slot.state.load_acquire() != CLIENT_LIVE || slot.folded.load_acquire()) continue;
            if ((u64(c) << 1 | slot.generation.load_acquire() << 16) == (folded & ~u64(1))) continue;
            visit(slot.counters, s.has_pins(c) ? s.uses_of(c) : nullptr);
        }
        if (s.header->folded.load_seq_cst() == folded) return true;
    }
    return false;
}

// Sums the counters of all clients into `sum` (COUNTERS of them), and the uses of the first `n` spaces into `uses`, as
// far as may_see(element of a row) allows. An observer may read only what has memory, and look() finds out what that
// is. It is called in each try, because a fold may give memory to the row of the totals that it makes active: with an
// older answer the sum would miss that row, and decrease. False: look() has failed, or there was a fold in every try.
template <class Look, class See>
bool sum_counters(Segment& s, u64* sum, Uses* uses, u32 n, Look look, See may_see) {
    auto begin = [&] {
        std::fill(sum, sum + COUNTERS, 0);
        memset(static_cast<void*>(uses), 0, n * sizeof(Uses));
        return look();
    };
    return each_counted(s, begin, [&](const Counters& counters, const Uses* row) {
        auto own = reinterpret_cast<const Atomic<u64>*>(&counters);
        for (u32 i = 0; i < COUNTERS; i++) sum[i] += own[i].load_acquire();
        for (u32 i = 0; row && i < n; i++) {
            if (!may_see(row[i])) continue;
            uses[i].hits.store_relaxed(uses[i].hits.load_relaxed() + row[i].hits.load_acquire());
            uses[i].misses.store_relaxed(uses[i].misses.load_relaxed() + row[i].misses.load_acquire());
        }
    });
}

// The uses of one space.
inline bool sum_uses(Segment& s, u32 index, u64& hits, u64& misses) {
    return each_counted(
        s, [&] { return hits = misses = 0, true; },
        [&](const Counters&, const Uses* row) {
            if (!row) return;
            hits += row[index].hits.load_acquire();
            misses += row[index].misses.load_acquire();
        });
}

}  // namespace bp
