// The pin protocol. A pin is a count that a client keeps for a frame in its own column of the pin table (layout.h):
// while it is not zero, nobody reuses the frame. Every frame that leaves its page, by eviction or because a newer
// version supersedes it, passes through any_pin().
//
//   pin     load the entry, count, load the entry again: if it still names the frame, the pin holds (rule 2)
//   unpin   count down; the last reader of a superseded frame frees it
//   evict   close the entry, then look at the pins (rule 3; evict.h)
//
//   RETIRED -> SETTLING(me) -> BUSY(me)   settle_retired, by any client that finds no pin left
//          SETTLING(me) -> RETIRED        a pin is left after all
#pragma once

#include "protocol/segment.h"

namespace bp {

// Defined in frames.h: it takes the memory lock, whose owner may evict, and eviction looks at pins.
inline void free_frame(Segment& s, u32 f);

// Does any client pin this frame? Called after the entry has been changed so
// that no new pin can succeed (rule 3), hence sequentially consistent.
inline bool any_pin(Segment& s, u32 f) {
    u32 used = s.g.max_clients < STRIPES ? s.g.max_clients : s.stripes(), words = s.g.stripe_clients / 4;
    u64 stride = s.g.stripe_bytes;  // the compiler reads what stands in a Segment anew after each atomic access
    auto at = reinterpret_cast<const u8*>(s.stripe_row(0, f));
    for (u32 stripe = 0; stripe < used; stripe++, at += stride) {
        auto row = reinterpret_cast<const Atomic<u64>*>(at);
        for (u32 i = 0; i < words; i++)
            if (row[i].load_seq_cst()) return true;
    }
    return false;
}

// RETIRED -> SETTLING(me) -> BUSY(me), if no pin is left. As in eviction, the door is closed before we look
// (rule 3): a frame that was RETIRED when we looked at its pins may be RETIRED for the same page once more, with
// others' pins, when our CAS comes; SETTLING(me) is left by nobody but us. A reader that left meanwhile
// found no RETIRED frame and has not settled it, so after a turn back we look once more. The readers
// that could still come have loaded a stale entry: their second load turns them away.
inline bool settle_retired(Segment& s, u32 f) {
    Atomic<u64>& word = s.frames[f].word;
    for (;;) {
        u64 w = word.load_seq_cst();
        if (frame::state(w) != RETIRED || any_pin(s, f)) return false;
        u64 closed = frame::settling(s.me, frame::page(w));
        if (!word.cas_seq_cst(w, closed)) continue;
        BP_POINT("settle.closed");
        bool left = any_pin(s, f);
        BP_POINT("settle.looked");
        // Nobody else changes the word, unless the segment is damaged.
        if (!word.cas_seq_cst(closed, left ? frame::retired(frame::page(w)) : frame::busy(s.me))) return false;
        if (!left) return true;
    }
}

// Takes back a pin. The last one to leave a superseded frame frees it.
inline void unpin(Segment& s, u32 f) {
    if (s.pin_count(f).sub_seq_cst(1) != 1) return;
    if (frame::state(s.frames[f].word.load_seq_cst()) == RETIRED && settle_retired(s, f)) free_frame(s, f);
}

// Pins the page if it is resident. Rule 2: count, then look again.
[[gnu::always_inline]] inline Status pin(Segment& s, u32 page, u32& out) {
    Atomic<u64>& word = s.entries[page];
    for (int tries = 0; tries < 1000; tries++) {
        u64 e = word.load_acquire();
        if (entry::state(e) != RESIDENT) return entry::state(e) == ABSENT ? Status::ABSENT : Status::WAIT;
        u32 f = entry::frame(e);
        if (!s.has_frame(f)) return Status::CORRUPT;
        Atomic<u16>& count = s.pin_count(f);
        if (count.load_relaxed() >= PIN_MAX) return Status::TOO_MANY_PINS;
        // What nearly all frames say is read before the count, so that the processor fetches both at the same time.
        bool sound = s.frames[f].word.load_relaxed() == frame::live(page);
        count.add_seq_cst(1);
        if (entry::is_resident_in(word.load_seq_cst(), f)) [[likely]] {
            out = f;
            if (sound || frame::holds(s.frames[f].word.load_relaxed(), page)) [[likely]] return Status::OK;
            unpin(s, f);
            return Status::CORRUPT;  // the entry, or the frame's word, is damaged
        }
        unpin(s, f);
    }
    return Status::WAIT;
}

// Frees every superseded frame that nobody pins any more: what dead readers
// have left. Returns how many.
inline u32 sweep_retired(Segment& s) {
    u32 n = 0;
    s.has_frame(s.g.max_frames - 1);
    for (u32 f = 0; f < s.ready; f++) {
        if (frame::state(s.frames[f].word.load_acquire()) != RETIRED || !settle_retired(s, f)) continue;
        free_frame(s, f);
        n++;
    }
    return n;
}

}  // namespace bp
