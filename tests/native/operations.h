// What stands in for Python in the explorer, the races and the holds: the hooks of the production loops, and compaction
// of one page.
#pragma once

#include "protocol/load_many.h"
#include "protocol/writeback.h"
#include "protocol/shrink.h"
#include "protocol/spaces.h"
#include "protocol/writing.h"

namespace bp {

[[noreturn]] void wrong(const char* what, u32 page);  // of each program
bool may_give_up();                                  // the same: whether this process may end a wait before its time

inline Place place_of(Segment& s, u32 page, u32 space = 0) {
    SpaceSlot& slot = s.spaces[space];
    return {slot, space_generation(slot.span.load_relaxed()), space, page};
}

// A load that copies `stored`, of an operation that gives up when no frame is free.
struct StoredHooks {
    Segment& s;
    const void* stored;

    template <class F>
    auto unlocked(F f) { return f(); }
    Status waited(u64) { return Status::OK; }
    Status make_room(Status status, const FrameRequest&) { return status; }
    Status may_wait_for(u32) { return Status::OK; }
    Status no_entries(int) { return Status::RAISED; }
    void unpin(u32 f) { bp::unpin(s, f); }

    Status prepare() { return Status::OK; }
    Status no_frame(Status status, FrameRequest&) { return status; }
    const char* failure() { return nullptr; }
    Status failed(u32, const char*) { return Status::RAISED; }
    bool forked() { return false; }
    Status fill(u32 f, Image&) {
        prim::copy_page(s.page_data(f), stored, s.g.page_size);
        return Status::OK;
    }
    Status load(const Place& at, FrameRequest& want, u32& frame) { return load_page(s, at, want, *this, frame); }
};

inline void require(Status status, u32 page) {
    if (status == Status::INTERRUPTED && may_give_up()) return;
    if (status != Status::OK && status != Status::EXHAUSTED && status != Status::NO_SPACE && status != Status::REMOVED)
        wrong("an operation that ends neither well nor for want of a frame or of its space", page);
}

// Pins a page, loading it from `stored` if it is absent; NONE when no frame is free.
inline u32 fetch(Segment& s, u32 page, const void* stored, bool once = false) {
    StoredHooks hooks{s, stored};
    u32 f;
    Status status = fetch_page(s, place_of(s, page), Access{.once = once}, hooks, f);
    require(status, page);
    return status == Status::OK ? f : NONE;
}

// Reads of several pages together, each from its own place, which end in the reverse order. `visit` gets what was
// published, with its pin.
template <class Visit>
struct StoredReads {
    Segment& s;
    Claim* claims;
    const void* (*stored)(u32 page);
    Visit visit;
    u32 first[8], count[8], n = 0;

    bool room() const { return n < 8; }
    void begin(u32 from, u32 many) { first[n] = from, count[n++] = many; }
    bool ended(u32& from, u32& many) {
        if (!n) return false;
        from = first[--n], many = count[n];
        for (u32 i = from; i < from + many; i++)
            prim::copy_page(s.page_data(claims[i].frame), stored(claims[i].page), s.g.page_size);
        return true;
    }
    template <class F>
    void unlocked(F f) { f(); }
    bool is_read(u32) const { return true; }
    bool is_dirty(u32) const { return false; }
    const char* failure() { return nullptr; }
    void published(u32 i) { visit(claims[i]); }
    bool forked() const { return false; }
};

// Takes the writer field of a page; returns its frame, NONE when it fails.
inline u32 own(Segment& s, u32 page, const void* stored) {
    StoredHooks hooks{s, stored};
    u32 f;
    Status status = own_page(s, place_of(s, page), Access{}, hooks, f);
    require(status, page);
    return status == Status::OK ? f : NONE;
}

// Compaction: the page moves to another frame. Returns the old frame if this client has it now, else NONE.
inline u32 move_elsewhere(Segment& s, u32 page) {
    OpSlot op(s);
    FrameRequest want{};
    u32 g;
    if (take_frame(s, op.intent(), want, g) != Status::OK) return NONE;
    EntryLook look(s);
    u64 e = s.has_page(page) ? s.entries[page].load_acquire() : 0;
    bool ours = false;
    if (entry::state(e) == RESIDENT && s.has_frame(entry::frame(e)) && move_page(s, op.intent(), entry::frame(e), g, ours))
        return ours ? entry::frame(e) : NONE;
    free_frame(s, g);
    return NONE;
}

}  // namespace bp
