// Pages pinned together: one object has all the pins, and makes an array for a page on demand (views.cpp
// explains how an array keeps its pin).
#include "python/views.h"

#include <utility>

#include "protocol/client.h"

namespace bp {

struct PinnedPagesObject {
    PyObject_VAR_HEAD SpaceObject* space;  // null once released
    PyObject* base;
    PyObject** pages;    // made on demand
    PinNode pins[1];
};

PyObject* new_pinned_pages(SpaceObject* sp, u32* frames, Py_ssize_t n) {
    auto p = PyObject_NewVar(PinnedPagesObject, &PinnedPagesType, n);
    if (!p) {
        for (Py_ssize_t i = 0; i < n; i++) drop_pin(sp->seg, frames[i]);
        return nullptr;
    }
    p->base = nullptr;
    p->pages = nullptr;
    p->space = sp;
    Py_INCREF(sp);
    SegmentObject* seg = sp->seg;
    for (Py_ssize_t i = 0; i < n; i++) link_pin(seg, &p->pins[i], frames[i]);
    return reinterpret_cast<PyObject*>(p);
}

static bool pages_releasable(PinnedPagesObject* p, Others others) {
    if (!p->base) return true;
    Py_ssize_t ours = 1;
    for (Py_ssize_t i = 0; i < Py_SIZE(p); i++) {
        if (!p->pages || !p->pages[i]) continue;
        if (Py_REFCNT(p->pages[i]) > others) return false;
        ours++;
    }
    return Py_REFCNT(p->base) == ours;
}

// Releases the pins; those of `kept` (a chain of holders, or null) are kept by the arrays. First it marks
// the pins as released, for every other thread.
static void pages_forget(PinnedPagesObject* p, PyObject* kept, bool all_kept) {
    SpaceObject* sp = std::exchange(p->space, nullptr);
    PyObject* base = std::exchange(p->base, nullptr);
    PyObject** pages = std::exchange(p->pages, nullptr);
    SegmentObject* seg = sp->seg;
    for (Py_ssize_t i = 0; i < Py_SIZE(p); i++) {
        PyObject* page = pages ? pages[i] : nullptr;
        bool keep = all_kept || (kept && page && is_unclear(page));
        unlink_pin(seg, &p->pins[i]);
        if (!keep) {
            drop_pin(seg, p->pins[i].frame);
            if (page) make_empty(page);
        }
        Py_XDECREF(page);
    }
    PyMem_Free(pages);
    if (kept) Py_SETREF(base_of(base), kept);
    Py_XDECREF(base);
    Py_DECREF(sp);
}

// Makes holders for the pins that must be kept: of pages with unclear arrays, or of all. False with an error set.
static bool holders_of(PinnedPagesObject* p, bool all, PyObject*& first) {
    PyObject* others = nullptr;
    first = nullptr;
    for (Py_ssize_t i = 0; i < Py_SIZE(p); i++) {
        if (!all && !(p->pages && p->pages[i] && is_unclear(p->pages[i]))) continue;
        PyObject* h = new_holder(p->space->seg, p->pins[i].frame);
        if (!first && h) {
            first = h;
            continue;
        }
        if (!others && h) add_holders(first, others = PyList_New(0));
        // Out of memory: the holders made so far are never freed, because that would release the pins.
        if (!h || !others || PyList_Append(others, h) < 0) return first = nullptr, false;
        Py_DECREF(h);
    }
    return true;
}

static int pages_release(PinnedPagesObject* p, Others others) {
    if (!p->space) return 0;
    if (!pages_releasable(p, others)) {
        raise("BufferError",
              "these %zd pages cannot be released: other arrays over them exist; delete them first, "
              "or copy what you keep (they keep the pages pinned)",
              Py_SIZE(p));
        return -1;
    }
    PyObject* holders = nullptr;
    if (p->base && !holders_of(p, false, holders)) return -1;
    pages_forget(p, holders, false);
    return 0;
}

// The arrays that outlive this object share one base array: it gets the holders.
static void pages_dealloc(PinnedPagesObject* p) {
    if (p->space) {
        Use use(p->space->seg);
        PyObject* holders = nullptr;
        if (!pages_releasable(p, NOBODY)) {
            // Out of memory: never release the pins, rather than too early.
            if (!holders_of(p, true, holders)) PyErr_WriteUnraisable(nullptr);
            pages_forget(p, holders, true);
        } else {
            pages_forget(p, nullptr, false);
        }
    }
    PyObject_Free(p);
}

struct PagesEntry {
    Critical critical;
    Use use;
    explicit PagesEntry(PyObject* self)
        : critical(self),
          use(segment_of(reinterpret_cast<PinnedPagesObject*>(self)->space)) {}
    bool ok() const { return true; }
};

static Py_ssize_t pages_length(PyObject* self) { return Py_SIZE(self); }

static PyObject* pages_item(PyObject* self, Py_ssize_t i) {
    auto p = reinterpret_cast<PinnedPagesObject*>(self);
    if (!p->space) return raise("ValueError", "these pins have been released; pin the pages again");
    if (i < 0 || i >= Py_SIZE(p))
        return raise("IndexError", "%zd pages are pinned; there is no number %zd", Py_SIZE(p), i);
    if (!p->pages) {
        p->pages = static_cast<PyObject**>(PyMem_Calloc(size_t(Py_SIZE(p)), sizeof(PyObject*)));
        if (!p->pages) return PyErr_NoMemory();
    }
    if (!p->base && !(p->base = new_base(p->space->seg))) return nullptr;
    if (!p->pages[i]) {
        Py_INCREF(p->base);
        p->pages[i] = array_over(p->space, p->pins[i].frame, p->base);
        if (!p->pages[i]) return nullptr;
    }
    Py_INCREF(p->pages[i]);
    return p->pages[i];
}

static PyObject* pages_enter(PyObject* self, PyObject*) {
    Py_INCREF(self);
    return self;
}

static PyObject* pages_exit(PyObject* self, PyObject* const* args, Py_ssize_t n) {
    auto p = reinterpret_cast<PinnedPagesObject*>(self);
    bool failing = n > 0 && args[0] != Py_None;
    if (failing && p->space && !pages_releasable(p, A_NAME)) Py_RETURN_NONE;
    if (pages_release(p, A_NAME) < 0) return nullptr;
    Py_RETURN_NONE;
}

static PyObject* pages_release_method(PyObject* self, PyObject*) {
    if (pages_release(reinterpret_cast<PinnedPagesObject*>(self), NOBODY) < 0) return nullptr;
    Py_RETURN_NONE;
}

static PyObject* pages_repr(PyObject* self) {
    auto p = reinterpret_cast<PinnedPagesObject*>(self);
    return PyUnicode_FromFormat("<PinnedPages: %zd pages%s>", Py_SIZE(self), p->space ? "" : ", released");
}

static PyMethodDef pages_methods[] = {
    {"__enter__", pages_enter, METH_NOARGS, "The pages: a sequence of read-only arrays."},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(entered<pages_exit, PagesEntry>)), METH_FASTCALL,
     "Releases the pins."},
    {"release", entered<pages_release_method, PagesEntry>, METH_NOARGS,
     "release($self, /)\n--\n\nReleases the pins. Raises BufferError while other arrays look at the pages."},
    {nullptr, nullptr, 0, nullptr}};
static PySequenceMethods pages_sequence = {};

PyTypeObject PinnedPagesType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_pinned_pages_type() {
    pages_sequence.sq_length = pages_length;
    pages_sequence.sq_item = entered<pages_item, PagesEntry>;
    PinnedPagesType.tp_basicsize = offsetof(PinnedPagesObject, pins);
    PinnedPagesType.tp_itemsize = sizeof(PinNode);
    PinnedPagesType.tp_as_sequence = &pages_sequence;
    PinnedPagesType.tp_repr = entered<pages_repr, PagesEntry>;
    return ready_type(PinnedPagesType, "bufferpool._core.PinnedPages",
                      "Pages pinned together: a sequence of read-only arrays.", pages_dealloc, pages_methods);
}

}  // namespace bp
