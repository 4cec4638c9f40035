// The ring of events: what was decided about the pool's memory, and why.
#pragma once

#include <cstring>

#include "segment.h"

namespace bp {

constexpr u32 WHAT_REAPED = 6, WHY_DIED = 8;  // of bufferpool/events.py

// Which space failed, and how: the low bits of its generation, for the slot may be another's when the event is read.
//
//    31          20 19           8 7       0
//   +--------------+--------------+---------+
//   | generation   | errno        | slot, +1|     all zero: no space
//   +--------------+--------------+---------+
struct Origin {
    u32 word = 0;
    u64 page = 0;  // from 1; 0: none
};

// Any client may post, at any time, and die while it does: see struct Event.
inline void post_event(Segment& s, u32 what, u32 why, u64 bytes, u32 from_frames, u32 to_frames, double value,
                       Origin origin = {}) {
    u64 n = s.header->events.add_seq_cst(1);
    Event& e = s.events[n % EVENTS];
    u64 bits;
    memcpy(&bits, &value, sizeof bits);
    e.number.store_release(0);
    fence_release();  // whoever reads a field of this event sees that its number has gone
    e.time_ns.store_relaxed(prim::realtime_ns());
    e.bytes.store_relaxed(bytes);
    e.from_frames.store_relaxed(from_frames);
    e.to_frames.store_relaxed(to_frames);
    e.what.store_relaxed(what);
    e.why.store_relaxed(why);
    e.client.store_relaxed(s.me);
    e.origin.store_relaxed(origin.word);
    e.page.store_relaxed(origin.page);
    e.value.store_relaxed(bits);
    e.number.store_release(n + 1);
}

// Copies the whole events, oldest first, into `out` (room for EVENTS of them); returns how many.
inline u32 read_events(Segment& s, Event* out) {
    u64 end = s.header->events.load_seq_cst(), begin = end > EVENTS ? end - EVENTS : 0;
    u32 n = 0;
    for (u64 i = begin; i < end && n < EVENTS; i++) {
        Event& e = s.events[i % EVENTS];
        u64 number = e.number.load_acquire();
        if (number != i + 1) continue;  // being written, lapped, or left by a dead writer
        memcpy(static_cast<void*>(&out[n]), &e, sizeof e);
        fence_acquire();  // the second look comes after the copy
        if (e.number.load_acquire() == number) n++;
    }
    return n;
}

}  // namespace bp
