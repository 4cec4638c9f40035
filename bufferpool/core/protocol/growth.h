// Growth: memory for the segment's own tables. They grow under the growth lock: memory first, then the count of it.
// Memory that is not counted was left by an owner of the lock that died, or by a failure in between: it is given back
// to the kernel.
#pragma once

#include "protocol/memory.h"
#include "protocol/object_area.h"

namespace bp {

inline void repair_growth(Segment& s) {
    const Geometry& g = s.g;
    repair_object_tables(s);
    if (s.look_at_ready())
        each_frame_table(g, s.stripes(), [&](u64 at, u64 area, auto bytes) {
            u64 used = round_up(bytes(s.ready), g.os_page), end = round_up(area, g.os_page);
            if (used < end) s.punch(at + used, end - used);
        });
    auto blocks = s.stripes() / STRIPES;
    if (s.look_at_spaces())
        each_space_table(g, blocks, [&](u64 at, u64 area, auto bytes) {
            u64 used = round_up(bytes(s.spaces_ready), g.os_page), end = round_up(area, g.os_page);
            if (used < end) s.punch(at + used, end - used);
        });
    if (s.look_at_advised()) {
        u64 used = g.advice_at + round_up(advice_bytes(s.advised), g.os_page);
        if (used < g.spaces_at) s.punch(used, g.spaces_at - used);
    }
    for (u64 i = 0, n = g.entry_chunks(); i < n;) {
        u64 end = i;
        while (end < n && !s.has_entry_chunk(end)) end++;
        if (end > i) s.punch(g.entries_at + i * g.os_page, (end - i) * g.os_page);
        i = end + 1;
    }
}

inline bool lock_growth(Segment& s, bool interruptible = true) {
    Acquired a = acquire(s, s.header->growth, interruptible);
    if (a == Acquired::INTERRUPTED) return false;
    if (a == Acquired::REPAIR) {
        repair_growth(s);
        repaired(s, s.header->growth);
    }
    return true;
}

// Gives memory to the entries of `pages` pages of a space, if the space in the slot has this generation (it is not
// removed while we hold the lock). Entries keep their memory when the space is removed, because a handle, or an intent
// of a dead client, may still refer to them.
constexpr u64 ANY_GENERATION = ~u64(0);
inline int plug_entries(Segment& s, SpaceSlot& slot, u64 pages, u64 generation = ANY_GENERATION) {
    if (!lock_growth(s)) return -EINTR;
    u64 unit = s.g.os_page / 8, ready = slot.entries_ready.load_acquire(), to = round_up(pages, unit);
    u64 first = slot.first_entry.load_relaxed();
    // A space that is being removed does not grow.
    u64 span = slot.span.load_acquire();
    bool another = generation != ANY_GENERATION && generation != span >> GENERATION_SHIFT;
    u32 state = span & CLOSED || another ? SPACE_CLOSING : slot.state.load_acquire();
    int r = 0;
    if (to > ready && first + to <= round_up(s.g.max_pages, unit) && (state == SPACE_LIVE || state == SPACE_OPENING)) {
        u64 from = (first + ready) / unit, end = (first + to) / unit;
        r = s.plug(s.g.entries_at + from * s.g.os_page, (end - from) * s.g.os_page);
        BP_POINT("entries.plugged");
        if (r == 0) {
            for (u64 i = from; i < end; i++) s.set_entry_chunk(i);
            slot.entries_ready.store_release(to);
        } else {
            repair_growth(s);
        }
    }
    release(s, s.header->growth);
    return r;
}

// Pin rows, and rows of uses, for the block that client `c` is in: memory first, then the number that any_pin() goes
// by. The client pins nothing before that. 0 or -errno.
inline int open_pins(Segment& s, u32 c, bool interruptible = true) {
    if (s.has_pins(c)) return 0;
    if (!lock_growth(s, interruptible)) return -EINTR;
    const Geometry& g = s.g;
    s.look_at_ready();
    u64 bytes = round_up(u64(s.ready) * g.stripe_clients * 2, g.os_page);
    u32 end = (Segment::stripe_of(c) / STRIPES + 1) * STRIPES;
    int r = 0;
    for (u64 i = s.stripes(); i < end && r == 0 && bytes; i++) r = s.plug(g.pins_at + i * g.stripe_bytes, bytes);
    u64 row_bytes = round_up(s.space_count() * sizeof(Uses), g.os_page);
    for (u32 row = 2 + s.stripes() / STRIPES * CLIENT_BLOCK;
         row < 2 + end / STRIPES * CLIENT_BLOCK && r == 0 && row_bytes; row++)
        r = s.plug(g.uses_at + row * g.use_row_bytes, row_bytes);
    BP_POINT("grow.plugged");
    if (r) repair_growth(s);
    else if (!s.has_pins(c)) s.header->more_blocks.store_seq_cst(doubled(end / STRIPES - 1));
    release(s, s.header->growth);
    return r;
}

// Gives memory to the tables of `to` frames, of which `from` have it already.
inline int plug_tables(Segment& s, u32 from, u32 to) {
    const Geometry& g = s.g;
    int r = 0;
    each_frame_table(g, s.stripes(), [&](u64 at, u64, auto bytes) {
        u64 first = round_up(bytes(from), g.os_page), end = round_up(bytes(to), g.os_page);
        if (r == 0 && first < end) r = s.plug(at + first, end - first);
    });
    return r;
}

// Slots for more spaces, with all else that has an element for each. Under the directory lock. 0 or -errno.
inline int grow_spaces(Segment& s) {
    const Geometry& g = s.g;
    if (!lock_growth(s)) return -EINTR;
    u32 from = s.look_at_spaces() ? u32(s.spaces_ready) : MAX_SPACES;  // damaged: it does not grow
    u32 to = from + SPACE_STEP < MAX_SPACES ? from + SPACE_STEP : MAX_SPACES;
    int r = 0;
    each_space_table(g, s.stripes() / STRIPES, [&](u64 at, u64, auto bytes) {
        u64 first = round_up(bytes(from), g.os_page), end = round_up(bytes(to), g.os_page);
        if (r == 0 && first < end) r = s.plug(at + first, end - first);
    });
    BP_POINT("grow.plugged");
    if (r) repair_growth(s);
    else if (from < to) s.header->spaces_ready.store_release(doubled(to));
    release(s, s.header->growth);
    return r;
}

// Makes frames from..to holes, and extends the rings accordingly. No client reads the new ends before it holds the
// memory lock. False: the call's time is over, and nothing is counted.
inline bool count_ready(Segment& s, u32 from, u32 to) {
    PolicyState& p = s.header->policy;
    RingState* rings[2] = {&p.cold, &p.hot};
    u32 most = ring_capacity(s.g, from), now = ring_capacity(s.g, to), was[2];
    for (u32 r = 0; r < 2; r++) {
        was[r] = rings[r]->capacity && rings[r]->capacity < most ? rings[r]->capacity : most;
        std::fill(s.ring_slots[r] + was[r], s.ring_slots[r] + now, GAP);
    }
    if (!lock_memory(s, false, slices_left())) return false;
    PoolEnv env{s, nullptr, NONE};
    Alr<PoolEnv>(p, env);  // bounds values that may be damaged
    for (u32 f = from; f < to; f++) s.holes.add(f);
    s.header->frames_ready.store_release(doubled(to));
    BP_POINT("grow.ready");
    for (u32 r = 0; r < 2; r++)
        if (was[r] < now) extend_ring(*rings[r], was[r], now);
    unlock_memory(s);
    return true;
}

// Makes more frames usable: gives memory to their slots, pin rows, and all other tables with an element for each frame.
inline int grow_ready(Segment& s) {
    const Geometry& g = s.g;
    if (!lock_growth(s)) return -EINTR;
    u32 from = s.look_at_ready() ? u32(s.ready) : g.max_frames;  // damaged: it does not grow
    u32 to = from + ready_chunk(g) < g.max_frames ? from + ready_chunk(g) : g.max_frames;
    int r = from < to ? plug_tables(s, from, to) : 0;
    BP_POINT("grow.plugged");
    if (r == 0 && from < to && !count_ready(s, from, to)) r = -EINTR;
    if (r) repair_growth(s);  // undo a partial growth
    else if (from < to) s.has_frame(to - 1);
    release(s, s.header->growth);
    return r;
}

// Gives the shadows memory for a budget of so many frames, before the budget is set. They start anew, because the
// offsets of their tables depend on their size. 0 or -errno.
inline int grow_advice(Segment& s, u32 frames) {
    if (!ADVISES || frames <= s.look_at_advised()) return 0;
    if (!lock_growth(s)) return -EINTR;
    u64 used = round_up(advice_bytes(s.look_at_advised()), s.g.os_page),
        end = round_up(advice_bytes(frames), s.g.os_page);
    int r = used < end ? s.plug(s.g.advice_at + used, end - used) : 0;
    BP_POINT("grow.shadows");
    if (r) {
        repair_growth(s);
    } else if (frames > s.advised) {
        if (acquire(s, s.header->advice, false) == Acquired::REPAIR) repaired(s, s.header->advice);
        forget_advice(s);
        s.header->advice_frames.store_release(doubled(frames));
        release(s, s.header->advice);
    }
    release(s, s.header->growth);
    return r;
}

}  // namespace bp
