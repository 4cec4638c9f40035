// The shadows of advice.h: nine miniature pools over one table of sampled pages.
#include "policy/shadows.h"

namespace bp {

Shadows::Shadows(u8* at, u32 max_frames, u32 frames, const AdviceGeometry& g, u32 mode)
    : head_(*reinterpret_cast<Advice*>(at)),
      g_(g),
      max_frames_(max_frames),
      mode_(mode),
      rows_(reinterpret_cast<AdviceRow*>(at + g.rows_at)),
      pages_(rows_, g.rows, reinterpret_cast<u16*>(at + g.index_at), g.slots, head_.first_free) {
    auto ring = reinterpret_cast<u64*>(at + g.rings_at);
    for (u32 i = 0; i < SHADOWS; i++)
        for (u64*& r : rings_[i]) {
            r = ring;
            ring += g.capacity[i];
        }
    if (head_.frames == 0) reset(frames);
    prepare();
    set_frames(frames);
}

// Reads the head into this object for one drain, with bounds, because the area may be damaged.
void Shadows::prepare() {
    if (head_.frames < 1 || head_.frames > max_frames_) head_.frames = max_frames_;
    u32 shift = head_.shift.load_relaxed();
    if (shift < g_.shift || shift > 31) head_.shift.store_relaxed(shift = g_.shift);
    for (u32 i = 0; i < SHADOWS; i++) {
        frames_[i] = shadow_frames(head_.frames, shift, i);
        shadow(i).configure(mode_);
    }
}

void Shadows::reset(u32 frames) {
    u32 resets = head_.resets + 1;
    Advice fresh{};
    memcpy(static_cast<void*>(&head_), &fresh, sizeof fresh);
    head_.resets = resets;
    head_.frames = frames;
    head_.shift.store_relaxed(g_.shift);
    head_.epoch.store_relaxed(1);
    head_.unit.store_relaxed(1);
    pages_.clear();
    prepare();
}

Miniature<AdviceRow> Shadows::shadow(u32 i) {
    return {head_.shadow[i], frames_[i], {rows_, g_.rows, i, g_.capacity[i], {rings_[i][0], rings_[i][1]}}};
}

// Adds a row for a page; NONE if the page is no longer sampled.
u32 Shadows::add(u32 page) {
    if (pages_.is_full() && !pages_.purge(head_.shadow, SHADOWS)) halve();
    return is_sampled(page, head_.shift.load_relaxed()) ? pages_.add(page) : NONE;
}

// Halves the sampling rate.
void Shadows::halve() {
    u32 shift = head_.shift.load_relaxed() + 1;
    if (shift > 31) return;
    head_.halvings++;
    head_.shift.store_relaxed(shift);
    for (u32 r = 0; r < g_.rows; r++)
        if (rows_[r].page != NONE && !is_sampled(rows_[r].page, shift)) rows_[r] = {NONE, {}};
    for (u32 i = 0; i < SHADOWS; i++) shadow(i).purge();
    prepare();
    for (u32 i = 0; i < SHADOWS; i++) fit(i);
    fade();
    pages_.drop_older(5, head_.shadow, SHADOWS);
}

void Shadows::fade() {
    head_.expected /= 2;
    head_.missed_by_pool /= 2;
    for (double& missed : head_.missed) missed /= 2;
}

// Adapts the shadows to a new budget. They keep their pages, and the curve is interpolated at the new
// sizes. (If they started anew, a steward would have no advice after each of its steps.)
void Shadows::set_frames(u32 frames) {
    if (frames == head_.frames || frames < 1 || frames > max_frames_) return;
    double at[SHADOWS], missed[SHADOWS];
    for (u32 i = 0; i < SHADOWS; i++) {
        at[i] = double(SHADOW_EIGHTHS[i]) * head_.frames;
        missed[i] = head_.missed[i];
    }
    for (u32 i = 0; i < SHADOWS; i++) {
        double x = double(SHADOW_EIGHTHS[i]) * frames;
        u32 above = 0;
        while (above < SHADOWS && at[above] < x) above++;
        if (above == 0 || above == SHADOWS) {
            head_.missed[i] = missed[above ? SHADOWS - 1 : 0];
        } else {
            double share = (x - at[above - 1]) / (at[above] - at[above - 1]);
            head_.missed[i] = missed[above - 1] + share * (missed[above] - missed[above - 1]);
        }
    }
    head_.frames = frames;
    prepare();
    for (u32 i = 0; i < SHADOWS; i++) fit(i);
}

// ---- references ------------------------------------------------------------------

void Shadows::reference(u32 row, u32 kind) {
    for (u32 i = 0; i < SHADOWS; i++)
        if (shadow(i).reference(row, kind) && !(kind & SAMPLE_UNCOUNTED)) head_.missed[i] += 1;
}

void Shadows::apply(const Atomic<u64>* samples, u32 n, u64 references, u64 misses, double window) {
    double before = head_.missed[0];
    for (u32 k = 0; k < n; k++) {
        u64 sample = samples[k].load_relaxed();
        u32 page = u32(sample >> 2), row = pages_.find(page);
        if (row == NONE) row = add(page);
        if (row != NONE) reference(row, sample & 3);
    }
    double rate = 1.0 / double(u64(1) << head_.shift.load_relaxed());
    head_.references += references;
    head_.expected += double(references) * rate;
    head_.missed_by_pool += double(misses) * rate;
    head_.unit.store_relaxed(next_unit(n, head_.missed[0] - before));
    if (head_.expected > window) fade();
}

// The length of an epoch, in samples: a quarter of the samples in which the smallest shadow replaces all of its pages.
u32 Shadows::next_unit(u32 n, double missed) const {
    double share = n && missed > 0 ? missed / n : 0.0, turnover = frames_[0] / 4.0;
    double unit = share > 0 ? turnover / share : 65536.0;
    return unit < 1 ? 1 : unit > 65536 ? 65536 : u32(unit);
}

}  // namespace bp
