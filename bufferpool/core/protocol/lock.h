// A lock between processes that survives the death of its owner.
//
//   31     30       29         12 11      0
//  +------+--------+-------------+---------+
//  | wait | repair |  0          | owner   |
//  +------+--------+-------------+---------+
//
// It is not a robust pthread mutex. This word has the owner's client number, so one test of liveness (the client's byte
// lock, rule 10: see liveness.h) is enough, across pid namespaces and after a fork. And the explorer can schedule the
// accesses to it.
//
// A client that inherits the lock of a dead owner makes itself the owner, with the repair bit set until it has rebuilt
// what the lock protects: if it dies too, the next client that inherits the lock rebuilds.
#pragma once

#include "protocol/liveness.h"

namespace bp {

enum class Acquired { YES, REPAIR, INTERRUPTED };

namespace lock_word {
constexpr u32 WAITED = 1u << 31, REPAIR = 1u << 30, OWNER = CLIENTS_LIMIT;
}

// Makes this client the owner by one CAS from `seen`, which becomes the word that was found if the CAS fails.
inline bool take(Segment& s, LockWord& lock, u32& seen, u32 flags) {
    Segment::LockUse& use = s.use_of(lock);
    use.begun.add();
    if (lock.word.cas_seq_cst(seen, s.me | flags)) return true;
    use.ended.add();
    return false;
}

// Takes a lock that is free, has no waiter, and needs no repair.
inline bool take_if_free(Segment& s, LockWord& lock) {
    u32 free = 0;
    return lock.word.load_relaxed() == 0 && take(s, lock, free, 0);
}

// Takes a lock from the owner in `seen`, which is dead or no client, and so cannot release it. If another client sets
// the wait bit meanwhile, the CAS is tried again.
inline bool take_from(Segment& s, LockWord& lock, u32 seen, u32 flags) {
    u32 owner = seen & lock_word::OWNER;
    while ((seen & lock_word::OWNER) == owner)
        if (take(s, lock, seen, flags)) return true;
    return false;
}

// Is the word damaged? It is if its owner is no client, or is this client while none of its threads has the lock: all
// attempts to take it had ended when the word was read, and no thread has begun one since (take() counts them).
inline bool is_nobodys(Segment& s, LockWord& lock, u32 seen) {
    u32 owner = seen & lock_word::OWNER;
    if (owner != s.me) return owner && !s.has_slot(owner);
    Segment::LockUse& use = s.use_of(lock);
    u64 begun = use.begun.value();
    return use.ended.value() == begun && lock.word.load_seq_cst() == seen && use.begun.value() == begun;
}

// Tries to inherit a lock from a dead owner. True: this client owns the lock, and must repair what it protects.
inline bool inherit(Segment& s, LockWord& lock, u32 seen) {
    DeadClient dead(s, seen & lock_word::OWNER);
    return (dead.held() || is_nobodys(s, lock, seen)) &&
           take_from(s, lock, seen, lock_word::REPAIR | lock_word::WAITED);
}

inline Acquired acquired(u32 word) { return word & lock_word::REPAIR ? Acquired::REPAIR : Acquired::YES; }

// Waits for a lock and takes it. INTERRUPTED: a signal handler raised, the call's time is over, or `slices` slices of
// the wait have passed.
inline Acquired acquire(Segment& s, LockWord& lock, bool interruptible = true, u32 slices = ~0u) {
    slices = std::min(slices, most_slices);
    for (int spin = 0; spin < prim::SPINS; spin++) {
        if (take_if_free(s, lock)) return Acquired::YES;
        prim::relax();
    }
    s.counters().wait_memory.add_relaxed(1);
    u64 since = prim::now_ns();
    auto ours = [&](Acquired how) { return s.took(LATENCY_WAIT, since), how; };
    for (;;) {
        u32 w = lock.word.load_seq_cst();
        if ((w & lock_word::OWNER) == 0) {  // free; the repair bit may be set
            if (take(s, lock, w, lock_word::WAITED | (w & lock_word::REPAIR))) return ours(acquired(w));
            continue;
        }
        if (!(w & lock_word::WAITED)) {
            if (!lock.word.cas_seq_cst(w, w | lock_word::WAITED)) continue;
            w |= lock_word::WAITED;
        }
        u64 slice = std::min(LOCK_SLICE_NS, std::max<u64>(time_left_ns(), LOCK_SLICE_NS / 20));
        if (prim::futex_wait(&lock.word, w, slice) == -ETIMEDOUT) {
            if (inherit(s, lock, w)) return ours(Acquired::REPAIR);
            if (slices-- == 0) return ours(Acquired::INTERRUPTED);
        }
        if (interruptible && (is_too_late() || (s.interrupted && s.interrupted(s)))) return ours(Acquired::INTERRUPTED);
    }
}

// Takes a free lock, or one whose owner is dead, without waiting. True: this client owns it.
inline bool try_acquire(Segment& s, LockWord& lock, Acquired& how) {
    u32 w = lock.word.load_seq_cst();
    how = acquired(w);
    if ((w & lock_word::OWNER) == 0) return take(s, lock, w, w);
    how = Acquired::REPAIR;
    return inherit(s, lock, w);
}

// The number of a client that has one of the locks for which calls wait; 0: none has. It is a hint for error messages.
inline u32 lock_owner(Segment& s) {
    u32 owner = 0;
    for (LockWord* lock : {&s.header->memory, &s.header->growth, &s.header->objects, &s.header->advice})
        if (!owner) owner = lock->word.load_relaxed() & lock_word::OWNER;
    return owner;
}

inline void repaired(Segment& s, LockWord& lock) {
    u32 w = lock.word.load_relaxed();
    while (!lock.word.cas_seq_cst(w, w & ~lock_word::REPAIR)) {}
    s.counters().rebuilds.add_relaxed(1);
}

inline void release(Segment& s, LockWord& lock) {
    u32 w = lock.word.swap_seq_cst(0);
    s.use_of(lock).ended.add();
    if (w & lock_word::WAITED) prim::futex_wake_all(&lock.word);
}

}  // namespace bp
