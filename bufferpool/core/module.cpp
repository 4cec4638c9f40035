// The extension module: segments, and the way in from Python.
#define BP_IMPORTS_NUMPY
#include "py.h"

#include <cstdarg>
#include <pthread.h>
#include <vector>

#include "check.h"
#include "flush.h"
#include "reclaim.h"

namespace bp {

int ready_view_types();
int ready_space_type();
int ready_write_type();

static SegmentObject* attached;  // every open segment of this process, for fork

// ---- errors --------------------------------------------------------------------

// Raises an error of bufferpool.errors, or the built-in of that name.
PyObject* raise(const char* error, const char* format, ...) {
    PyObject* module = PyImport_ImportModule("bufferpool.errors");
    if (!module) return nullptr;
    PyObject* type = PyObject_GetAttrString(module, error);
    Py_DECREF(module);
    if (!type) {
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

void raise_status(Status status, SpaceObject*, u64 page_no) {
    auto n = static_cast<unsigned long long>(page_no);
    switch (status) {
    case Status::CORRUPT:
        raise("SegmentCorrupt", "the segment contradicts itself at page %llu; run pool.check(), save what you need, and remove the segment", n);
        break;
    case Status::TOO_MANY_PINS:
        raise("TooManyPins", "page %llu is pinned %u times by this process; delete arrays that are no longer needed", n, PIN_MAX);
        break;
    case Status::DISCARDED:
        raise("PageDiscarded", "page %llu was discarded to make room (its space is discardable); drop it, then write it anew", n);
        break;
    case Status::NO_SPACE:
        raise("SharedMemoryFull", "the file system of the segment is full; free space there, or enlarge it (docker run --shm-size)");
        break;
    default:
        raise("BufferPoolError", "unexpected status %d", int(status));
    }
}

Segment* opened(SegmentObject* seg) {
    if (seg->s && seg->s->me) return seg->s;
    if (seg->lost) raise("TooManyClients", "this forked child found no client slot; create the pool with a larger max_clients");
    else raise("PoolClosed", "the pool is closed; attach it again");
    return nullptr;
}

// Called by the core, without the GIL, between the slices of a wait.
static bool signal_came(Segment&) {
    static thread_local u64 last_ns;
    u64 now = prim::coarse_ns();
    if (now - last_ns < 10'000'000) return false;
    last_ns = now;
    PyGILState_STATE gil = PyGILState_Ensure();
    bool came = PyErr_CheckSignals() < 0;
    PyGILState_Release(gil);
    return came;
}

static PyObject* raise_errno(int error, const char* what) {
    if (error == -ENOSPC || error == -ENOMEM || error == -EDQUOT) return raise_status(Status::NO_SPACE, nullptr, 0), nullptr;
    return raise("SegmentError", "%s: %s", what, strerror(-error));
}

// ---- create and open -------------------------------------------------------------

static u32 log2_of(u32 n) { return u32(__builtin_ctz(n)); }

// create(fd, uuid, page_size, extent_frames, max_frames, max_clients, max_pages, budget_frames)
static PyObject* core_create(PyObject*, PyObject* args) {
    int fd;
    Py_buffer uuid;
    Geometry g{};
    unsigned long long max_pages;
    unsigned budget;
    if (!PyArg_ParseTuple(args, "iy*IIIIKI:create", &fd, &uuid, &g.page_size, &g.extent_frames, &g.max_frames, &g.max_clients, &max_pages, &budget))
        return nullptr;
    Header h{};
    if (uuid.len == sizeof h.uuid) memcpy(h.uuid, uuid.buf, sizeof h.uuid);
    PyBuffer_Release(&uuid);
    g.max_pages = max_pages;
    g.page_shift = log2_of(g.page_size);
    g.os_page = u32(sysconf(_SC_PAGESIZE));
    place_areas(g);
    h.magic = MAGIC;
    h.version = LAYOUT_VERSION;
    h.header_bytes = sizeof(Header);
    h.created_ns = prim::realtime_ns();
    h.geometry = g;
    h.geometry_sum = geometry_sum(g);
    h.budget_frames.store_relaxed(budget);
    h.durable_lsn.store_relaxed(~u64(0));
    h.policy.capacity = g.ring_capacity;
    if (ftruncate(fd, off_t(g.total_bytes)) != 0) return raise_errno(-errno, "the segment cannot be sized");
    for (auto [at, end] : {std::pair{u64(0), g.entries_at}, std::pair{g.queues_at, g.data_at}}) {
        u64 to = at ? std::min(end, round_up(at + 2 * BitmapGeometry(g.max_frames).bytes + 16ull * g.ring_capacity, g.os_page)) : end;
        if (int r = prim::plug(fd, at, to - at)) return raise_errno(r, "the segment's own data cannot be allocated");
    }
    if (pwrite(fd, &h, sizeof h, 0) != ssize_t(sizeof h)) return raise_errno(-errno, "the header cannot be written");
    Py_RETURN_NONE;
}

// Reads and checks a header. Null and an exception if it cannot be trusted.
static bool read_header(int fd, Header& h) {
    ssize_t n = prim::read_at(fd, &h, sizeof h, 0);
    if (n < 0) return raise_errno(int(n), "the header cannot be read"), false;
    if (size_t(n) < sizeof h || h.magic != MAGIC)
        return raise("SegmentCorrupt", "this is not a bufferpool segment (or its header is gone); if it is a leftover, remove the file"), false;
    if (h.version != LAYOUT_VERSION || h.header_bytes != sizeof(Header))
        return raise("LayoutMismatch", "the segment has layout version %u, this library reads version %u; remove the segment "
                     "(bufferpool rm) or use the library that made it", h.version, LAYOUT_VERSION), false;
    Geometry g = h.geometry;
    bool sane = geometry_sum(g) == h.geometry_sum && g.page_size >= 4096 && (g.page_size & (g.page_size - 1)) == 0 &&
                g.page_size <= (1u << 30) && g.page_shift == log2_of(g.page_size) && g.max_clients >= 1 &&
                g.max_clients <= CLIENTS_LIMIT && g.max_frames >= 1 && g.extent_frames >= 1 &&
                g.max_frames % g.extent_frames == 0 && g.max_pages >= 1 && g.max_pages < NONE;
    if (sane && g.os_page != u32(sysconf(_SC_PAGESIZE)))
        return raise("LayoutMismatch", "the segment was made for pages of %u bytes by the operating system; remove it", g.os_page), false;
    if (sane) {
        place_areas(g);
        sane = memcmp(&g, &h.geometry, sizeof g) == 0;
    }
    struct stat st;
    if (!sane || fstat(fd, &st) != 0 || u64(st.st_size) != g.total_bytes)
        return raise("SegmentCorrupt", "the segment's header does not fit the file (truncated, or overwritten); remove it and create it anew"), false;
    return true;
}

static PyObject* geometry_dict(const Header& h) {
    const Geometry& g = h.geometry;
    return Py_BuildValue("{s:y#,s:I,s:I,s:I,s:I,s:K,s:K,s:K,s:K}", "uuid", reinterpret_cast<const char*>(h.uuid), Py_ssize_t(16),
                         "page_size", g.page_size, "extent_frames", g.extent_frames, "max_frames", g.max_frames, "max_clients",
                         g.max_clients, "max_pages", (unsigned long long)g.max_pages, "data_at", (unsigned long long)g.data_at,
                         "total_bytes", (unsigned long long)g.total_bytes, "created_ns", (unsigned long long)h.created_ns);
}

static PyObject* core_geometry(PyObject*, PyObject* arg) {
    int fd = int(PyLong_AsLong(arg));
    Header h;
    if (PyErr_Occurred() || !read_header(fd, h)) return nullptr;
    return geometry_dict(h);
}

// ---- fork ------------------------------------------------------------------------
//
// Before the fork, the parent claims a slot for the child with a description of
// its own, and repeats there the pins of all live arrays. The child keeps that
// description, the parent closes it. There is no moment at which a view in the
// child is unpinned, and none at which the child keeps the parent alive.

struct ForkPlan {
    SegmentObject* seg;
    int fd;
    u32 client;
};
static std::vector<ForkPlan>* fork_plans = new std::vector<ForkPlan>;

static void before_fork() {
    fork_plans->clear();
    for (SegmentObject* seg = attached; seg; seg = seg->next) {
        Segment* s = seg->s;
        if (!s || !s->me) continue;
        ForkPlan plan{seg, prim::reopen(s->fd), 0};
        if (plan.fd >= 0) {
            plan.client = claim_slot(*s, plan.fd);
            if (!plan.client && reap_all(*s)) plan.client = claim_slot(*s, plan.fd);
        }
        for (PinNode* p = seg->pins.next; plan.client && p != &seg->pins; p = p->next)
            s->pin_rows[u64(p->frame) * s->g.pins_stride + plan.client - 1].add_seq_cst(1);
        fork_plans->push_back(plan);
    }
}

static void after_fork_parent() {
    for (ForkPlan& plan : *fork_plans)
        if (plan.fd >= 0) close(plan.fd);
    fork_plans->clear();
}

static void after_fork_child() {
    for (ForkPlan& plan : *fork_plans) {
        Segment* s = plan.seg->s;
        close(s->fd);
        s->fd = plan.fd;
        s->me = plan.client;
        plan.seg->lost = plan.client == 0;
        plan.seg->forks++;
        plan.seg->active = 0;
        s->ops_used.store_relaxed(0);
        for (u32 i = 0; i < OPS; i++) s->op_thread[i] = 0;
        for (auto& spare : s->spares) spare.store_relaxed(0);
        new (&s->reap_mutex) std::recursive_mutex;
        s->reaping = 0;
        if (s->me) {
            s->client().pid.store_relaxed(u32(getpid()));
            s->client().start_time.store_relaxed(prim::start_time());
        }
    }
    fork_plans->clear();
}

// ---- Segment ---------------------------------------------------------------------

static PyObject* segment_new(PyTypeObject* type, PyObject* args, PyObject*) {
    int fd;
    PyObject* on_exhausted;
    const char* name;
    if (!PyArg_ParseTuple(args, "iOs:Segment", &fd, &on_exhausted, &name)) return nullptr;
    Header h;
    if (!read_header(fd, h)) return nullptr;
    void* at = mmap(nullptr, h.geometry.total_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (at == MAP_FAILED) return raise_errno(-errno, "the segment cannot be mapped");
    madvise(at, h.geometry.total_bytes, MADV_NOHUGEPAGE);
    madvise(at, h.geometry.total_bytes, MADV_DONTDUMP);
    int own = prim::reopen(fd);
    auto seg = own >= 0 ? reinterpret_cast<SegmentObject*>(type->tp_alloc(type, 0)) : nullptr;
    if (!seg) {
        munmap(at, h.geometry.total_bytes);
        return own < 0 ? raise_errno(own, "the segment cannot be opened") : nullptr;
    }
    seg->pins.next = seg->pins.prev = &seg->pins;
    seg->on_exhausted = on_exhausted;
    Py_INCREF(on_exhausted);
    seg->s = new Segment;
    seg->s->map(static_cast<u8*>(at), h.geometry);
    seg->s->fd = own;
    seg->s->interrupted = signal_came;
    Status status;
    Py_BEGIN_ALLOW_THREADS
    status = attach(*seg->s);
    if (status == Status::OK) strncpy(seg->s->client().name, name, sizeof(Client::name) - 1);
    Py_END_ALLOW_THREADS
    if (status != Status::OK) {
        raise("TooManyClients", "all %u client slots of the segment are taken by living processes; detach one, or create the pool with a larger max_clients", h.geometry.max_clients);
        Py_DECREF(seg);
        return nullptr;
    }
    seg->next = attached;
    attached = seg;
    return reinterpret_cast<PyObject*>(seg);
}

static void unmap(SegmentObject* seg) {
    for (SegmentObject** p = &attached; *p; p = &(*p)->next)
        if (*p == seg) {
            *p = seg->next;
            break;
        }
    Segment* s = seg->s;
    seg->s = nullptr;
    munmap(s->base, s->g.total_bytes);
    close(s->fd);
    delete s;
    Py_CLEAR(seg->data);
}

static void segment_dealloc(SegmentObject* seg) {
    if (seg->s) {
        if (seg->s->me) detach(*seg->s);
        unmap(seg);
    }
    Py_XDECREF(seg->on_exhausted);
    Py_TYPE(seg)->tp_free(seg);
}

static SegmentObject* S(PyObject* self) { return reinterpret_cast<SegmentObject*>(self); }

// set_data(memmap): the read-only mapping that views come from.
static PyObject* segment_set_data(PyObject* self, PyObject* data) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (!PyArray_Check(data) || PyArray_NBYTES(reinterpret_cast<PyArrayObject*>(data)) != npy_intp(u64(s->g.max_frames) << s->g.page_shift))
        return raise("ValueError", "data must be an array over the whole data area");
    Py_INCREF(data);
    Py_XDECREF(S(self)->data);
    S(self)->data = data;
    S(self)->read_base = PyArray_BYTES(reinterpret_cast<PyArrayObject*>(data));
    madvise(S(self)->read_base, u64(s->g.max_frames) << s->g.page_shift, MADV_NOHUGEPAGE);
    madvise(S(self)->read_base, u64(s->g.max_frames) << s->g.page_shift, MADV_DONTDUMP);
    Py_RETURN_NONE;
}

static PyObject* segment_close(PyObject* self, PyObject*) {
    SegmentObject* seg = S(self);
    if (!seg->s) Py_RETURN_NONE;
    if (seg->pins.next != &seg->pins)
        return raise("BufferError", "the pool cannot be closed: arrays still look at its pages; delete them first, or copy what you keep");
    if (seg->active) return raise("BufferError", "the pool cannot be closed: another thread is using it");
    if (seg->s->me) {
        Released unlocked(seg);
        detach(*seg->s);
    }
    unmap(seg);
    Py_RETURN_NONE;
}

static PyObject* segment_views(PyObject* self, PyObject*) {
    long n = 0;
    for (PinNode* p = S(self)->pins.next; p != &S(self)->pins; p = p->next) n++;
    return PyLong_FromLong(n);
}

static PyObject* segment_geometry(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    Header h{};
    memcpy(h.uuid, s->header->uuid, sizeof h.uuid);
    h.created_ns = s->header->created_ns;
    h.geometry = s->g;
    return geometry_dict(h);
}

// Bytes that the kernel should count for everything before the data area.
static u64 metadata_bytes(Segment& s) {
    const Geometry& g = s.g;
    u64 n = g.entries_at + round_up(2 * BitmapGeometry(g.max_frames).bytes + 16ull * g.ring_capacity, g.os_page);
    u64 ready = s.header->frames_ready.load_acquire();
    n += round_up(ready * sizeof(FrameSlot), g.os_page) + round_up(ready * g.pins_stride * 2, g.os_page);
    for (u32 i = 0; i < MAX_SPACES; i++) n += round_up(s.spaces[i].entries_ready.load_relaxed() * 8, g.os_page);
    return n;
}

// The counters of all clients, present and past: a consistent sum.
static std::vector<u64> sum_counters(Segment& s) {
    std::vector<u64> sum(COUNTERS);
    for (int tries = 0; tries < 1000; tries++) {
        u64 folded = s.header->folded.load_seq_cst();
        auto totals = reinterpret_cast<Atomic<u64>*>(&s.header->totals[folded & 1]);
        for (u32 i = 0; i < COUNTERS; i++) sum[i] = totals[i].load_relaxed();
        u64 attaches = s.header->attaches.load_seq_cst();
        for (u32 c = 1; c <= s.g.max_clients; c++) {
            Client& slot = s.clients[c - 1];
            if (slot.state.load_acquire() != CLIENT_LIVE || slot.folded.load_acquire()) continue;
            if ((u64(c) << 1 | slot.generation.load_relaxed() << 16) == (folded & ~u64(1))) continue;
            auto own = reinterpret_cast<Atomic<u64>*>(&slot.counters);
            for (u32 i = 0; i < COUNTERS; i++) sum[i] += own[i].load_relaxed();
        }
        if (s.header->folded.load_seq_cst() == folded && s.header->attaches.load_seq_cst() == attaches) break;
    }
    return sum;
}

static PyObject* segment_counters(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    std::vector<u64> sum = sum_counters(*s);
    return PyBytes_FromStringAndSize(reinterpret_cast<char*>(sum.data()), Py_ssize_t(sum.size() * 8));
}

static PyObject* segment_status(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    struct stat st;
    if (fstat(s->fd, &st) != 0) return raise_errno(-errno, "the segment cannot be examined");
    PolicyState& p = s->header->policy;
    return Py_BuildValue("{s:I,s:I,s:I,s:K,s:K,s:K,s:K,s:I,s:I,s:I,s:I}", "budget_frames", s->header->budget_frames.load_relaxed(),
                         "resident_frames", s->header->resident.load_relaxed(), "frames_ready", s->header->frames_ready.load_relaxed(),
                         "durable_lsn", (unsigned long long)s->header->durable_lsn.load_relaxed(), "kernel_bytes",
                         (unsigned long long)st.st_blocks * 512, "metadata_bytes", (unsigned long long)metadata_bytes(*s), "links",
                         (unsigned long long)st.st_nlink, "client", s->me, "cold", p.cold.count, "hot", p.hot.count, "cold_target", p.cold_target);
}

static PyObject* bytes_of(const void* from, u64 bytes) { return PyBytes_FromStringAndSize(static_cast<const char*>(from), Py_ssize_t(bytes)); }

static PyObject* segment_raw_frames(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    s->has_frame(s->g.max_frames - 1);
    return bytes_of(s->frames, u64(s->ready) * sizeof(FrameSlot));
}

static PyObject* segment_raw_pins(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    s->has_frame(s->g.max_frames - 1);
    return bytes_of(s->pin_rows, u64(s->ready) * s->g.pins_stride * 2);
}

// The entry words of the pages in a uint32 array; an index beyond the table reads as 0.
static PyObject* segment_entry_words(PyObject* self, PyObject* arg) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    auto pages = reinterpret_cast<PyArrayObject*>(PyArray_FROMANY(arg, NPY_UINT32, 1, 1, NPY_ARRAY_CARRAY_RO));
    if (!pages) return nullptr;
    npy_intp n = PyArray_SIZE(pages);
    PyObject* out = PyArray_SimpleNew(1, &n, NPY_UINT64);
    auto from = static_cast<const u32*>(PyArray_DATA(pages));
    auto to = static_cast<u64*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(out)));
    for (npy_intp i = 0; i < n; i++) to[i] = s->has_page(from[i]) ? s->entries[from[i]].load_relaxed() : 0;
    Py_DECREF(pages);
    return out;
}

static PyObject* segment_clients(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    PyObject* list = PyList_New(0);
    for (u32 c = 1; list && c <= s->g.max_clients; c++) {
        Client& slot = s->clients[c - 1];
        if (slot.state.load_acquire() != CLIENT_LIVE) continue;
        char name[sizeof slot.name + 1] = {};
        memcpy(name, slot.name, sizeof slot.name);
        PyObject* name_text = PyUnicode_DecodeUTF8(name, Py_ssize_t(strlen(name)), "replace");
        PyObject* item = name_text ? Py_BuildValue("(IIKKNO)", c, slot.pid.load_relaxed(), (unsigned long long)slot.start_time.load_relaxed(),
                                       (unsigned long long)slot.attached_ns.load_relaxed(), name_text, seems_alive(*s, c) ? Py_True : Py_False) : nullptr;
        if (!item || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

// shrink(frames, reason, evict) -> (given back, moved, pinned, dirty, busy)
static PyObject* segment_shrink(PyObject* self, PyObject* args) {
    unsigned long long want;
    unsigned reason;
    int evict;
    if (!PyArg_ParseTuple(args, "KIp:shrink", &want, &reason, &evict)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (reason >= REASONS) return raise("ValueError", "no such reason");
    Reclaimed done;
    Status status;
    {
        Released unlocked(S(self));
        status = shrink(*s, want, Reason(reason), evict, done);
    }
    if (PyErr_Occurred() || (status == Status::INTERRUPTED && PyErr_CheckSignals() < 0)) return nullptr;
    return Py_BuildValue("(KKIII)", (unsigned long long)done.frames, (unsigned long long)done.moved, done.tally.pinned, done.tally.dirty, done.tally.busy);
}

static PyObject* segment_evict_idle(PyObject* self, PyObject* arg) {
    double seconds = PyFloat_AsDouble(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    u64 out = 0, age = u64(seconds * 1e9), now = prim::coarse_ns();
    u32 before = u32((now > age ? now - age : 0) >> TICK_SHIFT);
    {
        Released unlocked(S(self));
        evict_idle(*s, before, out);
    }
    if (PyErr_Occurred()) return nullptr;
    return PyLong_FromUnsignedLongLong(out);
}

static PyObject* segment_set_budget(PyObject* self, PyObject* arg) {
    unsigned long n = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (n < 1 || n > s->g.max_frames) return raise("ValueError", "a budget is 1 to %u frames", s->g.max_frames);
    s->header->budget_frames.store_release(u32(n));
    Py_RETURN_NONE;
}

static PyObject* segment_set_durable_lsn(PyObject* self, PyObject* arg) {
    unsigned long long n = PyLong_AsUnsignedLongLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    s->header->durable_lsn.store_seq_cst(n);
    Py_RETURN_NONE;
}

static PyObject* segment_reap(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    u32 n;
    {
        Released unlocked(S(self));
        n = reap_all(*s);
        sweep_old(*s);
    }
    return PyLong_FromUnsignedLong(n);
}

static PyObject* segment_check(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    Findings found;
    {
        Released unlocked(S(self));
        reap_all(*s);
        found = check(*s, 8);
    }
    PyObject* list = PyList_New(0);
    for (const std::string& f : found) {
        PyObject* text = PyUnicode_FromString(f.c_str());
        if (!text || !list || PyList_Append(list, text) < 0) Py_CLEAR(list);
        Py_XDECREF(text);
    }
    return list;
}

// ---- flush -----------------------------------------------------------------------

// begin_flush(first, count, lsn, most) -> (op, bytes of (page, frame) pairs, held back), or None
static PyObject* segment_begin_flush(PyObject* self, PyObject* args) {
    unsigned first;
    unsigned long long count, lsn, most, held_back_out;
    if (!PyArg_ParseTuple(args, "IKKK:begin_flush", &first, &count, &lsn, &most)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    std::vector<FlushItem> items;
    u64 held_back = 0;
    int index;
    {
        Released unlocked(S(self));
        OpSlot op(*s);
        if (op.valid()) begin_flush(*s, op.intent(), first, count, lsn, most, items, held_back);
        index = op.release();
    }
    if (index < 0) return PyErr_CheckSignals() < 0 ? nullptr : raise("InterruptedError", "the flush was interrupted");
    held_back_out = held_back;
    return Py_BuildValue("(iy#K)", index, reinterpret_cast<char*>(items.data()), Py_ssize_t(items.size() * sizeof(FlushItem)), held_back_out);
}

static PyObject* segment_end_flush(PyObject* self, PyObject* args) {
    int index, synced, foreground;
    Py_buffer raw;
    if (!PyArg_ParseTuple(args, "iy*pp:end_flush", &index, &raw, &synced, &foreground)) return nullptr;
    auto first = static_cast<const FlushItem*>(raw.buf);
    std::vector<FlushItem> items(first, first + raw.len / Py_ssize_t(sizeof(FlushItem)));
    PyBuffer_Release(&raw);
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (index < 0 || index >= int(OPS)) return raise("ValueError", "no such flush");
    {
        Released unlocked(S(self));
        OpSlot op(*s, index);
        end_flush(*s, op.intent(), items, synced);
    }
    if (synced && !items.empty()) {
        s->counters().flushes.add_relaxed(1);
        s->counters().flushed_pages.add_relaxed(items.size());
        s->counters().foreground_flushes.add_relaxed(u64(foreground));
    }
    Py_RETURN_NONE;
}

// flush_lock(space) -> True when the last flush of this space did not end
static PyObject* segment_flush_lock(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES) return raise("ValueError", "no such space");
    SpaceSlot& slot = s->spaces[i];
    Acquired a;
    {
        Released unlocked(S(self));
        a = acquire(*s, slot.flush_lock);
        if (a == Acquired::REPAIR) repaired(*s, slot.flush_lock);
    }
    if (a == Acquired::INTERRUPTED) return PyErr_Occurred() ? nullptr : raise("InterruptedError", "interrupted while waiting for a flush");
    return PyBool_FromLong(slot.flush_open.load_acquire());
}

static PyObject* segment_flush_unlock(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES) return raise("ValueError", "no such space");
    release(s->spaces[i].flush_lock);
    Py_RETURN_NONE;
}

// ---- spaces ----------------------------------------------------------------------

static PyObject* segment_lock_directory(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    bool ok;
    {
        Released unlocked(S(self));
        ok = lock_directory(*s);
    }
    if (!ok) return PyErr_Occurred() ? nullptr : raise("InterruptedError", "interrupted while waiting for the directory of spaces");
    Py_RETURN_NONE;
}

static PyObject* segment_unlock_directory(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    release(s->header->directory);
    Py_RETURN_NONE;
}

static PyObject* text_of(const char* at, size_t most) { return PyUnicode_DecodeUTF8(at, Py_ssize_t(strnlen(at, most)), "surrogateescape"); }

// All live spaces, as dicts.
static PyObject* segment_spaces(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    PyObject* list = PyList_New(0);
    for (u32 i = 0; list && i < MAX_SPACES; i++) {
        SpaceSlot& t = s->spaces[i];
        if (t.state.load_acquire() != SPACE_LIVE) continue;
        u64 extent = t.extent.load_acquire();
        auto k = [](const Atomic<u64>& a) { return (unsigned long long)a.load_relaxed(); };
        PyObject* d = Py_BuildValue("{s:I,s:N,s:N,s:I,s:I,s:I,s:K,s:I,s:I,s:K,s:K,s:K,s:K,s:K,s:K,s:K}", "index", i, "name", text_of(t.name, sizeof t.name),
                                    "path", text_of(t.path, sizeof t.path), "kind", t.kind.load_relaxed(), "flags", t.flags.load_relaxed(),
                                    "owner", t.owner.load_relaxed(), "generation", (unsigned long long)space_generation(extent), "first_entry",
                                    t.first_entry.load_relaxed(), "max_pages", t.max_pages.load_relaxed(), "pages", (unsigned long long)space_pages(extent),
                                    "stored", k(t.stored), "entries_ready", k(t.entries_ready), "device", k(t.device), "inode", k(t.inode),
                                    "size_bytes", k(t.size_bytes), "mtime_ns", k(t.mtime_ns));
        if (!d || PyList_Append(list, d) < 0) Py_CLEAR(list);
        Py_XDECREF(d);
    }
    return list;
}

// A run of `n` entries that no space has: first fit, in whole OS pages. NONE if none.
static u32 free_run(Segment& s, u64 n) {
    u64 at = 0, unit = s.g.os_page / 8;
    for (bool moved = true; moved;) {
        moved = false;
        for (u32 i = 0; i < MAX_SPACES; i++) {
            SpaceSlot& t = s.spaces[i];
            if (t.state.load_acquire() == SPACE_FREE) continue;
            u64 first = t.first_entry.load_relaxed(), end = first + round_up(t.max_pages.load_relaxed(), unit);
            if (at < end && first < at + n) {
                at = end;
                moved = true;
            }
        }
    }
    return at + n <= s.g.max_pages ? u32(at) : NONE;
}

// add_space(name, path, kind, flags, owned, pages, max_pages, device, inode, size, mtime) -> index.
// The directory lock is held.
static PyObject* segment_add_space(PyObject* self, PyObject* args) {
    const char *name, *path;
    Py_ssize_t name_n, path_n;
    unsigned kind, flags;
    int owned;
    unsigned long long pages, max_pages, device, inode, size, mtime;
    if (!PyArg_ParseTuple(args, "s#s#IIpKKKKKK:add_space", &name, &name_n, &path, &path_n, &kind, &flags, &owned, &pages, &max_pages, &device, &inode, &size, &mtime))
        return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    SpaceSlot* t = nullptr;
    for (u32 i = 0; !t && i < MAX_SPACES; i++)
        if (s->spaces[i].state.load_acquire() == SPACE_FREE) t = &s->spaces[i];
    if (!t) return raise("TooManySpaces", "a pool holds %u spaces and all are taken; remove one (space.remove())", MAX_SPACES);
    if (name_n >= Py_ssize_t(sizeof t->name) || path_n >= Py_ssize_t(sizeof t->path))
        return raise("ValueError", "a space's name has at most %zu bytes, its path %zu", sizeof t->name - 1, sizeof t->path - 1);
    u64 unit = s->g.os_page / 8;
    u32 first = free_run(*s, round_up(max_pages, unit));
    if (first == NONE || pages > max_pages)
        return raise("SpaceFull", "the pool can translate %llu pages in all and has no run of %llu left; remove a space, give this one a "
                     "smaller max_pages, or create the pool with a larger one", (unsigned long long)s->g.max_pages, max_pages);
    u64 ready = round_up(pages, unit);
    t->first_entry.store_relaxed(first);
    t->max_pages.store_relaxed(u32(max_pages));
    t->state.store_seq_cst(SPACE_OPENING);
    BP_POINT("space.opening");
    if (int r = ready ? prim::plug(s->fd, s->g.entries_at + u64(first) * 8, ready * 8) : 0) {
        prim::punch(s->fd, s->g.entries_at + u64(first) * 8, ready * 8);
        t->state.store_seq_cst(SPACE_FREE);
        return raise_errno(r, "the space's entries cannot be allocated");
    }
    t->entries_ready.store_relaxed(ready);
    strncpy(t->name, name, sizeof t->name - 1);
    strncpy(t->path, path, sizeof t->path - 1);
    t->kind.store_relaxed(kind);
    t->flags.store_relaxed(flags);
    t->owner.store_relaxed(owned ? s->me : 0);
    t->owner_generation.store_relaxed(owned ? s->client().generation.load_relaxed() : 0);
    t->reserved.store_relaxed(pages);
    t->stored.store_relaxed(kind == KIND_SCRATCH || kind == KIND_DERIVED ? 0 : pages);
    t->device.store_relaxed(device);
    t->inode.store_relaxed(inode);
    t->size_bytes.store_relaxed(size);
    t->mtime_ns.store_relaxed(mtime);
    u64 generation = space_generation(t->extent.load_relaxed()) + 1;
    t->extent.store_seq_cst(generation << GENERATION_SHIFT | pages);
    t->state.store_seq_cst(SPACE_LIVE);
    BP_POINT("space.live");
    return PyLong_FromLong(long(t - s->spaces));
}

static PyObject* segment_remove_space(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES) return raise("ValueError", "no such space");
    u32 freed = 0;
    bool ok;
    {
        Released unlocked(S(self));
        ok = remove_space(*s, u32(i), freed);
    }
    return Py_BuildValue("(OI)", ok ? Py_True : Py_False, freed);
}

// Drops the clean pages of a space. The directory lock and the flush lock are held.
static PyObject* segment_drop_clean(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES) return raise("ValueError", "no such space");
    SpaceSlot& t = s->spaces[i];
    u64 first = t.first_entry.load_relaxed(), n = t.entries_ready.load_relaxed();
    if (first + n > s->g.max_pages) return raise_status(Status::CORRUPT, nullptr, 0), nullptr;
    u32 freed = 0;
    Status status;
    {
        Released unlocked(S(self));
        status = drop_clean(*s, u32(first), n, freed);
    }
    return Py_BuildValue("(OI)", status == Status::OK ? Py_True : Py_False, freed);
}

// record_store(space, stored pages or 0, flush open, size, mtime): what is known of the file.
static PyObject* segment_record_store(PyObject* self, PyObject* args) {
    unsigned i;
    unsigned long long stored, size, mtime;
    int open;
    if (!PyArg_ParseTuple(args, "IKpKK:record_store", &i, &stored, &open, &size, &mtime)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES) return raise("ValueError", "no such space");
    SpaceSlot& t = s->spaces[i];
    u64 before = t.stored.load_relaxed();
    while (before < stored && !t.stored.cas_seq_cst(before, stored)) {}
    t.flush_open.store_release(u32(open));
    if (size) t.size_bytes.store_relaxed(size);
    if (mtime) t.mtime_ns.store_relaxed(mtime);
    Py_RETURN_NONE;
}

// Raises the page count of a space (its file has grown). False: it has no entries left.
static PyObject* segment_grow_space(PyObject* self, PyObject* args) {
    unsigned i;
    unsigned long long pages;
    if (!PyArg_ParseTuple(args, "IK:grow_space", &i, &pages)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES) return raise("ValueError", "no such space");
    SpaceSlot& t = s->spaces[i];
    if (pages > t.max_pages.load_relaxed())
        return raise("SpaceFull", "the file has %llu pages, the space was opened for %u; remove the space and open it with a larger max_pages", pages, t.max_pages.load_relaxed());
    u64 ready = t.entries_ready.load_acquire(), to = round_up(pages, s->g.os_page / 8);
    if (to > ready) {
        if (int r = prim::plug(s->fd, s->g.entries_at + (t.first_entry.load_relaxed() + ready) * 8, (to - ready) * 8)) return raise_errno(r, "the space's entries cannot be allocated");
        while (ready < to && !t.entries_ready.cas_seq_cst(ready, to)) {}
    }
    u64 e = t.extent.load_acquire();
    while ((e & PAGES_MASK) < pages && !t.extent.cas_seq_cst(e, (e & ~PAGES_MASK) | pages)) {}
    Py_RETURN_NONE;
}

static PyMethodDef segment_methods[] = {
    {"set_data", segment_set_data, METH_O, ""},
    {"close", segment_close, METH_NOARGS, ""},
    {"views", segment_views, METH_NOARGS, ""},
    {"geometry", segment_geometry, METH_NOARGS, ""},
    {"counters", segment_counters, METH_NOARGS, ""},
    {"status", segment_status, METH_NOARGS, ""},
    {"raw_frames", segment_raw_frames, METH_NOARGS, ""},
    {"raw_pins", segment_raw_pins, METH_NOARGS, ""},
    {"entry_words", segment_entry_words, METH_O, ""},
    {"clients", segment_clients, METH_NOARGS, ""},
    {"shrink", segment_shrink, METH_VARARGS, ""},
    {"evict_idle", segment_evict_idle, METH_O, ""},
    {"set_budget", segment_set_budget, METH_O, ""},
    {"set_durable_lsn", segment_set_durable_lsn, METH_O, ""},
    {"reap", segment_reap, METH_NOARGS, ""},
    {"check", segment_check, METH_NOARGS, ""},
    {"begin_flush", segment_begin_flush, METH_VARARGS, ""},
    {"end_flush", segment_end_flush, METH_VARARGS, ""},
    {"flush_lock", segment_flush_lock, METH_O, ""},
    {"flush_unlock", segment_flush_unlock, METH_O, ""},
    {"lock_directory", segment_lock_directory, METH_NOARGS, ""},
    {"unlock_directory", segment_unlock_directory, METH_NOARGS, ""},
    {"spaces", segment_spaces, METH_NOARGS, ""},
    {"add_space", segment_add_space, METH_VARARGS, ""},
    {"remove_space", segment_remove_space, METH_O, ""},
    {"drop_clean", segment_drop_clean, METH_O, ""},
    {"record_store", segment_record_store, METH_VARARGS, ""},
    {"grow_space", segment_grow_space, METH_VARARGS, ""},
    {nullptr, nullptr, 0, nullptr}};

PyTypeObject SegmentType = {PyVarObject_HEAD_INIT(nullptr, 0)};

static PyMethodDef module_methods[] = {
    {"create", core_create, METH_VARARGS, "Writes an empty segment into the file behind fd."},
    {"geometry", core_geometry, METH_O, "The checked geometry of the segment behind fd."},
    {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "bufferpool._core", "The core of bufferpool.", -1, module_methods, nullptr, nullptr, nullptr, nullptr};

static int ready_segment_type() {
    SegmentType.tp_name = "bufferpool._core.Segment";
    SegmentType.tp_basicsize = sizeof(SegmentObject);
    SegmentType.tp_dealloc = reinterpret_cast<destructor>(segment_dealloc);
    SegmentType.tp_flags = Py_TPFLAGS_DEFAULT;
    SegmentType.tp_doc = "One client's attachment to a segment.";
    SegmentType.tp_methods = segment_methods;
    SegmentType.tp_new = segment_new;
    return PyType_Ready(&SegmentType);
}

}  // namespace bp

PyMODINIT_FUNC PyInit__core() {
    using namespace bp;
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the futex word of an entry is its low half");
    import_array();
    if (ready_segment_type() < 0 || ready_space_type() < 0 || ready_view_types() < 0 || ready_write_type() < 0) return nullptr;
    PyObject* m = PyModule_Create(&module_def);
    if (!m) return nullptr;
    struct { const char* name; PyTypeObject* type; } types[] = {
        {"Segment", &SegmentType}, {"Space", &SpaceType}, {"Pin", &PinType}, {"PinnedPages", &PinnedPagesType}, {"Write", &WriteType}};
    for (auto& t : types)
        if (PyModule_AddObjectRef(m, t.name, reinterpret_cast<PyObject*>(t.type)) < 0) return nullptr;
    PyModule_AddIntConstant(m, "MAX_SPACES", MAX_SPACES);
    PyModule_AddIntConstant(m, "CLIENTS_LIMIT", CLIENTS_LIMIT);
    PyModule_AddIntConstant(m, "LAYOUT_VERSION", LAYOUT_VERSION);
    PyModule_AddIntConstant(m, "TICK_SHIFT", TICK_SHIFT);
    PyModule_AddIntConstant(m, "FRAME_SLOT_BYTES", sizeof(FrameSlot));
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
    return m;
}
