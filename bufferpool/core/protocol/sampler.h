// The sampler: which references of this process are recorded for the shadows (policy/shadows.h).
#pragma once

#include "layout/layout.h"
#include "policy/shadows.h"

namespace bp {

#if defined(BP_EXPLORE) || defined(BP_NO_ADVICE)  // the explorer's states have no shadows; the benchmark's yardstick
constexpr bool ADVISES = false;
#else
constexpr bool ADVISES = true;
#endif

// The references of this process that go to the shadows (advice.h). They are taken in
// windows: one is open until the buffer is full, and is then worked off by the thread that filled
// it. Windows follow each other until they have cost a few milliseconds; the next burst
// begins so much later that all of this takes a four-hundredth of the time (that in which the
// process waits for a processor does not count). Between bursts a hit costs what it costs without
// advice; a process that is not busy leaves nothing out.
struct Sampler {
    static constexpr u32 WINDOW = ADVISES ? 512 : 1;
    Atomic<u8> gate;                  // 0xff while a window is open, else 0
    Atomic<u8> epoch;                 // a page is recorded once in an epoch
    Atomic<u32> tick, n, left;        // of references; of this epoch
    Atomic<u64> opened_ns, reopen_ns;
    Atomic<u64> burst_ns, spent_ns;   // when the burst began, and what it has cost
    Atomic<u64> delayed_ns, thread;   // by then its thread had waited so long for a processor
    Atomic<u64> hits, misses;         // of this client, when the window opened
    bool paused = false;              // by sampling(): these are differences then, not points in time
    u64 rest_ns = 0;                  // to the next burst
    u8 gate_before = 0;
    Atomic<u64> samples[WINDOW];      // page << 2 | SampleKind

    // One comparison for three cases: closed, not sampled, recorded in this epoch.
    bool wants(const FrameSlot& slot) const {
        u32 mark = slot.mark.load_relaxed() & gate.load_relaxed();
        return mark * (mark ^ epoch.load_relaxed()) != 0;
    }
};

struct Segment;
// sampler.cpp
void record(Segment& s, u32 page, u32 kind);       // a reference to a sampled page
void record_load(Segment& s, u32 page, u32 kind);  // the same, of any page that was loaded
void look_after_window(Segment& s);                // opens or ends a window whose time has come
void drain(Segment& s);                            // ends the window now

}  // namespace bp
