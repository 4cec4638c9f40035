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
    u64 number;          // of this group, in this process
    u32 forks;           // the value of `forks` when its block began: in a forked child no group is open
    PyObject* outside;   // the token with which `inside` gets back what it was before the block
    GroupObject* next;   // the list of open groups
};

// The number of the group in whose block the present code runs. Each thread has its own, and each task of an event
// loop. A task that is made in the block is in it, too.
static PyObject* inside;
static GroupObject* open_groups;  // guarded by `lists`
static Count groups_open;
static thread_local bool taking;  // group.write() calls Space.write()

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

// Is a group of this pool open whose number `inside` has? 1 or 0; -1 with an exception.
static int in_block_of(SegmentObject* seg) {
    PyObject* number = nullptr;
    if (PyContextVar_Get(inside, nullptr, &number) < 0) return -1;
    u64 wanted = number ? PyLong_AsUnsignedLongLong(number) : 0;
    Py_XDECREF(number);
    Guard guard(lists);
    for (GroupObject* g = open_groups; g; g = g->next)
        if (g->number == wanted && g->seg == seg && g->forks == seg->forks) return 1;
    return 0;
}

// A write of a single page in the block of a group would be published by itself, before the group or without it. Code
// that a load or a flush calls (a loader, a store) is not part of the block. 0 or -1.
int refuse_in_group(SpaceObject* sp, const char* call) {
    if (!groups_open || taking) return 0;
    int found = in_block_of(sp->seg);
    if (found < 1 || works_for_pool(*sp->seg->s)) return found < 0 ? -1 : 0;
    raise("ValueError",
          "in the block of pool.publish_many(), %s would publish its page by itself: use group.write(space, page_no), "
          "or write the page before the block or after it",
          call);
    return -1;
}

static int enter_block(GroupObject* g) {
    static Atomic<u64> numbers;
    g->number = numbers.add_relaxed(1) + 1;
    PyObject* number = PyLong_FromUnsignedLongLong(g->number);
    g->outside = number ? PyContextVar_Set(inside, number) : nullptr;
    Py_XDECREF(number);
    if (!g->outside) return -1;
    Guard guard(lists);
    g->forks = g->seg->forks;
    g->next = open_groups;
    open_groups = g;
    groups_open++;
    g->open = true;
    return 0;
}

// Ends the block. Keeps the exception that is set.
static void leave_block(GroupObject* g) {
    if (!g->open) return;
    g->open = false;
    {
        Guard guard(lists);
        GroupObject** at = &open_groups;
        while (*at && *at != g) at = &(*at)->next;
        if (*at) *at = g->next;
        groups_open--;
    }
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    // In another task than the one that began the block, the variable keeps a number that no open group has.
    if (PyContextVar_Reset(inside, g->outside) < 0) PyErr_Clear();
    Py_CLEAR(g->outside);
    PyErr_Restore(type, value, trace);
}

static PyObject* segment_publish_many(PyObject* self, PyObject*) {
    auto g = PyObject_New(GroupObject, &GroupType);
    if (!g) return nullptr;
    g->seg = reinterpret_cast<SegmentObject*>(self);
    Py_INCREF(self);
    g->timeout_ns = 0;
    g->open = g->done = false;
    g->outside = nullptr;
    g->turn.clear();
    g->writes = PyList_New(0);
    if (!g->writes) return Py_DECREF(g), nullptr;
    return reinterpret_cast<PyObject*>(g);
}

static PyObject* group_enter(PyObject* self, PyObject*) {
    auto g = reinterpret_cast<GroupObject*>(self);
    if (g->open || g->done) return raise("ValueError", "a group of pages is used once; call publish_many() again");
    if (!opened(g->seg)) return nullptr;
    return enter_block(g) == 0 ? Py_NewRef(self) : nullptr;
}

// The most pages of a group. Their old versions cannot be evicted before the new ones are published, so a group needs
// two frames for each page.
static Py_ssize_t most_pages(GroupObject* g) { return std::max<Py_ssize_t>(1, g->seg->s->page_budget() / 4); }

// Does the space's limit leave no room for one more page of it in the group? All pages of a group are in the pool at
// the same time.
static bool fills_its_limit(GroupObject* g, SpaceObject* sp, u32& limit) {
    Share* share = share_of(*g->seg->s, entry_of(sp, 0));
    limit = share ? share->limit.load_relaxed() : 0;
    if (!limit) return false;
    Py_ssize_t of_it = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(g->writes); i++) of_it += write_at(g, i)->space->index == sp->index;
    return of_it >= Py_ssize_t(limit);
}

// Checks that a page of this space may be in the group. Returns 0 or -1.
static int check_space(GroupObject* g, PyObject* space) {
    if (!PyObject_TypeCheck(space, &SpaceType)) {
        raise("TypeError", "write() needs a Space, not %.100s", Py_TYPE(space)->tp_name);
        return -1;
    }
    auto sp = reinterpret_cast<SpaceObject*>(space);
    SegmentObject* seg = bound(sp);
    if (!seg || ready_space(sp) < 0) return -1;
    u32 limit;
    if (seg != g->seg)
        raise("ValueError",
              "the space belongs to another pool, or has pages of another size, and a group is published in one "
              "(space.pool.publish_many())");
    else if (sp->discardable)
        raise("ValueError",
              "pages of a discardable space may be dropped at any time, so that no group of them is whole");
    else if (PyList_GET_SIZE(g->writes) >= most_pages(g))
        raise("GroupFull",
              "a group has at most a quarter of the pool's frames, which are %zd pages: publish fewer pages "
              "as one, or resize the pool",
              most_pages(g));
    else if (fills_its_limit(g, sp, limit))
        raise("GroupFull",
              "a group has at most as many pages of a space as its limit allows, which are %u pages: publish fewer "
              "pages as one, or raise the limit (space.set_share(limit=...))",
              limit);
    else return 0;
    return -1;
}

static PyObject* group_write(PyObject* self, PyObject* args, PyObject* kwargs) {
    auto g = reinterpret_cast<GroupObject*>(self);
    static const char* names[] = {"space", "page_no", "timeout", "lsn", "fresh", nullptr};
    PyObject *space, *page_no, *timeout = nullptr, *lsn = nullptr, *fresh = nullptr;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OOO:write", const_cast<char**>(names), &space, &page_no,
                                     &timeout, &lsn, &fresh))
        return nullptr;
    if (fresh && !PyBool_Check(fresh)) return raise("TypeError", "fresh must be True or False, not %R", fresh);
    if (!g->open) return raise("ValueError", "use a block, as in `with pool.publish_many() as group: ...`");
    if (!opened(g->seg) || check_space(g, space) < 0) return nullptr;
    PyObject* given = PyDict_New();
    PyObject* call = given ? PyObject_GetAttrString(space, "write") : nullptr;
    PyObject* one = call ? PyTuple_Pack(1, page_no) : nullptr;
    bool ready = one && (!timeout || PyDict_SetItemString(given, "timeout", timeout) == 0) &&
                 (!lsn || PyDict_SetItemString(given, "lsn", lsn) == 0);
    taking = true;
    PyObject* made = ready ? PyObject_Call(call, one, given) : nullptr;
    taking = false;
    Py_XDECREF(one);
    Py_XDECREF(call);
    Py_XDECREF(given);
    if (!made) return nullptr;
    auto w = reinterpret_cast<WriteObject*>(made);
    w->blank = fresh == Py_True;  // and not FRESH, which has no writer before its block ends
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
    leave_block(g);
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
        if (w->is_counted) continue;  // by an earlier try
        if (!may_keep(v)) return -1;
        w->is_counted = v.is_counted;
        w->counted = v.counted;
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
        end_copy(w);
    }
    PyList_SetSlice(g->writes, 0, PyList_GET_SIZE(g->writes), nullptr);
    leave_block(g);
    g->done = true;
    Py_RETURN_NONE;
}

static Py_ssize_t group_length(PyObject* self) { return PyList_GET_SIZE(reinterpret_cast<GroupObject*>(self)->writes); }

static void group_dealloc(GroupObject* g) {
    leave_block(g);  // of a generator that was deleted
    Py_XDECREF(g->writes);  // a Write that is dropped ends without publishing
    Py_DECREF(g->seg);
    PyObject_Free(g);
}

static PyMethodDef group_methods[] = {
    {"write", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(entered<group_write, GroupEntry>)),
     METH_VARARGS | METH_KEYWORDS,
     "write($self, /, space, page_no, *, timeout=10.0, lsn=None, fresh=False)\n--\n\n"
     "Take a page into the group: return a private copy of it, to be edited until the block ends.\n\n"
     "``timeout`` and ``lsn`` as in ``Space.write``. ``fresh``: the copy is zeros, for a page that is replaced as a\n"
     "whole; a page that is absent is loaded all the same, because its old version is the page's until the block\n"
     "ends. From here on no other client writes the page: groups whose pages overlap must take them in the same\n"
     "order. Raises what ``Space.write`` raises; GroupFull; and ValueError for a space of another\n"
     "pool, or a discardable one."},
    {"__enter__", entered<group_enter, GroupEntry>, METH_NOARGS, "The group."},
    {"__exit__", entered<group_exit, GroupEntry>, METH_VARARGS, "Publishes all pages, or none if the block raised."},
    {nullptr, nullptr, 0, nullptr}};

PyTypeObject GroupType = {PyVarObject_HEAD_INIT(nullptr, 0)};

static PySequenceMethods group_sequence = {};

int ready_group_type() {
    inside = PyContextVar_New("bufferpool.publish_many", nullptr);
    if (!inside) return -1;
    group_sequence.sq_length = group_length;
    GroupType.tp_as_sequence = &group_sequence;
    return ready_type(GroupType, "bufferpool._core.PublishGroup",
                      "Pages that are published as one when the block ends.", group_dealloc, group_methods);
}

PyMethodDef publish_methods[] = {
    {"publish_many", entered<segment_publish_many, SegmentEntry>, METH_NOARGS,
     "publish_many($self, /)\n--\n\n"
     "A PublishGroup."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace bp
