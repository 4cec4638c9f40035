// How a page gets pinned: found, waited for, or loaded.
#include "py.h"

#include "client.h"
#include "waits.h"

namespace bp {

// ---- checks --------------------------------------------------------------------

// Attaches a space that was unpickled, refuses one whose pool is closed. 0 or -1.
int ready_space(SpaceObject* sp) {
    if (sp->seg && sp->seg->s && sp->seg->s->me) return 0;
    if (sp->seg) return opened(sp->seg) ? 0 : -1;
    PyObject* r = PyObject_CallMethod(reinterpret_cast<PyObject*>(sp), "_attach", nullptr);
    if (!r) return -1;
    Py_DECREF(r);
    if (sp->seg) return 0;
    raise("PoolClosed", "the space is not attached to a pool");
    return -1;
}

int bad_page(SpaceObject* sp, u64 extent, PyObject* n) {
    if (space_generation(extent) != sp->generation)
        raise("SpaceRemoved", "the space has been removed from its pool; open it again");
    else
        raise("PageOutOfRange", "page %S does not exist: the space has %llu pages, numbered from 0", n,
              (unsigned long long)space_pages(extent));
    return -1;
}

// The page number in `n`, checked against the space. 0 or -1.
int page_number(SpaceObject* sp, PyObject* n, u64& page_no) {
    long long v;
    if (PyLong_Check(n)) {
        v = PyLong_AsLongLong(n);
    } else {
        PyObject* i = PyNumber_Index(n);
        if (!i) {
            PyErr_Clear();
            raise("TypeError", "a page number must be an integer, not %.100s", Py_TYPE(n)->tp_name);
            return -1;
        }
        v = PyLong_AsLongLong(i);
        Py_DECREF(i);
    }
    if (v == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        v = -1;
    }
    if (ready_space(sp) < 0) return -1;
    u64 extent = space_slot(sp).extent.load_acquire();
    if (v < 0 || u64(v) >= space_pages(extent) || space_generation(extent) != sp->generation)
        return bad_page(sp, extent, n);
    page_no = u64(v);
    return page_no < sp->max_pages ? 0 : (raise_status(Status::CORRUPT, sp, page_no), -1);
}

bool still_open(SpaceObject* sp) {
    return space_generation(space_slot(sp).extent.load_seq_cst()) == sp->generation;
}

// ---- waiting -------------------------------------------------------------------

// Waits for whoever changes this page, one slice. 0, or -1 with an exception.
int wait_for(SpaceObject* sp, u64 page_no, u64 deadline_ns, bool writing) {
    Segment& s = *sp->seg->s;
    u32 page = entry_of(sp, page_no);
    u64 e = s.entries[page].load_acquire();
    if (entry::state(e) == ABSENT || (entry::state(e) == RESIDENT && !(writing && entry::owner(e)))) return 0;
    bool never = false;
    (writing ? s.counters().wait_writer : s.counters().wait_load).add_relaxed(1);
    {
        LoadsWait loads(s, page);
        Released unlocked(sp->seg);
        never = loads.any() && waits_for_us(s, page);
        u64 since = prim::now_ns();
        if (!never) wait_entry(s, page, e);
        s.took(LATENCY_WAIT, since);
    }
    if (never) {
        raise("WouldDeadlock", "a loader asked for page %llu, which it is loading itself, or whose loader waits for it, here or in "
              "another process: let loaders ask for pages in one direction only", (unsigned long long)page_no);
        return -1;
    }
    if (check_signals() < 0 || !opened(sp->seg)) return -1;
    if (deadline_ns && prim::now_ns() > deadline_ns) {
        raise("WaitTimeout", "page %llu: client %u has had it for longer than the timeout; pool.clients() says who that is",
              (unsigned long long)page_no, entry::owner(e));
        return -1;
    }
    return 0;
}

// No frame could be had: Python makes room (a foreground flush, reaping) or
// raises. 0: try again.
int make_room(SegmentObject* seg, Status status, const FrameRequest& want) {
    Busy busy(seg);
    if (status == Status::INTERRUPTED) return check_signals() < 0 || !opened(seg) ? -1 : 0;
    if (status != Status::EXHAUSTED && status != Status::NO_SPACE) return raise_status(status, nullptr, 0), -1;
    seg->s->counters().wait_frame.add_relaxed(1);
    const char* what = status == Status::NO_SPACE ? "no_space" : "exhausted";
    PyObject* r = PyObject_CallFunction(seg->on_exhausted, "sIII", what, want.tally.pinned, want.tally.dirty, want.tally.busy);
    if (!r) return -1;
    Py_DECREF(r);
    return opened(seg) ? 0 : -1;  // a store's code may have forked, and the child found no slot
}

// ---- loading -------------------------------------------------------------------

enum class Filled { YES, SHORT, ERROR };

// Fills frame `f` from the file, or with zeros beyond what the file has.
static Filled fill_native(Segment& s, SpaceObject* sp, u64 page_no, u32 f, ssize_t& detail) {
    u8* to = s.page_data(f);
    if (sp->zero_fill || page_no >= space_slot(sp).stored.load_acquire()) {
        memset(to, 0, s.g.page_size);
        return Filled::YES;
    }
    detail = prim::read_at(sp->fd, to, s.g.page_size, page_no << s.g.page_shift);
    if (detail < 0) return Filled::ERROR;
    s.counters().load_bytes.add_relaxed(s.g.page_size);
    return u64(detail) == s.g.page_size ? Filled::YES : Filled::SHORT;
}

static int raise_fill(SpaceObject* sp, u64 page_no, Filled how, ssize_t detail) {
    if (how == Filled::SHORT)
        raise("ShortRead", "page %llu: the file ends after %zd of %u bytes: somebody has cut it; restore the file, then open it again",
              (unsigned long long)page_no, detail, sp->seg->s->g.page_size);
    else
        raise("StoreError", "page %llu cannot be read: %s; nothing is lost, try again once the store works",
              (unsigned long long)page_no, strerror(int(-detail)));
    return -1;
}

// Loads a page that a file or zeros back. The GIL is released throughout.
// OK: pinned in `frame`; WAIT: somebody was faster, pin again.
static int load_native(SpaceObject* sp, u64 page_no, Access access, u32& frame, bool& loaded) {
    Segment& s = *sp->seg->s;
    u32 page = entry_of(sp, page_no);
    FrameRequest want{page, access.once};
    Status status = Status::OK;
    Filled how = Filled::YES;
    ssize_t detail = 0;
    bool removed = false;
    {
        Released unlocked(sp->seg);
        OpSlot op(s);
        status = op.valid() ? begin_load(s, op.intent(), page) : op.why_not();
        if (status == Status::ABSENT) {
            u32 f = NONE;
            removed = !still_open(sp);
            status = removed ? Status::OK : take_frame(s, op.intent(), want, f);
            if (status == Status::OK && !removed) how = fill_native(s, sp, page_no, f, detail);
            if (status == Status::OK && !removed && how == Filled::YES) {
                finish_load(s, op.intent(), page, f, Image{});
                s.counters().loads.add_relaxed(1);
                frame = f;
                loaded = true;
            } else {
                abort_load(s, op.intent(), page, f);
                s.counters().load_failures.add_relaxed(1);
            }
        } else if (status == Status::WAIT) {
            status = Status::OK;
        }
    }
    if (how != Filled::YES) return raise_fill(sp, page_no, how, detail);
    if (status != Status::OK) return make_room(sp->seg, status, want);
    return 0;
}

// Loads a page whose content Python makes: _fill(page_no) returns its bytes.
static int load_python(SpaceObject* sp, u64 page_no, Access access, u32& frame, bool& loaded) {
    Segment& s = *sp->seg->s;
    u32 page = entry_of(sp, page_no);
    Busy busy(sp->seg);
    OpSlot op = [&] {  // whoever has the last one may need the GIL to end it
        Released unlocked(sp->seg);
        return OpSlot(s);
    }();
    if (!op.valid()) return make_room(sp->seg, op.why_not(), FrameRequest{});
    Status status = begin_load(s, op.intent(), page);
    if (status != Status::ABSENT) return 0;
    // The loader, or a store that is written to make room, may fork, and the child come back here: the load is its parent's.
    auto forked = [sp, forks = sp->seg->forks] { return sp->seg->forks != forks; };
    u32 f = NONE;
    PyObject *bytes = nullptr, *filled = nullptr;
    int repaired = 0;  // the store has something else: dirty, so that a flush mends it
    Py_buffer view{};
    if (still_open(sp)) filled = PyObject_CallMethod(reinterpret_cast<PyObject*>(sp), "_fill", "K", (unsigned long long)page_no);
    if (filled && !PyArg_ParseTuple(filled, "Op:_fill", &bytes, &repaired)) bytes = nullptr;
    bool ok = bytes && PyObject_GetBuffer(bytes, &view, PyBUF_SIMPLE) == 0;
    if (ok && view.len != Py_ssize_t(s.g.page_size)) {
        raise("StoreError", "_fill returned %zd bytes for a page of %u", view.len, s.g.page_size);
        ok = false;
    }
    FrameRequest want{page, access.once};
    while (ok && !forked()) {
        {
            Released unlocked(sp->seg);
            status = take_frame(s, op.intent(), want, f);
        }
        if (status == Status::OK) break;
        f = NONE;
        ok = make_room(sp->seg, status, want) == 0;
    }
    if (forked()) {
        op.release();
        if (!PyErr_Occurred()) opened(sp->seg);
    } else if (ok) {
        memcpy(s.page_data(f), view.buf, s.g.page_size);
        finish_load(s, op.intent(), page, f, Image{.dirty = repaired != 0});
        s.counters().loads.add_relaxed(1);
        s.counters().load_bytes.add_relaxed(s.g.page_size);
        frame = f;
        loaded = true;
    } else {
        abort_load(s, op.intent(), page, f);
        s.counters().load_failures.add_relaxed(1);
    }
    if (view.obj) PyBuffer_Release(&view);
    Py_XDECREF(filled);
    return PyErr_Occurred() ? -1 : 0;
}

// Pins a page, loading it if need be. 0, or -1 with an exception.
int acquire_page(SpaceObject* sp, u64 page_no, Access access, u32& frame) {
    Busy busy(sp->seg);
    Segment& s = *sp->seg->s;
    u32 page = entry_of(sp, page_no);
    bool missed = false;
    for (;;) {
        bool loaded = false;
        switch (Status status = pin(s, page, frame)) {
        case Status::OK: {
            if (!missed) {
                auto& hits = s.counters().space[sp->index].hits;
                if (access.counts) hits.add_owned(1);
                if (!access.once) s.touch(frame, s.tick());
                else if (s.sampler.wants(s.frames[frame])) record(s, page, access.kind());
            }
            break;
        }
        case Status::ABSENT: {
            u64 e = s.entries[page].load_acquire();
            if (entry::state(e) == ABSENT && (e & entry::VOLATILE)) return raise_status(Status::DISCARDED, sp, page_no), -1;
            if (!missed && access.counts) s.counters().space[sp->index].misses.add_owned(1);
            missed = true;
            u64 since = prim::now_ns();
            int r = sp->fd >= 0 || sp->zero_fill ? load_native(sp, page_no, access, frame, loaded)
                                                 : load_python(sp, page_no, access, frame, loaded);
            if (r < 0) return -1;
            if (loaded) {
                if constexpr (ADVISES) record_load(s, page, access.kind());
                s.took(LATENCY_LOAD, since);
                break;
            }
            if (!still_open(sp)) return bad_page(sp, space_slot(sp).extent.load_acquire(), Py_None);
            continue;
        }
        case Status::WAIT:
            if (wait_for(sp, page_no, access.deadline_ns, false) < 0) return -1;
            continue;
        default:
            return raise_status(status, sp, page_no), -1;
        }
        if (still_open(sp)) return 0;
        drop_pin(sp->seg, frame);  // the space went while we pinned: this may be another's page
        return bad_page(sp, space_slot(sp).extent.load_acquire(), Py_None);
    }
}

}  // namespace bp
