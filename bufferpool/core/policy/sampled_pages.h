// A table of sampled pages, with the state of each page in N miniature pools. The advice's shadows
// (shadows.h) and the duel of modes (duelling.h) use it. A row has one page:
//
//   page:32 | state of the page in each miniature pool, 32 bits each:
//
//     31  30 29       28                    8 7         2 1     0
//    +------+--------+-----------------------+-----------+-------+
//    | st   | ghost  |  stamp (29 bits, ghosts) / tag:8 <<8 | count |
//    +------+--------+-----------------------+-----------+-------+
//      st  0 never seen, 1 in the cold ring, 2 in the hot ring, 3 a ghost
//
// The rows are in the segment, and may be damaged: a value is checked before it is used as an index,
// and every loop is bounded by the size of a table.
#pragma once

#include <cstring>

#include "layout/advice.h"
#include "policy/policy.h"

namespace bp {

// How a sampled page was referenced. ONCE: it was read ahead or scanned. UNCOUNTED: a miss is not counted.
enum SampleKind : u32 { SAMPLE_ONCE = 1, SAMPLE_UNCOUNTED = 2 };

namespace state_word {
constexpr u32 SHIFT = 30, HOT_GHOST = 1u << 29, STAMP = HOT_GHOST - 1;
enum { NEVER = 0, COLD = RING_COLD, HOT = RING_HOT, EVICTED = 3 };

constexpr u32 state(u32 w) { return w >> SHIFT; }
constexpr bool is_resident(u32 w) { return state(w) == COLD || state(w) == HOT; }
constexpr u32 count(u32 w) { return w & 3; }
constexpr u32 tag(u32 w) { return w >> 8 & 255; }
constexpr u32 resident(u32 ring, u32 count, u32 tag) { return ring << SHIFT | tag << 8 | count; }
constexpr u32 ghost(Ghost kind, u32 stamp) {
    return u32(EVICTED) << SHIFT | (kind == Ghost::HOT ? HOT_GHOST : 0) | (stamp & STAMP);
}
constexpr Ghost kind(u32 w) { return state(w) != EVICTED ? Ghost::NONE : w & HOT_GHOST ? Ghost::HOT : Ghost::COLD; }
// The age of a ghost: in misses for a cold one, in evictions from the hot ring for a hot one.
constexpr u32 age(u32 w, const PolicyState& s) { return ((w & HOT_GHOST ? s.hev : s.now) - w) & STAMP; }
constexpr u32 stamp(u32 w, const PolicyState& s) { return ((w & HOT_GHOST ? s.hev : s.now) - age(w, s)) & STAMP_MASK; }
}  // namespace state_word

// The policy's Env for miniature pool `i`; a "page" is the number of a row.
template <class Row>
struct MiniatureEnv {
    Row* rows;
    u32 n_rows, i, capacity_;
    u64* rings[2];

    u64* slots(Ring r) { return rings[r == RING_HOT]; }
    u32 capacity() const { return capacity_; }
    Peek peek(u32 row, Ring r) {
        if (row >= n_rows) return {true, 0};
        u32 w = rows[row].state[i];
        return {state_word::state(w) != u32(r), state_word::count(w)};
    }
    void set_count(u32 row, u32 n) {
        if (row < n_rows) rows[row].state[i] = (rows[row].state[i] & ~3u) | n;
    }
    void set_ring(u32 row, Ring r) {
        if (row < n_rows)
            rows[row].state[i] = (rows[row].state[i] & ~(3u << state_word::SHIFT)) | u32(r) << state_word::SHIFT;
    }
    bool evict(u32 row, Ghost kind, u32 stamp) {
        rows[row].state[i] = state_word::ghost(kind, stamp);  // peek has bounded it
        return true;
    }
    bool set_aside(u32, Ring) { return false; }
};

// A miniature pool of `frames` frames, whose state and rings are in the segment.
template <class Row>
class Miniature {
    MiniatureEnv<Row> env_;
    PolicyState& state_;
    u32 frames_;
    Alr<MiniatureEnv<Row>> policy_;

public:
    Miniature(PolicyState& state, u32 frames, const MiniatureEnv<Row>& env)
        : env_(env), state_(state), frames_(frames), policy_(state, env_) {}

    Miniature(const Miniature&) = delete;  // the policy refers to the environment beside it

    // Sets the mode and the size.
    void configure(u32 mode) {
        if (state_.frames != frames_) policy_.set_frames(frames_);
        if (state_.mode != mode) policy_.set_mode(mode, mode == MODE_LOOP ? frames_ / 50 : state_.cold_target);
    }

    // Evicts pages until `frames_` frames suffice.
    void fit() {
        for (u32 n = 0; n < 2 * env_.capacity() && state_.cold.count + state_.hot.count > frames_; n++)
            policy_.evict(4 * env_.capacity());
    }

    void purge() { policy_.purge(); }

    // Counts a reference to a page. True: the page was not resident, and is now.
    bool reference(u32 row, u32 kind) {
        u32& w = env_.rows[row].state[env_.i];
        if (!state_word::is_resident(w)) return load(row, kind), true;
        u32 tag = policy_.tag();
        if (!(kind & SAMPLE_ONCE) && state_word::count(w) < 3 && state_word::tag(w) != tag)
            w = state_word::resident(state_word::state(w), state_word::count(w) + 1, tag);
        return false;
    }

private:
    void load(u32 row, u32 kind) {
        u32& w = env_.rows[row].state[env_.i];
        Ring ring = policy_.miss(state_word::kind(w), state_word::stamp(w, state_), kind & SAMPLE_ONCE);
        while (state_.cold.count + state_.hot.count >= frames_)
            if (policy_.evict(4 * env_.capacity()) == NONE) break;
        w = state_word::resident(RING_NONE, 0, policy_.tag());
        policy_.insert(row, ring);
    }
};

// The rows, with an index of open addressing over them.
template <class Row>
class SampledPages {
    Row* rows_;
    u16* index_;
    u32 n_rows_, slots_;
    u32& first_free_;

public:
    SampledPages(Row* rows, u32 n_rows, u16* index, u32 slots, u32& first_free)
        : rows_(rows), index_(index), n_rows_(n_rows), slots_(slots), first_free_(first_free) {}

    void clear() {
        memset(index_, 0, slots_ * 2);
        for (u32 r = 0; r < n_rows_; r++) rows_[r] = {NONE, {r + 1 < n_rows_ ? r + 1 : NONE}};
        first_free_ = 0;
    }

    u32 find(u32 page) const {
        u32 mask = slots_ - 1, at = page_hash(page);
        for (u32 probe = 0; probe < slots_; probe++) {
            u32 row = index_[(at + probe) & mask];
            if (row == 0) return NONE;
            if (row <= n_rows_ && rows_[row - 1].page == page) return row - 1;
        }
        return NONE;
    }

    bool is_full() const { return first_free_ >= n_rows_; }

    // Adds a row for a page; NONE if all rows are used.
    u32 add(u32 page) {
        u32 row = first_free_;
        if (row >= n_rows_) return NONE;
        first_free_ = rows_[row].state[0];
        rows_[row] = {page, {}};
        link(row);
        return row;
    }

    // Frees the rows for which `keeps(row)` is false, and rebuilds the index.
    template <class Keeps>
    void retain(Keeps keeps) {
        for (u32 r = 0; r < n_rows_; r++)
            if (rows_[r].page != NONE && !keeps(rows_[r])) rows_[r].page = NONE;
        first_free_ = NONE;
        memset(index_, 0, slots_ * 2);
        for (u32 r = n_rows_; r-- > 0;) {
            if (rows_[r].page != NONE) {
                link(r);
                continue;
            }
            rows_[r].state[0] = first_free_;
            first_free_ = r;
        }
    }

    // Frees the rows of pages that are resident in none of the `n` miniature pools, and whose ghosts are all older than
    // `ages` times the frames of their pool.
    void drop_older(u32 ages, const PolicyState* pools, u32 n) {
        retain([&](const Row& row) {
            bool keep = false;
            for (u32 i = 0; i < n && !keep; i++) {
                u32 w = row.state[i];
                keep = state_word::is_resident(w) ||
                       (state_word::state(w) == state_word::EVICTED &&
                        state_word::age(w, pools[i]) < u64(ages) * pools[i].frames);
            }
            return keep;
        });
    }

    // Frees at least an eighth of the rows, the oldest ghosts first; false if too many are resident.
    bool purge(const PolicyState* pools, u32 n) {
        for (u32 ages : {5, 2, 1, 0}) {
            drop_older(ages, pools, n);
            u32 free = 0;
            for (u32 r = first_free_; r < n_rows_ && free < n_rows_ / 8; r = rows_[r].state[0]) free++;
            if (free >= n_rows_ / 8) return true;
        }
        return false;
    }

private:
    void link(u32 row) {
        u32 mask = slots_ - 1, at = page_hash(rows_[row].page);
        for (u32 probe = 0; probe < slots_; probe++) {
            u16& slot = index_[(at + probe) & mask];
            if (slot) continue;
            slot = u16(row + 1);
            return;
        }
    }
};

}  // namespace bp
