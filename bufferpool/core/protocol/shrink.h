// Giving the memory of frames back to the kernel: pages are evicted (by the policy, or by age), the extents that are
// cheapest to empty are emptied, and their memory is given back (MADV_REMOVE).
#pragma once

#include "protocol/page.h"

namespace bp {

struct Reclaimed {
    u64 frames = 0;      // frames given back
    int refused = 0;     // the -errno with which the kernel refused to take some; 0: it took all
    u64 moved = 0;       // pages copied to empty extents
    EvictTally tally{};  // why more pages could not be evicted
};

constexpr u32 EVICT_BATCH = 64;       // the most evictions in one hold of the memory lock
constexpr u32 EVICT_LOOKS = 512;      // and the most pages examined; one eviction may examine EVICT_STEPS pages
constexpr u32 LOOK_BATCH = 4096;      // and the most frames examined
constexpr u32 EXTENTS_PER_STEP = 16;  // extents emptied per step: this bounds how many frames are BUSY at one time

// Frees the frames of a sorted list that must not be given back in a pool with huge pages, and removes them from the
// list: those of an extent of which the list has only a part. An extent with a hole is no huge page (plug_run), so any
// part of it may be given back.
inline void keep_parts(Segment& s, Vec<u32>& frames) {
    u32 per = s.g.extent_frames;
    size_t kept = 0;
    for (size_t i = 0, end; i < frames.size(); i = end) {
        for (end = i + 1; end < frames.size() && frames[end] / per == frames[i] / per;) end++;
        if (end - i == per || has_hole(s, frames[i] / per))
            for (size_t k = i; k < end; k++) frames[kept++] = frames[k];
        else free_frames(s, &frames[i], end - i);
    }
    frames.cut(kept);
}

// Gives the memory of BUSY(me) frames back: one madvise for each run of neighbours. Frames whose memory the kernel
// refuses to take become FREE; `done` counts the others, which become holes.
inline void release_frames(Segment& s, Vec<u32>& frames, Reason reason, Reclaimed& done) {
    std::sort(frames.begin(), frames.end());
    if (s.g.huge_pages) keep_parts(s, frames);
    for (size_t i = 0; i < frames.size();) {
        size_t end = i + 1;
        while (end < frames.size() && frames[end] == frames[end - 1] + 1) end++;
        u64 length = u64(end - i) << s.g.page_shift;
        BP_POINT("punch.busy");
        u64 since = prim::now_ns();
        int r = s.remove_frames(frames[i], length);
        s.took(LATENCY_RECLAIM, since);
        BP_POINT("punch.removed");
        if (lock_memory_briefly(s)) {
            for (size_t k = i; k < end; k++) {
                if (r == 0) hole_locked(s, frames[k]);
                else free_locked(s, frames[k]);
            }
            unlock_memory(s);
        } else {
            give_back_later(s, frames[i], u32(end - i), r != 0);
        }
        if (r == 0) count_reclaimed(s, length, reason);
        if (r == 0) done.frames += end - i;
        else done.refused = r;
        BP_POINT("punch.hole");
        i = end;
    }
    frames.clear();
}

// Phase 1 of a shrink: evicts until `want` frames are free, or no page can be evicted. `all`: if that is not enough, it
// also evicts pages within the reserves of their spaces. False: interrupted.
inline bool evict_for_shrink(Segment& s, Intent& intent, u64 want, bool all, EvictTally& tally) {
    PoolEnv env{s, &intent, NONE};
    u64 freed = 0;
    Search search;
    while (freed < want && !search.over) {
        if (!lock_memory(s)) return false;
        u32 budget = s.page_budget();
        if (s.header->policy.frames != budget) Alr<PoolEnv>(s.header->policy, env).set_frames(budget);
        Alr<PoolEnv> policy(s.header->policy, env);
        u64 most = env.looks + EVICT_LOOKS;
        for (u32 i = 0; i < EVICT_BATCH && env.looks < most && freed < want; i++) {
            if (policy.evict(search, EVICT_STEPS) == NONE) break;  // after a long search release the lock
            free_locked(s, env.frame);
            freed++;
        }
        tally = env.tally;
        tally.dirty += s.header->policy.aside;
        if (search.over && all && env.reserves) {
            env.reserves = false;
            search = {};
        }
        unlock_memory(s);
        if (s.interrupted && s.interrupted(s)) return false;
    }
    s.counters().evictions_reclaimed.add_relaxed(freed);
    return true;
}

struct ExtentPlan {
    u32 extent, free, live;
    u32 holes, others;  // others: neither FREE, LIVE nor holes, or with a page that is pinned
};

// Counts the frames of an extent by what a shrink can do with them.
inline ExtentPlan look_at_extent(Segment& s, u32 extent) {
    ExtentPlan p{extent, 0, 0, 0, 0};
    u32 first = extent * s.g.extent_frames;
    for (u32 f = first; f < first + s.g.extent_frames && f < s.ready; f++) {
        FrameState state = frame::state(s.frames[f].word.load_relaxed());
        p.free += state == FREE;
        p.live += state == LIVE;
        p.holes += state == HOLE;
        bool fixed = state == LIVE ? any_pin(s, f) : state != FREE && state != HOLE;
        p.others += s.g.huge_pages && fixed;
    }
    return p;
}

// Chooses the extents that are emptied to give back at most `want` frames: first those with the fewest pages to move,
// and among these the highest. In a pool with huge pages only extents all of whose frames can be emptied. False: this
// process has no memory for the list.
inline bool plan_extents(Segment& s, u64 want, Vec<ExtentPlan>& plans) {
    u32 per = s.g.extent_frames;
    s.has_frame(s.g.max_frames - 1);
    for (u32 first = 0; first < s.ready; first += per) {
        ExtentPlan p = look_at_extent(s, first / per);
        // A part of an extent with huge pages is left where the budget has room for no more.
        bool has_part = s.g.huge_pages && p.live && p.holes;
        if ((p.free || has_part) && !p.others && !plans.push(p)) return false;
    }
    std::sort(plans.begin(), plans.end(), [](const ExtentPlan& a, const ExtentPlan& b) {
        return a.live != b.live ? a.live < b.live : a.extent > b.extent;
    });
    u64 sum = 0;
    size_t n = 0;
    for (; n < plans.size() && sum + plans[n].free + plans[n].live <= want; n++) sum += plans[n].free + plans[n].live;
    plans.cut(n);
    return true;
}

// Takes the free frames of one extent, which become BUSY(me): the highest first, at most `most`, and at most as many as
// `out` has room for.
inline void claim_free(Segment& s, u32 extent, u64 most, Vec<u32>& out) {
    u32 first = extent * s.g.extent_frames, end = std::min(first + s.g.extent_frames, u32(s.ready));
    for (u32 f = end; f-- > first && most > 0 && !out.full();) {
        if (!s.free.has(f)) continue;
        s.free.remove(f);
        s.frames[f].word.store_release(frame::busy(s.me));
        most -= out.push(f);
    }
}

// Phase 2, for one extent: moves its pages to other extents, after its free frames were claimed. The emptied frames are
// added to `out`, as long as it has room. False: interrupted.
inline bool empty_extent(Segment& s, Intent& intent, const ExtentPlan& plan, Vec<u32>& out, Reclaimed& done) {
    u32 first = plan.extent * s.g.extent_frames;
    for (u32 f = first; plan.live && !out.full() && f < first + s.g.extent_frames && f < s.ready; f++) {
        if (frame::state(s.frames[f].word.load_acquire()) != LIVE) continue;
        if (!lock_memory(s)) return false;
        u32 g = s.free.lowest();
        if (g != NONE) {
            s.free.remove(g);
            s.frames[g].word.store_release(frame::busy(s.me));
        }
        unlock_memory(s);
        if (g == NONE) break;
        BP_POINT("compact.target");
        bool ours;
        if (!move_page(s, intent, f, g, ours)) {
            free_frame(s, g);
            if (s.g.huge_pages) break;  // the extent cannot be given back
            continue;
        }
        done.moved++;
        if (ours && !out.push(f)) free_frame(s, f);  // `out` has room: see above
    }
    return true;
}

// The rest of phase 3: gives back runs of free frames, because less than an extent is missing, or because extents with
// pinned frames could not be emptied.
inline Status give_back_runs(Segment& s, u64 want, Reason reason, Vec<u32>& out, Reclaimed& done) {
    for (u32 tries = 0; done.frames < want && tries < 1000; tries++) {
        if (!lock_memory(s)) return Status::INTERRUPTED;
        u32 end = s.ready;
        while (done.frames + out.size() < want && !out.full()) {
            u32 f = s.free.highest_below(end);
            if (f == NONE) break;
            claim_free(s, f / s.g.extent_frames, want - done.frames - out.size(), out);
            end = f / s.g.extent_frames * s.g.extent_frames;
        }
        unlock_memory(s);
        if (out.empty()) break;
        release_frames(s, out, reason, done);
        if (done.refused) break;
    }
    return Status::OK;
}

// Phases 2 and 3: empties whole extents and gives them back, at most `want` frames; then single runs. Memory for the
// list of frames is allocated first: NO_MEMORY means that nothing has changed.
inline Status give_back(Segment& s, Intent& intent, u64 want, Reason reason, Reclaimed& done) {
    Vec<ExtentPlan> plans;
    Vec<u32> out;
    size_t step = s.g.huge_pages ? 1 : EXTENTS_PER_STEP;
    if (!plan_extents(s, want, plans) || !out.reserve(std::min(step * s.g.extent_frames, size_t(s.ready))))
        return Status::NO_MEMORY;
    for (size_t i = 0; i < plans.size(); i += step) {
        size_t end = std::min(i + step, plans.size());
        if (!lock_memory(s)) return Status::INTERRUPTED;
        for (size_t k = i; k < end; k++) claim_free(s, plans[k].extent, s.g.extent_frames, out);
        unlock_memory(s);
        BP_POINT("compact.claimed");
        bool whole = true;
        for (size_t k = i; whole && k < end; k++) whole = empty_extent(s, intent, plans[k], out, done);
        // Frames that became free meanwhile, and are not wanted, remain in the pool.
        if (whole && !s.g.huge_pages && done.frames + out.size() > want) {
            size_t wanted = size_t(want - std::min(want, done.frames));
            free_frames(s, &out[wanted], out.size() - wanted);
            out.cut(wanted);
        }
        release_frames(s, out, reason, done);
        if (!whole) return Status::INTERRUPTED;
        if (done.refused) return Status::OK;  // the kernel would refuse the next ones too
        if (s.interrupted && s.interrupted(s)) return Status::INTERRUPTED;
    }
    return s.g.huge_pages ? Status::OK : give_back_runs(s, want, reason, out, done);
}

// How many frames a shrink gives back in a pool with huge pages: whole extents. With `evict` as many as `want` frames
// need, but no more than the extents without a pin have: otherwise pages would be evicted in vain. Else as many as they
// fill, and all free frames but those of one extent: what earlier drops have left over.
inline Status want_whole(Segment& s, bool evict, u64& want) {
    u64 per = s.g.extent_frames, most = 0;
    if (!evict) {
        if (!lock_memory(s)) return Status::INTERRUPTED;
        u64 free = s.free.size();
        unlock_memory(s);
        want = std::max(want, free - std::min(free, per));
        want -= want % per;
        return Status::OK;
    }
    want = round_up(want, per);
    s.has_frame(s.g.max_frames - 1);
    for (u32 extent = 0; most < want && extent * per < s.ready; extent++) {
        ExtentPlan p = look_at_extent(s, extent);
        if (!p.others) most += p.free + p.live;
    }
    want = std::min(want, most);
    return Status::OK;
}

// Gives the memory of `want` frames back to the kernel; with `evict`, it evicts pages until so many are free.
inline Status shrink(Segment& s, u64 want, Reason reason, bool evict, Reclaimed& done) {
    OpSlot op(s);
    if (!op.valid()) return Status::INTERRUPTED;
    if (s.g.huge_pages && want_whole(s, evict, want) != Status::OK) return Status::INTERRUPTED;
    if (evict) {
        sweep_retired(s);
        if (!lock_memory(s)) return Status::INTERRUPTED;
        u64 free = s.free.size();
        unlock_memory(s);
        bool all = reason != BUDGET;
        if (free < want && !evict_for_shrink(s, op.intent(), want - free, all, done.tally)) return Status::INTERRUPTED;
    }
    return give_back(s, op.intent(), want, reason, done);
}

// Gives the memory back that the kernel has given to holes unasked: mlockall(MCL_CURRENT), in a process that has the
// segment mapped, gives memory to all that is mapped. A hole is BUSY(me) while it is punched, like a frame whose memory
// is given back.
inline Status punch_holes(Segment& s) {
    if (!lock_growth(s)) return Status::INTERRUPTED;  // so that no client begins to use memory beyond the counts
    repair_growth(s);
    punch_slots(s);
    auto punch = [&](u64 from, u64 to) {
        if (from < to) s.punch(from, to - from);
    };
    punch(round_up(s.g.tops_at + s.g.tops_bytes(), s.g.os_page), s.g.data_at);
    if (s.look_at_ready()) punch(s.page_offset(s.ready), s.page_offset(s.g.max_frames));
    release(s, s.header->growth);
    for (u32 f = 0; f < s.ready;) {
        if (!lock_memory(s)) return Status::INTERRUPTED;
        u32 first = f, n = 0;
        for (u32 looks = 0; f < s.ready && looks < LOOK_BATCH; looks++, f++) {
            bool hole = s.holes.has(f) && frame::state(s.frames[f].word.load_acquire()) == HOLE;
            if (!hole && n) break;
            if (!hole) continue;
            if (!n++) first = f;
            s.holes.remove(f);
            s.frames[f].word.store_release(frame::busy(s.me));
        }
        s.header->resident.store_relaxed(s.header->resident.load_relaxed() + n);
        unlock_memory(s);
        if (!n) continue;
        s.punch(s.page_offset(first), u64(n) << s.g.page_shift);
        if (lock_memory_briefly(s)) {
            for (u32 i = first; i < first + n; i++) hole_locked(s, i);
            unlock_memory(s);
        } else {
            give_back_later(s, first, n, false);
        }
        if (s.interrupted && s.interrupted(s)) return Status::INTERRUPTED;
    }
    return Status::OK;
}

// Gives `frames` free frames back, which had pages of a removed space. If this process has no memory for the list of
// frames, they remain in the pool.
inline void give_back_freed(Segment& s, u32 frames) {
    Reclaimed done;
    shrink(s, frames, CLIENT_EXIT, false, done);
}

// Evicts pages of a space until it has no more frames than its limit, as far as they can be evicted.
inline Status fit_share(Segment& s, u32 index) {
    OpSlot op(s);
    if (!op.valid()) return Status::INTERRUPTED;
    PoolEnv env{s, &op.intent(), NONE};
    Hand hand;
    for (bool done = false; !done;) {
        if (!lock_memory(s)) return Status::INTERRUPTED;
        Share* share = share_of(s, s.spaces[index].first_entry.load_relaxed());
        u32 f = NONE, limit = share ? share->limit.load_relaxed() : 0;
        done = !limit || share_frames(share->frames.load_seq_cst()) <= limit || hand.over;
        if (!done && take_own(s, env, *share, hand, f) == Step::TAKEN) free_locked(s, f);
        unlock_memory(s);
    }
    return Status::OK;
}

// Evicts the clean pages that were not used since tick `before`. Their frames become FREE, and `out` counts them.
inline Status evict_idle(Segment& s, u32 before, u64& out) {
    OpSlot op(s);
    if (!op.valid()) return Status::INTERRUPTED;
    PoolEnv env{s, &op.intent(), NONE};
    s.has_frame(s.g.max_frames - 1);
    for (u32 f = 0; f < s.ready;) {
        if (!lock_memory(s)) return Status::INTERRUPTED;
        for (u32 i = 0, end = f + LOOK_BATCH; i < EVICT_BATCH && f < s.ready && f < end; f++) {
            u64 w = s.frames[f].word.load_acquire();
            u32 page = frame::page(w);
            if (frame::state(w) != LIVE || int(s.frames[f].touched.load_relaxed() - before) >= 0 || !s.has_page(page))
                continue;
            i++;
            if (entry::is_resident_in(s.entries[page].load_acquire(), f) &&
                env.evict(page, Ghost::COLD, s.header->policy.now)) {
                free_locked(s, f);
                out++;
            }
        }
        unlock_memory(s);
        if (s.interrupted && s.interrupted(s)) return Status::INTERRUPTED;
    }
    s.counters().evictions_reclaimed.add_relaxed(out);
    return Status::OK;
}

}  // namespace bp
