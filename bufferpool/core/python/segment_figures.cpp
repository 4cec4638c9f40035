// The figures, tables and events of a pool, for clients and observers. Observers take no slot, hold no lock, and their
// mapping is read-only, so that they never disturb the pool.
//
// An observer asks the kernel, not the segment, which parts have memory: a read of a hole would allocate it (rule 9),
// or raise SIGBUS if the tmpfs is full.
#include "python/objects.h"
#include "python/py.h"

#include <algorithm>

#include "protocol/counters.h"
#include "protocol/events.h"
#include "protocol/spaces.h"

namespace bp {

Segment* seen(SegmentObject* seg) {
    if (!seg->observing || !seg->s) return opened(seg);
    return seg->s->has_descriptor() ? seg->s : (raise_lost(), nullptr);
}

static bool raise_damaged(const char* what) {
    raise("SegmentCorrupt",
          "the segment was truncated, or some of its memory is missing (%s); remove it and create it anew",
          what);
    return false;
}

// Which OS pages of the segment may be read. A client may read everything that the segment has according to its own
// tables; an observer has a bitmap from the kernel.
struct Readable {
    const Shared<u64>* written;
    int shift;  // of an OS page

    explicit Readable(SegmentObject* seg) : written(seg->written), shift(__builtin_ctz(seg->s->g.os_page)) {}
    bool page(u64 i) const { return !written || written[i / 64] >> (i % 64) & 1; }
    bool at(u64 offset) const { return page(offset >> shift); }
    // Whether a byte range may be read: 1 all of it, 0 nothing, -1 a part.
    int over(u64 from, u64 to) const {
        u64 n = 0, first = from >> shift, last = (to - 1) >> shift;
        for (u64 i = first; i <= last; i++) n += page(i);
        return n == 0 ? 0 : n > last - first ? 1 : -1;
    }
    bool entry(Segment& s, u32 page) const {
        return written ? page < s.g.max_pages && at(s.g.entries_at + page * 8ull) : s.has_page(page);
    }
};

bool sees(SegmentObject* seg, u64 offset) { return Readable(seg).at(offset); }

// Learns anew how many frames and spaces have slots; an observer asks the kernel what has been written.
// False: an exception is set.
static bool refresh(SegmentObject* seg) {
    Segment& s = *seg->s;
    const Geometry& g = s.g;
    s.has_frame(g.max_frames - 1);
    s.look_at_spaces();
    s.look_at_long_texts();
    if (!seg->observing) return true;
    struct stat st;
    if (fstat(s.fd, &st) != 0 || (u64(st.st_size) != g.total_bytes &&
                                     u64(st.st_size) != g.total_bytes + s.header->object_bytes.load_relaxed()))
        return raise_damaged("its size");
    u64 bits = reinterpret_cast<u8*>(s.chunk_bits) - s.base;
    if (prim::populate(s.base, g.clients_at + g.slots_bytes(s.slots())) != 0 ||
        prim::populate(s.base + g.events_at, g.advice_at + g.os_page - g.events_at) != 0 ||
        prim::populate(s.base + bits / g.os_page * g.os_page, bits % g.os_page + CHUNK_COPIES * g.chunk_words() * 8))
        return raise_damaged("its tables");
    Vec<u64> written;
    if (!written.resize((g.data_at / g.os_page + 63) / 64)) return PyErr_NoMemory(), false;
    for (u64 at = prim::next_written(s.fd, 0, g.data_at); at < g.data_at;) {
        u64 end = prim::next_unwritten(s.fd, at, g.data_at);
        if (end <= at) break;
        for (u64 i = at / g.os_page; i < end / g.os_page; i++) written[i / 64] |= u64(1) << (i % 64);
        at = end < g.data_at ? prim::next_written(s.fd, end, g.data_at) : end;
    }
    for (u64 i = 0; i < written.size(); i++) seg->written[i] = written[i];  // another thread may read them
    return true;
}

// The same for what an observer alone has to learn.
bool refresh_readable(SegmentObject* seg) { return !seg->observing || refresh(seg); }

// observe(fd) -> a Segment for an observer
PyObject* core_observe(PyObject*, PyObject* arg) {
    int fd = int(PyLong_AsLong(arg));
    Header h;
    if (PyErr_Occurred() || !read_header(fd, h)) return nullptr;
    const Geometry& g = h.geometry;
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0) return raise_errno(-errno, "the descriptor of the segment cannot be duplicated");
    u8* at = prim::map_segment(own, g.data_at, g.data_at, PROT_READ);
    auto seg = at ? reinterpret_cast<SegmentObject*>(SegmentType.tp_alloc(&SegmentType, 0)) : nullptr;
    if (!seg) {
        int error = -errno;
        if (at) prim::unmap_segment(at, g.data_at);
        close(own);
        return PyErr_Occurred() ? nullptr : raise_unmapped(error);
    }
    seg->pins.next = seg->pins.prev = &seg->pins;
    seg->observing = true;
    seg->s = make<Segment>();
    if (!seg->s) {
        prim::unmap_segment(at, g.data_at);
        close(own);
        return Py_DECREF(seg), PyErr_NoMemory();
    }
    seg->s->map(at, g, g.data_at);
    seg->s->fd = own;
    seg->written = static_cast<Shared<u64>*>(prim::allocate((g.data_at / g.os_page + 63) / 64 * 8));
    if (!seg->written) return Py_DECREF(seg), PyErr_NoMemory();
    struct stat st;
    if (fstat(own, &st) == 0) seg->s->device = st.st_dev, seg->s->inode = st.st_ino;
    if (!refresh(seg)) Py_CLEAR(seg);
    return reinterpret_cast<PyObject*>(seg);
}

// ---- counters and tables ----------------------------------------------------------

// The bytes that the kernel should count for the objects: their tables, and their data. Copied with pread, so that an
// observer need not map them.
struct ObjectBytes {
    u64 tables = 0, data = 0;
};
static ObjectBytes object_bytes(Segment& s) {
    ObjectBytes n;
    if (!s.header->objects_made.load_acquire()) return n;
    ObjectPlaces p = place_objects(s.g, s.header->object_bytes.load_relaxed());
    ObjectsHeader h;
    if (prim::read_at(s.fd, &h, sizeof h, p.at) != ssize_t(sizeof h)) return n;
    auto add = [&](const Atomic<u64>& ready, u64 size) {
        n.tables += round_up(u32(ready.load_relaxed()) * size, s.g.os_page);
    };
    n.tables = round_up(objects_header_bytes(s.g), s.g.os_page) +
               round_up(OBJECT_SAMPLES * sizeof(ObjectSample), s.g.os_page);
    add(h.heads_ready, sizeof(ObjectHead));
    add(h.entries_ready, sizeof(ObjectEntry));
    add(h.blocks_ready, sizeof(ObjectBlock));
    for (u32 c = 1, slots = s.slots(); c <= slots; c++) n.tables += row_bytes(s.g, u32(h.rows_ready[c].load_relaxed()));
    n.data = h.used.load_relaxed() * s.g.os_page;
    return n;
}

// caches() -> the caches of the pool, with what all clients have counted
static PyObject* segment_caches(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    PyObject* list = s ? PyList_New(0) : nullptr;
    if (!list || !s->header->objects_made.load_acquire()) return list;
    ObjectPlaces p = place_objects(s->g, s->header->object_bytes.load_relaxed());
    ObjectsHeader h;
    if (prim::read_at(s->fd, &h, sizeof h, p.at) != ssize_t(sizeof h)) return list;
    u64 sums[CACHES][CACHE_USES] = {}, row[CACHES][CACHE_USES];
    for (u32 c = 1, slots = s->slots(); c <= slots; c++) {
        u64 w = h.rows_ready[c].load_relaxed();
        bool used = w && is_doubled(w);
        if (!used || prim::read_at(s->fd, row, sizeof row, p.rows_at + (c - 1) * p.row_bytes) < 0) continue;
        for (u32 i = 0; i < CACHES; i++)
            for (u32 k = 0; k < CACHE_USES; k++) sums[i][k] += row[i][k];
    }
    for (u32 i = 0; list && i < CACHES; i++) {
        CacheSlot& cache = h.caches[i];
        if (cache.state.load_relaxed() != CACHE_LIVE) continue;
        PyObject* one = counts_of(cache, sums[i]);
        PyObject* name = PyUnicode_DecodeUTF8(cache.name, Py_ssize_t(strnlen(cache.name, CACHE_NAME)), "replace");
        bool ok = one && name && PyDict_SetItemString(one, "name", name) == 0 && PyList_Append(list, one) == 0;
        Py_XDECREF(one);
        Py_XDECREF(name);
        if (!ok) Py_CLEAR(list);
    }
    return list;
}

// The bytes that the kernel should count for everything before the data area.
static u64 metadata_bytes(Segment& s) {
    const Geometry& g = s.g;
    u64 n = g.clients_at + g.slots_bytes(s.slots()) + (g.advice_at - g.events_at);
    n += round_up(advice_bytes(s.look_at_advised()), g.os_page) + round_up(g.tops_bytes(), g.os_page);
    s.look_at_ready();
    each_frame_table(g, s.stripes(), [&](u64, u64, auto bytes) { n += round_up(bytes(s.ready), g.os_page); });
    s.look_at_long_texts();
    n += g.long_texts_bytes(s.long_texts_ready);
    s.look_at_spaces();
    each_space_table(g, s.stripes() / STRIPES,
                     [&](u64, u64, auto bytes) { n += round_up(bytes(s.spaces_ready), g.os_page); });
    for (u64 i = 0; i < g.chunk_words(); i++) n += u64(__builtin_popcountll(s.entry_chunk_word(i))) * g.os_page;
    return n;
}

PyObject* raise_unsettled() {
    return raise("BufferPoolError", "clients came and went faster than the counters could be summed; try again");
}

// counters() -> the words of Counters, then the Uses of each space that has a slot
static PyObject* segment_counters(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s) return nullptr;
    u32 spaces = s->space_count();
    Vec<u64> sum;
    if (!sum.resize(COUNTERS + 2 * spaces)) return PyErr_NoMemory();
    auto uses = reinterpret_cast<Uses*>(sum.data() + COUNTERS);
    auto may_see = [self](const Uses& at) {
        return sees(S(self), u64(reinterpret_cast<const u8*>(&at) - S(self)->s->base));
    };
    auto look = [self] { return refresh_readable(S(self)); };
    if (!sum_counters(*s, sum.data(), uses, spaces, look, may_see))
        return PyErr_Occurred() ? nullptr : raise_unsettled();
    return PyBytes_FromStringAndSize(reinterpret_cast<char*>(sum.data()), Py_ssize_t(sum.size() * 8));
}

// How many slots have a client that is no guest.
static u32 count_clients(Segment& s) {
    u32 n = 0;
    for (u32 c = 1, slots = s.slots(); c <= slots; c++)
        n += s.clients[c - 1].state.load_acquire() == CLIENT_LIVE && !s.g.is_guest(c);
    return n;
}

static PyObject* segment_status(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s) return nullptr;
    struct stat st;
    if (fstat(s->fd, &st) != 0) return raise_errno(-errno, "the segment cannot be examined");
    PolicyState& p = s->header->policy;
    ObjectBytes objects = object_bytes(*s);
    u64 loan = s->header->loan.load_relaxed();
    return Py_BuildValue(
        "{s:K,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:K,s:I,s:I,s:K,s:K,s:K,s:K,s:I,s:I,s:I,s:I,s:K,s:K,s:I,s:K,s:I,s:K,s:I,s:K}",
        "object_bytes",
        (unsigned long long)objects.data, "lent_frames", loan::lent(loan), "granted_frames", loan::granted(loan),
        "budget_frames", s->header->budget_frames.load_relaxed(), "most_frames",
        s->header->most_frames.load_relaxed(), "max_frames",
        s->most_frames(), "min_frames", s->header->min_frames.load_relaxed(), "asked_frames",
        s->header->asked_frames.load_relaxed(), "checkpoint_lsn",
        (unsigned long long)s->header->checkpoint_lsn.load_relaxed(), "resident_frames",
        s->header->resident.load_relaxed(), "frames_ready", u32(s->header->frames_ready.load_relaxed()), "durable_lsn",
        (unsigned long long)s->header->durable_lsn.load_relaxed(), "kernel_bytes",
        (unsigned long long)st.st_blocks * 512, "metadata_bytes",
        (unsigned long long)(metadata_bytes(*s) + objects.tables), "links",
        (unsigned long long)st.st_nlink, "client", s->me, "cold", p.cold.count, "hot", p.hot.count, "cold_target",
        p.cold_target, "unlinked", (unsigned long long)(s->header->unlinked.load_relaxed() & UNLINKED), "may_lose",
        (unsigned long long)(s->header->unlinked.load_relaxed() & MAY_LOSE), "policy_mode",
        p.mode, "checkpoint_ns", (unsigned long long)s->header->checkpoint_ns.load_relaxed(), "clients",
        count_clients(*s), "refused_clients",
        (unsigned long long)s->header->refused_clients.load_relaxed(), "memory_lock_owner",
        s->header->memory.word.load_relaxed() & lock_word::OWNER, "steward_ns",
        (unsigned long long)s->header->steward_ns.load_relaxed());
}

// One number of the header, by one load; status() also makes a system call.
static PyObject* segment_durable_lsn(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    return s ? PyLong_FromUnsignedLongLong(s->header->durable_lsn.load_seq_cst()) : nullptr;
}

// page_sizes() -> (bits of the other page sizes, bytes of the whole budget)
static PyObject* segment_page_sizes(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    return s ? Py_BuildValue("KK", (unsigned long long)s->header->other_sizes.load_seq_cst(),
                             (unsigned long long)s->header->whole_budget_bytes.load_seq_cst())
             : nullptr;
}

static PyObject* segment_budget_frames(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    return s ? PyLong_FromUnsignedLong(s->header->budget_frames.load_acquire()) : nullptr;
}

// Tables are copied with pread, which allocates nothing where there is a hole.
static bool copy_table(Segment& s, void* to, u64 bytes, u64 at) {
    ssize_t n = prim::read_at(s.fd, to, bytes, at);
    return n == ssize_t(bytes) || raise_damaged("its end");
}

static PyObject* segment_raw_frames(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s) return nullptr;
    s->has_frame(s->g.max_frames - 1);
    u64 bytes = u64(s->ready) * sizeof(FrameSlot);
    PyObject* out = PyBytes_FromStringAndSize(nullptr, Py_ssize_t(bytes));
    if (out && !copy_table(*s, PyBytes_AS_STRING(out), bytes, s->g.frames_at)) Py_CLEAR(out);
    return out;
}

// Pin counts: an array of shape (frames with slots, slots of clients that have memory), uint16.
static PyObject* segment_raw_pins(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s) return nullptr;
    const Geometry& g = s->g;
    s->has_frame(g.max_frames - 1);
    npy_intp shape[2] = {s->ready, s->slots()};
    PyObject* out = PyArray_ZEROS(2, shape, NPY_UINT16, 0);
    if (!out) return nullptr;
    auto to = static_cast<u16*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(out)));
    Vec<u16> rows;
    if (!rows.resize(u64(shape[0]) * g.stripe_clients)) return Py_DECREF(out), PyErr_NoMemory();
    for (u32 stripe = 0, slots = u32(shape[1]); stripe < s->stripes(); stripe++) {
        u32 first = stripe / STRIPES * CLIENT_BANK + stripe % STRIPES,
            end = std::min(first / CLIENT_BANK * CLIENT_BANK + CLIENT_BANK, slots);
        if (!copy_table(*s, rows.data(), rows.size() * 2, g.pins_at + stripe * g.stripe_bytes))
            return Py_DECREF(out), nullptr;
        for (u32 f = 0; f < u32(shape[0]); f++)
            for (u32 c = first, i = 0; c < end; c += STRIPES, i++)
                to[u64(f) * slots + c] = rows[u64(f) * g.stripe_clients + i];
    }
    return out;
}

// The entry words of the pages in a uint32 array; an index beyond the table reads as 0.
static PyObject* segment_entry_words(PyObject* self, PyObject* arg) {
    Segment* s = seen(S(self));
    if (!s) return nullptr;
    auto pages = reinterpret_cast<PyArrayObject*>(PyArray_FROMANY(arg, NPY_UINT32, 1, 1, NPY_ARRAY_CARRAY_RO));
    if (!pages) return nullptr;
    if (!refresh(S(self))) return Py_DECREF(pages), nullptr;
    Readable readable(S(self));
    npy_intp n = PyArray_SIZE(pages);
    PyObject* out = PyArray_SimpleNew(1, &n, NPY_UINT64);
    if (!out) return Py_DECREF(pages), nullptr;
    auto from = static_cast<const u32*>(PyArray_DATA(pages));
    auto to = static_cast<u64*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(out)));
    for (npy_intp i = 0; i < n; i++) to[i] = readable.entry(*s, from[i]) ? s->entries[from[i]].load_relaxed() : 0;
    Py_DECREF(pages);
    return out;
}

// ---- the frames, counted -----------------------------------------------------------

constexpr u32 AGES = 6;
constexpr u64 AGE_LIMITS_S[AGES - 1] = {1, 10, 60, 600, 3600};

struct Summary {
    u64 states[5] = {}, dirty = 0, held_back = 0, pinned = 0, pinned_live = 0, pinned_dirty = 0, hot = 0,
        ages[AGES] = {};
    struct PerSpace {
        u64 resident, dirty;
    };
    Vec<PerSpace> space{};
};

// Which space a page belongs to; spaces do not overlap.
class SpaceFinder {
    Vec<EntryRun> runs_;
    const EntryRun* last_ = nullptr;

public:
    bool look(SegmentObject* seg) {
        Segment& s = *seg->s;
        return entry_runs(
            s, runs_, [&](SpaceSlot& t) { return sees(seg, u64(reinterpret_cast<u8*>(&t) - s.base)) && t.is_live(); });
    }
    u32 of(u32 page) {
        if (!last_ || page < last_->first || page >= last_->end) last_ = run_of(runs_, page);
        return last_ ? last_->space : NONE;
    }
};

constexpr u32 RUN = 1024;  // frames

// Which frames of a run are pinned. It reads stripe by stripe, so that memory is read in order.
class Pinned {
    u64 words_[RUN];

public:
    void read(Segment& s, const Readable& readable, u32 from, u32 to) {
        u32 n = s.g.stripe_clients / 4;
        std::fill(words_, words_ + RUN, 0);
        for (u32 stripe = 0, stripes = s.stripes(); stripe < stripes; stripe++) {
            u64 at = s.g.pins_at + stripe * s.g.stripe_bytes;
            int there = readable.over(at + u64(from) * n * 8, at + u64(to) * n * 8);
            if (!there) continue;
            auto row = reinterpret_cast<Atomic<u64>*>(s.stripe_row(stripe, from));
            for (u32 f = 0; f < to - from; f++)
                for (u32 i = 0; i < n; i++, row++)
                    if (there > 0 || readable.at(u64(reinterpret_cast<u8*>(row) - s.base)))
                        words_[f] |= row->load_relaxed();
        }
    }
    bool has(u32 f) const { return words_[f % RUN]; }
};

// Counts the frames in one pass; each as it is at that moment.
static void summarize(Segment& s, const Readable& readable, SpaceFinder& spaces, Summary& out) {
    u32 now = s.tick();
    u64 durable = s.header->durable_lsn.load_relaxed();
    u32 ready = s.ready;
    Pinned pinned;
    for (u32 f = 0; f < ready; f++) {
        if (f % RUN == 0) pinned.read(s, readable, f, std::min(f + RUN, ready));
        if (!readable.at(s.g.frames_at + f * sizeof(FrameSlot))) {  // never written: a hole
            out.states[HOLE]++;
            continue;
        }
        FrameSlot& slot = s.frames[f];
        u64 w = slot.word.load_acquire();
        FrameState state = frame::state(w);
        out.states[state == SETTLING ? RETIRED : state < SETTLING ? state : BUSY]++;
        if (state == HOLE || state == FREE) continue;
        out.pinned += pinned.has(f);
        out.pinned_live += pinned.has(f) && state == LIVE;
        u32 page = frame::page(w);
        if (state != LIVE || !readable.entry(s, page)) continue;
        int age = int(now - slot.touched.load_relaxed());
        u64 age_s = age > 0 ? (u64(age) << TICK_SHIFT) / 1'000'000'000u : 0;
        u32 a = 0;
        while (a < AGES - 1 && age_s >= AGE_LIMITS_S[a]) a++;
        out.ages[a]++;
        u64 e = s.entries[page].load_acquire();
        if (!entry::is_resident_in(e, f)) continue;
        bool dirty = e & entry::DIRTY;
        out.dirty += dirty;
        out.pinned_dirty += dirty && pinned.has(f);
        out.hot += entry::ring(e) == RING_HOT;
        u32 i = spaces.of(page);
        if (i >= out.space.size()) continue;
        out.space[i].resident++;
        out.space[i].dirty += dirty;
        out.held_back += dirty && slot.lsn.load_relaxed() > durable;
    }
    u64 used = 0, most = s.most_frames();
    for (u64 n : out.states) used += n;
    used -= out.states[HOLE];
    out.states[HOLE] = most > used ? most - used : 0;
}

// summary() -> the counts of struct Summary: a dict, with per-space pairs as bytes
static PyObject* segment_summary(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s || !refresh(S(self))) return nullptr;
    Summary sum;
    SpaceFinder spaces;
    Readable readable(S(self));
    if (!spaces.look(S(self)) || !sum.space.resize(s->space_count())) return PyErr_NoMemory();
    {
        Released unlocked(S(self));
        EntryLook look(*s);
        summarize(*s, readable, spaces, sum);
    }
    auto n = [](u64 v) { return static_cast<unsigned long long>(v); };
    return Py_BuildValue("{s:(KKKKK),s:K,s:K,s:K,s:K,s:K,s:K,s:(KKKKKK),s:y#}", "states", n(sum.states[0]),
                         n(sum.states[1]), n(sum.states[2]), n(sum.states[3]), n(sum.states[4]), "dirty", n(sum.dirty),
                         "held_back", n(sum.held_back), "pinned", n(sum.pinned), "pinned_live", n(sum.pinned_live),
                         "pinned_dirty", n(sum.pinned_dirty), "hot", n(sum.hot), "ages", n(sum.ages[0]), n(sum.ages[1]),
                         n(sum.ages[2]), n(sum.ages[3]), n(sum.ages[4]), n(sum.ages[5]), "spaces",
                         sum.space.empty() ? "" : reinterpret_cast<const char*>(sum.space.data()),
                         Py_ssize_t(sum.space.size() * sizeof(Summary::PerSpace)));
}

// ---- events ------------------------------------------------------------------------

// post_event((kind, reason, bytes, from_frames, to_frames, value, origin, page, client)); client 0: this one
static PyObject* segment_post_event(PyObject* self, PyObject* made) {
    unsigned kind, reason, from, to, origin, client;
    unsigned long long bytes, page;
    double value;
    if (!PyTuple_Check(made)) return raise("TypeError", "an event is described by a tuple");
    if (!PyArg_ParseTuple(made, "IIKIIdIKI:post_event", &kind, &reason, &bytes, &from, &to, &value, &origin, &page,
                          &client))
        return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    post_event(*s, NewEvent{kind, reason, bytes, from, to, value, Origin{origin, page}, client});
    Py_RETURN_NONE;
}

static PyObject* segment_events(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s) return nullptr;
    Vec<Event> out;
    if (!out.resize(EVENTS)) return PyErr_NoMemory();
    u32 n = read_events(*s, out.data());
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(out.data()), Py_ssize_t(n * sizeof(Event)));
}

// ---- the steward -------------------------------------------------------------------

// lead(worth) -> -1 if another client is the steward; else this one is, because it holds the
// steward's byte lock, or could take it: then the previous steward, 0 if that one had resigned.
// The kernel drops the lock with the process.
static PyObject* segment_lead(PyObject* self, PyObject* arg) {
    double worth = PyFloat_AsDouble(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    int r = s->lock_byte(STEWARD_LOCK_AT);
    if (r == -EAGAIN) return PyLong_FromLong(-1);
    if (r) return raise_errno(r, "the steward's lock cannot be taken (fcntl F_OFD_SETLK)");
    u64 bits;
    memcpy(&bits, &worth, sizeof bits);
    u32 before = s->leads == s->me ? s->me : s->header->steward.load_acquire();
    s->leads = s->me;
    s->header->worth.store_relaxed(bits);
    s->header->steward_ns.store_relaxed(prim::boot_ns());
    s->header->steward.store_release(s->me);
    return PyLong_FromLong(long(before));
}

static PyObject* segment_resign(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    u32 me = s->me;
    if (s->leads == me) s->header->steward.cas_seq_cst(me, 0);
    s->leads = 0;
    s->unlock_byte(STEWARD_LOCK_AT);
    Py_RETURN_NONE;
}

// steward() -> the client number of the steward, 0 if there is none
static PyObject* segment_steward(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s) return nullptr;
    u32 c = s->header->steward.load_acquire();
    // Our own lock is not reported; and a dead steward's number may now be ours. An observer has no number, and never
    // leads.
    bool there = c && ((s->me && s->leads == s->me) || s->byte_is_locked(STEWARD_LOCK_AT) == 1);
    return PyLong_FromUnsignedLong(there ? c : 0);
}

// count(name): increments a counter that Python maintains
static PyObject* segment_count(PyObject* self, PyObject* arg) {
    const char* name = PyUnicode_AsUTF8(arg);
    Segment* s = name ? opened(S(self)) : nullptr;
    if (!s) return nullptr;
    Counters& c = s->counters();
    for (auto [known, counter] :
         {std::pair{"flush_failures", &c.flush_failures}, std::pair{"corrupt_pages", &c.corrupt_pages},
          std::pair{"repaired_pages", &c.repaired_pages}, std::pair{"exhausted", &c.exhausted}})
        if (!strcmp(known, name)) {
            counter->add_relaxed(1);
            Py_RETURN_NONE;
        }
    return raise("ValueError", "Python counts no %s", name);
}

// A page that operation `among` of client `c` loads together with others, and has not published: one with a frame that
// is being filled. NONE: there is none.
static u32 page_being_filled(Segment& s, const Readable& readable, u32 c, u32 among) {
    EntryLook look(s);
    for (u32 f = 0; f < s.ready; f++) {
        if (!readable.at(s.g.frames_at + f * sizeof(FrameSlot))) continue;
        u64 w = s.frames[f].word.load_acquire();
        u32 page = frame::page(w);
        if (frame::state(w) != BUSY || frame::client(w) != c || !readable.entry(s, page)) continue;
        u64 e = s.entries[page].load_acquire();
        if (entry::state(e) == LOADING && entry::owner(e) == c && entry::among(e) == among) return page;
    }
    return NONE;
}

// The name of an operation that may hang, because it calls a store, a loader, the engine's log, or writes a file; else
// null.
static const char* name_of(Op op) {
    switch (op) {
    case Op::LOAD:
    case Op::LOAD_MANY: return "load";
    case Op::FLUSH: return "flush";
    case Op::LOG_SYNC: return "log_sync";
    case Op::SAVE: return "save";
    default: return nullptr;
    }
}

// operations() -> what clients have under way: (client, "load", "flush", "log_sync" or "save", an entry of a page that
// it is about, seconds since it last made progress)
static PyObject* segment_operations(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s || !refresh(S(self))) return nullptr;
    Readable readable(S(self));
    PyObject* list = PyList_New(0);
    for (u32 c = 1, slots = s->slots(); list && c <= slots; c++) {
        Client& client = s->clients[c - 1];
        if (client.state.load_acquire() != CLIENT_LIVE) continue;
        for (u32 i = 0; list && i < OPS; i++) {
            Intent& intent = client.intents[i];
            Op op = Op(intent.op.load_acquire());
            const char* name = name_of(op);
            if (!name) continue;
            u32 page = op == Op::LOAD_MANY ? page_being_filled(*s, readable, c, i + 1) : NONE;
            if (page == NONE) page = intent.page.load_relaxed();
            int ticks = int(s->tick() - intent.since.load_relaxed());
            double seconds = ticks > 0 ? double(u64(ticks) << TICK_SHIFT) / 1e9 : 0.0;
            PyObject* one = Py_BuildValue("(IsId)", c, name, page, seconds);
            if (!one || PyList_Append(list, one) < 0) Py_CLEAR(list);
            Py_XDECREF(one);
        }
    }
    return list;
}

// events_posted() -> how many events of each kind and reason there have been: EVENT_KINDS rows of EVENT_REASONS
static PyObject* segment_events_posted(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s) return nullptr;
    u64 copy[EVENT_KINDS * EVENT_REASONS];
    for (u32 i = 0; i < EVENT_KINDS * EVENT_REASONS; i++)
        copy[i] = s->header->events_posted[i / EVENT_REASONS][i % EVENT_REASONS].load_relaxed();
    return PyBytes_FromStringAndSize(reinterpret_cast<char*>(copy), sizeof copy);
}

PyMethodDef observe_methods[] = {
    {"counters", entered<segment_counters, SegmentEntry>, METH_NOARGS,
     "counters($self, /)\n--\n\n"
     "The sums of all counters, as uint64: those of struct Counters, then (hits, misses) of each slot of a\n"
     "space."},
    {"status", entered<segment_status, SegmentEntry>, METH_NOARGS,
     "status($self, /)\n--\n\n"
     "The figures of the header and of the kernel, as a dict of int."},
    {"durable_lsn", entered<segment_durable_lsn, SegmentEntry>, METH_NOARGS,
     "durable_lsn($self, /)\n--\n\n"
     "The LSN up to which the log is durable."},
    {"caches", entered<segment_caches, SegmentEntry>, METH_NOARGS,
     "caches($self, /)\n--\n\n"
     "The caches of the pool, each a dict: its settings, and what all clients have counted."},
    {"budget_frames", entered<segment_budget_frames, SegmentEntry>, METH_NOARGS,
     "budget_frames($self, /)\n--\n\n"
     "How many frames may have memory."},
    {"page_sizes", entered<segment_page_sizes, SegmentEntry>, METH_NOARGS,
     "page_sizes($self, /)\n--\n\n"
     "(the other page sizes of the pool, bit n: pages of 2**n bytes; the budget of all sizes in bytes, 0\n"
     "without others)"},
    {"raw_frames", entered<segment_raw_frames, SegmentEntry>, METH_NOARGS,
     "raw_frames($self, /)\n--\n\n"
     "The slots of the frames that have ever been used, as bytes (struct FrameSlot)."},
    {"raw_pins", entered<segment_raw_pins, SegmentEntry>, METH_NOARGS,
     "raw_pins($self, /)\n--\n\n"
     "Pin counts: an array of shape (frames with slots, slots of clients that have memory), uint16."},
    {"entry_words", entered<segment_entry_words, SegmentEntry>, METH_O,
     "entry_words($self, pages, /)\n--\n\n"
     "The entry words of the pages in a uint32 array: a uint64 array. An index beyond the table reads as 0."},
    {"summary", entered<segment_summary, SegmentEntry>, METH_NOARGS,
     "summary($self, /)\n--\n\n"
     "The frames, counted in one pass: a dict of counts, and pairs for each space as bytes."},
    {"post_event", entered<segment_post_event, SegmentEntry>, METH_O,
     "post_event($self, made, /)\n--\n\n"
     "Records an event: (kind, reason, bytes, from_frames, to_frames, value, origin, page, client); client 0:\n"
     "this one."},
    {"events", entered<segment_events, SegmentEntry>, METH_NOARGS,
     "events($self, /)\n--\n\n"
     "The events in the ring, oldest first, as bytes (struct Event)."},
    {"lead", entered<segment_lead, SegmentEntry>, METH_O,
     "lead($self, worth, /)\n--\n\n"
     "Takes or keeps the steward's lock. Returns -1 if another client is the steward; else the number of the\n"
     "previous one (0: it had resigned). ``worth``: the hits per second that the last MiB of the budget earns."},
    {"resign", entered<segment_resign, SegmentEntry>, METH_NOARGS,
     "resign($self, /)\n--\n\n"
     "Gives up the steward's lock."},
    {"steward", entered<segment_steward, SegmentEntry>, METH_NOARGS,
     "steward($self, /)\n--\n\n"
     "The number of the client that is the steward; 0 if there is none."},
    {"count", entered<segment_count, SegmentEntry>, METH_O,
     "count($self, name, /)\n--\n\n"
     "Adds one to a counter that Python maintains."},
    {"operations", entered<segment_operations, SegmentEntry>, METH_NOARGS,
     "operations($self, /)\n--\n\n"
     "The operations under way that may hang: (client, \"load\", \"flush\", \"log_sync\" or \"save\", the entry of\n"
     "one of its pages, seconds since it last made progress)."},
    {"events_posted", entered<segment_events_posted, SegmentEntry>, METH_NOARGS,
     "events_posted($self, /)\n--\n\n"
     "How many events of each kind and reason there have been: EVENT_KINDS rows of EVENT_REASONS, uint64, as\n"
     "bytes."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace bp
