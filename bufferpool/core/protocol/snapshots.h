// Snapshots: the LSNs at which clients read. From them an engine knows which old versions of pages it must keep.
//
// A client's slot has SNAPSHOTS pairs of words for them, an LSN and a count. Only the client's process writes to them,
// under a lock of that process:
//
//   count   0 -> 1, after the LSN was stored   the snapshot is in use: other clients find it
//           n -> n + 1 -> n                    several readers of this client use it
//           1 -> 0                             it is not in use any more
//
// A client's death ends its snapshots, without a reaper, because other clients check whether it lives. The stores and
// loads of the counts are sequentially consistent, so an engine can rely on this: if a reader enters an LSN, and then
// finds that it is still the newest LSN, every writer that makes a newer LSN visible after that finds the snapshot.
#pragma once

#include "protocol/liveness.h"

namespace bp {

// Enters an LSN at which this client reads. False: this client reads at SNAPSHOTS other LSNs already.
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

// Removes the snapshots of the slot's last client, before another client starts in the slot.
inline void clear_snapshots(Client& slot) {
    for (Atomic<u64>& count : slot.snapshot_counts) count.store_relaxed(0);
}

// Calls visit(lsn) for each LSN at which a living client reads.
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
