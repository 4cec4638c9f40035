// The sampler's windows, in which references of this process are recorded (sampler.h), and the limit of their cost.
#include "protocol/operation.h"
#include "protocol/sampling.h"

namespace bp {

constexpr double REMEMBERED = 65536;  // the window over which the shadows' figures decay, in sampled references
constexpr u64 SHARE = 400;            // at most one part in SHARE of the time is used for sampling
constexpr u64 BURST_NS = 5'000'000;   // the length of a burst
constexpr u64 RECORD_NS = 10, LONGEST_NS = 1'000'000'000;

static References references_in(Segment& s, const Uses* row) {
    References n{0, 0};
    for (u32 i = 0, spaces = s.space_count(); i < spaces; i++) {
        n.hits += row[i].hits.load_relaxed();
        n.misses += row[i].misses.load_relaxed();
    }
    return n;
}
References own_references(Segment& s) { return references_in(s, s.my_uses); }

// The number of references of all clients, present and past. While a fold is under way, it may be slightly wrong.
u64 all_references(Segment& s) {
    References n = references_in(s, s.use_row(s.header->folded.load_acquire() & 1));
    for (u32 c = 1, slots = s.slots(); c <= slots; c++) {
        Client& slot = s.clients[c - 1];
        if (slot.state.load_acquire() != CLIENT_LIVE || slot.folded.load_acquire() || !s.has_pins(c)) continue;
        References own = references_in(s, s.uses_of(c));
        n.hits += own.hits;
        n.misses += own.misses;
    }
    return n.hits + n.misses;
}

static void next_epoch(Segment& s) {
    Sampler& w = s.sampler;
    u32 epoch = head_of(s).epoch.load_relaxed() % 255 + 1;
    head_of(s).epoch.store_relaxed(epoch);
    w.epoch.store_relaxed(u8(epoch));
    w.left.store_relaxed(head_of(s).unit.load_relaxed());
}

// Opens a window. If the last one was not filled, its epoch ends. (The length of an epoch is derived from the misses in
// a window. A window of a few references may have no miss, and in an endless epoch every page would be recorded only
// once.)
void open_window(Segment& s, u64 now) {
    Sampler& w = s.sampler;
    References seen = own_references(s);
    w.hits.store_relaxed(seen.hits);
    w.misses.store_relaxed(seen.misses);
    w.opened_ns.store_relaxed(now);
    if (w.spent_ns.load_relaxed() == 0) {
        w.burst_ns.store_relaxed(now);
        w.thread.store_relaxed(this_thread());
        w.delayed_ns.store_relaxed(prim::delayed_ns());
    }
    if (w.n.load_relaxed() < w.WINDOW) {
        next_epoch(s);
    } else {
        u32 epoch = head_of(s).epoch.load_relaxed() & 255;
        w.epoch.store_relaxed(u8(epoch ? epoch : 1));
        w.left.store_relaxed(head_of(s).unit.load_relaxed());
    }
    w.n.store_relaxed(0);
    w.gate.store_relaxed(0xff);
}

// Has the pause after a burst ended? Time in which this thread waited for a processor does not count.
static bool may_open(Segment& s, u64 now) {
    Sampler& w = s.sampler;
    u64 reopen = w.reopen_ns.load_relaxed();
    if (reopen == 0 || now < reopen) return now >= reopen;
    if (w.thread.load_relaxed() != this_thread()) return true;
    u64 delayed = prim::delayed_ns(), before = w.delayed_ns.load_relaxed();
    if (delayed <= before) return true;
    w.delayed_ns.store_relaxed(delayed);
    w.reopen_ns.store_relaxed(reopen += delayed - before);
    return now >= reopen;
}

// Keeps two readings of the counters, at least ten seconds apart, from which advise() computes the rate. Needs the
// advice lock.
void read_counters(Segment& s, Advice& head, u64 now) {
    constexpr u64 APART_NS = 10'000'000'000;
    if (now - head.later.at_ns < APART_NS) return;
    u64 age = prim::realtime_ns() - s.header->created_ns;
    head.earlier = head.later.at_ns ? head.later : Advice::Reading{now > age ? now - age : 0, 0};
    head.later = {now, all_references(s)};
}

void apply_window(Segment& s, Shadows& shadows) {
    Sampler& w = s.sampler;
    References seen = own_references(s);
    u32 n = w.n.load_relaxed();
    u64 hits = seen.hits - w.hits.load_relaxed(), misses = seen.misses - w.misses.load_relaxed();
    shadows.apply(w.samples, n < w.WINDOW ? n : w.WINDOW, hits + misses, misses, REMEMBERED);
}

// Ends the window, and applies its samples to the shadows. If another client works on the shadows, the samples are
// dropped, which biases no figure.
void drain(Segment& s) {
    Sampler& w = s.sampler;
    if (!w.gate.load_relaxed()) return;
    w.gate.store_relaxed(0);
    u64 begin = prim::thread_ns();
    Acquired how;
    if (try_acquire(s, s.header->advice, how))
        with_shadows(s, how, [&](Shadows& shadows) { apply_window(s, shadows); });
    u64 cost = prim::thread_ns() - begin + RECORD_NS * w.n.load_relaxed();
    u64 spent = w.spent_ns.load_relaxed() + cost, burst = w.burst_ns.load_relaxed();
    bool over = spent >= BURST_NS;
    w.reopen_ns.store_relaxed(over ? burst + SHARE * spent : 0);
    w.spent_ns.store_relaxed(over ? 0 : spent);
}

void look_after_window(Segment& s) {
    Sampler& w = s.sampler;
    w.tick.store_relaxed(s.tick());
    u64 now = prim::now_ns();
    if (w.gate.load_relaxed() && now - w.opened_ns.load_relaxed() > LONGEST_NS) drain(s);
    if (!w.gate.load_relaxed() && may_open(s, now)) open_window(s, now);
}

static void push(Segment& s, u32 page, u32 kind) {
    Sampler& w = s.sampler;
    u32 n = w.n.load_relaxed();
    if (n < w.WINDOW) w.samples[n].store_relaxed(u64(page) << 2 | kind);
    w.n.store_relaxed(n + 1);
    if (n + 1 >= w.WINDOW) {
        drain(s);
        u64 now = prim::now_ns();
        if (may_open(s, now)) open_window(s, now);
        return;
    }
    u32 left = w.left.load_relaxed();
    w.left.store_relaxed(left - 1);
    if (left <= 1) next_epoch(s);
}

void record(Segment& s, u32 page, u32 kind) {
    u64 e = s.has_page(page) ? s.entries[page].load_relaxed() : 0;
    if (entry::state(e) == RESIDENT && s.has_frame(entry::frame(e))) {
        bool sampled = is_sampled(page, head_of(s).shift.load_relaxed() & 31);
        s.frames[entry::frame(e)].mark.store_relaxed(sampled ? s.sampler.epoch.load_relaxed() : 0);
        if (sampled) push(s, page, kind);
    }
}

void record_load(Segment& s, u32 page, u32 kind) {
    Sampler& w = s.sampler;
    if (!w.gate.load_relaxed() && prim::coarse_ns() >= w.reopen_ns.load_relaxed()) look_after_window(s);
    if (w.gate.load_relaxed() && is_sampled(page, head_of(s).shift.load_relaxed() & 31)) push(s, page, kind);
}

}  // namespace bp
