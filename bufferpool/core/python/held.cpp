// What Python holds for a while: the directory lock, a space's flush lock, a batch
// of pages being written. Each is an object that lets go when it is dropped, so
// that an exception between two bytecodes (Ctrl-C) leaves nothing behind.
#include "python/py.h"

#include "protocol/flush.h"

namespace bp {

struct HeldObject {
    PyObject_HEAD
    SegmentObject* seg;  // null once let go
    u32 forks;           // a forked child does not let go of what its parent holds
    LockWord* lock;
    u64 thread;          // that took it
    bool interrupted;    // the last flush of this space did not end
    HeldObject* next;    // of all that are held
};

struct BatchObject {
    PyObject_HEAD
    SegmentObject* seg;  // null once ended
    u32 forks;
    int op;
    u64 since_ns, held_back, next;
    Vec<FlushItem>* items;
};

static bool is_ours(SegmentObject* seg, u32 forks) { return seg->s && seg->s->me && seg->forks == forks; }

// ---- locks -----------------------------------------------------------------------

static HeldObject* all_held;

// Has this thread the lock already, in a frame further out (a signal's handler, or a store, asked for it again)?
// A forked child has none of its parent's.
static bool raise_held(SegmentObject* seg, LockWord& lock, const char* what) {
    for (HeldObject* held = all_held; held; held = held->next)
        if (held->lock == &lock && held->forks == seg->forks && held->thread == this_thread()) {
            raise("WouldDeadlock", "this thread is %s already; a signal's handler, or a store, that is called meanwhile cannot do it again", what);
            return true;
        }
    return false;
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
    held->next = all_held;
    all_held = held;
    seg->active++;
    return reinterpret_cast<PyObject*>(held);
}

static void let_go(HeldObject* held) {
    SegmentObject* seg = held->seg;
    if (!seg) return;
    held->seg = nullptr;
    HeldObject** at = &all_held;
    while (*at != held) at = &(*at)->next;
    *at = held->next;
    if (is_ours(seg, held->forks)) {
        Busy busy(seg);
        seg->active--;
        Released unlocked(seg);
        if (held->lock == &seg->s->header->directory) leave_directory(*seg->s);
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
static PyObject* held_interrupted(PyObject* self, void*) { return PyBool_FromLong(reinterpret_cast<HeldObject*>(self)->interrupted); }
static void held_dealloc(HeldObject* held) {
    let_go(held);
    PyObject_Free(held);
}

// lock_directory() -> Held
static PyObject* segment_lock_directory(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s || raise_held(S(self), s->header->directory, "opening or removing a space")) return nullptr;
    bool ok;
    {
        Released unlocked(S(self));
        ok = lock_directory(*s);
    }
    if (!ok) return raise_interrupted("the directory of spaces");
    PyObject* held = new_held(S(self), &s->header->directory, false);
    if (!held) leave_directory(*s);
    return held;
}

// lock_flush(space, wait=True) -> Held, whose `interrupted` says that the last flush did not end. None: somebody has
// the lock, and was not to be waited for.
static PyObject* segment_lock_flush(PyObject* self, PyObject* args) {
    unsigned i;
    int wait = 1;
    if (!PyArg_ParseTuple(args, "I|p:lock_flush", &i, &wait)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (i >= MAX_SPACES) return raise("ValueError", "no such space");
    SpaceSlot& slot = s->spaces[i];
    if (raise_held(S(self), slot.flush_lock, "flushing this space")) return nullptr;
    Acquired a = Acquired::YES;
    bool ours = true;
    {
        Released unlocked(S(self));
        if (wait) a = acquire(*s, slot.flush_lock);
        else ours = try_acquire(*s, slot.flush_lock, a);
        if (ours && a == Acquired::REPAIR) repaired(*s, slot.flush_lock);
        if (ours && a != Acquired::INTERRUPTED) slot.flush_since_ns.store_relaxed(prim::boot_ns());
    }
    if (!ours) Py_RETURN_NONE;
    if (a == Acquired::INTERRUPTED) return raise_interrupted("a flush");
    PyObject* held = new_held(S(self), &slot.flush_lock, slot.flush_open.load_acquire());
    if (!held) release(*s, slot.flush_lock);
    return held;
}

// ---- batches -----------------------------------------------------------------------

static void end_batch(BatchObject* batch, bool synced) {
    SegmentObject* seg = batch->seg;
    if (!seg) return;
    batch->seg = nullptr;
    if (is_ours(seg, batch->forks)) {
        Busy busy(seg);
        seg->active--;
        Released unlocked(seg);
        OpSlot op(*seg->s, batch->op);
        end_flush(*seg->s, op.intent(), *batch->items, synced);
    }
    Py_DECREF(seg);
}

// begin_flush(first, count, lsn, most) -> Batch
static PyObject* segment_begin_flush(PyObject* self, PyObject* args) {
    unsigned first;
    unsigned long long count, lsn, most;
    if (!PyArg_ParseTuple(args, "IKKK:begin_flush", &first, &count, &lsn, &most)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    auto batch = PyObject_New(BatchObject, &BatchType);
    if (!batch) return nullptr;
    batch->seg = nullptr;
    batch->forks = S(self)->forks;
    batch->items = make<Vec<FlushItem>>();
    if (!batch->items) return Py_DECREF(batch), PyErr_NoMemory();
    batch->since_ns = prim::now_ns();
    batch->held_back = batch->next = 0;
    Status status;
    {
        Released unlocked(S(self));
        OpSlot op(*s);
        status = op.valid() ? begin_flush(*s, op.intent(), first, count, lsn, most, *batch->items, batch->held_back, batch->next)
                            : op.why_not();
        batch->op = status == Status::OK ? op.release() : -1;
    }
    if (status == Status::NO_MEMORY) return Py_DECREF(batch), PyErr_NoMemory();
    if (batch->op >= 0) {
        batch->seg = S(self);
        Py_INCREF(self);
        S(self)->active++;  // until it ends: the store's code runs meanwhile
    }
    if (batch->op < 0) {
        Py_DECREF(batch);
        return raise_interrupted("other operations of this process");
    }
    if (check_signals() < 0) Py_CLEAR(batch);  // Ctrl-C: what was taken is given back
    return reinterpret_cast<PyObject*>(batch);
}

static PyObject* batch_end(PyObject* self, PyObject* args) {
    auto batch = reinterpret_cast<BatchObject*>(self);
    int synced, foreground;
    if (!PyArg_ParseTuple(args, "pp:end", &synced, &foreground)) return nullptr;
    if (!batch->seg || !is_ours(batch->seg, batch->forks)) return raise("WrongProcess", "this flush has ended, or belongs to the parent process");
    if (synced && !batch->items->empty()) {
        Counters& counters = batch->seg->s->counters();
        counters.flushes.add_relaxed(1);
        counters.flushed_pages.add_relaxed(batch->items->size());
        batch->seg->s->took(LATENCY_FLUSH, batch->since_ns);
        counters.foreground_flushes.add_relaxed(u64(foreground));
    }
    end_batch(batch, synced);
    Py_RETURN_NONE;
}

static PyObject* batch_items(PyObject* self, void*) {
    auto& items = *reinterpret_cast<BatchObject*>(self)->items;
    return PyBytes_FromStringAndSize(items.empty() ? "" : reinterpret_cast<const char*>(items.data()), Py_ssize_t(items.size() * sizeof(FlushItem)));
}

static PyObject* batch_held_back(PyObject* self, void*) {
    return PyLong_FromUnsignedLongLong(reinterpret_cast<BatchObject*>(self)->held_back);
}

static PyObject* batch_next(PyObject* self, void*) {
    return PyLong_FromUnsignedLongLong(reinterpret_cast<BatchObject*>(self)->next);
}

// dirty_range(first, count) -> (dirty pages, highest LSN, oldest change's LSN)
static PyObject* segment_dirty_range(PyObject* self, PyObject* args) {
    unsigned long long first, count;
    if (!PyArg_ParseTuple(args, "KK:dirty_range", &first, &count)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    DirtyRange found;
    {
        Released unlocked(S(self));
        found = dirty_range(*s, first, count);
    }
    return Py_BuildValue("(KKK)", static_cast<unsigned long long>(found.pages), static_cast<unsigned long long>(found.lsn),
                         static_cast<unsigned long long>(found.rec_lsn));
}

static void batch_dealloc(BatchObject* batch) {
    end_batch(batch, false);
    unmake(batch->items);
    PyObject_Free(batch);
}

// ---- types -----------------------------------------------------------------------

static PyMethodDef held_methods[] = {
    {"__enter__", held_enter, METH_NOARGS, ""},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(held_exit)), METH_FASTCALL, "Lets go."},
    {nullptr, nullptr, 0, nullptr}};
static PyGetSetDef held_getset[] = {
    {"interrupted", held_interrupted, nullptr, "Whether the last flush of the space did not end.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};
static PyMethodDef batch_methods[] = {
    {"end", batch_end, METH_VARARGS, "end(synced, foreground): the pages are clean if they were synced."},
    {nullptr, nullptr, 0, nullptr}};
static PyGetSetDef batch_getset[] = {
    {"items", batch_items, nullptr, "Pairs of uint32: entry, frame; in order.", nullptr},
    {"next", batch_next, nullptr, "The entry at which to go on, 0 when the range has been gone through.", nullptr},
    {"held_back", batch_held_back, nullptr, "Dirty pages that were passed over because of their LSN.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyTypeObject HeldType = {PyVarObject_HEAD_INIT(nullptr, 0)};
PyTypeObject BatchType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_flush_types() {
    if (ready_type(HeldType, "bufferpool._core.Held", "A lock that is held until this object is dropped.", held_dealloc, held_methods, held_getset) < 0) return -1;
    return ready_type(BatchType, "bufferpool._core.Batch", "Dirty pages that are being written; they stay dirty if it is dropped.", batch_dealloc,
                      batch_methods, batch_getset);
}

PyMethodDef flush_methods[] = {
    {"lock_directory", segment_lock_directory, METH_NOARGS, ""},
    {"lock_flush", segment_lock_flush, METH_VARARGS, ""},
    {"begin_flush", segment_begin_flush, METH_VARARGS, ""},
    {"dirty_range", segment_dirty_range, METH_VARARGS, ""},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace bp
