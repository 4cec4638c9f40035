// Loading several absent pages of a space together: they are claimed one after the other, read together, and published
// as they arrive. The transitions of each page are those of a single load (page.h, frames.h); the difference is what
// covers them:
//
//   entry   ABSENT -> LOADING(me, among: this operation)   the intent (LOAD_MANY) names the page
//   frame   FREE, HOLE or LIVE -> BUSY(me, page)           from here on the frame names the page, not the intent
//   frame   BUSY(me, page) -> LIVE(page)                   the intent names page and frame again
//   entry   LOADING(me) -> RESIDENT(frame)
//
// So one operation covers any number of pages, and a reaper finds what a death leaves: a page that has no frame yet, or
// whose frame is LIVE, by the intent, and a page with a BUSY frame by that frame (reap_owned).
//
// An operation that has claimed a page waits for no other client before that page is published or given up: it skips a
// page that another client is changing, and the caller asks for it afterwards (fetch_page). So two operations
// with common pages, in any order, never wait for each other.
// Its hooks (`Io`):
//
//   unlocked(f)           calls f without the interpreter's lock
//   room()                whether another run of neighbours may be read now
//   begin(i, n)           begins to read the pages of the claims i to i + n - 1
//   ended(i, n)           waits for a run that has been read; false: none is left. Foreign code may run here
//   is_read(i)            whether the content of page i was read
//   is_dirty(i)           whether the store has another content of page i
//   failure()             the text for clients that wait for a page that was not read; null: they load it themselves
//   published(i)          called when page i is resident; our pin on it belongs to the hook
//   forked()              whether foreign code has forked, and this is the child: the loads are its parent's
#pragma once

#include "protocol/fetch.h"

namespace bp {

// A page of such a load, wanted or claimed.
struct Claim {
    u32 page;          // its entry
    u32 frame = NONE;  // in: NONE; out: the page's frame, which is pinned, or NONE
    u8 tag = 0;        // the policy's tag when the page was claimed
};

struct ClaimLimits {
    u32 run;   // the most neighbours that are read by one call
    u32 held;  // the most claimed pages that are not published yet
};

// One such load.
template <class Io>
class ManyLoads {
    Segment& s_;
    const Place& at_;  // the space; `page` is not used
    Access access_;
    Io& io_;
    OpSlot op_;
    Claim* claims_;
    u32 held_ = 0, n_ = 0;

    // OK: the page is claimed. WAIT: another client is changing it, or it is resident.
    Status claim(Claim& c) {
        if (entry::state(s_.entries[c.page].load_acquire()) != ABSENT) return Status::WAIT;
        if (begin_load(s_, op_.intent(), c.page, op_.number()) != Status::ABSENT) return Status::WAIT;
        FrameRequest want{c.page, access_.once};
        want.ahead = access_.ahead();
        u32 f = NONE;
        Status status = at_.open() ? take_frame(s_, op_.intent(), want, f) : Status::REMOVED;
        if (status == Status::OK) {
            BP_POINT("many.claimed");
            c.frame = f;
            c.tag = u8(s_.header->policy_tag.load_relaxed());
            held_++;
            return status;
        }
        unclaim(s_, c.page, s_.me);
        BP_POINT("load.aborted");
        return status;
    }

    void publish(u32 i) {
        Claim& c = claims_[i];
        Intent& intent = op_.intent();
        intent.page.store_release(c.page);  // its frame is NONE
        Image image{.dirty = io_.is_dirty(i), .ahead = access_.ahead(), .tag = c.tag};
        publish_load(s_, intent, c.page, c.frame, image);
        intent.frame.store_release(NONE);
        BP_POINT("load.done");
    }

    void give_up(Claim& c) {
        if (const char* text = io_.failure())
            tell_failure(s_, {claims_[0].page, claims_[n_ - 1].page, op_.number()}, text);
        unclaim(s_, c.page, s_.me);
        BP_POINT("load.aborted");
        free_unused(s_, c.page, c.frame);
        c.frame = NONE;
    }

public:
    ManyLoads(Segment& s, const Place& at, Access access, Io& io, Claim* claims)
        : s_(s), at_(at), access_(access), io_(io), op_(s, OpSlot::IfFree{}), claims_(claims) {}

    // Loads the pages; the claims are in page order. It leaves to the caller pages that are resident, that another
    // client is changing, that cannot be read, or for which no frame is free.
    void run(u32 n, ClaimLimits limits) {
        n_ = n;
        u32 next = op_.valid() ? 0 : n, first, count;
        for (;;) {
            io_.unlocked([&] { next = claim_from(next, n, limits); });
            if (!io_.ended(first, count)) return;
            if (io_.forked()) {
                op_.release();
                return;
            }
            io_.unlocked([&] { finish(first, count); });
            if (s_.interrupted && s_.interrupted(s_)) next = n;
        }
    }

private:
    // Claims pages as far as there is room, and begins to read them. Returns the number of the next claim.
    u32 claim_from(u32 next, u32 n, ClaimLimits limits) {
        while (next < n && held_ < limits.held && io_.room()) {
            u32 first = next;
            Status status = Status::OK;
            while (next < n && next - first < limits.run && held_ < limits.held && status == Status::OK) {
                if (next > first && claims_[next].page != claims_[next - 1].page + 1) break;
                status = claim(claims_[next]);
                if (status == Status::OK) next++;
            }
            if (next > first) io_.begin(first, next - first);
            if (status == Status::WAIT) next++;
            else if (status != Status::OK) next = n;  // no frame, or the space is removed: finish the claimed pages
        }
        return next;
    }

    void finish(u32 first, u32 count) {
        for (u32 i = first; i < first + count; i++) {
            held_--;
            if (!io_.is_read(i)) {
                give_up(claims_[i]);
                continue;
            }
            publish(i);
            io_.published(i);
        }
    }
};

}  // namespace bp
