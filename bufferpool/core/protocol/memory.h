// The memory lock, and what it protects: the free frames, the holes, the rings and the resident count. All of it can be
// rebuilt from frame states and entries, and rebuild() does that after an owner of the lock has died.
//
//   BUSY -> FREE   free_locked
//   BUSY -> HOLE   hole_locked
#pragma once

#include "protocol/evict.h"
#include "protocol/lock.h"

namespace bp {

// The owner of the lock may have died in the midst of the duel: which mode was the better one is not known any more.
inline void forget_duel(Segment& s) {
    if constexpr (DUELS) s.duel->frames = 0;
    s.header->policy.mode = MODE_ADAPTIVE;
}

inline void rebuild(Segment& s) {
    forget_duel(s);
    // 1. Rebuild the sets of free frames and holes, and the count of frames with memory. A hole whose word was damaged
    // is found by the set of holes.
    s.has_frame(s.g.max_frames - 1);
    for (u32 f = 0; f < s.ready; f++)
        if (s.holes.has(f) && frame::state(s.frames[f].word.load_acquire()) == FREE)
            s.frames[f].word.store_release(frame::hole());
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
    // 2. The rings: keep the elements that are still valid. (A page may have two, if the owner died in a move. That is
    // harmless; and the frame of a page cannot decide, because a writer may have moved it meanwhile.)
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
    // 3. Resident pages in no ring: a dirty page is set aside; a clean one was lost by the dead owner, and is added
    // again.
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

// Adds a page that was set aside to a ring, before it is made clean. Needs the lock.
inline void bring_back_locked(Segment& s, u32 page) {
    if (!entry::is_aside(s.entries[page].load_acquire())) return;
    PoolEnv env{s, nullptr, NONE};
    Alr<PoolEnv>(s.header->policy, env).bring_back(page);
    BP_POINT("aside.back");
}

// BUSY(me) -> FREE, under the lock.
inline void free_locked(Segment& s, u32 f) {
    bool hole = s.holes.has(f);  // a hole whose damaged word said that it has memory
    s.frames[f].word.store_release(hole ? frame::hole() : frame::free());
    if (!hole) s.free.add(f);
}

// BUSY(me) -> HOLE, under the lock, after its memory was given back.
inline void hole_locked(Segment& s, u32 f) {
    s.frames[f].word.store_release(frame::hole());
    s.holes.add(f);
    s.header->resident.store_relaxed(s.header->resident.load_relaxed() - 1);
}

// Frames of ours that are BUSY, and that our next thread that holds the lock gives back: a run of neighbours, which
// have memory or have none. 0: none.
namespace later_run {
constexpr u64 WITHOUT_MEMORY = u64(1) << 63;
constexpr u64 of(u32 first, u32 n, bool memory) { return u64(n) << 32 | first | (memory ? 0 : WITHOUT_MEMORY); }
constexpr u32 first(u64 run) { return u32(run); }
constexpr u32 end(u64 run) { return u32(run) + (u32(run >> 32) & ~(1u << 31)); }
}  // namespace later_run

inline void give_back_later(Segment& s) {
    for (auto& later : s.later) {
        u64 run = later.load_relaxed() ? later.swap_seq_cst(0) : 0;
        if (!run) continue;
        for (u32 f = later_run::end(run); f-- > later_run::first(run);) {
            if (run & later_run::WITHOUT_MEMORY) hole_locked(s, f);
            else free_locked(s, f);
        }
    }
}

inline bool lock_memory(Segment& s, bool interruptible = true, u32 slices = ~0u) {
    Acquired a = acquire(s, s.header->memory, interruptible, slices);
    if (a == Acquired::INTERRUPTED) return false;
    s.learn_ready(s.header->frames_ready.load_relaxed());  // the lengths of the sets and the rings depend on it
    if (a == Acquired::REPAIR) {
        rebuild(s);
        repaired(s, s.header->memory);
    }
    if (s.any_later.load_relaxed() && s.any_later.swap_seq_cst(0)) give_back_later(s);
    BP_POINT("memory.locked");
    return true;
}
inline void unlock_memory(Segment& s) {
    BP_POINT("memory.unlock");
    release(s, s.header->memory);
}

// Counts that a page that was set aside has been dropped.
inline void forget_aside(Segment& s) {
    lock_memory(s, false);
    PoolEnv env{s, nullptr, NONE};
    Alr<PoolEnv>(s.header->policy, env).forget_aside();
    unlock_memory(s);
}

}  // namespace bp
