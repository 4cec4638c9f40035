// The absent pages of one call of read_many, pin_many or prefetch, loaded together (protocol/load_many.h): from a file
// by the core, from a store or by a loader that has a method for many pages by that, else in several threads of Python.
#include "python/loading.h"

#include "os/transfers.h"
#include "protocol/load_many.h"

namespace bp {

constexpr u32 RUN_BYTES = 256 << 10;  // neighbours read by one call
constexpr u32 HELD_BYTES = 4 << 20;   // the most bytes under way at one time
constexpr u32 ASKED_PAGES = 256;      // of a store or a loader at one time

struct Work {
    Claim claims[MANY_PAGES];
    u32 published[MANY_PAGES], publications = 0;  // which of them are published, in order
    u32 wanted_by[MANY_PAGES];  // the caller's index of each
    iovec to[MANY_PAGES];
    bool read[MANY_PAGES];
    Transfers transfers;
};

namespace {

// What the loads of a file and those of Python have in common.
struct Loads {
    Segment& s;
    SpaceObject* sp;
    Work& w;
    Together& pages;
    u64 since_ns = prim::now_ns();

    bool is_read(u32 i) const { return w.read[i]; }
    void published(u32 i) {
        s.counters().loads.add_relaxed(1);
        s.took(LATENCY_LOAD, since_ns);
        w.published[w.publications++] = i;
        pages.loaded(w.wanted_by[i], w.claims[i].frame);
    }
};

// The reads of a file space, for load_many.h.
struct FileLoads : Loads {
    static constexpr u64 READ_AHEAD = 1 << 20;
    u64 read_from = ~u64(0), read_to = 0;  // all that has been read from the file lies between these offsets

    bool room() const { return w.transfers.room(); }

    void begin(u32 first, u32 count) {
        u64 page_no = w.claims[first].page - sp->first_entry, stored = space_slot(sp).stored.load_acquire();
        u32 in_file = stored <= page_no ? 0 : u32(std::min<u64>(count, stored - page_no));
        for (u32 i = first; i < first + count; i++) {
            u8* to = s.page_data(w.claims[i].frame);
            w.to[i] = {to, s.g.page_size};
            w.read[i] = i >= first + in_file;
            if (w.read[i]) memset(to, 0, s.g.page_size);  // beyond the end of the file
        }
        read_from = std::min(read_from, page_no << s.g.page_shift);
        read_to = std::max(read_to, (page_no + count) << s.g.page_shift);
        if (in_file == count && has_its_file(s, sp))
            w.transfers.begin({false, sp->fd, &w.to[first], count, page_no << s.g.page_shift,
                               u32(prim::read_flags(sp->caching)), sp->caching == prim::DIRECT}, first);
        else w.transfers.begin_done(first, count, 0);
    }

    // Takes an ended read. If it failed or was short, the caller reads its pages one by one, so that an error is for
    // one page.
    bool ended(u32& first, u32& count) {
        Transfer t;
        if (!w.transfers.ended(t)) return drop_read_ahead(), false;
        if (sp->caching == prim::DROPPED && t.what.to)
            prim::drop_cache(sp->fd, t.what.offset, u64(t.what.n) << s.g.page_shift);
        first = t.first;
        count = t.what.n;
        for (u32 i = first; i < first + count; i++) {
            if (w.read[i]) continue;
            w.read[i] = t.got >= ssize_t(u64(i + 1 - first) << s.g.page_shift);
            if (w.read[i]) s.counters().load_bytes.add_relaxed(s.g.page_size);
        }
        return true;
    }

    // The kernel may read further than it was asked to (io_uring continues a read with read-ahead, despite
    // POSIX_FADV_RANDOM), and it drops no page that it is still reading. So what is left is dropped at the end.
    void drop_read_ahead() const {
        bool through_cache = sp->caching == prim::DROPPED || sp->caching == prim::UNCACHED;
        if (through_cache && read_from < read_to && has_its_file(s, sp))
            prim::drop_cache(sp->fd, read_from, read_to - read_from + READ_AHEAD);
    }

    template <class F>
    void unlocked(F f) {
        f();  // the caller has released it
    }
    bool is_dirty(u32) const { return false; }
    const char* failure() { return nullptr; }  // the next one reads by itself
    bool forked() const { return false; }
};

// Pages whose content Python makes: _fill_many(page numbers) returns for each (its bytes, whether the store has
// something else), or the exception that it raised.
struct PythonLoads : Loads {
    u32 forks = sp->seg->forks;
    u32 runs = 0, first[ASKED_PAGES], count[ASKED_PAGES];
    bool filled = false;
    bool dirty[MANY_PAGES] = {};
    PyObject* error = nullptr;  // the first that a page has, for the caller
    u32 error_at = 0;           // which page
    char text[FAILURE_WORDS * 8 + 1] = {};

    ~PythonLoads() { Py_XDECREF(error); }

    template <class F>
    void unlocked(F f) {
        Released unlocked(sp->seg);
        f();
    }
    // Nothing more is claimed before all that was asked for is published, so that each page is asked for once.
    bool room() const { return !filled && runs < ASKED_PAGES; }
    void begin(u32 from, u32 many) {
        first[runs] = from;
        count[runs++] = many;
    }
    bool forked() const { return sp->seg->forks != forks; }
    bool is_dirty(u32 i) const { return dirty[i]; }
    const char* failure() { return text[0] ? text : nullptr; }

    bool ended(u32& from, u32& many) {
        if (!runs) return false;
        if (!filled) fill();
        from = first[--runs];
        many = count[runs];
        filled = runs > 0;
        return true;
    }

    // Calls _fill_many for all that are claimed and not filled.
    void fill() {
        u32 asked[MANY_PAGES], n = 0;
        for (u32 run = 0; run < runs; run++)
            for (u32 i = first[run]; i < first[run] + count[run]; i++) {
                w.read[i] = is_new(sp, w.claims[i].page - sp->first_entry);
                if (w.read[i]) memset(s.page_data(w.claims[i].frame), 0, s.g.page_size);
                else asked[n++] = i;
            }
        if (!n) return;
        PyObject* numbers = PyList_New(n);
        for (u32 k = 0; numbers && k < n; k++) {
            PyObject* number = PyLong_FromUnsignedLong(w.claims[asked[k]].page - sp->first_entry);
            if (!number) Py_CLEAR(numbers);
            else PyList_SET_ITEM(numbers, k, number);
        }
        PyObject* filled =
            numbers ? PyObject_CallMethod(reinterpret_cast<PyObject*>(sp), "_fill_many", "N", numbers) : nullptr;
        if (forked()) return Py_XDECREF(filled);
        PyObject* each = filled ? PySequence_Fast(filled, "_fill_many must return a sequence") : nullptr;
        Py_XDECREF(filled);
        for (u32 k = 0; each && k < n && k < PySequence_Fast_GET_SIZE(each); k++)
            take(asked[k], PySequence_Fast_GET_ITEM(each, k));
        Py_XDECREF(each);
        if (PyErr_Occurred()) keep_error(asked[0]);
    }

private:
    void take(u32 i, PyObject* page) {
        PyObject* bytes;
        int repaired;
        Py_buffer view;
        if (PyExceptionInstance_Check(page)) {
            PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(page)), page);
            return keep_error(i);
        }
        if (!PyArg_ParseTuple(page, "Op:_fill_many", &bytes, &repaired) ||
            PyObject_GetBuffer(bytes, &view, PyBUF_SIMPLE) < 0)
            return keep_error(i);
        w.read[i] = view.len == Py_ssize_t(s.g.page_size);
        if (w.read[i]) {
            memcpy(s.page_data(w.claims[i].frame), view.buf, s.g.page_size);
            s.counters().load_bytes.add_relaxed(s.g.page_size);
        }
        dirty[i] = repaired != 0;
        PyBuffer_Release(&view);
    }

    // The first error is raised by the call, and by the clients that wait for one of the pages.
    void keep_error(u32 i) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        PyErr_NormalizeException(&type, &value, &trace);
        if (trace) PyException_SetTraceback(value, trace);
        Py_XDECREF(type);
        Py_XDECREF(trace);
        if (error || !value) return Py_XDECREF(value);
        error = value;
        error_at = i;
        copy_failure(error, text);
    }
};

}  // namespace

// Sorts the absent pages by number, without duplicates.
static u32 sort_absent(SpaceObject* sp, const Together& pages, Work& w) {
    u32 order[MANY_PAGES], n = 0;
    for (u32 i = 0; i < pages.count(); i++)
        if (state_of(sp, pages.number(i)) == ABSENT) order[n++] = i;
    auto before = [&](u32 a, u32 b) {
        return pages.number(a) != pages.number(b) ? pages.number(a) < pages.number(b) : a < b;
    };
    std::sort(order, order + n, before);
    u32 kept = 0;
    for (u32 i = 0; i < n; i++) {
        if (i && pages.number(order[i]) == pages.number(order[i - 1])) continue;
        w.claims[kept] = {entry_of(sp, pages.number(order[i]))};
        w.wanted_by[kept++] = order[i];
    }
    return kept;
}

static void load_from_file(SpaceObject* sp, Access access, Together& pages, Work& w) {
    Segment& s = *sp->seg->s;
    u32 n = sort_absent(sp, pages, w);
    if (n < 2) return;
    FileLoads loads{{s, sp, w, pages}};
    Place at = place_of(sp, 0);
    ManyLoads<FileLoads> many(s, at, access, loads, w.claims);
    u32 run = std::max(1u, RUN_BYTES >> s.g.page_shift), held = std::max(1u, HELD_BYTES >> s.g.page_shift);
    many.run(n, {run, std::min(held, std::max(1u, s.header->budget_frames.load_relaxed() / 8))});
}

void Together::loaded(u32 i, u32 frame) {
    Segment& s = *sp_->seg->s;
    frames_[i] = frame;
    if (copies_)
        memcpy(copies_ + (u64(first_ + i) << s.g.page_shift), s.page_data(frame), s.g.page_size);
    if (!keeps_) unpin(s, frame);
}

static void load_from_python(SpaceObject* sp, Access access, Together& pages, Work& w) {
    Segment& s = *sp->seg->s;
    u32 n = sort_absent(sp, pages, w);
    if (n < 2) return;
    u32 held = std::min(ASKED_PAGES, std::max(1u, s.header->budget_frames.load_relaxed() / 8));
    PyObject* how = PyObject_GetAttrString(reinterpret_cast<PyObject*>(sp), "_fills_many");
    if (!how) return;
    bool many = PyObject_IsTrue(how) == 1;
    Py_DECREF(how);
    if (!many) {
        n = std::min(n, held);
        PyObject* numbers = PyList_New(n);
        for (u32 k = 0; numbers && k < n; k++)
            PyList_SET_ITEM(numbers, k, PyLong_FromUnsignedLong(w.claims[k].page - sp->first_entry));
        PyObject* r = numbers ? PyObject_CallMethod(reinterpret_cast<PyObject*>(sp), "_load_apart", "NiK", numbers,
                                                    int(access.once), (unsigned long long)access.deadline_ns)
                              : nullptr;
        if (r) pages.apart += PyLong_AsLong(r);
        return Py_XDECREF(r);
    }
    PythonLoads loads{{s, sp, w, pages}};
    Place at = place_of(sp, 0);
    {
        ManyLoads<PythonLoads> loading(s, at, access, loads, w.claims);
        loading.run(n, {ASKED_PAGES, held});
    }
    if (!loads.error || PyErr_Occurred()) return;
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(loads.error)), loads.error);
    s.counters().load_failures.add_relaxed(1);
    report_failure(sp, w.claims[loads.error_at].page - sp->first_entry, 0);
}

void Together::load_from(npy_intp first) {
    first_ = first;
    end_ = std::min<npy_intp>(n_, first + MANY_PAGES);
    std::fill_n(frames_, count(), NONE);
    if (sp_->zero_fill || count() < 2) return;
    if (!may_work(sp_->seg)) return PyErr_Clear();  // loading the first page raises the error
    if ((access_.early || !access_.ahead()) && !ask_for_memory(sp_->seg)) return;
    Work* w = make<Work>();
    if (!w) return;
    u32 forks = sp_->seg->forks;
    if (sp_->fd >= 0) {
        Released unlocked(sp_->seg);
        Deadline deadline(access_.deadline_ns);
        load_from_file(sp_, access_, *this, *w);
    } else {
        load_from_python(sp_, access_, *this, *w);
    }
    if (sp_->seg->forks == forks) count_loads(*w);
    else std::fill_n(frames_, count(), NONE);  // the pins are the parent's
    unmake(w);
}

// With the interpreter's lock: see Atomic::add_owned.
void Together::count_loads(const Work& w) {
    Segment& s = *sp_->seg->s;
    if (access_.counts) s.my_uses[sp_->index].misses.add_owned(w.publications);
    for (u32 i = 0; i < w.publications; i++)
        if (ADVISES && !access_.ahead()) record_load(s, w.claims[w.published[i]].page, access_.kind());
}

Together::~Together() {
    for (u32 i = 0; keeps_ && i < count(); i++)
        if (frames_[i] != NONE) drop_pin(sp_->seg, frames_[i]);
}

}  // namespace bp
