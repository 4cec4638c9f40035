// Which object is evicted: the one that earns least for each of its bytes, of a few that are looked at.
#pragma once

#include "os/atomic.h"

namespace bp {

constexpr u32 OBJECT_LOOKS = 24;   // objects that a search compares
constexpr u8 OBJECT_USES = 0xff;   // the most uses that are counted

struct ObjectWorth {
    u32 uses;   // since it was put, at least 1
    u32 age;    // ticks since its last use
    u64 bytes;
    u32 cost;   // of its load, in microseconds
};

// Uses for each byte and tick, as hyperbolic caching has it (Blankstein, Sen and Freedman, ATC 2017).
inline double worth_of(const ObjectWorth& o) {
    return double(o.uses) / (double(o.age + 1) * double(o.bytes + 64));
}

}  // namespace bp
