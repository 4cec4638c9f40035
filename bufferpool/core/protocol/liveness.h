// Liveness: a client is dead when its byte lock can be taken, and its process does not have the segment mapped (it may
// have lost the lock, if other code closed the descriptor). And how long a thread waits for others: Deadline, Patience,
// Quick.
#pragma once

#include "protocol/segment.h"

namespace bp {

// The time at which the waits of this thread's present call have to end, on the clock of now_ns(). It applies to the
// core alone: Python code that the call runs has a deadline of its own.
inline thread_local u64 call_deadline_ns;  // 0: without limit
class Deadline {
    u64 outer_;

public:
    explicit Deadline(u64 at_ns) : outer_(call_deadline_ns) { call_deadline_ns = at_ns; }
    Deadline(const Deadline&) = delete;
    ~Deadline() { call_deadline_ns = outer_; }
};
constexpr u64 LOCK_SLICE_NS = 20'000'000;
inline u64 time_left_ns() {
    if (!call_deadline_ns) return ~u64(0);
    u64 now = prim::now_ns();
    return now < call_deadline_ns ? call_deadline_ns - now : 0;
}
inline bool is_too_late() { return call_deadline_ns && !time_left_ns(); }

// How many slices this thread waits for a lock at most, where others may wait for this thread: in a reap, and while a
// pool is closed. The next reaper does what this thread has not done by then.
constexpr u32 PATIENT_SLICES = 50, BRIEF_SLICES = 5;
inline thread_local u32 most_slices = ~0u;
class Patience {
    u32 outer_;

public:
#ifdef BP_EXPLORE  // there a wait that may be given up is given up at any time
    explicit Patience(u32) : outer_(most_slices) {}
#else
    explicit Patience(u32 slices) : outer_(most_slices) { most_slices = std::min(outer_, slices); }
#endif
    Patience(const Patience&) = delete;
    ~Patience() { most_slices = outer_; }
};

// True while this thread must not wait for a lock: a thread that holds the interpreter's lock first tries without
// waiting (Quick).
inline thread_local bool quick_only;
class Quick {
    bool outer_ = quick_only;

public:
    Quick() { quick_only = true; }
    Quick(const Quick&) = delete;
    ~Quick() { quick_only = outer_; }
};

// True if an operation that could not get a lock has to end: a signal's handler has raised, or the call's time is over.
inline bool is_given_up(Segment& s) { return is_too_late() || (s.interrupted && s.interrupted(s)); }

// How many slices remain until the deadline, for a wait that no signal handler interrupts.
inline u32 slices_left() {
#ifdef BP_EXPLORE
    return 0;
#else
    return call_deadline_ns ? u32(std::min<u64>(time_left_ns() / LOCK_SLICE_NS, 1u << 30)) : ~0u;
#endif
}

// Holds the byte lock of client `c`, which proves that it is dead, while this object lives. One thread of a process
// does so at a time, because a byte lock belongs to the open file description and not to the thread.
//
// Threads wait for the mutex while they hold the interpreter's lock (in a fork, or in a deallocation), so the mutex's
// owner never waits for the interpreter's lock: no signal handler runs while a thread reaps (signal_came).
inline thread_local u32 reaping_here;
class DeadClient {
    Segment& s_;
    std::unique_lock<std::recursive_timed_mutex> guard_;
    u32 client_;
    bool held_ = false, nested_ = false;

public:
    DeadClient(Segment& s, u32 c) : s_(s), guard_(s.reap_mutex, std::defer_lock), client_(c) {
        reaping_here++;
        // If another thread reaps for longer than this, the client counts as alive.
        // (Not try_lock_for(): the thread sanitizer does not know pthread_mutex_clocklock.)
        u64 end = prim::now_ns() + std::min(PATIENT_SLICES * LOCK_SLICE_NS, time_left_ns());
        while (!guard_.try_lock()) {
            if (prim::now_ns() >= end) return;
            prim::nap(100'000);
        }
        if (!s.has_slot(c) || c == s.me) return;
        nested_ = s.reaping == c;
        held_ = nested_ || s.lock_byte(LOCKS_AT + long(c)) == 0;
        if (held_ && !nested_ && s.still_maps(c)) {
            s.unlock_byte(LOCKS_AT + long(c));
            held_ = false;
        }
        if (held_ && !nested_) {
            outer_ = s.reaping;
            s.reaping = c;
        }
    }
    DeadClient(const DeadClient&) = delete;
    ~DeadClient() {
        reaping_here--;
        if (!held_ || nested_) return;
        s_.reaping = outer_;
        s_.unlock_byte(LOCKS_AT + long(client_));
    }
    bool held() const { return held_; }

private:
    u32 outer_ = 0;
};

// Does client `c` live? The answer may be outdated when it returns. A decision to reap needs DeadClient.
inline bool seems_alive(Segment& s, u32 c) {
    if (!s.has_slot(c)) return false;
    return c == s.me || s.byte_is_locked(LOCKS_AT + long(c)) != 0 || s.still_maps(c);
}

}  // namespace bp
