// The type that the array of a `with space.pin(n) as page` block gets at the block's end: an empty ndarray, every use
// of which raises PageReleased. It has no fields and no garbage collector's header, like ndarray,
// so that the type of an existing array can be changed to it.
#include "python/views.h"

namespace bp {

PyTypeObject ReleasedPageType = {PyVarObject_HEAD_INIT(nullptr, 0)};

static PyObject* refuse() {
    return raise("PageReleased",
                 "this page was released at the end of its with block: copy what you keep (page.copy()) in the block, "
                 "or use space[n], which keeps its page pinned while the array exists");
}
static PyObject* refuse_one(PyObject*) { return refuse(); }
static PyObject* refuse_two(PyObject*, PyObject*) { return refuse(); }
static PyObject* refuse_call(PyObject*, PyObject*, PyObject*) { return refuse(); }
static PyObject* refuse_item(PyObject*, Py_ssize_t) { return refuse(); }
static PyObject* refuse_comparison(PyObject*, PyObject*, int) { return refuse(); }
static int refuse_truth(PyObject*) { return refuse(), -1; }
static int refuse_set(PyObject*, PyObject*, PyObject*) { return refuse(), -1; }
static PyObject* show(PyObject*) {
    return PyUnicode_FromString("<a page that was released at the end of its with block>");
}

// Attributes work (shape, dtype, ...), methods do not.
static PyObject* get_attribute(PyObject* self, PyObject* name) {
    PyObject* found = PyObject_GenericGetAttr(self, name);
    const char* text = found ? PyUnicode_AsUTF8(name) : nullptr;
    if (!text || !PyCallable_Check(found) || !strncmp(text, "__", 2)) return found;
    Py_DECREF(found);
    return refuse();
}

static PyMethodDef methods[] = {
    {"__array_ufunc__", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(refuse_call)),
     METH_VARARGS | METH_KEYWORDS, ""},
    {"__array_function__", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(refuse_call)),
     METH_VARARGS | METH_KEYWORDS, ""},
    {"__reduce__", reinterpret_cast<PyCFunction>(refuse_two), METH_NOARGS, ""},
    {"__reduce_ex__", refuse_two, METH_O, ""},
    {"__copy__", refuse_two, METH_NOARGS, ""},
    {"__deepcopy__", refuse_two, METH_O, ""},
    {nullptr, nullptr, 0, nullptr}};
static PyNumberMethods number = {};
static PyMappingMethods mapping = {};
static PySequenceMethods sequence = {};

int ready_released_type() {
    number.nb_bool = refuse_truth;
    number.nb_int = number.nb_float = number.nb_index = refuse_one;
    mapping.mp_subscript = refuse_two;
    mapping.mp_ass_subscript = refuse_set;
    sequence.sq_item = refuse_item;
    sequence.sq_contains = [](PyObject*, PyObject*) { return refuse(), -1; };
    PyTypeObject& type = ReleasedPageType;
    type.tp_name = "bufferpool._core.ReleasedPage";
    type.tp_doc = "A page that was released: every use of it raises PageReleased.";
    type.tp_base = &PyArray_Type;
    type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
    type.tp_as_number = &number;
    type.tp_as_mapping = &mapping;
    type.tp_as_sequence = &sequence;
    type.tp_iter = refuse_one;
    type.tp_richcompare = refuse_comparison;
    type.tp_hash = PyObject_HashNotImplemented;
    type.tp_repr = type.tp_str = show;
    type.tp_getattro = get_attribute;
    type.tp_methods = methods;
    return PyType_Ready(&type);
}

}  // namespace bp
