// Arrays over pinned pages. Every array keeps its pin alive, in one of two ways:
//
//   space[n]       array -> Holder           the Holder has the pin
//   with pin(n)    array -> base array       the Pin has the pin, and refers to the base array, too:
//                                            so it can count the other references
//
// The base of the Holder, and of the base array while it has no Holder, is the pool's numpy.memmap, pool.data.
//
// At the end of the block the Pin reads the reference counts. If there are only the base array and the array of the
// block (to which the block's name still refers), that array is made empty, shape (0,), and the pin is released.
// Otherwise other arrays use the page: BufferError is raised, and the base array gets a Holder, so that the pin is kept
// while they exist. (numpy gives every array made from another the outermost exact ndarray as its base; so all of them
// refer to the base array.) If one reference is left, and the array's buffer was once exported, it may be the name or a
// memoryview: then the base array gets a Holder too, without an error.
#include "python/views.h"

#include "protocol/client.h"

namespace bp {

struct HolderObject {
    PyObject_HEAD PinNode pin;
    SegmentObject* seg;
    PyObject* others;  // a list of Holders of other pages with the same base array; or null
};

void free_retired(SegmentObject* seg, u32 frame) {
    Segment& s = *seg->s;
    Released unlocked(seg);
    if (settle_retired(s, frame)) free_frame(s, frame);
}

static Spares<HolderObject, 64> spare_holders;

PyObject* new_holder(SegmentObject* seg, u32 frame) {
    HolderObject* h = spare_holders.take();
    if (h) {
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
    {
        Use use(seg, HELD);
        unlink_pin(seg, &h->pin);
        drop_pin(seg, h->pin.frame);
        Py_CLEAR(h->others);
    }
    if (!spare_holders.keep(h)) PyObject_Free(h);
    Py_DECREF(seg);
}

void add_holders(PyObject* holder, PyObject* others) { reinterpret_cast<HolderObject*>(holder)->others = others; }

static PyObject* holder_base(HolderObject* h, void*) { return Py_NewRef(h->seg->data ? h->seg->data : Py_None); }
static PyGetSetDef holder_getset[] = {{"base", reinterpret_cast<getter>(holder_base), nullptr,
                                       "The mapping that the page is in: the pool's data, a numpy.memmap.", nullptr},
                                      {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyTypeObject HolderType = {PyVarObject_HEAD_INIT(nullptr, 0)};

// ---- arrays ----------------------------------------------------------------------

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
    PyObject* base = PyArray_NewFromDescr(&PyArray_Type, PyArray_DescrFromType(NPY_UINT8), 1, &bytes, nullptr,
                                          seg->read_base, NPY_ARRAY_CARRAY_RO, nullptr);
    if (base) base_of(base) = Py_XNewRef(seg->data);
    return base;
}

int ready_holder_type() {
    return ready_type(HolderType, "bufferpool._core.Holder", "Owns one pin; the base of an array over a page.",
                      holder_dealloc, static_cast<PyMethodDef*>(nullptr), holder_getset);
}

}  // namespace bp
