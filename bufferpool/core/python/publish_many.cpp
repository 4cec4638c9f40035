// PublishGroup: pages that are published as one when its `with` block ends.
#include "protocol/publish_many.h"

#include "python/write.h"

namespace bp {

struct GroupObject {
    PyObject_HEAD SegmentObject* seg;
    PyObject* writes;  // a list of Writes, all open
    u64 timeout_ns;    // the longest of the pages'
    bool open, done;
    Turn turn;  // of a thread is in a method
};

static WriteObject* write_at(GroupObject* g, Py_ssize_t i) {
    return reinterpret_cast<WriteObject*>(PyList_GET_ITEM(g->writes, i));
}

// The Entry of every method: a group belongs to one thread at a time.
class GroupEntry {
    GroupObject* g_;
    bool mine_;
    Use use_;

public:
    explicit GroupEntry(PyObject* self)
        : g_(reinterpret_cast<GroupObject*>(self)),
          mine_(g_->turn.take()),
          use_(g_->seg, HELD) {
        if (!mine_)
            raise("ValueError",
                  "another thread uses this group of pages; each thread that writes needs one of its own");
    }
    ~GroupEntry() {
        if (mine_) g_->turn.give_back();
    }
    bool ok() const { return mine_; }
};

static PyObject* segment_publish_many(PyObject* self, PyObject*) {
    auto g = PyObject_New(GroupObject, &GroupType);
    if (!g) return nullptr;
    g->seg = reinterpret_cast<SegmentObject*>(self);
    Py_INCREF(self);
    g->timeout_ns = 0;
    g->open = g->done = false;
    g->turn.clear();
    g->writes = PyList_New(0);
    if (!g->writes) return Py_DECREF(g), nullptr;
    return reinterpret_cast<PyObject*>(g);
}

static PyObject* group_enter(PyObject* self, PyObject*) {
    auto g = reinterpret_cast<GroupObject*>(self);
    if (g->open || g->done) return raise("ValueError", "a group of pages is used once; call publish_many() again");
    if (!opened(g->seg)) return nullptr;
    g->open = true;
    return Py_NewRef(self);
}

// The most pages of a group. Their old versions cannot be evicted before the new ones are published, so a group needs
// two frames for each page.
static Py_ssize_t most_pages(GroupObject* g) { return std::max<Py_ssize_t>(1, g->seg->s->page_budget() / 4); }

// Checks that a page of this space may be in the group. Returns 0 or -1.
static int check_space(GroupObject* g, PyObject* space) {
    if (!PyObject_TypeCheck(space, &SpaceType)) {
        raise("TypeError", "write() needs a Space, not %.100s", Py_TYPE(space)->tp_name);
        return -1;
    }
    auto sp = reinterpret_cast<SpaceObject*>(space);
    SegmentObject* seg = bound(sp);
    if (!seg) return -1;
    if (seg != g->seg) raise("ValueError", "the space belongs to another pool, and a group is published in one");
    else if (sp->discardable)
        raise("ValueError",
              "pages of a discardable space may be dropped at any time, so that no group of them is whole");
    else if (PyList_GET_SIZE(g->writes) >= most_pages(g))
        raise("GroupFull",
              "a group has at most a quarter of the pool's frames, which are %zd pages: publish fewer pages "
              "as one, or resize the pool",
              most_pages(g));
    else return 0;
    return -1;
}

static PyObject* group_write(PyObject* self, PyObject* args, PyObject* kwargs) {
    auto g = reinterpret_cast<GroupObject*>(self);
    static const char* names[] = {"space", "page_no", "timeout", "lsn", nullptr};
    PyObject *space, *page_no, *timeout = nullptr, *lsn = nullptr;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OO:write", const_cast<char**>(names), &space, &page_no,
                                     &timeout, &lsn))
        return nullptr;
    if (!g->open) return raise("ValueError", "use a block, as in `with pool.publish_many() as group: ...`");
    if (!opened(g->seg) || check_space(g, space) < 0) return nullptr;
    PyObject* given = PyDict_New();
    PyObject* call = given ? PyObject_GetAttrString(space, "write") : nullptr;
    PyObject* one = call ? PyTuple_Pack(1, page_no) : nullptr;
    bool ready = one && (!timeout || PyDict_SetItemString(given, "timeout", timeout) == 0) &&
                 (!lsn || PyDict_SetItemString(given, "lsn", lsn) == 0);
    PyObject* made = ready ? PyObject_Call(call, one, given) : nullptr;
    Py_XDECREF(one);
    Py_XDECREF(call);
    Py_XDECREF(given);
    if (!made) return nullptr;
    auto w = reinterpret_cast<WriteObject*>(made);
    // The Write is in the list before its page has a writer. So if anything fails or raises from here on, the end of
    // the group also ends this Write.
    PyObject* page = PyList_Append(g->writes, made) == 0 ? write_enter(made, nullptr) : nullptr;
    Py_DECREF(made);
    if (page) g->timeout_ns = std::max(g->timeout_ns, w->timeout_ns);
    else if (Py_ssize_t n = PyList_GET_SIZE(g->writes); n && write_at(g, n - 1) == w) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        PyList_SetSlice(g->writes, n - 1, n, nullptr);
        PyErr_Restore(type, value, trace);
    }
    return page;
}

// Ends the group without publishing.
static void group_abort(GroupObject* g) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(g->writes); i++) write_abort(write_at(g, i));
    PyList_SetSlice(g->writes, 0, PyList_GET_SIZE(g->writes), nullptr);
    g->open = false;
    g->done = true;
    PyErr_Restore(type, value, trace);
}

// Checks that the spaces of all pages are open, and that their new versions may be kept. Returns 0 or -1.
static int may_publish(GroupObject* g) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(g->writes); i++) {
        WriteObject* w = write_at(g, i);
        if (!is_ours(w)) return raise_not_ours(w), -1;
        if (!place_of(w->space, w->page_no).open()) return raise_removed(w->space, w->page_no), -1;
        Version v{w->space, w->page_no, w->kind, nullptr, w->lsn, w->lsn_set, w->timeout_ns, w->forks};
        if (!may_keep(v)) return -1;
    }
    return 0;
}

static int group_publish(GroupObject* g) {
    Py_ssize_t n = PyList_GET_SIZE(g->writes);
    Vec<GroupPage> pages;
    if (!n) return 0;
    if (!pages.reserve(size_t(n))) return PyErr_NoMemory(), -1;
    for (Py_ssize_t i = 0; i < n; i++) {
        WriteObject* w = write_at(g, i);
        if (!is_ours(w)) return raise_not_ours(w), -1;
        if (!pages.push(
                {entry_of(w->space, w->page_no), PyArray_DATA(reinterpret_cast<PyArrayObject*>(w->page)), w->lsn}))
            return PyErr_NoMemory(), -1;
    }
    if (!may_work(g->seg)) return -1;
    Busy busy(g->seg);
    WriteObject* first = write_at(g, 0);
    PublishHooks hooks{{{first->space, first->page_no, prim::now_ns() + g->timeout_ns}}, first->forks};
    Segment& s = *g->seg->s;
    FrameRequest want{};
    FrameWait waited(s, want);
    for (;;) {
        if (may_publish(g) < 0) return -1;
        Status status = hooks.unlocked([&] { return publish_pages(s, pages.data(), u32(n), want); });
        if (status == Status::OK) return 0;
        status = hooks.make_room(status, want);
        if (status != Status::OK) return answer(status, first->space, first->page_no);
    }
}

static PyObject* group_exit(PyObject* self, PyObject* args) {
    auto g = reinterpret_cast<GroupObject*>(self);
    if (!g->open) return raise("ValueError", "this group of pages is not open");
    bool failing = PyTuple_GET_SIZE(args) > 0 && PyTuple_GET_ITEM(args, 0) != Py_None;
    if (failing || group_publish(g) < 0) {
        group_abort(g);
        if (failing) Py_RETURN_NONE;
        return nullptr;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(g->writes); i++) {
        WriteObject* w = write_at(g, i);
        set_closed(w);
        w->done = true;
        Py_CLEAR(w->page);
    }
    PyList_SetSlice(g->writes, 0, PyList_GET_SIZE(g->writes), nullptr);
    g->open = false;
    g->done = true;
    Py_RETURN_NONE;
}

static Py_ssize_t group_length(PyObject* self) { return PyList_GET_SIZE(reinterpret_cast<GroupObject*>(self)->writes); }

static void group_dealloc(GroupObject* g) {
    Py_XDECREF(g->writes);  // a Write that is dropped ends without publishing
    Py_DECREF(g->seg);
    PyObject_Free(g);
}

static PyMethodDef group_methods[] = {
    {"write", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(entered<group_write, GroupEntry>)),
     METH_VARARGS | METH_KEYWORDS,
     "write($self, /, space, page_no, *, timeout=10.0, lsn=None)\n--\n\n"
     "Take a page into the group: return a private copy of it, to be edited until the block ends.\n\n"
     "``timeout`` and ``lsn`` as in ``Space.write``. From here on no other client writes the page: groups whose pages "
     "overlap\n"
     "must take them in the same order. Raises what ``Space.write`` raises; GroupFull; and ValueError for a space of "
     "another\n"
     "pool, or a discardable one."},
    {"__enter__", entered<group_enter, GroupEntry>, METH_NOARGS, "The group."},
    {"__exit__", entered<group_exit, GroupEntry>, METH_VARARGS, "Publishes all pages, or none if the block raised."},
    {nullptr, nullptr, 0, nullptr}};

PyTypeObject GroupType = {PyVarObject_HEAD_INIT(nullptr, 0)};

static PySequenceMethods group_sequence = {};

int ready_group_type() {
    group_sequence.sq_length = group_length;
    GroupType.tp_as_sequence = &group_sequence;
    return ready_type(GroupType, "bufferpool._core.PublishGroup",
                      "Pages that are published as one when the block ends.", group_dealloc, group_methods);
}

PyMethodDef publish_methods[] = {
    {"publish_many", entered<segment_publish_many, SegmentEntry>, METH_NOARGS, "A PublishGroup."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace bp
