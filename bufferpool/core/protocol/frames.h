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

// Frees BUSY(me) frames. It is often called where no error can be raised, such as when an array is deleted. So if the
// lock cannot be taken soon, because its owner is stopped, the frames are freed later.
inline void free_frames(Segment& s, const u32* frames, size_t n) {
    bool locked = lock_memory_briefly(s);
    for (size_t i = 0; i < n; i++) {
        if (locked) free_locked(s, frames[i]);
        else give_back_later(s, frames[i], 1, true);
    }
    if (locked) unlock_memory(s);
}
inline void free_frame(Segment& s, u32 f) { free_frames(s, &f, 1); }

// Keeps a BUSY(me) frame for our next publish, or frees it. It is always freed in a pool of less than 256 frames, and
// in one with huge pages, where it would keep all of a huge page from being given back.
inline void keep_or_free(Segment& s, u32 f) {
    int keep = s.header->budget_frames.load_relaxed() >= 256 && !s.g.huge_pages ? SPARES : 0;
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

// Gives memory to a run of at most `room` holes from `first` on, in one extent: the first becomes BUSY(me) for the
// caller, the others FREE. The caller holds the memory lock, which is released during the system call. -EINTR: the lock
// is not held any more, and the caller gets no frame.
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
    // Only here, where all frames of the extent are ours: so an extent with a hole has no huge page.
    if (s.g.huge_pages && got == s.g.extent_frames) prim::make_huge(s.page_data(first), u64(got) << s.g.page_shift);
    if (!lock_memory(s)) {
        give_back_later(s, first, got, true);
        give_back_later(s, first + got, n - got, false);
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
    EvictTally tally{};    // out: why pages could not be evicted
    bool limited = false;  // out, with EXHAUSTED: the space has as many frames as its limit allows
    u32 budget = 0;        // out: the budget of the pool when the search began
    Counted in_share{};    // the share in which the frame is counted, until the frame's word names the page
    int error = 0;         // out, with NO_SPACE: why the kernel gave no memory, as -errno
    // Kept over all tries: the miss counts once for the policy, and the wait once among the waits.
    Ring ring = RING_NONE;
    bool counted = false, ahead = false;  // ahead: the page is read ahead, and is not used yet
    u64 waits_since_ns = 0;
};

constexpr u32 EVICT_STEPS = 128;  // steps of a search in one hold of the memory lock

// The outcome of one attempt to get a frame.
enum class Step { TAKEN, AGAIN, NOTHING, INTERRUPTED };

// Counts the miss for the policy, once over all tries to get a frame. Needs the memory lock.
inline void count_miss(Segment& s, Alr<PoolEnv>& policy, FrameRequest& want) {
    if (want.page == NONE || want.counted) return;
    u64 e = s.entries[want.page].load_relaxed();
    want.ring = policy.miss(ghost_of(e), ghost_stamp(e), want.once);
    s.header->policy_tag.store_relaxed(policy.tag());
    duel(s, policy, want.page, e, want.once);
    want.counted = true;
}

// Prefetches what the next search for a victim will read at the heads of the rings: entries, and the frame slot and the
// pin counts of the first page. The processor fetches them while this miss reads its page. Needs the memory lock.
inline void fetch_next_victims([[maybe_unused]] Segment& s, [[maybe_unused]] Alr<PoolEnv>& policy) {
#ifndef BP_EXPLORE  // not part of the protocol
    constexpr u32 ENTRIES = 3;  // elements ahead
    for (Ring r : {RING_COLD, RING_HOT}) {
        u32 count = policy.ring(r).count;
        u32 next = count > ENTRIES ? element_page(policy.at(r, ENTRIES)) : NONE;
        if (s.has_page(next)) fetch_early(&s.entries[next]);
        u32 head = count ? element_page(policy.at(r, 0)) : NONE;
        if (!s.has_page(head)) continue;
        u32 f = entry::frame(s.entries[head].load_relaxed());  // a fetch of any frame does no harm
        fetch_early(&s.frames[f]);
        for (u32 stripe = 0; stripe < STRIPES; stripe++) fetch_early(s.stripe_row(stripe, f));
    }
#endif
}

// FREE -> BUSY(me), under the memory lock.
inline Step take_free(Segment& s, u32 wanted, u32& out) {
    u32 f = s.free.lowest();
    if (f == NONE) return Step::NOTHING;
    s.free.remove(f);
    u64 free = frame::free();
    // If the frame is not FREE, the set was damaged.
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

constexpr u32 HAND_LOOKS = 4096;  // the most frames that take_own() examines in one hold of the lock
constexpr u32 HAND_ROUNDS = REFERENCES + 2;

struct Hand {
    u64 looks = 0;
    bool over = false;  // no page of the space can be evicted
};

// LIVE -> BUSY(me): a page of a full share takes the frame of another page of its space, which a clock over the frames
// finds. If the space has more frames than its limit, because the limit was lowered, the others become FREE.
inline Step take_own(Segment& s, PoolEnv& env, Share& share, Hand& hand, u32& out) {
    out = NONE;
    for (u32 i = 0; i < HAND_LOOKS && (out == NONE || is_full(share)) && !hand.over; i++) {
        hand.over = ++hand.looks > u64(HAND_ROUNDS) * s.ready;
        u32 f = share.hand.load_relaxed();
        share.hand.store_relaxed(f + 1 < s.ready ? f + 1 : 0);
        u64 w = f < s.ready ? s.frames[f].word.load_acquire() : frame::hole();
        u32 page = frame::page(w);
        if (!is_of(share, page) || !s.has_page(page)) continue;
        u8 uses = s.frames[f].count.load_relaxed();
        if (frame::state(w) != LIVE) env.tally.busy++;
        else if (uses & REFERENCES) s.frames[f].count.store_relaxed(u8(uses - 1));
        else if (!env.evict(page, Ghost::COLD, s.header->policy.now)) continue;
        else if (out == NONE) out = env.frame;
        else free_locked(s, env.frame);
    }
    if (out == NONE) return Step::NOTHING;
    s.counters().evictions_recycled.add_relaxed(1);
    return Step::TAKEN;
}

// Takes a free frame, or a hole, or the frame of a page that the policy evicts.
inline Step take_any(Segment& s, Alr<PoolEnv>& policy, FrameRequest& want, Search& search, bool& no_space, u32& out) {
    u32 budget = s.page_budget(), resident = s.header->resident.load_relaxed();
    Step step = take_free(s, want.page, out);
    if (step == Step::NOTHING && resident < budget && !no_space)
        step = take_hole(s, budget - resident, want, no_space, out);
    if (step != Step::NOTHING || policy.evict(search, EVICT_STEPS) == NONE) return step;
    s.counters().evictions_recycled.add_relaxed(1);
    out = policy.env().frame;
    fetch_next_victims(s, policy);
    return Step::TAKEN;
}

// Returns the share of the page's space if it is full. Otherwise it counts the frame that will be taken, and returns
// null.
inline Share* full_share(Segment& s, FrameRequest& want) {
    if (count_frame(s, want.page, want.in_share)) return nullptr;
    settle_doubt(s);
    return count_frame(s, want.page, want.in_share) ? nullptr : share_of(s, want.page);
}

// Takes a frame with memory: BUSY(me). `intent` covers the eviction that may be needed; for a load, the page's entry is
// LOADING(me).
inline Status take_frame(Segment& s, Intent& intent, FrameRequest& want, u32& out) {
    if (want.page == NONE && (out = take_spare(s)) != NONE) return Status::OK;
    bool no_space = false;
    PoolEnv env{s, &intent, want.page};
    Search search;
    Hand hand;
    Step step = Step::NOTHING;
    want.budget = s.header->budget_frames.load_relaxed();
    while (step != Step::TAKEN) {
        if (step == Step::NOTHING && !lock_memory(s)) step = Step::INTERRUPTED;
        if (step == Step::INTERRUPTED) return uncount(s, want.in_share), Status::INTERRUPTED;
        Alr<PoolEnv> policy(s.header->policy, env);  // anew for each hold of the lock: the rings may have grown
        u32 budget = s.page_budget();
        if (s.header->policy.frames != budget) policy.set_frames(budget);
        count_miss(s, policy, want);
        Share* full = full_share(s, want);
        step = full ? take_own(s, env, *full, hand, out) : take_any(s, policy, want, search, no_space, out);
        if (step == Step::TAKEN && full) want.in_share = count_one(*full);
        if (step != Step::NOTHING) continue;
        bool over = full ? hand.over : search.over;
        if (over) {
            want.tally = env.tally;
            want.tally.dirty += full ? 0 : s.header->policy.aside;
            want.limited = full != nullptr;
            uncount(s, want.in_share);
        }
        unlock_memory(s);  // so that other clients get the lock between the steps of the search
        if (over) return no_space && !full ? Status::NO_SPACE : Status::EXHAUSTED;
    }
    if (want.page != NONE && entry::ring(s.entries[want.page].load_relaxed()) == RING_NONE)
        Alr<PoolEnv>(s.header->policy, env).insert(want.page, want.ring);
    want.in_share = {};  // from here on the frame's word, which names the page, keeps it counted
    unlock_memory(s);
    return Status::OK;
}

}  // namespace bp
