// Atomic access to shared memory. The memory order is part of every name.
//
// The objects are in a mapped file: they are never constructed, all-zero
// bytes are their initial value, and other processes use them too. So they
// are plain storage with the compiler's __atomic builtins, not std::atomic.
//
// BP_STEP() precedes every access that is ordered between processes
// (all but the relaxed ones). It is empty in production; the explorer
// (tests/native) defines it to switch threads there, and BP_POINT to name places.
#pragma once

#include <cstdint>

#ifndef BP_STEP
#define BP_STEP()
#endif

// A named point at which a test build may kill the process.
#ifndef BP_POINT
#define BP_POINT(name)
#endif

namespace bp {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i64 = std::int64_t;

template <class T>
class Atomic {
    static_assert(__atomic_always_lock_free(sizeof(T), nullptr));
    T value_;

public:
    T load_relaxed() const { return __atomic_load_n(&value_, __ATOMIC_RELAXED); }
    T load_acquire() const { BP_STEP(); return __atomic_load_n(&value_, __ATOMIC_ACQUIRE); }
    T load_seq_cst() const { BP_STEP(); return __atomic_load_n(&value_, __ATOMIC_SEQ_CST); }
    void store_relaxed(T v) { __atomic_store_n(&value_, v, __ATOMIC_RELAXED); }
    void store_release(T v) { BP_STEP(); __atomic_store_n(&value_, v, __ATOMIC_RELEASE); }
    void store_seq_cst(T v) { BP_STEP(); __atomic_store_n(&value_, v, __ATOMIC_SEQ_CST); }
    T add_relaxed(T v) { return __atomic_fetch_add(&value_, v, __ATOMIC_RELAXED); }
    T add_seq_cst(T v) { BP_STEP(); return __atomic_fetch_add(&value_, v, __ATOMIC_SEQ_CST); }
    T sub_seq_cst(T v) { BP_STEP(); return __atomic_fetch_sub(&value_, v, __ATOMIC_SEQ_CST); }
    T or_seq_cst(T v) { BP_STEP(); return __atomic_fetch_or(&value_, v, __ATOMIC_SEQ_CST); }
    T and_seq_cst(T v) { BP_STEP(); return __atomic_fetch_and(&value_, v, __ATOMIC_SEQ_CST); }
    T swap_seq_cst(T v) { BP_STEP(); return __atomic_exchange_n(&value_, v, __ATOMIC_SEQ_CST); }
    // On failure `expected` becomes the value found.
    bool cas_seq_cst(T& expected, T desired) {
        BP_STEP();
        return __atomic_compare_exchange_n(&value_, &expected, desired, false, __ATOMIC_SEQ_CST,
                                           __ATOMIC_SEQ_CST);
    }
    // Adds to a counter that only this process writes. With the GIL one thread writes at a time, so a plain add
    // suffices.
    void add_owned(T v) {
#ifdef BP_FREE_THREADED
        add_relaxed(v);
#else
        store_relaxed(static_cast<T>(load_relaxed() + v));
#endif
    }
};

// A value of this process that its threads read and write at any time. A thread that reads a value also sees all
// earlier stores of the thread that stored it.
template <class T>
class Shared {
    T value_{};

public:
    Shared() = default;
    Shared(T v) : value_(v) {}
    operator T() const { return __atomic_load_n(&value_, __ATOMIC_ACQUIRE); }
    T operator->() const { return *this; }
    void operator=(T v) { __atomic_store_n(&value_, v, __ATOMIC_RELEASE); }
    T swap(T v) { return __atomic_exchange_n(&value_, v, __ATOMIC_ACQ_REL); }
    void set(T v) { __atomic_fetch_or(&value_, v, __ATOMIC_RELEASE); }  // the bits of v, besides those that are set
};

// Orders this thread's later stores, relaxed ones included, after all its earlier stores: a thread that reads a later
// store by load_acquire(), or by a load before a fence_acquire(), also sees the earlier ones.
inline void fence_release() { __atomic_thread_fence(__ATOMIC_RELEASE); }
inline void fence_acquire() { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
// Between a store and a later load of another word, in two threads that each store what the other one loads: at least
// one of them sees the other's store.
inline void fence_seq_cst() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// Has the processor fetch a cache line, and its address translation, while it does other work. It never faults, so any
// address may be given: nothing is allocated for a hole.
inline void fetch_early(const volatile void* at) { __builtin_prefetch(const_cast<const void*>(at)); }

}  // namespace bp
