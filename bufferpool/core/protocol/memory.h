// The memory lock, and what it protects: the free frames, the holes, the rings and the resident
// count. All of it can be rebuilt from frame states and entries, and rebuild() does, after an
// owner has died. Evicting a page, and giving a frame back to the pool:
//
//   LIVE  -> BUSY(me)   evict     under the lock
//   BUSY  -> FREE       give      under the lock
//   OLD   -> SETTLING(me) -> BUSY(me)   settle   by any client that finds no pin left
//            SETTLING(me) -> OLD                 a pin is left after all
//
// A resident page stands in a ring, or it is dirty (it was *set aside* by a search that met it): where both change,
// one CAS of its entry sees both.
//
// Taking a frame, and memory for more of them: take.h.
#pragma once

#include "protocol/lock.h"

namespace bp {

struct EvictTally {
    u32 pinned = 0, dirty = 0, busy = 0;
};

// What the policy sees of the pool, and what it does to it.
struct PoolEnv {
    Segment& s;
    Intent* intent;    // covers the eviction; null where none can happen
    u32 wanted;        // the page that the frame is for
    u32 frame = NONE;  // the frame of the page evicted last
    EvictTally tally{};
    u64 looks = 0;  // at pages, in the rings

    u64* slots(Ring r) { return s.ring_slots[r == RING_HOT]; }
    u32 capacity() const { return ring_capacity(s.g, s.ready); }

    Peek peek(u32 page, Ring r) {
        looks++;
        if (!s.has_page(page)) return {true, 0};
        u64 e = s.entries[page].load_acquire();
        if (entry::ring(e) != r) return {true, 0};
        if (entry::state(e) == ABSENT) {
            set_ring(page, RING_NONE);
            return {true, 0};
        }
        if (entry::state(e) != RESIDENT || !s.has_frame(entry::frame(e))) return {false, 0};
        return {false, u32(s.frames[entry::frame(e)].count.load_relaxed() & ~AHEAD)};
    }

    void set_count(u32 page, u32 n) {
        u64 e = s.entries[page].load_acquire();
        if (entry::state(e) == RESIDENT && s.has_frame(entry::frame(e)))
            s.frames[entry::frame(e)].count.store_relaxed(u8(n));
    }

    void set_ring(u32 page, Ring r) {
        change_entry(s.entries[page], [r](u64 e) { return entry::with_ring(e, r); });
    }

    bool evict(u32 page, Ghost kind, u32 stamp) {
        Atomic<u64>& word = s.entries[page];
        u64 e = word.load_acquire();
        u32 f = entry::frame(e);
        if (entry::state(e) != RESIDENT || entry::owner(e) || entry::flusher(e) || !s.has_frame(f))
            return tally.busy++, false;
        if (e & entry::DIRTY) return tally.dirty++, false;
        // 1. Close the door.
        u32 before = intent->op.load_relaxed();
        if (before == u32(Op::NONE)) {  // no load goes with it: what an earlier operation left must not say so
            intent->page.store_relaxed(NONE);
            intent->frame.store_relaxed(NONE);
        }
        intent->victim.store_relaxed(page);
        intent->op.store_release(u32(Op::EVICT));
        s.claims.add();
        BP_POINT("evict.intent");
        u64 closed = entry::with_owner(entry::with_state(e, EVICTING), s.me);
        bool gone = word.cas_seq_cst(e, closed);
        if (!gone) tally.busy++;
        BP_POINT("evict.closed");
        // 2. Look who is inside.
        if (gone && s.any_pin(f)) {
            change_entry(word, [](u64 w) { return entry::with_owner(entry::with_state(w, RESIDENT), 0) & ~entry::WAITED; });
            tally.pinned++;
            gone = false;
        }
        if (gone) {
            // 3. The frame is ours, the page is away.
            u64 live = frame::live(page);
            if (s.frames[f].word.cas_seq_cst(live, frame::busy(s.me, wanted))) {
                BP_POINT("evict.taken");
                change_entry(word, [&](u64 w) { return ghost_word(w, kind, stamp); });
                BP_POINT("evict.absent");
                frame = f;
            } else {
                gone = false;  // a damaged segment: check() tells; leave the page where it is
                tally.busy++;  // what cannot go is counted in every case: whoever looks for victims ends by that
                change_entry(word, [](u64 w) { return entry::with_owner(entry::with_state(w, RESIDENT), 0) & ~entry::WAITED; });
            }
        }
        intent->op.store_release(before);
        return gone;
    }

    // A dirty page, unless its writer has it: what changes its ring or makes it clean has the memory lock, or
    // finds the ring in the same word.
    bool set_aside(u32 page, Ring r) {
        u64 e = s.entries[page].load_acquire();
        bool waits = entry::state(e) == RESIDENT && (e & entry::DIRTY) && !entry::owner(e) && entry::ring(e) == r;
        if (!waits || !s.entries[page].cas_seq_cst(e, entry::with_ring(e, RING_NONE))) return false;
        BP_POINT("aside.marked");
        return true;
    }

    static u64 ghost_word(u64 w, Ghost kind, u32 stamp) {
        u64 high = u64(stamp & STAMP_MASK) | (kind == Ghost::HOT ? u64(1) << 31 : 0);
        return high << 32 | (w & entry::VOLATILE) | entry::GHOST | ABSENT;
    }
};

inline Ghost ghost_of(u64 e) {
    if (!(e & entry::GHOST)) return Ghost::NONE;
    return e >> 63 ? Ghost::HOT : Ghost::COLD;
}
inline u32 ghost_stamp(u64 e) { return u32(e >> 32) & STAMP_MASK; }

// ---- rebuilding what the lock protects -------------------------------------

inline void rebuild(Segment& s) {
    // 1. Free frames, holes and the count of frames with memory. A hole whose word was damaged is found in the set of holes.
    s.has_frame(s.g.max_frames - 1);
    for (u32 f = 0; f < s.ready; f++)
        if (s.holes.has(f) && frame::state(s.frames[f].word.load_acquire()) == FREE) s.frames[f].word.store_release(frame::hole());
    s.free.clear();
    s.holes.clear();
    u32 resident = 0;
    for (u32 f = 0; f < s.ready; f++) {
        FrameState state = frame::state(s.frames[f].word.load_acquire());
        if (state == HOLE) s.holes.add(f); else resident++;
        if (state == FREE) s.free.add(f);
        s.frames[f].seen = 0;
    }
    s.header->resident.store_relaxed(resident);
    // 2. The rings: what still stands for its page stays. (Twice, should the owner have died in a move; that is harmless, and
    // which frame a page is in does not tell: a writer may take the one that it had for another page meanwhile.)
    PoolEnv env{s, nullptr, NONE};
    Alr<PoolEnv> policy(s.header->policy, env);
    for (Ring r : {RING_COLD, RING_HOT}) {
        u32 n = policy.ring(r).count, kept = 0;
        for (u32 i = 0; i < n; i++) {
            u64 el = policy.at(r, i);
            u32 page = element_page(el);
            if (env.peek(page, r).gone) continue;
            u64 e = s.entries[page].load_acquire();
            if (entry::state(e) == RESIDENT && s.has_frame(entry::frame(e))) s.frames[entry::frame(e)].seen = 1;
            policy.put(r, kept++, el);
        }
        policy.set_count(r, kept);
    }
    // 3. Resident pages that no ring has: set aside if they are dirty, lost with the dead owner's step if not.
    s.header->policy.aside = 0;
    for (u32 f = 0; f < s.ready; f++) {
        u64 w = s.frames[f].word.load_acquire();
        u32 page = frame::page(w);
        if (frame::state(w) != LIVE || s.frames[f].seen || !s.has_page(page)) continue;
        u64 e = s.entries[page].load_acquire();
        if (!entry::is_resident_in(e, f)) continue;
        if (entry::is_aside(e)) s.header->policy.aside++;
        else policy.insert(page, entry::ring(e) == RING_HOT ? RING_HOT : RING_COLD);
    }
}

// A dirty page that no ring has, and that is about to be clean, is put into a ring first. Under the lock.
inline void bring_back_locked(Segment& s, u32 page) {
    if (!entry::is_aside(s.entries[page].load_acquire())) return;
    PoolEnv env{s, nullptr, NONE};
    Alr<PoolEnv>(s.header->policy, env).bring_back(page);
    BP_POINT("aside.back");
}

// BUSY(me) -> FREE, under the lock.
inline void free_locked(Segment& s, u32 f) {
    bool hole = s.holes.has(f);  // its word was damaged: it said that there is memory
    s.frames[f].word.store_release(hole ? frame::hole() : frame::free());
    if (!hole) s.free.add(f);
}

inline bool lock_memory(Segment& s, bool interruptible = true, u32 slices = ~0u) {
    Acquired a = acquire(s, s.header->memory, interruptible, slices);
    if (a == Acquired::INTERRUPTED) return false;
    s.learn_ready(s.header->frames_ready.load_relaxed());  // the sets and the rings are as long as that says
    if (a == Acquired::REPAIR) {
        rebuild(s);
        repaired(s, s.header->memory);
    }
    for (auto& later : s.later)
        if (later.load_relaxed())
            if (u32 f = later.swap_seq_cst(0)) free_locked(s, f - 1);
    BP_POINT("memory.locked");
    return true;
}
inline void unlock_memory(Segment& s) {
    BP_POINT("memory.unlock");
    release(s, s.header->memory);
}

// A page that was set aside has been dropped.
inline void forget_aside(Segment& s) {
    lock_memory(s, false);
    PoolEnv env{s, nullptr, NONE};
    Alr<PoolEnv>(s.header->policy, env).forget_aside();
    unlock_memory(s);
}

// ---- giving frames back to the pool -----------------------------------------

constexpr u32 FREE_SLICES = 5;

// Often called where nothing may raise and others wait (an array goes away). If the lock
// is not to be had, its owner being stopped, the frame is left to whoever has it next.
inline void free_frame(Segment& s, u32 f) {
    if (!lock_memory(s, false, FREE_SLICES)) {
        for (auto& later : s.later) {
            u32 none = 0;
            if (later.load_relaxed() == 0 && later.cas_seq_cst(none, f + 1)) return;
        }
        lock_memory(s, false);
    }
    free_locked(s, f);
    unlock_memory(s);
}

// BUSY(me) -> HOLE, under the lock; the kernel has the memory already.
inline void hole_locked(Segment& s, u32 f) {
    s.frames[f].word.store_release(frame::hole());
    s.holes.add(f);
    s.header->resident.store_relaxed(s.header->resident.load_relaxed() - 1);
}

// OLD -> SETTLING(me) -> BUSY(me), if no pin is left. As in eviction, the door is closed before we look
// (rule 3): a frame that was OLD when we looked at its pins may be OLD for the same page once more, with
// others' pins, when our CAS comes; SETTLING(me) is left by nobody but us. A reader that left meanwhile
// found no OLD frame and has not settled it, so after a turn back we look once more. The readers
// that could still come have loaded a stale entry: their second load turns them away.
inline bool settle_old(Segment& s, u32 f) {
    Atomic<u64>& word = s.frames[f].word;
    for (;;) {
        u64 w = word.load_seq_cst();
        if (frame::state(w) != OLD || s.any_pin(f)) return false;
        u64 closed = frame::settling(s.me, frame::page(w));
        if (!word.cas_seq_cst(w, closed)) continue;
        BP_POINT("settle.closed");
        bool left = s.any_pin(f);
        BP_POINT("settle.looked");
        if (!word.cas_seq_cst(closed, left ? frame::old(frame::page(w)) : frame::busy(s.me))) return false;  // a damaged segment
        if (!left) return true;
    }
}

// Keeps a BUSY(me) frame for our next publish, or frees it.
inline void keep_or_free(Segment& s, u32 f) {
    int keep = s.header->budget_frames.load_relaxed() >= 256 ? SPARES : 0;
    for (int i = 0; i < keep; i++) {
        u32 none = 0;
        if (s.spares[i].load_relaxed() == 0 && s.spares[i].cas_seq_cst(none, f + 1)) return;
    }
    free_frame(s, f);
}

inline u32 take_spare(Segment& s) {
    for (auto& spare : s.spares) {
        if (spare.load_relaxed() == 0) continue;
        u32 f = spare.swap_seq_cst(0);
        if (f) return f - 1;
    }
    return NONE;
}

inline void free_spares(Segment& s) {
    for (u32 f; (f = take_spare(s)) != NONE;) free_frame(s, f);
}

// Takes back a pin. The last one to leave a superseded frame frees it.
inline void unpin(Segment& s, u32 f) {
    if (s.pin_count(f).sub_seq_cst(1) != 1) return;
    if (frame::state(s.frames[f].word.load_seq_cst()) == OLD && settle_old(s, f)) free_frame(s, f);
}

// Frees every superseded frame that nobody pins any more: what dead readers
// have left. Returns how many.
inline u32 sweep_old(Segment& s) {
    u32 n = 0;
    s.has_frame(s.g.max_frames - 1);
    for (u32 f = 0; f < s.ready; f++) {
        if (frame::state(s.frames[f].word.load_acquire()) != OLD || !settle_old(s, f)) continue;
        free_frame(s, f);
        n++;
    }
    return n;
}

}  // namespace bp
