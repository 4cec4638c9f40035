// The two words of the protocol: the entry word of a page and the state word
// of a frame. Every bit is drawn here, and nowhere else.
//
// Entry word (64 bits; the low half is also the futex word of its waiters)
//
//   63                   38 37   32 31       20 19        8 7 6 5 4 3 2 1 0
//  +-----------------------+-------+-----------+-----------+-+-+---+-+-+---+
//  | frame                 | op    | flusher   | owner     |G|V|rng|D|W|st |
//  +-----------------------+-------+-----------+-----------+-+-+---+-+-+---+
//  | the ghost's stamp             |
//  +-------------------------------+
//   st   ABSENT, LOADING, RESIDENT, EVICTING; EVICTING and G: PENDING
//   W    some thread waits on this word: the client that changes the word wakes it
//   D    dirty: the store does not have this version yet
//   rng  the replacement ring that has an element for this page: none, cold, hot;
//        RESIDENT and none: set aside, which only a dirty page can be
//   V    RESIDENT: discardable: the page may be dropped although no store has it
//        ABSENT: the page was discarded (reading raises PageDiscarded)
//   G    ABSENT, LOADING: the high half is a ghost
//   owner    LOADING, EVICTING: the client that does it; RESIDENT, PENDING: the client that writes (0: none)
//   flusher  RESIDENT, PENDING: the client that writes it back (0: none)
//            LOADING: the number of the owner's operation that loads it with other pages (0: it is loaded alone)
//   op       PENDING: the owner's operation that publishes the page with others. Its group word says which
//            version readers see: the new one, in this frame, or the old one, which this frame's word names.
//            RESIDENT, EVICTING: 0
//
// Frame word (64 bits)
//
//   63                             32 31     21 20     15 14       3 2     0
//  +---------------------------------+---------+---------+----------+-------+
//  | page (index of its entry)       |  0      | op      | client   | state |
//  +---------------------------------+---------+---------+----------+-------+
//   HOLE          no memory behind it (all zero: a fresh segment is all holes)
//   FREE          memory, no page
//   BUSY (client) only that client uses it; the page field is the page that the frame is for
//   LIVE (page)   the entry of that page points here
//   RETIRED (page) superseded or dropped, still pinned by a reader
//   SETTLING (page, client) RETIRED, and only that client checks whether a pin is left
//   JOINING (old frame, client, op) the next version of the page in the old frame, which that operation of the client
//                 publishes with others: the page field is the number of the old frame
//
// Clients are numbered from 1; 0 is no client.
#pragma once

#include "os/atomic.h"

namespace bp {

constexpr u32 NONE = 0xffffffffu;  // no frame, no page

enum EntryState : u64 { ABSENT = 0, LOADING = 1, RESIDENT = 2, EVICTING = 3 };
enum Ring : u64 { RING_NONE = 0, RING_COLD = 1, RING_HOT = 2 };
enum FrameState : u64 { HOLE = 0, FREE = 1, BUSY = 2, LIVE = 3, RETIRED = 4, SETTLING = 5, JOINING = 6 };

constexpr int CLIENT_BITS = 12;
constexpr u32 CLIENTS_LIMIT = (1u << CLIENT_BITS) - 1;
constexpr int OP_BITS = 6;  // of the number of a client's operation, from 0
constexpr int FRAME_BITS = 32 - OP_BITS;
constexpr u32 FRAMES_LIMIT = (1u << FRAME_BITS) - 1;  // the most frames; an entry that names NONE has this number

namespace entry {

constexpr u64 STATE = 3, WAITED = 1u << 2, DIRTY = 1u << 3, RING_SHIFT = 4, RING = 3u << RING_SHIFT;
constexpr u64 VOLATILE = 1u << 6, GHOST = 1u << 7;
constexpr int OWNER_SHIFT = 8, FLUSHER_SHIFT = OWNER_SHIFT + CLIENT_BITS;
constexpr int OP_SHIFT = 32, FRAME_SHIFT = OP_SHIFT + OP_BITS;
constexpr u64 CLIENT_MASK = (1u << CLIENT_BITS) - 1;
constexpr u64 OWNER = CLIENT_MASK << OWNER_SHIFT, FLUSHER = CLIENT_MASK << FLUSHER_SHIFT;
constexpr u64 OP = u64((1u << OP_BITS) - 1) << OP_SHIFT;
constexpr u64 FRAME = ~u64(0) << FRAME_SHIFT;
static_assert(FLUSHER_SHIFT + CLIENT_BITS <= 32, "waiters see the low half only");
static_assert(FRAME_SHIFT + FRAME_BITS == 64);
static_assert((STATE & WAITED) == 0 && (RING & VOLATILE) == 0 && (GHOST & OWNER) == 0 && (OWNER & FLUSHER) == 0);

constexpr EntryState state(u64 e) { return EntryState(e & STATE); }
constexpr u32 frame(u64 e) { return u32(e >> FRAME_SHIFT); }
constexpr u32 owner(u64 e) { return u32((e & OWNER) >> OWNER_SHIFT); }
constexpr u32 flusher(u64 e) { return u32((e & FLUSHER) >> FLUSHER_SHIFT); }
constexpr u32 among(u64 e) { return state(e) == LOADING ? flusher(e) : 0; }
constexpr bool is_discarded(u64 e) { return state(e) == ABSENT && (e & VOLATILE); }
constexpr Ring ring(u64 e) { return Ring((e & RING) >> RING_SHIFT); }
// Is the page being published with others? Then the entry names the frame of its next version, and has a writer.
constexpr bool is_pending(u64 e) { return (e & (STATE | GHOST)) == (EVICTING | GHOST); }
constexpr u32 op(u64 e) { return u32((e & OP) >> OP_SHIFT); }
// Has the page a version in the pool, which no eviction is taking away?
constexpr bool is_there(u64 e) { return state(e) == RESIDENT || is_pending(e); }
constexpr bool is_aside(u64 e) { return is_there(e) && (e & DIRTY) && ring(e) == RING_NONE; }
constexpr bool is_resident_in(u64 e, u32 f) { return state(e) == RESIDENT && frame(e) == f; }
// Does the entry name the frame? During an eviction it still does, because the eviction may be undone.
constexpr bool names(u64 e, u32 f) { return (state(e) == RESIDENT || state(e) == EVICTING) && frame(e) == f; }
constexpr u64 with_owner(u64 e, u32 c) { return (e & ~OWNER) | u64(c) << OWNER_SHIFT; }
constexpr u64 with_flusher(u64 e, u32 c) { return (e & ~FLUSHER) | u64(c) << FLUSHER_SHIFT; }
constexpr u64 with_state(u64 e, EntryState s) { return (e & ~STATE) | s; }
// Without a number of an operation, or what a ghost's stamp has there.
constexpr u64 with_frame(u64 e, u32 f) { return (e & ~(FRAME | OP)) | u64(f) << FRAME_SHIFT; }
// RESIDENT -> PENDING, dirty, in the frame of the next version; and back, in either frame.
constexpr u64 pending(u64 e, u32 f, u32 op) {
    return with_frame(with_state(e, EVICTING), f) | GHOST | DIRTY | u64(op) << OP_SHIFT;
}
constexpr u64 settled(u64 e, u32 f) { return with_frame(with_state(e, RESIDENT), f) & ~GHOST; }
constexpr u64 with_ring(u64 e, Ring r) { return (e & ~RING) | u64(r) << RING_SHIFT; }

}  // namespace entry

namespace frame {

constexpr u64 STATE = 7;
constexpr int CLIENT_SHIFT = 3, OP_SHIFT = CLIENT_SHIFT + CLIENT_BITS, PAGE_SHIFT = 32;
static_assert(OP_SHIFT + OP_BITS <= PAGE_SHIFT);

constexpr FrameState state(u64 w) { return FrameState(w & STATE); }
constexpr u32 client(u64 w) { return u32(w >> CLIENT_SHIFT) & CLIENTS_LIMIT; }
constexpr u32 page(u64 w) { return u32(w >> PAGE_SHIFT); }
constexpr u64 make(FrameState s, u32 client, u32 page) {
    return u64(page) << PAGE_SHIFT | u64(client) << CLIENT_SHIFT | s;
}
constexpr u64 hole() { return 0; }
constexpr u64 free() { return make(FREE, 0, NONE); }
constexpr u64 busy(u32 client, u32 page = NONE) { return make(BUSY, client, page); }
constexpr u64 live(u32 page) { return make(LIVE, 0, page); }
constexpr u64 retired(u32 page) { return make(RETIRED, 0, page); }
constexpr u64 settling(u32 client, u32 page) { return make(SETTLING, client, page); }
constexpr u64 joining(u32 client, u32 op, u32 old) { return make(JOINING, client, old) | u64(op) << OP_SHIFT; }
constexpr u32 op(u64 w) { return u32(w >> OP_SHIFT) & ((1u << OP_BITS) - 1); }
// Does the frame hold a version of the page, the newest one or a retired one?
constexpr bool holds(u64 w, u32 p) { return page(w) == p && state(w) >= LIVE && state(w) <= SETTLING; }

}  // namespace frame
}  // namespace bp
