// The ring of events: decisions about the pool's memory, deaths, and failures, with their reasons.
#pragma once

#include <cstring>

#include "protocol/segment.h"

namespace bp {

constexpr u32 KIND_REAPED = 6, REASON_DIED = 8;  // EventKind.REAPED, EventReason.DIED of figures/names.py

// The space or cache of a failure, and the errno. The slots of caches are numbered after those of the spaces. The word
// has the low bits of the generation, because another space may have the slot when the event is read.
//
//    31        22 21       13 12            0
//   +------------+-----------+---------------+
//   | generation | errno     | slot, +1      |     all zero: no space
//   +------------+-----------+---------------+
struct Origin {
    u32 word = 0;
    u64 page = 0;  // from 1; 0: none
};

// The mark of a complete event: its number, and a checksum over its fields in the bits above. The checksum detects a
// writer that was stopped while the ring wrapped around, and then writes into a later event, which has its own number.
constexpr u64 EVENT_NUMBER = (u64(1) << 40) - 1;
inline u64 event_mark(const Event& e, u64 number) {
    u64 sum = fnv(fnv(FNV_START, &number, sizeof number), reinterpret_cast<const u8*>(&e) + sizeof e.number,
                  sizeof e - sizeof e.number);
    return (sum & ~EVENT_NUMBER) | number;
}

struct NewEvent {
    u32 kind, reason;
    u64 bytes;
    u32 from_frames, to_frames;  // the budget, before and after
    double value;                // the measured value that was the reason
    Origin origin{};
    u32 client = 0;  // the client that the event is about; 0: this client
};

// Records an event. Any client may record one at any time, and may die meanwhile: see struct Event.
inline void post_event(Segment& s, const NewEvent& made) {
    u64 n = s.header->events.add_seq_cst(1);
    if (made.kind < EVENT_KINDS && made.reason < EVENT_REASONS)
        s.header->events_posted[made.kind][made.reason].add_relaxed(1);
    Event& place = s.events[n % EVENTS];
    Event e{};
    u64 bits;
    memcpy(&bits, &made.value, sizeof bits);
    e.time_ns.store_relaxed(prim::realtime_ns());
    e.bytes.store_relaxed(made.bytes);
    e.from_frames.store_relaxed(made.from_frames);
    e.to_frames.store_relaxed(made.to_frames);
    e.kind.store_relaxed(made.kind);
    e.reason.store_relaxed(made.reason);
    e.client.store_relaxed(made.client ? made.client : s.me);
    e.origin.store_relaxed(made.origin.word);
    e.page.store_relaxed(made.origin.page);
    e.value.store_relaxed(bits);
    place.number.store_release(0);
    fence_release();  // a reader that sees a field of this event also sees that the old number is gone
    auto from = reinterpret_cast<Atomic<u64>*>(&e), to = reinterpret_cast<Atomic<u64>*>(&place);
    for (u32 i = 1; i < sizeof e / 8; i++) to[i].store_relaxed(from[i].load_relaxed());
    place.number.store_release(event_mark(e, n + 1));
}

// Copies the complete events, oldest first, into `out` (room for EVENTS of them); returns how many.
inline u32 read_events(Segment& s, Event* out) {
    u64 end = s.header->events.load_seq_cst(), begin = end > EVENTS ? end - EVENTS : 0;
    u32 n = 0;
    for (u64 i = begin; i < end && n < EVENTS; i++) {
        Event& e = s.events[i % EVENTS];
        u64 number = e.number.load_acquire();
        if ((number & EVENT_NUMBER) != i + 1) continue;  // being written, overwritten, or left by a dead writer
        memcpy(static_cast<void*>(&out[n]), &e, sizeof e);
        fence_acquire();  // the number is read again after the copy
        if (e.number.load_acquire() != number || event_mark(out[n], i + 1) != number) continue;
        out[n++].number.store_relaxed(i + 1);
    }
    return n;
}

}  // namespace bp
