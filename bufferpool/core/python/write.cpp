// Write: a private copy of a page, published as a whole when its block ends.
// Nothing of the segment is ever writable from Python: the copy is ordinary
// memory, which the caller may keep after the block, and which is read-only then.
#include "python/write.h"

namespace bp {

// The list of open writes, by which a thread that would wait for itself is found.
static WriteObject open_writes = [] {
    WriteObject w{};
    return w;
}();

bool thread_writes(SegmentObject* seg, u32 index, u64 generation, u64 first, u64 count) {
    Guard guard(lists);
    for (WriteObject* w = open_writes.next; w && w != &open_writes; w = w->next)
        if (w->space->seg == seg && w->space->index == index && w->space->generation == generation &&
            w->page_no >= first && w->page_no - first < count && w->thread == this_thread() &&
            w->kind == WriteKind::EDIT)
            return true;
    return false;
}

// A wait for a page that this thread itself is writing, loading or flushing would never end. True, with
// WouldDeadlock set, if this thread does that with one of these pages of a space.
bool raise_own_use(SegmentObject* seg, u32 index, u64 first_entry, u64 first, u64 count) {
    u64 generation = space_generation(seg->s->spaces[index].span.load_acquire());
    bool writes = thread_writes(seg, index, generation, first, count);
    if (!writes && !thread_uses(*seg->s, u32(first_entry + first), count)) return false;
    raise("WouldDeadlock", "this thread is %s one of the pages; do this when that is over",
          writes ? "in a block that writes" : "in the midst of a load or a flush (a loader or a store called this) of");
    return true;
}

PyObject* new_write(SpaceObject* sp, u64 page_no, WriteKind kind, u64 timeout_ns) {
    auto w = PyObject_New(WriteObject, &WriteType);
    if (!w) return nullptr;
    w->space = sp;
    Py_INCREF(sp);
    w->page = nullptr;
    w->page_no = page_no;
    w->lsn = 0;
    w->timeout_ns = timeout_ns;
    w->thread = 0;
    w->forks = sp->seg->forks;
    w->kind = kind;
    w->open = false;
    w->done = false;
    w->blank = false;
    w->is_counted = false;
    w->lsn_set = false;
    w->turn.clear();
    w->next = w->prev = nullptr;
    return reinterpret_cast<PyObject*>(w);
}

static void set_open(WriteObject* w) {
    w->open = true;
    w->space->seg->writes++;
    w->thread = this_thread();
    Guard guard(lists);
    if (!open_writes.next) open_writes.next = open_writes.prev = &open_writes;
    w->prev = &open_writes;
    w->next = open_writes.next;
    w->next->prev = w;
    open_writes.next = w;
}

void set_closed(WriteObject* w) {
    if (!w->open) return;
    w->open = false;
    if (w->forks == w->space->seg->forks) w->space->seg->writes--;
    Guard guard(lists);
    w->next->prev = w->prev;
    w->prev->next = w->next;
}

// The block has ended: what is written to the copy from here on would be lost, so numpy refuses it. The caller may keep
// the array, and read it.
void end_copy(WriteObject* w) {
    w->done = true;
    if (w->page) PyArray_CLEARFLAGS(reinterpret_cast<PyArrayObject*>(w->page), NPY_ARRAY_WRITEABLE);
    Py_CLEAR(w->page);
}

void raise_removed(SpaceObject* sp, u64 page_no) {
    PyObject* message = PyObject_CallMethod(reinterpret_cast<PyObject*>(sp), "_removed", nullptr);
    if (!message) return;
    raise("SpaceRemoved", "page %llu was being written, and nothing of it is published: %U",
          (unsigned long long)page_no, message);
    Py_DECREF(message);
}

PyObject* raise_parents(u64 page_no) {
    return raise("WrongProcess",
                 "page %llu is being written by the parent process; in a forked child open a write of its own",
                 (unsigned long long)page_no);
}

PyObject* raise_not_ours(WriteObject* w) {
    if (w->space->seg->s) return raise_parents(w->page_no);
    return raise("PoolClosed", "the pool was closed while page %llu was being written; nothing is published",
                 (unsigned long long)w->page_no);
}

// The Entry of a method that may wait, so that another thread may call one meanwhile. Opening a Write that another
// thread is opening raises; the end of the block waits until such a thread has left.
class WriteEntry {
    WriteObject* w_;
    bool mine_ = false;
    Use use_;

protected:
    WriteEntry(PyObject* self, bool ends) : w_(reinterpret_cast<WriteObject*>(self)), use_(w_->space->seg, HELD) {
        for (;;) {
            mine_ = w_->turn.take();
            if (mine_ || !ends || !w_->open) break;
            Py_BEGIN_ALLOW_THREADS prim::nap(20'000);
            Py_END_ALLOW_THREADS
        }
        if (!mine_)
            raise("ValueError", "another thread is opening this Write; each thread that writes needs one of its own");
    }

public:
    ~WriteEntry() {
        if (mine_) w_->turn.give_back();
    }
    bool ok() const { return mine_; }
};
struct WriteBegin : WriteEntry {
    explicit WriteBegin(PyObject* self) : WriteEntry(self, false) {}
};
struct WriteEnd : WriteEntry {
    explicit WriteEnd(PyObject* self) : WriteEntry(self, true) {}
};

PyObject* write_enter(PyObject* self, PyObject*) {
    auto w = reinterpret_cast<WriteObject*>(self);
    SpaceObject* sp = w->space;
    if (w->open || w->done) return raise("ValueError", "a Write is used once; call write() or append() again");
    if (ready_space(sp) < 0 || !may_work(sp->seg)) return nullptr;
    w->forks = sp->seg->forks;
    Segment& s = *sp->seg->s;
    Py_INCREF(sp->dtype);
    w->page = PyArray_NewFromDescr(&PyArray_Type, sp->dtype, 1, &sp->items, nullptr, nullptr, 0, nullptr);
    if (!w->page) return nullptr;
    void* to = PyArray_DATA(reinterpret_cast<PyArrayObject*>(w->page));
    if (w->kind != WriteKind::EDIT) {
        memset(to, 0, s.g.page_size);
    } else {
        u32 frame;
        OwnHooks hooks{{sp, w->page_no, prim::now_ns() + w->timeout_ns}};
        Busy busy(sp->seg);
        Touches touches(sp);
        bool backed = is_backed(sp, w->page_no) || back_entry(sp, w->page_no, hooks.deadline_ns) == 0;
        if (!backed || answer(own_page(s, place_of(sp, w->page_no), Access{}, hooks, frame), sp, w->page_no) < 0) {
            Py_CLEAR(w->page);
            return nullptr;
        }
        if (w->blank) memset(to, 0, s.g.page_size);
        else memcpy(to, sp->seg->read_base + (u64(frame) << s.g.page_shift), s.g.page_size);
        if (!w->lsn_set) w->lsn = s.frames[frame].lsn.load_relaxed();
    }
    set_open(w);
    Py_INCREF(w->page);
    return w->page;
}

void write_abort(WriteObject* w) {
    if (is_ours(w) && w->space->seg->s->keeps_slot()) {
        if (w->kind == WriteKind::APPEND) return_numbers(place_of(w->space, 0), w->page_no, w->page_no + 1);
        else if (w->kind == WriteKind::EDIT && w->open) end_write(*w->space->seg->s, entry_of(w->space, w->page_no));
        if (w->is_counted) not_kept(*w->space->seg->s, w->counted);
    }
    w->is_counted = false;
    set_closed(w);
    end_copy(w);
}

// May one more page be kept that cannot be evicted, without using the other spaces' share? If not, Python reaps or
// raises.
bool may_keep(Version& v) {
    SpaceObject* sp = v.sp;
    Segment& s = *sp->seg->s;
    for (;;) {
        u64 e = v.kind == WriteKind::APPEND ? 0 : s.entries[entry_of(sp, v.page_no)].load_acquire();
        if (!keeps_written(space_slot(sp)) || (entry::state(e) == RESIDENT && (e & entry::DIRTY))) return true;
        ScratchShare share{.is_own = is_own(s, space_slot(sp))};
        SpaceHooks hooks{sp, v.page_no};
        Status status = hooks.unlocked([&] { return may_keep_one(s, share); });
        if (status == Status::OK) return v.counted = share, v.is_counted = true;
        if (status == Status::NO_MEMORY) return PyErr_NoMemory(), false;
        const char* what = share.own_is_full ? "own_scratch" : "scratch";
        PyObject* r = PyObject_CallFunction(sp->seg->on_exhausted, "sIIIidI", what, 0, share.used, share.most, 0, 0.0,
                                            share.budget);
        if (!r) return false;
        Py_DECREF(r);
        if (!opened(sp->seg)) return false;
        if (!is_ours(sp->seg, v.forks)) return raise_parents(v.page_no), false;
    }
}

static int publish_version(Version v) {
    SpaceObject* sp = v.sp;
    if (!may_work(sp->seg)) return -1;
    Busy busy(sp->seg);
    Touches touches(sp);
    Segment& s = *sp->seg->s;
    Place at = place_of(sp, v.page_no);
    u64 deadline_ns = prim::now_ns() + v.timeout_ns;
    if (at.open() && !is_backed(sp, v.page_no) && back_entry(sp, v.page_no, deadline_ns) < 0) return -1;
    Image image{!sp->discardable, sp->discardable, v.lsn};
    PublishHooks hooks{{{sp, v.page_no, deadline_ns}}, v.forks};
    Status status = Status::REMOVED;
    if (at.open() && !may_keep(v)) return -1;
    if (at.open())
        status = v.kind == WriteKind::APPEND  ? append_page(s, at, v.page_no, v.bytes, image, hooks)
                 : v.kind == WriteKind::FRESH ? replace_page(s, at, v.bytes, image, !v.lsn_set, hooks)
                                              : publish_page(s, at, v.bytes, image, hooks);
    bool was_dirty = v.kind != WriteKind::EDIT && hooks.was_dirty;
    if (!is_ours(sp->seg, v.forks)) {
        // In a child that foreign code has forked, the count is its parent's.
    } else if (v.is_counted && (status != Status::OK || was_dirty)) {
        not_kept(s, v.counted);
    } else if (!v.is_counted && status == Status::OK && v.kind != WriteKind::EDIT && !was_dirty &&
               keeps_written(space_slot(sp))) {
        replaced_absent(s, is_own(s, space_slot(sp)));
    }
    if (status != Status::REMOVED) return answer(status, sp, v.page_no);
    raise_removed(sp, v.page_no);
    return -1;
}

static int write_publish(WriteObject* w) {
    const void* bytes = PyArray_DATA(reinterpret_cast<PyArrayObject*>(w->page));
    return publish_version({w->space, w->page_no, w->kind, bytes, w->lsn, w->lsn_set, w->timeout_ns, w->forks});
}

// Publishes pages without a Write: `numbers`, or null for the appended ones from `first` on. Returns how many were
// published; if not all, an exception is set.
npy_intp publish_many(SpaceObject* sp, const npy_int64* numbers, u64 first, PyArrayObject* pages, Lsn lsn,
                      u64 timeout_ns) {
    constexpr npy_intp SIGNALS = 256;  // so many pages between two looks for a signal
    u32 forks = sp->seg->forks, shift = sp->seg->s->g.page_shift;
    auto bytes = static_cast<const char*>(PyArray_DATA(pages));
    for (npy_intp i = 0; i < PyArray_DIM(pages, 0); i++) {
        Version v{sp, numbers ? u64(numbers[i]) : first + u64(i), numbers ? WriteKind::FRESH : WriteKind::APPEND,
                  bytes + (u64(i) << shift), lsn.value, lsn.set, timeout_ns, forks};
        if ((i % SIGNALS == 0 && check_signals() < 0) || publish_version(v) < 0) return i;
    }
    return PyArray_DIM(pages, 0);
}

static PyObject* write_exit(PyObject* self, PyObject* const* args, Py_ssize_t n) {
    auto w = reinterpret_cast<WriteObject*>(self);
    if (!w->open) return raise("ValueError", "this Write is not open");
    bool failing = n > 0 && args[0] != Py_None;
    if (!is_ours(w)) {
        write_abort(w);
        if (failing) Py_RETURN_NONE;
        return raise_not_ours(w);
    }
    if (failing || write_publish(w) < 0) {
        write_abort(w);
        if (failing) Py_RETURN_NONE;
        return nullptr;
    }
    set_closed(w);
    end_copy(w);
    Py_RETURN_NONE;
}

static void write_dealloc(WriteObject* w) {
    if (!w->done) {  // never used, or its block was abandoned (a generator was deleted)
        Use use(w->space->seg, HELD);
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        write_abort(w);
        PyErr_Restore(type, value, trace);
    }
    Py_XDECREF(w->page);
    Py_DECREF(w->space);
    PyObject_Free(w);
}

static PyObject* write_page_no(WriteObject* w, void*) { return PyLong_FromUnsignedLongLong(w->page_no); }
static PyObject* write_lsn(WriteObject* w, void*) { return PyLong_FromUnsignedLongLong(w->lsn); }
// 0 or -1.
int parse_lsn(PyObject* value, Lsn& out) {
    if (!value || !PyLong_Check(value) || PyBool_Check(value)) {
        raise("TypeError", "an LSN is an integer, not %.100s", value ? Py_TYPE(value)->tp_name : "deleted");
        return -1;
    }
    out = {PyLong_AsUnsignedLongLong(value), true};
    if (!PyErr_Occurred()) return 0;
    PyErr_Clear();
    raise("ValueError", "an LSN is at least 0 and below 2**64");
    return -1;
}

static int write_set_lsn(WriteObject* w, PyObject* value, void*) {
    Lsn lsn;
    if (parse_lsn(value, lsn) < 0) return -1;
    w->lsn = lsn.value;
    w->lsn_set = true;
    return 0;
}

static PyObject* write_repr(PyObject* self) {
    auto w = reinterpret_cast<WriteObject*>(self);
    PyObject* name = PyObject_GetAttrString(reinterpret_cast<PyObject*>(w->space), "name");
    if (!name) return nullptr;
    PyObject* text = PyUnicode_FromFormat("<Write of page %llu of space %R, %s>", (unsigned long long)w->page_no, name,
                                          w->done   ? "ended"
                                          : w->open ? "open"
                                                    : "not begun");
    Py_DECREF(name);
    return text;
}

// Raises for a use of a Write as a page: its block gives the page.
static PyObject* refuse_use(PyObject* self, PyObject*) {
    auto w = reinterpret_cast<WriteObject*>(self);
    return raise("TypeError",
                 "a Write is not the page itself: use a block, as in `with space.%s as page: page[:] = ...`",
                 w->kind == WriteKind::APPEND ? "append()" : "write(n)");
}
// As in `space.write(n).fill(0)`.
static PyObject* refuse_attribute(PyObject* self, PyObject* name) {
    PyObject* found = PyObject_GenericGetAttr(self, name);
    if (found || !PyErr_ExceptionMatches(PyExc_AttributeError) || PyUnicode_READ_CHAR(name, 0) == '_') return found;
    PyErr_Clear();
    auto w = reinterpret_cast<WriteObject*>(self);
    return raise("AttributeError",
                 "a Write has no %R: it is not the page itself; use a block, as in `with space.%s as page: page[:] = "
                 "...`",
                 name, w->kind == WriteKind::APPEND ? "append()" : "write(n)");
}
static int refuse_assignment(PyObject* self, PyObject* key, PyObject*) { return refuse_use(self, key), -1; }

static PyMethodDef write_methods[] = {
    {"__enter__", entered<write_enter, WriteBegin>, METH_NOARGS, "The private copy, to be edited."},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(entered<write_exit, WriteEnd>)), METH_FASTCALL,
     "Publishes the copy, or nothing if the block raised."},
    {nullptr, nullptr, 0, nullptr}};
static PyGetSetDef write_getset[] = {
    {"page_no", reinterpret_cast<getter>(write_page_no), nullptr, "The page number.", nullptr},
    {"lsn", reinterpret_cast<getter>(write_lsn), reinterpret_cast<setter>(write_set_lsn),
     "The LSN that the new version will carry; that of the old version unless set. (0 here for a write that does not\n"
     "read the old version.)",
     nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyTypeObject WriteType = {PyVarObject_HEAD_INIT(nullptr, 0)};

static PyMappingMethods write_mapping = {};

int ready_write_type() {
    write_mapping.mp_subscript = refuse_use;
    write_mapping.mp_ass_subscript = refuse_assignment;
    WriteType.tp_as_mapping = &write_mapping;
    WriteType.tp_repr = write_repr;
    WriteType.tp_getattro = refuse_attribute;
    return ready_type(WriteType, "bufferpool._core.Write",
                      "A page being written: a private copy, published when its block ends.", write_dealloc,
                      write_methods, write_getset);
}

}  // namespace bp
