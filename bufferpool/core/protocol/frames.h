// Frames: taking a frame with memory, and freeing one.
//
//   FREE -> BUSY(me)   take_frame   under the memory lock
//   HOLE -> BUSY(me)   take_frame   under the memory lock, which is released during the system call (plug)
//   LIVE -> BUSY(me)   take_frame   by eviction (evict.h)
//   BUSY -> FREE       free_frame
#pragma once

#include "protocol/growth.h"
#include "protocol/modes.h"

namespace bp {

// ---- giving back -------------------------------------------------------------

#ifdef BP_EXPLORE
constexpr u32 FREE_SLICES = 0;
#else
constexpr u32 FREE_SLICES = 5;
#endif

// A run of BUSY(me) frames is given back by our next thread that holds the memory lock. False: too many are put off
// already. Two places for each operation are kept for plug_run, which always finds one: a thread that begins to plug
// has the lock, so none are put off then.
constexpr u32 KEPT_FOR_PLUGS = 2 * OPS;
inline bool give_back_later(Segment& s, u64 run, u32 kept) {
    for (auto* later = s.later; later < s.later + LATER - kept; later++) {
        u64 none = 0;
        if (later->load_relaxed() || !later->cas_seq_cst(none, run)) continue;
        s.any_later.store_seq_cst(1);
        return true;
    }
    return false;
}

// Often called where nothing may raise and others wait (an array goes away). If the lock
// cannot be taken, because its owner is stopped, that is put off.
inline void free_frame(Segment& s, u32 f) {
    if (!lock_memory(s, false, std::min(FREE_SLICES, slices_left()))) {
        if (give_back_later(s, later_run::of(f, 1, true), KEPT_FOR_PLUGS)) return;
        lock_memory(s, false);
    }
    free_locked(s, f);
    unlock_memory(s);
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

// ---- taking ------------------------------------------------------------------

// Gives memory to a run of holes: one frame becomes BUSY(me) for the caller, the
// others FREE. Called with the lock held, which is released during the system call. -EINTR: the lock is not held any
// more, and there is no frame.
inline int plug_run(Segment& s, u32 first, u32 room, u32 wanted) {
    u32 n = 0;
    u32 most = s.g.extent_frames - first % s.g.extent_frames;
    if (most > room) most = room;
    for (; n < most && s.has_frame(first + n) && s.holes.has(first + n); n++) {
        s.holes.remove(first + n);
        s.frames[first + n].word.store_release(frame::busy(s.me, n == 0 ? wanted : NONE));
    }
    s.header->resident.store_relaxed(s.header->resident.load_relaxed() + n);
    unlock_memory(s);
    BP_POINT("plug.busy");
    int r = s.plug(s.page_offset(first), u64(n) << s.g.page_shift);
    u32 got = n;
    if (r && n > 1) {  // not enough memory for the run: try one frame
        s.punch(s.page_offset(first), u64(n) << s.g.page_shift);
        r = s.plug(s.page_offset(first), u64(1) << s.g.page_shift);
        got = r ? 0 : 1;
    } else if (r) {
        got = 0;
    }
    BP_POINT("plug.plugged");
    if (!lock_memory(s)) {
        if (got) give_back_later(s, later_run::of(first, got, true), 0);
        if (got < n) give_back_later(s, later_run::of(first + got, n - got, false), 0);
        return -EINTR;
    }
    for (u32 i = n; i-- > 0;) {
        if (i >= got) hole_locked(s, first + i);
        else if (i > 0) free_locked(s, first + i);
    }
    return r;
}

struct FrameRequest {
    u32 page = NONE;     // the page to be loaded; NONE for a writer's frame
    bool once = false;   // read ahead or scanned
    EvictTally tally{};  // out: why pages could not be evicted
    int error = 0;       // out, with NO_SPACE: why the kernel gave no memory, as -errno
    // Kept over all tries: the miss counts once for the policy, and the wait once among the waits.
    Ring ring = RING_NONE;
    bool counted = false, ahead = false;  // ahead: not used yet
    u64 waits_since_ns = 0;
};

constexpr u32 EVICT_STEPS = 128;  // steps of a search in one hold of the memory lock

// The outcome of one attempt to get a frame.
enum class Step { TAKEN, AGAIN, NOTHING, INTERRUPTED };

// Counts a miss as one reference for the policy, over all tries to get a frame. Needs the memory lock.
inline void count_miss(Segment& s, Alr<PoolEnv>& policy, FrameRequest& want) {
    if (want.page == NONE || want.counted) return;
    u64 e = s.entries[want.page].load_relaxed();
    want.ring = policy.miss(ghost_of(e), ghost_stamp(e), want.once);
    s.header->policy_tag.store_relaxed(policy.tag());
    duel(s, policy, want.page, e, want.once);
    want.counted = true;
}

// FREE -> BUSY(me), under the memory lock.
inline Step take_free(Segment& s, u32 wanted, u32& out) {
    u32 f = s.free.lowest();
    if (f == NONE) return Step::NOTHING;
    s.free.remove(f);
    u64 free = frame::free();
    // The set is damaged where it names a frame that is not free.
    if (!s.has_frame(f) || !s.frames[f].word.cas_seq_cst(free, frame::busy(s.me, wanted))) return Step::AGAIN;
    out = f;
    return Step::TAKEN;
}

// HOLE -> BUSY(me) with memory, under the memory lock, which is released during the system call. `room`: frames that
// the budget still allows. AGAIN with `no_space`: the kernel gave no memory.
inline Step take_hole(Segment& s, u32 room, FrameRequest& want, bool& no_space, u32& out) {
    u32 f = s.holes.lowest();
    if (f == NONE && s.look_at_ready() && s.ready < s.g.max_frames) {
        unlock_memory(s);
        int r = grow_ready(s);
        if (r == -EINTR || !lock_memory(s)) return Step::INTERRUPTED;
        want.error = r;
        no_space = r != 0;
        return Step::AGAIN;
    }
    if (f == NONE) return Step::NOTHING;
    if (!s.has_frame(f) || s.frames[f].word.load_acquire() != frame::hole()) {
        s.holes.remove(f);  // a damaged set: there is no such frame
        return Step::AGAIN;
    }
    want.error = plug_run(s, f, room, want.page);
    if (want.error == -EINTR) return Step::INTERRUPTED;
    no_space = want.error != 0;
    out = f;
    return no_space ? Step::AGAIN : Step::TAKEN;
}

// Takes a frame with memory: BUSY(me). `intent` covers the eviction that may be needed; for a load, the page's entry is
// LOADING(me).
inline Status take_frame(Segment& s, Intent& intent, FrameRequest& want, u32& out) {
    if (want.page == NONE && (out = take_spare(s)) != NONE) return Status::OK;
    bool no_space = false;
    PoolEnv env{s, &intent, want.page};
    if (!lock_memory(s)) return Status::INTERRUPTED;
    Search search;
    for (;;) {
        Alr<PoolEnv> policy(s.header->policy, env);  // anew for each hold of the lock: the rings may have grown
        u32 budget = s.page_budget(), resident = s.header->resident.load_relaxed();
        if (s.header->policy.frames != budget) policy.set_frames(budget);
        count_miss(s, policy, want);
        Step step = take_free(s, want.page, out);
        if (step == Step::NOTHING && resident < budget && !no_space)
            step = take_hole(s, budget - resident, want, no_space, out);
        if (step == Step::INTERRUPTED) return Status::INTERRUPTED;
        if (step == Step::AGAIN) continue;
        if (step == Step::TAKEN) break;
        // The frame of a page that can be evicted.
        if (policy.evict(search, EVICT_STEPS) != NONE) {
            s.counters().evictions_recycled.add_relaxed(1);
            out = env.frame;
            break;
        }
        if (search.over) {
            want.tally = env.tally;
            want.tally.dirty += s.header->policy.aside;
            unlock_memory(s);
            return no_space ? Status::NO_SPACE : Status::EXHAUSTED;
        }
        unlock_memory(s);  // so that other clients get the lock
        if (!lock_memory(s)) return Status::INTERRUPTED;
    }
    if (want.page != NONE && entry::ring(s.entries[want.page].load_relaxed()) == RING_NONE)
        Alr<PoolEnv>(s.header->policy, env).insert(want.page, want.ring);
    unlock_memory(s);
    return Status::OK;
}

}  // namespace bp
