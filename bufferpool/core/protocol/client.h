// Clients: attaching in a slot, detaching, and the slot of a forked child. (For dead clients see reap.h.)
//
// A client is alive while its byte lock is held. If a process attaches when no slot is free, it takes the slot of a
// dead client: it takes that client's number, reaps the client, and starts anew in the slot.
#pragma once

#include "protocol/reap.h"
#include "protocol/snapshots.h"

namespace bp {

// ---- taking a slot -----------------------------------------------------------

// Initialises a slot whose byte lock `fd` holds and whose state is FREE.
inline void start_client(Segment& s, u32 c) {
    Client& slot = s.clients[c - 1];
    auto counters = reinterpret_cast<Atomic<u64>*>(&slot.counters);
    fence_release();  // a sum that sees a zero sees that the counters were folded
    for (u32 i = 0; i < COUNTERS; i++) counters[i].store_relaxed(0);
    auto uses = reinterpret_cast<Atomic<u64>*>(s.uses_of(c));
    for (u32 i = 0, n = s.has_pins(c) ? 2 * s.space_count() : 0; i < n; i++) uses[i].store_relaxed(0);
    for (Intent& intent : slot.intents) {
        intent.op.store_relaxed(u32(Op::NONE));
        intent.waits.store_relaxed(intent.waits.load_relaxed() >> 32 << 32);
    }
    for (Failure& failure : slot.failures) failure.about.store_relaxed(0);
    clear_snapshots(slot);
    leave_blocks(s, c);
    // A process that sums the counters and sees one of these two stores also sees zeros in the counters.
    slot.generation.store_release(slot.generation.load_relaxed() + 1);
    slot.folded.store_release(0);
    slot.unlocked.store_relaxed(0);
    slot.ending.store_relaxed(0);
    slot.pid.store_relaxed(prim::process_id());
    slot.start_time.store_relaxed(prim::start_time());
    slot.namespaces.store_relaxed(prim::namespaces());
    slot.attached_ns.store_relaxed(prim::realtime_ns());
    slot.name[0] = 0;
    slot.state.store_release(CLIENT_LIVE);
    BP_POINT("attach.live");
}

// Takes a free slot for the open file description `fd`, whose lock on the slot's byte shows from now on that the client
// lives. Returns 0 if no slot is free, or if there is no memory for one more (`error`). `guest`: takes one of the slots
// that are for guests, which are forked children that find no other slot.
inline u32 claim_slot(Segment& s, int fd, int& error, bool guest = false) {
    for (u32 c = 1; c <= s.g.max_clients; c++) {
        if (s.g.is_guest(c) != guest) continue;
        if ((error = open_slots(s, fd, c)) != 0) return 0;
        auto& state = s.clients[c - 1].state;
        if (state.load_acquire() != CLIENT_FREE || prim::lock_byte(fd, LOCKS_AT + long(c)) != 0) continue;
        BP_POINT("attach.locked");
        if (state.load_acquire() == CLIENT_FREE) {
            start_client(s, c);
            return c;
        }
        prim::unlock_byte(fd, LOCKS_AT + long(c));  // another client took the slot and died meanwhile
    }
    return 0;
}

// ---- attach and detach ---------------------------------------------------------

// Ends this client. False: another process, which may be stopped, has a lock that is needed. Then the slot is left as
// if the client were dead, for the next reaper: its byte lock is released, and its pid is cleared, because the process
// may attach again.
inline bool detach(Segment& s) {
    Patience patience(PATIENT_SLICES);
    auto leave_to_reaper = [&] {
        s.client().ending.store_relaxed(1);
        s.client().pid.store_seq_cst(0);
        s.unlock_byte(LOCKS_AT + long(s.me));
        s.become(0);
        return false;
    };
    // First a test whether the memory lock can be taken: otherwise each page of a private space would wait for it.
    if (!lock_memory(s, false)) return leave_to_reaper();
    unlock_memory(s);
    if constexpr (ADVISES) drain(s);
    free_spares(s);
    leave_blocks(s, s.me);
    remove_owned(s, s.me);
    for (u32 f = 0; s.lent && f < s.ready; f++) s.pin_count(f).store_seq_cst(0);
    sweep_retired(s);
    if (has_objects(s)) {
        if (!reap_loads(s, s.me)) return leave_to_reaper();  // a loader may have closed the pool
        reap_object_pins(s, s.me);  // those of forked children that found no row of their own
        if (!sweep_blocks(s)) return leave_to_reaper();
    }
    if (!lock_memory(s, false)) return leave_to_reaper();
    fold_counters(s, s.me);
    BP_POINT("detach.folded");
    unlock_memory(s);
    // This comes last, because the next client in the slot must not find a lock that has its number.
    s.client().state.store_release(CLIENT_FREE);
    BP_POINT("detach.free");
    s.unlock_byte(LOCKS_AT + long(s.me));
    s.become(0);
    return true;
}

// Makes this mapping a client, in a free slot or in that of a dead client. `error`: why the byte lock could not be
// taken, if not because another client has it.
inline Status attach(Segment& s, int& error) {
    int refused = 0;
    s.become(claim_slot(s, s.fd, refused));
    for (u32 c = 1, slots = s.slots(); s.me == 0 && c <= slots; c++) {
        if (s.g.is_guest(c)) continue;
        int r = s.lock_byte(LOCKS_AT + long(c));
        if (r && r != -EAGAIN) error = r;
        if (r) continue;
        bool dead = s.clients[c - 1].state.load_acquire() == CLIENT_LIVE;
        if (dead && s.still_maps(c)) {
            s.unlock_byte(LOCKS_AT + long(c));
            continue;
        }
        s.become(c);
        if (dead && !reap_held(s, c)) {
            s.become(0);
            s.unlock_byte(LOCKS_AT + long(c));
            continue;
        }
        start_client(s, c);
        s.become(c);
    }
    if (s.me == 0 && error) return Status::NO_LOCKS;
    if (s.me == 0 && refused == -EINTR) return Status::INTERRUPTED;
    if (s.me == 0 && refused) return refused == -EIO ? Status::CORRUPT : Status::NO_SPACE;
    if (s.me == 0) return Status::NO_CLIENT;
    if (int r = open_pins(s, s.me)) return detach(s), r == -EINTR ? Status::INTERRUPTED : Status::NO_SPACE;
    return Status::OK;
}

inline Status attach(Segment& s) {
    int error = 0;
    return attach(s, error);
}

// ---- fork ----------------------------------------------------------------------

// Takes a slot for the child before a fork, with a pin for each frame that `each_pin(visit)` visits. Returns the
// child's number; 0: no slot is free, or there is no memory for its pins. `fd` holds the slot's byte lock. It is the
// child's own open file description: until the child runs, only its byte lock shows that the child lives. Or, if the
// child gets none (`unlocked`), it is the parent's.
template <class Each>
u32 hand_over(Segment& s, int fd, Each each_pin, bool guest = false, bool unlocked = false) {
    int refused;
    u32 c = claim_slot(s, fd, refused, guest);
    if (!c && reap_all(s)) c = claim_slot(s, fd, refused, guest);
    if (!c) return 0;
    Client& slot = s.clients[c - 1];
    if (unlocked) slot.unlocked.store_relaxed(1);
    else slot.pid.store_relaxed(0);
    if (open_pins(s, c, false) != 0) {
        slot.state.store_release(CLIENT_FREE);
        prim::unlock_byte(fd, LOCKS_AT + long(c));
        return 0;
    }
    each_pin([&](u32 f) { s.pin_count_of(c, f).add_seq_cst(1); });
    // The child has copies of the parent's handles. If this thread forks during an EntryLook (in a signal handler), the
    // child's EntryLook never ends.
    if (s.keeps_entries) return c;
    for (u64 i = 0; i < BLOCK_BITS / 64; i++) slot.blocks[i].store_seq_cst(s.client().blocks[i].load_relaxed());
    if (looking) slot.looks.store_seq_cst(1);
    return c;
}

// In a child without an open file description: stores its pid, and then releases its slot's byte lock, which the
// parent's description holds. At each step the slot has the pid of a living process: the parent's, then the child's,
// which may be the first process of a new pid namespace.
inline void introduce_unlocked(Segment& s, u32 c) {
    Client& slot = s.clients[c - 1];
    slot.start_time.store_seq_cst(0);
    slot.namespaces.store_relaxed(prim::namespaces());
    slot.pid.store_seq_cst(prim::process_id());
    s.unlock_byte(LOCKS_AT + long(c));
}

}  // namespace bp
