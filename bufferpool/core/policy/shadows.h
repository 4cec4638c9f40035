// The shadows: miniature pools that the pool's own policy runs in (layout/advice.h draws their area).
#pragma once

#include "layout/advice.h"
#include "policy/policy.h"

namespace bp {

// How a sampled page was referenced.
enum SampleKind : u32 { SAMPLE_ONCE = 1, SAMPLE_UNCOUNTED = 2 };

// The shadows of one area, for the client that holds its lock.
class Shadows {
    Advice& head_;
    const AdviceGeometry g_;
    const u32 max_frames_;
    AdviceRow* rows_;
    u16* index_;
    u64* rings_[SHADOWS][2];
    u32 frames_[SHADOWS], tags_[SHADOWS];

public:
    // For a pool whose budget is `frames` now.
    Shadows(u8* at, u32 max_frames, u32 frames, const AdviceGeometry& g);

    // Sampled references (page << 2 | SampleKind), `references` of all pages having been
    // made meanwhile and `misses` of them missed. Older figures fade: `window` sampled
    // references are remembered.
    void apply(const Atomic<u64>* samples, u32 n, u64 references, u64 misses, double window);
    Advice& head() { return head_; }

private:
    void reset(u32 frames);
    void set_frames(u32 frames);
    u32 next_unit(u32 n, double smallest_missed) const;
    u32 find(u32 page) const;
    u32 add(u32 page);
    void link(u32 row);
    void reference(u32 row, u32 kind);
    void miss(u32 i, u32 row, u32 kind);
    void prepare();
    void fit(u32 i);
    void purge();
    void halve();
    void fade();
    void drop_rows(u32 ages);
};

}  // namespace bp
