// Batch: dirty pages that Python code writes to a store. They are released when the object is dropped, so that an
// exception between two bytecodes (Ctrl-C) leaves nothing behind.
#include "python/py.h"

#include "protocol/writeback.h"

namespace bp {

struct BatchObject {
    PyObject_HEAD Shared<SegmentObject*> seg;  // null once ended
    u32 forks;
    int op;
    u64 since_ns;
    FlushTaken* taken;
};

static void end_batch(BatchObject* batch, bool synced) {
    SegmentObject* seg = batch->seg.swap(nullptr);  // of several threads one ends it
    if (!seg) return;
    Use use(seg);
    if (is_ours(seg, batch->forks)) {
        Busy busy(seg);
        seg->active--;
        Released unlocked(seg);
        OpSlot op(*seg->s, batch->op);
        end_flush(*seg->s, op.intent(), batch->taken->items, synced);
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
    batch->taken = make<FlushTaken>();
    if (!batch->taken) return Py_DECREF(batch), PyErr_NoMemory();
    batch->since_ns = prim::now_ns();
    Status status;
    {
        Released unlocked(S(self));
        OpSlot op(*s);
        status = op.valid() ? begin_flush(*s, op.intent(), FlushRequest{first, count, lsn, most}, *batch->taken)
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
    SegmentObject* seg = batch->seg;
    Use use(seg);
    if (!seg || !is_ours(seg, batch->forks))
        return raise("WrongProcess", "this flush has ended, or belongs to the parent process");
    if (synced && !batch->taken->items.empty()) {
        Counters& counters = seg->s->counters();
        counters.flushes.add_relaxed(1);
        counters.flushed_pages.add_relaxed(batch->taken->items.size());
        seg->s->took(LATENCY_FLUSH, batch->since_ns);
        counters.foreground_flushes.add_relaxed(u64(foreground));
    }
    end_batch(batch, synced);
    Py_RETURN_NONE;
}

static PyObject* batch_items(PyObject* self, void*) {
    auto& items = reinterpret_cast<BatchObject*>(self)->taken->items;
    return PyBytes_FromStringAndSize(items.empty() ? "" : reinterpret_cast<const char*>(items.data()),
                                     Py_ssize_t(items.size() * sizeof(FlushItem)));
}

static PyObject* batch_held_back(PyObject* self, void*) {
    return PyLong_FromUnsignedLongLong(reinterpret_cast<BatchObject*>(self)->taken->held_back);
}

static PyObject* batch_next(PyObject* self, void*) {
    return PyLong_FromUnsignedLongLong(reinterpret_cast<BatchObject*>(self)->taken->next);
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
    return Py_BuildValue("(KKK)", static_cast<unsigned long long>(found.pages),
                         static_cast<unsigned long long>(found.lsn), static_cast<unsigned long long>(found.rec_lsn));
}

static void batch_dealloc(BatchObject* batch) {
    end_batch(batch, false);
    unmake(batch->taken);
    PyObject_Free(batch);
}

static PyMethodDef batch_methods[] = {
    {"end", batch_end, METH_VARARGS, "end(synced, foreground): the pages are clean if they were synced."},
    {nullptr, nullptr, 0, nullptr}};
static PyGetSetDef batch_getset[] = {
    {"items", batch_items, nullptr, "Pairs of uint32: entry, frame; in order.", nullptr},
    {"next", batch_next, nullptr, "The entry at which to go on, 0 when the range has been gone through.", nullptr},
    {"held_back", batch_held_back, nullptr, "Dirty pages that were passed over because of their LSN.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyTypeObject BatchType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_batch_type() {
    return ready_type(BatchType, "bufferpool._core.Batch",
                      "Dirty pages that are being written; they stay dirty if it is dropped.", batch_dealloc,
                      batch_methods, batch_getset);
}

PyMethodDef flush_methods[] = {{"begin_flush", entered<segment_begin_flush, SegmentEntry>, METH_VARARGS, ""},
                               {"dirty_range", entered<segment_dirty_range, SegmentEntry>, METH_VARARGS, ""},
                               {nullptr, nullptr, 0, nullptr}};

}  // namespace bp
