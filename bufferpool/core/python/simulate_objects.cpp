// The eviction of a cache of objects over arrays of keys and sizes: the cache's own choice (policy/worth.h) with plain
// arrays instead of the segment.
#include <bit>

#include "policy/worth.h"
#include "python/py.h"

namespace bp {

struct SimulatedObject {
    u32 key, bytes, frequency, last_use;
    float cost;
};

class ObjectSimulator {
    static constexpr u32 CLASSES = 33, ABSENT = ~0u;
    struct Place {
        u32 size_class = ABSENT, index = 0;
    };

    Vec<SimulatedObject> objects_[CLASSES];  // by power of two of size
    Vec<Place> places_;                      // by key
    Vec<u64> memory_;                        // of the evicted
    u64 budget_, used_ = 0, random_ = 0x9E3779B97F4A7C15;
    u32 resident_ = 0, clock_ = 0;

    static u64 hash(u32 key) {
        u64 h = (u64(key) + 1) * 0x9E3779B97F4A7C15;
        h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9;
        return h ^ h >> 27;
    }
    u64& memory_of(u64 h) { return memory_[h & (memory_.size() - 1)]; }
    u32 random(u32 below) {
        random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
        return u32((random_ >> 32) * below >> 32);
    }
    double worth_of(const SimulatedObject& o) const {
        return worth::worth(o.frequency, clock_ - o.last_use, resident_, o.bytes, o.cost);
    }

    void remove(Place at) {
        Vec<SimulatedObject>& list = objects_[at.size_class];
        SimulatedObject& gone = list[at.index];
        used_ -= gone.bytes;
        resident_--;
        places_[gone.key] = {};
        gone = list[list.size() - 1];
        list.pop();
        if (at.index < list.size()) places_[list[at.index].key] = at;
    }

    void evict() {
        Place victim{};
        double least = 0;
        auto look = [&](u32 c, u32 index) {
            double worth = worth_of(objects_[c][index]);
            if (victim.size_class == ABSENT || worth < least) least = worth, victim = {c, index};
        };
        for (u32 c = 0; c < CLASSES; c++)
            for (u32 i = 0; i < worth::SAMPLES_OF_CLASS && objects_[c].size(); i++)
                look(c, random(u32(objects_[c].size())));
        for (u32 i = 0; i < worth::SAMPLES_OF_ALL; i++) {
            u32 index = random(resident_), c = 0;
            while (index >= objects_[c].size()) index -= u32(objects_[c++].size());
            look(c, index);
        }
        const SimulatedObject& o = objects_[victim.size_class][victim.index];
        u64 h = hash(o.key);
        memory_of(h) = worth::remembered(h, o.frequency, clock_);
        evictions++;
        remove(victim);
    }

public:
    u64 hits = 0, hit_bytes = 0, evictions = 0, not_kept = 0;

    explicit ObjectSimulator(u64 budget) : budget_(budget) {}
    [[nodiscard]] bool allocate(u32 n_keys, u64 remembered) {
        return places_.resize(n_keys) && memory_.resize(std::bit_ceil(std::max(remembered, u64(64))));
    }

    // One use. False: there is no memory.
    [[nodiscard]] bool use(u32 key, u32 bytes, float cost) {
        if (Place at = places_[key]; at.size_class != ABSENT) {
            SimulatedObject& o = objects_[at.size_class][at.index];
            if (o.bytes == bytes) {
                hits++, hit_bytes += bytes;
                o.frequency += o.frequency < worth::FREQUENCY_MOST;
                o.last_use = clock_;
                return true;
            }
            remove(at);  // it was replaced by a value of another size
        }
        if (bytes > budget_ / 4) return not_kept++, true;
        clock_++;
        u64 h = hash(key);
        u32 frequency = worth::first_frequency(memory_of(h), h, clock_, resident_);
        while (used_ + bytes > budget_) evict();
        u32 c = u32(std::bit_width(bytes));
        if (!objects_[c].push({key, bytes, frequency, clock_, cost})) return false;
        places_[key] = {c, u32(objects_[c].size() - 1)};
        used_ += bytes;
        resident_++;
        return true;
    }
};

// simulate_objects(keys: uint32, sizes: uint32, costs: float32, budget, n_keys)
// -> (hits, bytes of hits, evictions, objects not kept)
PyObject* core_simulate_objects(PyObject*, PyObject* args) {
    PyArrayObject *keys, *sizes, *costs;
    unsigned long long budget;
    unsigned n_keys;
    if (!PyArg_ParseTuple(args, "O!O!O!KI:simulate_objects", &PyArray_Type, &keys, &PyArray_Type, &sizes, &PyArray_Type,
                          &costs, &budget, &n_keys))
        return nullptr;
    npy_intp n = PyArray_SIZE(keys);
    auto fits = [n](PyArrayObject* a, int type) {
        return PyArray_TYPE(a) == type && PyArray_NDIM(a) == 1 && PyArray_ISCARRAY_RO(a) && PyArray_SIZE(a) == n;
    };
    if (!fits(keys, NPY_UINT32) || !fits(sizes, NPY_UINT32) || !fits(costs, NPY_FLOAT32))
        return raise("ValueError", "keys, sizes and costs must be C-contiguous arrays of one length");
    auto key = static_cast<const u32*>(PyArray_DATA(keys)), bytes = static_cast<const u32*>(PyArray_DATA(sizes));
    auto cost = static_cast<const float*>(PyArray_DATA(costs));
    ObjectSimulator simulator(budget);
    if (!simulator.allocate(n_keys, std::min<u64>(2 * u64(n_keys), 1 << 24))) return PyErr_NoMemory();
    for (npy_intp i = 0; i < n; i++) {
        if (key[i] >= n_keys || !bytes[i]) return raise("ValueError", "a key beyond n_keys, or an object of no bytes");
        if (!simulator.use(key[i], bytes[i], cost[i])) return PyErr_NoMemory();
    }
    using ull = unsigned long long;
    return Py_BuildValue("(KKKK)", ull(simulator.hits), ull(simulator.hit_bytes), ull(simulator.evictions),
                         ull(simulator.not_kept));
}

}  // namespace bp
