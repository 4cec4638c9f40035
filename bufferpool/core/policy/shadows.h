// The shadows: miniature pools with the pool's own policy (layout/advice.h describes their memory).
#pragma once

#include "policy/sampled_pages.h"

namespace bp {

// The shadows of one area, for the client that holds its lock.
class Shadows {
    Advice& head_;
    const AdviceGeometry g_;
    const u32 max_frames_, mode_;
    AdviceRow* rows_;
    u64* rings_[SHADOWS][2];
    u32 frames_[SHADOWS];
    SampledPages<AdviceRow> pages_;

public:
    // For a pool whose budget is `frames` now, and whose policy is in this mode.
    Shadows(u8* at, u32 max_frames, u32 frames, const AdviceGeometry& g, u32 mode = MODE_ADAPTIVE);

    // Applies sampled references (page << 2 | SampleKind). Meanwhile there were `references` references to all pages,
    // of which `misses` missed. Older figures decay, with a window of `window` sampled references.
    void apply(const Atomic<u64>* samples, u32 n, u64 references, u64 misses, double window);
    Advice& head() { return head_; }

private:
    void reset(u32 frames);
    void set_frames(u32 frames);
    u32 next_unit(u32 n, double smallest_missed) const;
    u32 add(u32 page);
    void reference(u32 row, u32 kind);
    void prepare();
    void fit(u32 i) { shadow(i).fit(); }
    Miniature<AdviceRow> shadow(u32 i);
    void halve();
    void fade();
};

}  // namespace bp
