// Snapshots: the LSNs at which clients read, which tell an engine the old page versions that it must keep.
//
// A client has a few pairs of words for them. Only its own process writes there, under a lock of its own, until another
// client starts in the slot:
//
//   count   0 -> 1, when lsn is stored     the snapshot is in use: other clients find it
//           n -> n + 1 -> n                by several readers of this client
//           1 -> 0                         it is not in use any more
//
// The client's death ends its snapshots, without a reaper: others ask whether it lives. The stores and loads of the
// counts are sequentially consistent, so that an engine can rely on this: a reader that enters an LSN and then finds
// that it is still the newest one was seen by every writer that has moved it on since.
#pragma once

#include "protocol/liveness.h"

namespace bp {

// Enters an LSN at which this client reads. False: it has SNAPSHOTS other ones.
inline bool begin_snapshot(Segment& s, u64 lsn) {
    Client& me = s.client();
    u32 free = NONE;
    for (u32 i = 0; i < SNAPSHOTS; i++) {
        u64 count = me.snapshot_counts[i].load_relaxed();
        if (count == 0) free = std::min(free, i);
        else if (me.snapshot_lsns[i].load_relaxed() == lsn) {
            me.snapshot_counts[i].store_seq_cst(count + 1);
            return true;
        }
    }
    if (free == NONE) return false;
    me.snapshot_lsns[free].store_relaxed(lsn);
    me.snapshot_counts[free].store_seq_cst(1);
    return true;
}

// False: this client does not read at that LSN.
inline bool end_snapshot(Segment& s, u64 lsn) {
    Client& me = s.client();
    for (u32 i = 0; i < SNAPSHOTS; i++) {
        u64 count = me.snapshot_counts[i].load_relaxed();
        if (count == 0 || me.snapshot_lsns[i].load_relaxed() != lsn) continue;
        me.snapshot_counts[i].store_seq_cst(count - 1);
        return true;
    }
    return false;
}

// Before a client starts in a slot: it has none of those of the last one.
inline void clear_snapshots(Client& slot) {
    for (Atomic<u64>& count : slot.snapshot_counts) count.store_relaxed(0);
}

// visit(lsn) for each LSN at which a client reads that lives.
template <class Visit>
void each_snapshot(Segment& s, Visit visit) {
    for (u32 c = 1, slots = s.slots(); c <= slots; c++) {
        Client& slot = s.clients[c - 1];
        if (slot.state.load_seq_cst() != CLIENT_LIVE) continue;
        bool lives = false;
        for (u32 i = 0; i < SNAPSHOTS; i++) {
            if (slot.snapshot_counts[i].load_seq_cst() == 0) continue;
            if (!lives && !(lives = seems_alive(s, c))) break;
            visit(slot.snapshot_lsns[i].load_acquire());
        }
    }
}

}  // namespace bp
