// Waiting for the client that changes an entry: in slices, because that client may die. After a slice without a change,
// the client is reaped if it is dead; and an entry that no operation is changing, which only a damaged segment has, is
// settled.
#pragma once

#include "protocol/entry.h"
#include "protocol/lock.h"

namespace bp {

inline bool reap(Segment& s, u32 c);  // defined in reap.h, which includes this header: reaping may wait for pages

constexpr u64 WAIT_SLICE_NS = 20'000'000;

// True if some thread of this process is working on this page, whose entry `e` names us. It looks for the operation
// among the intents. If the entry and the number of claims have not changed meanwhile, an operation that is working on
// the page has had its intent all the time, so the search has found it.
inline bool has_operation(Segment& s, u32 page, u64 e) {
    if (entry::state(e) == RESIDENT && entry::owner(e) == s.me) return true;  // a writer: write.cpp has the list
    u64 claims = s.claims.value(), used = s.ops_used.load_acquire();
    if (entry::is_pending(e)) return entry::op(e) < OPS && (used >> entry::op(e) & 1);
    if (u32 n = entry::among(e)) return n <= OPS && (used >> (n - 1) & 1);
    for (u32 i = 0; i < OPS; i++) {
        if (!(used >> i & 1)) continue;
        Intent& in = s.client().intents[i];
        u32 first = in.page.load_acquire();
        bool flushes = in.op.load_acquire() == u32(Op::FLUSH);
        if (first == page || in.victim.load_acquire() == page ||
            (flushes && first <= page && page <= in.old.load_acquire()))
            return true;
    }
    return s.entries[page].load_seq_cst() != e || s.claims.value() != claims;
}

// Settles an entry that names client `c` although no operation is changing it: `c` is dead and reaped, is no client, or
// is this client, no thread of which is working on the page. Only a damaged segment has such an entry.
inline void disown(Segment& s, u32 page, u64 e, u32 c) {
    DeadClient dead(s, c);
    if (!dead.held() && s.has_slot(c) && c != s.me) return;
    u64 next = entry::flusher(e) == c && entry::is_there(e) ? entry::with_flusher(e, 0) : e;
    if (entry::owner(next) == c) next = entry::with_owner(next, 0);
    u32 f = entry::frame(e);
    if (entry::is_pending(e)) {  // the version that was being published is lost
        u32 g = f;
        f = s.has_frame(g) ? frame::page(s.frames[g].word.load_acquire()) : NONE;
        next = entry::settled(next, f);
    }
    bool there = entry::state(e) == EVICTING && s.has_frame(f) && s.frames[f].word.load_acquire() == frame::live(page);
    if (entry::state(e) == EVICTING) next = there ? entry::with_state(next, RESIDENT) : (next & entry::RING) | ABSENT;
    if (entry::state(e) == LOADING) next = entry::with_flusher(entry::with_state(next, ABSENT), 0);
    if (s.entries[page].cas_seq_cst(e, next & ~entry::WAITED)) prim::futex_wake_all(&s.entries[page]);
}

// Waits until the entry has changed from `e`, for one slice at most. After a slice without a change, the awaited client
// is reaped if it is dead (rule 12).
inline void wait_entry(Segment& s, u32 page, u64 e) {
    Atomic<u64>& word = s.entries[page];
    for (int spin = 0; spin < prim::SPINS; spin++) {
        if (word.load_relaxed() != e) return;
        prim::relax();
    }
    if (!(e & entry::WAITED)) {
        if (!word.cas_seq_cst(e, e | entry::WAITED)) return;
        e |= entry::WAITED;
    }
    if (prim::futex_wait(&word, u32(e), WAIT_SLICE_NS) != -ETIMEDOUT) return;
    auto look_after = [&](u32 c) {
        if (c == s.me ? has_operation(s, page, e) : seems_alive(s, c)) return;
        if (c != s.me) reap(s, c);
        if (word.load_seq_cst() == e) disown(s, page, e, c);
    };
    bool resident = entry::state(e) == RESIDENT;
    if (!resident || entry::owner(e)) look_after(entry::owner(e));
    if (resident && entry::flusher(e)) look_after(entry::flusher(e));
}

}  // namespace bp
