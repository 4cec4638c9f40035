// Huge pages into which a file is read before its pages are copied into frames.
//
// Neighbouring bytes of a frame lie in small pages of memory that are anywhere in the machine, and a disk's queue has a
// descriptor for each of them: 256 in all for a virtio disk, so that it works on few large reads at one time. A read
// into a huge page needs one. It is in the processor's cache afterwards, as a read into a frame is not,
// because the same few places are used again; so the copy costs less than it saves. See docs/performance.md.
#pragma once

#include <atomic>

#include "os/heap.h"

namespace bp {

// One huge page, and which of its parts are in use: by one batch of reads at a time.
class Staging {
    static constexpr u64 BYTES = 2 << 20, UNIT = 4096;
    static constexpr u32 WORDS = BYTES / UNIT / 64;
    u64 used_[WORDS] = {};
    u8* at_ = nullptr;

    // How many units a read gets: a power of two, at most those of one word.
    static u32 units(u64 bytes) {
        u32 n = 1;
        while (n * UNIT < bytes) n *= 2;
        return n;
    }
    static u64 bits(u32 n) { return n == 64 ? ~u64(0) : (u64(1) << n) - 1; }

public:
    static constexpr u64 MOST = 64 * UNIT;  // bytes of one read

    bool open() {
        if (!at_) at_ = prim::map_huge(BYTES);
        return at_;
    }
    // Called in a forked child, which does not have the mapping.
    void forget() {
        at_ = nullptr;
        for (u64& word : used_) word = 0;
    }

    // Room for a read; the lowest, which was used last. Null if there is none.
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
    // Is there room for a read of any length up to MOST?
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

// Those of this process: as many as have been needed at one time, and a bounded number.
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

    // A free one, or a new one. Null: there is none, and the caller reads straight into the frames.
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

    // Called in a forked child: the threads that used them are its parent's.
    void forget() {
        for (u32 i = 0; i < MOST; i++) {
            all_[i].forget();
            used_[i].store(false, std::memory_order_relaxed);
        }
    }
};

}  // namespace bp
