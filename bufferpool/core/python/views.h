// What Pin and PinnedPages share: arrays over pinned pages, and the count of other references (views.cpp).
#pragma once

#include "python/py.h"

namespace bp {

PyObject* new_holder(SegmentObject* seg, u32 frame);                        // takes over the pin
PyObject* new_base(SegmentObject* seg);
void add_holders(PyObject* holder, PyObject* others);                       // takes over the reference to the list

inline SegmentObject* segment_of(SpaceObject* sp) {
    if (!sp) return nullptr;
    return sp->seg;
}
inline PyObject*& base_of(PyObject* array) { return reinterpret_cast<PyArrayObject_fields*>(array)->base; }

// Takes over the reference to the base.
inline PyObject* array_over(SpaceObject* sp, u32 frame, PyObject* base) {
    char* at = sp->seg->read_base + (u64(frame) << sp->seg->s->g.page_shift);
    Py_INCREF(sp->dtype);
    PyObject* a =
        PyArray_NewFromDescr(&PyArray_Type, sp->dtype, 1, &sp->items, nullptr, at, NPY_ARRAY_CARRAY_RO, nullptr);
    if (!a) return Py_DECREF(base), nullptr;
    base_of(a) = base;  // nothing for PyArray_SetBaseObject to look at: neither base is an array over another array
    return a;
}

// Highest number of references from elsewhere at which a page array may still be released: at the end of its block the
// block's name still refers to it.
enum Others : Py_ssize_t { NOBODY = 1, A_NAME = 2 };

// Whether the one other reference may be a memoryview instead of the name.
inline bool is_unclear(PyObject* page) {
    return Py_REFCNT(page) == A_NAME && reinterpret_cast<PyArrayObject_fields*>(page)->_buffer_info != nullptr;
}

extern PyTypeObject ReleasedPageType;  // released_page.cpp

// Makes the array of an ended block empty, and its uses raise PageReleased.
inline void make_empty(PyObject* page) {
    auto fields = reinterpret_cast<PyArrayObject_fields*>(page);
    fields->dimensions[0] = 0;
    if (PyArray_CheckExact(page)) Py_SET_TYPE(page, &ReleasedPageType);
}

}  // namespace bp
