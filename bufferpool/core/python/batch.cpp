// Batch: dirty pages that Python code writes to a store, under the flush lock of their space. Pages and lock are
// released when the object is dropped, so that an exception between two bytecodes (Ctrl-C) leaves nothing behind.
#include "python/py.h"

#include "os/transfers.h"
#include "protocol/spaces.h"
#include "protocol/writeback.h"
#include "python/file_record.h"

namespace bp {

struct BatchObject {
    PyObject_HEAD Shared<SegmentObject*> seg;  // null once ended
    PyObject* held;  // the flush lock
    u32 forks, space;
    int op, foreground, interrupted;
    u64 first, since_ns;  // the space's first entry; when the flush began
    FileRecord file;      // the file's recorded state at that time
    FlushTaken* taken;
};

static void end_batch(BatchObject* batch, bool synced) {
    SegmentObject* seg = batch->seg.swap(nullptr);  // of several threads exactly one ends it
    if (!seg) return;
    Use use(seg);
    if (is_ours(seg, batch->forks)) {
        Busy busy(seg);
        seg->active--;
        Released unlocked(seg);
        OpSlot op(*seg->s, batch->op);
        end_flush(*seg->s, op.intent(), batch->taken->items, synced);
    }
    Py_CLEAR(batch->held);
    Py_DECREF(seg);
}

// The part of begin_batch that needs no interpreter.
static Status take_pages(Segment& s, BatchObject* batch, u64 generation, FlushRequest want) {
    SpaceSlot& t = s.spaces[batch->space];
    u64 n;
    if (space_generation(t.span.load_acquire()) != generation || !t.is_live()) return Status::REMOVED;
    if (!entries_of(s, t, batch->first, n)) return Status::CORRUPT;
    u64 end = t.max_pages.load_relaxed(), skipped = std::min<u64>(want.first, end);
    want.first = u32(batch->first + skipped);
    want.count = end - skipped;
    OpSlot op(s);
    Status status = op.valid() ? begin_flush(s, op.intent(), want, *batch->taken) : op.why_not();
    batch->op = status == Status::OK ? op.release() : -1;
    // A space whose pages a flush has taken cannot be removed. If it was removed before, the pages are another space's.
    if (status == Status::OK && space_generation(t.span.load_acquire()) != generation) return Status::REMOVED;
    batch->file = FileRecord::of(t);
    return status;
}

PyObject* begin_batch(SegmentObject* seg, u32 space, PyObject* args, PyObject* held) {
    unsigned long long generation, lsn, first, most;
    PyObject* selection;
    auto batch = PyObject_New(BatchObject, &BatchType);
    if (!batch) return Py_DECREF(held), nullptr;
    batch->seg = nullptr;
    batch->held = held;
    batch->taken = nullptr;
    batch->forks = seg->forks;
    batch->space = space;
    batch->interrupted = is_interrupted(held);
    if (!PyArg_ParseTuple(args, "KO!:begin_flush", &generation, &PyTuple_Type, &selection) ||
        !PyArg_ParseTuple(selection, "KKKp:Selection", &lsn, &first, &most, &batch->foreground))
        return Py_DECREF(batch), nullptr;
    Segment* s = opened(seg);
    if (!s) return Py_DECREF(batch), nullptr;
    batch->taken = make<FlushTaken>();
    if (!batch->taken) return Py_DECREF(batch), PyErr_NoMemory();
    batch->since_ns = prim::now_ns();
    batch->op = -1;
    Status status;
    {
        Released unlocked(seg);
        status = take_pages(*s, batch, generation, FlushRequest{u32(std::min<u64>(first, ~u32(0))), 0, lsn, most});
    }
    if (batch->op >= 0) {
        batch->seg = seg;
        Py_INCREF(seg);
        seg->active++;  // until the batch ends: the store's code runs meanwhile
    }
    if (status == Status::OK && check_signals() == 0) return reinterpret_cast<PyObject*>(batch);
    Py_DECREF(batch);  // this releases the pages and the lock
    if (status == Status::REMOVED) Py_RETURN_NONE;
    if (status == Status::NO_MEMORY) return PyErr_NoMemory();
    if (status == Status::CORRUPT) raise_status(status, 0);
    if (!PyErr_Occurred()) return raise_interrupted("other operations of this process");
    return nullptr;
}

// begin_flush(space, generation, selection, wait) -> Batch, which holds the space's flush lock. None: the space is
// gone, or another client flushes it and `wait` is false.
static PyObject* segment_begin_flush(PyObject* self, PyObject* args) {
    unsigned space;
    PyObject *generation, *selection;
    int wait;
    if (!PyArg_ParseTuple(args, "IOOp:begin_flush", &space, &generation, &selection, &wait)) return nullptr;
    PyObject* held = lock_flush(S(self), space, wait);
    if (!held || held == Py_None) return held;
    PyObject* rest = PyTuple_Pack(2, generation, selection);
    if (!rest) return Py_DECREF(held), nullptr;
    PyObject* batch = begin_batch(S(self), space, rest, held);
    Py_DECREF(rest);
    return batch;
}

// The segment of the batch, while its flush is under way in this process; otherwise null with an exception.
static SegmentObject* under_way(BatchObject* batch) {
    SegmentObject* seg = batch->seg;
    if (seg && is_ours(seg, batch->forks)) return seg;
    raise("WrongProcess", "this flush has ended, or belongs to the parent process");
    return nullptr;
}

// The store is written from here on: if this flush does not end, the next one knows that it was interrupted.
static PyObject* batch_mark_open(PyObject* self, PyObject*) {
    auto batch = reinterpret_cast<BatchObject*>(self);
    Use use(batch->seg);
    SegmentObject* seg = under_way(batch);
    if (!seg) return nullptr;
    record_store(seg->s->spaces[batch->space], 0, true, nullptr);
    Py_RETURN_NONE;
}

// end(synced, record, sync_ns = 0): the record is None, or (pages stored, state or None), which is stored before the
// pages are released.
static PyObject* batch_end(PyObject* self, PyObject* args) {
    auto batch = reinterpret_cast<BatchObject*>(self);
    int synced;
    PyObject *record, *state = Py_None;
    unsigned long long stored = 0, sync_ns = 0;
    FileRecord file;
    if (!PyArg_ParseTuple(args, "pO|K:end", &synced, &record, &sync_ns)) return nullptr;
    if (record != Py_None && (!PyArg_ParseTuple(record, "KO:record", &stored, &state) ||
                              (state != Py_None && !file.parse(state))))
        return nullptr;
    Use use(batch->seg);
    SegmentObject* seg = under_way(batch);
    if (!seg) return nullptr;
    if (record != Py_None)
        record_store(seg->s->spaces[batch->space], stored, false, state == Py_None ? nullptr : &file);
    if (sync_ns) seg->s->counters().latency[LATENCY_SYNC].add(sync_ns);
    if (synced && !batch->taken->items.empty()) {
        Counters& counters = seg->s->counters();
        counters.flushes.add_relaxed(1);
        counters.flushed_pages.add_relaxed(batch->taken->items.size());
        seg->s->took(LATENCY_FLUSH, batch->since_ns);
        counters.foreground_flushes.add_relaxed(u64(batch->foreground));
    }
    end_batch(batch, synced);
    Py_RETURN_NONE;
}

// Writes the pages to a file, neighbours together and several runs at a time; `done` says of each page whether the call
// that wrote it wrote all of its pages. False: there is no memory.
static bool write_items(Segment& s, BatchObject* batch, int fd, char* done) {
    constexpr u32 MOST = 64;  // pages of one call
    const auto& items = batch->taken->items;
    size_t n = items.size();
    Vec<iovec> from;
    auto transfers = make<Transfers>();
    if (!transfers || !from.resize(n)) return unmake(transfers), false;
    for (size_t i = 0; i < n; i++) from[i] = {s.page_data(items[i].frame), s.g.page_size};
    Transfer t;
    bool direct = prim::is_direct(fd);
    for (size_t next = 0;;) {
        while (next < n && transfers->room()) {
            u32 count = 1;
            while (count < MOST && next + count < n && items[next + count].page == items[next].page + count) count++;
            u64 offset = (items[next].page - batch->first) << s.g.page_shift;
            transfers->begin({true, fd, &from[next], count, offset, 0, direct}, u32(next));
            next += count;
        }
        if (!transfers->ended(t)) break;
        memset(done + t.first, t.got == ssize_t(u64(t.what.n) << s.g.page_shift), t.what.n);
    }
    unmake(transfers);
    return true;
}

// write_to(fd) -> for each page a byte: whether it has been written. Another one may have been written in part.
static PyObject* batch_write_to(PyObject* self, PyObject* arg) {
    auto batch = reinterpret_cast<BatchObject*>(self);
    int fd = int(PyLong_AsLong(arg));
    if (PyErr_Occurred()) return nullptr;
    Use use(batch->seg);
    SegmentObject* seg = under_way(batch);
    PyObject* whole = seg ? PyBytes_FromStringAndSize(nullptr, Py_ssize_t(batch->taken->items.size())) : nullptr;
    if (!whole) return nullptr;
    bool ok;
    {
        Released unlocked(seg);
        ok = write_items(*seg->s, batch, fd, PyBytes_AS_STRING(whole));
    }
    if (ok) return whole;
    Py_DECREF(whole);
    return PyErr_NoMemory();
}

static PyObject* batch_state(PyObject* self, void*) {
    return reinterpret_cast<BatchObject*>(self)->file.to_tuple();
}

static PyObject* batch_interrupted(PyObject* self, void*) {
    return PyBool_FromLong(reinterpret_cast<BatchObject*>(self)->interrupted);
}

static PyObject* batch_items(PyObject* self, void*) {
    auto batch = reinterpret_cast<BatchObject*>(self);
    auto& items = batch->taken->items;
    PyObject* bytes = PyBytes_FromStringAndSize(nullptr, Py_ssize_t(items.size() * sizeof(FlushItem)));
    auto out = bytes ? reinterpret_cast<FlushItem*>(PyBytes_AS_STRING(bytes)) : nullptr;
    for (const FlushItem& it : items)
        if (out) *out++ = {u32(it.page - batch->first), it.frame};
    return bytes;
}

static PyObject* batch_held_back(PyObject* self, void*) {
    return PyLong_FromUnsignedLongLong(reinterpret_cast<BatchObject*>(self)->taken->held_back);
}

static PyObject* batch_next(PyObject* self, void*) {
    auto batch = reinterpret_cast<BatchObject*>(self);
    return PyLong_FromUnsignedLongLong(batch->taken->next ? batch->taken->next - batch->first : 0);
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
    Py_CLEAR(batch->held);
    unmake(batch->taken);
    PyObject_Free(batch);
}

static PyMethodDef batch_methods[] = {
    {"mark_open", batch_mark_open, METH_NOARGS,
     "mark_open($self, /)\n--\n\n"
     "Says that the store is written from here on: if this flush does not end, the next one knows it."},
    {"write_to", batch_write_to, METH_O,
     "write_to($self, fd, /)\n--\n\n"
     "Writes the pages to a file, neighbours together; returns for each page whether it was written, as bytes\n"
     "of 0 and 1."},
    {"end", batch_end, METH_VARARGS,
     "end($self, synced, record, sync_ns=0, /)\n--\n\n"
     "Ends the flush: if ``synced``, the pages are clean. ``record``: None, or (pages stored, FileState or\n"
     "None), which is stored before the pages are released."},
    {nullptr, nullptr, 0, nullptr}};
static PyGetSetDef batch_getset[] = {
    {"items", batch_items, nullptr, "Pairs of uint32: page number, frame; in order.", nullptr},
    {"next", batch_next, nullptr, "The page at which to go on, 0 when the space has been gone through.", nullptr},
    {"held_back", batch_held_back, nullptr, "How many dirty pages were skipped because of their LSN.", nullptr},
    {"state", batch_state, nullptr, "What was known of the file when the flush began: a FileState.", nullptr},
    {"interrupted", batch_interrupted, nullptr, "Whether the flush before this one did not end.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyTypeObject BatchType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_batch_type() {
    return ready_type(BatchType, "bufferpool._core.Batch",
                      "Dirty pages that are being written; they stay dirty if it is dropped.", batch_dealloc,
                      batch_methods, batch_getset);
}

PyMethodDef flush_methods[] = {{"begin_flush", entered<segment_begin_flush, SegmentEntry>, METH_VARARGS,
                                "begin_flush($self, space, generation, selection, wait, /)\n--\n\n"
                                "Takes the flush lock of a space and the dirty pages that ``selection`` names:\n"
                                "a Batch. None: the space was removed, or another client flushes it and\n"
                                "``wait`` is false."},
                               {"dirty_range", entered<segment_dirty_range, SegmentEntry>, METH_VARARGS,
                                "dirty_range($self, first, count, /)\n--\n\n"
                                "Of a range of entries: (dirty pages, their highest LSN, the LSN of the oldest\n"
                                "change that the store lacks)."},
                               {nullptr, nullptr, 0, nullptr}};

}  // namespace bp
