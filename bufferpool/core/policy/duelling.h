// Duelling: chooses the mode of the replacement policy.
//
// There is one miniature pool for each mode; all see the references to the same sampled pages. For the present mode the
// misses of the pool itself count, not those of its miniature, because the pool may be stuck in a state that the
// miniature never reached. For each other mode a one-sided cumulative sum (CUSUM: Page, Continuous Inspection Schemes,
// Biometrika 1954) adds up by how much it misses less often, less 5 % of the mean of both, which is what makes modes
// that are equally good stand still. The first lead above half of a miniature's frames changes the mode, with two
// exceptions:
//
// - The recency mode is also entered with a quarter of the lead, if its miniature misses much less often (by more than
//   20 %) than that of the present mode. The two see the same sample, so that its bias cancels out, and a third of the
//   lead is enough. The change of a working set gives no more evidence than that.
// - The adaptive mode is the best one for most patterns. It is entered again without the 5 %, with a lead of a
//   miniature's frames.
//
// A change soon after the last one that returns to the mode before it, or to the adaptive mode, doubles the lead that
// the other modes need, up to 16 times: when pinned pages take frames from the pool, all miniatures seem better than
// the pool, and it must not change the mode endlessly.
//
// The miniatures see every miss on a sampled page, and a hit if it is the page's first in its unit of
// time (Alr::tag), because then a hit writes to the frame's slot anyway.
#pragma once

#include <bit>

#include "layout/duel.h"
#include "policy/sampled_pages.h"

namespace bp {

// The duel of one pool, for the client that holds its memory lock.
class Duelling {
    static constexpr double HANDICAP = 0.05;  // the share of the misses that is subtracted
    static constexpr double LEAD = 0.5, LEAD_HOME = 1;  // in frames of a miniature; the second: of the adaptive mode
    // of the recency mode: shares of the lead over the pool, and between the miniatures, and what is subtracted there
    static constexpr double LEAD_PAIR = 0.25, PAIR = 0.35, PAIR_HANDICAP = 0.2;
    static constexpr u32 DOUBLINGS_MOST = 4;
    static constexpr u32 CALM = 16;  // a change is "soon" within so many turnovers of a miniature
    Duel& d_;
    SampledPages<DuelRow> pages_;

public:
    explicit Duelling(Duel& d) : d_(d), pages_(d.rows, DUEL_ROWS, d.index, DUEL_SLOTS, d.first_free) {}

    // The shift for a pool of so many frames: one page in 2^shift is sampled; 32: none.
    static constexpr u32 shift_of(u32 frames) {
        return frames < 2 * DUEL_LEAST ? 32 : std::bit_width(frames) - std::bit_width(DUEL_LEAST);
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
        d_.misses += missed;
        add_up(now, missed, miss);
        u32 best = winner(now, frames);
        if (best == now) return false;
        change(policy, state, best, frames);
        return true;
    }

private:
    // Adapts to another budget, for which the sample changes. The record of soon changes is kept.
    void start(u32 frames, u32 shift) {
        bool anew = d_.frames == 0 || shift != d_.shift.load_relaxed();
        d_.frames = frames;
        if (!anew) return;
        d_.shift.store_relaxed(shift);
        forget_leads();
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

    void forget_leads() {
        d_.misses = 0;
        d_.paired = 0;
        for (double& lead : d_.lead) lead = 0;
    }

    static void add(double& lead, bool present, bool other, double handicap) {
        double sum = lead + (present - other - handicap * (present + other) / 2);
        lead = sum > 0 ? sum : 0;
    }

    // Adds one reference to the sums. `missed`: by the pool; `miss`: by each miniature.
    void add_up(u32 now, bool missed, const bool* miss) {
        for (u32 mode = 0; mode < MODES; mode++)
            if (mode != now) add(d_.lead[mode], missed, miss[mode], mode == MODE_ADAPTIVE ? 0 : HANDICAP);
        if (now != MODE_RECENCY) add(d_.paired, miss[now], miss[MODE_RECENCY], PAIR_HANDICAP);
    }

    // The mode that has the lead that it needs; the present one if there is none.
    u32 winner(u32 now, u32 frames) const {
        u32 doublings = d_.doublings < DOUBLINGS_MOST ? d_.doublings : DOUBLINGS_MOST, best = now;
        double needed = LEAD * frames * (1u << doublings), recency = d_.lead[MODE_RECENCY];
        bool paired = recency > LEAD_PAIR * needed && d_.paired > PAIR * needed;
        if (now != MODE_ADAPTIVE && d_.lead[MODE_ADAPTIVE] > LEAD_HOME * frames) best = MODE_ADAPTIVE;
        else if (now != MODE_RECENCY && paired) best = MODE_RECENCY;
        for (u32 mode : {MODE_RECENCY, MODE_LOOP})
            if (mode != now && d_.lead[mode] > needed && (best == now || d_.lead[mode] > d_.lead[best])) best = mode;
        return best;
    }

    template <class Env>
    void change(Alr<Env>& policy, PolicyState& state, u32 mode, u32 frames) {
        bool soon = d_.misses < CALM * frames << (d_.doublings & 7);
        bool returns = mode == d_.left || mode == MODE_ADAPTIVE;
        if (soon && returns && d_.doublings < DOUBLINGS_MOST) d_.doublings++;
        else if (!soon && d_.doublings) d_.doublings--;
        d_.left = policy.mode();
        forget_leads();
        u32 target = state.cold_target;
        if (mode == MODE_ADAPTIVE) target = u32(u64(d_.pool[mode].cold_target) * state.frames / frames);
        if (mode == MODE_LOOP) target = state.frames / 50;
        policy.set_mode(mode, target);
    }
};

}  // namespace bp
