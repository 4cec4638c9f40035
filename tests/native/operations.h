// Operations as processes do them, of the core's own functions: for the explorer, the races and the holds.
#pragma once

#include "flush.h"
#include "reclaim.h"

namespace bp {

[[noreturn]] void wrong(const char* what, u32 page);  // of each program

// A page pinned, loaded from `stored` if need be; NONE when no frame can be had.
inline u32 fetch(Segment& s, u32 page, const void* stored, bool once = false) {
    for (;;) {
        u32 f;
        Status status = pin(s, page, f);
        if (status == Status::OK) return f;
        if (status == Status::WAIT) {
            u64 e = s.entries[page].load_acquire();
            if (entry::state(e) == LOADING || entry::state(e) == EVICTING) wait_entry(s, page, e);
            continue;
        }
        if (status != Status::ABSENT) wrong("a pin that ends neither well nor for a load", page);
        OpSlot op(s);
        if (begin_load(s, op.intent(), page) != Status::ABSENT) continue;
        FrameRequest want{page, once};
        if (take_frame(s, op.intent(), want, f) != Status::OK) {
            abort_load(s, op.intent(), page, NONE);
            return NONE;
        }
        prim::copy_page(s.page_data(f), stored, s.g.page_size);
        finish_load(s, op.intent(), page, f, Image{});
        return f;
    }
}

// The frame of a page whose writer field is ours now; NONE when no frame can be had.
inline u32 own(Segment& s, u32 page, const void* stored) {
    for (;;) {
        u32 f;
        Status status = begin_write(s, page, f);
        if (status == Status::OK) return f;
        if (status == Status::WAIT) {
            u64 e = s.entries[page].load_acquire();
            if (entry::state(e) != ABSENT && (entry::state(e) != RESIDENT || entry::owner(e))) wait_entry(s, page, e);
        } else {
            u32 loaded = fetch(s, page, stored);
            if (loaded == NONE) return NONE;
            unpin(s, loaded);
        }
    }
}

// Compaction: the page moves to another frame. The one that it left, if that is ours now; else NONE.
inline u32 move_elsewhere(Segment& s, u32 page) {
    OpSlot op(s);
    FrameRequest want{};
    u32 g;
    if (take_frame(s, op.intent(), want, g) != Status::OK) return NONE;
    u64 e = s.entries[page].load_acquire();
    bool ours = false;
    if (entry::state(e) == RESIDENT && s.has_frame(entry::frame(e)) && move_page(s, op.intent(), entry::frame(e), g, ours))
        return ours ? entry::frame(e) : NONE;
    free_frame(s, g);
    return NONE;
}

}  // namespace bp
