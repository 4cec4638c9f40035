// Write: a private copy of a page, published as a whole when its block ends.
// Nothing of the segment is ever writable from Python: the copy is ordinary
// memory, and stays the caller's own when the block is over.
#include "py.h"

#include "client.h"

namespace bp {

struct WriteObject {
    PyObject_HEAD
    SpaceObject* space;
    PyObject* page;      // the private copy while the block is open
    u64 page_no, lsn, timeout_ns, thread;
    u32 forks;           // of the process that opened it
    bool append, open, done, lsn_set;
    WriteObject *next, *prev;  // open writes of this process
};

// Open writes, so that a thread that would wait for itself is told so.
static WriteObject open_writes = [] {
    WriteObject w{};
    return w;
}();

static bool own_thread_writes(SpaceObject* sp, u64 page_no) {
    for (WriteObject* w = open_writes.next; w && w != &open_writes; w = w->next)
        if (w->space->seg == sp->seg && w->space->index == sp->index && w->page_no == page_no && w->thread == this_thread())
            return true;
    return false;
}

PyObject* new_write(SpaceObject* sp, u64 page_no, bool append, u64 timeout_ns) {
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
    w->append = append;
    w->open = w->done = w->lsn_set = false;
    w->next = w->prev = nullptr;
    return reinterpret_cast<PyObject*>(w);
}

static void set_open(WriteObject* w) {
    w->open = true;
    w->space->seg->writes++;
    w->thread = this_thread();
    if (!open_writes.next) open_writes.next = open_writes.prev = &open_writes;
    w->prev = &open_writes;
    w->next = open_writes.next;
    w->next->prev = w;
    open_writes.next = w;
}

static void set_closed(WriteObject* w) {
    if (!w->open) return;
    w->open = false;
    if (w->forks == w->space->seg->forks) w->space->seg->writes--;
    w->next->prev = w->prev;
    w->prev->next = w->next;
}

static bool is_ours(WriteObject* w) { return w->space->seg->s && w->space->seg->s->me && w->forks == w->space->seg->forks; }

// Gives back a page number that nobody has used, if it is still the last.
static void return_number(WriteObject* w) {
    u64 expected = w->page_no + 1;
    space_slot(w->space).reserved.cas_seq_cst(expected, w->page_no);
}

// Takes the writer field, loading the page if need be. 0 or -1.
static int own_page(SpaceObject* sp, u64 page_no, u64 deadline, u32& frame) {
    Busy busy(sp->seg);
    Segment& s = *sp->seg->s;
    u32 page = entry_of(sp, page_no);
    bool missed = false;
    for (;;) {
        Status status = begin_write(s, page, frame);
        if (status == Status::OK && !still_open(sp)) {
            end_write(s, page);
            return bad_page(sp, space_slot(sp).extent.load_acquire(), Py_None);
        }
        if (status == Status::OK) {
            if (!missed) s.counters().space[sp->index].hits.add_owned(1);
            return 0;
        }
        if (status == Status::ABSENT) {
            u32 f;
            if (acquire_page(sp, page_no, Access{.counts = !missed, .deadline_ns = deadline}, f) < 0) return -1;
            drop_pin(sp->seg, f);
            missed = true;
        } else if (status == Status::WAIT) {
            u64 e = s.entries[page].load_acquire();
            if (entry::state(e) == RESIDENT && entry::owner(e) == s.me && own_thread_writes(sp, page_no)) {
                raise("WouldDeadlock", "this thread is writing page %llu already; end that block first", (unsigned long long)page_no);
                return -1;
            }
            if (wait_for(sp, page_no, deadline, true) < 0) return -1;
        } else {
            return raise_status(status, sp, page_no), -1;
        }
    }
}

static PyObject* write_enter(PyObject* self, PyObject*) {
    auto w = reinterpret_cast<WriteObject*>(self);
    SpaceObject* sp = w->space;
    if (w->open || w->done) return raise("ValueError", "a Write is used once; call write() or append() again");
    if (ready_space(sp) < 0) return nullptr;
    w->forks = sp->seg->forks;
    Segment& s = *sp->seg->s;
    Py_INCREF(sp->dtype);
    w->page = PyArray_NewFromDescr(&PyArray_Type, sp->dtype, 1, &sp->items, nullptr, nullptr, 0, nullptr);
    if (!w->page) return nullptr;
    void* to = PyArray_DATA(reinterpret_cast<PyArrayObject*>(w->page));
    if (w->append) {
        memset(to, 0, s.g.page_size);
    } else {
        u32 frame;
        u64 limit = ~u64(0) - w->timeout_ns > prim::now_ns() ? prim::now_ns() + w->timeout_ns : ~u64(0);
        if (own_page(sp, w->page_no, limit, frame) < 0) {
            Py_CLEAR(w->page);
            return nullptr;
        }
        memcpy(to, sp->seg->read_base + (u64(frame) << s.g.page_shift), s.g.page_size);
        if (!w->lsn_set) w->lsn = s.frames[frame].lsn.load_relaxed();
    }
    set_open(w);
    Py_INCREF(w->page);
    return w->page;
}

static void write_abort(WriteObject* w) {
    if (is_ours(w)) {
        if (w->append) return_number(w);
        else if (w->open) end_write(*w->space->seg->s, entry_of(w->space, w->page_no));
    }
    set_closed(w);
    w->done = true;
    Py_CLEAR(w->page);
}

static void raise_removed(WriteObject* w) {
    raise("SpaceRemoved", "the space was removed from its pool while page %llu was being written; nothing is published",
          (unsigned long long)w->page_no);
}

static PyObject* raise_parents(WriteObject* w) {
    return raise("WrongProcess", "page %llu is being written by the parent process; in a forked child open a write of its own",
                 (unsigned long long)w->page_no);
}

// A new page: ABSENT -> LOADING(me) -> RESIDENT(dirty). False: it is there
// already (somebody read zeros in its place): write it instead. -1 on error.
static int publish_new(WriteObject* w, const void* bytes, Image image) {
    SpaceObject* sp = w->space;
    Segment& s = *sp->seg->s;
    u32 page = entry_of(sp, w->page_no);
    for (;;) {
        FrameRequest want{page};
        Status status;
        bool removed = false;
        {
            Released unlocked(sp->seg);
            OpSlot op(s);
            status = op.valid() ? begin_load(s, op.intent(), page) : op.why_not();
            if (status == Status::ABSENT && !still_open(sp)) {  // closed since: these entries may be another's
                abort_load(s, op.intent(), page, NONE);
                removed = true;
            } else if (status == Status::ABSENT) {
                u32 f = NONE;
                status = take_frame(s, op.intent(), want, f);
                if (status == Status::OK) {
                    memcpy(s.page_data(f), bytes, s.g.page_size);
                    finish_load(s, op.intent(), page, f, image);
                    if constexpr (ADVISES) record_load(s, page, SAMPLE_UNCOUNTED);
                    unpin(s, f);
                    return 1;
                }
                abort_load(s, op.intent(), page, f);
            } else if (status == Status::OK) {
                return 0;
            }
        }
        if (removed) return raise_removed(w), -1;
        if (status == Status::WAIT ? wait_for(sp, w->page_no, 0, false) < 0 : make_room(sp->seg, status, want) < 0) return -1;
        if (!is_ours(w)) return raise_parents(w), -1;
    }
}

static void raise_pages(SpaceSlot& slot, u64 generation, u64 pages) {
    u64 e = slot.extent.load_acquire();
    while (e >> GENERATION_SHIFT == generation && (e & PAGES_MASK) < pages &&
           !slot.extent.cas_seq_cst(e, generation << GENERATION_SHIFT | pages)) {}
}

// Publishes an existing page. 0 or -1; the writer field is released if 0.
static int publish_page(WriteObject* w, const void* bytes, Image image) {
    SpaceObject* sp = w->space;
    for (;;) {
        FrameRequest want{};
        Status status;
        {
            Released unlocked(sp->seg);
            status = publish(*sp->seg->s, entry_of(sp, w->page_no), bytes, image, want);
        }
        if (status == Status::OK) return 0;
        if (make_room(sp->seg, status, want) < 0) return -1;
        if (!is_ours(w)) return raise_parents(w), -1;
    }
}

static int write_publish(WriteObject* w) {
    Busy busy(w->space->seg);
    SpaceObject* sp = w->space;
    Segment& s = *sp->seg->s;
    if (space_generation(space_slot(sp).extent.load_acquire()) != sp->generation) {
        raise_removed(w);
        return -1;
    }
    const void* bytes = PyArray_DATA(reinterpret_cast<PyArrayObject*>(w->page));
    Image image{!sp->discardable, sp->discardable, w->lsn};
    if (w->append) {
        int r = publish_new(w, bytes, image);
        if (r < 0) return -1;
        if (r == 0) {
            u32 frame;
            if (own_page(sp, w->page_no, 0, frame) < 0) return -1;
            if (publish_page(w, bytes, image) < 0) {
                end_write(s, entry_of(sp, w->page_no));
                return -1;
            }
        }
        raise_pages(space_slot(sp), sp->generation, w->page_no + 1);
        s.counters().appends.add_relaxed(1);
        return 0;
    }
    return publish_page(w, bytes, image);
}

static PyObject* write_exit(PyObject* self, PyObject* const* args, Py_ssize_t n) {
    auto w = reinterpret_cast<WriteObject*>(self);
    if (!w->open) return raise("ValueError", "this Write is not open");
    bool failing = n > 0 && args[0] != Py_None;
    if (!is_ours(w)) {
        write_abort(w);
        if (failing) Py_RETURN_NONE;
        if (!w->space->seg->s) return raise("PoolClosed", "the pool was closed while page %llu was being written; nothing is published", (unsigned long long)w->page_no);
        return raise_parents(w);
    }
    if (failing || write_publish(w) < 0) {
        write_abort(w);
        if (failing) Py_RETURN_NONE;
        return nullptr;
    }
    set_closed(w);
    w->done = true;
    Py_CLEAR(w->page);
    Py_RETURN_NONE;
}

static void write_dealloc(WriteObject* w) {
    if (!w->done) {  // never used, or its block was abandoned (a generator that is thrown away)
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
static int write_set_lsn(WriteObject* w, PyObject* value, void*) {
    if (!value || !PyLong_Check(value)) {
        raise("TypeError", "an LSN is an integer");
        return -1;
    }
    u64 lsn = PyLong_AsUnsignedLongLong(value);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        raise("ValueError", "an LSN is at least 0 and below 2**64");
        return -1;
    }
    w->lsn = lsn;
    w->lsn_set = true;
    return 0;
}

static PyMethodDef write_methods[] = {
    {"__enter__", write_enter, METH_NOARGS, "The private copy, to be edited."},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(write_exit)), METH_FASTCALL,
     "Publishes the copy, or nothing if the block raised."},
    {nullptr, nullptr, 0, nullptr}};
static PyGetSetDef write_getset[] = {
    {"page_no", reinterpret_cast<getter>(write_page_no), nullptr, "The page number.", nullptr},
    {"lsn", reinterpret_cast<getter>(write_lsn), reinterpret_cast<setter>(write_set_lsn),
     "The LSN that the new version will carry; that of the old version unless set.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyTypeObject WriteType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_write_type() {
    return ready_type(WriteType, "bufferpool._core.Write", "A page being written: a private copy, published when its block ends.", write_dealloc,
                      write_methods, write_getset);
}

}  // namespace bp
