// Reaping: releasing what a dead client held, and completing or undoing its operations (rules 10 and 11).
//
// A client is alive while its byte lock is held (liveness.h). A reaper takes that lock, and works in numbered phases.
// Every change is a CAS from the state that the dead client left, or can be repeated: so a reaper may die at any point,
// and the next one starts over.
#pragma once

#include "protocol/counters.h"
#include "protocol/events.h"
#include "protocol/object_reap.h"
#include "protocol/publish_many.h"
#include "protocol/spaces.h"

namespace bp {

inline void reap_intent(Segment& s, u32 c, Intent& intent) {
    EntryLook look(s);
    Op op = Op(intent.op.load_acquire());
    u32 page = intent.page.load_relaxed(), f = intent.frame.load_relaxed(), old = intent.old.load_relaxed();
    u32 victim = intent.victim.load_relaxed();
    auto frame_cas = [&](u32 n, u64 from, u64 to) {
        if (n != NONE && s.has_frame(n)) s.frames[n].word.cas_seq_cst(from, to);
    };
    if (op == Op::EVICT && s.has_page(victim)) {
        settle_entry(s, victim, [&](u64 e) {
            // A PENDING page is not being evicted: it belongs to a group of another thread of the client.
            if (entry::state(e) != EVICTING || entry::is_pending(e) || entry::owner(e) != c) return e;
            u32 at = entry::frame(e);
            bool there = s.has_frame(at) && s.frames[at].word.load_acquire() == frame::live(victim);
            if (there) return entry::with_owner(entry::with_state(e, RESIDENT), 0);
            return (e & entry::VOLATILE) | ABSENT;  // no ghost: its stamp needs the policy, under the memory lock
        });
    }
    if ((op == Op::LOAD || op == Op::LOAD_MANY || op == Op::EVICT) && s.has_page(page)) {
        // The frame belongs to the load only while the entry is LOADING(c), which no other client changes. After that
        // it belongs to the page: a writer may be about to retire it, and the entry may already name another frame.
        u64 e = s.entries[page].load_acquire();
        if (entry::state(e) == LOADING && entry::owner(e) == c) frame_cas(f, frame::live(page), frame::busy(c));
        unclaim(s, page, c);
    }
    if (op == Op::PUBLISH && s.has_page(page)) {
        bool swapped = entry::names(s.entries[page].load_acquire(), f);
        if (swapped) frame_cas(old, frame::live(page), frame::retired(page));
        else frame_cas(f, frame::live(page), frame::busy(c));
    }
    if (op == Op::DISCARD && s.has_page(page) && !entry::names(s.entries[page].load_acquire(), old))
        frame_cas(old, frame::live(page), frame::retired(page));
    if (op == Op::FLUSH)
        for (u64 end = std::min(u64(old) + 1, s.g.max_pages), p = s.next_page(page, end); p < end;
             p = s.next_page(p + 1, end)) {
            settle_entry(s, u32(p), [&](u64 e) {
                bool ours = entry::is_there(e) && entry::flusher(e) == c;
                return ours ? entry::with_flusher(e, 0) : e;
            });
        }
    if (op == Op::PUBLISH_MANY) reap_group(s, c, intent);
    intent.op.store_release(u32(Op::NONE));
}

// Gives memory to BUSY frames of a dead client that must not become holes, because their memory may be a part of a huge
// page. Returns false if they may become holes: their extent has a hole, or they had no memory and the kernel has none
// for them.
inline bool keep_busy(Segment& s, u32 first, u32 n, int& error) {
    if (!s.g.huge_pages || n == s.g.extent_frames || has_hole(s, first / s.g.extent_frames)) return false;
    error = s.plug(s.page_offset(first), u64(n) << s.g.page_shift);
    if (error != -ENOSPC && error != -ENOMEM) return true;
    error = 0;
    return false;
}

// Makes the BUSY frames of a dead client holes. It is unknown whether they have memory, so they are punched in any case
// (punching a hole has no effect). In a pool with huge pages, frames that are a part of an extent become FREE. False:
// another client has the memory lock, or the kernel refuses.
inline bool reap_busy(Segment& s, u32 c) {
    for (u32 f = 0; f < s.ready;) {
        auto is_dead = [&](u32 i) {
            u64 w = s.frames[i].word.load_acquire();
            return frame::state(w) == BUSY && frame::client(w) == c;
        };
        if (!is_dead(f)) {
            f++;
            continue;
        }
        u32 end = f + 1, most = s.g.huge_pages ? f - f % s.g.extent_frames + s.g.extent_frames : u32(s.ready);
        while (end < most && end < s.ready && is_dead(end)) end++;
        u64 length = u64(end - f) << s.g.page_shift;
        int refused = 0;
        bool kept = keep_busy(s, f, end - f, refused);
        if (refused) return false;
        if (!kept) refused = s.remove_frames(f, length);
        BP_POINT("reap.punched");
        if (!lock_memory(s, false)) return false;
        for (u32 i = f; i < end; i++) {
            if (kept) free_locked(s, i);
            else hole_locked(s, i);
        }
        unlock_memory(s);
        if (!kept && !refused) count_reclaimed(s, length, CLIENT_EXIT);
        f = end;
    }
    return true;
}

// Releases a lock that the dead client held, after repairing what it protects. The CAS is repeated, because a waiter
// may set the wait bit meanwhile, and the slot must not be freed while a lock has its number.
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

// Clears the writer field of entries whose writer is client `c`, and makes the entries of pages that it was loading
// together (load_many.h) ABSENT.
inline void reap_owned(Segment& s, u32 c) {
    EntryLook look(s);
    s.look_at_ready();
    for (u32 f = 0; f < s.ready; f++) {
        u64 w = s.frames[f].word.load_acquire();
        u32 page = frame::page(w);
        if (!s.has_page(page)) continue;
        if (frame::state(w) == BUSY && frame::client(w) == c) unclaim(s, page, c);
        if (frame::state(w) != LIVE) continue;
        u64 e = s.entries[page].load_acquire();
        if (entry::state(e) == RESIDENT && entry::owner(e) == c)
            settle_entry(s, page, [&](u64 v) {
                return entry::state(v) == RESIDENT && entry::owner(v) == c ? entry::with_owner(v, 0) : v;
            });
    }
}

// Reaps a dead client whose byte lock we hold, and frees its slot. `c` may be our own number: then we took over its
// slot in order to attach. False: a living process, which may be stopped, has a lock that is needed; or the number of
// frames or of spaces is damaged, so that we cannot find what the client has left. The slot is not reused before a
// reaper has completed all phases.
inline bool reap_held(Segment& s, u32 c) {
    Patience patience(PATIENT_SLICES);
    if (!s.look_at_ready() || !s.look_at_spaces()) return false;
    BP_POINT("reap.begin");
    // 1. The locks that it held: what they protect is repaired, and they are released.
    reap_lock(s, c, s.header->memory, [&] { rebuild(s); });
    if constexpr (ADVISES) reap_lock(s, c, s.header->advice, [&] { forget_advice(s); });
    reap_lock(s, c, s.header->growth, [&] { repair_growth(s); });
    reap_lock(s, c, s.header->directory, [&] { repair_directory(s); });
    for (u32 i = 0; i < s.spaces_ready; i++) reap_lock(s, c, s.spaces[i].flush_lock, [] {});
    BP_POINT("reap.locks");
    if (!reap_objects(s, c)) return false;
    // 2. What it was about to change.
    for (Intent& intent : s.clients[c - 1].intents) {
        reap_intent(s, c, intent);
        BP_POINT("reap.intent");
    }
    // 3. Its writer fields, because a page with a writer is not moved or evicted; and the pages that it was loading
    // together, which its BUSY frames name.
    reap_owned(s, c);
    BP_POINT("reap.fields");
    // 4. Its pins; the frames that it was about to settle; and the retired frames that only its pins kept.
    u64 broken = 0;
    bool has_pins = s.has_pins(c);
    for (u32 f = 0; f < s.ready; f++) {
        u64 w = s.frames[f].word.load_acquire();
        if (frame::state(w) == SETTLING && frame::client(w) == c)
            s.frames[f].word.cas_seq_cst(w, frame::retired(frame::page(w)));
        if (!has_pins) continue;
        auto& count = s.pin_count_of(c, f);
        if (!count.load_relaxed()) continue;
        broken += count.load_relaxed();
        count.store_seq_cst(0);
    }
    s.counters().pins_broken.add_relaxed(broken);
    BP_POINT("reap.pins");
    sweep_retired(s);
    // 5. Its frames.
    if (!reap_busy(s, c)) return false;
    BP_POINT("reap.frames");
    // 6. The blocks of entries that it might touch, and its private spaces.
    leave_blocks(s, c);
    remove_owned(s, c);
    BP_POINT("reap.spaces");
    // 7. Its counters, and the slot.
    if (!lock_memory(s, false)) return false;
    recount_shares(s);
    bool died = !s.clients[c - 1].ending.load_relaxed();
    s.counters().reaped.add_relaxed(u64(died));  // before the fold: `c` may be our own number
    fold_counters(s, c);
    unlock_memory(s);
#ifndef BP_EXPLORE  // not part of the protocol
    u32 budget = s.header->budget_frames.load_relaxed();
    if (died) post_event(s, NewEvent{KIND_REAPED, REASON_DIED, 0, budget, budget, double(c)});
#endif
    s.clients[c - 1].state.store_release(CLIENT_FREE);
    BP_POINT("reap.done");
    return true;
}

// Reaps client `c` if it is dead. False: it is dead, and could not be reaped now.
inline bool reap(Segment& s, u32 c) {
    DeadClient dead(s, c);
    return !dead.held() || s.clients[c - 1].state.load_acquire() != CLIENT_LIVE || reap_held(s, c);
}

// Reaps every dead client; returns their number. If another client keeps a lock that it needs, the next call continues.
inline u32 reap_all(Segment& s) {
    u32 n = 0;
    finish_slots(s);
    for (u32 c = 1, slots = s.slots(); c <= slots; c++) {
        if (c == s.me || s.clients[c - 1].state.load_acquire() != CLIENT_LIVE || seems_alive(s, c)) continue;
        if (!reap(s, c)) break;
        n += s.clients[c - 1].state.load_acquire() == CLIENT_FREE;
    }
    return n;
}

}  // namespace bp
