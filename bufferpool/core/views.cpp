// Arrays over pinned pages. Every array keeps its pin alive, in one of two ways:
//
//   space[n]       array -> Holder (the pin)
//   with pin(n)    array -> base array (no owner)      the Pin has the pin, and
//                  Pin   -> base array                  counts who else looks
//
// At the end of the block the Pin looks at the reference counts. Only the base
// array and the array that it gave out (and that the block's name still holds):
// that array is made empty, shape (0,), and the pin is released. Anything else
// looks at the page: BufferError, and the base array gets a Holder, so that the
// pin lives as long as they do. (numpy gives every array made from another the
// outermost exact ndarray as its base; so all of them hold the base array.)
// One reference left, of an array whose buffer was once exported, may be the name
// or a memoryview: then the pin is handed over too, without an error.
#include "py.h"

#include "client.h"

namespace bp {

struct HolderObject {
    PyObject_HEAD
    PinNode pin;
    SegmentObject* seg;
};

struct PinObject {
    PyObject_HEAD
    PinNode pin;
    SpaceObject* space;  // null once released
    PyObject* base;      // kept between uses of this object
    PyObject* page;
    char* base_of;       // the mapping that `base` was made for
    u64 page_no;
};

struct PinnedPagesObject {
    PyObject_VAR_HEAD
    SpaceObject* space;  // null once released
    PyObject* base;
    PyObject** pages;    // made when asked for
    PinNode pins[1];
};

// Takes back a pin of this process, which may have lost its segment in a fork.
void drop_pin(SegmentObject* seg, u32 frame) {
    Segment* s = seg->s;
    if (!s || !s->me) return;
    if (s->pin_count(frame).sub_seq_cst(1) != 1) return;
    if (frame::state(s->frames[frame].word.load_seq_cst()) != OLD) return;
    Released unlocked(seg);
    if (settle_old(*s, frame)) free_frame(*s, frame);
}

// ---- Holder --------------------------------------------------------------------

static HolderObject* holder_cache[64];
static int holder_cached;

static PyObject* new_holder(SegmentObject* seg, u32 frame) {
    HolderObject* h;
    if (holder_cached) {
        h = holder_cache[--holder_cached];
        (void)PyObject_Init(reinterpret_cast<PyObject*>(h), &HolderType);
    } else {
        h = PyObject_New(HolderObject, &HolderType);
        if (!h) return nullptr;
    }
    h->seg = seg;
    Py_INCREF(seg);
    link_pin(seg, &h->pin, frame);
    return reinterpret_cast<PyObject*>(h);
}

static void holder_dealloc(HolderObject* h) {
    SegmentObject* seg = h->seg;
    unlink_pin(&h->pin);
    drop_pin(seg, h->pin.frame);
    if (holder_cached < 64) holder_cache[holder_cached++] = h;
    else PyObject_Free(h);
    Py_DECREF(seg);
}

PyTypeObject HolderType = {PyVarObject_HEAD_INIT(nullptr, 0)};

// ---- arrays ----------------------------------------------------------------------

static PyObject* array_over(SpaceObject* sp, u32 frame, PyObject* base) {
    char* at = sp->seg->read_base + (u64(frame) << sp->seg->s->g.page_shift);
    Py_INCREF(sp->dtype);
    PyObject* a = PyArray_NewFromDescr(&PyArray_Type, sp->dtype, 1, &sp->items, nullptr, at, NPY_ARRAY_CARRAY_RO, nullptr);
    if (!a) {
        Py_DECREF(base);
        return nullptr;
    }
    PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(a), base);
    return a;
}

PyObject* view_of(SpaceObject* sp, u32 frame) {
    PyObject* holder = new_holder(sp->seg, frame);
    if (!holder) {
        drop_pin(sp->seg, frame);
        return nullptr;
    }
    return array_over(sp, frame, holder);
}

static PyObject* new_base(SegmentObject* seg) {
    npy_intp bytes = npy_intp(u64(seg->s->g.max_frames) << seg->s->g.page_shift);
    return PyArray_NewFromDescr(&PyArray_Type, PyArray_DescrFromType(NPY_UINT8), 1, &bytes, nullptr, seg->read_base,
                                NPY_ARRAY_CARRAY_RO, nullptr);
}

// How many others may hold an array that we gave out: at the end of its block
// the block's name still does, otherwise nobody.
enum Others : Py_ssize_t { NOBODY = 1, A_NAME = 2 };

// The one other reference may be the name's, or that of a memoryview.
static bool is_unclear(PyObject* page) {
    return Py_REFCNT(page) == A_NAME && reinterpret_cast<PyArrayObject_fields*>(page)->_buffer_info != nullptr;
}

static void make_empty(PyObject* page) {
    auto fields = reinterpret_cast<PyArrayObject_fields*>(page);
    fields->dimensions[0] = 0;
}

// ---- Pin -------------------------------------------------------------------------

static PinObject* pin_cache[16];
static int pin_cached;

PyObject* new_pin(SpaceObject* sp, u32 frame, u64 page_no) {
    PinObject* p;
    if (pin_cached) {
        p = pin_cache[--pin_cached];
        (void)PyObject_Init(reinterpret_cast<PyObject*>(p), &PinType);
    } else {
        p = PyObject_New(PinObject, &PinType);
        if (!p) {
            drop_pin(sp->seg, frame);
            return nullptr;
        }
        p->base = nullptr;
    }
    if (p->base && p->base_of != sp->seg->read_base) Py_CLEAR(p->base);
    p->base_of = sp->seg->read_base;
    p->page = nullptr;
    p->page_no = page_no;
    p->space = sp;
    Py_INCREF(sp);
    link_pin(sp->seg, &p->pin, frame);
    return reinterpret_cast<PyObject*>(p);
}

static void pin_forget(PinObject* p) {
    unlink_pin(&p->pin);
    Py_CLEAR(p->page);
    Py_CLEAR(p->space);
}

// Other arrays look at the page: from now on they own the pin.
static void hand_over(SegmentObject* seg, PyObject** base, u32 frame) {
    PyObject* holder = new_holder(seg, frame);
    if (!holder) {
        PyErr_WriteUnraisable(*base);  // out of memory: the pin stays, rather than go too early
        return;
    }
    reinterpret_cast<PyArrayObject_fields*>(*base)->base = holder;
    Py_CLEAR(*base);
}

static bool pin_releasable(PinObject* p, Others others) {
    Py_ssize_t ours = 1 + (p->page ? 1 : 0);
    return !p->base || (Py_REFCNT(p->base) == ours && (!p->page || Py_REFCNT(p->page) <= others));
}

// 0, or -1 with BufferError.
static int pin_release(PinObject* p, Others others) {
    if (!p->space) return 0;
    if (!pin_releasable(p, others)) {
        raise("BufferError", "page %llu cannot be released: other arrays still look at it; delete them first, "
              "or copy what you keep (they keep the page pinned)", (unsigned long long)p->page_no);
        return -1;
    }
    if (p->page && is_unclear(p->page)) {
        hand_over(p->space->seg, &p->base, p->pin.frame);
        pin_forget(p);
        return 0;
    }
    if (p->page) {
        make_empty(p->page);
        // The emptied array must not keep the cached base array in use.
        auto fields = reinterpret_cast<PyArrayObject_fields*>(p->page);
        Py_CLEAR(fields->base);
    }
    drop_pin(p->space->seg, p->pin.frame);
    pin_forget(p);
    return 0;
}

static void pin_dealloc(PinObject* p) {
    if (p->space) {
        SegmentObject* seg = p->space->seg;
        if (p->base && Py_REFCNT(p->base) > 1 + (p->page && Py_REFCNT(p->page) == 1 ? 1 : 0)) hand_over(seg, &p->base, p->pin.frame);
        else drop_pin(seg, p->pin.frame);
        pin_forget(p);
    }
    if (pin_cached < 16) {
        pin_cache[pin_cached++] = p;
    } else {
        Py_CLEAR(p->base);
        PyObject_Free(p);
    }
}

static PyObject* pin_page(PinObject* p, void*) {
    if (!p->space) return raise("ValueError", "this pin has been released; pin the page again");
    if (!p->page) {
        if (!p->base && !(p->base = new_base(p->space->seg))) return nullptr;
        Py_INCREF(p->base);
        p->page = array_over(p->space, p->pin.frame, p->base);
        if (!p->page) return nullptr;
    }
    Py_INCREF(p->page);
    return p->page;
}

static PyObject* pin_enter(PyObject* self, PyObject*) { return pin_page(reinterpret_cast<PinObject*>(self), nullptr); }

static PyObject* pin_exit(PyObject* self, PyObject* const* args, Py_ssize_t n) {
    auto p = reinterpret_cast<PinObject*>(self);
    bool failing = n > 0 && args[0] != Py_None;
    // While an exception passes, its traceback holds arrays: they keep the pin.
    if (failing && p->space && !pin_releasable(p, A_NAME)) Py_RETURN_NONE;
    if (pin_release(p, A_NAME) < 0) return nullptr;
    Py_RETURN_NONE;
}

static PyObject* pin_release_method(PyObject* self, PyObject*) {
    if (pin_release(reinterpret_cast<PinObject*>(self), NOBODY) < 0) return nullptr;
    Py_RETURN_NONE;
}

static PyObject* pin_page_no(PinObject* p, void*) { return PyLong_FromUnsignedLongLong(p->page_no); }
static PyObject* pin_lsn(PinObject* p, void*) {
    if (!p->space) return raise("ValueError", "this pin has been released; pin the page again");
    return PyLong_FromUnsignedLongLong(p->space->seg->s->frames[p->pin.frame].lsn.load_relaxed());
}

static PyMethodDef pin_methods[] = {
    {"__enter__", pin_enter, METH_NOARGS, "The page: a read-only array."},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(pin_exit)), METH_FASTCALL, "Releases the pin."},
    {"release", pin_release_method, METH_NOARGS, "Releases the pin. Raises BufferError while other arrays look at the page."},
    {nullptr, nullptr, 0, nullptr}};
static PyGetSetDef pin_getset[] = {
    {"page", reinterpret_cast<getter>(pin_page), nullptr, "The page: a read-only array.", nullptr},
    {"page_no", reinterpret_cast<getter>(pin_page_no), nullptr, "The page number.", nullptr},
    {"lsn", reinterpret_cast<getter>(pin_lsn), nullptr, "The LSN of this version of the page.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyTypeObject PinType = {PyVarObject_HEAD_INIT(nullptr, 0)};

// ---- PinnedPages -------------------------------------------------------------------

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
    for (Py_ssize_t i = 0; i < n; i++) link_pin(sp->seg, &p->pins[i], frames[i]);
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

// Gives up the pins; those in `kept` (holders, or null) live on with the arrays.
static void pages_forget(PinnedPagesObject* p, PyObject* kept, bool all_kept) {
    SegmentObject* seg = p->space->seg;
    for (Py_ssize_t i = 0; i < Py_SIZE(p); i++) {
        PyObject* page = p->pages ? p->pages[i] : nullptr;
        bool keep = all_kept || (kept && page && is_unclear(page));
        unlink_pin(&p->pins[i]);
        if (!keep) {
            drop_pin(seg, p->pins[i].frame);
            if (page) make_empty(page);
        }
        if (page) Py_CLEAR(p->pages[i]);
    }
    PyMem_Free(p->pages);
    p->pages = nullptr;
    if (kept) reinterpret_cast<PyArrayObject_fields*>(p->base)->base = kept;
    Py_CLEAR(p->base);
    Py_CLEAR(p->space);
}

// Holders of the pins that must live on: of the pages of unclear arrays, or of all.
static PyObject* holders_of(PinnedPagesObject* p, bool all) {
    PyObject* holders = PyList_New(0);
    for (Py_ssize_t i = 0; holders && i < Py_SIZE(p); i++) {
        if (!all && !(p->pages && p->pages[i] && is_unclear(p->pages[i]))) continue;
        PyObject* h = new_holder(p->space->seg, p->pins[i].frame);
        if (!h || PyList_Append(holders, h) < 0) Py_CLEAR(holders);
        Py_XDECREF(h);
    }
    return holders;
}

static int pages_release(PinnedPagesObject* p, Others others) {
    if (!p->space) return 0;
    if (!pages_releasable(p, others)) {
        raise("BufferError", "these %zd pages cannot be released: other arrays still look at them; delete them first, "
              "or copy what you keep (they keep the pages pinned)", Py_SIZE(p));
        return -1;
    }
    PyObject* holders = p->base ? holders_of(p, false) : nullptr;
    if (p->base && !holders) return -1;
    if (holders && PyList_GET_SIZE(holders) == 0) Py_CLEAR(holders);
    pages_forget(p, holders, false);
    return 0;
}

// The arrays that outlive this object share one base array: it gets the holders.
static void pages_dealloc(PinnedPagesObject* p) {
    if (p->space) {
        PyObject* holders = nullptr;
        if (!pages_releasable(p, NOBODY)) {
            holders = holders_of(p, true);
            if (!holders) PyErr_WriteUnraisable(nullptr);  // out of memory: the pins stay, rather than go too early
            pages_forget(p, holders, true);
        } else {
            pages_forget(p, nullptr, false);
        }
    }
    PyObject_Free(p);
}

static Py_ssize_t pages_length(PyObject* self) { return Py_SIZE(self); }

static PyObject* pages_item(PyObject* self, Py_ssize_t i) {
    auto p = reinterpret_cast<PinnedPagesObject*>(self);
    if (!p->space) return raise("ValueError", "these pins have been released; pin the pages again");
    if (i < 0 || i >= Py_SIZE(p)) return raise("IndexError", "%zd pages are pinned; there is no number %zd", Py_SIZE(p), i);
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

static PyMethodDef pages_methods[] = {
    {"__enter__", pages_enter, METH_NOARGS, "The pages: a sequence of read-only arrays."},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(pages_exit)), METH_FASTCALL, "Releases the pins."},
    {"release", pages_release_method, METH_NOARGS, "Releases the pins. Raises BufferError while other arrays look at the pages."},
    {nullptr, nullptr, 0, nullptr}};
static PySequenceMethods pages_sequence = {};

PyTypeObject PinnedPagesType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_view_types() {
    HolderType.tp_name = "bufferpool._core.Holder";
    HolderType.tp_basicsize = sizeof(HolderObject);
    HolderType.tp_dealloc = reinterpret_cast<destructor>(holder_dealloc);
    HolderType.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
    HolderType.tp_doc = "Owns one pin; the base of an array over a page.";

    PinType.tp_name = "bufferpool._core.Pin";
    PinType.tp_basicsize = sizeof(PinObject);
    PinType.tp_dealloc = reinterpret_cast<destructor>(pin_dealloc);
    PinType.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
    PinType.tp_doc = "One pinned page; as a block, released at its end.";
    PinType.tp_methods = pin_methods;
    PinType.tp_getset = pin_getset;

    pages_sequence.sq_length = pages_length;
    pages_sequence.sq_item = pages_item;
    PinnedPagesType.tp_name = "bufferpool._core.PinnedPages";
    PinnedPagesType.tp_basicsize = offsetof(PinnedPagesObject, pins);
    PinnedPagesType.tp_itemsize = sizeof(PinNode);
    PinnedPagesType.tp_dealloc = reinterpret_cast<destructor>(pages_dealloc);
    PinnedPagesType.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
    PinnedPagesType.tp_doc = "Pages pinned together: a sequence of read-only arrays.";
    PinnedPagesType.tp_methods = pages_methods;
    PinnedPagesType.tp_as_sequence = &pages_sequence;
    for (PyTypeObject* t : {&HolderType, &PinType, &PinnedPagesType})
        if (PyType_Ready(t) < 0) return -1;
    return 0;
}

}  // namespace bp
