// Segment's methods for write-back: flush.h, seen from Python.
#include "py.h"

#include "flush.h"

namespace bp {

// begin_flush(first, count, lsn, most) -> (op, bytes of (page, frame) pairs, held back), or None
static PyObject* segment_begin_flush(PyObject* self, PyObject* args) {
    unsigned first;
    unsigned long long count, lsn, most;
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
    S(self)->active++;  // until end_flush: the store's code runs meanwhile
    const char* raw = items.empty() ? "" : reinterpret_cast<const char*>(items.data());
    return Py_BuildValue("(iy#K)", index, raw, Py_ssize_t(items.size() * sizeof(FlushItem)), (unsigned long long)held_back);
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
    if (S(self)->active) S(self)->active--;
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

PyMethodDef flush_methods[] = {
    {"begin_flush", segment_begin_flush, METH_VARARGS, ""},
    {"end_flush", segment_end_flush, METH_VARARGS, ""},
    {"flush_lock", segment_flush_lock, METH_O, ""},
    {"flush_unlock", segment_flush_unlock, METH_O, ""},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace bp
