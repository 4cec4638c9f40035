// Clients: taking a slot, leaving it, and reaping the dead (rules 10 and 11).
//
// A client is alive while somebody holds its byte lock. Reaping works under that
// lock, in numbered phases; every change is a CAS from the state that the dead
// client left, so a reaper may die at any point and the next one starts over.
// A process that attaches when every slot is taken becomes a dead client, ends
// its business as reaper of itself, and starts anew in its slot.
#pragma once

#include "protocol/counters.h"
#include "protocol/drop.h"
#include "protocol/events.h"
#include "protocol/reclaim.h"

namespace bp {

// ---- taking a slot -----------------------------------------------------------

// A fresh start in a slot whose byte lock `fd` holds and whose state is FREE.
inline void start_client(Segment& s, u32 c) {
    Client& slot = s.clients[c - 1];
    auto counters = reinterpret_cast<Atomic<u64>*>(&slot.counters);
    fence_release();  // a sum that sees a zero sees that the counters were folded
    for (u32 i = 0; i < COUNTERS; i++) counters[i].store_relaxed(0);
    for (Intent& intent : slot.intents) {
        intent.op.store_relaxed(u32(Op::NONE));
        intent.waits.store_relaxed(intent.waits.load_relaxed() >> 32 << 32);
    }
    for (Failure& failure : slot.failures) failure.about.store_relaxed(0);
    // Whoever sums and sees one of these two sees zeros in the counters.
    slot.generation.store_release(slot.generation.load_relaxed() + 1);
    slot.folded.store_release(0);
    slot.unlocked.store_relaxed(0);
    slot.pid.store_relaxed(prim::process_id());
    slot.start_time.store_relaxed(prim::start_time());
    slot.attached_ns.store_relaxed(prim::realtime_ns());
    slot.name[0] = 0;
    slot.state.store_release(CLIENT_LIVE);
    BP_POINT("attach.live");
}

// Claims a free slot for the description `fd`, whose lock on the slot's byte
// says from now on that the client lives. 0 when there is none. The last slots are for guests: forked
// children that find no other.
inline u32 claim_slot(Segment& s, int fd, bool guest = false) {
    u32 own = s.g.max_clients - s.g.guests;
    for (u32 c = guest ? own + 1 : 1; c <= (guest ? s.g.max_clients : own); c++) {
        auto& state = s.clients[c - 1].state;
        if (state.load_acquire() != CLIENT_FREE || prim::lock_byte(fd, LOCKS_AT + long(c)) != 0) continue;
        BP_POINT("attach.locked");
        if (state.load_acquire() == CLIENT_FREE) {
            start_client(s, c);
            return c;
        }
        prim::unlock_byte(fd, LOCKS_AT + long(c));  // taken and died in between
    }
    return 0;
}

// ---- spaces that go with their client ------------------------------------------

inline u64 space_pages(u64 extent) { return extent & PAGES_MASK; }
inline u64 space_generation(u64 extent) { return extent >> GENERATION_SHIFT; }
inline u64 space_extent(u64 generation, u64 pages) { return generation << GENERATION_SHIFT | pages; }

// The entries of a space that its slot says have memory. False: there are none such in the segment.
inline bool entries_of(const Segment& s, const SpaceSlot& slot, u64& first, u64& n) {
    first = slot.first_entry.load_relaxed();
    n = std::min(slot.entries_ready.load_relaxed(), round_up(slot.max_pages.load_relaxed(), s.g.os_page / 8));
    return first <= s.g.max_pages && n <= s.g.max_pages - first;
}

// From here on no handle of the space whose extent was `seen` works: its generation is
// over. Needs no lock, hence one CAS: the slot may be another's by now. Whoever holds
// the directory lock next removes what is left.
inline void close_space(SpaceSlot& slot, u64 seen) {
    u64 generation = space_generation(seen), closed = (generation + 1) << GENERATION_SHIFT | CLOSED;
    while (!(seen & CLOSED) && space_generation(seen) == generation && !slot.extent.cas_seq_cst(seen, closed)) {}
    BP_POINT("remove.closing");
}

// Empties a space and frees its slot. Idempotent: a CLOSING space that somebody
// left is finished by the next one. Called with the directory lock held.
inline bool remove_space(Segment& s, u32 index, int patience, u32& freed) {
    SpaceSlot& slot = s.spaces[index];
    OpSlot op(s);
    if (!op.valid()) return false;
    close_space(slot, slot.extent.load_acquire());
    slot.state.store_seq_cst(SPACE_CLOSING);
    u64 first, n;
    if (!entries_of(s, slot, first, n)) return false;
    for (u64 i = 0; i < n; i++)
        if (s.has_page(u32(first + i)) && !drop_page(s, op.intent(), u32(first + i), patience, freed)) return false;
    BP_POINT("remove.empty");
    if (!lock_growth(s)) return false;  // from here on nobody appends; interrupted: the next one goes on
    slot.entries_ready.store_relaxed(0);
    slot.reserved.store_release(0);  // a client that reads no generation here also sees that the space is closed
    for (auto* field : {&slot.stored, &slot.device, &slot.inode, &slot.size_bytes, &slot.mtime_ns, &slot.ctime_ns, &slot.doubt})
        field->store_relaxed(0);
    slot.owner.store_relaxed(0);
    slot.flush_open.store_relaxed(0);
    slot.name[0] = slot.path[0] = 0;
    slot.extent.store_seq_cst(slot.extent.load_relaxed() & ~(CLOSED | PAGES_MASK));
    slot.state.store_seq_cst(SPACE_FREE);
    release(s, s.header->growth);
    BP_POINT("remove.free");
    return true;
}

// What the directory lock protects: a slot that a dead owner was filling is to go.
inline void repair_directory(Segment& s) {
    for (u32 i = 0; i < MAX_SPACES; i++)
        if (s.spaces[i].state.load_acquire() == SPACE_OPENING) close_space(s.spaces[i], s.spaces[i].extent.load_acquire());
}

// The directory lock was taken, perhaps over from a dead owner.
inline void repair_if_inherited(Segment& s, Acquired how) {
    if (how != Acquired::REPAIR) return;
    repair_directory(s);
    repaired(s, s.header->directory);
}

// Removes the closed spaces that nobody uses any more, without waiting for those
// that somebody does. Under the directory lock. Returns which are left, as bits.
inline u64 sweep_closing(Segment& s) {
    u64 left = 0;
    u32 freed = 0;
    for (u32 i = 0; i < MAX_SPACES; i++)
        if (s.spaces[i].is_closing() && !remove_space(s, i, 0, freed)) left |= u64(1) << i;
    if (freed) give_back_freed(s, freed);
    return left;
}

// Leaves the directory. Spaces that were closed meanwhile by somebody who could
// not wait for the lock are removed: either they see it free, or we see them.
inline void leave_directory(Segment& s) {
    u64 tried = sweep_closing(s);
    for (;;) {
        release(s, s.header->directory);
        u64 closing = 0;
        for (u32 i = 0; i < MAX_SPACES; i++)
            if (s.spaces[i].is_closing()) closing |= u64(1) << i;
        Acquired how;
        if (!(closing & ~tried) || !try_acquire(s, s.header->directory, how)) return;
        repair_if_inherited(s, how);
        tried |= closing;
        sweep_closing(s);
    }
}

inline bool lock_directory(Segment& s, bool interruptible = true) {
    Acquired a = acquire(s, s.header->directory, interruptible);
    if (a == Acquired::INTERRUPTED) return false;
    repair_if_inherited(s, a);
    sweep_closing(s);
    return true;
}

// The scratch spaces that client `c` owned go with it. Never waits for the
// directory lock: the caller may be its owner, or hold what its owner waits for.
inline void remove_owned(Segment& s, u32 c) {
    u64 generation = s.clients[c - 1].generation.load_relaxed();
    bool any = false;
    for (u32 i = 0; i < MAX_SPACES; i++) {
        SpaceSlot& slot = s.spaces[i];
        u64 seen = slot.extent.load_acquire();
        if (slot.state.load_acquire() == SPACE_LIVE && slot.owner.load_relaxed() == c &&
            slot.owner_generation.load_relaxed() == generation)
            close_space(slot, seen);
        any |= slot.is_closing();
    }
    Acquired how;
    if (!any || !try_acquire(s, s.header->directory, how)) return;
    repair_if_inherited(s, how);
    leave_directory(s);
}

// ---- reaping -----------------------------------------------------------------

inline void reap_intent(Segment& s, u32 c, Intent& intent) {
    Op op = Op(intent.op.load_acquire());
    u32 page = intent.page.load_relaxed(), f = intent.frame.load_relaxed(), old = intent.old.load_relaxed();
    u32 victim = intent.victim.load_relaxed();
    auto frame_cas = [&](u32 n, u64 from, u64 to) {
        if (n != NONE && s.has_frame(n)) s.frames[n].word.cas_seq_cst(from, to);
    };
    if (op == Op::EVICT && s.has_page(victim)) {
        settle_entry(s, victim, [&](u64 e) {
            if (entry::state(e) != EVICTING || entry::owner(e) != c) return e;
            u32 at = entry::frame(e);
            bool there = s.has_frame(at) && s.frames[at].word.load_acquire() == frame::live(victim);
            if (there) return entry::with_owner(entry::with_state(e, RESIDENT), 0);
            return (e & entry::VOLATILE) | ABSENT;  // no ghost: its stamp is the policy's, behind the memory lock
        });
    }
    if ((op == Op::LOAD || op == Op::EVICT) && s.has_page(page)) {
        // Only while the entry is LOADING(c), which nobody else changes, is the frame the load's. Later it is the
        // page's: a writer may be about to retire it, and the entry may name another already.
        auto loads = [c](u64 e) { return entry::state(e) == LOADING && entry::owner(e) == c; };
        if (loads(s.entries[page].load_acquire())) frame_cas(f, frame::live(page), frame::busy(c));
        settle_entry(s, page, [&](u64 e) { return loads(e) ? entry::with_owner(entry::with_state(e, ABSENT), 0) : e; });
    }
    if (op == Op::PUBLISH && s.has_page(page)) {
        bool swapped = entry::names(s.entries[page].load_acquire(), f);
        if (swapped) frame_cas(old, frame::live(page), frame::old(page));
        else frame_cas(f, frame::live(page), frame::busy(c));
    }
    if (op == Op::DISCARD && s.has_page(page) && !entry::names(s.entries[page].load_acquire(), old))
        frame_cas(old, frame::live(page), frame::old(page));
    if (op == Op::FLUSH)
        for (u64 p = page; p <= old && s.has_page(u32(p)); p++) {  // the pages of one space: no hole between them
            settle_entry(s, u32(p), [&](u64 e) {
                bool ours = entry::state(e) == RESIDENT && entry::flusher(e) == c;
                return ours ? entry::with_flusher(e, 0) : e;
            });
        }
    intent.op.store_release(u32(Op::NONE));
}

// The BUSY frames of a dead client: nobody knows whether they have memory, so
// the kernel gets it back in any case (a hole punched twice is a hole).
inline void reap_busy(Segment& s, u32 c) {
    u64 bytes = 0;
    for (u32 f = 0; f < s.ready;) {
        auto is_dead = [&](u32 i) {
            u64 w = s.frames[i].word.load_acquire();
            return frame::state(w) == BUSY && frame::client(w) == c;
        };
        if (!is_dead(f)) {
            f++;
            continue;
        }
        u32 end = f + 1;
        while (end < s.ready && is_dead(end)) end++;
        u64 length = u64(end - f) << s.g.page_shift;
        s.remove_frames(f, length);
        BP_POINT("reap.punched");
        lock_memory(s, false);
        for (u32 i = f; i < end; i++) hole_locked(s, i);
        unlock_memory(s);
        bytes += length;
        f = end;
    }
    s.counters().reclaimed_bytes[CLIENT_EXIT].add_relaxed(bytes);
}

// A lock that the dead client held: what it protects is repaired, then it is free. A waiter may set its bit
// meanwhile, so the word is looked at again: the slot is not to be freed while a lock has its number.
template <class F>
void reap_lock(Segment& s, u32 c, LockWord& lock, F repair) {
    u32 w = lock.word.load_seq_cst();
    while ((w & lock_word::OWNER) == c) {
        if (!take(s, lock, w, lock_word::REPAIR | lock_word::WAITED)) continue;
        repair();
        repaired(s, lock);
        return release(s, lock);
    }
}

// Ends the business of a dead client whose byte lock we hold, and frees its slot.
// `c` may be our own number: then we took over its slot in order to attach. False: the number of frames is damaged, so
// that we cannot find what it has left; the slot is not to be another's before somebody can.
inline bool reap_held(Segment& s, u32 c) {
    if (!s.look_at_ready()) return false;
    BP_POINT("reap.begin");
    // 1. The locks that it held, with what they protect.
    reap_lock(s, c, s.header->memory, [&] { rebuild(s); });
    if constexpr (ADVISES) reap_lock(s, c, s.header->advice, [&] { forget_advice(s); });
    reap_lock(s, c, s.header->growth, [&] { repair_growth(s); });
    reap_lock(s, c, s.header->directory, [&] { repair_directory(s); });
    for (u32 i = 0; i < MAX_SPACES; i++) reap_lock(s, c, s.spaces[i].flush_lock, [] {});
    BP_POINT("reap.locks");
    // 2. What it was about to change.
    for (Intent& intent : s.clients[c - 1].intents) {
        reap_intent(s, c, intent);
        BP_POINT("reap.intent");
    }
    // 3. Its writer fields: a page that has a writer stays in its frame.
    s.look_at_ready();
    for (u32 f = 0; f < s.ready; f++) {
        u64 w = s.frames[f].word.load_acquire();
        u32 page = frame::page(w);
        if (frame::state(w) != LIVE || !s.has_page(page)) continue;
        u64 e = s.entries[page].load_acquire();
        if (entry::state(e) == RESIDENT && entry::owner(e) == c)
            settle_entry(s, page, [&](u64 v) {
                return entry::state(v) == RESIDENT && entry::owner(v) == c ? entry::with_owner(v, 0) : v;
            });
    }
    BP_POINT("reap.fields");
    // 4. Its pins, and the superseded frames that only they had kept, or that it was about to settle.
    u64 broken = 0;
    bool has_pins = s.has_pins(c);
    for (u32 f = 0; f < s.ready; f++) {
        u64 w = s.frames[f].word.load_acquire();
        if (frame::state(w) == SETTLING && frame::client(w) == c) s.frames[f].word.cas_seq_cst(w, frame::old(frame::page(w)));
        if (!has_pins) continue;
        auto& count = s.pin_count_of(c, f);
        if (!count.load_relaxed()) continue;
        broken += count.load_relaxed();
        count.store_seq_cst(0);
    }
    s.counters().pins_broken.add_relaxed(broken);
    BP_POINT("reap.pins");
    sweep_old(s);
    // 5. Its frames.
    reap_busy(s, c);
    BP_POINT("reap.frames");
    // 6. Its scratch spaces.
    remove_owned(s, c);
    BP_POINT("reap.spaces");
    // 7. Its counters, and the slot.
    s.counters().reaped.add_relaxed(1);
#ifndef BP_EXPLORE  // no part of the protocol
    u32 budget = s.header->budget_frames.load_relaxed();
    post_event(s, WHAT_REAPED, WHY_DIED, 0, budget, budget, c);
#endif
    lock_memory(s, false);
    fold_counters(s, c);
    unlock_memory(s);
    s.clients[c - 1].state.store_release(CLIENT_FREE);
    BP_POINT("reap.done");
    return true;
}

inline void reap(Segment& s, u32 c) {
    DeadClient dead(s, c);
    if (dead.held() && s.clients[c - 1].state.load_acquire() == CLIENT_LIVE) reap_held(s, c);
}

// Reaps every dead client; returns how many there were.
inline u32 reap_all(Segment& s) {
    u32 n = 0;
    for (u32 c = 1; c <= s.g.max_clients; c++) {
        if (c == s.me || s.clients[c - 1].state.load_acquire() != CLIENT_LIVE || seems_alive(s, c)) continue;
        reap(s, c);
        n += s.clients[c - 1].state.load_acquire() == CLIENT_FREE;
    }
    return n;
}

// ---- attach and detach ---------------------------------------------------------

inline void detach(Segment& s) {
    if constexpr (ADVISES) drain(s);
    free_spares(s);
    remove_owned(s, s.me);
    for (u32 f = 0; s.lent && f < s.ready; f++) s.pin_count(f).store_seq_cst(0);
    sweep_old(s);
    lock_memory(s, false);
    fold_counters(s, s.me);
    BP_POINT("detach.folded");
    unlock_memory(s);
    // Only now: whoever takes a free slot must find no lock in its number's name.
    s.client().state.store_release(CLIENT_FREE);
    BP_POINT("detach.free");
    s.unlock_byte(LOCKS_AT + long(s.me));
    s.become(0);
}

// Makes this mapping a client, in a free slot or in that of a dead client. `error`: why no lock could be had,
// where that is not that somebody has it.
inline Status attach(Segment& s, int& error) {
    s.become(claim_slot(s, s.fd));
    for (u32 c = 1; s.me == 0 && c <= s.g.max_clients - s.g.guests; c++) {
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
    if (s.me == 0) return error ? Status::NO_LOCKS : Status::NO_CLIENT;
    if (int r = open_pins(s, s.me)) return detach(s), r == -EINTR ? Status::INTERRUPTED : Status::NO_SPACE;
    s.header->attaches.add_relaxed(1);
    return Status::OK;
}

inline Status attach(Segment& s) {
    int error = 0;
    return attach(s, error);
}

// ---- fork ----------------------------------------------------------------------

// Before a fork: a slot for the child, whose byte `fd` holds, with a pin for each frame that `each_pin(visit)` visits. 0:
// no slot is free, or there is no memory for its pins. `fd` is the child's own description: until the child is there, its
// byte lock alone says that it lives. Or it is ours, and the child has none (`unlocked`).
template <class Each>
u32 hand_over(Segment& s, int fd, Each each_pin, bool guest = false, bool unlocked = false) {
    u32 c = claim_slot(s, fd, guest);
    if (!c && reap_all(s)) c = claim_slot(s, fd, guest);
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
    return c;
}

}  // namespace bp
