// The LSNs at which clients read.
#include "protocol/snapshots.h"

#include "python/py.h"

namespace bp {

// Threads write to one slot: `lists` is the mutex that a fork holds, so no child finds a half of a change.
static PyObject* segment_begin_snapshot(PyObject* self, PyObject* arg) {
    Lsn lsn;
    if (parse_lsn(arg, lsn) < 0 || !may_work(S(self))) return nullptr;
    bool entered;
    {
        Guard guard(lists);
        entered = begin_snapshot(*S(self)->s, lsn.value);
    }
    if (entered) Py_RETURN_NONE;
    return raise("TooManySnapshots", "this process reads at %u other LSNs already; end some of these snapshots",
                 SNAPSHOTS);
}

static PyObject* segment_end_snapshot(PyObject* self, PyObject* arg) {
    Lsn lsn;
    if (parse_lsn(arg, lsn) < 0 || !may_work(S(self))) return nullptr;
    bool ended;
    {
        Guard guard(lists);
        ended = end_snapshot(*S(self)->s, lsn.value);
    }
    if (ended) Py_RETURN_NONE;
    return raise("ValueError", "this process has no snapshot at the LSN %llu (a forked child begins its own)",
                 (unsigned long long)lsn.value);
}

static PyObject* segment_snapshots(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    PyObject* found = s ? PyList_New(0) : nullptr;
    if (!found) return nullptr;
    each_snapshot(*s, [&](u64 lsn) {
        PyObject* one = found ? PyLong_FromUnsignedLongLong(lsn) : nullptr;
        if (found && (!one || PyList_Append(found, one) < 0)) Py_CLEAR(found);
        Py_XDECREF(one);
    });
    return found;
}

PyMethodDef snapshot_methods[] = {
    {"begin_snapshot", entered<segment_begin_snapshot, SegmentEntry>, METH_O,
     "begin_snapshot($self, lsn, /)\n--\n\n"
     "Enters an LSN at which this client reads. Raises TooManySnapshots."},
    {"end_snapshot", entered<segment_end_snapshot, SegmentEntry>, METH_O,
     "end_snapshot($self, lsn, /)\n--\n\n"
     "Ends a snapshot at an LSN. Raises ValueError if this client has none there."},
    {"snapshots", entered<segment_snapshots, SegmentEntry>, METH_NOARGS,
     "snapshots($self, /)\n--\n\n"
     "The LSNs at which living clients read."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace bp
