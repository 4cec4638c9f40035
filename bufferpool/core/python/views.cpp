// Arrays over pinned pages. Every array keeps its pin alive, in one of two ways:
//
//   space[n]       array -> Holder (the pin)
//   with pin(n)    array -> base array                  the Pin has the pin, and
//                  Pin   -> base array                  counts who else looks
//
// The base of the Holder, and of the base array while it has no Holder, is the pool's numpy.memmap, pool.data.
//
// At the end of the block the Pin looks at the reference counts. Only the base
// array and the array that it gave out (and that the block's name still holds):
// that array is made empty, shape (0,), and the pin is released. Anything else
// looks at the page: BufferError, and the base array gets a Holder, so that the
// pin lives as long as they do. (numpy gives every array made from another the
// outermost exact ndarray as its base; so all of them hold the base array.)
// One reference left, of an array whose buffer was once exported, may be the name
// or a memoryview: then the pin is handed over too, without an error.
#include "python/views.h"

#include "protocol/client.h"

namespace bp {

struct HolderObject {
    PyObject_HEAD
    PinNode pin;
    SegmentObject* seg;
    PyObject* others;  // a list of Holders, of pages that are looked at through the same base array; or null
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

PyObject* new_holder(SegmentObject* seg, u32 frame) {
    HolderObject* h;
    if (holder_cached) {
        h = holder_cache[--holder_cached];
        (void)PyObject_Init(reinterpret_cast<PyObject*>(h), &HolderType);
    } else {
        h = PyObject_New(HolderObject, &HolderType);
        if (!h) return nullptr;
    }
    h->seg = seg;
    h->others = nullptr;
    Py_INCREF(seg);
    link_pin(seg, &h->pin, frame);
    return reinterpret_cast<PyObject*>(h);
}

static void holder_dealloc(HolderObject* h) {
    SegmentObject* seg = h->seg;
    unlink_pin(&h->pin);
    drop_pin(seg, h->pin.frame);
    Py_CLEAR(h->others);
    if (seg->closing) finish_closing(seg);
    if (holder_cached < 64) holder_cache[holder_cached++] = h;
    else PyObject_Free(h);
    Py_DECREF(seg);
}

void add_holders(PyObject* holder, PyObject* others) { reinterpret_cast<HolderObject*>(holder)->others = others; }

static PyObject* holder_base(HolderObject* h, void*) { return Py_NewRef(h->seg->data ? h->seg->data : Py_None); }
static PyGetSetDef holder_getset[] = {
    {"base", reinterpret_cast<getter>(holder_base), nullptr, "The mapping that the page is in: the pool's data, a numpy.memmap.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyTypeObject HolderType = {PyVarObject_HEAD_INIT(nullptr, 0)};

// ---- arrays ----------------------------------------------------------------------

PyObject* array_over(SpaceObject* sp, u32 frame, PyObject* base) {
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

PyObject* new_base(SegmentObject* seg) {
    npy_intp bytes = npy_intp(u64(seg->s->g.max_frames) << seg->s->g.page_shift);
    PyObject* base = PyArray_NewFromDescr(&PyArray_Type, PyArray_DescrFromType(NPY_UINT8), 1, &bytes, nullptr, seg->read_base,
                                          NPY_ARRAY_CARRAY_RO, nullptr);
    if (base) base_of(base) = Py_XNewRef(seg->data);
    return base;
}

// ---- Pin -------------------------------------------------------------------------

static PinObject* pin_cache[16];
static int pin_cached;

// A segment's data are being unmapped: what is kept for the next use does not keep them.
void forget_bases(SegmentObject* seg) {
    for (int i = 0; i < pin_cached; i++)
        if (pin_cache[i]->base_of == seg->read_base) Py_CLEAR(pin_cache[i]->base);
}

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
    if (p->space->seg->closing) finish_closing(p->space->seg);
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
    Py_XSETREF(base_of(*base), holder);
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
        Py_CLEAR(base_of(p->page));
    }
    drop_pin(p->space->seg, p->pin.frame);
    pin_forget(p);
    if (Py_REFCNT(p) > 1) Py_CLEAR(p->base);  // it may outlive the pool; else it is freed now, and used again
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

int ready_view_types() {
    if (ready_type(HolderType, "bufferpool._core.Holder", "Owns one pin; the base of an array over a page.", holder_dealloc, nullptr, holder_getset) < 0) return -1;
    return ready_type(PinType, "bufferpool._core.Pin", "One pinned page; as a block, released at its end.", pin_dealloc, pin_methods, pin_getset);
}

}  // namespace bp
