// The directory: the spaces of a segment. Python holds the directory lock (held.cpp)
// and looks at files meanwhile; everything that changes a slot is here.
#include "python/py.h"

#include "protocol/check.h"
#include "protocol/client.h"
#include "protocol/shrink.h"
#include "protocol/spaces.h"
#include "python/file_record.h"

namespace bp {

static PyObject* text_of(const char* at, size_t most) {
    return PyUnicode_DecodeUTF8(at, Py_ssize_t(strnlen(at, most)), "surrogateescape");
}

// The slot of a live space as a dict. Null without an exception: it is not live, or it was removed meanwhile.
static PyObject* space_record(Segment& s, u32 i) {
    SpaceSlot& t = s.spaces[i];
    if (!t.is_live()) return nullptr;
    u64 span = t.span.load_acquire();
    if (space_sum(t) != t.sum.load_relaxed()) {
        if (!t.is_live() || t.span.load_acquire() != span) return nullptr;  // removed while we looked
        return raise("SegmentCorrupt",
                     "space slot %u of the segment was overwritten; save what you need through handles that are "
                     "open, and remove the segment",
                     i);
    }
    // An owner that is not a client's number is no flusher.
    u32 flusher = t.flush_lock.word.load_relaxed() & lock_word::OWNER, owner = t.owner.load_relaxed();
    bool mine = s.me && owner == s.me && t.owner_generation.load_relaxed() == s.client().generation.load_relaxed();
    auto k = [](const Atomic<u64>& a) { return (unsigned long long)a.load_relaxed(); };
    return Py_BuildValue(
        "{s:I,s:N,s:N,s:I,s:I,s:I,s:K,s:I,s:I,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:O,s:I,s:K}",
        "index", i, "name", text_of(t.name, sizeof t.name), "path", text_of(t.path, sizeof t.path), "kind",
        t.kind.load_relaxed(), "flags", t.flags.load_relaxed(), "owner", owner, "generation",
        (unsigned long long)space_generation(span), "first_entry", t.first_entry.load_relaxed(), "max_pages",
        t.max_pages.load_relaxed(), "pages", (unsigned long long)space_pages(span), "stored", k(t.stored),
        "entries_ready", k(t.entries_ready), "device", k(t.device), "inode", k(t.inode), "size_bytes",
        k(t.size_bytes), "mtime_ns", k(t.mtime_ns), "ctime_ns", k(t.ctime_ns), "doubt", k(t.doubt), "opened_ns",
        k(t.opened_ns), "hits_before", k(t.hits_before), "misses_before", k(t.misses_before), "version",
        k(t.version), "mine", mine ? Py_True : Py_False, "flusher", is_live_client(s, flusher) ? flusher : 0,
        "flush_since_ns", k(t.flush_since_ns));
}

// All live spaces, as dicts.
static PyObject* segment_spaces(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s) return nullptr;
    PyObject* list = PyList_New(0);
    for (u32 i = 0; list && i < MAX_SPACES; i++) {
        PyObject* d = space_record(*s, i);
        if (!d && !PyErr_Occurred()) continue;
        if (!d || PyList_Append(list, d) < 0) Py_CLEAR(list);
        Py_XDECREF(d);
    }
    return list;
}

// space(index) -> the space in a slot, as a dict; None if there is none.
static PyObject* segment_space(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : seen(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES) return raise("ValueError", "no such space");
    PyObject* record = space_record(*s, u32(i));
    if (!record && !PyErr_Occurred()) Py_RETURN_NONE;
    return record;
}

// add_space(directory.NewSpace) -> index. The directory lock is held.
static PyObject* segment_add_space(PyObject* self, PyObject* made) {
    const char *name, *path;
    Py_ssize_t name_n, path_n;
    unsigned kind, flags;
    int owned;
    unsigned long long pages, max_pages, version;
    PyObject* state;
    FileRecord file;
    if (!PyTuple_Check(made)) return raise("TypeError", "a new space is described by a tuple");
    if (!PyArg_ParseTuple(made, "s#s#IIpKKOK:add_space", &name, &name_n, &path, &path_n, &kind, &flags, &owned, &pages,
                          &max_pages, &state, &version) ||
        !file.parse(state))
        return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    u32 index = free_slot(*s);
    if (index == NONE)
        return raise("TooManySpaces",
                     "a pool holds %u spaces and all are taken; remove one (space.remove()), or, if a billion have "
                     "been opened in their slots, create the pool anew",
                     MAX_SPACES);
    SpaceSlot* t = &s->spaces[index];
    if (name_n >= Py_ssize_t(sizeof t->name) || path_n >= Py_ssize_t(sizeof t->path))
        return raise("ValueError", "a space's name has at most %zu bytes, its path %zu", sizeof t->name - 1,
                     sizeof t->path - 1);
    u32 first = free_run(*s, max_pages);
    if (first == NONE || pages > max_pages)
        return raise(
            "SpaceFull",
            "the pool can translate %llu pages in all and has no run of %llu left; remove a space, give this one a "
            "smaller max_pages, or create the pool with a larger one",
            (unsigned long long)s->g.max_pages, max_pages);
    u64 sum[COUNTERS];
    if (!sum_counters(*s, sum)) return raise_unsettled();
    int r;
    {
        Released unlocked(S(self));
        r = begin_space(*s, *t, first, u32(max_pages), pages);
    }
    if (r) return raise_errno(r, "the space's entries cannot be allocated");
    strncpy(t->name, name, sizeof t->name - 1);
    strncpy(t->path, path, sizeof t->path - 1);
    t->kind.store_relaxed(kind);
    t->flags.store_relaxed(flags);
    t->owner.store_relaxed(owned ? s->me : 0);
    t->owner_generation.store_relaxed(owned ? s->client().generation.load_relaxed() : 0);
    t->version.store_relaxed(version);
    t->stored.store_relaxed(kind == KIND_SCRATCH || kind == KIND_DERIVED ? 0 : pages);
    file.store(*t);
    auto& counted = reinterpret_cast<Counters*>(sum)->space[index];
    t->opened_ns.store_relaxed(prim::realtime_ns());
    t->hits_before.store_relaxed(counted.hits.load_relaxed());
    t->misses_before.store_relaxed(counted.misses.load_relaxed());
    finish_space(*t, pages);
    return PyLong_FromUnsignedLong(index);
}

// Whether somebody is writing, loading or flushing a page of the space right now. WouldDeadlock if it is this thread.
static PyObject* segment_space_in_use(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES) return raise("ValueError", "no such space");
    u64 first, n;
    if (!entries_of(*s, s->spaces[i], first, n)) return raise_status(Status::CORRUPT, 0), nullptr;
    for (u64 page = first; page < first + n && s->has_page(u32(page)); page++) {
        u64 e = s->entries[page].load_acquire();
        u32 c = entry::owner(e) ? entry::owner(e) : entry::state(e) == RESIDENT ? entry::flusher(e) : 0;
        if (!c || !seems_alive(*s, c)) continue;
        if (raise_own_use(S(self), u32(i), first, 0, n)) return nullptr;
        Py_RETURN_TRUE;
    }
    Py_RETURN_FALSE;
}

// The directory lock is held: pages that somebody uses are not waited for, and removed when that is over.
static PyObject* segment_remove_space(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES) return raise("ValueError", "no such space");
    u32 freed = 0;
    bool ok;
    {
        Released unlocked(S(self));
        ok = remove_space(*s, u32(i), 0, freed);
    }
    return Py_BuildValue("(OI)", ok ? Py_True : Py_False, freed);
}

// Drops the clean pages of a space, whose flush lock is held. It waits for pages that are being written, so the
// directory lock is not held: should the space be removed meanwhile, pages of another one are dropped, and loaded
// again.
static PyObject* segment_drop_clean(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES) return raise("ValueError", "no such space");
    SpaceSlot& t = s->spaces[i];
    u64 first, n;
    if (!entries_of(*s, t, first, n)) return raise_status(Status::CORRUPT, 0), nullptr;
    if (raise_own_use(S(self), u32(i), first, 0, n)) return nullptr;
    u32 freed = 0;
    Status status;
    {
        Released unlocked(S(self));
        status = drop_clean(*s, u32(first), n, freed);
    }
    return Py_BuildValue("(OI)", status == Status::OK ? Py_True : Py_False, freed);
}

// record_store(space, stored pages or 0, flush open, state or None): what is known of the file. The flush lock is held.
static PyObject* segment_record_store(PyObject* self, PyObject* args) {
    unsigned i;
    unsigned long long stored;
    int open;
    PyObject* state;
    FileRecord file;
    if (!PyArg_ParseTuple(args, "IKpO:record_store", &i, &stored, &open, &state)) return nullptr;
    if (state != Py_None && !file.parse(state)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES) return raise("ValueError", "no such space");
    record_store(s->spaces[i], stored, open, state == Py_None ? nullptr : &file);
    Py_RETURN_NONE;
}

// The first clean page among the entries [first, first + count) whose first `bytes` are not what the file has at
// its place, counted from `first`; ~0 when there is none. `buffer` has room for a page.
static u64 first_changed(Segment& s, u32 first, u64 count, int fd, u32 bytes, u8* buffer) {
    for (u64 i = 0; i < count; i++) {
        if (!s.has_page(u32(first + i))) break;
        u64 e = s.entries[first + i].load_acquire();
        u32 f;
        if (entry::state(e) != RESIDENT || (e & entry::DIRTY) || pin(s, u32(first + i), f) != Status::OK) continue;
        ssize_t got = prim::read_at(fd, buffer, s.g.page_size, i << s.g.page_shift);
        bool dirty = s.entries[first + i].load_acquire() & entry::DIRTY;  // written meanwhile: no longer the file's
        bool same = dirty || (got >= ssize_t(bytes) && memcmp(buffer, s.page_data(f), bytes) == 0);
        unpin(s, f);
        if (!same) return i;
    }
    return ~u64(0);
}

// first_changed(space, fd, bytes) -> the number of the first clean page in memory whose first `bytes` the file
// does not have, -1 when there is none. The flush lock is held.
static PyObject* segment_first_changed(PyObject* self, PyObject* args) {
    unsigned i, bytes;
    int fd;
    if (!PyArg_ParseTuple(args, "IiI:first_changed", &i, &fd, &bytes)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES || bytes > s->g.page_size)
        return raise("ValueError", "no such space, or more bytes than a page has");
    SpaceSlot& t = s->spaces[i];
    u64 first, n;
    if (!entries_of(*s, t, first, n)) return raise_status(Status::CORRUPT, 0), nullptr;
    auto room = static_cast<u8*>(PyMem_Malloc(2 * s->g.page_size));  // so that O_DIRECT finds it aligned
    if (!room) return PyErr_NoMemory();
    u8* buffer = room + (-reinterpret_cast<uintptr_t>(room) & (s->g.page_size - 1));
    u64 found;
    {
        Released unlocked(S(self));
        found = first_changed(*s, u32(first), std::min(n, t.stored.load_acquire()), fd, bytes, buffer);
    }
    PyMem_Free(room);
    return PyLong_FromLongLong(found == ~u64(0) ? -1 : static_cast<long long>(found));
}

// Raises the page count of a space (its file has grown). The directory lock is held.
static PyObject* segment_grow_space(PyObject* self, PyObject* args) {
    unsigned i;
    unsigned long long pages;
    if (!PyArg_ParseTuple(args, "IK:grow_space", &i, &pages)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES) return raise("ValueError", "no such space");
    SpaceSlot& t = s->spaces[i];
    if (pages > t.max_pages.load_relaxed())
        return raise("SpaceFull",
                     "the file has %llu pages, the space was opened for %u; remove the space and open it with a larger "
                     "max_pages",
                     pages, t.max_pages.load_relaxed());
    int r;
    {
        Released unlocked(S(self));
        r = plug_entries(*s, t, pages);
    }
    if (r) return raise_errno(r, "the space's entries cannot be allocated");
    u64 e = t.span.load_acquire();
    while ((e & PAGES_MASK) < pages && !t.span.cas_seq_cst(e, (e & ~PAGES_MASK) | pages)) {
    }
    Py_RETURN_NONE;
}

PyMethodDef directory_methods[] = {{"spaces", entered<segment_spaces, SegmentEntry>, METH_NOARGS, ""},
                                   {"space", entered<segment_space, SegmentEntry>, METH_O, ""},
                                   {"add_space", entered<segment_add_space, SegmentEntry>, METH_O, ""},
                                   {"space_in_use", entered<segment_space_in_use, SegmentEntry>, METH_O, ""},
                                   {"remove_space", entered<segment_remove_space, SegmentEntry>, METH_O, ""},
                                   {"drop_clean", entered<segment_drop_clean, SegmentEntry>, METH_O, ""},
                                   {"record_store", entered<segment_record_store, SegmentEntry>, METH_VARARGS, ""},
                                   {"first_changed", entered<segment_first_changed, SegmentEntry>, METH_VARARGS, ""},
                                   {"grow_space", entered<segment_grow_space, SegmentEntry>, METH_VARARGS, ""},
                                   {nullptr, nullptr, 0, nullptr}};

}  // namespace bp
