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
        Deadline deadline(deadline_ns);
        return f();
    }
    Status raise_late();
    Status waited(u64 e);
    Status failed(u32 client, const char* text);
    Status make_room(Status status, FrameRequest& want);
    Status load(const Place& at, FrameRequest& want, u32& frame);
    Status no_entries(int error) {
        if (error == -EINTR && is_late()) return raise_late();
        return raise_errno(error, "the space's entries cannot be allocated (fallocate)"), Status::RAISED;
    }
    bool is_late() const { return deadline_ns && prim::now_ns() > deadline_ns; }
    void unpin(u32 frame) { drop_pin(sp->seg, frame); }
};

// The state of a page's entry at this moment.
inline EntryState state_of(SpaceObject* sp, u64 page_no) {
    return entry::state(sp->seg->s->entries[entry_of(sp, page_no)].load_acquire());
}

// Is this page zeros without a look at the store: a scratch page, or one beyond the end of the store?
inline bool is_new(SpaceObject* sp, u64 page_no) {
    bool stored = sp->store != Py_None && (sp->kind == KIND_FILE || sp->kind == KIND_STORE);
    return sp->zero_fill || (stored && page_no >= space_slot(sp).stored.load_acquire());
}

// Does the space's descriptor still belong to its file? It is checked once a tick, because a check for each read would
// double the system calls. The number is so high that only dup2(), or a thousand open files, can reuse it.
inline bool has_its_file(Segment& s, SpaceObject* sp) {
    u32 now = s.tick();
    if (sp->checked.load_relaxed() == now) return true;
    if (!prim::is_file(sp->fd, sp->device, sp->inode)) return false;
    sp->checked.store_relaxed(now);
    return true;
}

constexpr u32 MANY_PAGES = 512;

// The pages of one call (read_many, pin_many, prefetch) that are loaded together: load_many.cpp. A call examines its
// pages one by one; at the first absent page it loads the absent ones among the following pages. Pages that could not
// be loaded that way are loaded by the call itself.
class Together {
    SpaceObject* sp_;
    const npy_int64* numbers_;
    npy_intp n_, first_ = 0, end_ = 0;
    Access access_;
    bool keeps_;
    char* copies_;
    u32 frames_[MANY_PAGES];

    void load_from(npy_intp first);
    void count_loads(const struct Work& w);

public:
    long apart = 0;  // pages that were loaded together without being handed over here

    // `keeps`: the pages remain pinned until the call takes them. `copies`: each page is copied there, at its index.
    Together(SpaceObject* sp, const npy_int64* numbers, npy_intp n, Access access, bool keeps, char* copies = nullptr)
        : sp_(sp), numbers_(numbers), n_(n), access_(access), keeps_(keeps), copies_(copies) {}
    Together(const Together&) = delete;
    ~Together();

    u32 count() const { return u32(end_ - first_); }
    u64 number(u32 i) const { return u64(numbers_[first_ + i]); }
    void loaded(u32 i, u32 frame);

    // True if page `i` of the call was loaded together with others: `frame` is its frame then, and the caller owns the
    // pin.
    bool take(npy_intp i, u32& frame) {
        if (i >= end_ || frames_[i - first_] == NONE) return false;
        frame = frames_[i - first_];
        frames_[i - first_] = NONE;
        return true;
    }
    // The same, for a page that was found absent: it loads pages from here on first. False with an exception: the load
    // of some page has failed.
    bool load(npy_intp i, u32& frame) {
        if (i < end_) return false;
        load_from(i);
        return take(i, frame);
    }
};

void copy_failure(PyObject* error, char (&text)[FAILURE_WORDS * 8 + 1]);
void report_failure(SpaceObject* sp, u64 page_no, int error);

// 0 if OK, else -1 with the exception for the status.
int answer(Status status, SpaceObject* sp, u64 page_no);

// Called before pages are loaded. False: a signal's handler has raised.
bool ask_for_memory(SegmentObject* seg);

// Pins a page, loading it if need be. 0, or -1 with an exception.
int acquire_slowly(SpaceObject* sp, u64 page_no, Access access, u32& frame);
// Takes back the exception if it is PoolExhausted.
bool forget_exhausted();
// The content of an absent page for which no frame is available, read past the pool: what a load would find.
enum class Past {
    READ,
    CHANGED,  // the page is not absent any more, or was discarded: acquire it
    FAILED,   // with an exception
};
Past read_past(SpaceObject* sp, u64 page_no, void* to);

inline const char* view_at(SpaceObject* sp, u32 frame) {
    return sp->seg->read_base + (u64(frame) << sp->seg->s->g.page_shift);
}

// The page's data is fetched from memory together with its frame slot and its pin count, and not after them.
inline int acquire_page(SpaceObject* sp, u64 page_no, Access access, u32& frame) {
    SpaceHooks hooks{sp, page_no};
    fetch_early(view_at(sp, entry::frame(sp->seg->s->entries[entry_of(sp, page_no)].load_relaxed())));
    bool hit = fetch_hit(*sp->seg->s, place_of(sp, page_no), access, hooks, frame) == Status::OK;
    return hit ? 0 : acquire_slowly(sp, page_no, access, frame);
}

}  // namespace bp
