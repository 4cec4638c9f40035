// The duel of modes: three miniature pools, one for each mode of the replacement policy, that see the same sampled
// pages. It decides which mode the pool is in (policy/duelling.h).
//
//   +--------+--------+-------------------------------+--------+--------+
//   | Duel   | hits   | rings                         | index  | rows   |   one area of the segment
//   | head   | u32[]  | of each mode: cold, hot u64[] | u16[]  | 16 B[] |
//   +--------+--------+-------------------------------+--------+--------+
//
// A miniature pool has 32 to 63 frames; a pool of less than 64 frames has no duel. The memory lock protects everything
// here except `hits`: any client adds a hit without a lock, and a client that holds the lock removes hits and counts
// them. A hit that is overwritten before that, or that a dead client has not written, is lost.
#pragma once

#include "layout/advice.h"

namespace bp {

constexpr u32 DUEL_LEAST = 32;  // the fewest frames of a miniature pool; the most are one less than twice as many
constexpr u32 DUEL_HITS = 256;
constexpr u32 DUEL_ROWS = 1024, DUEL_SLOTS = 2048, DUEL_RING = 2 * DUEL_LEAST + 4;

struct DuelRow {
    u32 page;  // NONE: free, and state[0] is the next free row
    u32 state[MODES];
};

struct Duel {
    u32 frames;         // the budget that the duel stands for; 0: it must start anew
    Atomic<u32> shift;  // one page in 2^shift is sampled; 32: none
    u32 first_free;     // row
    u32 doublings;      // how often the lead that a mode needs is doubled, because changes followed each other too soon
    u32 misses;         // the pool's misses on sampled pages, since the last change of the mode
    u32 hits_taken;
    Atomic<u32> hits_added;
    Atomic<u32> hits[DUEL_HITS];  // pages, +1; 0: taken, or not written yet
    u32 pad;
    double lead[MODES];  // how many misses each mode would have saved, compared with the present mode
    PolicyState pool[MODES];
    u64 rings[MODES][2][DUEL_RING];
    u16 index[DUEL_SLOTS];
    DuelRow rows[DUEL_ROWS];
};

}  // namespace bp
