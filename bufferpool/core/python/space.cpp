// Space: pages by number. space[n] is the hot path.
#include "python/write.h"

#include "protocol/shrink.h"
#include "protocol/writing.h"

#include <utility>

namespace bp {

// Whether an index means several pages or items, which Python selects.
static bool is_many(PyObject* n) {
    return PySlice_Check(n) || PyTuple_Check(n) || PyList_Check(n) || n == Py_Ellipsis ||
           (PyArray_Check(n) && PyArray_NDIM(reinterpret_cast<PyArrayObject*>(n)) > 0);
}

static PyObject* space_subscript(PyObject* self, PyObject* n) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    u64 page_no;
    u32 frame;
    if (!PyLong_Check(n) && is_many(n)) [[unlikely]]
        return PyObject_CallMethod(self, "_select", "(O)", n);
    if (page_number(sp, n, page_no, true) < 0 || acquire_page(sp, page_no, Access{}, frame) < 0) return nullptr;
    return view_of(sp, frame);
}

int seconds_of(PyObject* value, const char* what, double& seconds) {
    bool other = PyBool_Check(value) || PyArray_IsScalar(value, Bool) || PyArray_Check(value);
    seconds = other ? -1 : PyFloat_AsDouble(value);
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_OverflowError)) {  // an int that no double can have
        PyErr_Clear();
        PyObject* zero = PyLong_FromLong(0);
        int positive = zero ? PyObject_RichCompareBool(value, zero, Py_GT) : -1;
        Py_XDECREF(zero);
        if (positive < 0) return -1;
        seconds = positive ? 1e18 : -1;
    }
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_TypeError)) return -1;
    if (other || PyErr_Occurred()) {
        PyErr_Clear();
        raise("TypeError", "%s must be a number of seconds, or None, not %.100s", what, Py_TYPE(value)->tp_name);
        return -1;
    }
    if (seconds >= 0) return 0;
    raise("ValueError", "%s must be a number of seconds, at least 0, or None, not %R", what, value);
    return -1;
}

// Computes the deadline of a timeout in seconds (None, or not given: 0, no deadline). 0 or -1.
static int deadline_of(PyObject* timeout, u64& deadline_ns) {
    deadline_ns = 0;
    if (!timeout || timeout == Py_None) return 0;
    double seconds;
    if (seconds_of(timeout, "timeout", seconds) < 0) return -1;
    deadline_ns = prim::now_ns() + u64(std::min(seconds, 1e9) * 1e9);
    return 0;
}

// The arguments of a fast call that may all be given by name, and the first ones by position: null where one was not
// given. `names` as the interpreter gives it. 0 or -1.
template <size_t N>
static int arguments(const char* function, const char* const (&known)[N], size_t by_position, PyObject* const* args,
                     Py_ssize_t n, PyObject* names, PyObject* (&out)[N]) {
    if (size_t(n) > by_position)
        return raise("TypeError", "%s() takes at most %zu positional arguments, not %zd", function, by_position, n), -1;
    for (size_t i = 0; i < N; i++) out[i] = i < size_t(n) ? args[i] : nullptr;
    for (Py_ssize_t k = 0; names && k < PyTuple_GET_SIZE(names); k++) {
        PyObject* name = PyTuple_GET_ITEM(names, k);
        size_t i = 0;
        while (i < N && PyUnicode_CompareWithASCIIString(name, known[i]) != 0) i++;
        if (i == N) return raise("TypeError", "%s() has no argument %R", function, name), -1;
        if (out[i]) return raise("TypeError", "%s() has two values for its argument %R", function, name), -1;
        out[i] = args[n + k];
    }
    return 0;
}

// The arguments (what, timeout=None) of a fast call. 0 or -1.
static int with_timeout(const char* name, PyObject* const* args, Py_ssize_t n, PyObject* names, PyObject*& what,
                        Access& access) {
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    bool keyword = named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "timeout") == 0;
    if (n != 1 || named > 1 || (named && !keyword))
        return raise("TypeError", "%s() takes one argument, and timeout= as a keyword", name), -1;
    what = args[0];
    return named ? deadline_of(args[1], access.deadline_ns) : 0;
}

// The page number of a call that has a timeout. 0 or -1.
static int number_of(SpaceObject* sp, PyObject* n, Access access, u64& page_no) {
    return page_number(sp, n, page_no, false, Backing::GIVEN, access.deadline_ns);
}

static PyObject* space_get(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PyObject* what;
    Access access;
    u64 page_no;
    u32 frame;
    if (with_timeout("get", args, n, names, what, access) < 0 || number_of(sp, what, access, page_no) < 0)
        return nullptr;
    return acquire_page(sp, page_no, access, frame) < 0 ? nullptr : view_of(sp, frame);
}

// Whether the entry of a page has memory; one without is ABSENT.
static bool has_entry(SpaceObject* sp, u64 page_no) {
    return is_backed(sp, page_no) || note_entry(sp, page_no);
}

// A page that is there, or None: it waits for nobody, and loads nothing.
static PyObject* there_or_none(PyObject* self, PyObject* n, Access access) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    u64 page_no;
    u32 frame;
    if (page_number(sp, n, page_no, false, Backing::AS_IS) < 0) return nullptr;
    if (!has_entry(sp, page_no)) Py_RETURN_NONE;
    SpaceHooks hooks{sp, page_no};
    Status status = fetch_hit(*sp->seg->s, place_of(sp, page_no), access, hooks, frame);
    if (status == Status::OK) return view_of(sp, frame);
    if (status == Status::ABSENT || status == Status::WAIT) Py_RETURN_NONE;
    return answer(status, sp, page_no), nullptr;
}

static PyObject* space_try_get(PyObject* self, PyObject* n) { return there_or_none(self, n, Access{}); }

// The same for a command that inspects the pool: it is no reference, neither in the figures nor for the policy.
static PyObject* space_peek(PyObject* self, PyObject* n) {
    return there_or_none(self, n, Access{.counts = false, .once = true});
}

static PyObject* space_pin(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PyObject* what;
    Access access;
    u64 page_no;
    u32 frame;
    if (with_timeout("pin", args, n, names, what, access) < 0 || number_of(sp, what, access, page_no) < 0)
        return nullptr;
    return acquire_page(sp, page_no, access, frame) < 0 ? nullptr : new_pin(sp, frame, page_no);
}

// Pins a page for a scan: it does not count as a use for the policy.
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
    u64 span = space_slot(sp).span.load_acquire();
    if (space_generation(span) != sp->generation) {
        raise_space_removed(sp);
        return -1;
    }
    return Py_ssize_t(space_pages(span));
}

// The page numbers in `ids` as int64, checked. It is a copy, because a loader or another thread may change `ids`
// meanwhile.
static PyArrayObject* page_numbers(SpaceObject* sp, PyObject* ids, Backing backing, u64 deadline_ns = 0) {
    PyObject* any = PyArray_FROM_O(ids);
    if (!any) return nullptr;
    auto a = reinterpret_cast<PyArrayObject*>(any);
    bool empty = PyArray_SIZE(a) == 0;
    if ((!PyArray_ISINTEGER(a) && !empty) || PyArray_NDIM(a) != 1) {
        Py_DECREF(any);
        raise("TypeError", "page numbers must be a one-dimensional sequence of integers");
        return nullptr;
    }
    auto numbers = reinterpret_cast<PyArrayObject*>(
        PyArray_FROMANY(any, NPY_INT64, 1, 1, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST | NPY_ARRAY_ENSURECOPY));
    Py_DECREF(any);
    if (!numbers || ready_space(sp) < 0) {
        Py_XDECREF(numbers);
        return nullptr;
    }
    u64 span = space_slot(sp).span.load_acquire();
    auto v = static_cast<const npy_int64*>(PyArray_DATA(numbers));
    for (npy_intp i = 0; i < PyArray_SIZE(numbers); i++) {
        bool exists = v[i] >= 0 && u64(v[i]) < space_pages(span) && space_generation(span) == sp->generation;
        bool ready = is_backed(sp, u64(v[i])) || (backing == Backing::AS_IS && u64(v[i]) < sp->max_pages);
        if (exists && (ready || back_entry(sp, u64(v[i]), deadline_ns) == 0)) continue;
        PyObject* n = exists ? nullptr : PyLong_FromLongLong(v[i]);
        if (n) bad_page(sp, span, n);
        Py_XDECREF(n);
        Py_DECREF(numbers);
        return nullptr;
    }
    return numbers;
}

// The page numbers of a call, for as long as it lasts. False: an exception is set.
struct PageNumbers {
    Touches touches;
    PyArrayObject* array;
    const npy_int64* v = nullptr;
    npy_intp n = 0;

    PageNumbers(SpaceObject* sp, PyObject* ids, Backing backing = Backing::GIVEN, u64 deadline_ns = 0)
        : touches(sp), array(page_numbers(sp, ids, backing, deadline_ns)) {
        if (array) v = static_cast<const npy_int64*>(PyArray_DATA(array)), n = PyArray_SIZE(array);
    }
    PageNumbers(const PageNumbers&) = delete;
    ~PageNumbers() { Py_XDECREF(array); }
    explicit operator bool() const { return array; }
};

// Hits are counted in groups: not each one, and not only at the end, because the sampler reads the counters meanwhile.
constexpr u64 HITS_AT_ONCE = 32;
static void count_hits(SpaceObject* sp, u64 hits) { sp->seg->s->my_uses[sp->index].hits.add_owned(hits); }

[[gnu::always_inline]] inline void use(Segment& s, SpaceObject* sp, u64 page_no, u32 frame, u32 now, u64& hits) {
    if (s.frames[frame].count.load_relaxed() & AHEAD) [[unlikely]]
        count_use(s, sp->index, entry_of(sp, page_no), frame, Access{});
    else if (++hits == HITS_AT_ONCE) count_hits(sp, std::exchange(hits, 0));
    s.touch(frame, now);
}

// What the pins of a call's next pages touch is fetched early, in stages: their entries; then their frame slots and pin
// counts, which the entries name; and for a copy the beginnings of their data. In a large pool each of them is far away
// in memory, and each stage depends on the one before.
class LookAhead {
    static constexpr npy_intp ENTRIES = 24, FRAMES = 12, DATA = 2;  // pages ahead
    static constexpr u32 LINE = 64, LINES = 2;                     // the processor itself continues from there
    Segment& s_;
    SpaceObject* sp_;
    const npy_int64* numbers_;
    npy_intp n_;

    const Atomic<u64>& entry(npy_intp i) const { return s_.entries[entry_of(sp_, u64(numbers_[i]))]; }
    void fetch_frame(npy_intp i) const {
        u64 e = entry(i).load_relaxed();
        if (entry::state(e) != RESIDENT) return;  // it names no frame
        fetch_early(&s_.frames[entry::frame(e)]);
        fetch_early(&s_.pin_count(entry::frame(e)));
    }
    void fetch_data(npy_intp i) const {
        u64 e = entry(i).load_relaxed();
        if (entry::state(e) != RESIDENT) return;
        const char* data = view_at(sp_, entry::frame(e));
        for (u32 at = 0; at < s_.g.page_size; at += s_.g.os_page)
            for (u32 line = 0; line < LINES; line++) fetch_early(data + at + line * LINE);
    }

public:
    LookAhead(SpaceObject* sp, const npy_int64* numbers, npy_intp n)
        : s_(*sp->seg->s), sp_(sp), numbers_(numbers), n_(n) {
        for (npy_intp i = 0; i < n_ && i < ENTRIES; i++) fetch_early(&entry(i));
        for (npy_intp i = 0; i < n_ && i < FRAMES; i++) fetch_frame(i);
    }
    // Called for each page of the call, before it is pinned; and before it is copied.
    void at(npy_intp i) const {
        if (i + ENTRIES < n_) fetch_early(&entry(i + ENTRIES));
        if (i + FRAMES < n_) fetch_frame(i + FRAMES);
    }
    void copy_at(npy_intp i) const {
        if (i + DATA < n_) fetch_data(i + DATA);
    }
};

// Pages that are pinned, and are copied next. The processor completes all of its stores before it changes a pin count,
// so between two copies a change of one keeps it from reading the next page while it still stores the last one. A few
// pages are pinned, then copied, then released.
class Copies {
    static constexpr u32 AT_ONCE = 4;
    SpaceObject* sp_;
    const LookAhead& ahead_;
    char* to_;
    npy_intp index_[AT_ONCE];
    u32 frames_[AT_ONCE], n_ = 0;

public:
    Copies(SpaceObject* sp, const LookAhead& ahead, char* to) : sp_(sp), ahead_(ahead), to_(to) {}
    void add(npy_intp i, u32 frame) {
        index_[n_] = i;
        frames_[n_++] = frame;
        if (n_ == AT_ONCE) finish();
    }
    // Called before anything that may wait, and at the end.
    void finish() {
        const Geometry& g = sp_->seg->s->g;
        for (u32 k = 0; k < n_; k++) {
            ahead_.copy_at(index_[k]);
            memcpy(to_ + (u64(index_[k]) << g.page_shift), view_at(sp_, frames_[k]), g.page_size);
        }
        for (u32 k = 0; k < n_; k++) drop_pin(sp_->seg, frames_[k]);
        n_ = 0;
    }
};

static PyObject* space_pin_many(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PyObject* ids;
    Access access;
    if (with_timeout("pin_many", args, count, names, ids, access) < 0) return nullptr;
    PageNumbers numbers(sp, ids, Backing::GIVEN, access.deadline_ns);
    if (!numbers) return nullptr;
    Busy busy(sp->seg);
    Segment& s = *sp->seg->s;
    npy_intp n = numbers.n;
    auto v = numbers.v;
    u32 few[128];
    Vec<u32> many;
    if (n > 128 && !many.resize(size_t(n))) return PyErr_NoMemory();
    u32* frames = n > 128 ? many.data() : few;
    u32 now = s.tick();
    u64 hits = 0;
    npy_intp i = 0;
    Together together(sp, v, n, access, true);
    LookAhead ahead(sp, v, n);
    for (; i < n; i++) {
        ahead.at(i);
        if (together.take(i, frames[i])) continue;
        Status status = pin(s, sp->first_entry + u32(v[i]), frames[i]);
        if (status == Status::OK) use(s, sp, u64(v[i]), frames[i], now, hits);
        else if (status == Status::ABSENT && together.load(i, frames[i])) continue;
        else if (PyErr_Occurred() || acquire_slowly(sp, u64(v[i]), access, frames[i]) < 0) break;
    }
    count_hits(sp, hits);
    if (i == n && !still_open(sp)) {
        bad_page(sp, space_slot(sp).span.load_acquire(), Py_None);
    } else if (i == n) {
        return new_pinned_pages(sp, frames, n);
    }
    while (i-- > 0) drop_pin(sp->seg, frames[i]);
    return nullptr;
}

static PyArrayObject* output_for(SpaceObject* sp, npy_intp n, PyObject* out) {
    npy_intp shape[2] = {n, sp->items};
    if (!out || out == Py_None) {
        Py_INCREF(sp->dtype);
        return reinterpret_cast<PyArrayObject*>(
            PyArray_NewFromDescr(&PyArray_Type, sp->dtype, 2, shape, nullptr, nullptr, 0, nullptr));
    }
    auto a = reinterpret_cast<PyArrayObject*>(out);
    if (!PyArray_Check(out) || PyArray_NDIM(a) != 2 || PyArray_DIM(a, 0) != n || PyArray_DIM(a, 1) != sp->items ||
        !PyArray_EquivTypes(PyArray_DESCR(a), sp->dtype) || !PyArray_ISCARRAY(a)) {
        raise("ValueError", "out must be a writable, C-contiguous array of the space's dtype, of shape (%zd, %zd)", n,
              sp->items);
        return nullptr;
    }
    Py_INCREF(out);
    return a;
}

// Pins a page that was not there, or if no frame is available copies it past the pool: then `frame` is NONE.
// `no_frame`: in: no wait for a frame; out: whether there was none. An exception may be set, of a load of several
// pages. False: one is set now.
static bool get_copy(SpaceObject* sp, u64 page_no, Access access, bool& no_frame, void* to, u32& frame) {
    for (bool acquires = !no_frame;; acquires = true) {
        if (acquires || PyErr_Occurred()) {
            if (!PyErr_Occurred() && acquire_slowly(sp, page_no, access, frame) == 0) return true;
            if (!forget_exhausted()) return false;
            no_frame = true;
        }
        frame = NONE;
        Past past = read_past(sp, page_no, to);
        if (past != Past::CHANGED) return past == Past::READ;
    }
}

static PyObject* space_read_many(PyObject* self, PyObject* args, PyObject* kwargs) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    static const char* names[] = {"ids", "out", "timeout", nullptr};
    PyObject *ids, *out = nullptr, *timeout = nullptr;
    Access access;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O$O:read_many", const_cast<char**>(names), &ids, &out, &timeout))
        return nullptr;
    if (deadline_of(timeout, access.deadline_ns) < 0) return nullptr;
    PageNumbers numbers(sp, ids, Backing::GIVEN, access.deadline_ns);
    if (!numbers) return nullptr;
    Busy busy(sp->seg);
    npy_intp n = numbers.n;
    auto v = numbers.v;
    PyArrayObject* to = output_for(sp, n, out);
    Segment& s = *sp->seg->s;
    u32 now = s.tick();
    u64 hits = 0;
    bool ok = to != nullptr, exhausted = false;
    char* copies = ok ? static_cast<char*>(PyArray_DATA(to)) : nullptr;
    Together together(sp, v, n, access, false, copies);
    LookAhead ahead(sp, v, n);
    Copies pinned(sp, ahead, copies);
    for (npy_intp i = 0; ok && i < n; i++) {
        u32 f;
        ahead.at(i);
        if (together.take(i, f)) continue;  // the page is copied already
        Status status = pin(s, sp->first_entry + u32(v[i]), f);
        if (status == Status::OK) {
            use(s, sp, u64(v[i]), f, now, hits);
            pinned.add(i, f);
            continue;
        }
        pinned.finish();
        if (status == Status::ABSENT && together.load(i, f)) continue;
        bool no_frame = exhausted && status == Status::ABSENT;
        ok = get_copy(sp, u64(v[i]), access, no_frame, copies + (u64(i) << s.g.page_shift), f);
        exhausted |= no_frame;
        if (ok && f != NONE) pinned.add(i, f);
    }
    pinned.finish();
    count_hits(sp, hits);
    if (ok && !still_open(sp)) {
        bad_page(sp, space_slot(sp).span.load_acquire(), Py_None);
        ok = false;
    }
    if (ok) return reinterpret_cast<PyObject*>(to);
    Py_XDECREF(to);
    return nullptr;
}

// Loads absent pages without pinning them. Returns the number of loaded pages.
static PyObject* space_load_many(PyObject* self, PyObject* ids) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PageNumbers numbers(sp, ids);
    if (!numbers) return nullptr;
    Busy busy(sp->seg);
    auto v = numbers.v;
    long loaded = 0;
    bool ok = true;
    Access access{.counts = false, .once = true};
    Together together(sp, v, numbers.n, access, false);
    for (npy_intp i = 0; ok && i < numbers.n; i++) {
        u32 f;
        auto absent = [&] { return state_of(sp, u64(v[i])) == ABSENT; };
        if (together.take(i, f) || (absent() && together.load(i, f))) {
            loaded++;
            continue;
        }
        ok = !PyErr_Occurred();
        if (!ok || !absent()) continue;
        ok = acquire_slowly(sp, u64(v[i]), access, f) == 0;
        if (ok) drop_pin(sp->seg, f);
        loaded += ok;
    }
    ok = ok || forget_exhausted();  // there is no room to read ahead
    return ok ? PyLong_FromLong(loaded + together.apart) : nullptr;
}

// How many of these pages of a file are absent; 0 for a space that no file is behind.
static PyObject* space_absent(PyObject* self, PyObject* ids) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PageNumbers numbers(sp, ids, Backing::AS_IS);
    if (!numbers) return nullptr;
    long absent = 0;
    for (npy_intp i = 0; sp->fd >= 0 && i < numbers.n; i++)
        absent += !has_entry(sp, u64(numbers.v[i])) || state_of(sp, u64(numbers.v[i])) == ABSENT;
    return PyLong_FromLong(absent);
}

// Which of these pages are in the pool at the moment.
static PyObject* space_resident(PyObject* self, PyObject* ids) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PageNumbers numbers(sp, ids, Backing::AS_IS);
    if (!numbers) return nullptr;
    PyObject* out = PyArray_SimpleNew(1, &numbers.n, NPY_BOOL);
    for (npy_intp i = 0; out && i < numbers.n; i++) {
        bool there = has_entry(sp, u64(numbers.v[i])) && state_of(sp, u64(numbers.v[i])) == RESIDENT;
        static_cast<npy_bool*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(out)))[i] = there;
    }
    return out;
}

// Loads those of the pages that can be loaded together, and none one by one. False: an exception is set.
static bool load_at_once(SpaceObject* sp, const PageNumbers& numbers, Access access) {
    if (!numbers) return false;
    Busy busy(sp->seg);
    Together together(sp, numbers.v, numbers.n, access, false);
    u32 f;
    for (npy_intp i = 0; i < numbers.n && !PyErr_Occurred(); i += MANY_PAGES) together.load(i, f);
    return !PyErr_Occurred();
}

// Loads ahead of a scan: no foreign code runs, and no exception is raised for a page.
static PyObject* space_load_ahead(PyObject* self, PyObject* ids) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PageNumbers numbers(sp, ids);
    if (!load_at_once(sp, numbers, Access{.counts = false, .once = true})) return nullptr;
    Py_RETURN_NONE;
}

// Loads for uses that follow, and are counted then. Returns how many of the pages are still absent.
static PyObject* space_load_together(PyObject* self, PyObject* ids) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PageNumbers numbers(sp, ids);
    if (!load_at_once(sp, numbers, Access{.counts = false, .early = true})) return nullptr;
    long absent = 0;
    for (npy_intp i = 0; i < numbers.n; i++) absent += state_of(sp, u64(numbers.v[i])) == ABSENT;
    return PyLong_FromLong(absent);
}

// _early(page_no, once, deadline_ns): loads a page for a use that follows, and is counted then; it is not pinned.
// Whether it was loaded here.
static PyObject* space_early(PyObject* self, PyObject* args) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PyObject* n;
    int once;
    unsigned long long deadline_ns;
    u64 page_no;
    u32 frame;
    if (!PyArg_ParseTuple(args, "OpK:_early", &n, &once, &deadline_ns)) return nullptr;
    Access access{.counts = false, .once = once != 0, .early = true, .deadline_ns = deadline_ns};
    if (number_of(sp, n, access, page_no) < 0) return nullptr;
    bool absent = state_of(sp, page_no) == ABSENT;
    if (acquire_slowly(sp, page_no, access, frame) < 0) return nullptr;
    drop_pin(sp->seg, frame);
    return PyBool_FromLong(absent);
}

// Whether this thread is in no load, flush or write: then others may do its loads while it waits for them.
static PyObject* space_unbound(PyObject* self, PyObject*) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    return PyBool_FromLong(!sp->seg->writes && !works_for_pool(*sp->seg->s));
}

// Raises SpaceReadOnly, with the remedy if there is one.
static PyObject* raise_read_only(SpaceObject* sp, const char* what) {
    if (sp->kind == KIND_DERIVED)
        return raise(
            "SpaceReadOnly",
            "derived pages come from their loader, and no process can %s one; use open_file, open_store or "
            "open_scratch for pages that are written",
            what);
    return raise("SpaceReadOnly", "the space is open for reading only; open it with mode 'r+' to %s a page", what);
}

// Sets the LSN of a Write, if one is given (null or None: that of the old version). Takes the reference.
static PyObject* with_lsn(PyObject* write, PyObject* lsn) {
    if (!write || !lsn || lsn == Py_None) return write;
    if (PyObject_SetAttrString(write, "lsn", lsn) == 0) return write;
    Py_DECREF(write);
    return nullptr;
}

// How long a Write waits: ten seconds if nothing is said, and years for None. 0 or -1.
static int patience_of(PyObject* timeout, u64& timeout_ns) {
    double seconds = !timeout ? 10.0 : 1e9;
    if (timeout && timeout != Py_None && seconds_of(timeout, "timeout", seconds) < 0) return -1;
    timeout_ns = u64(std::min(seconds, 1e9) * 1e9);
    return 0;
}

static PyObject* space_write(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PyObject* given[4];
    if (arguments("write", {"page_no", "timeout", "lsn", "fresh"}, 2, args, count, names, given) < 0) return nullptr;
    auto [n, timeout, lsn, fresh] = given;
    if (!n) return raise("TypeError", "write() needs the number of a page");
    u64 page_no;
    // The entry gets its memory in the block, within the timeout.
    if (page_number(sp, n, page_no, false, Backing::AS_IS) < 0) return nullptr;
    if (!sp->writable) return raise_read_only(sp, "write");
    u64 timeout_ns;
    if (patience_of(timeout, timeout_ns) < 0 || refuse_in_group(sp, "space.write()") < 0) return nullptr;
    if (fresh && !PyBool_Check(fresh)) return raise("TypeError", "fresh must be True or False, not %R", fresh);
    return with_lsn(new_write(sp, page_no, fresh == Py_True ? WriteKind::FRESH : WriteKind::EDIT, timeout_ns), lsn);
}

// What helps if a space is full.
static const char* more_room(SpaceObject* sp) {
    return sp->kind == KIND_SCRATCH ? "remove it, and open it with more pages" : "open it with a larger max_pages";
}

// Allocates the numbers of appended pages. 0 or -1.
static int allocate(SpaceObject* sp, u64 count, u64 timeout_ns, u64& first) {
    SpaceHooks hooks{sp, 0, prim::now_ns() + timeout_ns};
    Status status = allocate_numbers(*sp->seg->s, place_of(sp, 0), sp->max_pages, count, hooks, first);
    if (status == Status::OK) return 0;
    if (status == Status::REMOVED) return raise_space_removed(sp), -1;
    if (status != Status::TOO_LONG) return answer(status, sp, first), -1;
    raise("SpaceFull",
          "the space has %llu of at most %u pages, and %llu more do not fit; %s",
          (unsigned long long)space_pages(space_slot(sp).span.load_acquire()), sp->max_pages,
          (unsigned long long)count, more_room(sp));
    return -1;
}

static PyObject* space_append(PyObject* self, PyObject* args, PyObject* kwargs) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    static const char* names[] = {"timeout", "lsn", nullptr};
    PyObject *timeout = nullptr, *lsn = nullptr;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OO:append", const_cast<char**>(names), &timeout, &lsn))
        return nullptr;
    u64 page_no, timeout_ns;
    if (patience_of(timeout, timeout_ns) < 0) return nullptr;
    if (ready_space(sp) < 0 || !opened(sp->seg)) return nullptr;
    if (!sp->writable) return raise_read_only(sp, "append");
    if (allocate(sp, 1, timeout_ns, page_no) < 0) return nullptr;
    return with_lsn(new_write(sp, page_no, WriteKind::APPEND, timeout_ns), lsn);
}

// Makes the space `pages` long. 0 or -1.
static int grow_to(SpaceObject* sp, u64 pages, u64 timeout_ns) {
    if (!may_work(sp->seg)) return -1;
    Busy busy(sp->seg);
    if (pages <= space_pages(space_slot(sp).span.load_acquire())) return 0;
    Touches touches(sp);
    PublishHooks hooks{{{sp, pages - 1, prim::now_ns() + timeout_ns}}, sp->seg->forks};
    if (back_entry(sp, pages - 1, hooks.deadline_ns) < 0) return -1;
    hooks.edited = false;
    Status status = grow_space(*sp->seg->s, place_of(sp, pages - 1), pages, !sp->zero_fill, hooks);
    return answer(status, sp, pages - 1);
}

static PyObject* space_grow(PyObject* self, PyObject* args, PyObject* kwargs) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    static const char* names[] = {"pages", "timeout", nullptr};
    PyObject *wanted, *timeout = nullptr;
    u64 timeout_ns;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$O:grow", const_cast<char**>(names), &wanted, &timeout) ||
        patience_of(timeout, timeout_ns) < 0)
        return nullptr;
    PyObject* number = PyBool_Check(wanted) ? nullptr : PyNumber_Index(wanted);
    if (!number) {
        PyErr_Clear();
        return raise("TypeError", "a number of pages must be an integer, not %.100s", Py_TYPE(wanted)->tp_name);
    }
    int overflow;
    long long pages = PyLong_AsLongLongAndOverflow(number, &overflow);
    Py_DECREF(number);
    if (pages < 0 && overflow <= 0) return raise("ValueError", "a number of pages must not be negative");
    if (ready_space(sp) < 0 || !opened(sp->seg)) return nullptr;
    if (!sp->writable) return raise_read_only(sp, "add");
    if (overflow || u64(pages) > sp->max_pages)
        return raise("SpaceFull", "the space has at most %u pages, and cannot have %S; %s", sp->max_pages, wanted,
                     more_room(sp));
    if (grow_to(sp, u64(pages), timeout_ns) < 0) return nullptr;
    Py_ssize_t n = space_length(self);
    return n < 0 ? nullptr : PyLong_FromSsize_t(n);
}

// Whole pages that are to be written: an array of the space's dtype with one row for each page. Null with an exception.
static PyArrayObject* rows_of(SpaceObject* sp, PyObject* pages) {
    Py_INCREF(sp->dtype);
    auto rows = reinterpret_cast<PyArrayObject*>(PyArray_FromAny(pages, sp->dtype, 0, 0, NPY_ARRAY_CARRAY_RO, nullptr));
    if (!rows) return nullptr;
    if (PyArray_NDIM(rows) == 2 && PyArray_DIM(rows, 1) == sp->items) return rows;
    Py_DECREF(rows);
    raise("ValueError", "the pages must be an array of the space's dtype, of shape (pages, %zd)", sp->items);
    return nullptr;
}

// What write_many() and append_many() have in common.
struct Rows {
    PyArrayObject *numbers = nullptr, *pages = nullptr;
    u64 timeout_ns = 0;
    Lsn lsn;
    ~Rows() {
        Py_XDECREF(numbers);
        Py_XDECREF(pages);
    }
    // 0 or -1.
    int parse(SpaceObject* sp, PyObject* what, PyObject* timeout, PyObject* given, const char* verb) {
        if (patience_of(timeout, timeout_ns) < 0 || ready_space(sp) < 0 || !opened(sp->seg)) return -1;
        if (!sp->writable) return raise_read_only(sp, verb), -1;
        if (given && given != Py_None && parse_lsn(given, lsn) < 0) return -1;
        return (pages = rows_of(sp, what)) && opened(sp->seg) ? 0 : -1;  // the conversion may have run code of others
    }
};

static PyObject* space_write_many(PyObject* self, PyObject* args, PyObject* kwargs) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    static const char* names[] = {"ids", "pages", "timeout", "lsn", nullptr};
    PyObject *ids, *what, *timeout = nullptr, *lsn = nullptr;
    Rows rows;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OO:write_many", const_cast<char**>(names), &ids, &what,
                                     &timeout, &lsn) ||
        rows.parse(sp, what, timeout, lsn, "write") < 0 || !(rows.numbers = page_numbers(sp, ids, Backing::AS_IS)) ||
        refuse_in_group(sp, "space.write_many()") < 0)
        return nullptr;
    npy_intp n = PyArray_SIZE(rows.numbers);
    if (n != PyArray_DIM(rows.pages, 0))
        return raise("ValueError", "there are %zd page numbers and %zd pages", n, PyArray_DIM(rows.pages, 0));
    Busy busy(sp->seg);
    auto numbers = static_cast<const npy_int64*>(PyArray_DATA(rows.numbers));
    if (publish_many(sp, numbers, 0, rows.pages, rows.lsn, rows.timeout_ns) < n) return nullptr;
    Py_RETURN_NONE;
}

static PyObject* space_append_many(PyObject* self, PyObject* args, PyObject* kwargs) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    static const char* names[] = {"pages", "timeout", "lsn", nullptr};
    PyObject *what, *timeout = nullptr, *lsn = nullptr;
    Rows rows;
    u64 first;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$OO:append_many", const_cast<char**>(names), &what, &timeout,
                                     &lsn) ||
        rows.parse(sp, what, timeout, lsn, "append") < 0)
        return nullptr;
    u64 n = u64(PyArray_DIM(rows.pages, 0)), end;
    if (allocate(sp, n, rows.timeout_ns, first) < 0) return nullptr;
    end = first + n;
    u32 forks = sp->seg->forks;
    Busy busy(sp->seg);
    u64 done = u64(publish_many(sp, nullptr, first, rows.pages, rows.lsn, rows.timeout_ns));
    if (done == n)
        return PyObject_CallFunction(reinterpret_cast<PyObject*>(&PyRange_Type), "KK", (unsigned long long)first,
                                     (unsigned long long)end);
    if (is_ours(sp->seg, forks)) return_numbers(place_of(sp, 0), first + done, end);
    return nullptr;
}

static PyObject* space_drop_range(PyObject* self, PyObject* args) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    unsigned long long first, count;
    if (!PyArg_ParseTuple(args, "KK:_drop_range", &first, &count)) return nullptr;
    if (ready_space(sp) < 0 || !opened(sp->seg)) return nullptr;
    if (first + count > sp->max_pages) return raise_status(Status::CORRUPT, first), nullptr;
    Segment& s = *sp->seg->s;
    if (raise_own_use(sp->seg, sp->index, entry_of(sp, 0), first, count)) return nullptr;
    u32 freed = 0;
    Status status;
    {
        Released unlocked(sp->seg);
        status = drop_range(s, entry_of(sp, first), count, freed, how_to_drop(s, space_slot(sp)));
    }
    if (status != Status::OK && check_signals() < 0) return nullptr;
    if (status == Status::WAIT)
        return raise("WaitTimeout",
                     "a page of the range is being written by a client for too long; pool.clients() lists the clients "
                     "writes; the pages before it are dropped");
    if (status == Status::DEADLOCK)
        return raise("WouldDeadlock",
                     "a loader drops a page whose own loader waits for it; let loaders ask for pages in one direction "
                     "only");
    return PyLong_FromUnsignedLong(freed);
}

// _bind_core(segment, space.Binding)
static PyObject* space_bind(PyObject* self, PyObject* args) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    PyObject *seg, *binding, *store;
    PyArray_Descr* dtype;
    unsigned long long generation;
    unsigned index, first, max_pages, kind, caching;
    int fd, writable, discardable, zero_fill, is_private;
    if (!PyArg_ParseTuple(args, "O!O!:_bind_core", &SegmentType, &seg, &PyTuple_Type, &binding) ||
        !PyArg_ParseTuple(binding, "IKIIIiIOO!pppp:Binding", &index, &generation, &first, &max_pages, &kind, &fd,
                          &caching, &store, &PyArrayDescr_Type, &dtype, &writable, &discardable, &zero_fill,
                          &is_private))
        return nullptr;
    struct stat st{};
    Py_BEGIN_ALLOW_THREADS if (fd >= 0 && fstat(fd, &st) != 0) st = {};  // a file system that hangs holds up us alone
    Py_END_ALLOW_THREADS Use use(reinterpret_cast<SegmentObject*>(seg));
    Segment* s = opened(reinterpret_cast<SegmentObject*>(seg));
    if (!s) return nullptr;
    npy_intp item = PyDataType_ELSIZE(dtype);
    if (index >= s->space_count() || u64(first) + max_pages > s->g.max_pages || item <= 0 || s->g.page_size % u64(item))
        return raise("ValueError", "the dtype's item size must divide the page size");
    u32 chunk_shift = u32(__builtin_ctz(s->g.os_page / 8));
    u64 backed_words = (u64(max_pages) >> chunk_shift) / 64 + 1, backed_bytes = backed_words * sizeof(Shared<u64>);
    auto backed = static_cast<Shared<u64>*>(prim::allocate(backed_bytes));
    if (!backed) return PyErr_NoMemory();
    memset(static_cast<void*>(backed), 0, backed_bytes);
    Critical critical(self);
    if (sp->seg) {  // by another thread, at the same time
        prim::deallocate(backed);
        Py_RETURN_NONE;
    }
    Py_INCREF(seg);
    Py_INCREF(store);
    Py_INCREF(dtype);
    sp->store = store;
    sp->dtype = dtype;
    sp->items = npy_intp(s->g.page_size) / item;
    sp->generation = generation;
    sp->index = index;
    sp->first_entry = first;
    sp->max_pages = max_pages;
    sp->backed = backed;
    sp->backed_words = backed_words;
    sp->chunk_shift = chunk_shift;
    sp->kind = kind;
    sp->fd = fd;
    sp->caching = caching;
    sp->device = st.st_dev;
    sp->inode = st.st_ino;
    sp->writable = writable;
    sp->discardable = discardable;
    sp->zero_fill = zero_fill;
    if (sp->only != CLOSED_HANDLE) sp->only = is_private ? s->me : 0;
    sp->seg = reinterpret_cast<SegmentObject*>(seg);
    Py_RETURN_NONE;
}

// _close(): from here on every use of the handle raises; blocks that write, and arrays, are not affected.
static PyObject* space_close(PyObject* self, PyObject*) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    sp->only = CLOSED_HANDLE;
    if (!FREE_THREADED && !sp->busy) let_go(sp);
    Py_RETURN_NONE;
}

static PyObject* space_new(PyTypeObject* type, PyObject*, PyObject*) {
    auto sp = reinterpret_cast<SpaceObject*>(type->tp_alloc(type, 0));
    if (sp) sp->fd = -1;
    return reinterpret_cast<PyObject*>(sp);
}

// A store may refer to its space, in a cycle: by a repair function, which refers to the engine that has the space.
static int space_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(reinterpret_cast<SpaceObject*>(self)->store);
    return 0;
}

static int space_clear(PyObject* self) {
    auto sp = reinterpret_cast<SpaceObject*>(self);
    sp->fd = -1;  // it belongs to the store
    Py_CLEAR(sp->store);
    return 0;
}

static void space_dealloc(SpaceObject* sp) {
    PyObject_GC_UnTrack(sp);
    PyTypeObject* type = Py_TYPE(sp);
    end_use(sp);
    Py_XDECREF(static_cast<SegmentObject*>(sp->seg));
    Py_XDECREF(sp->store);
    Py_XDECREF(sp->dtype);
    prim::deallocate(sp->backed);
    type->tp_free(sp);
}

template <class Function>
static PyCFunction function(Function f) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(f));
}

static PyMethodDef space_methods[] = {
    {"get", function(entered<space_get, SpaceEntry>), METH_FASTCALL | METH_KEYWORDS,
     "get($self, page_no, /, *, timeout=None)\n--\n\n"
     "Return page ``page_no`` as ``space[page_no]`` does, waiting at most ``timeout`` seconds for another client's "
     "load or write.\n\n"
     "The array is read-only, has the space's dtype and shape ``(page_size // itemsize,)``, and keeps the page pinned "
     "as\n"
     "long as it or a view of it is alive. Raises PageOutOfRange, LoaderFailed, StoreError, PoolExhausted, "
     "WaitTimeout."},
    {"try_get", entered<space_try_get, SpaceEntry>, METH_O,
     "try_get($self, page_no, /)\n--\n\n"
     "Return page ``page_no`` as ``space[page_no]`` does if it is in the pool, else None.\n\n"
     "It waits for no other client, and loads nothing; None counts neither as a hit nor as a miss. Raises "
     "PageOutOfRange."},
    {"resident", entered<space_resident, SpaceEntry>, METH_O,
     "resident($self, ids, /)\n--\n\n"
     "Return which of the pages are in the pool now: an array of bool, of shape ``(len(ids),)``.\n\n"
     "It pins nothing and counts nothing, so a page may be evicted before it is used. Raises PageOutOfRange."},
    {"pin", function(entered<space_pin, SpaceEntry>), METH_FASTCALL | METH_KEYWORDS,
     "pin($self, page_no, /, *, timeout=None)\n--\n\n"
     "Pin a page: return a Pin, which as a ``with`` block gives the page as a read-only array and releases it at the "
     "end.\n\n"
     "``timeout`` is in seconds (None: wait without limit). Raises what ``get`` raises."},
    {"pin_many", function(entered<space_pin_many, SpaceEntry>), METH_FASTCALL | METH_KEYWORDS,
     "pin_many($self, ids, /, *, timeout=None)\n--\n\n"
     "Pin many pages at once: return PinnedPages, a sequence of read-only arrays in the order of ``ids``.\n\n"
     "``ids`` is a one-dimensional sequence or array of page numbers. The pages are released together, at the end of "
     "a\n"
     "``with`` block, by ``release()``, or when the sequence and its arrays are gone. Raises what ``get`` raises."},
    {"read_many", function(entered<space_read_many, SpaceEntry>), METH_VARARGS | METH_KEYWORDS,
     "read_many($self, /, ids, out=None, *, timeout=None)\n--\n\n"
     "Copy many pages into ``out``, or into a new array, of shape ``(len(ids), page_size // itemsize)`` and the "
     "space's dtype.\n\n"
     "No page remains pinned. A page that finds no free frame is read past the pool. Raises what ``get`` raises "
     "except\n"
     "PoolExhausted, and ValueError for an ``out`` of another shape or dtype."},
    {"write", function(entered<space_write, SpaceEntry>), METH_FASTCALL | METH_KEYWORDS,
     "write($self, /, page_no, timeout=10.0, *, lsn=None, fresh=False)\n--\n\n"
     "Write a page: return a Write, which as a ``with`` block gives a private copy and publishes it when the block "
     "ends well.\n\n"
     "``timeout``: how many seconds the block waits, at its beginning, for another writer of the page, and at both\n"
     "ends for a lock of the pool (None: without limit).\n"
     "``lsn``: the LSN of the new version (None: that of the old one).\n"
     "``fresh``: the copy is zeros and the old version is not read, for a page that is replaced as a whole. The block "
     "then\n"
     "waits for other writers at its end, for up to ``timeout``, and of two such blocks the later one wins. Raises\n"
     "SpaceReadOnly, PageOutOfRange, WaitTimeout, WouldDeadlock, PoolExhausted."},
    {"write_many", function(entered<space_write_many, SpaceEntry>), METH_VARARGS | METH_KEYWORDS,
     "write_many($self, /, ids, pages, *, timeout=10.0, lsn=None)\n--\n\n"
     "Replace many pages: ``pages`` has one row of the space's dtype for each number in ``ids``. No old version is "
     "read.\n\n"
     "Each page is published as a whole, in the order of ``ids``; if one cannot be, those before it are. ``timeout`` "
     "is in\n"
     "seconds, for each page; ``lsn`` as in ``write``. Raises what a ``write`` raises, and ValueError for another "
     "shape."},
    {"append", function(entered<space_append, SpaceEntry>), METH_VARARGS | METH_KEYWORDS,
     "append($self, /, *, timeout=10.0, lsn=None)\n--\n\n"
     "Append a page: return a Write of a new page of zeros at the end of the space, which exists when its block ends "
     "well.\n\n"
     "``timeout`` and ``lsn`` as in ``write``. Raises SpaceReadOnly, SpaceFull, WaitTimeout."},
    {"append_many", function(entered<space_append_many, SpaceEntry>), METH_VARARGS | METH_KEYWORDS,
     "append_many($self, /, pages, *, timeout=10.0, lsn=None)\n--\n\n"
     "Append many pages, one for each row of ``pages``, and return their numbers, which follow each other: a range.\n\n"
     "The pages are published one after the other, from the first on. ``timeout`` and ``lsn`` as in ``write_many``. "
     "Raises\n"
     "SpaceReadOnly, SpaceFull, WaitTimeout, PoolExhausted, and ValueError for another shape."},
    {"grow", function(entered<space_grow, SpaceEntry>), METH_VARARGS | METH_KEYWORDS,
     "grow($self, /, pages, *, timeout=10.0)\n--\n\n"
     "Make the space at least ``pages`` pages long, and return how many it has then; a longer one is left as it is.\n\n"
     "New pages are zeros until somebody writes them, and take no memory; a flush makes the file as long. Any number\n"
     "of processes may do this, and append, at once: no page is lost, and ``append`` takes the pages behind.\n"
     "``timeout`` is in seconds. Raises SpaceReadOnly, SpaceFull, WaitTimeout, PoolExhausted."},
    {"_once", entered<space_once, SpaceEntry>, METH_O,
     "_once($self, page_no, /)\n--\n\n"
     "The page, pinned without counting as a reference."},
    {"_peek", entered<space_peek, SpaceEntry>, METH_O,
     "_peek($self, page_no, /)\n--\n\n"
     "The page if it is in the pool, else None. It counts nowhere."},
    {"_load_many", entered<space_load_many, SpaceEntry>, METH_O,
     "_load_many($self, ids, /)\n--\n\n"
     "Loads absent pages without pinning them; returns their number."},
    {"_absent", entered<space_absent, SpaceEntry>, METH_O,
     "_absent($self, ids, /)\n--\n\n"
     "How many of these pages of a file are absent."},
    {"_early", entered<space_early, SpaceEntry>, METH_VARARGS,
     "_early($self, page_no, once, deadline_ns, /)\n--\n\n"
     "Loads a page for a use that follows, and is counted then; returns whether it was loaded here."},
    {"_unbound", entered<space_unbound, SpaceEntry>, METH_NOARGS,
     "_unbound($self, /)\n--\n\n"
     "Whether this thread is in no load, flush or write."},
    {"_load_ahead", entered<space_load_ahead, SpaceEntry>, METH_O,
     "_load_ahead($self, ids, /)\n--\n\n"
     "Loads those of the pages that can be read together."},
    {"_load_together", entered<space_load_together, SpaceEntry>, METH_O,
     "_load_together($self, ids, /)\n--\n\n"
     "Loads those of the pages that can be loaded together, without a wait for a frame or for another client. They\n"
     "are not pinned, and are counted when they are used. Returns how many of the pages are absent still: there was\n"
     "no frame for them, or only one page is given. Raises what their loader raises."},
    {"_drop_range", entered<space_drop_range, SpaceEntry>, METH_VARARGS,
     "_drop_range($self, first, count, /)\n--\n\n"
     "Drops pages without write-back; returns the number of freed frames."},
    {"_close", space_close, METH_NOARGS,
     "_close($self, /)\n--\n\n"
     "Closes this handle: every use of it raises SpaceClosed."},
    {"_bind_core", space_bind, METH_VARARGS,
     "_bind_core($self, segment, binding, /)\n--\n\n"
     "Connects this handle to its slot in a segment (space.Binding)."},
    {nullptr, nullptr, 0, nullptr}};
static PyMappingMethods space_mapping = {};

PyTypeObject SpaceType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_space_type() {
    space_mapping.mp_length = entered<space_length, SpaceEntry>;
    space_mapping.mp_subscript = entered<space_subscript, SpaceEntry>;
    SpaceType.tp_flags = Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC;
    SpaceType.tp_traverse = space_traverse;
    SpaceType.tp_clear = space_clear;
    SpaceType.tp_as_mapping = &space_mapping;
    SpaceType.tp_new = space_new;
    return ready_type(SpaceType, "bufferpool._core.Space", "Pages by number.", space_dealloc, space_methods);
}

}  // namespace bp
