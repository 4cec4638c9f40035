// Keys and values of objects: from Python to bytes, and back.
//
//   bytes, bytearray, memoryview   VALUE_BYTES    returned as a read-only memoryview
//   str, None                      VALUE_TEXT, VALUE_NONE
//   ndarray of numbers             VALUE_ARRAY    its type and shape, then its items; returned as a read-only array
//   all else                       VALUE_PICKLE   protocol 5; VALUE_PARTS if large buffers are stored beside it
//
// A value that shares its block with others is copied: a pin would keep the memory of all of them for as long as the
// caller has the value. A larger value is returned as a view of the shared memory, whose base (an ObjectHolder) owns a
// pin on its block.
#include "python/objects.h"

#include "python/views.h"

namespace bp {

// ---- keys -----------------------------------------------------------------------

bool KeyBytes::add(const void* from, size_t n) {
    if (n > room_ - size_) {
        size_t room = 2 * (size_ + n);
        auto larger = static_cast<u8*>(prim::allocate(room));
        if (!larger) return PyErr_NoMemory(), false;
        memcpy(larger, at_, size_);
        if (at_ != small_) prim::deallocate(at_);
        at_ = larger;
        room_ = room;
    }
    memcpy(at_ + size_, from, n);
    size_ += n;
    return true;
}

static int add_text(KeyBytes& to, PyObject* key) {
    Py_ssize_t n;
    const char* text = PyUnicode_AsUTF8AndSize(key, &n);
    if (text) return to.add("s", 1) && to.add(text, size_t(n)) ? 0 : -1;
    if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) return -1;
    PyErr_Clear();  // lone surrogates
    PyObject* bytes = PyUnicode_AsEncodedString(key, "utf-8", "surrogatepass");
    if (!bytes) return -1;
    bool ok = to.add("s", 1) && to.add(PyBytes_AS_STRING(bytes), size_t(PyBytes_GET_SIZE(bytes)));
    Py_DECREF(bytes);
    return ok ? 0 : -1;
}

static int add_int(KeyBytes& to, PyObject* key) {
    int overflow;
    long long n = PyLong_AsLongLongAndOverflow(key, &overflow);
    if (n == -1 && PyErr_Occurred()) return -1;
    if (!overflow) return to.add("i", 1) && to.add(&n, sizeof n) ? 0 : -1;
    PyObject* text = PyNumber_ToBase(key, 16);
    if (!text) return -1;
    Py_ssize_t size;
    const char* digits = PyUnicode_AsUTF8AndSize(text, &size);
    bool ok = digits && to.add("I", 1) && to.add(digits, size_t(size));
    Py_DECREF(text);
    return ok ? 0 : -1;
}

constexpr int TUPLES_IN_TUPLES = 8;

int KeyBytes::add_key(PyObject* key, int depth) {
    if (PyUnicode_Check(key)) return add_text(*this, key);
    if (PyLong_Check(key)) return add_int(*this, key);
    if (PyBytes_Check(key))
        return add("b", 1) && add(PyBytes_AS_STRING(key), size_t(PyBytes_GET_SIZE(key))) ? 0 : -1;
    if (PyTuple_Check(key) && depth > TUPLES_IN_TUPLES) {
        raise("ValueError", "tuples of a key may be nested %d deep", TUPLES_IN_TUPLES + 1);
        return -1;
    }
    if (!PyTuple_Check(key) && PyIndex_Check(key)) {  // an integer of numpy is the key that the int is
        PyObject* number = PyNumber_Index(key);
        if (number) {
            int r = add_int(*this, number);
            Py_DECREF(number);
            return r;
        }
        PyErr_Clear();
    }
    if (!PyTuple_Check(key)) {
        raise("TypeError", "a key is a str, bytes, an int or a tuple of them, not %.200s", Py_TYPE(key)->tp_name);
        return -1;
    }
    u32 n = u32(PyTuple_GET_SIZE(key));
    if (!add("t", 1) || !add(&n, sizeof n)) return -1;
    for (u32 i = 0; i < n; i++) {
        size_t begin = size_;
        u32 bytes = 0;
        if (!add(&bytes, sizeof bytes) || add_key(PyTuple_GET_ITEM(key, Py_ssize_t(i)), depth + 1) < 0) return -1;
        bytes = u32(size_ - begin - sizeof bytes);
        memcpy(at_ + begin, &bytes, sizeof bytes);
    }
    return 0;
}

// ---- values to bytes ---------------------------------------------------------------

struct ArrayHead {
    u32 bytes;  // of this head, a multiple of 64; the items follow
    u8 dims, fortran;
    u16 type;   // numpy's number of the type
    i64 shape[NPY_MAXDIMS];
};

static PyObject* pickle_function(const char* name) {
    static PyObject* module;
    if (!module) module = PyImport_ImportModule("pickle");
    return module ? PyObject_GetAttrString(module, name) : nullptr;
}

int ValuePieces::take_view(PyObject* value, u64 at) {
    Py_buffer view;
    if (PyObject_GetBuffer(value, &view, PyBUF_SIMPLE) < 0) return -1;
    if (!views.push(view)) return PyBuffer_Release(&view), PyErr_NoMemory(), -1;
    if (!pieces.push({view.buf, u64(view.len), at})) return PyErr_NoMemory(), -1;
    bytes = at + u64(view.len);
    return 0;
}

int ValuePieces::take_array(PyArrayObject* array) {
    bool fortran = PyArray_IS_F_CONTIGUOUS(array);
    kept = PyArray_FromArray(array, nullptr, fortran ? NPY_ARRAY_FARRAY_RO : NPY_ARRAY_CARRAY_RO);
    if (!kept) return -1;
    array = reinterpret_cast<PyArrayObject*>(kept);
    int dims = PyArray_NDIM(array);
    u32 size = u32(round_up(offsetof(ArrayHead, shape) + 8 * u64(dims), 64));
    if (!head.resize(size)) return PyErr_NoMemory(), -1;
    memset(head.data(), 0, size);
    auto at = reinterpret_cast<ArrayHead*>(head.data());
    at->bytes = size;
    at->dims = u8(dims);
    at->fortran = !PyArray_IS_C_CONTIGUOUS(array);
    at->type = u16(PyArray_TYPE(array));
    for (int i = 0; i < dims; i++) at->shape[i] = PyArray_DIM(array, i);
    kind = VALUE_ARRAY;
    bytes = size + u64(PyArray_NBYTES(array));
    if (!pieces.push({head.data(), size, 0}) || !pieces.push({PyArray_DATA(array), u64(PyArray_NBYTES(array)), size}))
        return PyErr_NoMemory(), -1;
    return 0;
}

// Adds to the exception of pickle, whose text names neither the value nor the cache, what a cache keeps.
static void add_pickle_note(PyObject* value) {
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    PyObject* done = PyObject_CallMethod(
        error, "add_note", "N",
        PyUnicode_FromFormat("a cache keeps bytes-like objects, arrays, and objects that can be pickled; this value, "
                             "of type %.200s, cannot be", Py_TYPE(value)->tp_name));
    if (!done) PyErr_Clear();
    Py_XDECREF(done);
    PyErr_Restore(type, error, trace);
}

// The parts of a pickled value: their number, their lengths, and the parts, each at a multiple of 64.
int ValuePieces::take_pickle(PyObject* value) {
    PyObject* buffers = PyList_New(0);
    PyObject* dumps = buffers ? pickle_function("dumps") : nullptr;
    PyObject* append = dumps ? PyObject_GetAttrString(buffers, "append") : nullptr;
    PyObject* options = append ? Py_BuildValue("{s:i,s:O}", "protocol", 5, "buffer_callback", append) : nullptr;
    PyObject* arguments = options ? PyTuple_Pack(1, value) : nullptr;
    PyObject* stream = arguments ? PyObject_Call(dumps, arguments, options) : nullptr;
    Py_XDECREF(arguments);
    Py_XDECREF(options);
    Py_XDECREF(append);
    Py_XDECREF(dumps);
    if (!stream) {
        if (PyErr_ExceptionMatches(PyExc_Exception)) add_pickle_note(value);
        return Py_XDECREF(buffers), -1;
    }
    kept = PyTuple_Pack(2, stream, buffers);
    Py_DECREF(stream);
    Py_DECREF(buffers);
    if (!kept) return -1;
    u64 n = u64(PyList_GET_SIZE(buffers));
    if (!n) return kind = VALUE_PICKLE, take_view(stream, 0);
    kind = VALUE_PARTS;
    u64 size = 8 * (n + 2);
    if (!head.resize(size) || !pieces.push({head.data(), size, 0})) return PyErr_NoMemory(), -1;
    auto lengths = reinterpret_cast<u64*>(head.data());
    lengths[0] = n + 1;
    bytes = size;
    for (u64 i = 0; i <= n; i++) {
        u64 at = round_up(bytes, 64);
        if (i == 0) {
            if (take_view(stream, at) < 0) return -1;
        } else {
            Py_buffer view;  // PickleBuffer.raw(): its bytes, in the order in which they lie
            PyObject* raw = PyObject_CallMethod(PyList_GET_ITEM(buffers, Py_ssize_t(i - 1)), "raw", nullptr);
            if (!raw) return -1;
            int r = PyObject_GetBuffer(raw, &view, PyBUF_SIMPLE);
            Py_DECREF(raw);
            if (r < 0) return -1;
            if (!views.push(view)) return PyBuffer_Release(&view), PyErr_NoMemory(), -1;
            if (!pieces.push({view.buf, u64(view.len), at})) return PyErr_NoMemory(), -1;
            bytes = at + u64(view.len);
        }
        lengths[i + 1] = bytes - at;
    }
    return 0;
}

int ValuePieces::take(PyObject* value) {
    if (PyBytes_CheckExact(value)) {  // the commonest kind, without a buffer
        kind = VALUE_BYTES;
        bytes = u64(PyBytes_GET_SIZE(value));
        return pieces.push({PyBytes_AS_STRING(value), bytes, 0}) ? 0 : (PyErr_NoMemory(), -1);
    }
    if (PyByteArray_CheckExact(value) || PyMemoryView_Check(value)) {
        kind = VALUE_BYTES;
        if (PyMemoryView_Check(value) && !PyBuffer_IsContiguous(PyMemoryView_GET_BUFFER(value), 'C')) {
            kept = PyObject_CallMethod(value, "tobytes", nullptr);
            return kept ? take_view(kept, 0) : -1;
        }
        return take_view(value, 0);
    }
    if (value == Py_None) return kind = VALUE_NONE, 0;
    if (PyUnicode_CheckExact(value)) {
        Py_ssize_t n;
        if (const char* text = PyUnicode_AsUTF8AndSize(value, &n)) {
            kind = VALUE_TEXT;
            bytes = u64(n);
            return pieces.push({text, bytes, 0}) ? 0 : (PyErr_NoMemory(), -1);
        }
        PyErr_Clear();  // lone surrogates: pickled
    }
    if (PyArray_CheckExact(value)) {
        auto array = reinterpret_cast<PyArrayObject*>(value);
        int type = PyArray_TYPE(array);
        bool number = (type >= 0 && type <= NPY_CLONGDOUBLE) || type == NPY_HALF;
        if (number && PyArray_ISNOTSWAPPED(array)) return take_array(array);
    }
    return take_pickle(value);
}

// ---- the holder of a pin ------------------------------------------------------------

struct ObjectHolder {
    PyObject_HEAD PinNode pin;
    SegmentObject* seg;
    const u8* at;
    Py_ssize_t bytes;
};

void drop_object_pin(SegmentObject* seg, u32 block) {
    Segment* s = seg->s;
    if (!s || !s->me || !may_unpin(*s, block) || !unpin_block(*s, block)) return;
    Released unlocked(seg);
    settle_block(*s, block);
}

static Spares<ObjectHolder, 64> spare_holders;

static ObjectHolder* new_object_holder(SegmentObject* seg, const FoundObject& found, const u8* at, u64 bytes) {
    ObjectHolder* h = spare_holders.take();
    if (h) (void)PyObject_Init(reinterpret_cast<PyObject*>(h), &ObjectHolderType);
    else h = PyObject_New(ObjectHolder, &ObjectHolderType);
    if (!h) {
        drop_object_pin(seg, found.block);
        return nullptr;
    }
    h->seg = seg;
    h->at = at;
    h->bytes = Py_ssize_t(bytes);
    Py_INCREF(seg);
    link_pin(seg, &h->pin, OBJECT_PIN | found.block);
    return h;
}

static void object_holder_dealloc(ObjectHolder* h) {
    SegmentObject* seg = h->seg;
    {
        Use use(seg, HELD);
        unlink_pin(seg, &h->pin);
        drop_object_pin(seg, h->pin.frame & ~OBJECT_PIN);
    }
    if (!spare_holders.keep(h)) PyObject_Free(h);
    Py_DECREF(seg);
}

static int object_holder_buffer(PyObject* self, Py_buffer* view, int flags) {
    auto h = reinterpret_cast<ObjectHolder*>(self);
    return PyBuffer_FillInfo(view, self, const_cast<u8*>(h->at), h->bytes, 1, flags);
}
static PyBufferProcs object_holder_buffers = {object_holder_buffer, nullptr};

PyTypeObject ObjectHolderType = {PyVarObject_HEAD_INIT(nullptr, 0)};
int ready_object_holder_type() {
    ObjectHolderType.tp_as_buffer = &object_holder_buffers;
    return ready_type<ObjectHolder>(ObjectHolderType, "bufferpool._core.ObjectHolder",
                                    "Owns a pin on an object; the base of its views.", object_holder_dealloc);
}

// ---- bytes to values --------------------------------------------------------------------

static PyObject* raise_damaged_value() {
    return raise("SegmentCorrupt", "a value of a cache is damaged; run pool.check(), and clear the cache");
}

// The array over `items`, with the base `holder`, whose reference is taken over. If `holder` is null, the array has a
// copy.
static PyObject* array_of(const ArrayHead& head, const u8* items, u64 bytes, PyObject* holder) {
    PyArray_Descr* type = head.dims <= NPY_MAXDIMS ? PyArray_DescrFromType(head.type) : nullptr;
    if (!type) return Py_XDECREF(holder), PyErr_Clear(), raise_damaged_value();
    npy_intp shape[NPY_MAXDIMS];
    u64 size = u64(PyDataType_ELSIZE(type));
    for (int i = 0; i < head.dims; i++) {
        shape[i] = npy_intp(head.shape[i]);
        size = head.shape[i] < 0 || (size && u64(head.shape[i]) > bytes / size) ? bytes + 1 : size * u64(head.shape[i]);
    }
    if (size > bytes) return Py_DECREF(type), Py_XDECREF(holder), raise_damaged_value();
    int flags = head.fortran ? NPY_ARRAY_FARRAY_RO : holder ? NPY_ARRAY_CARRAY_RO : 0;
    void* data = holder ? const_cast<u8*>(items) : nullptr;
    PyObject* made = PyArray_NewFromDescr(&PyArray_Type, type, head.dims, shape, nullptr, data, flags, nullptr);
    if (!made) return Py_XDECREF(holder), nullptr;
    auto array = reinterpret_cast<PyArrayObject*>(made);
    if (holder) base_of(made) = holder;
    else memcpy(PyArray_DATA(array), items, size);
    PyArray_CLEARFLAGS(array, NPY_ARRAY_WRITEABLE);
    return made;
}

// Whether the present exception is that of a stream which is no pickle.
static bool is_unpickling_error() {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject* wanted = pickle_function("UnpicklingError");
    bool is = wanted && type && PyErr_GivenExceptionMatches(type, wanted);
    Py_XDECREF(wanted);
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
    return is;
}

// Unpickles an object from a stream and a list of buffers, or null if it has no buffers. Takes over both references.
static PyObject* unpickle(PyObject* stream, PyObject* buffers) {
    PyObject* loads = stream ? pickle_function("loads") : nullptr;
    PyObject* options = loads && buffers ? Py_BuildValue("{s:O}", "buffers", buffers) : nullptr;
    PyObject* arguments = loads ? PyTuple_Pack(1, stream) : nullptr;
    PyObject* value = arguments && (options || !buffers) ? PyObject_Call(loads, arguments, options) : nullptr;
    Py_XDECREF(arguments);
    Py_XDECREF(options);
    Py_XDECREF(loads);
    Py_XDECREF(stream);
    Py_XDECREF(buffers);
    if (!value && (PyErr_ExceptionMatches(PyExc_EOFError) || is_unpickling_error()))
        return PyErr_Clear(), raise_damaged_value();
    // An array whose type is pickled with its bytes is a copy. It is made read-only, as the others are.
    if (value && PyArray_CheckExact(value))
        PyArray_CLEARFLAGS(reinterpret_cast<PyArrayObject*>(value), NPY_ARRAY_WRITEABLE);
    return value;
}

// A value of several parts. `view`, whose reference is taken over, is over all of it.
static PyObject* parts_of(PyObject* view, const u8* at, u64 bytes) {
    u64 n = 0, end = 0;
    if (bytes >= 16) memcpy(&n, at, 8);
    if (n < 1 || n > bytes / 8 - 1) return Py_DECREF(view), raise_damaged_value();
    end = 8 * (n + 1);
    PyObject *stream = nullptr, *buffers = PyList_New(0);
    for (u64 i = 0; buffers && i < n; i++) {
        u64 length, begin = round_up(end, 64);
        memcpy(&length, at + 8 * (i + 1), 8);
        if (begin > bytes || length > bytes - begin) {
            Py_XDECREF(stream);
            Py_DECREF(buffers);
            return Py_DECREF(view), raise_damaged_value();
        }
        end = begin + length;
        PyObject* part = PySequence_GetSlice(view, Py_ssize_t(begin), Py_ssize_t(end));
        if (i == 0) stream = part;
        else if (!part || PyList_Append(buffers, part) < 0) Py_CLEAR(buffers);
        if (i > 0) Py_XDECREF(part);
    }
    Py_DECREF(view);
    if (!stream || !buffers) return Py_XDECREF(stream), Py_XDECREF(buffers), nullptr;
    return unpickle(stream, buffers);
}

static const u8* at_of(PyObject* view) { return static_cast<const u8*>(PyMemoryView_GET_BUFFER(view)->buf); }

// Copies a value while it is pinned.
static PyObject* small_value(u8 kind, const u8* at, u64 bytes) {
    if (kind == VALUE_NONE) return Py_NewRef(Py_None);
    if (kind == VALUE_TEXT) return PyUnicode_DecodeUTF8(reinterpret_cast<const char*>(at), Py_ssize_t(bytes), "strict");
    if (kind == VALUE_ARRAY) {
        auto head = reinterpret_cast<const ArrayHead*>(at);
        return bytes < 64 || head->bytes > bytes ? raise_damaged_value()
                                                 : array_of(*head, at + head->bytes, bytes - head->bytes, nullptr);
    }
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(at), Py_ssize_t(bytes));
}

static PyObject* large_value(SegmentObject* seg, const FoundObject& found, const u8* at, u64 bytes) {
    u8 kind = object::kind(found.value);
    PyObject* holder = reinterpret_cast<PyObject*>(new_object_holder(seg, found, at, bytes));
    if (!holder) return nullptr;
    if (kind == VALUE_ARRAY) {
        auto head = reinterpret_cast<const ArrayHead*>(at);
        if (head->bytes > bytes) return Py_DECREF(holder), raise_damaged_value();
        return array_of(*head, at + head->bytes, bytes - head->bytes, holder);
    }
    PyObject* view = PyMemoryView_FromObject(holder);
    Py_DECREF(holder);
    if (!view || kind == VALUE_BYTES) return view;
    return kind == VALUE_PARTS ? parts_of(view, at, bytes) : unpickle(view, nullptr);
}

PyObject* value_of(SegmentObject* seg, const FoundObject& found) {
    Segment& s = *seg->s;
    const u8* at = s.objects.read_base + found.value_offset;
    u64 bytes = object::bytes(found.value);
    u8 kind = object::kind(found.value);
    if (kind != KIND_FAILED && !found.shared && kind != VALUE_TEXT) return large_value(seg, found, at, bytes);
    PyObject* value = small_value(kind, at, bytes);
    drop_object_pin(seg, found.block);
    if (!value || kind == VALUE_NONE || kind == VALUE_TEXT || kind == VALUE_ARRAY) return value;
    if (kind == VALUE_BYTES) {
        PyObject* view = PyMemoryView_FromObject(value);
        Py_DECREF(value);
        return view;
    }
    if (kind == KIND_FAILED) return value;
    if (kind != VALUE_PARTS) return unpickle(value, nullptr);
    PyObject* view = PyMemoryView_FromObject(value);
    Py_DECREF(value);
    return view ? parts_of(view, at_of(view), bytes) : nullptr;
}

}  // namespace bp
