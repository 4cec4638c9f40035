// The replacement policy: ALR, two rings with an adaptive split.
//
// The policy decides, and an Env executes its decisions: the Env of the pool (protocol/evict.h), of a miniature pool
// (sampled_pages.h), or of the simulator. An Env has:
//
//   Peek  peek(page, ring)        `gone` when the page's entry no longer names this
//                                 ring, else the page's reference count (0..MAX)
//   void  set_count(page, n)      stores the reference count
//   void  set_ring(page, ring)    stores in the page's entry which ring has its element
//   bool  evict(page, kind, stamp)  evicts the page, leaving a ghost; false
//                                 when it cannot be evicted now (pinned, dirty, in use)
//   bool  is_kept(page)           optional: true if the page must not be evicted, because its space has a reserve; the
//                                 policy moves it to the tail of its ring
//   bool  set_aside(page, ring)   clears the ring in the page's entry if the page must be flushed or
//                                 dropped first; bring_back() is called when it can be evicted
//   u64*  slots(ring)             the ring's elements
//   u32   capacity()              how many elements have memory; a ring may use fewer (see extend_ring)
//
// ALR: new pages enter the cold ring; pages referenced again move to
// the hot ring if their recency is better than that of the oldest hot page (the
// test of LIRS, Jiang and Zhang 2002); an evicted page leaves a ghost that records
// when it was evicted, and a miss on a ghost moves the split between the rings (as
// in ARC, Megiddo and Modha 2003). Both rings are FIFO with reinsertion (as in
// S3-FIFO, Yang et al. 2023), so a hit moves no element: it only raises a two-bit
// count, at most once in a tenth of the pool's turnover. A scan passes
// through the cold ring and does not change the hot ring.
//
// The split follows the number of hits that a larger cold ring, or a larger hot ring, would have had: a miss on a ghost
// counts for the ghost's ring if that ring would still have the page if it were larger by WINDOW. For a ghost of
// the hot ring this is measured by the number of evictions from that ring since its own. For a ghost of the cold ring
// it is measured in elements: the stamps count misses, which also fill the hot ring, so they are divided by the misses
// per element of the cold ring. If the cold ring has more than half of the pool, most pages are used for a while and
// then never again, so a page becomes hot only after two references.
//
// This is the adaptive mode. It adapts slowly, or not at all, to two patterns of references. So there are two more
// modes, and a duel between miniature pools chooses one (duelling.h): MODE_RECENCY has the cold ring alone, and keeps
// what was used last; MODE_LOOP has a small cold ring, and a split that does not move.
//
// Everything here runs under the memory lock. After a death the rings are
// repaired from the entries: an element is valid only while its page's entry
// names that ring, so an element is written before the entry and removed after it.
#pragma once

#include <initializer_list>

#include "layout/policy_state.h"

namespace bp {

enum class Ghost : u32 { NONE = 0, COLD = 1, HOT = 2 };

// Extends a ring's memory from `was` to `now` elements; every new element is GAP already. If the ring wraps around, the
// new gaps lie between its two parts, and count as elements until they reach the head. Capacity and count change by one
// store, so that a death leaves the old ring or the new one.
inline void extend_ring(RingState& q, u32 was, u32 now) {
    using u64_alias [[gnu::may_alias]] = u64;
    u32 gaps = u64(q.head) + q.count > was ? now - was : 0;
    __atomic_store_n(reinterpret_cast<u64_alias*>(&q.count), u64(now) << 32 | (q.count + gaps), __ATOMIC_RELEASE);
    q.gaps += gaps;
}

struct Peek {
    bool gone;
    u32 count;
};

// The state of a search for victims over several calls of evict(). Each call, and so each hold
// of the memory lock, is short, but the search gives up only when no page of the rings could be evicted.
struct Search {
    u32 met[3] = {};    // by ring: consecutive pages that could not be evicted
    u64 moves = 0;      // moves to a tail since the last victim
    bool over = false;  // no page can be evicted
};

template <class Env>
class Alr {
    static constexpr u32 COUNT_MAX = 3;  // the largest reference count of a page
    static constexpr u32 SKIP = 2;       // the most second chances that one call of hot_ok() gives
    static constexpr u32 GONE = 32;      // the most stale elements that a miss removes from a ring
    static constexpr u32 UNITS = 10;     // units of time (tags) in a turnover of the pool
    static constexpr u32 WINDOW = 10;    // how much larger the ring is that a ghost votes for, in percent of the pool
    // after so many pages of one ring that cannot be evicted, a search turns to the other ring
    static constexpr u32 TURN = 16;
    // the most passes over the rings in a search: each pass reduces a page's reference count by one
    static constexpr u32 ROUNDS = 8;
    PolicyState& s_;
    Env& env_;
    u32 capacity_[2];  // cold, hot

public:
    // The state may be damaged: values that are used as indexes are bounded first.
    Alr(PolicyState& s, Env& env) : s_(s), env_(env) {
        u32 most = env.capacity();
        for (Ring r : {RING_COLD, RING_HOT}) {
            RingState& q = ring(r);
            u32 n = capacity(r) = q.capacity && q.capacity < most ? q.capacity : most;
            if (q.head >= n) q.head = 0;
            if (q.count > n) q.count = n;
            if (q.gaps > q.count) q.gaps = 0;
        }
    }

    static constexpr u32 count_max() { return COUNT_MAX; }

    // The byte that a hit compares with the page's tag: a new one every 0.1 C misses.
    u8 tag() const {
        u32 unit = s_.frames / UNITS;
        return u8(s_.now / (unit ? unit : 1));
    }

    void set_frames(u32 frames) {
        bool fresh = s_.frames == 0;
        s_.frames = frames;
        if (fresh) s_.cold_target = s_.frames / 50;
        bound_target();
    }

    // Sets the mode, and the cold ring's target size for it.
    void set_mode(u32 mode, u32 cold_target) {
        s_.mode = mode;
        s_.cold_target = cold_target;
        bound_target();
    }
    u32 mode() const { return s_.mode < MODES ? s_.mode : u32(MODE_ADAPTIVE); }

    // The frames that the two rings share: the budget without the pages set aside.
    u32 shared() const { return s_.frames > s_.aside ? s_.frames - s_.aside : 1; }

    // Handles a miss on a page with this ghost; returns the ring for the page. `once`: the page is read ahead or
    // scanned, so it cannot become hot.
    Ring miss(Ghost ghost, u32 stamp, bool once) {
        s_.now = (s_.now + 1) & STAMP_MASK;
        i64 step = 1 + s_.frames / 1000, window = i64(s_.frames) * WINDOW / 100;
        if (mode() != MODE_ADAPTIVE) {
            // Ghosts do not vote: the mode fixes the split.
        } else if (ghost == Ghost::COLD) {
            drop_gone(RING_COLD);
            if (missed_cold_by(stamp, window)) move_split(step);
        } else if (ghost == Ghost::HOT && stamp_diff(s_.hev, stamp) <= window) {
            move_split(-step);
        }
        if (once || mode() == MODE_RECENCY) return RING_COLD;
        bool hot = ghost == Ghost::NONE ? pages(s_.hot) < hot_target() : hot_ok(stamp, ghost == Ghost::COLD);
        return hot ? RING_HOT : RING_COLD;
    }

    // Adds a page after a miss, at the tail of the ring that miss() returned.
    void insert(u32 page, Ring ring) {
        push(ring, page, s_.now);
        env_.set_ring(page, ring);
    }

    // Searches for a victim for at most `max_steps` steps; returns its page, or NONE when the steps are used up or the
    // search is over. After TURN pages of one ring that cannot be evicted it turns to the other, so that a ring of such
    // pages does not hide the other's victims. Pages beyond the cold ring's target that cannot be evicted move to the
    // hot ring, so that the next search does not meet them first.
    u32 evict(Search& search, u32 max_steps) {
        u32 stuck = 0;
        for (u32 step = 0; step < max_steps; step++) {
            bool cold_done = search.met[RING_COLD] >= s_.cold.count, hot_done = search.met[RING_HOT] >= s_.hot.count;
            search.over = (cold_done && hot_done) || search.moves > ROUNDS * (u64(s_.cold.count) + s_.hot.count);
            if (search.over) return NONE;
            bool hot_turn = (pages(s_.hot) > hot_target()) != (stuck / TURN % 2 == 1);
            Ring r = cold_done || (hot_turn && !hot_done) ? RING_HOT : RING_COLD;
            u64 e = at(r, 0);
            u32 page = element_page(e), stamp = element_stamp(e);
            Peek p = env_.peek(page, r);
            if (p.gone) {
                pop(r);
            } else if (p.count >= (r == RING_HOT ? 1 : cold_threshold())) {
                env_.set_count(page, r == RING_HOT ? p.count - 1 : 0);
                bool hot = r == RING_HOT || (mode() != MODE_RECENCY && hot_ok(stamp, true));
                Ring to = hot ? RING_HOT : RING_COLD;
                move(r, to, page, s_.now);
                search.moves++;
                search.met[RING_COLD] = search.met[RING_HOT] = 0;
            } else if (is_kept(page)) {
                move(r, r, page, stamp);
                search.moves++;
                search.met[r]++;
                stuck++;
            } else if (env_.evict(page, r == RING_HOT ? Ghost::HOT : Ghost::COLD, r == RING_HOT ? s_.hev : stamp)) {
                pop(r);
                if (r == RING_HOT) s_.hev = (s_.hev + 1) & STAMP_MASK;
                search.moves = 0;
                return page;
            } else if (env_.set_aside(page, r)) {
                pop(r);
                s_.aside++;
            } else {
                Ring to = search.met[r] >= TURN ? RING_HOT : r;
                move(r, to, page, to == r ? stamp : s_.now);
                search.moves++;
                search.met[to]++;
                stuck++;
            }
        }
        return NONE;
    }

    u32 evict(u32 max_steps) {
        Search search;
        return evict(search, max_steps);
    }

    // Adds a page that was set aside and is now, or will be, clean: the rings treat it as a new page.
    void bring_back(u32 page) {
        insert(page, RING_COLD);
        forget_aside();
    }

    // Counts that a page that was set aside has been dropped.
    void forget_aside() { s_.aside -= s_.aside > 0; }

    // Removes every stale element, whose page's entry no longer names the ring. Bounded by the capacity; needed when
    // many pages were dropped.
    void purge() {
        for (Ring r : {RING_COLD, RING_HOT}) {
            u32 n = ring(r).count, kept = 0;
            for (u32 i = 0; i < n; i++) {
                u64 e = at(r, i);
                if (!env_.peek(element_page(e), r).gone) slot(r, kept++) = e;
            }
            set_count(r, kept);
        }
    }

    // Replaces the elements of the pages `first` to `end` - 1 by gaps. It examines at most n slots of the ring's
    // memory, from slot `from` on, and returns the slot at which the next call continues; 0: the ring is done.
    u32 forget(Ring r, u32 from, u32 n, u64 first, u64 end) {
        RingState& q = ring(r);
        if (from >= capacity(r)) return 0;
        u32 stop = capacity(r) - from > n ? from + n : capacity(r);
        for (; from < stop; from++) {
            u32 i = from >= q.head ? from - q.head : from + capacity(r) - q.head;
            u64& e = env_.slots(r)[from];
            if (i >= q.count || e == GAP || element_page(e) < first || element_page(e) >= end) continue;
            e = GAP;
            q.gaps++;
        }
        return stop < capacity(r) ? stop : 0;
    }

    // Cuts a ring to its first n elements, none of which is a gap.
    void set_count(Ring r, u32 n) {
        ring(r).count = n;
        ring(r).gaps = 0;
    }

    Env& env() { return env_; }
    RingState& ring(Ring r) { return r == RING_HOT ? s_.hot : s_.cold; }
    u64 at(Ring r, u32 i) { return slot(r, i); }
    void put(Ring r, u32 i, u64 e) { slot(r, i) = e; }

private:
    bool is_kept(u32 page) {
        if constexpr (requires { env_.is_kept(page); }) return env_.is_kept(page);
        else return false;
    }
    u32& capacity(Ring r) { return capacity_[r == RING_HOT]; }
    static u32 pages(const RingState& q) { return q.count > q.gaps ? q.count - q.gaps : 0; }

    u32 hot_target() const {
        return mode() != MODE_RECENCY && shared() > s_.cold_target ? shared() - s_.cold_target : 0;
    }

    // The reference count at which a page of the cold ring is kept.
    u32 cold_threshold() const { return mode() != MODE_RECENCY && s_.cold_target > shared() / 2 ? 2 : 1; }

    // Would a cold ring with `window` more elements still have the page that was added at `stamp`?
    bool missed_cold_by(u32 stamp, i64 window) {
        u32 head = s_.cold.count ? element_stamp(at(RING_COLD, 0)) : s_.now;
        i64 elements = pages(s_.cold) ? pages(s_.cold) : 1, misses = i64(stamp_diff(s_.now, head)) + 1;
        return i64(stamp_diff(head, stamp)) * elements <= window * (misses > elements ? misses : elements);
    }

    void move_split(i64 by) {
        i64 target = i64(s_.cold_target) + by;
        s_.cold_target = target > 0 ? u32(target) : 0;
        bound_target();
    }

    void bound_target() {
        u32 low = shared() / 100, high = u32(u64(shared()) * 95 / 100);
        if (low < 1) low = 1;
        if (s_.cold_target > high) s_.cold_target = high;
        if (s_.cold_target < low) s_.cold_target = low;
    }

    // May a page with this stamp become hot? First, referenced pages at the head of the hot ring get a second chance.
    // `known`: the stamp counts misses, as the stamps in the hot ring do; that of a hot ghost counts evictions.
    bool hot_ok(u32 stamp, bool known) {
        for (u32 i = 0; i < SKIP && s_.hot.count; i++) {
            u32 page = element_page(at(RING_HOT, 0));
            Peek p = env_.peek(page, RING_HOT);
            if (p.gone) {
                pop(RING_HOT);
                continue;
            }
            if (p.count == 0) break;
            env_.set_count(page, p.count - 1);
            move(RING_HOT, RING_HOT, page, s_.now);
        }
        if (pages(s_.hot) < hot_target()) return true;
        if (!known || s_.hot.count == 0) return false;
        u64 head = at(RING_HOT, 0);
        return env_.peek(element_page(head), RING_HOT).count == 0 && stamp_diff(stamp, element_stamp(head)) > 0;
    }

    // Removes at most GONE stale elements: after a drop of many pages the whole ring may be stale.
    void drop_gone(Ring r) {
        for (u32 i = 0; i < GONE && ring(r).count && env_.peek(element_page(at(r, 0)), r).gone; i++) pop(r);
    }

    u64& slot(Ring r, u32 i) {
        u64 k = u64(ring(r).head) + i;
        return env_.slots(r)[k < capacity(r) ? k : k - capacity(r)];
    }

    void push(Ring r, u32 page, u32 stamp) {
        if (ring(r).count >= capacity(r)) purge();
        if (ring(r).count >= capacity(r)) pop(r);  // only in a damaged pool: more pages than elements
        slot(r, ring(r).count) = element(page, stamp);
        ring(r).count++;
    }

    void pop(Ring r) {
        RingState& q = ring(r);
        q.gaps -= q.gaps > 0 && slot(r, 0) == GAP;
        q.head = q.head + 1 < capacity(r) ? q.head + 1 : 0;
        q.count--;
    }

    void move(Ring from, Ring to, u32 page, u32 stamp) {
        // first added, then removed: a death in between duplicates the element, and does not lose it
        push(to, page, stamp);
        if (from != to) env_.set_ring(page, to);
        pop(from);
    }
};

}  // namespace bp
