// Working on the shadows: what the sampler and advise() share.
#pragma once

#include "protocol/lock.h"

namespace bp {

inline Advice& head_of(Segment& s) { return *reinterpret_cast<Advice*>(s.advice); }

struct Seen {
    u64 hits, misses;
};

// sampler.cpp
Seen seen_by(const Counters& counters);
u64 all_references(Segment& s);               // of all clients, present and past
void open_window(Segment& s, u64 now);
void read_counters(Segment& s, Advice& head, u64 now);
void apply_window(Segment& s, Shadows& shadows);

// The memory is there from the pool's creation; the lock is ours.
template <class F>
void with_shadows(Segment& s, Acquired how, F work) {
    BP_POINT("advice.locked");
    if (how == Acquired::REPAIR) {
        forget_advice(s);
        repaired(s, s.header->advice);
    }
    u32 budget = s.header->budget_frames.load_relaxed();
    Shadows shadows(s.advice, s.g.max_frames, budget >= 1 && budget <= s.g.max_frames ? budget : s.g.max_frames,
                    AdviceGeometry(s.g.max_frames));
    read_counters(s, shadows.head(), prim::boot_ns());
    work(shadows);
    BP_POINT("advice.worked");
    release(s, s.header->advice);
}

}  // namespace bp
