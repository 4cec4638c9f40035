// The core's own memory. The core is compiled without exceptions, so an allocation of the standard library that
// fails would end the process. So every call here that needs memory returns whether it got it (Status::NO_MEMORY,
// MemoryError), and nothing else in core/ allocates (tests/core/test_no_memory.py).
#pragma once

#include <algorithm>
#include <new>
#include <type_traits>

#include "os/prim.h"

namespace bp {

// Makes an object on the heap; null if there is no memory.
template <class T>
T* make() {
    void* at = prim::allocate(sizeof(T));
    return at ? new (at) T : nullptr;
}

template <class T>
void unmake(T* object) {
    if (!object) return;
    object->~T();
    prim::deallocate(object);
}

// A list of plain values.
template <class T>
class Vec {
    static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);
    T* at_ = nullptr;
    size_t size_ = 0, room_ = 0;

public:
    Vec() = default;
    Vec(const Vec&) = delete;
    Vec& operator=(const Vec&) = delete;
    ~Vec() { prim::deallocate(at_); }

    // Allocates space for `n` values in all. False: there is no memory, and nothing has changed.
    [[nodiscard]] bool reserve(size_t n) {
        if (n <= room_) return true;
        if (n > SIZE_MAX / 2 / sizeof(T)) return false;
        void* larger = prim::allocate(n * sizeof(T));
        if (!larger) return false;
        if (size_) memcpy(larger, static_cast<void*>(at_), size_ * sizeof(T));
        prim::deallocate(at_);
        at_ = static_cast<T*>(larger);
        room_ = n;
        return true;
    }
    [[nodiscard]] bool push(const T& value) {
        T copy = value;  // a copy, because it may be an element of this list
        if (size_ == room_ && !reserve(room_ ? 2 * room_ : 16)) return false;
        at_[size_++] = copy;
        return true;
    }
    // Sets the number of values to `n`; new ones are T{}. False: there is no memory.
    [[nodiscard]] bool resize(size_t n) {
        if (!reserve(n)) return false;
        for (size_t i = size_; i < n; i++) new (static_cast<void*>(&at_[i])) T{};
        size_ = n;
        return true;
    }
    bool full() const { return size_ == room_; }
    void pop() { size_--; }
    void cut(size_t n) { size_ = std::min(size_, n); }
    void clear() { size_ = 0; }
    void swap(Vec& other) {
        std::swap(at_, other.at_);
        std::swap(size_, other.size_);
        std::swap(room_, other.room_);
    }
    // Sorts the values, and removes duplicates.
    void make_set() {
        std::sort(begin(), end());
        size_ = size_t(std::unique(begin(), end()) - begin());
    }
    // Keeps the values that another sorted list has too.
    void keep_only(const Vec& other) {
        size_ = size_t(std::remove_if(begin(), end(), [&](const T& value) { return !other.has(value); }) - begin());
    }
    // Whether a sorted list has a value.
    bool has(const T& value) const { return std::binary_search(begin(), end(), value); }

    size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    T* data() { return at_; }
    const T* data() const { return at_; }
    T* begin() { return at_; }
    T* end() { return at_ + size_; }
    const T* begin() const { return at_; }
    const T* end() const { return at_ + size_; }
    T& operator[](size_t i) { return at_[i]; }
    const T& operator[](size_t i) const { return at_[i]; }
    T& front() { return at_[0]; }
    T& back() { return at_[size_ - 1]; }
};

}  // namespace bp
