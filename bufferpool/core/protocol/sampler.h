// The sampler: which references of this process are recorded for the shadows (policy/shadows.h).
#pragma once

#include "layout/layout.h"
#include "policy/shadows.h"

namespace bp {

#if defined(BP_EXPLORE) || defined(BP_NO_ADVICE)  // for the explorer, and for a benchmark's measure without advice
constexpr bool ADVISES = false;
#else
constexpr bool ADVISES = true;
#endif

// Records references of this process for the shadows (advice.h), in
// windows: a window is open until the buffer is full, and then the thread that filled it applies the samples
// to the shadows. A burst of windows takes a few milliseconds of processor time; the next burst begins so much later
// that sampling takes at most a four-hundredth of the time (time in which the process waits for a processor does not
// count). Between bursts a hit costs the same as without advice; in a process that is not busy, there is no pause, and
// every reference to a sampled page is recorded.
struct Sampler {
    static constexpr u32 WINDOW = ADVISES ? 512 : 1;
    Atomic<u8> gate;                  // 0xff while a window is open, else 0
    Atomic<u8> epoch;                 // a page is recorded once in an epoch
    Atomic<u32> tick, n, left;        // when the window was last looked at; how many references it has; how many more
                                      // this epoch takes
    Atomic<u64> opened_ns, reopen_ns;
    Atomic<u64> burst_ns, spent_ns;   // when the burst began, and how much processor time it has taken
    Atomic<u64> delayed_ns, thread;   // how long this thread had waited for a processor by then
    Atomic<u64> hits, misses;         // of this client, when the window opened
    bool paused = false;              // paused by sampling(); the times are relative to the pause then
    u64 rest_ns = 0;                  // the pause before the next burst
    u8 gate_before = 0;
    Atomic<u64> samples[WINDOW];      // page << 2 | SampleKind

    // Is a reference to the page of this frame recorded now? The product is 0 in three cases: no window is open, the
    // page is not sampled, or it was recorded in this epoch already.
    bool wants(const FrameSlot& slot) const {
        u32 mark = slot.mark.load_relaxed() & gate.load_relaxed();
        return mark * (mark ^ epoch.load_relaxed()) != 0;
    }
};

struct Segment;
// sampler.cpp
void record(Segment& s, u32 page, u32 kind);       // a reference to a sampled page
void record_load(Segment& s, u32 page, u32 kind);  // the same, of any page that was loaded
void look_after_window(Segment& s);                // opens or ends a window when its time has come
void drain(Segment& s);                            // ends the window now

}  // namespace bp
