// Gives the duel of modes (policy/duelling.h), which chooses the mode of the policy, the pool's misses, and the hits
// that clients have recorded for it (Segment::hit_sampled). Everything here runs under the memory lock.
#pragma once

#include "policy/duelling.h"
#include "protocol/memory.h"

namespace bp {

constexpr u32 HITS_A_MISS = 16;  // the most hits that one miss gives to the duel

// Ends the mode of a pool whose budget has become too small for a duel, which alone could end it.
inline void leave_mode(Segment& s, Alr<PoolEnv>& policy) {
    PolicyState& state = s.header->policy;
    if (policy.mode() == MODE_ADAPTIVE || Duelling::has_duel(state.frames)) return;
    policy.set_mode(MODE_ADAPTIVE, state.cold_target);
    count_mode_change(s, MODE_ADAPTIVE, REASON_SMALL);
}

// Gives the duel the hits that clients have added since the last call, the oldest first. Overwritten hits are lost.
inline void take_hits(Segment& s, Alr<PoolEnv>& policy, Duelling& duelling) {
    Duel& d = *s.duel;
    u32 added = d.hits_added.load_relaxed();
    if (added - d.hits_taken > DUEL_HITS) d.hits_taken = added - DUEL_HITS;
    for (u32 n = 0; n < HITS_A_MISS && d.hits_taken != added; n++, d.hits_taken++) {
        Atomic<u32>& hit = d.hits[d.hits_taken % DUEL_HITS];
        if (hit.load_relaxed() == 0) continue;
        u32 page = hit.swap_seq_cst(0) - 1;
        if (duelling.reference(policy, s.header->policy, page, 0, false, false)) count_mode_change(s, policy.mode());
    }
}

// Gives the duel a miss on a page whose entry was `e`. Without a ghost, or while frames are free, no mode could have
// kept the page.
inline void duel(Segment& s, Alr<PoolEnv>& policy, u32 page, u64 e, bool once) {
    if constexpr (!DUELS) return;
    Duelling duelling(*s.duel);
    take_hits(s, policy, duelling);
    bool full = s.header->resident.load_relaxed() >= s.page_budget();
    bool evicted = ghost_of(e) != Ghost::NONE && full;
    if (duelling.reference(policy, s.header->policy, page, once ? u32(SAMPLE_ONCE) : 0, true, evicted))
        count_mode_change(s, policy.mode());
    leave_mode(s, policy);
}

}  // namespace bp
