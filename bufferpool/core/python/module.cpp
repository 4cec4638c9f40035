// The extension module: errors, making and checking a segment, and the start.
#define BP_IMPORTS_NUMPY
#include "python/py.h"

#include <cstdarg>

#include "os/probe.h"
#include "os/transfers.h"

#ifdef BP_PROBES
// The semaphores of the probes: a tool that attaches writes them.
#define BP_SEMAPHORE(name) \
    __attribute__((visibility("hidden"), section(".probes"))) volatile unsigned short bp_probe_##name = 0;
extern "C" {
BP_PROBE_LIST(BP_SEMAPHORE)
}
#undef BP_SEMAPHORE
#endif

namespace bp {

int ready_segment_type();
int ready_holder_type();
int ready_pin_type();
int ready_pinned_pages_type();
int ready_released_type();
int ready_space_type();
int ready_write_type();
int ready_group_type();
int ready_held_type();
int ready_batch_type();
int ready_under_way_type();
int ready_object_holder_type();
int ready_cache_type();
extern PyTypeObject CacheType;
PyObject* core_simulate(PyObject*, PyObject*);  // simulate.cpp
PyObject* core_simulate_objects(PyObject*, PyObject*);  // simulate_objects.cpp
PyObject* core_fields(PyObject*, PyObject*);  // fields.cpp
PyObject* core_advise(PyObject*, PyObject*);  // segment_advice.cpp

// ---- errors --------------------------------------------------------------------

// Raises an error of bufferpool.errors, or the built-in of that name.
PyObject* raise(const char* error, const char* format, ...) {
    PyObject* module = PyImport_ImportModule("bufferpool.errors");
    if (!module) return nullptr;
    PyObject* type = PyObject_GetAttrString(module, error);
    Py_DECREF(module);
    if (!type) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) return nullptr;
        PyErr_Clear();
        PyObject* builtins = PyImport_ImportModule("builtins");
        type = builtins ? PyObject_GetAttrString(builtins, error) : nullptr;
        Py_XDECREF(builtins);
        if (!type) return nullptr;
    }
    va_list args;
    va_start(args, format);
    PyErr_FormatV(type, format, args);
    va_end(args);
    Py_DECREF(type);
    return nullptr;
}

void raise_status(Status status, u64 page_no) {
    auto n = static_cast<unsigned long long>(page_no);
    switch (status) {
    case Status::CORRUPT:
        raise(
            "SegmentCorrupt",
            "the segment contradicts itself at page %llu; run pool.check(), save what you need, and remove the segment",
            n);
        break;
    case Status::TOO_MANY_PINS:
        raise("TooManyPins", "page %llu is pinned %u times by this process; delete arrays that are no longer needed", n,
              PIN_MAX);
        break;
    case Status::DISCARDED:
        raise("PageDiscarded",
              "page %llu was discarded to free its frame (its space is discardable); drop it, then write it anew", n);
        break;
    case Status::DEADLOCK:
        raise("WouldDeadlock",
              "a loader asked for page %llu, which it is loading itself, or whose loader waits for it, here or in "
              "another process: let loaders ask for pages in one direction only",
              n);
        break;
    case Status::TOO_DEEP:
        raise("WouldDeadlock",
              "all %u operations that a process may have under way are loads whose loaders ask for more "
              "pages; let loaders ask for fewer of each other's pages at a time",
              OPS);
        break;
    case Status::NO_MEMORY: PyErr_NoMemory(); break;
    case Status::NO_SPACE:
        raise("SharedMemoryFull",
              "the file system of the segment is full; free space there, or enlarge it (docker run --shm-size)");
        break;
    default: raise("BufferPoolError", "unexpected status %d", int(status));
    }
}

// Sets the errno of the failed call on the current exception.
static PyObject* with_errno(int error) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject* number = PyLong_FromLong(error);
    if (!number || PyObject_SetAttrString(value, "errno", number) < 0) PyErr_Clear();  // a MemoryError has none
    Py_XDECREF(number);
    PyErr_Restore(type, value, trace);
    return nullptr;
}

// The remedy for an errno whose text says little.
static const char* remedy_of(int error) {
    switch (error) {
    case EMFILE: return ": this process has no file descriptor left; raise ulimit -n, or close some";
    case ENFILE: return ": the machine has no file descriptor left; raise fs.file-max";
    case EFBIG: return ": the limit of a file's size is too low; raise ulimit -f (RLIMIT_FSIZE)";
    case ENOLCK: return ": the kernel has no room for locks, or a sandbox refuses them";
    case EPERM:
    case ENOSYS: return ": a sandbox refuses this call (seccomp); allow it. bufferpool doctor tries what a pool needs";
    case EACCES:
        return ": this process may not open the segment any more, because it has changed its user perhaps (setuid): "
               "attach the pool afterwards, or open what it needs before";
    case EROFS: return ": the file system is mounted read-only; remount it for writing";
    case ENOENT: return ": /proc is not mounted, or the file has been removed";
    default: return "";
    }
}

PyObject* raise_errno(int error, const char* what) {
    if (error == -EINTR && check_signals() < 0) return nullptr;
    if (error == -EBADF) return raise_lost();
    if (error == -ENOSPC || error == -EDQUOT) raise_status(Status::NO_SPACE, 0);
    else if (error == -ENOMEM)
        raise("SharedMemoryFull",
              "%s: the memory cgroup of this process has no memory left; raise its limit, or free some", what);
    else raise("SegmentError", "%s: %s%s", what, strerror(-error), remedy_of(-error));
    return with_errno(-error);
}

PyObject* raise_unmapped(int error) {
    const char* remedy =
        error == -ENOMEM ? "; the address space of this process is used up (ulimit -v, vm.max_map_count): a pool maps "
                           "what it has room for twice; create it with a smaller room="
        : error == -EAGAIN ? "; this process locks its memory (mlockall) and may not lock so much: raise ulimit -l"
                           : remedy_of(-error);
    raise("SegmentError", "the segment cannot be mapped: %s%s", strerror(-error), remedy);
    return with_errno(-error);
}

static PyObject* core_raise_unmapped(PyObject*, PyObject* arg) {
    long error = PyLong_AsLong(arg);
    return PyErr_Occurred() ? nullptr : raise_unmapped(int(-error));
}

// ---- create and open -------------------------------------------------------------

static u32 log2_of(u32 n) { return u32(__builtin_ctz(n)); }

// The geometry of a segment with these sizes, which have been checked.
static Geometry lay_out(u32 page_size, u32 extent_frames, u32 max_frames, u32 max_clients, u64 max_pages,
                        bool huge_pages = false) {
    Geometry g{};
    g.page_size = page_size;
    g.page_shift = log2_of(page_size);
    g.extent_frames = extent_frames;
    g.max_frames = max_frames;
    g.max_pages = max_pages;
    g.huge_pages = huge_pages;
    g.guests = std::min(GUESTS, CLIENTS_LIMIT - max_clients);
    g.max_clients = max_clients + g.guests;
    g.os_page = u32(sysconf(_SC_PAGESIZE));
    place_areas(g);
    return g;
}

// segment_bytes(page_size, extent_frames, max_frames, max_clients, max_pages) -> (bytes of the file, of them data)
static PyObject* core_segment_bytes(PyObject*, PyObject* args) {
    unsigned page_size, extent_frames, max_frames, max_clients;
    unsigned long long max_pages;
    if (!PyArg_ParseTuple(args, "IIIIK:segment_bytes", &page_size, &extent_frames, &max_frames, &max_clients,
                          &max_pages))
        return nullptr;
    Geometry g = lay_out(page_size, extent_frames, max_frames, max_clients, max_pages);
    return Py_BuildValue("KK", (unsigned long long)g.total_bytes, (unsigned long long)(g.total_bytes - g.data_at));
}

// create(fd, uuid, plan, home): the plan is a segment_file.Plan; the home: the uuid of the pool of which the segment is
// another page size, or nothing.
static PyObject* core_create(PyObject*, PyObject* args) {
    int fd;
    Py_buffer uuid, home{};
    unsigned page_size, extent_frames, max_frames, max_clients, budget, least, most;
    unsigned long long max_pages;
    int huge_pages;
    if (!PyArg_ParseTuple(args, "iy*(IIIIIIIKp)y*:create", &fd, &uuid, &page_size, &extent_frames, &max_frames, &budget,
                          &least, &most, &max_clients, &max_pages, &huge_pages, &home))
        return nullptr;
    Geometry g = lay_out(page_size, extent_frames, max_frames, max_clients, max_pages, huge_pages);
    Header h{};
    if (uuid.len == sizeof h.uuid) memcpy(h.uuid, uuid.buf, sizeof h.uuid);
    if (home.len == sizeof h.home) memcpy(h.home, home.buf, sizeof h.home);
    PyBuffer_Release(&uuid);
    PyBuffer_Release(&home);
    h.magic = MAGIC;
    h.version = LAYOUT_VERSION;
    h.header_bytes = sizeof(Header);
    h.layout_sum = layout_sum();
    h.created_ns = prim::realtime_ns();
    h.geometry = g;
    h.geometry_sum = geometry_sum(g);
    h.budget_frames.store_relaxed(budget);
    h.asked_frames.store_relaxed(budget);
    h.min_frames.store_relaxed(least);
    h.most_frames.store_relaxed(most);
    h.advice_frames.store_relaxed(doubled(most));
    h.durable_lsn.store_relaxed(~u64(0));
    if (ftruncate(fd, off_t(g.total_bytes)) != 0) return raise_errno(-errno, "the segment cannot be sized");
    u64 slots_end = g.clients_at + g.slots_bytes(std::min(g.max_clients, CLIENT_BANK));
    for (auto [at, end] : {std::pair{u64(0), slots_end},
                           std::pair{g.events_at, g.advice_at + round_up(advice_bytes(most), g.os_page)},
                           std::pair{g.tops_at, round_up(g.tops_at + g.tops_bytes(), g.os_page)}})
        if (int r = prim::plug(fd, at, end - at)) return raise_errno(r, "the segment's own data cannot be allocated");
    int failed = 0;
    each_frame_table(g, STRIPES, [&](u64 at, u64, auto bytes) {
        if (!failed && bytes(0)) failed = prim::plug(fd, at, round_up(bytes(0), g.os_page));
    });
    if (failed) return raise_errno(failed, "the segment's own data cannot be allocated");
    h.policy.cold.capacity = h.policy.hot.capacity = ring_capacity(g, 0);
    if (pwrite(fd, &h, sizeof h, 0) != ssize_t(sizeof h)) return raise_errno(-errno, "the header cannot be written");
    Py_RETURN_NONE;
}

// Reads and checks a header. Null and an exception if it cannot be trusted.
bool read_header(int fd, Header& h) {
    ssize_t n = prim::read_at(fd, &h, sizeof h, 0);
    if (n < 0) return raise_errno(int(n), "the header cannot be read"), false;
    if (size_t(n) < sizeof h || h.magic != MAGIC)
        return raise("SegmentCorrupt",
                     "this is no bufferpool segment (or its header was overwritten); if it is a leftover, remove it"),
               false;
    char sums[48];  // Python 3.11 formats no hexadecimal numbers of 64 bits
    snprintf(sums, sizeof sums, "%016llx, here %016llx", (unsigned long long)h.layout_sum,
             (unsigned long long)layout_sum());
    if (h.version == LAYOUT_VERSION && (h.header_bytes != sizeof(Header) || h.layout_sum != layout_sum()))
        return raise("LayoutMismatch",
                     "the segment has layout version %u, as this library has, but was made by another build of it, "
                     "whose tables have other places or sizes (sum %s); remove the segment "
                     "(bufferpool rm) or use the build that made it",
                     h.version, sums),
               false;
    if (h.version != LAYOUT_VERSION)
        return raise("LayoutMismatch",
                     "the segment has layout version %u, this library reads version %u; remove the segment "
                     "(bufferpool rm) or use the library that made it",
                     h.version, LAYOUT_VERSION),
               false;
    Geometry g = h.geometry;
    bool sane = geometry_sum(g) == h.geometry_sum && g.page_size >= 4096 && (g.page_size & (g.page_size - 1)) == 0 &&
                g.page_size <= (1u << 30) && g.page_shift == log2_of(g.page_size) && g.max_clients >= 1 &&
                g.max_clients <= CLIENTS_LIMIT && g.guests < g.max_clients && g.max_frames >= 1 &&
                g.max_frames <= FRAMES_LIMIT && g.extent_frames >= 1 && g.max_frames % g.extent_frames == 0 &&
                g.max_pages >= 1 && g.max_pages < NONE && g.huge_pages <= 1;
    if (sane && g.os_page != u32(sysconf(_SC_PAGESIZE)))
        return raise("LayoutMismatch", "the segment was made for pages of %u bytes by the operating system; remove it",
                     g.os_page),
               false;
    if (sane) {
        place_areas(g);
        sane = memcmp(&g, &h.geometry, sizeof g) == 0;
    }
    struct stat st;
    sane = sane && fstat(fd, &st) == 0;
    if (sane && u64(st.st_size) != g.total_bytes) {
        // Longer by the area of the objects. (The header says so before the file has it.)
        u64 more = 0;
        prim::read_at(fd, &more, sizeof more, offsetof(Header, object_bytes));
        sane = u64(st.st_size) == g.total_bytes + more;
    }
    if (!sane)
        return raise("SegmentCorrupt",
                     "the segment's header does not fit the file (truncated, or overwritten); remove it and create it "
                     "anew"),
               false;
    return true;
}

PyObject* geometry_dict(const Header& h) {
    const Geometry& g = h.geometry;
    return Py_BuildValue("{s:y#,s:y#,s:I,s:I,s:O,s:I,s:I,s:K,s:K,s:K,s:K,s:I,s:I}", "uuid",
                         reinterpret_cast<const char*>(h.uuid), Py_ssize_t(16), "home",
                         reinterpret_cast<const char*>(h.home), Py_ssize_t(16), "page_size", g.page_size,
                         "extent_frames", g.extent_frames, "huge_pages", g.huge_pages ? Py_True : Py_False,
                         "room_frames", g.max_frames, "max_clients", g.max_clients - g.guests, "max_pages",
                         (unsigned long long)g.max_pages, "data_at", (unsigned long long)g.data_at, "total_bytes",
                         (unsigned long long)g.total_bytes, "created_ns", (unsigned long long)h.created_ns,
                         "before_guests", g.before_guests(), "guests", g.guests);
}

static PyObject* core_geometry(PyObject*, PyObject* arg) {
    int fd = int(PyLong_AsLong(arg));
    Header h;
    if (PyErr_Occurred() || !read_header(fd, h)) return nullptr;
    return geometry_dict(h);
}

static PyObject* core_begin_writeback(PyObject*, PyObject* arg) {
    long fd = PyLong_AsLong(arg);
    if (fd == -1 && PyErr_Occurred()) return nullptr;
    int r;
    Py_BEGIN_ALLOW_THREADS r = prim::begin_writeback(int(fd));
    Py_END_ALLOW_THREADS return PyLong_FromLong(r);
}

// move_up(fd) -> the same description under a number above those that programs close in loops. (A file system that
// hangs may hold the close up, and fstatfs below: no thread of ours may wait for that with the interpreter's lock.)
static PyObject* core_move_up(PyObject*, PyObject* arg) {
    int fd = int(PyLong_AsLong(arg));
    if (PyErr_Occurred()) return nullptr;
    Py_BEGIN_ALLOW_THREADS fd = prim::move_up(fd);
    Py_END_ALLOW_THREADS if (fd >= 0) return PyLong_FromLong(fd);
    errno = -fd;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject* core_is_tmpfs(PyObject*, PyObject* arg) {
    int fd = int(PyLong_AsLong(arg));
    if (PyErr_Occurred()) return nullptr;
    int r;
    Py_BEGIN_ALLOW_THREADS r = prim::is_tmpfs(fd);
    Py_END_ALLOW_THREADS if (r >= 0) return PyBool_FromLong(r);
    errno = -r;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject* core_try_huge_page(PyObject*, PyObject* arg) {
    int fd = int(PyLong_AsLong(arg));
    if (PyErr_Occurred()) return nullptr;
    int r;
    Py_BEGIN_ALLOW_THREADS r = prim::try_huge_page(fd);
    Py_END_ALLOW_THREADS if (r == 0) Py_RETURN_NONE;
    errno = -r;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject* core_has_io_uring(PyObject*, PyObject*) { return PyBool_FromLong(Uring::of_this_thread() != nullptr); }

// read_many(fd, caching, numbers, pages): reads pages of a file together, each into its row of `pages` (aligned);
// returns which of them were read whole, as bytes of 0 and 1.
static PyObject* core_read_many(PyObject*, PyObject* args) {
    int fd;
    unsigned caching;
    PyArrayObject *numbers, *pages;
    if (!PyArg_ParseTuple(args, "iIO!O!:read_many", &fd, &caching, &PyArray_Type, &numbers, &PyArray_Type, &pages))
        return nullptr;
    npy_intp n = PyArray_SIZE(numbers);
    if (PyArray_TYPE(numbers) != NPY_INT64 || !PyArray_ISCARRAY(numbers) || PyArray_TYPE(pages) != NPY_UINT8 ||
        PyArray_NDIM(pages) != 2 || PyArray_DIM(pages, 0) != n || !PyArray_ISCARRAY(pages))
        return raise("ValueError", "numbers must be int64, and pages a row of bytes for each");
    auto size = size_t(PyArray_DIM(pages, 1));
    auto at = static_cast<const i64*>(PyArray_DATA(numbers));
    auto to = static_cast<char*>(PyArray_DATA(pages));
    PyObject* whole = PyBytes_FromStringAndSize(nullptr, n);
    Vec<iovec> vectors;
    auto transfers = make<Transfers>();
    if (!whole || !transfers || !vectors.resize(size_t(n))) {
        unmake(transfers);
        Py_XDECREF(whole);
        return PyErr_NoMemory();
    }
    char* done = PyBytes_AS_STRING(whole);
    Py_BEGIN_ALLOW_THREADS
    for (npy_intp next = 0, left = n; left;) {
        for (; next < n && transfers->room(); next++) {
            vectors[size_t(next)] = {to + size_t(next) * size, size};
            transfers->begin({false, fd, &vectors[size_t(next)], 1, u64(at[next]) * size,
                              u32(prim::read_flags(caching)), caching == prim::DIRECT}, u32(next));
        }
        Transfer t;
        if (!transfers->ended(t)) break;
        done[t.first] = t.got == ssize_t(size);
        if (caching == prim::DROPPED) prim::drop_cache(fd, t.what.offset, size);
        left--;
    }
    Py_END_ALLOW_THREADS
    unmake(transfers);
    return whole;
}

static PyMethodDef module_methods[] = {
    {"read_many", core_read_many, METH_VARARGS,
     "read_many($module, fd, caching, numbers, pages, /)\n--\n\n"
     "Reads pages of a file together, each into its row of ``pages``; returns which of them were read whole, as\n"
     "bytes of 0 and 1."},
    {"has_io_uring", core_has_io_uring, METH_NOARGS,
     "has_io_uring($module, /)\n--\n\n"
     "Whether the kernel grants this thread an io_uring."},
    {"raise_unmapped", core_raise_unmapped, METH_O,
     "raise_unmapped($module, error, /)\n--\n\n"
     "Raises the error for a mapping that the kernel refused with this errno."},
    {"is_tmpfs", core_is_tmpfs, METH_O,
     "is_tmpfs($module, fd, /)\n--\n\n"
     "Whether the file behind ``fd`` is on a tmpfs."},
    {"try_huge_page", core_try_huge_page, METH_O,
     "try_huge_page($module, fd, /)\n--\n\n"
     "Makes the first 2 MiB of a file on a tmpfs, which get memory, a huge page (MADV_COLLAPSE). Raises OSError."},
    {"begin_writeback", core_begin_writeback, METH_O,
     "begin_writeback($module, fd, /)\n--\n\n"
     "Begins to write a file's dirty pages back: the next store of another mapping faults then."},
    {"move_up", core_move_up, METH_O,
     "move_up($module, fd, /)\n--\n\n"
     "Moves an open file to a number above those that programs close in loops; returns the number."},
    {"segment_bytes", core_segment_bytes, METH_VARARGS,
     "segment_bytes($module, page_size, extent_frames, max_frames, max_clients, max_pages, /)\n--\n\n"
     "The size of a segment: (bytes of its file, bytes of its data area)."},
    {"create", core_create, METH_VARARGS,
     "create($module, fd, uuid, plan, home, /)\n--\n\n"
     "Writes an empty segment into the file behind ``fd``. ``plan``: a segment_file.Plan; ``home``: the uuid of\n"
     "the pool of which it is another page size, or b\"\". Raises SharedMemoryFull, SegmentError."},
    {"simulate", core_simulate, METH_VARARGS,
     "simulate($module, trace, frames, n_pages, /)\n--\n\n"
     "The replacement policy over a uint32 array of page numbers: (hits, misses, evictions from the cold ring,\n"
     "from the hot ring, changes of the policy's mode)."},
    {"simulate_objects", core_simulate_objects, METH_VARARGS,
     "simulate_objects($module, keys, sizes, costs, budget, n_keys, /)\n--\n\n"
     "The eviction of a cache over uint32 keys and sizes, and float32 costs: (hits, their bytes, evictions,\n"
     "objects not kept)."},
    {"advise", core_advise, METH_VARARGS,
     "advise($module, trace, n_pages, frames, max_frames, gap, least_shift, /)\n--\n\n"
     "The shadows over a uint32 array of page numbers: (what Segment.advice() returns, samples, bytes)."},
    {"fields", core_fields, METH_NOARGS,
     "fields($module, /)\n--\n\n"
     "The layout of a segment: {\"Struct.field\": (offset, bytes)}."},
    {"observe", core_observe, METH_O,
     "observe($module, fd, /)\n--\n\n"
     "A Segment for an observer: it takes no slot, and writes nothing."},
    {"geometry", core_geometry, METH_O,
     "geometry($module, fd, /)\n--\n\n"
     "The checked geometry of the segment behind ``fd``, as a dict of int. Raises SegmentCorrupt,\n"
     "LayoutMismatch."},
    {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module_def = {PyModuleDef_HEAD_INIT,
                                 "bufferpool._core",
                                 "The core of bufferpool.",
                                 -1,
                                 module_methods,
                                 nullptr,
                                 nullptr,
                                 nullptr,
                                 nullptr};

}  // namespace bp

PyMODINIT_FUNC PyInit__core() {
    using namespace bp;
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the futex word of an entry is its low half");
    import_array();
    for (auto ready : {ready_segment_type, ready_space_type, ready_holder_type, ready_pin_type, ready_pinned_pages_type,
                       ready_released_type, ready_write_type, ready_group_type, ready_held_type, ready_batch_type,
                       ready_under_way_type, ready_object_holder_type, ready_cache_type})
        if (ready() < 0) return nullptr;
    PyObject* m = PyModule_Create(&module_def);
    if (!m) return nullptr;
    struct {
        const char* name;
        PyTypeObject* type;
    } types[] = {
        {"Segment", &SegmentType}, {"Space", &SpaceType}, {"Pin", &PinType},    {"PinnedPages", &PinnedPagesType},
        {"Write", &WriteType},     {"PublishGroup", &GroupType},
        {"Held", &HeldType},   {"Batch", &BatchType}, {"UnderWay", &UnderWayType}, {"CacheBase", &CacheType}};
    for (auto& t : types)
        if (PyModule_AddObjectRef(m, t.name, reinterpret_cast<PyObject*>(t.type)) < 0) return nullptr;
    PyModule_AddIntConstant(m, "MAX_SPACES", MAX_SPACES);
    PyModule_AddIntConstant(m, "MAY_LOSE", MAY_LOSE);
    PyModule_AddIntConstant(m, "CACHES", CACHES);
    PyModule_AddIntConstant(m, "LONGEST_TEXT", LONGEST_TEXT);
    PyModule_AddIntConstant(m, "CLIENTS_LIMIT", CLIENTS_LIMIT);
    PyModule_AddIntConstant(m, "CLIENT_BANK", CLIENT_BANK);
    PyModule_AddIntConstant(m, "LOCKS_AT", LOCKS_AT);
    PyModule_AddIntConstant(m, "FRAMES_LIMIT", FRAMES_LIMIT);
    PyModule_AddIntConstant(m, "ENTRY_STATE", entry::STATE);
    PyModule_AddIntConstant(m, "RESIDENT", RESIDENT);
    PyModule_AddIntConstant(m, "ENTRY_DIRTY", entry::DIRTY);
    PyModule_AddIntConstant(m, "ENTRY_RING", entry::RING);
    PyModule_AddIntConstant(m, "ENTRY_HOT", entry::with_ring(0, RING_HOT));
    PyModule_AddIntConstant(m, "ENTRY_OWNER_SHIFT", entry::OWNER_SHIFT);
    PyModule_AddIntConstant(m, "ENTRY_FLUSHER_SHIFT", entry::FLUSHER_SHIFT);
    PyModule_AddIntConstant(m, "ENTRY_OP_SHIFT", entry::OP_SHIFT);
    PyModule_AddIntConstant(m, "ENTRY_FRAME_SHIFT", entry::FRAME_SHIFT);
    PyModule_AddIntConstant(m, "FRAME_STATE", frame::STATE);
    PyModule_AddIntConstant(m, "FRAME_PAGE_SHIFT", frame::PAGE_SHIFT);
    PyModule_AddIntConstant(m, "FRAME_CLIENT_SHIFT", frame::CLIENT_SHIFT);
    PyModule_AddIntConstant(m, "FRAME_OP_SHIFT", frame::OP_SHIFT);
    PyModule_AddIntConstant(m, "LAYOUT_VERSION", LAYOUT_VERSION);
    PyModule_AddIntConstant(m, "TICK_SHIFT", TICK_SHIFT);
    PyModule_AddIntConstant(m, "BUCKETS", BUCKETS);
    PyModule_AddIntConstant(m, "ERROR_CLASSES", ERROR_CLASSES);
    PyModule_AddIntConstant(m, "EVENT_KINDS", EVENT_KINDS);
    PyModule_AddIntConstant(m, "EVENT_REASONS", EVENT_REASONS);
    PyModule_AddIntConstant(m, "BUCKET_SHIFT", BUCKET_SHIFT);
    PyModule_AddIntConstant(m, "UUID_AT", offsetof(Header, uuid));
    PyModule_AddIntConstant(m, "FRAME_SLOT_BYTES", sizeof(FrameSlot));
    PyModule_AddIntConstant(m, "SETTLING", SETTLING);
#ifdef BP_FREE_THREADED
    if (PyUnstable_Module_SetGIL(m, Py_MOD_GIL_NOT_USED) < 0) return nullptr;
#endif
    watch_forks();
    return m;
}
