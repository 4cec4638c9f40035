// Which object of a cache is evicted: the one that earns least for each byte that it holds, among sampled ones.
//
// The eviction of objects of many sizes takes a few samples, and evicts the one whose worth is least. The samples must
// come from every power of two of size that has objects: the few large objects that hold most of the bytes are hardly
// ever among samples of all objects. Time is a count of insertions, so that a hit writes to its own entry and to
// nothing else that is shared.
//
// Of an evicted object one word is kept, at the place in a table that its hash names. If the object comes back, it
// starts with what is left of its frequency.
#pragma once

#include <algorithm>
#include <cmath>

#include "os/atomic.h"

namespace bp::worth {

constexpr u32 FREQUENCY_MOST = 4095;
constexpr u32 SAMPLES_OF_CLASS = 2;  // of each power of two of size
constexpr u32 SAMPLES_OF_ALL = 6;    // of all objects: enough choice if their sizes are much the same
constexpr double REQUEST_BYTES = 65536;  // a request costs as much as the transfer of so many bytes

// What it costs to load an object of which no time is known, in requests.
constexpr float default_cost(u64 bytes) { return float(1 + double(bytes) / REQUEST_BYTES); }

// The cost of a load that took so long: within 16 times of the default, because one slow load says little.
constexpr float measured_cost(u64 bytes, double seconds, double request_seconds = 0.0005) {
    float usual = default_cost(bytes);
    return std::clamp(float(seconds / request_seconds), usual / 16, usual * 16);
}

// What an object earns for each byte: an estimate of its rate of use, times its cost, divided by its bytes.
// `idle`: insertions since its last use; `turnover`: how many insertions replace the cache, the number of its objects.
// The power 3/4 of the frequency counts, because a large one is often that of an earlier time.
inline double worth(u32 frequency, u32 idle, u32 turnover, u64 bytes, float cost) {
    double rate = std::sqrt(double(frequency) * std::sqrt(double(frequency)));
    return rate * cost / ((double(idle) + 1 + double(turnover) / 40) * double(bytes));
}

// What is remembered of an evicted object: tag of its hash:20 | frequency:12 | when, in insertions:32. A lost update
// costs precision only.
constexpr u64 remembered(u64 hash, u32 frequency, u32 now) {
    return hash >> 44 << 44 | u64(std::min(frequency, FREQUENCY_MOST)) << 32 | now;
}

// The frequency with which an object is inserted: 1, and what is left of the remembered one: half for each turnover.
constexpr u32 first_frequency(u64 word, u64 hash, u32 now, u32 turnover) {
    if (!word || (word ^ hash) >> 44) return 1;
    u32 turns = (now - u32(word)) / std::max(turnover, 1u);
    return std::min(1 + (turns > 31 ? 0 : (u32(word >> 32) & FREQUENCY_MOST) >> turns), FREQUENCY_MOST);
}

}  // namespace bp::worth
