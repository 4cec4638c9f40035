// Evicting a page: the replacement policy's Env for the pool. Everything here needs the memory lock.
//
//   entry   RESIDENT(f) -> EVICTING(f, me) -> ABSENT, with a ghost
//           EVICTING(f, me) -> RESIDENT(f)     a client pins the page
//   frame   LIVE -> BUSY(me)
//
// A resident page is in a ring, or it is dirty and was *set aside* by a search that met it. The entry has both the
// dirty bit and the ring, so one CAS checks or changes both.
#pragma once

#include "policy/policy.h"
#include "protocol/entry.h"
#include "protocol/pin.h"
#include "protocol/probes.h"
#include "protocol/shares.h"

namespace bp {

struct EvictTally {
    u32 pinned = 0, dirty = 0, busy = 0;
};

// The Env through which the policy reads and changes the pool.
struct PoolEnv {
    Segment& s;
    Intent* intent;    // of the operation that evicts; null if no page is evicted through this Env
    u32 wanted;        // the page that the frame is for
    u32 frame = NONE;  // the frame of the page evicted last
    EvictTally tally{};
    u64 looks = 0;         // how many elements of the rings were examined
    bool reserves = true;  // false: pages within the reserve of their space are evicted, too

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
        return {false, u32(s.frames[entry::frame(e)].count.load_relaxed() & REFERENCES)};
    }

    void set_count(u32 page, u32 n) {
        u64 e = s.entries[page].load_acquire();
        if (entry::state(e) != RESIDENT || !s.has_frame(entry::frame(e))) return;
        auto& count = s.frames[entry::frame(e)].count;
        count.store_relaxed(u8((count.load_relaxed() & SAMPLED) | n));
    }

    void set_ring(u32 page, Ring r) {
        change_entry(s.entries[page], [r](u64 e) { return entry::with_ring(e, r); });
    }

    void count_eviction(u32 f) {
        Counters& counters = s.counters();
        int age = int(s.tick() - s.frames[f].touched.load_relaxed());
        if (age > 0) counters.eviction_ticks.add_relaxed(u64(age));
        if (s.frames[f].count.load_relaxed() & AHEAD) counters.prefetched_unused.add_relaxed(1);
    }

    // Is the page within the reserve of its space? Then the policy goes on to the next page.
    bool is_kept(u32 page) { return reserves && is_reserved(s, page, wanted); }

    bool evict(u32 page, Ghost kind, u32 stamp) {
        Atomic<u64>& word = s.entries[page];
        u64 e = word.load_acquire();
        u32 f = entry::frame(e);
        if (entry::state(e) != RESIDENT || entry::owner(e) || entry::flusher(e) || !s.has_frame(f))
            return tally.busy++, false;
        if (e & entry::DIRTY) return tally.dirty++, false;
        // 1. Close the entry, so that no new pin can succeed.
        u32 before = intent->op.load_relaxed();
        if (before == u32(Op::NONE)) {  // no load needs the frame: clear what an earlier operation left in the intent
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
        // 2. Check the pins.
        if (gone && any_pin(s, f)) {
            change_entry(word,
                         [](u64 w) { return entry::with_owner(entry::with_state(w, RESIDENT), 0) & ~entry::WAITED; });
            tally.pinned++;
            gone = false;
        }
        if (gone) {
            // 3. Take the frame; the page is evicted.
            u64 live = frame::live(page);
            Counted counted = counted_now(s, page);
            if (s.frames[f].word.cas_seq_cst(live, frame::busy(s.me, wanted))) {
                BP_POINT("evict.taken");
                change_entry(word, [&](u64 w) { return ghost_word(w, kind, stamp); });
                BP_POINT("evict.absent");
                uncount(s, counted);
                frame = f;
                count_eviction(f);
                probe_evict(s, page);
            } else {
                gone = false;  // a damaged segment, which check() reports: leave the page
                tally.busy++;  // every failed eviction is counted: the callers' search loops stop on this total
                change_entry(
                    word, [](u64 w) { return entry::with_owner(entry::with_state(w, RESIDENT), 0) & ~entry::WAITED; });
            }
        }
        intent->op.store_release(before);
        return gone;
    }

    // Sets a dirty page aside, unless it has a writer. This is one CAS of the entry, so the page is still dirty then. A
    // flush that finds it set aside takes the memory lock before it makes the page clean (writeback.h).
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

}  // namespace bp
