// What the files of the objects share: keys, values, and the holder of a pin on an object's block.
#pragma once

#include "protocol/object_read.h"
#include "python/py.h"

namespace bp {

// In PinNode::frame: the pin is one on a block of the objects.
constexpr u32 OBJECT_PIN = 1u << 31;

struct CacheObject {
    PyObject_HEAD Shared<SegmentObject*> seg;  // null until an unpickled one is first used
    u32 cache;                                // its number
};

// The kinds of values. ALIGNED_KIND: they begin at a multiple of 64.
enum ValueKind : u8 {
    VALUE_BYTES = 1, VALUE_TEXT = 2, VALUE_NONE = 3, VALUE_ARRAY = 4 | ALIGNED_KIND,
    VALUE_PICKLE = 5, VALUE_PARTS = 6 | ALIGNED_KIND,
};

// A key as bytes: each value has one form, in every process.
class KeyBytes {
    u8 small_[240];
    u8* at_ = small_;
    size_t size_ = 0, room_ = sizeof small_;

public:
    KeyBytes() = default;
    KeyBytes(const KeyBytes&) = delete;
    ~KeyBytes() {
        if (at_ != small_) prim::deallocate(at_);
    }
    [[nodiscard]] bool add(const void* from, size_t n);
    int add_key(PyObject* key, int depth = 0);  // 0, or -1 with an exception
    ObjectKey key(u32 cache) const {
        return {at_, u32(size_), cache, hash_bytes(at_, size_, cache)};
    }
    size_t size() const { return size_; }
    u8* at() { return at_; }
};

// A value as the pieces of its record. It keeps what they point to.
struct ValuePieces {
    u8 kind = 0;
    u64 bytes = 0;
    Vec<ObjectPiece> pieces;
    Vec<Py_buffer> views;
    PyObject* kept = nullptr;
    Vec<u8> head;

    ~ValuePieces() {
        for (Py_buffer& view : views) PyBuffer_Release(&view);
        Py_XDECREF(kept);
    }
    int take(PyObject* value);  // 0, or -1 with an exception

private:
    int take_view(PyObject* value, u64 at);
    int take_array(PyArrayObject* array);
    int take_pickle(PyObject* value);
};

PyObject* counts_of(const CacheSlot& cache, const u64* sums);  // what stats() gives
PyObject* value_of(SegmentObject* seg, const FoundObject& found);  // takes over the pin
void drop_object_pin(SegmentObject* seg, u32 block);
int ready_object_holder_type();
int ready_cache_type();
extern PyTypeObject ObjectHolderType, CacheType;

}  // namespace bp
