// How a page is written (its writer field is taken, then the new version is published), how a page is appended, and how
// a space grows.
//
//   span   p pages -> n pages      grow_space, append_page; a space never becomes shorter
//
// Python (write.cpp, space.cpp) and the explorer (tests/native) use these loops, with the hooks of fetch.h and two
// more:
//
//   may_wait_for(page)           the page's writer is this client: returns OK to wait, or why not
//   no_entries(error)            the kernel has no memory for the entry of a new page: returns why to give up
#pragma once

#include "protocol/fetch.h"

namespace bp {

// Waits, one slice at most, for the client that is changing or writing the page. OK: the caller tries again.
template <class Hooks>
Status wait_to_write(Segment& s, const Place& at, Hooks& hooks) {
    u64 e = s.entries[at.page].load_acquire();
    bool by_us = entry::state(e) == RESIDENT && entry::owner(e) == s.me;
    Status status = by_us ? hooks.may_wait_for(at.page) : Status::OK;
    return status == Status::OK ? wait_turn(s, at.page, true, hooks) : status;
}

// Takes the writer field, and loads the page first if it is absent. `frame` is its frame, which remains its frame until
// the writer field is released.
template <class Hooks>
Status own_page(Segment& s, const Place& at, Access access, Hooks& hooks, u32& frame) {
    for (;;) {
        Status status = begin_write(s, at.page, frame);
        if (status == Status::OK) {
            if (!at.open()) return end_write(s, at.page), Status::REMOVED;
            if (access.counts) count_use(s, at.index, at.page, frame, access);
        } else if (status == Status::ABSENT) {
            u32 f;
            status = fetch_page(s, at, access, hooks, f);
            if (status == Status::OK) hooks.unpin(f);
            access.counts = false;
            if (status == Status::OK) continue;
        } else if (status == Status::WAIT) {
            status = wait_to_write(s, at, hooks);
            if (status == Status::OK) continue;
        }
        return status;
    }
}

// Publishes the new version of a page whose writer is this client. OK: the writer field is released.
template <class Hooks>
Status publish_page(Segment& s, const Place& at, const void* bytes, Image image, Hooks& hooks) {
    FrameRequest want{};
    FrameWait waited(s, want);
    for (;;) {
        Status status = hooks.unlocked([&] { return publish(s, at.page, bytes, image, want); });
        if (status == Status::OK) return status;
        if (Status r = hooks.make_room(status, want); r != Status::OK) return r;
    }
}

// ---- replacing a page that is not read ------------------------------------------

// The hooks of a load whose content the caller gives.
struct NewPage {
    static constexpr bool REPLACES = true;
    Segment& s;
    const void* bytes;
    Image image;

    template <class F>
    auto unlocked(F f) { return f(); }
    Status prepare() { return Status::OK; }
    Status no_frame(Status status, FrameRequest&) { return status; }
    Status fill(u32 f, Image& out) {
        prim::copy_page(s.page_data(f), bytes, s.g.page_size);
        out = image;
        return Status::OK;
    }
    const char* failure() { return nullptr; }
    bool forked() { return false; }
};

// Loads an absent page with the content that the caller gives. WAIT: the page is resident, because another client has
// loaded it.
template <class Hooks>
Status publish_new(Segment& s, const Place& at, const void* bytes, Image image, Hooks& hooks) {
    FrameRequest want{at.page};
    FrameWait waited(s, want);
    for (;;) {
        Status status = hooks.unlocked([&] {
            NewPage page{s, bytes, image};
            u32 f;
            Status r = load_page(s, at, want, page, f);
            if (r != Status::OK) return r;
            if constexpr (ADVISES) record_load(s, at.page, SAMPLE_UNCOUNTED);
            unpin(s, f);
            return r;
        });
        if (status == Status::OK || status == Status::REMOVED) return status;
        if (status != Status::WAIT) {
            status = hooks.make_room(status, want);
        } else {
            if (entry::state(s.entries[at.page].load_acquire()) == RESIDENT) return Status::WAIT;
            status = wait_turn(s, at.page, false, hooks);
        }
        if (status != Status::OK) return status;
    }
}

// Publishes `bytes` as the page, whether it is resident or absent; its old content is not read. `keeps_lsn`: a resident
// page keeps its LSN. The writer field is taken for the publication only, so blind writers of one page follow each
// other.
template <class Hooks>
Status replace_page(Segment& s, const Place& at, const void* bytes, Image image, bool keeps_lsn, Hooks& hooks) {
    for (;;) {
        u32 frame;
        Status status = begin_write(s, at.page, frame);
        if (status == Status::OK) {
            status = at.open() ? Status::OK : Status::REMOVED;
            if (status == Status::OK) {
                count_use(s, at.index, at.page, frame, Access{});
                if constexpr (requires { hooks.was_dirty; })
                    hooks.was_dirty = s.entries[at.page].load_acquire() & entry::DIRTY;
                if (keeps_lsn) image.lsn = s.frames[frame].lsn.load_relaxed();
                status = publish_page(s, at, bytes, image, hooks);
            }
            if (status != Status::OK) end_write(s, at.page);
            return status;
        }
        if (status == Status::ABSENT) {
            status = publish_new(s, at, bytes, image, hooks);
            if (status != Status::WAIT) return status;
        } else if (status != Status::WAIT) {
            return status;
        } else if (Status r = wait_to_write(s, at, hooks); r != Status::OK) {
            return r;
        }
    }
}

// ---- append ------------------------------------------------------------------

inline void raise_pages(const Place& at, u64 pages) {
    u64 e = at.slot.span.load_acquire();
    while (e >> GENERATION_SHIFT == at.generation && (e & PAGES_MASK) < pages &&
           !at.slot.span.cas_seq_cst(e, space_span(at.generation, pages))) {}
}

// Publishes the page whose number an append has allocated, and makes the space that long. The page may be resident,
// because another client has read it as zeros.
template <class Hooks>
Status append_page(Segment& s, const Place& at, u64 page_no, const void* bytes, Image image, Hooks& hooks) {
    if (Status r = replace_page(s, at, bytes, image, false, hooks); r != Status::OK) return r;
    raise_pages(at, page_no + 1);
    s.counters().appends.add_relaxed(1);
    return Status::OK;
}

// ---- grow --------------------------------------------------------------------

// Makes the space at least `pages` pages long; `last` is the place of its last page then. New pages that no client has
// written are zeros. In a space that has a store (`stored`), the last page is published first, with its present
// content. So a flush makes the store as long as the space, and what an append, or another client that grows the space,
// writes meanwhile is not lost.
template <class Hooks>
Status grow_space(Segment& s, const Place& last, u64 pages, bool stored, Hooks& hooks) {
    if (space_pages(last.slot.span.load_acquire()) >= pages) return last.open() ? Status::OK : Status::REMOVED;
    if (stored) {
        u32 frame;
        Status status = own_page(s, last, Access{.counts = false}, hooks, frame);
        if (status != Status::OK) return status;
        BP_POINT("lengthen.owned");
        if (s.entries[last.page].load_acquire() & entry::DIRTY) end_write(s, last.page);
        else {
            Image image{.dirty = true, .lsn = s.frames[frame].lsn.load_relaxed()};
            status = publish_page(s, last, s.page_data(frame), image, hooks);
            if (status != Status::OK) return end_write(s, last.page), status;
        }
        BP_POINT("lengthen.published");
    }
    raise_pages(last, pages);
    return last.open() ? Status::OK : Status::REMOVED;
}

inline bool have_entries(const Segment& s, u64 first, u64 end) {
    u64 unit = s.g.os_page / 8;
    for (u64 page = first; page < end; page = (page / unit + 1) * unit)
        if (!s.has_page(u32(page))) return false;
    return true;
}

// Allocates the next `count` page numbers for appends; `page_no` is the first. TOO_LONG: the space would have more
// pages than its maximum. The word SpaceSlot::allocated contains the space's generation, so that a handle of an earlier
// space in the slot neither takes nor returns a number.
template <class Hooks>
Status allocate_numbers(Segment& s, const Place& at, u64 max_pages, u64 count, Hooks& hooks, u64& page_no) {
    SpaceSlot& slot = at.slot;
    for (;;) {
        u64 allocated = slot.allocated.load_acquire();
        if (!at.open()) return Status::REMOVED;
        if (space_generation(allocated) != at.generation) return Status::CORRUPT;
        u64 next = space_pages(allocated);
        u64 pages = space_pages(slot.span.load_acquire());
        page_no = next > pages ? next : pages;
        u64 end = page_no + count;
        if (end > max_pages) return Status::TOO_LONG;
        if (!have_entries(s, at.page + page_no, at.page + end)) {  // they must have memory before they are touched
            u64 more = std::min(max_pages - page_no, std::max(count, u64(2048)));
            int r = hooks.unlocked([&] { return plug_entries(s, slot, page_no, more, at.generation); });
            if (r) return hooks.no_entries(r);
            if (at.open() && !have_entries(s, at.page + page_no, at.page + end)) return Status::CORRUPT;
            continue;
        }
        if (slot.allocated.cas_seq_cst(allocated, space_span(at.generation, end))) return Status::OK;
    }
}

// Returns the unused numbers `first` to `end` - 1, if they are still the last ones.
inline void return_numbers(const Place& at, u64 first, u64 end) {
    u64 expected = space_span(at.generation, end);
    at.slot.allocated.cas_seq_cst(expected, space_span(at.generation, first));
}

}  // namespace bp
