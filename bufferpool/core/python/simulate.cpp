// The policy over an array of page numbers: the pool's own code (policy.h)
// with plain arrays instead of entries and frames.
#include "policy/duelling.h"
#include "python/py.h"

namespace bp {

struct SimulatedPage {
    u8 ring = RING_NONE, count = 0, tag = 0;
    Ghost ghost = Ghost::NONE;
    bool sampled = false;  // by the duel
    u32 stamp = 0;
};

struct SimulatedPool {
    Vec<SimulatedPage> pages;
    Vec<u64> storage[2];
    Vec<Duel> duel;  // one
    u64 evicted[2] = {0, 0};  // from the cold ring, from the hot ring

    u64* slots(Ring r) { return storage[r == RING_HOT].data(); }
    u32 capacity() const { return u32(storage[0].size()); }
    Peek peek(u32 page, Ring r) { return {pages[page].ring != r, pages[page].count}; }
    void set_count(u32 page, u32 n) { pages[page].count = u8(n); }
    void set_ring(u32 page, Ring r) { pages[page].ring = u8(r); }
    bool evict(u32 page, Ghost kind, u32 stamp) {
        evicted[kind == Ghost::HOT]++;
        pages[page] = {RING_NONE, 0, 0, kind, pages[page].sampled, stamp};
        return true;
    }
    bool set_aside(u32, Ring) { return false; }
};

// The pool's policy with its duel of modes, one reference at a time.
struct Simulator {
    SimulatedPool& pool;
    PolicyState state{};
    Alr<SimulatedPool> policy;
    Duelling duel;
    u32 frames, shift, resident = 0;
    u64 hits = 0, changes = 0;

    Simulator(SimulatedPool& p, u32 n)
        : pool(p), policy(state, p), duel(*p.duel.data()), frames(n), shift(Duelling::shift_of(n)) {
        policy.set_frames(n);
    }

    void reference(u32 number) {
        SimulatedPage& page = pool.pages[number];
        u8 tag = policy.tag();
        if (page.ring == RING_NONE) return miss(number, page);
        hits++;
        if (page.tag == tag || (page.count >= policy.count_max() && !page.sampled)) return;
        page.tag = tag;
        if (page.count < policy.count_max()) page.count++;
        if (page.sampled) changes += duel.reference(policy, state, number, 0, false, false);
    }

private:
    void miss(u32 number, SimulatedPage& page) {
        bool evicted = page.ghost != Ghost::NONE;
        Ring ring = policy.miss(page.ghost, page.stamp, false);
        page.sampled = Duelling::samples(shift, number);
        if (page.sampled) changes += duel.reference(policy, state, number, 0, true, evicted);
        if (resident == frames) policy.evict(~0u);
        else resident++;
        page.count = 0;
        page.tag = policy.tag();
        policy.insert(number, ring);
    }
};

// simulate(pages: uint32 array, frames) -> (hits, misses, evicted cold, evicted hot, changes of mode)
PyObject* core_simulate(PyObject*, PyObject* args) {
    PyArrayObject* trace;
    unsigned frames, n_pages;
    if (!PyArg_ParseTuple(args, "O!II:simulate", &PyArray_Type, &trace, &frames, &n_pages)) return nullptr;
    if (PyArray_TYPE(trace) != NPY_UINT32 || PyArray_NDIM(trace) != 1 || !PyArray_ISCARRAY_RO(trace) || frames < 1)
        return raise("ValueError", "the trace must be a C-contiguous array of uint32 and frames at least 1");
    auto pages = static_cast<const u32*>(PyArray_DATA(trace));
    npy_intp n = PyArray_SIZE(trace);
    SimulatedPool pool;
    bool room = pool.pages.resize(n_pages) && pool.duel.resize(1);
    for (auto& ring : pool.storage) room = room && ring.resize(size_t(frames) + frames / 2 + 64);
    if (!room) return PyErr_NoMemory();
    Simulator simulator(pool, frames);
    for (npy_intp i = 0; i < n; i++) {
        if (pages[i] >= n_pages) return raise("ValueError", "the trace has a page beyond n_pages");
        simulator.reference(pages[i]);
    }
    return Py_BuildValue("(KKKKK)", (unsigned long long)simulator.hits, (unsigned long long)(u64(n) - simulator.hits),
                         (unsigned long long)pool.evicted[0], (unsigned long long)pool.evicted[1],
                         (unsigned long long)simulator.changes);
}

}  // namespace bp
