// Growth: memory for the segment's own tables. A table grows under the growth lock: first it gets the memory, then the
// memory is counted. Memory that is not counted was left by an owner of the lock that died, or by a failure in between:
// it is given back to the kernel.
#pragma once

#include <utility>

#include "protocol/entry_memory.h"
#include "protocol/memory.h"
#include "protocol/object_area.h"

namespace bp {

// Asks the kernel for huge pages for a range of the tables. A hit on a random page of a large pool reads an entry, a
// frame slot and a pin count, which lie on three OS pages; with huge pages the processor more often has their physical
// addresses at hand (in its TLB). Only memory that is counted gets huge pages, because such memory is never given back,
// or only in whole huge pages (entries): some kernels return wrong data after a part of a huge page was given back
// (bufferpool doctor names them). Each process does this for its own mapping, without a lock.
inline void use_huge_pages(Segment& s, u64 from, u64 to) {
    u64 first = round_up(from, prim::HUGE_BYTES), end = to / prim::HUGE_BYTES * prim::HUGE_BYTES;
    if (s.g.os_page == 4096 && first < end) prim::use_huge_pages(s.base + first, end - first);
}

// Asks for huge pages for all tables that have memory.
inline void use_huge_tables(Segment& s) {
    if (!s.look_at_ready()) return;
    EntryLook look(s);  // so that no entries are given back meanwhile: they would get memory again, as a huge page
    u64 from = 0, to = 0;  // a range of tables, and of chunks of entries, without a gap
    auto add = [&](u64 at, u64 bytes) {
        if (at != to) use_huge_pages(s, std::exchange(from, at), to);
        to = at + bytes;
    };
    for (u64 i = 0, n = s.g.entry_chunks(); i < n; i++) {
        if (!s.entry_chunk_word(i / 64)) i |= 63;
        else if (s.has_page(u32(i * (s.g.os_page / 8)))) add(s.g.entries_at + i * s.g.os_page, s.g.os_page);
    }
    each_frame_table(s.g, s.stripes(), [&](u64 at, u64, auto bytes) {
        add(at, round_up(bytes(s.ready), s.g.os_page));
    });
    use_huge_pages(s, from, to);
}

// Asks for the huge page that contains chunk `i` of the entries, if all chunks in it have memory.
inline void use_huge_entries(Segment& s, u64 i) {
    u64 at = (s.g.entries_at + i * s.g.os_page) / prim::HUGE_BYTES * prim::HUGE_BYTES;
    if (at < s.g.entries_at) return;
    u64 first = (at - s.g.entries_at) / s.g.os_page, end = first + prim::HUGE_BYTES / s.g.os_page;
    if (end > s.g.entry_chunks()) return;
    EntryLook look(s);
    while (first < end && s.has_page(u32(first * (s.g.os_page / 8)))) first++;
    if (first == end) use_huge_pages(s, at, at + prim::HUGE_BYTES);
}

// Gives memory that is not counted back to the kernel. Under the growth lock.
inline void repair_growth(Segment& s) {
    const Geometry& g = s.g;
    repair_object_tables(s);
    auto give_back = [&](u64 from, u64 to) {
        if (from < to) s.punch(from, to - from);
    };
    auto give_back_beyond = [&](u32 ready) {
        return [&, ready](u64 at, u64 area, auto bytes) {
            give_back(at + round_up(bytes(ready), g.os_page), at + round_up(area, g.os_page));
        };
    };
    if (s.look_at_ready()) each_frame_table(g, s.stripes(), give_back_beyond(s.ready));
    if (s.look_at_spaces()) each_space_table(g, s.stripes() / STRIPES, give_back_beyond(s.spaces_ready));
    if (s.look_at_long_texts()) give_back(g.long_texts_at + g.long_texts_bytes(s.long_texts_ready), g.uses_at);
    if (s.look_at_advised()) give_back(g.advice_at + round_up(advice_bytes(s.advised), g.os_page), g.spaces_at);
    // The area of the entries is aligned to blocks: the gaps before and after it need no memory.
    u64 before = g.uses_at + g.use_rows() * g.use_row_bytes, after = g.entries_at + g.entry_chunks() * g.os_page;
    give_back(before, g.entries_at);
    give_back(after, g.frames_at);
    for (u64 i = 0, n = g.entry_chunks(); i < n;) {
        u64 end = i;
        while (end < n && !s.has_entry_chunk(end)) end++;
        give_back(g.entries_at + i * g.os_page, g.entries_at + end * g.os_page);
        i = end + 1;
    }
    s.header->leaving.store_seq_cst(0);  // chunks without a bit were punched above; the others keep their memory
}

inline bool try_lock_growth(Segment& s) { return take_if_free(s, s.header->growth); }

// False: a signal handler raised, the call's time is over, or another thread has the lock and this one may not wait
// (Quick).
inline bool lock_growth(Segment& s, bool interruptible = true) {
    if (quick_only && interruptible) return try_lock_growth(s);
    Acquired a = acquire(s, s.header->growth, interruptible, interruptible ? ~0u : slices_left());
    if (a == Acquired::INTERRUPTED) return false;
    if (a == Acquired::REPAIR) {
        repair_growth(s);
        repaired(s, s.header->growth);
    }
    return true;
}

// Gives memory to the entries of the pages `page` to `page + count` of a space, as far as they have none, in whole
// chunks; only if the space in the slot has this generation. The space is not removed while we hold the lock. Returns 0
// or -errno.
constexpr u64 ANY_GENERATION = ~u64(0);
inline int plug_entries(Segment& s, SpaceSlot& slot, u64 page, u64 count, u64 generation = ANY_GENERATION) {
    if (!lock_growth(s)) return -EINTR;
    if (s.header->leaving.load_relaxed()) s.header->leaving.store_seq_cst(0);  // damaged: we have the lock
    u64 unit = s.g.os_page / 8, first = slot.first_entry.load_relaxed(), to = round_up(page + count, unit);
    // A space that is being removed does not grow.
    u64 span = slot.span.load_acquire();
    bool another = generation != ANY_GENERATION && generation != span >> GENERATION_SHIFT;
    u32 state = span & CLOSED || another ? SPACE_CLOSING : slot.state.load_acquire();
    bool inside = to <= round_up(slot.max_pages.load_relaxed(), unit) && first + to <= round_up(s.g.max_pages, unit);
    int r = 0;
    u64 chunk = (first + page) / unit, end = inside && state == SPACE_LIVE ? (first + to) / unit : 0;
    while (chunk < end && r == 0) {
        u64 from = chunk;
        while (chunk < end && !s.has_entry_chunk(chunk)) chunk++;
        if (from < chunk) r = s.plug(s.g.entries_at + from * s.g.os_page, (chunk - from) * s.g.os_page);
        BP_POINT("entries.plugged");
        for (u64 i = from; r == 0 && i < chunk; i++) s.set_entry_chunk(i);
        while (chunk < end && s.has_entry_chunk(chunk)) chunk++;
    }
    if (r) repair_growth(s);
    else if (end && slot.entries_ready.load_relaxed() < to) slot.entries_ready.store_release(to);
    release(s, s.header->growth);
    u64 from = (first + page) / unit;
    for (u64 i = from; r == 0 && i < end; i += prim::HUGE_BYTES / s.g.os_page) use_huge_entries(s, i);
    if (r == 0 && from < end) use_huge_entries(s, end - 1);
    return r;
}

// Gives memory to the pin counts and the rows of uses of all banks up to that of client `c`, and then raises the number
// of banks, which any_pin() reads. The client pins nothing before that. Returns 0 or -errno.
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
    for (u32 row = 2 + s.stripes() / STRIPES * CLIENT_BANK;
         row < 2 + end / STRIPES * CLIENT_BANK && r == 0 && row_bytes; row++)
        r = s.plug(g.uses_at + row * g.use_row_bytes, row_bytes);
    BP_POINT("grow.plugged");
    if (r) repair_growth(s);
    else if (!s.has_pins(c)) s.header->more_banks.store_seq_cst(doubled(end / STRIPES - 1));
    release(s, s.header->growth);
    return r;
}

// The memory of slots that are not counted has a lock of its own: the byte lock of number 0. A process that attaches
// has no client number yet, and so cannot take any other lock. If its owner dies, the kernel drops the byte lock.
// Threads of one process with the same open file description exclude each other by the growth lock.
#ifdef BP_EXPLORE
constexpr u32 SLOT_TRIES = 2;
#else
constexpr u32 SLOT_TRIES = 1000;
#endif
inline bool lock_slots(int fd) {
    for (u32 tries = 1;; tries++) {
        int r = prim::lock_byte(fd, LOCKS_AT);
        if (r != -EAGAIN || tries == SLOT_TRIES) return r == 0;
        prim::nap(1'000'000);
    }
}
inline void unlock_slots(int fd) { prim::unlock_byte(fd, LOCKS_AT); }

// Gives memory to the slots up to `to`, and counts them. Under the lock of the slots' memory.
inline int plug_slots(Segment& s, int fd, u32 to) {
    u64 from = s.g.slots_bytes(s.slots()), end = s.g.slots_bytes(to);
    Atomic<u64>&asked = s.header->slots_asked, &ready = s.header->slots_ready;
    asked.store_seq_cst(doubled(to));
    if (int r = from < end ? prim::plug(fd, s.g.clients_at + from, end - from) : 0) {
        asked.store_seq_cst(0);
        return r;
    }
    BP_POINT("attach.slots");
    // By a CAS, so that the number never decreases, even if foreign code closes the descriptor, which drops the lock.
    for (u64 w = ready.load_seq_cst(); is_doubled(w) && u32(w) < to;)
        if (ready.cas_seq_cst(w, doubled(to))) break;
    return 0;
}

// Gives memory to slot `c` and all slots before it, in whole banks. If the process dies after it has stored
// `slots_asked`, the next process that attaches or reaps completes this. Returns 0 or -errno; -EINTR: the lock could
// not be taken (a stopped process may have it).
inline int open_slots(Segment& s, int fd, u32 c) {
    if (c <= s.slots()) return 0;
    if (!lock_slots(fd)) return -EINTR;
    u32 to = std::min(u32(round_up(c, CLIENT_BANK)), s.g.max_clients);
    int r = s.slots() < to ? plug_slots(s, fd, to) : 0;
    unlock_slots(fd);
    return r || c <= s.slots() ? r : -EIO;  // the word is damaged
}

// Completes an open_slots() whose process died.
inline void finish_slots(Segment& s) {
    if (s.g.max_clients <= CLIENT_BANK) return;
    u64 w = s.header->slots_asked.load_seq_cst();
    if (!is_doubled(w) || u32(w) > s.g.max_clients || u32(w) <= s.slots() || !try_lock_growth(s)) return;
    if (s.has_descriptor()) open_slots(s, s.fd, u32(w));
    release(s, s.header->growth);
}

// Gives the memory of slots that are not counted back to the kernel. Under the growth lock.
inline void punch_slots(Segment& s) {
    if (s.g.max_clients <= CLIENT_BANK || !s.has_descriptor() || !lock_slots(s.fd)) return;
    u64 used = s.g.clients_at + s.g.slots_bytes(s.slots());
    if (used < s.g.events_at) s.punch(used, s.g.events_at - used);
    unlock_slots(s.fd);
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

// Gives memory to the slots of more spaces, and to the other tables with an element for each space. Under the directory
// lock. Returns 0 or -errno.
inline int grow_spaces(Segment& s) {
    const Geometry& g = s.g;
    if (!lock_growth(s)) return -EINTR;
    u32 from = s.look_at_spaces() ? u32(s.spaces_ready) : MAX_SPACES;  // a damaged word: the table does not grow
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

// The LongTexts of a slot; null if it has none, or if its number is damaged and names one without memory.
inline LongTexts* long_texts_of(Segment& s, SpaceSlot& t) {
    s.look_at_long_texts();
    u32 n = t.long_texts.load_relaxed();
    return n - 1 < s.long_texts_ready ? &s.long_texts[n - 1] : nullptr;
}

// Gives LongTexts to a slot that has none; they remain with the slot. Under the directory lock. Returns 0 or -errno.
inline int give_long_texts(Segment& s, SpaceSlot& t) {
    if (long_texts_of(s, t)) return 0;
    if (!lock_growth(s)) return -EINTR;
    u32 from = s.look_at_long_texts() ? u32(s.long_texts_ready) : MAX_SPACES;  // a damaged word: no more are given
    u64 first = s.g.long_texts_bytes(from), end = s.g.long_texts_bytes(from + 1);
    int r = from == MAX_SPACES ? -ENOSPC : first < end ? s.plug(s.g.long_texts_at + first, end - first) : 0;
    BP_POINT("texts.plugged");
    if (r) {
        repair_growth(s);
    } else {
        s.header->long_texts.store_release(doubled(from + 1));
        t.long_texts.store_relaxed(from + 1);
    }
    release(s, s.header->growth);
    return r;
}

// Makes the frames `from` to `to` holes, and extends the rings accordingly. No client reads the new elements of the
// rings before it has the memory lock. False: the owner of the memory lock did not release it in time, or the call's
// time is over; then nothing is counted. (So a stopped owner of the memory lock does not block the growth lock, too.)
inline bool count_ready(Segment& s, u32 from, u32 to) {
    PolicyState& p = s.header->policy;
    RingState* rings[2] = {&p.cold, &p.hot};
    u32 most = ring_capacity(s.g, from), now = ring_capacity(s.g, to), was[2];
    for (u32 r = 0; r < 2; r++) {
        was[r] = rings[r]->capacity && rings[r]->capacity < most ? rings[r]->capacity : most;
        std::fill(s.ring_slots[r] + was[r], s.ring_slots[r] + now, GAP);
    }
    if (!lock_memory(s, false, PATIENT_SLICES)) return false;
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
    u32 from = s.look_at_ready() ? u32(s.ready) : g.max_frames;  // a damaged word: the tables do not grow
    u32 to = from + ready_chunk(g) < g.max_frames ? from + ready_chunk(g) : g.max_frames;
    int r = from < to ? plug_tables(s, from, to) : 0;
    BP_POINT("grow.plugged");
    if (r == 0 && from < to && !count_ready(s, from, to)) r = -EINTR;
    if (r) repair_growth(s);  // undo a partial growth
    else if (from < to) s.has_frame(to - 1);
    release(s, s.header->growth);
    // Ask for huge pages again when one more huge page of frame slots has memory, or all frames have slots.
    bool complete = to == g.max_frames || from * sizeof(FrameSlot) / prim::HUGE_BYTES !=
                                              to * sizeof(FrameSlot) / prim::HUGE_BYTES;
    if (r == 0 && from < to && complete) use_huge_tables(s);
    return r;
}

// Gives the shadows memory for a budget of `frames`, before the budget is set. The shadows start anew, because the
// offsets of their tables depend on the largest budget. Returns 0 or -errno.
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
        Acquired how = acquire(s, s.header->advice, false, std::min(PATIENT_SLICES, slices_left()));
        if (how == Acquired::INTERRUPTED) {
            r = -EINTR;
            repair_growth(s);
        } else {
            if (how == Acquired::REPAIR) repaired(s, s.header->advice);
            forget_advice(s);
            s.header->advice_frames.store_release(doubled(frames));
            release(s, s.header->advice);
        }
    }
    release(s, s.header->growth);
    return r;
}

// Removes the pages `first` to `end` - 1, whose entries are GONE (layout.h), from the rings. If their elements
// remained, a page that is loaded later would be in a ring twice, because its new entry does not say that it is in one.
// Each hold of the memory lock is short. False: another client did not release the lock in time.
inline bool forget_elements(Segment& s, u64 first, u64 end) {
    for (Ring r : {RING_COLD, RING_HOT}) {
        u32 slot = 0;
        do {
            if (!lock_memory(s, false, PATIENT_SLICES)) return false;
            PoolEnv env{s, nullptr, NONE};
            slot = Alr<PoolEnv>(s.header->policy, env).forget(r, slot, LATER_BATCH, first, end);
            unlock_memory(s);
        } while (slot);
    }
    return true;
}

// Gives blocks whose entries no space has back to the kernel, if no client may touch them. Under the directory lock and
// the growth lock. False: another client did not release the memory lock in time.
inline bool give_back_blocks(Segment& s, u64 first, u64 count) {
    Atomic<u64>& word = s.header->leaving;
    u64 asked = leaving::word(leaving::ASKED, first, count), gone = leaving::word(leaving::GONE, first, count);
    word.store_seq_cst(asked);
    fence_seq_cst();
    BP_POINT("entries.asked");
    if (are_used(s, first, count) || !word.cas_seq_cst(asked, gone)) {
        word.store_seq_cst(0);
        return true;
    }
    BP_POINT("entries.gone");
    // A client that has the memory lock may have called has_page() before. forget_elements() waits for the lock, so
    // that client has released it then.
    u64 page = s.g.first_entry_of(first);
    bool forgotten = forget_elements(s, page, page + count * ENTRY_BLOCK / 8);
    if (forgotten) {
        u64 chunks = ENTRY_BLOCK / s.g.os_page, chunk = page * 8 / s.g.os_page;
        u64 end = std::min(chunk + count * chunks, s.g.entry_chunks());
        for (u64 i = chunk; i < end; i++) s.clear_entry_chunk(i);
        BP_POINT("entries.cleared");
        if (s.punch(first * ENTRY_BLOCK, count * ENTRY_BLOCK) == 0)
            prim::use_small_pages(s.base + first * ENTRY_BLOCK, count * ENTRY_BLOCK);
        BP_POINT("entries.punched");
    }
    word.store_seq_cst(0);
    return forgotten;
}

}  // namespace bp
