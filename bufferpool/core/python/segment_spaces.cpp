// The directory: the spaces of a segment. Python code takes the directory lock (held.cpp);
// everything that changes a slot is here.
#include "python/py.h"

#include "protocol/check.h"
#include "protocol/client.h"
#include "protocol/kernel_room.h"
#include "protocol/shrink.h"
#include "protocol/spaces.h"
#include "python/file_record.h"

namespace bp {

// A space's name or path, where the whole of it stands.
struct Text {
    const char* at;
    size_t most;

    u64 sum() const { return text_sum(at, most); }
    PyObject* string() const { return PyUnicode_DecodeUTF8(at, Py_ssize_t(strnlen(at, most)), "surrogateescape"); }
};

template <size_t SHORT, size_t LONG>
Text text_of(SegmentObject* seg, u32 i, char (SpaceTexts::*part)[SHORT], char (LongTexts::*whole)[LONG]) {
    Segment& s = *seg->s;
    const char* at = s.texts[i].*part;
    if (strnlen(at, SHORT) == SHORT)
        if (LongTexts* texts = long_texts_of(s, s.spaces[i])) {
            const char* found = texts->*whole;
            if (sees(seg, u64(reinterpret_cast<const u8*>(found) - s.base))) return {found, LONG};
        }
    return {at, SHORT};
}

// The slots that one may look at: an observer believes the kernel about where there is memory.
static bool sees_slot(SegmentObject* seg, u32 i) {
    const Geometry& g = seg->s->g;
    return sees(seg, g.spaces_at + i * sizeof(SpaceSlot)) && sees(seg, g.texts_at + i * sizeof(SpaceTexts));
}

static PyObject* raise_overwritten(u32 i) {
    return raise("SegmentCorrupt",
                 "space slot %u of the segment was overwritten; save what you need through handles that are "
                 "open, and remove the segment",
                 i);
}

// Is there a space in the slot whose fields are not as they were when it was opened?
static bool is_overwritten(Segment& s, u32 i) {
    SpaceSlot& t = s.spaces[i];
    u64 span = t.span.load_acquire();
    if (!t.is_live() || space_sum(t) == t.sum.load_relaxed()) return false;
    return t.is_live() && t.span.load_acquire() == span;  // else it was removed while we looked
}

// The space in a slot, as a dict. Null without an exception: there is none, or not this one any more.
static PyObject* space_record(SegmentObject* seg, u32 i) {
    Segment& s = *seg->s;
    SpaceSlot& t = s.spaces[i];
    u64 span = t.span.load_acquire();
    if (!t.is_live()) return nullptr;
    Text name = text_of(seg, i, &SpaceTexts::name, &LongTexts::name);
    Text path = text_of(seg, i, &SpaceTexts::path, &LongTexts::path);
    bool sound = name.sum() == t.name_sum.load_relaxed() && path.sum() == t.path_sum.load_relaxed();
    if (is_overwritten(s, i) || (!sound && t.is_live() && t.span.load_acquire() == span))
        return raise_overwritten(i);
    if (!sound) return nullptr;
    bool mine = s.me && t.owner.load_relaxed() == s.me &&
                t.owner_generation.load_relaxed() == s.client().generation.load_relaxed();
    // An owner that is not a live client is no flusher.
    u32 flusher = t.flush_lock.word.load_relaxed() & lock_word::OWNER;
    auto k = [](const Atomic<u64>& a) { return (unsigned long long)a.load_relaxed(); };
    return Py_BuildValue(
        "{s:I,s:N,s:N,s:I,s:I,s:I,s:K,s:I,s:I,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:O,s:I,s:K,s:K,s:K}",
        "index", i, "name", name.string(), "path", path.string(),
        "kind", t.kind.load_relaxed(), "flags", t.flags.load_relaxed(), "owner", t.owner.load_relaxed(), "generation",
        (unsigned long long)space_generation(span), "first_entry", t.first_entry.load_relaxed(), "max_pages",
        t.max_pages.load_relaxed(), "pages", (unsigned long long)space_pages(span), "stored", k(t.stored),
        "entries_ready", k(t.entries_ready), "device", k(t.device), "inode", k(t.inode), "size_bytes", k(t.size_bytes),
        "mtime_ns", k(t.mtime_ns), "ctime_ns", k(t.ctime_ns), "doubt", k(t.doubt), "opened_ns", k(t.opened_ns),
        "hits_before", k(t.hits_before), "misses_before", k(t.misses_before), "version", k(t.version), "mine",
        mine ? Py_True : Py_False, "flusher", is_live_client(s, flusher) ? flusher : 0, "flush_since_ns",
        k(t.flush_since_ns), "limit", k(t.limit), "reserve", k(t.reserve));
}

// count_failure(index, generation, flush, class): a store has failed to load a page, or to take dirty pages.
static PyObject* segment_count_failure(PyObject* self, PyObject* args) {
    unsigned index, error_class;
    unsigned long long generation;
    int flush;
    if (!PyArg_ParseTuple(args, "IKpI:count_failure", &index, &generation, &flush, &error_class)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (index >= s->space_count() || error_class >= ERROR_CLASSES) return raise("ValueError", "no such space or class");
    SpaceSlot& t = s->spaces[index];
    if (t.is_live() && space_generation(t.span.load_acquire()) == generation)
        (flush ? t.flush_failures : t.load_failures)[error_class].add_relaxed(1);
    Py_RETURN_NONE;
}

// failures(index) -> the failed loads of a space by class, and the failed flushes
static PyObject* segment_failures(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : seen(S(self));
    if (!s) return nullptr;
    if (i >= s->space_count() || !sees_slot(S(self), u32(i))) return raise("ValueError", "no such space");
    PyObject* both = PyTuple_New(2);
    for (int flush = 0; both && flush < 2; flush++) {
        auto& counts = flush ? s->spaces[i].flush_failures : s->spaces[i].load_failures;
        PyObject* row = PyTuple_New(ERROR_CLASSES);
        for (u32 k = 0; row && k < ERROR_CLASSES; k++) {
            PyObject* n = PyLong_FromUnsignedLongLong(counts[k].load_relaxed());
            if (n) PyTuple_SET_ITEM(row, k, n);
            else Py_CLEAR(row);
        }
        if (row) PyTuple_SET_ITEM(both, flush, row);
        else Py_CLEAR(both);
    }
    return both;
}

// misses(index) -> the misses of the space in this slot since it was opened. Unlike counters(), it sums nothing else.
static PyObject* segment_misses(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (i >= s->space_count()) return raise("ValueError", "no such space");
    u64 hits, misses;
    if (!sum_uses(*s, u32(i), hits, misses)) return raise_unsettled();
    u64 before = s->spaces[i].misses_before.load_relaxed();
    return PyLong_FromUnsignedLongLong(misses > before ? misses - before : 0);
}

// own_uses(index) -> the hits and misses that this client has counted in this slot. It looks at no other client.
static PyObject* segment_own_uses(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (i >= s->space_count() || !s->my_uses) return raise("ValueError", "no such space");
    const Uses& own = s->my_uses[i];
    return Py_BuildValue("(KK)", (unsigned long long)own.hits.load_relaxed(),
                         (unsigned long long)own.misses.load_relaxed());
}

// The live spaces for which `wanted(slot)`, as dicts.
template <class Wanted>
static PyObject* list_spaces(SegmentObject* seg, Wanted wanted) {
    Segment* s = seen(seg);
    if (!s || !refresh_readable(seg)) return nullptr;
    PyObject* list = PyList_New(0);
    for (u32 i = 0, n = s->space_count(); list && i < n; i++) {
        if (!sees_slot(seg, i)) continue;
        bool bad = is_overwritten(*s, i);
        if (!bad && !wanted(s->spaces[i])) continue;
        PyObject* d = bad ? raise_overwritten(i) : space_record(seg, i);
        if (d ? PyList_Append(list, d) < 0 : PyErr_Occurred() != nullptr) Py_CLEAR(list);
        Py_XDECREF(d);
    }
    return list;
}

static PyObject* segment_spaces(PyObject* self, PyObject*) {
    return list_spaces(S(self), [](SpaceSlot&) { return true; });
}

static PyObject* segment_spaces_named(PyObject* self, PyObject* arg) {
    char* name;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(arg, &name, &size) < 0) return nullptr;
    u64 sum = text_sum(name, size_t(size));
    return list_spaces(S(self), [sum](SpaceSlot& t) { return t.name_sum.load_relaxed() == sum; });
}

// spaces_of_file(device, inode)
static PyObject* segment_spaces_of_file(PyObject* self, PyObject* args) {
    unsigned long long device, inode;
    if (!PyArg_ParseTuple(args, "KK:spaces_of_file", &device, &inode)) return nullptr;
    return list_spaces(S(self), [=](SpaceSlot& t) {
        return t.kind.load_relaxed() == KIND_FILE && t.device.load_relaxed() == device &&
               t.inode.load_relaxed() == inode;
    });
}

// space(index) -> the space in the slot; None if there is none
static PyObject* segment_space(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : seen(S(self));
    if (!s || !refresh_readable(S(self))) return nullptr;
    PyObject* d = i < s->space_count() && sees_slot(S(self), u32(i)) ? space_record(S(self), u32(i)) : nullptr;
    if (d || PyErr_Occurred()) return d;
    Py_RETURN_NONE;
}

// is_current(index, generation) -> whether that space is still in the slot
static PyObject* segment_is_current(PyObject* self, PyObject* args) {
    unsigned i;
    unsigned long long generation;
    if (!PyArg_ParseTuple(args, "IK:is_current", &i, &generation)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    bool there = i < s->space_count() && s->spaces[i].is_live() &&
                 space_generation(s->spaces[i].span.load_acquire()) == generation;
    return PyBool_FromLong(there);
}

// How many page numbers no space has.
static PyObject* segment_free_pages(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    u64 taken = 0;
    for (u32 i = 0, n = s->space_count(); i < n; i++)
        if (s->spaces[i].state.load_acquire() != SPACE_FREE) taken += s->spaces[i].max_pages.load_relaxed();
    return PyLong_FromUnsignedLongLong(s->g.max_pages - std::min(taken, s->g.max_pages));
}

// How many spaces have been removed so far.
static PyObject* segment_removals(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    return s ? PyLong_FromUnsignedLongLong(s->header->removals.load_seq_cst()) : nullptr;
}

// A slot for a new space of so many pages, and a run of entries. False: an exception is set.
static bool has_place(SegmentObject* seg, u64 pages, u64 max_pages, bool needs_long_texts, u64 deadline_ns,
                      NewPlace& at) {
    Segment& s = *seg->s;
    {
        Released unlocked(seg);
        Deadline deadline(deadline_ns);
        grow_with_room(s, [&] { return at = find_place(s, max_pages, needs_long_texts), at.error; });
    }
    if (at.error == -EINTR) return raise_given_up(s, deadline_ns, "memory for the slots of spaces"), false;
    if (at.error) return raise_errno(at.error, "the slots of more spaces cannot be allocated"), false;
    if (at.no_memory) return PyErr_NoMemory(), false;
    if (at.index == NONE) {
        raise("TooManySpaces",
              "a pool has %u slots for spaces and all are in use; remove one (space.remove()), or, if a billion have "
              "been opened in their slots, create the pool anew",
              MAX_SPACES);
        return false;
    }
    if (at.first == NONE || pages > max_pages) {
        raise("SpaceFull",
              "the pool can translate %llu pages in all and has no run of %llu left; remove a space, give this one a "
              "smaller max_pages, or create the pool with a larger one",
              (unsigned long long)s.g.max_pages, (unsigned long long)max_pages);
        return false;
    }
    return true;
}

// Copies a text to its place, as far as it fits; the rest of the place becomes zeros.
template <size_t MOST>
void put_text(char (&place)[MOST], const char* text, size_t bytes) {
    size_t n = std::min(bytes, MOST);
    memcpy(place, text, n);
    memset(place + n, 0, MOST - n);
}

// add_space(directory.NewSpace, timeout) -> index. The directory lock is held.
static PyObject* segment_add_space(PyObject* self, PyObject* args) {
    PyObject* made;
    double timeout;
    if (!PyArg_ParseTuple(args, "Od:add_space", &made, &timeout)) return nullptr;
    u64 deadline_ns = deadline_in(timeout);
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
    if (name_n >= Py_ssize_t(LONGEST_TEXT) || path_n >= Py_ssize_t(LONGEST_TEXT))
        return raise("ValueError", "the name and the path of a space have at most %u bytes", LONGEST_TEXT - 1);
    bool is_long = name_n >= Py_ssize_t(SHORT_TEXT) || path_n >= Py_ssize_t(SHORT_TEXT);
    NewPlace at;
    if (!has_place(S(self), pages, max_pages, is_long, deadline_ns, at)) return nullptr;
    auto fill = [&](SpaceSlot& t) {
        u64 hits, misses;
        if (!sum_uses(*s, at.index, hits, misses)) return false;
        put_text(s->texts[at.index].name, name, size_t(name_n));
        put_text(s->texts[at.index].path, path, size_t(path_n));
        if (LongTexts* texts = is_long ? long_texts_of(*s, t) : nullptr) {
            put_text(texts->name, name, size_t(name_n));
            put_text(texts->path, path, size_t(path_n));
        }
        t.name_sum.store_relaxed(text_sum(name, size_t(name_n)));
        t.path_sum.store_relaxed(text_sum(path, size_t(path_n)));
        t.kind.store_relaxed(kind);
        t.flags.store_relaxed(flags);
        t.owner.store_relaxed(owned ? s->me : 0);
        t.owner_generation.store_relaxed(owned ? s->client().generation.load_relaxed() : 0);
        t.version.store_relaxed(version);
        t.stored.store_relaxed(kind == KIND_SCRATCH || kind == KIND_DERIVED ? 0 : pages);
        file.store(t);
        t.opened_ns.store_relaxed(prim::realtime_ns());
        t.hits_before.store_relaxed(hits);
        t.misses_before.store_relaxed(misses);
        for (auto& n : t.load_failures) n.store_relaxed(0);
        for (auto& n : t.flush_failures) n.store_relaxed(0);
        return true;
    };
    if (!open_space(*s, at, pages, max_pages, fill)) return raise_unsettled();
    return PyLong_FromUnsignedLong(at.index);
}

// set_share(index, generation, limit, reserve) -> ShareSet: the space's share in bytes. 0: none.
static PyObject* segment_set_share(PyObject* self, PyObject* args) {
    unsigned index;
    unsigned long long generation, limit, reserve;
    double timeout;
    if (!PyArg_ParseTuple(args, "IKKKd:set_share", &index, &generation, &limit, &reserve, &timeout)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (index >= s->space_count()) return raise("ValueError", "no such space");
    ShareSet done = ShareSet::NO_SPACE;
    bool locked;
    u64 deadline_ns = deadline_in(timeout);
    {
        Released unlocked(S(self));
        Deadline deadline(deadline_ns);
        locked = lock_memory(*s);
        if (locked) {
            done = set_share(*s, index, generation, limit, reserve);
            unlock_memory(*s);
        }
    }
    return locked ? PyLong_FromLong(long(done)) : raise_given_up(*s, deadline_ns, "set_share");
}

// fit_share(index, timeout): evicts until the space has no more pages than its limit allows, as far as they can be
// evicted.
static PyObject* segment_fit_share(PyObject* self, PyObject* args) {
    unsigned i;
    double timeout;
    if (!PyArg_ParseTuple(args, "Id:fit_share", &i, &timeout)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    u64 deadline_ns = deadline_in(timeout);
    if (i >= s->space_count()) return raise("ValueError", "no such space");
    Status status;
    {
        Released unlocked(S(self));
        Deadline deadline(deadline_ns);
        status = fit_share(*s, i);
    }
    if (status != Status::OK) return raise_given_up(*s, deadline_ns, "set_share");
    Py_RETURN_NONE;
}

// Whether a page of the space is being written, loaded or flushed. Raises WouldDeadlock if this thread does it.
static PyObject* segment_space_in_use(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (i >= s->space_count()) return raise("ValueError", "no such space");
    u64 first, n;
    if (!entries_of(*s, s->spaces[i], first, n)) return raise_status(Status::CORRUPT, 0), nullptr;
    EntryLook look(*s);
    for (u64 page = s->next_page(first, first + n); page < first + n; page = s->next_page(page + 1, first + n)) {
        u64 e = s->entries[page].load_acquire();
        u32 c = entry::owner(e) ? entry::owner(e) : entry::state(e) == RESIDENT ? entry::flusher(e) : 0;
        if (!c || !seems_alive(*s, c)) continue;
        if (raise_own_use(S(self), u32(i), first, 0, n)) return nullptr;
        Py_RETURN_TRUE;
    }
    Py_RETURN_FALSE;
}

// Under the directory lock, so it does not wait for pages in use: the space is removed when their use ends.
static PyObject* segment_remove_space(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (i >= s->space_count()) return raise("ValueError", "no such space");
    u32 freed = 0;
    bool ok;
    {
        Released unlocked(S(self));
        Patience patience(PATIENT_SLICES);
        ok = remove_space(*s, u32(i), 0, freed);
    }
    return Py_BuildValue("(OI)", ok ? Py_True : Py_False, freed);
}

// Drops the clean pages of a space, whose flush lock is held. It waits for pages that are being written, so the
// directory lock is not held: if the space is removed meanwhile, it may drop clean pages of another space, which are
// then loaded again.
static PyObject* segment_drop_clean(PyObject* self, PyObject* arg) {
    unsigned long i = PyLong_AsUnsignedLong(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (i >= s->space_count()) return raise("ValueError", "no such space");
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

// record_store(space, stored pages or 0, flush open, state or None): records the state of the file. Needs the flush
// lock, and the directory lock: without it the slot may be another space's by now.
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
    if (i >= s->space_count()) return raise("ValueError", "no such space");
    record_store(s->spaces[i], stored, open, state == Py_None ? nullptr : &file);
    Py_RETURN_NONE;
}

// The first clean page among the entries [first, first + count) whose first `bytes` differ from the file,
// counted from `first`; ~0 when there is none. `buffer` has the size of a page.
static u64 first_changed(Segment& s, u32 first, u64 count, int fd, u32 bytes, u8* buffer) {
    EntryLook look(s);
    for (u64 page = s.next_page(first, first + count); page < first + count;
         page = s.next_page(page + 1, first + count)) {
        u64 i = page - first;
        u64 e = s.entries[first + i].load_acquire();
        u32 f;
        if (entry::state(e) != RESIDENT || (e & entry::DIRTY) || pin(s, u32(first + i), f) != Status::OK) continue;
        ssize_t got = prim::read_at(fd, buffer, s.g.page_size, i << s.g.page_shift);
        bool dirty = s.entries[first + i].load_acquire() & entry::DIRTY;  // written meanwhile: it may differ
        bool same = dirty || (got >= ssize_t(bytes) && memcmp(buffer, s.page_data(f), bytes) == 0);
        unpin(s, f);
        if (!same) return i;
    }
    return ~u64(0);
}

// first_changed(space, fd, bytes) -> the number of the first clean page in memory whose first `bytes` differ from the
// file, -1 when there is none. Needs the flush lock.
static PyObject* segment_first_changed(PyObject* self, PyObject* args) {
    unsigned i, bytes;
    int fd;
    if (!PyArg_ParseTuple(args, "IiI:first_changed", &i, &fd, &bytes)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (i >= s->space_count() || bytes > s->g.page_size)
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
    if (i >= s->space_count()) return raise("ValueError", "no such space");
    SpaceSlot& t = s->spaces[i];
    if (pages > t.max_pages.load_relaxed())
        return raise("SpaceFull",
                     "the file has %llu pages, the space was opened for %u; remove the space and open it with a larger "
                     "max_pages",
                     pages, t.max_pages.load_relaxed());
    u64 e = t.span.load_acquire();
    while ((e & PAGES_MASK) < pages && !t.span.cas_seq_cst(e, (e & ~PAGES_MASK) | pages)) {
    }
    Py_RETURN_NONE;
}

PyMethodDef directory_methods[] = {
    {"spaces", entered<segment_spaces, SegmentEntry>, METH_NOARGS,
     "spaces($self, /)\n--\n\n"
     "The live spaces, each a dict of its slot's fields."},
    {"space", entered<segment_space, SegmentEntry>, METH_O,
     "space($self, index, /)\n--\n\n"
     "The space in a slot, as a dict; None if there is none."},
    {"spaces_named", entered<segment_spaces_named, SegmentEntry>, METH_O,
     "spaces_named($self, name, /)\n--\n\n"
     "The live spaces of a name: the shared one, and private ones of all clients."},
    {"spaces_of_file", entered<segment_spaces_of_file, SegmentEntry>, METH_VARARGS,
     "spaces_of_file($self, device, inode, /)\n--\n\n"
     "The live spaces of the file with this device and inode."},
    {"is_current", entered<segment_is_current, SegmentEntry>, METH_VARARGS,
     "is_current($self, index, generation, /)\n--\n\n"
     "Whether the space of this slot and generation still exists."},
    {"free_pages", entered<segment_free_pages, SegmentEntry>, METH_NOARGS,
     "free_pages($self, /)\n--\n\n"
     "How many page numbers no space has."},
    {"removals", entered<segment_removals, SegmentEntry>, METH_NOARGS,
     "removals($self, /)\n--\n\n"
     "How many spaces have been removed so far."},
    {"count_failure", entered<segment_count_failure, SegmentEntry>, METH_VARARGS,
     "count_failure($self, index, generation, flush, error_class, /)\n--\n\n"
     "Counts a failure of a space's store: of a flush, or of a load. Raises ValueError."},
    {"failures", entered<segment_failures, SegmentEntry>, METH_O,
     "failures($self, index, /)\n--\n\n"
     "The failures of a space's store, by class of error: (those of loads, those of flushes)."},
    {"misses", entered<segment_misses, SegmentEntry>, METH_O,
     "misses($self, index, /)\n--\n\n"
     "The misses of the space in this slot since it was opened, over all clients."},
    {"own_uses", entered<segment_own_uses, SegmentEntry>, METH_O,
     "own_uses($self, index, /)\n--\n\n"
     "The hits and misses that this client has counted in this slot."},
    {"add_space", entered<segment_add_space, SegmentEntry>, METH_VARARGS,
     "add_space($self, made, timeout, /)\n--\n\n"
     "Fills a slot with a new space (directory.NewSpace); returns the slot's number. The caller holds the\n"
     "directory lock. Raises TooManySpaces, SpaceFull, SharedMemoryFull; WaitTimeout after so many seconds."},
    {"space_in_use", entered<segment_space_in_use, SegmentEntry>, METH_O,
     "space_in_use($self, space, /)\n--\n\n"
     "Whether a page of the space is being written, loaded or flushed. Raises WouldDeadlock if this thread does\n"
     "it."},
    {"set_share", entered<segment_set_share, SegmentEntry>, METH_VARARGS,
     "set_share($self, space, generation, limit, reserve, timeout, /)\n--\n\n"
     "Sets the limit and the reserve of a space in bytes, 0 for none; returns a ShareSet (protocol/shares.h)."},
    {"fit_share", entered<segment_fit_share, SegmentEntry>, METH_VARARGS,
     "fit_share($self, space, timeout, /)\n--\n\n"
     "Evicts pages of a space until it has no more than its limit, as far as they can be evicted."},
    {"remove_space", entered<segment_remove_space, SegmentEntry>, METH_O,
     "remove_space($self, space, /)\n--\n\n"
     "Removes a space that no client uses: (whether it was removed, frames freed). The caller holds the\n"
     "directory lock."},
    {"drop_clean", entered<segment_drop_clean, SegmentEntry>, METH_O,
     "drop_clean($self, space, /)\n--\n\n"
     "Drops the clean pages of a space: (whether all were dropped, frames freed). The caller holds its\n"
     "flush lock."},
    {"record_store", entered<segment_record_store, SegmentEntry>, METH_VARARGS,
     "record_store($self, space, stored, flush_open, state, /)\n--\n\n"
     "Records how many pages the store has at least, and the state of the file (a FileState, or None). The\n"
     "caller holds the flush lock and the directory lock."},
    {"first_changed", entered<segment_first_changed, SegmentEntry>, METH_VARARGS,
     "first_changed($self, space, fd, bytes, /)\n--\n\n"
     "The first clean page in memory whose first ``bytes`` differ from the file; -1 if there is none. The\n"
     "caller holds the flush lock."},
    {"grow_space", entered<segment_grow_space, SegmentEntry>, METH_VARARGS,
     "grow_space($self, space, pages, /)\n--\n\n"
     "Raises the number of pages of a space whose file has grown. The caller holds the directory lock. Raises\n"
     "SpaceFull."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace bp
