// Duelling: chooses the mode of the replacement policy.
//
// There is one miniature pool for each mode; all of them get the references to the same sampled pages. For the present
// mode the misses of the pool itself count, not those of its miniature, because the pool may be stuck in a state that
// the miniature never reached. Each other mode has a *lead*, a one-sided cumulative sum (CUSUM: Page, Continuous
// Inspection Schemes, Biometrika 1954): the misses that the mode would have saved, less 5 % of the mean of its misses
// and the pool's. So the lead of a mode that is only as good as the present one stays at 0. The first lead above half
// of a miniature's frames changes the mode.
//
// A change soon after the last one doubles the lead that the next change needs, up to 16 times: when pinned pages take
// frames from the pool, all miniatures seem better than the pool, and the mode must not change endlessly.
//
// The miniatures get every miss on a sampled page, and the first hit of a page in each unit of
// time (Alr::tag), because such a hit writes to the frame's slot in any case.
#pragma once

#include <bit>

#include "layout/duel.h"
#include "policy/sampled_pages.h"

namespace bp {

// The duel of one pool, for the client that holds its memory lock.
class Duelling {
    static constexpr double HANDICAP = 0.05;  // the share of the misses that is subtracted from a lead
    static constexpr u32 DOUBLINGS_MOST = 4;
    static constexpr u32 CALM = 4;  // a change within this many turnovers of a miniature is too soon
    Duel& d_;
    SampledPages<DuelRow> pages_;

public:
    explicit Duelling(Duel& d) : d_(d), pages_(d.rows, DUEL_ROWS, d.index, DUEL_SLOTS, d.first_free) {}

    static constexpr bool has_duel(u32 frames) { return frames >= 2 * DUEL_LEAST; }

    // The shift for a pool of `frames` frames: one page in 2^shift is sampled; 32: none.
    static constexpr u32 shift_of(u32 frames) {
        return has_duel(frames) ? std::bit_width(frames) - std::bit_width(DUEL_LEAST) : 32;
    }
    static constexpr bool samples(u32 shift, u32 page) { return shift < 32 && is_sampled(page, shift); }

    // Counts a reference to a sampled page. `missed`: the pool did not have it; `evicted`: the policy had evicted
    // it. True: the mode has changed.
    template <class Env>
    bool reference(Alr<Env>& policy, PolicyState& state, u32 page, u32 kind, bool missed, bool evicted) {
        u32 shift = shift_of(state.frames), frames = policy.shared() >> (shift & 31);
        if (d_.frames != state.frames) start(state.frames, shift);
        if (!samples(shift, page) || frames < DUEL_LEAST / 2) return false;
        if (frames >= 2 * DUEL_LEAST) frames = 2 * DUEL_LEAST - 1;
        u32 row = pages_.find(page);
        if (row == NONE && pages_.is_full()) pages_.purge(d_.pool, MODES);
        if (row == NONE) row = pages_.add(page);
        if (row == NONE) return false;
        bool miss[MODES];
        for (u32 mode = 0; mode < MODES; mode++) miss[mode] = refer(mode, frames, row, kind);
        u32 now = policy.mode();
        // A page that left the pool without being evicted was dropped: no mode could have kept it.
        if (missed && !evicted && !miss[now]) return false;
        miss[now] = missed;
        d_.misses += missed;
        u32 best = winner(now, miss, frames);
        if (best == now) return false;
        change(policy, state, best, frames);
        return true;
    }

private:
    // Adapts to another budget: the duel starts anew if the sample changes. `doublings` is kept.
    void start(u32 frames, u32 shift) {
        bool anew = d_.frames == 0 || shift != d_.shift.load_relaxed();
        d_.frames = frames;
        if (!anew) return;
        d_.shift.store_relaxed(shift);
        d_.misses = 0;
        for (double& lead : d_.lead) lead = 0;
        memset(static_cast<void*>(d_.pool), 0, sizeof d_.pool);
        pages_.clear();
    }

    bool refer(u32 mode, u32 frames, u32 row, u32 kind) {
        auto& rings = d_.rings[mode];
        Miniature<DuelRow> small(d_.pool[mode], frames, {d_.rows, DUEL_ROWS, mode, DUEL_RING, {rings[0], rings[1]}});
        small.configure(mode);
        small.fit();
        return small.reference(row, kind);
    }

    u32 winner(u32 now, const bool* miss, u32 frames) {
        double needed = frames / 2.0 * (1u << (d_.doublings < DOUBLINGS_MOST ? d_.doublings : DOUBLINGS_MOST));
        u32 best = now;
        for (u32 mode = 0; mode < MODES; mode++) {
            if (mode == now) continue;
            double lead = d_.lead[mode] + (miss[now] - miss[mode] - HANDICAP * (miss[now] + miss[mode]) / 2);
            d_.lead[mode] = lead > 0 ? lead : 0;
            if (lead > needed && (best == now || lead > d_.lead[best])) best = mode;
        }
        return best;
    }

    template <class Env>
    void change(Alr<Env>& policy, PolicyState& state, u32 mode, u32 frames) {
        bool soon = d_.misses < CALM * frames << (d_.doublings & 7);
        if (soon && d_.doublings < DOUBLINGS_MOST) d_.doublings++;
        else if (!soon && d_.doublings) d_.doublings--;
        d_.misses = 0;
        for (double& lead : d_.lead) lead = 0;
        u32 target = state.cold_target;
        if (mode == MODE_ADAPTIVE) target = u32(u64(d_.pool[mode].cold_target) * state.frames / frames);
        if (mode == MODE_LOOP) target = state.frames / 50;
        policy.set_mode(mode, target);
    }
};

}  // namespace bp
