// A set of frame numbers in the segment, with two levels of summaries.
#pragma once

#include "layout/layout.h"

namespace bp {

// The summaries let lowest() find its answer in a few loads. The memory lock protects the set.
class Bitmap {
    u64* level_[SET_LEVELS + 1] = {};
    const Shared<u32>* ready_ = nullptr;  // how many frames have slots; the set has no memory beyond

    u64 words(int level) const { return set_words(*ready_, level); }

public:
    Bitmap() = default;
    Bitmap(u8* at, const Geometry& g, u64* top, const Shared<u32>& ready) : ready_(&ready) {
        level_[0] = reinterpret_cast<u64*>(at);
        level_[1] = reinterpret_cast<u64*>(at + g.set_bytes[0]);
        level_[2] = top;
    }
    bool has(u32 i) const { return level_[0][i / 64] >> (i % 64) & 1; }
    void add(u32 i) {
        for (int l = 0; l < 3; l++, i /= 64) level_[l][i / 64] |= u64(1) << (i % 64);
    }
    void remove(u32 i) {
        for (int l = 0; l < 3; l++, i /= 64) {
            level_[l][i / 64] &= ~(u64(1) << (i % 64));
            if (level_[l][i / 64]) return;
        }
    }
    void clear() {
        for (int l = 0; l < 3; l++)
            for (u64 w = 0, n = words(l); w < n; w++) level_[l][w] = 0;
    }
    u64 size() const {
        u64 n = 0;
        for (u64 w = 0, end = words(0); w < end; w++) n += u64(__builtin_popcountll(level_[0][w]));
        return n;
    }
    u32 lowest() const {
        for (u64 t = 0, end = words(2); t < end; t++) {
            if (!level_[2][t]) continue;
            u64 b = t * 64 + u64(__builtin_ctzll(level_[2][t]));
            if (b >= words(1) || !level_[1][b]) return NONE;
            u64 a = b * 64 + u64(__builtin_ctzll(level_[1][b]));
            if (a >= words(0) || !level_[0][a]) return NONE;
            return u32(a * 64 + u64(__builtin_ctzll(level_[0][a])));
        }
        return NONE;
    }
    u32 highest_below(u32 end) const {
        for (u64 w = (end + 63ull) / 64; w-- > 0;) {
            u64 bits = level_[0][w];
            if (w == end / 64) bits &= (u64(1) << (end % 64)) - 1;
            if (bits) return u32(w * 64 + 63 - u64(__builtin_clzll(bits)));
        }
        return NONE;
    }
};

}  // namespace bp
