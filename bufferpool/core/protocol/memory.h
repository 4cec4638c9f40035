// The memory lock, and what it protects: the free frames, the holes, the rings and the resident count. All of it can be
// rebuilt from frame states and entries, and rebuild() does that after an owner of the lock has died.
//
//   BUSY -> FREE   free_locked
//   BUSY -> HOLE   hole_locked
#pragma once

#include "protocol/events.h"
#include "protocol/evict.h"
#include "protocol/lock.h"

namespace bp {

// The numbers are those of bufferpool/figures/names.py.
constexpr u32 KIND_MODE = 14, REASON_DUEL = 21, REASON_SMALL = 27, REASON_REBUILT = 28;

inline void count_mode_change(Segment& s, u32 mode, u32 reason = REASON_DUEL) {
    s.counters().mode_changes.add_relaxed(1);
    u32 budget = s.header->budget_frames.load_relaxed();
    post_event(s, {KIND_MODE, reason, 0, budget, budget, double(mode)});
}

// Makes the duel start anew: the owner of the lock may have died while it changed the duel.
inline void forget_duel(Segment& s) {
    if constexpr (DUELS) s.duel->frames = 0;
    u32 before = s.header->policy.mode;
    s.header->policy.mode = MODE_ADAPTIVE;
    if (before != MODE_ADAPTIVE) count_mode_change(s, MODE_ADAPTIVE, REASON_REBUILT);
}

inline void rebuild(Segment& s) {
    forget_duel(s);
    // 1. Rebuild the sets of free frames and holes, and the count of frames with memory. A frame that is in the set of
    // holes, and whose word says FREE, is a hole with a damaged word.
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
    // 2. The rings: keep the elements that are still valid. (A page may have two elements, if the owner died in a move.
    // That does no harm. `seen` could not tell which one is superfluous, because a writer may have moved the page to
    // another frame meanwhile.)
    PoolEnv env{s, nullptr, NONE};
    Alr<PoolEnv> policy(s.header->policy, env);
    for (Ring r : {RING_COLD, RING_HOT}) {
        u32 n = policy.ring(r).count, kept = 0;
        for (u32 i = 0; i < n; i++) {
            u64 el = policy.at(r, i);
            u32 page = element_page(el);
            if (env.peek(page, r).gone) continue;
            u64 e = s.entries[page].load_acquire();
            if (entry::is_there(e) && s.has_frame(entry::frame(e))) s.frames[entry::frame(e)].seen = 1;
            policy.put(r, kept++, el);
        }
        policy.set_count(r, kept);
    }
    // 3. Resident pages in no ring: if the entry says so of a dirty page, the page is set aside; any other page was
    // lost by the dead owner, and is added again.
    s.header->policy.aside = 0;
    s.header->dropped_aside.store_relaxed(0);
    for (u32 f = 0; f < s.ready; f++) {
        u64 w = s.frames[f].word.load_acquire();
        u32 page = frame::page(w);
        if (frame::state(w) != LIVE || s.frames[f].seen || !s.has_page(page)) continue;
        u64 e = s.entries[page].load_acquire();
        // The entry of a page that is being published with others names the frame of the next version; `f` has the
        // present one.
        bool pending = entry::is_pending(e) && entry::frame(e) != f && s.has_frame(entry::frame(e));
        if (pending ? s.frames[entry::frame(e)].seen : !entry::is_resident_in(e, f)) continue;
        if (entry::is_aside(e)) s.header->policy.aside++;
        else policy.insert(page, entry::ring(e) == RING_HOT ? RING_HOT : RING_COLD);
    }
    rebuild_shares(s);
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
    bool hole = s.holes.has(f);  // its word was damaged: the frame has no memory
    s.frames[f].word.store_release(hole ? frame::hole() : frame::free());
    if (!hole) s.free.add(f);
}

// BUSY(me) -> HOLE, under the lock, after its memory was given back.
inline void hole_locked(Segment& s, u32 f) {
    s.frames[f].word.store_release(frame::hole());
    s.holes.add(f);
    s.header->resident.store_relaxed(s.header->resident.load_relaxed() - 1);
}

// Has a frame of this extent no memory? Then no part of the extent is a huge page.
inline bool has_hole(Segment& s, u32 extent) {
    u32 f = extent * s.g.extent_frames, end = std::min(f + s.g.extent_frames, u32(s.ready));
    while (f < end && frame::state(s.frames[f].word.load_acquire()) != HOLE) f++;
    return f < end;
}

// Frames of ours that are BUSY, and that the next thread of ours that holds the lock gives back. They form a chain: the
// `lsn` of each frame's slot has the number of the next frame, plus one, and whether this frame has memory. Threads add
// frames without the lock. Only the thread that holds the lock removes one, so the CAS is safe even if a frame is
// removed and added again.
constexpr u64 WITHOUT_MEMORY = u64(1) << 63;
constexpr u32 LATER_BATCH = 1024;  // the most frames in one hold of the lock

inline void give_back_later(Segment& s, u32 first, u32 n, bool memory) {
    for (u32 f = first; f < first + n; f++) {
        u32 head = s.later.load_seq_cst();
        do s.frames[f].lsn.store_relaxed(head | (memory ? 0 : WITHOUT_MEMORY));
        while (!s.later.cas_seq_cst(head, f + 1));
    }
}

inline void give_back_later(Segment& s) {
    u32 head = s.later.load_seq_cst();
    for (u32 n = 0; head && n < LATER_BATCH; n++) {
        u32 f = head - 1;
        u64 w = s.has_frame(f) ? s.frames[f].word.load_acquire() : 0;
        bool ours = frame::state(w) == BUSY && frame::client(w) == s.me;
        u64 link = ours ? s.frames[f].lsn.load_relaxed() : 0;  // if not ours, the slot is damaged: the rest is lost
        if (!s.later.cas_seq_cst(head, u32(link))) continue;
        if (ours && (link & WITHOUT_MEMORY)) hole_locked(s, f);
        else if (ours) free_locked(s, f);
        head = u32(link);
    }
}

inline void lock_is_ours(Segment& s, Acquired how) {
    s.learn_ready(s.header->frames_ready.load_relaxed());  // the lengths of the sets and the rings depend on it
    if (how == Acquired::REPAIR) {
        rebuild(s);
        repaired(s, s.header->memory);
    }
    if (s.header->dropped_aside.load_relaxed()) {
        u32 n = s.header->dropped_aside.swap_seq_cst(0), &aside = s.header->policy.aside;
        aside -= std::min(aside, n);
    }
    if (s.later.load_relaxed()) give_back_later(s);
    BP_POINT("memory.locked");
}

inline bool lock_memory(Segment& s, bool interruptible = true, u32 slices = ~0u) {
    if (!interruptible) slices = std::min(slices, slices_left());
    Acquired a = acquire(s, s.header->memory, interruptible, slices);
    if (a == Acquired::INTERRUPTED) return false;
    lock_is_ours(s, a);
    return true;
}

// Takes the lock for work that can be put off (give_back_later): it waits for BRIEF_SLICES at most, and not at all
// while other work has been put off.
inline bool lock_memory_briefly(Segment& s) {
    if (!s.later.load_relaxed()) return lock_memory(s, false, BRIEF_SLICES);
    Acquired how;
    if (!try_acquire(s, s.header->memory, how)) return false;
    lock_is_ours(s, how);
    return true;
}
inline void unlock_memory(Segment& s) {
    BP_POINT("memory.unlock");
    release(s, s.header->memory);
}

}  // namespace bp
