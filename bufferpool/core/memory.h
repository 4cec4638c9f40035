// Frames: taking one, freeing one, and what the memory lock protects: the free
// frames, the holes, the rings and the resident count. All of it can be rebuilt
// from frame states and entries, and rebuild() does, after an owner has died.
//
//   HOLE  -> BUSY(me)   plug      under the lock; the kernel is asked outside of it
//   FREE  -> BUSY(me)   take      under the lock
//   LIVE  -> BUSY(me)   evict     under the lock
//   BUSY  -> FREE       give      under the lock
//   OLD   -> BUSY(me)   settle    by whoever finds that no pin is left
#pragma once

#include "lock.h"

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
    u32 capacity() const { return s.g.ring_capacity; }

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
        return {false, s.frames[entry::frame(e)].count.load_relaxed()};
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
                change_entry(word, [](u64 w) { return entry::with_owner(entry::with_state(w, RESIDENT), 0) & ~entry::WAITED; });
            }
        }
        intent->op.store_release(before);
        return gone;
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
    // 1. Free frames, holes and the count of frames with memory.
    s.free.clear();
    s.holes.clear();
    u32 resident = 0;
    s.has_frame(s.g.max_frames - 1);
    for (u32 f = 0; f < s.ready; f++) {
        FrameState state = frame::state(s.frames[f].word.load_acquire());
        if (state == HOLE) s.holes.add(f); else resident++;
        if (state == FREE) s.free.add(f);
        s.frames[f].seen = 0;
    }
    s.header->resident.store_relaxed(resident);
    // 2. The rings: what still stands for its page stays, once.
    PoolEnv env{s, nullptr, NONE};
    Alr<PoolEnv> policy(s.header->policy, env);
    for (Ring r : {RING_COLD, RING_HOT}) {
        u32 n = policy.ring(r).count, kept = 0;
        for (u32 i = 0; i < n; i++) {
            u64 el = policy.at(r, i);
            u32 page = element_page(el);
            if (env.peek(page, r).gone) continue;
            u64 e = s.entries[page].load_acquire();
            if (entry::state(e) == RESIDENT && s.has_frame(entry::frame(e))) {
                u8& seen = s.frames[entry::frame(e)].seen;
                if (seen) continue;
                seen = 1;
            }
            policy.put(r, kept++, el);
        }
        policy.ring(r).count = kept;
    }
    // 3. Resident pages that no ring has.
    for (u32 f = 0; f < s.ready; f++) {
        u64 w = s.frames[f].word.load_acquire();
        u32 page = frame::page(w);
        if (frame::state(w) != LIVE || s.frames[f].seen || !s.has_page(page)) continue;
        u64 e = s.entries[page].load_acquire();
        if (entry::is_resident_in(e, f)) policy.insert(page, entry::ring(e) == RING_HOT ? RING_HOT : RING_COLD);
    }
}

// BUSY(me) -> FREE, under the lock.
inline void free_locked(Segment& s, u32 f) {
    s.frames[f].word.store_release(frame::free());
    s.free.add(f);
}

inline bool lock_memory(Segment& s, bool interruptible = true, u32 slices = ~0u) {
    Acquired a = acquire(s, s.header->memory, interruptible, slices);
    if (a == Acquired::INTERRUPTED) return false;
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

// OLD -> BUSY(me), if no pin is left. The readers that could still come have
// loaded a stale entry: their second load turns them away.
inline bool settle_old(Segment& s, u32 f) {
    u64 w = s.frames[f].word.load_seq_cst();
    if (frame::state(w) != OLD || s.any_pin(f)) return false;
    return s.frames[f].word.cas_seq_cst(w, frame::busy(s.me));
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

// ---- taking a frame ----------------------------------------------------------

// The segment's own data grows under the growth lock: memory first, then the
// count that says so. What is plugged and not counted was left by a dead owner
// (or a failure half-way): the kernel gets it back.
inline void repair_growth(Segment& s) {
    const Geometry& g = s.g;
    auto punch_beyond = [&](u64 at, u64 used, u64 end) {
        u64 first = round_up(at + used, g.os_page);
        if (first < end) prim::punch(s.fd, first, end - first);
    };
    u64 ready = s.header->frames_ready.load_acquire();
    if (ready > g.max_frames) ready = g.max_frames;
    punch_beyond(g.frames_at, ready * sizeof(FrameSlot), g.pins_at);
    for (u64 stripe = 0; stripe < STRIPES; stripe++) {
        u64 at = g.pins_at + stripe * g.stripe_bytes;
        punch_beyond(at, ready * g.stripe_clients * 2, at + g.stripe_bytes);
    }
    for (u64 i = 0, n = g.entry_chunks(); i < n;) {
        u64 end = i;
        while (end < n && !s.has_entry_chunk(end)) end++;
        if (end > i) prim::punch(s.fd, g.entries_at + i * g.os_page, (end - i) * g.os_page);
        i = end + 1;
    }
}

inline bool lock_growth(Segment& s) {
    Acquired a = acquire(s, s.header->growth);
    if (a == Acquired::INTERRUPTED) return false;
    if (a == Acquired::REPAIR) {
        repair_growth(s);
        repaired(s, s.header->growth);
    }
    return true;
}

// Entries with memory behind them for `pages` pages of a space. They keep it when
// the space is removed: a handle or an intent of a dead client may still lead there.
inline int plug_entries(Segment& s, SpaceSlot& slot, u64 pages) {
    if (!lock_growth(s)) return -EINTR;
    u64 unit = s.g.os_page / 8, ready = slot.entries_ready.load_acquire(), to = round_up(pages, unit);
    u64 first = slot.first_entry.load_relaxed();
    // A space that is being removed grows no more.
    u32 state = slot.extent.load_acquire() & CLOSED ? SPACE_CLOSING : slot.state.load_acquire();
    int r = 0;
    if (to > ready && first + to <= round_up(s.g.max_pages, unit) && (state == SPACE_LIVE || state == SPACE_OPENING)) {
        u64 from = (first + ready) / unit, end = (first + to) / unit;
        r = prim::plug(s.fd, s.g.entries_at + from * s.g.os_page, (end - from) * s.g.os_page);
        BP_POINT("entries.plugged");
        if (r == 0) {
            for (u64 i = from; i < end; i++) s.chunk_bits[i / 64].store_relaxed(s.chunk_bits[i / 64].load_relaxed() | u64(1) << (i % 64));
            slot.entries_ready.store_release(to);
        } else {
            repair_growth(s);
        }
    }
    release(s, s.header->growth);
    return r;
}

// More frame slots and pin rows, with memory behind them.
inline int grow_ready(Segment& s) {
    const Geometry& g = s.g;
    if (!lock_growth(s)) return -EINTR;
    u32 from = s.header->frames_ready.load_acquire();
    u32 to = from + ready_chunk(g) < g.max_frames ? from + ready_chunk(g) : g.max_frames;
    auto plug_rows = [&](u64 at, u64 size) {
        u64 first = round_up(from * size, g.os_page), end = round_up(to * size, g.os_page);
        return first < end ? prim::plug(s.fd, at + first, end - first) : 0;
    };
    int r = from < to ? plug_rows(g.frames_at, sizeof(FrameSlot)) : 0;
    for (u64 i = 0; i < STRIPES && r == 0 && from < to; i++) r = plug_rows(g.pins_at + i * g.stripe_bytes, u64(g.stripe_clients) * 2);
    BP_POINT("grow.plugged");
    if (r) {
        repair_growth(s);  // half of it may be there
    } else if (from < to) {
        lock_memory(s, false);
        for (u32 f = from; f < to; f++) s.holes.add(f);
        s.header->frames_ready.store_release(to);
        unlock_memory(s);
        s.has_frame(to - 1);
    }
    release(s, s.header->growth);
    return r;
}

// A run of holes becomes BUSY(me) with memory: one frame for the caller, the
// rest free. Called with the lock held; the kernel is asked without it.
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
    int r = prim::plug(s.fd, s.page_offset(first), u64(n) << s.g.page_shift);
    u32 got = n;
    if (r && n > 1) {  // less room than that: one frame will do
        prim::punch(s.fd, s.page_offset(first), u64(n) << s.g.page_shift);
        r = prim::plug(s.fd, s.page_offset(first), u64(1) << s.g.page_shift);
        got = r ? 0 : 1;
    } else if (r) {
        got = 0;
    }
    BP_POINT("plug.plugged");
    lock_memory(s, false);
    for (u32 i = n; i-- > 0;) {
        if (i >= got) hole_locked(s, first + i);
        else if (i > 0) free_locked(s, first + i);
    }
    return r;
}

struct FrameRequest {
    u32 page = NONE;     // the page to be loaded, NONE for a writer's frame
    bool once = false;   // read ahead or scanned
    EvictTally tally{};  // out: why pages could not go
};

constexpr u32 EVICT_STEPS = 128, DIRTY_STEPS = 256;

// A BUSY(me) frame with memory. `intent` covers the eviction that may be needed;
// for a load, the page's entry is LOADING(me).
inline Status take_frame(Segment& s, Intent& intent, FrameRequest& want, u32& out) {
    if (want.page == NONE && (out = take_spare(s)) != NONE) return Status::OK;
    bool no_space = false, counted = false;
    Ring ring = RING_NONE;
    PoolEnv env{s, &intent, want.page};
    if (!lock_memory(s)) return Status::INTERRUPTED;
    Alr<PoolEnv> policy(s.header->policy, env);
    u64 steps = 0;
    for (;;) {
        u32 budget = s.header->budget_frames.load_relaxed(), resident = s.header->resident.load_relaxed();
        if (s.header->policy.frames != budget) policy.set_frames(budget);
        if (want.page != NONE && !counted) {
            u64 e = s.entries[want.page].load_relaxed();
            ring = policy.miss(ghost_of(e), ghost_stamp(e), want.once);
            s.header->policy_tag.store_relaxed(policy.tag());
            counted = true;
        }
        // 1. A free frame.
        u32 f = s.free.lowest();
        if (f != NONE) {
            s.free.remove(f);
            u64 free = frame::free();
            if (!s.has_frame(f) || !s.frames[f].word.cas_seq_cst(free, frame::busy(s.me, want.page))) continue;  // a damaged set
            out = f;
            break;
        }
        // 2. A hole, while the budget has room.
        if (resident < budget && !no_space) {
            f = s.holes.lowest();
            if (f == NONE && s.header->frames_ready.load_relaxed() < s.g.max_frames) {
                unlock_memory(s);
                int r = grow_ready(s);
                if (r == -EINTR || !lock_memory(s)) return Status::INTERRUPTED;
                no_space = r != 0;
                continue;
            }
            if (f != NONE && (!s.has_frame(f) || s.frames[f].word.load_acquire() != frame::hole())) {
                s.holes.remove(f);  // a damaged set: there is no such frame
                continue;
            }
            if (f != NONE) {
                no_space = plug_run(s, f, budget - resident, want.page) != 0;
                if (no_space) continue;
                out = f;
                break;
            }
        }
        // 3. The frame of a page that can go.
        Victim v = policy.evict(EVICT_STEPS);
        if (v.page != NONE) {
            s.counters().evictions_recycled.add_relaxed(1);
            out = env.frame;
            break;
        }
        steps += EVICT_STEPS;
        u64 all = 4ull * (s.header->policy.cold.count + s.header->policy.hot.count) + EVICT_STEPS;
        if (!v.more || env.tally.dirty >= DIRTY_STEPS || steps > all) {
            unlock_memory(s);
            want.tally = env.tally;
            return no_space ? Status::NO_SPACE : Status::EXHAUSTED;
        }
        unlock_memory(s);  // let others in
        if (!lock_memory(s)) return Status::INTERRUPTED;
    }
    if (want.page != NONE && entry::ring(s.entries[want.page].load_relaxed()) == RING_NONE)
        policy.insert(want.page, ring);
    unlock_memory(s);
    return Status::OK;
}

}  // namespace bp
