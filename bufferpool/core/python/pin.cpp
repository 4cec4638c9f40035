// Pin: one pinned page, released at the end of its block (views.cpp says how arrays keep their pins).
#include "python/views.h"

#include "protocol/client.h"

#include <utility>

namespace bp {

struct PinObject {
    PyObject_HEAD PinNode pin;
    SpaceObject* space;  // null once released
    PyObject* base;      // kept between uses of this object
    PyObject* page;
    char* base_of;       // the mapping that `base` was made for
    u64 page_no;
};

static Spares<PinObject, 16> spare_pins;

// Called when a segment's data are unmapped: releases the base arrays of spare objects, which keep the mapping.
void forget_bases(SegmentObject* seg) {
    for (int i = 0; i < spare_pins.size(); i++)  // other threads take and return spares meanwhile
        if (spare_pins[i]->base_of == seg->read_base) Py_CLEAR(spare_pins[i]->base);
}

PyObject* new_pin(SpaceObject* sp, u32 frame, u64 page_no) {
    PinObject* p = spare_pins.take();
    if (p) {
        (void)PyObject_Init(reinterpret_cast<PyObject*>(p), &PinType);
    } else {
        p = PyObject_New(PinObject, &PinType);
        if (!p) {
            drop_pin(sp->seg, frame);
            return nullptr;
        }
        p->base = nullptr;
    }
    PyObject* stale = p->base && p->base_of != sp->seg->read_base ? std::exchange(p->base, nullptr) : nullptr;
    p->base_of = sp->seg->read_base;
    p->page = nullptr;
    p->page_no = page_no;
    p->space = sp;
    Py_INCREF(sp);
    link_pin(sp->seg, &p->pin, frame);
    Py_XDECREF(stale);  // last, because it may unmap a pool's data, while another thread closes this pool
    return reinterpret_cast<PyObject*>(p);
}

// Marks the pin as released, for every thread. Returns the space, which the caller must drop.
static SpaceObject* take_space(PinObject* p) {
    SpaceObject* sp = p->space;
    p->space = nullptr;
    unlink_pin(sp->seg, &p->pin);
    return sp;
}

// Gives the pin to the other arrays over the page.
static void hand_over(SegmentObject* seg, PyObject** base, u32 frame) {
    PyObject* holder = new_holder(seg, frame);
    if (!holder) {
        PyErr_WriteUnraisable(*base);  // out of memory: never release the pin, rather than too early
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
        raise("BufferError",
              "page %llu cannot be released: other arrays over it exist; delete them first, "
              "or copy what you keep (they keep the page pinned)",
              (unsigned long long)p->page_no);
        return -1;
    }
    SpaceObject* sp = take_space(p);
    u32 frame = p->pin.frame;
    if (p->page && is_unclear(p->page)) {
        hand_over(sp->seg, &p->base, frame);
    } else {
        if (p->page) {
            make_empty(p->page);
            // The emptied array must not keep the cached base array in use.
            Py_CLEAR(base_of(p->page));
        }
        if (Py_REFCNT(p) > 1) Py_CLEAR(p->base);  // the object may outlive the pool; otherwise it is kept as a spare
        drop_pin(sp->seg, frame);
    }
    Py_CLEAR(p->page);
    Py_DECREF(sp);
    return 0;
}

static void pin_dealloc(PinObject* p) {
    if (p->space) {
        SpaceObject* sp = p->space;
        {
            Use use(sp->seg, HELD);
            take_space(p);
            bool kept = p->base && Py_REFCNT(p->base) > 1 + (p->page && Py_REFCNT(p->page) == 1 ? 1 : 0);
            if (kept) hand_over(sp->seg, &p->base, p->pin.frame);
            else drop_pin(sp->seg, p->pin.frame);
            Py_CLEAR(p->page);
        }
        Py_DECREF(sp);
    }
    if (spare_pins.keep(p)) return;
    Py_CLEAR(p->base);
    PyObject_Free(p);
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
    // During an exception its traceback holds arrays: they keep the pin.
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

static PyObject* pin_repr(PyObject* self) {
    auto p = reinterpret_cast<PinObject*>(self);
    if (!p->space) return PyUnicode_FromFormat("<Pin of page %llu, released>", (unsigned long long)p->page_no);
    PyObject* name = PyObject_GetAttrString(reinterpret_cast<PyObject*>(p->space), "name");
    if (!name) return nullptr;
    PyObject* text = PyUnicode_FromFormat("<Pin of page %llu of space %R>", (unsigned long long)p->page_no, name);
    Py_DECREF(name);
    return text;
}

// Several threads may use a Pin, one at a time except while a method waits.
template <Reference R>
struct PinEntry {
    Critical critical;
    Use use;
    explicit PinEntry(PyObject* self) : critical(self), use(segment_of(reinterpret_cast<PinObject*>(self)->space), R) {}
    bool ok() const { return true; }
};

static PyMethodDef pin_methods[] = {
    {"__enter__", entered<pin_enter, PinEntry<READS>>, METH_NOARGS, "The page: a read-only array."},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(entered<pin_exit, PinEntry<TAKEN>>)),
     METH_FASTCALL, "Releases the pin."},
    {"release", entered<pin_release_method, PinEntry<TAKEN>>, METH_NOARGS,
     "release($self, /)\n--\n\nReleases the pin. Raises BufferError while other arrays look at the page."},
    {nullptr, nullptr, 0, nullptr}};
static PyGetSetDef pin_getset[] = {
    {"page", reinterpret_cast<getter>(entered<pin_page, PinEntry<READS>>), nullptr, "The page: a read-only array.",
     nullptr},
    {"page_no", reinterpret_cast<getter>(pin_page_no), nullptr, "The page number.", nullptr},
    {"lsn", reinterpret_cast<getter>(entered<pin_lsn, PinEntry<READS>>), nullptr,
     "The LSN of this version of the page.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyTypeObject PinType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_pin_type() {
    PinType.tp_repr = entered<pin_repr, PinEntry<READS>>;
    return ready_type(PinType, "bufferpool._core.Pin", "One pinned page; as a block, released at its end.", pin_dealloc,
                      pin_methods, pin_getset);
}

}  // namespace bp
