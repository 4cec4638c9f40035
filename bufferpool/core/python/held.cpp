// Held: a lock that Python code holds, the directory lock or a space's flush lock. The lock is released
// when the object is dropped, so that an exception between two bytecodes (Ctrl-C) leaves nothing behind.
#include "python/py.h"

#include "protocol/reap.h"

namespace bp {

struct HeldObject {
    PyObject_HEAD Shared<SegmentObject*> seg;  // null after the release
    u32 forks;           // a forked child does not release a lock that its parent holds
    LockWord* lock;
    u64 thread;          // the thread that took it
    bool interrupted;    // the last flush of this space was interrupted: its process died
    HeldObject* next;    // the list of all held locks
};

static HeldObject* all_held;

// Raises if this thread already holds the lock, in an outer call (a signal's handler, or a store, needs it again).
// A forked child holds none of its parent's locks.
static bool raise_held(SegmentObject* seg, LockWord& lock, const char* what) {
    auto found = [&] {
        Guard guard(lists);
        HeldObject* held = all_held;
        while (held && !(held->lock == &lock && held->forks == seg->forks && held->thread == this_thread()))
            held = held->next;
        return held != nullptr;
    };
    if (!found()) return false;
    raise("WouldDeadlock",
          "this thread is %s already; a signal's handler, or a store, that is called meanwhile cannot do it again",
          what);
    return true;
}

static PyObject* new_held(SegmentObject* seg, LockWord* lock, bool interrupted) {
    auto held = PyObject_New(HeldObject, &HeldType);
    if (!held) return nullptr;
    held->seg = seg;
    Py_INCREF(seg);
    held->forks = seg->forks;
    held->lock = lock;
    held->thread = this_thread();
    held->interrupted = interrupted;
    seg->active++;
    Guard guard(lists);
    held->next = all_held;
    all_held = held;
    return reinterpret_cast<PyObject*>(held);
}

static void let_go(HeldObject* held) {
    SegmentObject* seg = held->seg.swap(nullptr);  // of several threads exactly one releases it
    if (!seg) return;
    Use use(seg);
    {
        Guard guard(lists);
        HeldObject** at = &all_held;
        while (*at != held) at = &(*at)->next;
        *at = held->next;
    }
    if (is_ours(seg, held->forks)) {
        Busy busy(seg);
        seg->active--;
        bool directory = held->lock == &seg->s->header->directory;
        if (directory) let_go_of_removed(seg);
        Released unlocked(seg);
        if (directory) leave_directory(*seg->s);
        else release(*seg->s, *held->lock);
    }
    Py_DECREF(seg);
}

static PyObject* held_enter(PyObject* self, PyObject*) {
    Py_INCREF(self);
    return self;
}
static PyObject* held_exit(PyObject* self, PyObject* const*, Py_ssize_t) {
    let_go(reinterpret_cast<HeldObject*>(self));
    Py_RETURN_NONE;
}
static PyObject* held_interrupted(PyObject* self, void*) {
    return PyBool_FromLong(reinterpret_cast<HeldObject*>(self)->interrupted);
}
static void held_dealloc(HeldObject* held) {
    let_go(held);
    PyObject_Free(held);
}

// A signal's handler has raised, or the call's time is over and another client still has the lock.
static PyObject* raise_not_locked(LockWord& lock, const char* what) {
    u32 owner = lock.word.load_relaxed() & lock_word::OWNER;
    if (check_signals() < 0) return nullptr;
    return raise("WaitTimeout",
                 "client %u is %s for longer than the timeout: it is stopped perhaps, or its disk or store hangs "
                 "(pool.clients() and pool.operations() say more); try again",
                 owner, what);
}

// lock_directory(timeout) -> Held
static PyObject* segment_lock_directory(PyObject* self, PyObject* arg) {
    double timeout = PyFloat_AsDouble(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s || raise_held(S(self), s->header->directory, "opening or removing a space")) return nullptr;
    bool ok;
    {
        Released unlocked(S(self));
        Deadline deadline(deadline_in(timeout));
        ok = lock_directory(*s);
    }
    if (!ok) return raise_not_locked(s->header->directory, "opening or removing a space");
    PyObject* held = new_held(S(self), &s->header->directory, false);
    if (!held) leave_directory(*s);
    return held;
}

PyObject* lock_flush(SegmentObject* seg, u32 space, bool wait, double timeout) {
    Segment* s = opened(seg);
    if (!s) return nullptr;
    if (space >= s->space_count()) return raise("ValueError", "no such space");
    SpaceSlot& slot = s->spaces[space];
    if (raise_held(seg, slot.flush_lock, "flushing this space")) return nullptr;
    Acquired a = Acquired::YES;
    bool ours = true;
    {
        Released unlocked(seg);
        Deadline deadline(deadline_in(timeout));
        if (wait) a = acquire(*s, slot.flush_lock);
        else ours = try_acquire(*s, slot.flush_lock, a);
        if (ours && a == Acquired::REPAIR) repaired(*s, slot.flush_lock);
        if (ours && a != Acquired::INTERRUPTED) slot.flush_since_ns.store_relaxed(prim::boot_ns());
    }
    if (!ours) Py_RETURN_NONE;
    if (a == Acquired::INTERRUPTED) return raise_not_locked(slot.flush_lock, "flushing the space");
    PyObject* held = new_held(seg, &slot.flush_lock, slot.flush_open.load_acquire());
    if (!held) release(*s, slot.flush_lock);
    return held;
}

// lock_flush(space, wait=True, timeout=inf) -> Held; its `interrupted` is true if the last flush was interrupted. None:
// the lock is held, and `wait` is false.
static PyObject* segment_lock_flush(PyObject* self, PyObject* args) {
    unsigned i;
    int wait = 1;
    double timeout = Py_HUGE_VAL;
    if (!PyArg_ParseTuple(args, "I|pd:lock_flush", &i, &wait, &timeout)) return nullptr;
    return lock_flush(S(self), i, wait, timeout);
}

bool is_interrupted(PyObject* held) { return reinterpret_cast<HeldObject*>(held)->interrupted; }

// begin_flush(generation, selection) -> Batch of the space whose flush lock this is; it ends while the lock is held.
static PyObject* held_begin_flush(PyObject* self, PyObject* args) {
    auto held = reinterpret_cast<HeldObject*>(self);
    SegmentObject* seg = held->seg;
    Use use(seg);
    if (!seg || !is_ours(seg, held->forks)) return raise("WrongProcess", "this lock is not held any more");
    SpaceSlot* spaces = seg->s->spaces;
    auto at = reinterpret_cast<char*>(held->lock) - reinterpret_cast<char*>(&spaces->flush_lock);
    u64 space = u64(at) / sizeof(SpaceSlot);
    if (at < 0 || space >= seg->s->space_count()) return raise("ValueError", "this is not the flush lock of a space");
    Py_INCREF(self);
    return begin_batch(seg, u32(space), args, self);
}

static PyMethodDef held_methods[] = {
    {"__enter__", held_enter, METH_NOARGS,
     "__enter__($self, /)\n--\n\n"
     "This object."},
    {"begin_flush", held_begin_flush, METH_VARARGS,
     "begin_flush($self, generation, selection, /)\n--\n\n"
     "The dirty pages that ``selection`` names, of the space whose flush lock this is: a Batch. None: the space\n"
     "was removed."},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(held_exit)), METH_FASTCALL,
     "__exit__($self, *exc)\n--\n\n"
     "Releases the lock."},
    {nullptr, nullptr, 0, nullptr}};
static PyGetSetDef held_getset[] = {
    {"interrupted", held_interrupted, nullptr, "Whether the last flush of the space was interrupted.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyTypeObject HeldType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_held_type() {
    return ready_type(HeldType, "bufferpool._core.Held", "A lock that is held until this object is dropped.",
                      held_dealloc, held_methods, held_getset);
}

PyMethodDef lock_methods[] = {{"lock_directory", entered<segment_lock_directory, SegmentEntry>, METH_O,
                               "lock_directory($self, timeout, /)\n--\n\n"
                               "Takes the directory lock: a Held. Raises WaitTimeout, WouldDeadlock."},
                              {"lock_flush", entered<segment_lock_flush, SegmentEntry>, METH_VARARGS,
                               "lock_flush($self, space, wait=True, timeout=1e999, /)\n--\n\n"
                               "Takes the flush lock of a space: a Held. None: another client has it, and\n"
                               "``wait`` is false. Raises WaitTimeout, WouldDeadlock."},
                              {nullptr, nullptr, 0, nullptr}};

}  // namespace bp
