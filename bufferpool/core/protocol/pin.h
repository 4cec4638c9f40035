// The pin protocol. Each client has a count of its pins on each frame (layout.h). While any client's count is not zero,
// no client reuses the frame: any_pin() is called first, when the page was evicted, or its version superseded or
// dropped.
//
//   pin     load the entry, increment the count, load the entry again: the pin is valid if it names the frame (rule 2)
//   unpin   decrement the count; the last reader of a retired frame frees it
//   evict   close the entry, then read the pins (rule 3; evict.h)
//   pending load the group word, increment the count of the frame that it decides for, load the entry, the frame's word
//           and the group word again (pin_pending)
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
    u64 stride = s.g.stripe_bytes;  // in a variable, because the compiler would load it again after each atomic access
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

// Pins a page that is being published with others (publish_many.h): the new version if the group is committed, else the
// old one. WAIT: the page is not pending any more, or is changing: the caller tries again.
//
// If the group word is the same before and after, all that was read in between belongs to one group, because an entry
// is PENDING, and a frame JOINING, only while the word has its group's number. The pin is valid (rule 2), because the
// frame of the old version retires only after the entry has changed, and the entry is loaded again after the count was
// incremented. And the pinned version is the page's version at the first load of the group word.
[[gnu::noinline]] inline Status pin_pending(Segment& s, u32 page, u32& out) {
    Atomic<u64>& word = s.entries[page];
    u64 e = word.load_seq_cst();
    if (!entry::is_pending(e)) return Status::WAIT;
    u32 c = entry::owner(e), g = entry::frame(e);
    if (!s.has_slot(c) || entry::op(e) >= OPS || !s.has_frame(g)) return Status::CORRUPT;
    Atomic<u64>& group = s.clients[c - 1].groups[entry::op(e)];
    u64 before = group.load_seq_cst();
    bool is_new = group::state(before) == group::COMMITTED;
    u64 link = s.frames[g].word.load_seq_cst();
    u32 f = is_new ? g : frame::page(link);
    if (!is_new && link != frame::joining(c, entry::op(e), f)) return Status::WAIT;
    if (!s.has_frame(f)) return Status::CORRUPT;
    Atomic<u16>& count = s.pin_count(f);
    if (count.load_relaxed() >= PIN_MAX) return Status::TOO_MANY_PINS;
    count.add_seq_cst(1);
    constexpr u64 SAME = entry::FRAME | entry::OP | entry::OWNER | entry::GHOST | entry::STATE;
    bool same = ((word.load_seq_cst() ^ e) & SAME) == 0 && (is_new || s.frames[g].word.load_seq_cst() == link);
    if (same && group.load_seq_cst() == before) {
        u64 w = s.frames[f].word.load_relaxed();  // which may be RETIRED by now
        if (frame::holds(w, page) || (is_new && frame::state(w) == JOINING)) return out = f, Status::OK;
        unpin(s, f);
        return Status::CORRUPT;
    }
    unpin(s, f);
    return Status::WAIT;
}

// Pins the page if it is resident. Rule 2: increment the count, then load the entry again. It also returns WAIT for a
// PENDING page, which pin_there() pins: this function is inlined into a hit, and calls no other on its way.
[[gnu::always_inline]] inline Status pin(Segment& s, u32 page, u32& out) {
    Atomic<u64>& word = s.entries[page];
    for (int tries = 0; tries < 1000; tries++) {
        u64 e = word.load_acquire();
        if (entry::state(e) != RESIDENT) return entry::state(e) == ABSENT ? Status::ABSENT : Status::WAIT;
        u32 f = entry::frame(e);
        if (!s.has_frame(f)) return Status::CORRUPT;
        Atomic<u16>& count = s.pin_count(f);
        if (count.load_relaxed() >= PIN_MAX) return Status::TOO_MANY_PINS;
        // The frame's word is read before the count is incremented, so that the processor fetches both at the same
        // time. If it is as expected, which it nearly always is, it need not be read again.
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

// Pins the page if it is resident or PENDING.
[[gnu::noinline]] inline Status pin_there(Segment& s, u32 page, u32& out) {
    for (int tries = 0; tries < 1000; tries++) {
        Status status = pin(s, page, out);
        if (status == Status::WAIT) status = pin_pending(s, page, out);
        if (status != Status::WAIT || !entry::is_there(s.entries[page].load_acquire())) return status;
    }
    return Status::WAIT;
}

// Frees every retired frame that no client pins any more; dead readers leave such frames. Returns their number.
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
