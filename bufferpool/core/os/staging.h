// Huge pages into which a file is read before its pages are copied into frames.
//
// The memory of a frame consists of small OS pages that are not neighbours in physical memory, and a read needs a
// descriptor of the disk's queue for each of them. A virtio disk has 256 descriptors, so it works on few large reads
// at one time. A read into a huge page needs one descriptor for all of its bytes. The same few places are used again
// and again, so what was read is in the processor's cache, and the copy costs less than it saves. See
// docs/performance.md.
#pragma once

#include <atomic>

#include "os/heap.h"

namespace bp {

// One huge page, which one batch of reads uses at a time, and which of its units are in use.
class Staging {
    static constexpr u64 BYTES = 2 << 20, UNIT = 4096;
    static constexpr u32 WORDS = BYTES / UNIT / 64;
    u64 used_[WORDS] = {};
    u8* at_ = nullptr;

    // The number of units that a read takes: a power of two, and at most 64, the units of one word of `used_`.
    static u32 units(u64 bytes) {
        u32 n = 1;
        while (n * UNIT < bytes) n *= 2;
        return n;
    }
    static u64 bits(u32 n) { return n == 64 ? ~u64(0) : (u64(1) << n) - 1; }

public:
    static constexpr u64 MOST = 64 * UNIT;  // the most bytes of one read

    bool open() {
        if (!at_) at_ = prim::map_huge(BYTES);
        return at_;
    }
    // Called in a forked child, which does not have the mapping.
    void forget() {
        at_ = nullptr;
        for (u64& word : used_) word = 0;
    }

    // Takes the lowest free units for a read, because they were used last. Null if there are not enough.
    u8* take(u64 bytes) {
        if (bytes > MOST) return nullptr;
        u32 n = units(bytes);
        for (u32 w = 0; w < WORDS; w++)
            for (u32 shift = 0; shift < 64; shift += n) {
                if (used_[w] >> shift & bits(n)) continue;
                used_[w] |= bits(n) << shift;
                return at_ + (w * 64ull + shift) * UNIT;
            }
        return nullptr;
    }
    // Are there free units for a read of MOST bytes?
    bool has_room() const {
        for (u64 word : used_)
            if (!word) return true;
        return false;
    }
    void give_back(const u8* from, u64 bytes) {
        u64 unit = u64(from - at_) / UNIT;
        used_[unit / 64] &= ~(bits(units(bytes)) << unit % 64);
    }
};

// The staging pages of this process: as many as its batches have needed at one time, up to MOST.
class Stagings {
    static constexpr u32 MOST = 8;
    Staging all_[MOST];
    std::atomic<bool> used_[MOST] = {};
    std::atomic<bool> refused_{false};  // this system gives no huge page

public:
    static Stagings& of_this_process() {
        static Stagings stagings;
        return stagings;
    }

    // Returns a free staging page, or a new one. Null: there is none, and the caller reads into the frames directly.
    Staging* borrow() {
        if (refused_.load(std::memory_order_relaxed)) return nullptr;
        for (u32 i = 0; i < MOST; i++) {
            if (used_[i].exchange(true, std::memory_order_acquire)) continue;
            if (all_[i].open()) return &all_[i];
            used_[i].store(false, std::memory_order_release);
            refused_.store(true, std::memory_order_relaxed);
            return nullptr;
        }
        return nullptr;
    }
    void give_back(Staging* staging) {
        if (staging) used_[staging - all_].store(false, std::memory_order_release);
    }

    // Called in a forked child, which has neither the mappings nor the threads that used them.
    void forget() {
        for (u32 i = 0; i < MOST; i++) {
            all_[i].forget();
            used_[i].store(false, std::memory_order_relaxed);
        }
    }
};

}  // namespace bp
