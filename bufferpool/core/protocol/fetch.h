// How a page gets pinned: it is found, waited for, or loaded. Python (loading.cpp) and the explorer (tests/native) use
// these loops, with hooks of their own:
//
//   unlocked(f)                  calls f without the interpreter's lock
//   waited(e, page)              after a slice of a wait for an entry that was `e`: OK, or why to give up
//   make_room(status, want)      no frame could be taken; called without locks. OK: try again (`want`: since when)
//   load(place, want, out)       load_page() with the hooks that fill pages of this space
//   unpin(frame)                 releases a pin
//   failed(client, text)         the load that was waited for has failed: returns why to give up
//
// and, for one load:
//
//   unlocked(f)
//   prepare()                    foreign code computes the content, before a frame is taken, because it may take long
//   no_frame(status, want)       no frame could be taken; the page is LOADING(me). OK: try again; else the load ends
//   fill(frame, image)           copies or reads the content into a BUSY(me) frame
//   failure()                    after RAISED: the text for the clients that wait; null: they load the page themselves
//   forked()                     whether foreign code has forked and this is the child: the load is its parent's
//
// A hook that returns RAISED has recorded the reason (in Python, an exception is set).
#pragma once

#include "protocol/client.h"
#include "protocol/deadlock.h"

namespace bp {

struct Access {
    bool counts = true;      // it is counted as a use
    bool once = false;       // the page is read ahead, or scanned
    bool early = false;      // the page is loaded for a use that follows, and is counted then
    u64 deadline_ns = 0;     // 0: none
    bool ahead() const { return (once || early) && !counts; }
    u32 kind() const { return (once ? u32(SAMPLE_ONCE) : 0) | (counts ? 0 : u32(SAMPLE_UNCOUNTED)); }
};

// A page of a space, by a handle.
struct Place {
    SpaceSlot& slot;
    u64 generation;  // of the space, when the handle was made
    u32 index, page;

    // Is the handle's space still open? A client that has pinned the page, or changed its entry, calls this again,
    // because another space may now have the entries of a removed one.
    bool open() const { return space_generation(slot.span.load_seq_cst()) == generation; }
};

// Waits, one slice at most, for the client that is changing the page. OK: the caller tries again. `load`: out: the
// entry of the load for which it has waited.
template <class Hooks>
[[gnu::noinline]] Status wait_turn(Segment& s, u32 page, bool writing, Hooks& hooks, u64* load = nullptr) {
    u64 e = s.entries[page].load_acquire();
    if (entry::state(e) == ABSENT || (entry::state(e) == RESIDENT && !(writing && entry::owner(e)))) return Status::OK;
    if (load && entry::state(e) == LOADING) *load = e;
    (writing ? s.counters().wait_writer : s.counters().wait_load).add_relaxed(1);
    bool never = false;
    {
        LoadsWait loads(s, page);
        hooks.unlocked([&] {
            never = loads.any() && waits_for_us(s, page);
            u64 since = prim::now_ns();
            if (!never) wait_entry(s, page, e);
            s.took(LATENCY_WAIT, since);
        });
    }
    return never ? Status::DEADLOCK : hooks.waited(e);
}

// Loads an absent page. OK: it is resident, and pinned in frame `out`. WAIT: another client changed the entry first.
template <class Load>
Status load_page(Segment& s, const Place& at, FrameRequest& want, Load& load, u32& out) {
    // Without the interpreter's lock: the thread that uses the last free operation may need that lock to end it.
    OpSlot op = load.unlocked([&] { return OpSlot(s); });
    if (!op.valid()) return op.why_not();
    constexpr bool replaces = requires { Load::REPLACES; };
    if (begin_load(s, op.intent(), at.page, 0, replaces) != Status::ABSENT) return Status::WAIT;
    Image image{.ahead = want.ahead};
    u32 f = NONE;
    Status status = at.open() ? load.prepare() : Status::REMOVED;
    while (status == Status::OK && !load.forked()) {
        status = load.unlocked([&] { return take_frame(s, op.intent(), want, f); });
        if (status == Status::OK) break;
        f = NONE;
        status = load.no_frame(status, want);
        // The wait was for a frame, and not for the store: the load made progress. (A forked child has no operation.)
        if (!load.forked()) op.intent().since.store_relaxed(s.tick());
    }
    if (load.forked()) {
        op.release();
        return Status::WAIT;
    }
    if (status == Status::OK) status = load.fill(f, image);
    if (status == Status::OK) finish_load(s, op.intent(), at.page, out = f, image);
    else {
        if (status == Status::RAISED)
            if (const char* text = load.failure()) tell_failure(s, {at.page, at.page}, text);
        abort_load(s, op.intent(), at.page, f);
    }
    return status;
}

// Gets the content of an absent page for which no frame is available, past the pool: a load that ends without a frame.
// As in a load, no other client loads, writes or flushes the page meanwhile: otherwise half of what `copy` reads could
// be of the next version. WAIT: the page is not absent any more, or was discarded.
template <class Load, class Copy>
Status load_past(Segment& s, const Place& at, Load& load, Copy copy) {
    OpSlot op = load.unlocked([&] { return OpSlot(s); });
    if (!op.valid()) return op.why_not();
    if (begin_load(s, op.intent(), at.page) != Status::ABSENT) return Status::WAIT;
    Status status = at.open() ? load.prepare() : Status::REMOVED;
    if (load.forked()) {
        op.release();
        return Status::WAIT;
    }
    if (status == Status::OK) status = copy();
    if (status == Status::RAISED)
        if (const char* text = load.failure()) tell_failure(s, {at.page, at.page}, text);
    abort_load(s, op.intent(), at.page, NONE);
    return status;
}

// Called if we have waited for a load, whose entry was `load`, and the page is not resident. OK: that load has not
// failed, or has not ended.
template <class Hooks>
[[gnu::noinline]] Status look_for_failure(Segment& s, u32 page, u64 load, Hooks& hooks) {
    u64 e = s.entries[page].load_acquire();
    char text[FAILURE_WORDS * 8 + 1];
    u32 loader = entry::owner(load);
    if ((entry::state(e) == LOADING && entry::owner(e) == loader) ||
        !find_failure(s, loader, entry::among(load), page, text))
        return Status::OK;
    return hooks.failed(loader, text);
}

// Counts a wait for a frame once, for all tries and in any outcome.
class FrameWait {
    Segment& s_;
    const FrameRequest& want_;

public:
    FrameWait(Segment& s, const FrameRequest& want) : s_(s), want_(want) {}
    FrameWait(const FrameWait&) = delete;
    ~FrameWait() {
        if (!want_.waits_since_ns || !s_.me) return;  // a forked child may have no slot
        s_.counters().wait_frame.add_relaxed(1);
        s_.took(LATENCY_WAIT, want_.waits_since_ns);
    }
};

// Counts a reference to a resident page. The first use of a page that was read ahead counts as a
// miss, as if it were loaded now, so that the same reads give the same counts with and without read-ahead.
inline void count_use(Segment& s, u32 index, u32 page, u32 frame, Access access) {
    Uses& uses = s.my_uses[index];
    if (!s.first_use(frame)) return uses.hits.add_owned(1);
    uses.misses.add_owned(1);
    s.frames[frame].mark.store_relaxed(s.mark_of(page));
    if constexpr (ADVISES) record_load(s, page, access.kind());
}

// An absent scratch page has no content yet: it is made as zeros, and nothing is read. So it is neither a miss nor a
// load.
inline bool is_new(const Place& at) { return at.slot.kind.load_relaxed() == KIND_SCRATCH; }

// Loads an absent page, and counts the load. OK: it is pinned in `frame`. WAIT: the caller reads the entry again.
template <class Hooks>
[[gnu::noinline]] Status fetch_absent(Segment& s, const Place& at, Access access, Hooks& hooks, u32& frame) {
    FrameRequest want{at.page, access.once};
    want.ahead = access.ahead();
    FrameWait waited(s, want);
    for (;;) {
        u64 since = prim::now_ns();
        Status status = hooks.load(at, want, frame);
        if (status == Status::OK) {
            bool made = is_new(at);
            if (ADVISES && !want.ahead) record_load(s, at.page, access.kind() | (made ? u32(SAMPLE_UNCOUNTED) : 0));
            if (made) return Status::OK;
            s.counters().loads.add_relaxed(1);
            s.took(LATENCY_LOAD, since);
            return Status::OK;
        }
        if (status == Status::WAIT) return at.open() ? status : Status::REMOVED;
        if (status != Status::REMOVED && status != Status::RAISED) status = hooks.make_room(status, want);
        if (status == Status::OK && at.open()) continue;
        if (status == Status::OK) return Status::REMOVED;
        if (s.me) s.counters().load_failures.add_relaxed(1);
        return status;
    }
}

// Completes a hit: counts it, after the page was pinned. It calls no other function on its way, because a hit takes
// only a few dozen nanoseconds.
template <class Hooks>
[[gnu::always_inline]] inline Status count_hit(Segment& s, const Place& at, Access access, Hooks& hooks, u32 frame) {
    if (access.counts) count_use(s, at.index, at.page, frame, access);
    if (!access.once) s.touch(frame, s.tick());
    else if (ADVISES && s.sampler.wants(s.frames[frame])) record(s, at.page, access.kind());
    if (at.open()) return Status::OK;
    hooks.unpin(frame);  // the space was removed meanwhile, so this may be a page of another space
    return Status::REMOVED;
}

template <class Hooks>
[[gnu::always_inline]] inline Status fetch_hit(Segment& s, const Place& at, Access access, Hooks& hooks, u32& frame) {
    Status status = pin(s, at.page, frame);
    return status == Status::OK ? count_hit(s, at, access, hooks, frame) : status;
}

// Pins a page, and loads it first if it is absent.
template <class Hooks>
Status fetch_page(Segment& s, const Place& at, Access access, Hooks& hooks, u32& frame) {
    u64 load = 0;  // the entry, when it was of a load that we have waited for
    for (bool missed = false;;) {
        Status status = pin_there(s, at.page, frame);
        if (status == Status::OK && !missed) status = count_hit(s, at, access, hooks, frame);
        if (status != Status::OK && load)
            if (Status r = look_for_failure(s, at.page, load, hooks); r != Status::OK) return r;
        if (status == Status::OK && !missed) return status;
        if (status == Status::ABSENT) {
            if (entry::is_discarded(s.entries[at.page].load_acquire())) return Status::DISCARDED;
            if (!missed && access.counts && !is_new(at)) s.my_uses[at.index].misses.add_owned(1);
            missed = true;
            status = fetch_absent(s, at, access, hooks, frame);
        } else if (status == Status::WAIT) {
            status = wait_turn(s, at.page, false, hooks, &load);
            if (status == Status::OK) continue;
        }
        if (status == Status::WAIT) continue;
        if (status != Status::OK) return status;
        if (at.open()) return Status::OK;
        hooks.unpin(frame);
        return Status::REMOVED;
    }
}

}  // namespace bp
