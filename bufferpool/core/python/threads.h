// What keeps the objects of this room whole while several threads use them (docs/design.md, "Threads").
//
// With the GIL one thread at a time is in this room, and the first four are empty or plain. A CPython without the
// GIL runs threads side by side (BP_FREE_THREADED): then
//
//   Mutex       guards a few pointers; a thread that holds one does not allocate, call or wait
//   Count       changes by one atomic instruction
//   Turn        is taken by one atomic instruction
//   Critical    is the critical section of one object; CPython leaves it while the thread waits
//   Use         (py.h) keeps a segment mapped while a method uses it
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <mutex>
#include <type_traits>

#include "os/prim.h"

#if defined(Py_GIL_DISABLED) && !defined(BP_FREE_THREADED)
#error "setup.py defines BP_FREE_THREADED for an interpreter without the GIL"
#endif

namespace bp {

#ifdef BP_FREE_THREADED
constexpr bool FREE_THREADED = true;
using Mutex = std::mutex;
#else
constexpr bool FREE_THREADED = false;
struct Mutex {
    void lock() {}
    void unlock() {}
};
#endif
using Guard = std::lock_guard<Mutex>;

// Called in a forked child, which has none of the threads that held it.
inline void renew_mutex(Mutex& mutex) { new (&mutex) Mutex; }

class Count {
    Atomic<u32> n_;

public:
    operator u32() const { return n_.load_relaxed(); }
    void operator++(int) { n_.add_owned(1); }
    void operator--(int) { n_.add_owned(u32(-1)); }
    void operator=(u32 n) { n_.store_seq_cst(n); }
};

// Whether a thread is in a method of an object. If several threads come at once, one of them gets in.
class Turn {
    Atomic<u32> taken_;

public:
    void clear() { taken_.store_relaxed(0); }
    bool take() {
        u32 none = 0;
        if constexpr (FREE_THREADED) return taken_.cas_seq_cst(none, 1);
        if (taken_.load_relaxed()) return false;
        taken_.store_relaxed(1);
        return true;
    }
    void give_back() {
        if constexpr (FREE_THREADED) taken_.store_seq_cst(0);
        else clear();
    }
};

class Critical {
#ifdef BP_FREE_THREADED
    PyCriticalSection section_;

public:
    explicit Critical(PyObject* object) { PyCriticalSection_Begin(&section_, object); }
    ~Critical() { PyCriticalSection_End(&section_); }
#else
public:
    explicit Critical(PyObject*) {}
    ~Critical() {}
#endif
    Critical(const Critical&) = delete;
};

// Spare objects of a type, kept for the next use. Without the GIL none are kept, because the interpreter has
// free lists for each thread.
template <class T, int MOST>
class Spares {
    T* kept_[MOST] = {};
    int n_ = 0;

public:
    T* take() {
        if constexpr (FREE_THREADED) return nullptr;
        return n_ ? kept_[--n_] : nullptr;
    }
    bool keep(T* object) {
        if (FREE_THREADED || n_ == MOST) return false;
        kept_[n_++] = object;
        return true;
    }
    int size() const { return n_; }
    T* operator[](int i) { return kept_[i]; }
};

// Wraps a method F of a type: makes an Entry of its object before the call, and destroys it after.
template <auto F, class Entry>
struct Entered;
template <class R, class O, class... A, R (*F)(O*, A...), class Entry>
struct Entered<F, Entry> {
    static R call(O* self, A... args) {
        Entry entry(reinterpret_cast<PyObject*>(self));
        if (!entry.ok()) {
            if constexpr (std::is_pointer_v<R>) return nullptr;
            else return R(-1);
        }
        return F(self, args...);
    }
};
template <auto F, class Entry>
constexpr auto entered = &Entered<F, Entry>::call;

}  // namespace bp
