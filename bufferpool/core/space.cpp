// Space: pages by number. The hot path of everything: space[n].
#include "py.h"

#include <vector>

#include "client.h"
#include "reclaim.h"

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

static int bad_page(SpaceObject* sp, u64 extent, PyObject* n) {
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

u64 deadline_of(PyObject* timeout) {
    if (!timeout || timeout == Py_None) return ~u64(0);
    double t = PyFloat_AsDouble(timeout);
    if (PyErr_Occurred()) return 0;
    if (!(t >= 0)) {
        raise("ValueError", "timeout must be a number of seconds, at least 0, or None to wait without limit");
        return 0;
    }
    return t > 1e9 ? ~u64(0) : prim::now_ns() + u64(t * 1e9) + 1;
}

static bool still_open(SpaceObject* sp) {
    return space_generation(space_slot(sp).extent.load_seq_cst()) == sp->generation;
}

// ---- waiting -------------------------------------------------------------------

// Waits for whoever changes this page, one slice. 0, or -1 with an exception.
int wait_for(SpaceObject* sp, u64 page_no, u64 deadline_ns, bool writing) {
    Segment& s = *sp->seg->s;
    u32 page = entry_of(sp, page_no);
    u64 e = s.entries[page].load_acquire();
    if (entry::state(e) == ABSENT || (entry::state(e) == RESIDENT && !(writing && entry::owner(e)))) return 0;
    if (entry::state(e) == LOADING && entry::owner(e) == s.me && own_thread_loads(s, page)) {
        raise("WouldDeadlock", "the loader of page %llu asked for the page that it is loading", (unsigned long long)page_no);
        return -1;
    }
    (writing ? s.counters().wait_writer : s.counters().wait_load).add_relaxed(1);
    {
        Released unlocked(sp->seg);
        wait_entry(s, page, e);
    }
    if (PyErr_CheckSignals() < 0) return -1;
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
    if (status == Status::INTERRUPTED) return PyErr_Occurred() ? -1 : PyErr_CheckSignals();
    if (status != Status::EXHAUSTED && status != Status::NO_SPACE) return raise_status(status, nullptr, 0), -1;
    const char* what = status == Status::NO_SPACE ? "no_space" : "exhausted";
    PyObject* r = PyObject_CallFunction(seg->on_exhausted, "sIII", what, want.tally.pinned, want.tally.dirty, want.tally.busy);
    if (!r) return -1;
    Py_DECREF(r);
    return 0;
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
        status = op.valid() ? begin_load(s, op.intent(), page) : Status::INTERRUPTED;
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
    OpSlot op(s);
    Status status = op.valid() ? begin_load(s, op.intent(), page) : Status::INTERRUPTED;
    if (status == Status::INTERRUPTED) return make_room(sp->seg, status, FrameRequest{});
    if (status != Status::ABSENT) return 0;
    u32 f = NONE;
    PyObject* bytes = nullptr;
    Py_buffer view{};
    if (still_open(sp)) bytes = PyObject_CallMethod(reinterpret_cast<PyObject*>(sp), "_fill", "K", (unsigned long long)page_no);
    bool ok = bytes && PyObject_GetBuffer(bytes, &view, PyBUF_SIMPLE) == 0;
    if (ok && view.len != Py_ssize_t(s.g.page_size)) {
        raise("StoreError", "_fill returned %zd bytes for a page of %u", view.len, s.g.page_size);
        ok = false;
    }
    FrameRequest want{page, access.once};
    while (ok) {
        {
            Released unlocked(sp->seg);
            status = take_frame(s, op.intent(), want, f);
        }
        if (status == Status::OK) break;
        f = NONE;
        ok = make_room(sp->seg, status, want) == 0;
    }
    if (ok) {
        memcpy(s.page_data(f), view.buf, s.g.page_size);
        finish_load(s, op.intent(), page, f, Image{});
        s.counters().loads.add_relaxed(1);
        s.counters().load_bytes.add_relaxed(s.g.page_size);
        frame = f;
        loaded = true;
    } else {
        abort_load(s, op.intent(), page, f);
        s.counters().load_failures.add_relaxed(1);
    }
    if (view.obj) PyBuffer_Release(&view);
    Py_XDECREF(bytes);
    return ok || !PyErr_Occurred() ? 0 : -1;
}

// Pins a page, loading it if need be. 0, or -1 with an exception.
int acquire_page(SpaceObject* sp, u64 page_no, Access access, u32& frame) {
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
            }
            break;
        }
        case Status::ABSENT: {
            u64 e = s.entries[page].load_acquire();
            if (entry::state(e) == ABSENT && (e & entry::VOLATILE)) return raise_status(Status::DISCARDED, sp, page_no), -1;
            if (!missed && access.counts) s.counters().space[sp->index].misses.add_owned(1);
            missed = true;
            int r = sp->fd >= 0 || sp->zero_fill ? load_native(sp, page_no, access, frame, loaded)
                                                 : load_python(sp, page_no, access, frame, loaded);
            if (r < 0) return -1;
            if (loaded) break;
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

// ---- methods -------------------------------------------------------------------

static PyObject* space_subscript(PyObject* self, PyObject* n) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    u64 page_no;
    u32 frame;
    if (page_number(sp, n, page_no) < 0 || acquire_page(sp, page_no, Access{}, frame) < 0) return nullptr;
    return view_of(sp, frame);
}

static PyObject* space_pin(PyObject* self, PyObject* n) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    u64 page_no;
    u32 frame;
    if (page_number(sp, n, page_no) < 0 || acquire_page(sp, page_no, Access{}, frame) < 0) return nullptr;
    return new_pin(sp, frame, page_no);
}

// Pins a page for a scan: it earns the page no place among the hot ones.
static PyObject* space_once(PyObject* self, PyObject* n) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    u64 page_no;
    u32 frame;
    if (page_number(sp, n, page_no) < 0) return nullptr;
    if (acquire_page(sp, page_no, Access{.once = true}, frame) < 0) return nullptr;
    return view_of(sp, frame);
}

static Py_ssize_t space_length(PyObject* self) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    if (ready_space(sp) < 0) return -1;
    u64 extent = space_slot(sp).extent.load_acquire();
    if (space_generation(extent) != sp->generation) {
        raise("SpaceRemoved", "the space has been removed from its pool; open it again");
        return -1;
    }
    return Py_ssize_t(space_pages(extent));
}

// The page numbers in `ids` as int64, checked. Null with an exception.
static PyArrayObject* page_numbers(SpaceObject* sp, PyObject* ids) {
    PyObject* any = PyArray_FROM_O(ids);
    if (!any) return nullptr;
    auto a = reinterpret_cast<PyArrayObject*>(any);
    bool empty = PyArray_SIZE(a) == 0;
    if ((!PyArray_ISINTEGER(a) && !empty) || PyArray_NDIM(a) != 1) {
        Py_DECREF(any);
        raise("TypeError", "page numbers must be a one-dimensional sequence of integers");
        return nullptr;
    }
    auto numbers = reinterpret_cast<PyArrayObject*>(PyArray_FROMANY(any, NPY_INT64, 1, 1, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST));
    Py_DECREF(any);
    if (!numbers || ready_space(sp) < 0) {
        Py_XDECREF(numbers);
        return nullptr;
    }
    u64 extent = space_slot(sp).extent.load_acquire();
    auto v = static_cast<const npy_int64*>(PyArray_DATA(numbers));
    for (npy_intp i = 0; i < PyArray_SIZE(numbers); i++) {
        if (v[i] >= 0 && u64(v[i]) < space_pages(extent) && space_generation(extent) == sp->generation) continue;
        PyObject* n = PyLong_FromLongLong(v[i]);
        if (n) bad_page(sp, extent, n);
        Py_XDECREF(n);
        Py_DECREF(numbers);
        return nullptr;
    }
    return numbers;
}

static PyObject* space_pin_many(PyObject* self, PyObject* ids) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PyArrayObject* numbers = page_numbers(sp, ids);
    if (!numbers) return nullptr;
    Segment& s = *sp->seg->s;
    npy_intp n = PyArray_SIZE(numbers);
    auto v = static_cast<const npy_int64*>(PyArray_DATA(numbers));
    u32 few[128];
    std::vector<u32> many(n > 128 ? size_t(n) : 0);
    u32* frames = n > 128 ? many.data() : few;
    u32 now = s.tick();
    u64 hits = 0;
    npy_intp i = 0;
    for (; i < n; i++) {
        if (pin(s, sp->first_entry + u32(v[i]), frames[i]) == Status::OK) {
            s.touch(frames[i], now);
            hits++;
        } else if (acquire_page(sp, u64(v[i]), Access{}, frames[i]) < 0) {
            break;
        }
    }
    s.counters().space[sp->index].hits.add_owned(hits);
    if (i == n && !still_open(sp)) {
        bad_page(sp, space_slot(sp).extent.load_acquire(), Py_None);
    } else if (i == n) {
        Py_DECREF(numbers);
        return new_pinned_pages(sp, frames, n);
    }
    while (i-- > 0) drop_pin(sp->seg, frames[i]);
    Py_DECREF(numbers);
    return nullptr;
}

static PyArrayObject* output_for(SpaceObject* sp, npy_intp n, PyObject* out) {
    npy_intp shape[2] = {n, sp->items};
    if (!out || out == Py_None) {
        Py_INCREF(sp->dtype);
        return reinterpret_cast<PyArrayObject*>(PyArray_NewFromDescr(&PyArray_Type, sp->dtype, 2, shape, nullptr, nullptr, 0, nullptr));
    }
    auto a = reinterpret_cast<PyArrayObject*>(out);
    if (!PyArray_Check(out) || PyArray_NDIM(a) != 2 || PyArray_DIM(a, 0) != n || PyArray_DIM(a, 1) != sp->items ||
        !PyArray_EquivTypes(PyArray_DESCR(a), sp->dtype) || !PyArray_ISCARRAY(a)) {
        raise("ValueError", "out must be a writable, C-contiguous array of the space's dtype, of shape (%zd, %zd)", n, sp->items);
        return nullptr;
    }
    Py_INCREF(out);
    return a;
}

static PyObject* space_read_many(PyObject* self, PyObject* args, PyObject* kwargs) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    static const char* names[] = {"ids", "out", nullptr};
    PyObject *ids, *out = nullptr;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:read_many", const_cast<char**>(names), &ids, &out)) return nullptr;
    PyArrayObject* numbers = page_numbers(sp, ids);
    if (!numbers) return nullptr;
    npy_intp n = PyArray_SIZE(numbers);
    PyArrayObject* to = output_for(sp, n, out);
    Segment& s = *sp->seg->s;
    auto v = static_cast<const npy_int64*>(PyArray_DATA(numbers));
    u32 now = s.tick();
    u64 hits = 0;
    bool ok = to != nullptr;
    for (npy_intp i = 0; ok && i < n; i++) {
        u32 f;
        if (pin(s, sp->first_entry + u32(v[i]), f) == Status::OK) {
            s.touch(f, now);
            hits++;
        } else if (acquire_page(sp, u64(v[i]), Access{}, f) < 0) {
            ok = false;
            break;
        }
        memcpy(static_cast<char*>(PyArray_DATA(to)) + (u64(i) << s.g.page_shift), sp->seg->read_base + (u64(f) << s.g.page_shift), s.g.page_size);
        drop_pin(sp->seg, f);
    }
    s.counters().space[sp->index].hits.add_owned(hits);
    Py_DECREF(numbers);
    if (ok && !still_open(sp)) {
        bad_page(sp, space_slot(sp).extent.load_acquire(), Py_None);
        ok = false;
    }
    if (ok) return reinterpret_cast<PyObject*>(to);
    Py_XDECREF(to);
    return nullptr;
}

// Loads what is absent, without pinning it. Returns how many pages were loaded.
static PyObject* space_load_many(PyObject* self, PyObject* ids) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PyArrayObject* numbers = page_numbers(sp, ids);
    if (!numbers) return nullptr;
    Segment& s = *sp->seg->s;
    auto v = static_cast<const npy_int64*>(PyArray_DATA(numbers));
    long loaded = 0;
    bool ok = true;
    for (npy_intp i = 0; ok && i < PyArray_SIZE(numbers); i++) {
        if (entry::state(s.entries[sp->first_entry + u32(v[i])].load_acquire()) != ABSENT) continue;
        u32 f;
        ok = acquire_page(sp, u64(v[i]), Access{.counts = false, .once = true}, f) == 0;
        if (ok) drop_pin(sp->seg, f);
        loaded += ok;
    }
    Py_DECREF(numbers);
    return ok ? PyLong_FromLong(loaded) : nullptr;
}

static PyObject* space_write(PyObject* self, PyObject* args, PyObject* kwargs) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    static const char* names[] = {"page_no", "timeout", nullptr};
    PyObject *n, *timeout = nullptr;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:write", const_cast<char**>(names), &n, &timeout)) return nullptr;
    u64 page_no;
    if (page_number(sp, n, page_no) < 0) return nullptr;
    if (!sp->writable) return raise("SpaceReadOnly", "the space is open for reading only; open it with mode 'r+' to write (derived pages cannot be written)");
    double seconds = timeout && timeout != Py_None ? PyFloat_AsDouble(timeout) : 10.0;
    if (PyErr_Occurred()) return nullptr;
    if (!(seconds >= 0)) return raise("ValueError", "timeout must be a number of seconds, at least 0");
    return new_write(sp, page_no, false, u64(std::min(seconds, 1e9) * 1e9));
}

static PyObject* space_append(PyObject* self, PyObject*) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    if (ready_space(sp) < 0) return nullptr;
    if (!sp->writable) return raise("SpaceReadOnly", "the space is open for reading only; open it with mode 'r+' to append");
    if (!still_open(sp)) return raise("SpaceRemoved", "the space has been removed from its pool; open it again");
    Segment& s = *sp->seg->s;
    SpaceSlot& slot = space_slot(sp);
    for (;;) {
        u64 next = slot.reserved.load_acquire();
        u64 pages = space_pages(slot.extent.load_acquire());
        u64 page_no = next > pages ? next : pages;
        if (page_no >= sp->max_pages)
            return raise("SpaceFull", "the space may have %u pages and has them all; open it with a larger max_pages", sp->max_pages);
        u64 ready = slot.entries_ready.load_acquire();
        if (page_no >= ready) {  // entries first: they must have memory before they are touched
            u64 chunk = u64(s.g.os_page) / 8, most = round_up(sp->max_pages, chunk);
            u64 to = std::min(round_up(page_no + 1, chunk) + 3 * chunk, most);
            int r = prim::plug(s.fd, s.g.entries_at + (sp->first_entry + ready) * 8, (to - ready) * 8);
            if (r) return raise_status(Status::NO_SPACE, sp, page_no), nullptr;
            while (ready < to && !slot.entries_ready.cas_seq_cst(ready, to)) {}
        }
        if (slot.reserved.cas_seq_cst(next, page_no + 1)) return new_write(sp, page_no, true, 10'000'000'000u);
    }
}

static PyObject* space_drop_range(PyObject* self, PyObject* args) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    unsigned long long first, count;
    if (!PyArg_ParseTuple(args, "KK:_drop_range", &first, &count)) return nullptr;
    if (ready_space(sp) < 0) return nullptr;
    if (first + count > sp->max_pages) return raise_status(Status::CORRUPT, sp, first), nullptr;
    Segment& s = *sp->seg->s;
    u32 freed = 0;
    Status status;
    {
        Released unlocked(sp->seg);
        status = drop_range(s, entry_of(sp, first), count, freed);
    }
    if (status == Status::INTERRUPTED || PyErr_Occurred()) return PyErr_CheckSignals() < 0 || PyErr_Occurred() ? nullptr : PyLong_FromUnsignedLong(freed);
    if (status != Status::OK) return raise("WaitTimeout", "a page of the section is being written by a client that does not end; pool.clients() says who writes; the pages before it are dropped");
    return PyLong_FromUnsignedLong(freed);
}

// (segment, index, generation, first_entry, max_pages, kind, fd, store, dtype, writable, discardable, zero_fill)
static PyObject* space_bind(PyObject* self, PyObject* args) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PyObject *seg, *store;
    PyArray_Descr* dtype;
    unsigned long long generation;
    unsigned index, first, max_pages, kind;
    int fd, writable, discardable, zero_fill;
    if (!PyArg_ParseTuple(args, "O!IKIIIiOO!ppp:_bind_core", &SegmentType, &seg, &index, &generation, &first, &max_pages, &kind,
                          &fd, &store, &PyArrayDescr_Type, &dtype, &writable, &discardable, &zero_fill))
        return nullptr;
    Segment* s = opened(reinterpret_cast<SegmentObject*>(seg));
    if (!s) return nullptr;
    npy_intp item = PyDataType_ELSIZE(dtype);
    if (index >= MAX_SPACES || u64(first) + max_pages > s->g.max_pages || item <= 0 || s->g.page_size % u64(item))
        return raise("ValueError", "the dtype's item size must divide the page size");
    Py_INCREF(seg);
    Py_INCREF(store);
    Py_INCREF(dtype);
    Py_XDECREF(sp->seg);
    Py_XDECREF(sp->store);
    Py_XDECREF(sp->dtype);
    sp->seg = reinterpret_cast<SegmentObject*>(seg);
    sp->store = store;
    sp->dtype = dtype;
    sp->items = npy_intp(s->g.page_size) / item;
    sp->generation = generation;
    sp->index = index;
    sp->first_entry = first;
    sp->max_pages = max_pages;
    sp->kind = kind;
    sp->fd = fd;
    sp->writable = writable;
    sp->discardable = discardable;
    sp->zero_fill = zero_fill;
    Py_RETURN_NONE;
}

static PyObject* space_new(PyTypeObject* type, PyObject*, PyObject*) {
    auto sp = reinterpret_cast<SpaceObject*>(type->tp_alloc(type, 0));
    if (sp) sp->fd = -1;
    return reinterpret_cast<PyObject*>(sp);
}

static void space_dealloc(SpaceObject* sp) {
    PyTypeObject* type = Py_TYPE(sp);
    Py_XDECREF(sp->seg);
    Py_XDECREF(sp->store);
    Py_XDECREF(sp->dtype);
    type->tp_free(sp);
}

static PyMethodDef space_methods[] = {
    {"pin", space_pin, METH_O, "pin(page_no): a Pin; as a block it gives the page, read-only, and releases it at the end."},
    {"pin_many", space_pin_many, METH_O, "pin_many(ids): PinnedPages, a sequence of read-only arrays; as a block released at its end."},
    {"read_many", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(space_read_many)), METH_VARARGS | METH_KEYWORDS,
     "read_many(ids, out=None): a copy of many pages, shape (len(ids), items per page)."},
    {"write", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(space_write)), METH_VARARGS | METH_KEYWORDS,
     "write(page_no, timeout=10.0): a Write; as a block it gives a private copy, published when the block ends well."},
    {"append", space_append, METH_NOARGS, "append(): a Write of a new page of zeros at the end of the space."},
    {"_once", space_once, METH_O, "The page, pinned without counting as a reference."},
    {"_load_many", space_load_many, METH_O, "Loads absent pages without pinning them; how many."},
    {"_drop_range", space_drop_range, METH_VARARGS, "Drops pages without write-back; how many frames came free."},
    {"_bind_core", space_bind, METH_VARARGS, "Connects this handle to its slot in a segment."},
    {nullptr, nullptr, 0, nullptr}};
static PyMappingMethods space_mapping = {};

PyTypeObject SpaceType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_space_type() {
    space_mapping.mp_length = space_length;
    space_mapping.mp_subscript = space_subscript;
    SpaceType.tp_name = "bufferpool._core.Space";
    SpaceType.tp_basicsize = sizeof(SpaceObject);
    SpaceType.tp_dealloc = reinterpret_cast<destructor>(space_dealloc);
    SpaceType.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE;
    SpaceType.tp_doc = "Pages by number.";
    SpaceType.tp_methods = space_methods;
    SpaceType.tp_as_mapping = &space_mapping;
    SpaceType.tp_new = space_new;
    return PyType_Ready(&SpaceType);
}

}  // namespace bp
