// The worth of an object: an eviction takes a sample of the objects, and evicts the one that saves the least time for
// each byte of its record.
//
// Large objects are sampled separately: few objects have most of the bytes, and a sample of all objects hardly ever
// contains one. Time is counted in insertions, so that a hit writes to its own entry and to no other shared memory.
//
// Of an evicted object one word is kept, at the place in a table that its hash selects. If the object is inserted
// again, it starts with a part of its former frequency.
#pragma once

#include <algorithm>
#include <cmath>

#include "os/atomic.h"

namespace bp::worth {

constexpr u32 FREQUENCY_MOST = 4095;
constexpr u32 SAMPLES_OF_CLASS = 2;  // of each power of two of size, in the simulator
constexpr u32 SAMPLES_OF_ALL = 6;    // of all objects, in the simulator: enough if their sizes are similar
constexpr double REQUEST_BYTES = 65536;  // a request costs as much as the transfer of this many bytes

// The cost of loading an object, in requests, if the time of its load is not known.
constexpr float default_cost(u64 bytes) { return float(1 + double(bytes) / REQUEST_BYTES); }

// The cost of a load that took `seconds`: at most 16 times the default, and at least a 16th of it, because one slow
// load says little.
constexpr float measured_cost(u64 bytes, double seconds, double request_seconds = 0.0005) {
    float usual = default_cost(bytes);
    return std::clamp(float(seconds / request_seconds), usual / 16, usual * 16);
}

// The worth of an object: an estimate of its rate of use, times its cost, divided by its bytes. `idle`: insertions
// since its last use; `turnover`: the number of live objects, which is about how many insertions replace all of them.
// The frequency counts with the power 3/4, because a high frequency often dates from an earlier time.
inline double worth(u32 frequency, u32 idle, u32 turnover, u64 bytes, float cost) {
    double rate = std::sqrt(double(frequency) * std::sqrt(double(frequency)));
    return rate * cost / ((double(idle) + 1 + double(turnover) / 40) * double(bytes));
}

// The word of an evicted object: the high bits of its hash:20 | frequency:12 | when it was evicted, in insertions:32. A
// lost update costs precision only.
constexpr u64 remembered(u64 hash, u32 frequency, u32 now) {
    return hash >> 44 << 44 | u64(std::min(frequency, FREQUENCY_MOST)) << 32 | now;
}

// The frequency with which an object is inserted: 1, plus the remembered frequency, halved for each turnover since.
constexpr u32 first_frequency(u64 word, u64 hash, u32 now, u32 turnover) {
    if (!word || (word ^ hash) >> 44) return 1;
    u32 turns = (now - u32(word)) / std::max(turnover, 1u);
    return std::min(1 + (turns > 31 ? 0 : (u32(word >> 32) & FREQUENCY_MOST) >> turns), FREQUENCY_MOST);
}

}  // namespace bp::worth
