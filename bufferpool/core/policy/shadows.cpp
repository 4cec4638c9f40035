// The shadows of advice.h: nine miniature pools over one table of sampled pages.
#include "policy/shadows.h"

#include <cstring>

namespace bp {

// ---- one page in one shadow ------------------------------------------------------

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
// How long ago, by the counter that the kind of ghost goes by.
constexpr u32 age(u32 w, const PolicyState& s) { return ((w & HOT_GHOST ? s.hev : s.now) - w) & STAMP; }
constexpr u32 stamp(u32 w, const PolicyState& s) { return ((w & HOT_GHOST ? s.hev : s.now) - age(w, s)) & STAMP_MASK; }
}  // namespace state_word

// What the policy sees of a shadow; a "page" is the number of a row.
struct ShadowEnv {
    AdviceRow* rows;
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

// ---- the rows --------------------------------------------------------------------

Shadows::Shadows(u8* at, u32 max_frames, u32 frames, const AdviceGeometry& g)
    : head_(*reinterpret_cast<Advice*>(at)),
      g_(g),
      max_frames_(max_frames),
      rows_(reinterpret_cast<AdviceRow*>(at + g.rows_at)),
      index_(reinterpret_cast<u16*>(at + g.index_at)) {
    auto ring = reinterpret_cast<u64*>(at + g.rings_at);
    for (u32 i = 0; i < SHADOWS; i++)
        for (u64*& r : rings_[i]) {
            r = ring;
            ring += g.capacity[i];
        }
    if (head_.frames == 0) reset(frames);
    prepare();
    set_frames(frames);
}

// What is kept for the time of one drain; bounded, because the area may be damaged.
void Shadows::prepare() {
    if (head_.frames < 1 || head_.frames > max_frames_) head_.frames = max_frames_;
    u32 shift = head_.shift.load_relaxed();
    if (shift < g_.shift || shift > 31) head_.shift.store_relaxed(shift = g_.shift);
    for (u32 i = 0; i < SHADOWS; i++) {
        frames_[i] = shadow_frames(head_.frames, shift, i);
        ShadowEnv env{rows_, g_.rows, i, g_.capacity[i], {rings_[i][0], rings_[i][1]}};
        Alr<ShadowEnv> policy(head_.shadow[i], env);
        if (head_.shadow[i].frames != frames_[i]) policy.set_frames(frames_[i]);
        tags_[i] = policy.tag();
    }
}

void Shadows::reset(u32 frames) {
    u32 resets = head_.resets + 1;
    Advice fresh{};
    memcpy(static_cast<void*>(&head_), &fresh, sizeof fresh);
    head_.resets = resets;
    head_.frames = frames;
    head_.shift.store_relaxed(g_.shift);
    head_.epoch.store_relaxed(1);
    head_.unit.store_relaxed(1);
    memset(index_, 0, g_.slots * 2);
    for (u32 r = 0; r < g_.rows; r++) rows_[r] = {NONE, {r + 1 < g_.rows ? r + 1 : NONE}};
    prepare();
}

u32 Shadows::find(u32 page) const {
    u32 mask = g_.slots - 1, at = page_hash(page);
    for (u32 probe = 0; probe < g_.slots; probe++) {
        u32 row = index_[(at + probe) & mask];
        if (row == 0) return NONE;
        if (row <= g_.rows && rows_[row - 1].page == page) return row - 1;
    }
    return NONE;
}

void Shadows::link(u32 row) {
    u32 mask = g_.slots - 1, at = page_hash(rows_[row].page);
    for (u32 probe = 0; probe < g_.slots; probe++) {
        u16& slot = index_[(at + probe) & mask];
        if (slot) continue;
        slot = u16(row + 1);
        return;
    }
}

// A row for a page that has none; NONE if it is no longer sampled.
u32 Shadows::add(u32 page) {
    if (head_.first_free >= g_.rows) purge();
    u32 row = head_.first_free;
    if (row >= g_.rows || !is_sampled(page, head_.shift.load_relaxed())) return NONE;
    head_.first_free = rows_[row].state[0];
    rows_[row] = {page, {}};
    link(row);
    return row;
}

// Drops the rows that no shadow has as resident, and all of whose ghosts are older than
// `ages` times the frames of their shadow.
void Shadows::drop_rows(u32 ages) {
    for (u32 r = 0; r < g_.rows; r++) {
        bool keep = false;
        for (u32 i = 0; i < SHADOWS && !keep && rows_[r].page != NONE; i++) {
            u32 w = rows_[r].state[i];
            keep = state_word::is_resident(w) || (state_word::state(w) == state_word::EVICTED &&
                                                  state_word::age(w, head_.shadow[i]) < u64(ages) * frames_[i]);
        }
        if (!keep) rows_[r].page = NONE;
    }
    head_.first_free = NONE;
    memset(index_, 0, g_.slots * 2);
    for (u32 r = g_.rows; r-- > 0;) {
        if (rows_[r].page != NONE) {
            link(r);
            continue;
        }
        rows_[r].state[0] = head_.first_free;
        head_.first_free = r;
    }
}

// Makes rows free: at least an eighth.
void Shadows::purge() {
    auto enough = [&] {
        u32 n = 0;
        for (u32 r = head_.first_free; r < g_.rows && n < g_.rows / 8; r = rows_[r].state[0]) n++;
        return n >= g_.rows / 8;
    };
    for (u32 ages : {5, 2, 1, 0}) {
        drop_rows(ages);
        if (enough()) return;
    }
    halve();
}

// Half of the pages are no longer sampled.
void Shadows::halve() {
    u32 shift = head_.shift.load_relaxed() + 1;
    if (shift > 31) return;
    head_.halvings++;
    head_.shift.store_relaxed(shift);
    for (u32 r = 0; r < g_.rows; r++)
        if (rows_[r].page != NONE && !is_sampled(rows_[r].page, shift)) rows_[r] = {NONE, {}};
    for (u32 i = 0; i < SHADOWS; i++) {
        ShadowEnv env{rows_, g_.rows, i, g_.capacity[i], {rings_[i][0], rings_[i][1]}};
        Alr<ShadowEnv>(head_.shadow[i], env).purge();
    }
    prepare();
    for (u32 i = 0; i < SHADOWS; i++) fit(i);
    fade();
    drop_rows(5);
}

void Shadows::fade() {
    head_.expected /= 2;
    head_.missed_by_pool /= 2;
    for (double& missed : head_.missed) missed /= 2;
}

// Evicts what is too much.
void Shadows::fit(u32 i) {
    ShadowEnv env{rows_, g_.rows, i, g_.capacity[i], {rings_[i][0], rings_[i][1]}};
    Alr<ShadowEnv> policy(head_.shadow[i], env);
    for (u32 n = 0; n < 2 * g_.capacity[i] && head_.shadow[i].cold.count + head_.shadow[i].hot.count > frames_[i]; n++)
        policy.evict(4 * g_.capacity[i]);
}

// The budget has changed: the shadows keep their pages, and the curve is read at the new
// sizes, between those that were simulated. (Starting anew would blind a steward after
// each of its steps.)
void Shadows::set_frames(u32 frames) {
    if (frames == head_.frames || frames < 1 || frames > max_frames_) return;
    double at[SHADOWS], missed[SHADOWS];
    for (u32 i = 0; i < SHADOWS; i++) {
        at[i] = double(SHADOW_EIGHTHS[i]) * head_.frames;
        missed[i] = head_.missed[i];
    }
    for (u32 i = 0; i < SHADOWS; i++) {
        double x = double(SHADOW_EIGHTHS[i]) * frames;
        u32 above = 0;
        while (above < SHADOWS && at[above] < x) above++;
        if (above == 0 || above == SHADOWS) {
            head_.missed[i] = missed[above ? SHADOWS - 1 : 0];
        } else {
            double share = (x - at[above - 1]) / (at[above] - at[above - 1]);
            head_.missed[i] = missed[above - 1] + share * (missed[above] - missed[above - 1]);
        }
    }
    head_.frames = frames;
    prepare();
    for (u32 i = 0; i < SHADOWS; i++) fit(i);
}

// ---- references ------------------------------------------------------------------

void Shadows::miss(u32 i, u32 row, u32 kind) {
    PolicyState& s = head_.shadow[i];
    ShadowEnv env{rows_, g_.rows, i, g_.capacity[i], {rings_[i][0], rings_[i][1]}};
    Alr<ShadowEnv> policy(s, env);
    u32 w = rows_[row].state[i];
    Ring ring = policy.miss(state_word::kind(w), state_word::stamp(w, s), kind & SAMPLE_ONCE);
    while (s.cold.count + s.hot.count >= frames_[i])
        if (policy.evict(4 * g_.capacity[i]) == NONE) break;
    tags_[i] = policy.tag();
    rows_[row].state[i] = state_word::resident(RING_NONE, 0, tags_[i]);
    policy.insert(row, ring);
    if (!(kind & SAMPLE_UNCOUNTED)) head_.missed[i] += 1;
}

void Shadows::reference(u32 row, u32 kind) {
    for (u32 i = 0; i < SHADOWS; i++) {
        u32& w = rows_[row].state[i];
        if (!state_word::is_resident(w)) miss(i, row, kind);
        else if (!(kind & SAMPLE_ONCE) && state_word::count(w) < 3 && state_word::tag(w) != tags_[i])
            w = state_word::resident(state_word::state(w), state_word::count(w) + 1, tags_[i]);
    }
}

void Shadows::apply(const Atomic<u64>* samples, u32 n, u64 references, u64 misses, double window) {
    double before = head_.missed[0];
    for (u32 k = 0; k < n; k++) {
        u64 sample = samples[k].load_relaxed();
        u32 page = u32(sample >> 2), row = find(page);
        if (row == NONE) row = add(page);
        if (row != NONE) reference(row, sample & 3);
    }
    double rate = 1.0 / double(u64(1) << head_.shift.load_relaxed());
    head_.references += references;
    head_.expected += double(references) * rate;
    head_.missed_by_pool += double(misses) * rate;
    head_.unit.store_relaxed(next_unit(n, head_.missed[0] - before));
    if (head_.expected > window) fade();
}

// An epoch lasts a quarter of the time in which the smallest shadow could lose a page.
u32 Shadows::next_unit(u32 n, double missed) const {
    double share = n && missed > 0 ? missed / n : 0.0, turnover = frames_[0] / 4.0;
    double unit = share > 0 ? turnover / share : 65536.0;
    return unit < 1 ? 1 : unit > 65536 ? 65536 : u32(unit);
}

}  // namespace bp
