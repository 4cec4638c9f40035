// Python's hooks of fetch.h and writing.h.
#pragma once

#include "protocol/fetch.h"
#include "python/py.h"

namespace bp {

inline Place place_of(SpaceObject* sp, u64 page_no) {
    return {space_slot(sp), sp->generation, sp->index, entry_of(sp, page_no)};
}

struct SpaceHooks {
    SpaceObject* sp;
    u64 page_no, deadline_ns = 0;

    template <class F>
    auto unlocked(F f) {
        Released unlocked(sp->seg);
        return f();
    }
    Status waited(u64 e);
    Status failed(u32 client, const char* text);
    Status make_room(Status status, FrameRequest& want);
    Status load(const Place& at, FrameRequest& want, u32& frame);
    Status no_entries(int error) {
        return raise_errno(error, "the space's entries cannot be allocated"), Status::RAISED;
    }
    void unpin(u32 frame) { drop_pin(sp->seg, frame); }
};

// 0 if OK, else -1 with an exception that says why.
int answer(Status status, SpaceObject* sp, u64 page_no);

}  // namespace bp
