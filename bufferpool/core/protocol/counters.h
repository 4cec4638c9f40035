// Counters: how those of a departed client are added to the totals, and how all are summed.
//
// The header has two copies of the totals. A fold fills the inactive copy and makes it
// active by one store of `folded`, which names the client too:
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
        s.clients[other - 1].folded.store_release(1);  // the last fold, should its reaper have died here
    if (slot.folded.load_relaxed()) return;
    u64 copy = done & 1;
    auto from = reinterpret_cast<Atomic<u64>*>(&s.header->totals[copy]);
    auto to = reinterpret_cast<Atomic<u64>*>(&s.header->totals[1 - copy]);
    auto add = reinterpret_cast<Atomic<u64>*>(&slot.counters);
    fence_release();  // a sum that reads what we fill in sees the fold before this one, which made the copy inactive
    for (u32 i = 0; i < COUNTERS; i++) to[i].store_relaxed(from[i].load_relaxed() + add[i].load_relaxed());
    bool used = s.has_pins(c);  // its row of uses has memory as well
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

// Sums what all clients have counted, present and past: visit(counters, their row of uses or null). Like a
// reader of a sequence lock (hence acquire: the second look comes after the loads), it
// takes what it read if no fold took place between the two looks at `folded`, so
// that no client was counted twice or not at all; `begin` is called before each try, between the first look and the
// loads. Needs no lock and writes nothing. False: `begin` has failed, or folds kept coming, a thousand times over.
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

// The counters of all clients into `sum` (COUNTERS of them), and the uses of the first `n` spaces into `uses`: those
// that `may_see(uses)` allows. `look()` learns what that is, at the beginning of each try: the row of the totals that
// a fold makes active may have been a hole before it; if it was looked at earlier, the sum would go back. False: the
// look has failed.
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
