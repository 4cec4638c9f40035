// An operation under way, and its intent, which says what the operation is about to change. If the client dies
// meanwhile, a reaper reads the intent.
#pragma once

#include <pthread.h>

#include "protocol/liveness.h"

namespace bp {

// A number of this thread, which is never 0. (pthread_self() is an aligned address, so its lowest bit is free.)
inline u64 this_thread() { return u64(pthread_self()) | 1; }

// Reserves one of this client's operations, with its intent, while the object lives.
class OpSlot {
    Segment& s_;
    int index_ = -1;
    bool nested_ = false;

    bool claim() {
        u64 used = s_.ops_used.load_relaxed();
        while (used != ALL_OPS) {
            int i = __builtin_ctzll(~used);
            if (!s_.ops_used.cas_seq_cst(used, used | u64(1) << i)) continue;
            index_ = i;
            s_.op_thread[i].store_relaxed(this_thread());
            return true;
        }
        return false;
    }

public:
    explicit OpSlot(Segment& s) : s_(s) {
        if (claim()) return;
        // All are in use: wait until one ends. The operations of threads that wait here do not end meanwhile: if all
        // belong to such threads, the wait would never end (`nested_`).
        u32 ours = 0;
        for (auto& thread : s.op_thread) ours += thread.load_relaxed() == this_thread();
        s.ops_held.add_seq_cst(ours);
        for (u64 tries = 0; !claim(); tries++) {
            nested_ = s.ops_held.load_seq_cst() == OPS;
            if (nested_ || is_too_late() || (tries % 64 == 63 && s.interrupted && s.interrupted(s))) break;
            if (tries < 64) prim::yield();
            else prim::nap(100'000);
        }
        s.ops_held.sub_seq_cst(ours);
    }
    // Reserves an operation only if one is free now.
    struct IfFree {};
    OpSlot(Segment& s, IfFree) : s_(s) { claim(); }
    // Takes over an operation whose index release() returned.
    OpSlot(Segment& s, int index) : s_(s), index_(index) {}
    OpSlot(const OpSlot&) = delete;
    ~OpSlot() {
        if (index_ < 0) return;
        intent().op.store_release(u32(Op::NONE));
        s_.op_thread[index_].store_relaxed(0);
        u64 used = s_.ops_used.load_relaxed();
        while (!s_.ops_used.cas_seq_cst(used, used & ~(u64(1) << index_))) {}
    }
    bool valid() const { return index_ >= 0; }
    Status why_not() const { return nested_ ? Status::TOO_DEEP : Status::INTERRUPTED; }
    int release() {
        int i = index_;
        index_ = -1;
        return i;
    }
    u32 number() const { return u32(index_) + 1; }
    Intent& intent() { return s_.client().intents[index_]; }
};

}  // namespace bp
