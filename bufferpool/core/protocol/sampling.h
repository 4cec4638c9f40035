// Access to the shadows, for the sampler and advise().
#pragma once

#include "protocol/lock.h"

namespace bp {

inline Advice& head_of(Segment& s) { return *reinterpret_cast<Advice*>(s.advice); }

struct References {
    u64 hits, misses;
};

// sampler.cpp
References own_references(Segment& s);
u64 all_references(Segment& s);               // of all clients, present and past
void open_window(Segment& s, u64 now);
void read_counters(Segment& s, Advice& head, u64 now);
void apply_window(Segment& s, Shadows& shadows);

// Calls `work` with the shadows, and then releases the advice lock, which the caller has taken. It does not call `work`
// if the word that bounds the shadows' memory is damaged.
template <class F>
void with_shadows(Segment& s, Acquired how, F work) {
    BP_POINT("advice.locked");
    if (how == Acquired::REPAIR) {
        forget_advice(s);
        repaired(s, s.header->advice);
    }
    u32 budget = s.header->budget_frames.load_relaxed(), most = s.look_at_advised();
    u32 mode = s.header->policy.mode < MODES ? s.header->policy.mode : u32(MODE_ADAPTIVE);
    if (most) {
        Shadows shadows(s.advice, most, budget >= 1 && budget <= most ? budget : most, AdviceGeometry(most), mode);
        read_counters(s, shadows.head(), prim::boot_ns());
        work(shadows);
    }
    BP_POINT("advice.worked");
    release(s, s.header->advice);
}

}  // namespace bp
