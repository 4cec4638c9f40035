// The pin protocol. A pin is a count that a client keeps for a frame in its own column of the pin table (layout.h):
// while it is not zero, no client reuses the frame. Before a frame is reused, after an eviction or after a newer
// version superseded it, any_pin() is called.
//
//   pin     load the entry, increment the count, load the entry again: the pin is valid if it names the frame (rule 2)
//   unpin   decrement the count; the last reader of a retired frame frees it
//   evict   close the entry, then read the pins (rule 3; evict.h)
//
//   RETIRED -> SETTLING(me) -> BUSY(me)   settle_retired, by any client that finds no pin left
//          SETTLING(me) -> RETIRED        a pin is left after all
#pragma once

#include "protocol/segment.h"

namespace bp {

// Defined in frames.h, which includes this header.
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

// RETIRED -> SETTLING(me) -> BUSY(me), if no pin is left. As in eviction, the frame is closed before the pins are read
// (rule 3): between reading the pins and a CAS from RETIRED, other clients could free the frame, reuse it for the same
// page, pin it and retire it again, and the CAS would succeed. Only this client changes SETTLING(me). A reader that
// unpins meanwhile does not find the frame RETIRED, and does not settle it; so after returning to RETIRED the pins are
// read once more. A reader that still has a stale entry word is stopped by its second load of the entry.
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
        // No other client changes the word, unless the segment is damaged.
        if (!word.cas_seq_cst(closed, left ? frame::retired(frame::page(w)) : frame::busy(s.me))) return false;
        if (!left) return true;
    }
}

// Releases a pin. The last reader of a retired frame frees it.
inline void unpin(Segment& s, u32 f) {
    if (s.pin_count(f).sub_seq_cst(1) != 1) return;
    if (frame::state(s.frames[f].word.load_seq_cst()) == RETIRED && settle_retired(s, f)) free_frame(s, f);
}

// Pins the page if it is resident. Rule 2: increment the count, then load the entry again.
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

// Frees every retired frame that no client pins any more, as dead readers
// leave them. Returns their number.
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
