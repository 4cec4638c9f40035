// CacheBase: the objects of one cache, for Python. bufferpool/objects/cache.py adds the parts that need no speed.
#include "protocol/kernel_room.h"
#include "protocol/object_check.h"
#include "python/loading.h"
#include "python/objects.h"

namespace bp {

static CacheObject* C(PyObject* self) { return reinterpret_cast<CacheObject*>(self); }

constexpr double ALWAYS = Py_HUGE_VAL;

// Extends our row of pins, and waits for the growth lock for so many seconds, without the interpreter's lock. Returns 0
// or -errno.
static int wait_for_row(CacheObject* cache, Segment& s, double seconds) {
    {
        Quick quick;
        if (ready_row(s) == 0) return 0;
    }
    Released unlocked(cache->seg);
    Deadline deadline(deadline_in(seconds));
    return grow_with_room(s, [&] { return ready_row(s); });
}

// The segment, if the cache is open and the objects are mapped; otherwise null with an exception. `seconds`: how long
// it may wait, if our row of pins has no memory yet.
static Segment* ready_cache(CacheObject* cache, double seconds = ALWAYS) {
    if (!may_work(cache->seg)) return nullptr;
    Segment* s = cache->seg->s;
    int r = s->objects.row_ready ? 0 : map_objects(*s);
    if (r == 0 && !is_cache(*s, cache->cache))
        return raise("CacheRemoved", "the cache was removed from the pool; open it again with pool.cache()"), nullptr;
    if (r == 0 && s->objects.row_ready) return s;
    if (r == 0) r = wait_for_row(cache, *s, seconds);
    if (r == -EINTR) return raise_late(s, "cache"), nullptr;
    if (r) return raise_errno(r, "memory for the tables of the objects cannot be allocated"), nullptr;
    return s;
}

// The segment of a cache; binds an unpickled one first. Null: with an exception.
static SegmentObject* bound_cache(CacheObject* cache) {
    if (SegmentObject* seg = cache->seg) return seg;
    PyObject* r = PyObject_CallMethod(reinterpret_cast<PyObject*>(cache), "_attach", nullptr);
    if (!r) return nullptr;
    Py_DECREF(r);
    if (!cache->seg) raise("PoolClosed", "the cache is not attached to a pool");
    return cache->seg;
}

struct CacheEntry {
    SegmentObject* seg;
    Use use;
    explicit CacheEntry(PyObject* self) : seg(bound_cache(C(self))), use(seg, HELD) {}
    bool ok() const { return seg; }
};

// Writes the key that a method was given to `bytes`. Returns false with an exception.
static bool read_key(CacheObject* cache, PyObject* from, KeyBytes& bytes, ObjectKey& key) {
    if (bytes.add_key(from) < 0) return false;
    if (bytes.size() > 1 << 20) return raise("ValueError", "a key has at most 1 MiB"), false;
    key = bytes.key(cache->cache);
    return true;
}

// ---- get ----------------------------------------------------------------------------

// Finds a value that has not expired. FOUND: the value's block is pinned. UNSURE: it cannot be known without the lock,
// for which it waits only if it `waits`.
static Look look_up(CacheObject* cache, Segment& s, const ObjectKey& key, FoundObject& found, bool waits = true) {
    Look look;
    {
        Quick quick;
        look = find_surely(s, key, found);
    }
    if (look == Look::UNSURE && waits) {  // it is changing, or a table grows: search without the interpreter's lock
        Released unlocked(cache->seg);
        look = find_surely(s, key, found);
    }
    if (look == Look::UNSURE) return look;
    if (look == Look::FOUND) {
        bool holds = object::state(found.word) == OBJECT_LIVE && is_value(object::kind(found.value));
        if (holds && (!found.expires_ns || !is_expired(found.expires_ns))) return look;
        drop_object_pin(cache->seg, found.block);
    }
    return Look::NOTHING;
}

// The value of a key, or `missing`; counts the hit or the miss. If it does not wait, a key counts as missing if it
// cannot be known without the lock.
static PyObject* get_value(CacheObject* cache, PyObject* from, PyObject* missing, bool waits, double seconds) {
    Segment* s = ready_cache(cache, seconds);
    KeyBytes bytes;
    ObjectKey key;
    if (!s || !read_key(cache, from, bytes, key)) return nullptr;
    FoundObject found;
    Look look = look_up(cache, *s, key, found, waits);
    if (look == Look::UNSURE && waits) return raise_late(s, "get");
    if (look != Look::FOUND) {
        uses_of_cache(*s, cache->cache).misses.add_owned(1);
        sample_use(*s, key, USED_MISS, 0);
        return Py_NewRef(missing);
    }
    uses_of_cache(*s, cache->cache).hits.add_owned(1);
    touch_object(*s, found.entry, key);
    return value_of(cache->seg, found);
}

// get(key, default=None)
static PyObject* cache_get(PyObject* self, PyObject* const* args, Py_ssize_t n) {
    if (n < 1 || n > 2) return raise("TypeError", "get() takes a key, and a default");
    return get_value(C(self), args[0], n == 2 ? args[1] : Py_None, true, ALWAYS);
}

// look(key, default, timeout): the value, or the default if there is none, or if only begin() can find it, because it
// is changing.
static PyObject* cache_look(PyObject* self, PyObject* const* args, Py_ssize_t n) {
    if (n != 3) return raise("TypeError", "look() takes a key, a default and a timeout");
    double seconds = PyFloat_AsDouble(args[2]);
    if (PyErr_Occurred()) return nullptr;
    return get_value(C(self), args[0], args[1], false, seconds);
}

static int cache_contains(PyObject* self, PyObject* arg) {
    Segment* s = ready_cache(C(self));
    KeyBytes bytes;
    ObjectKey key;
    if (!s || !read_key(C(self), arg, bytes, key)) return -1;
    FoundObject found;
    Look look = look_up(C(self), *s, key, found);
    if (look == Look::UNSURE) return raise_late(s, "in"), -1;
    if (look == Look::FOUND) drop_object_pin(C(self)->seg, found.block);
    return look == Look::FOUND;
}

static Py_ssize_t cache_length(PyObject* self) {
    Segment* s = ready_cache(C(self));
    return s ? Py_ssize_t(cache_of(*s, C(self)->cache).count.load_relaxed()) : -1;
}

// ---- put ----------------------------------------------------------------------------

// When a value expires; `ttl`: None takes the cache's, in seconds. False with an exception.
static bool expiry(CacheObject* cache, Segment& s, PyObject* ttl, u64& expires_ns) {
    CacheSlot& slot = cache_of(s, cache->cache);
    u64 ns = slot.ttl_ns.load_relaxed(), jitter = slot.jitter.load_relaxed();
    if (ttl && ttl != Py_None) {
        double seconds;
        if (seconds_of(ttl, "ttl", seconds) < 0) return false;
        if (!(seconds > 0)) return raise("ValueError", "ttl must be above 0 seconds, not %R", ttl), false;
        ns = seconds < 1e9 ? std::max<u64>(u64(seconds * 1e9), 1) : 0;  // 0: never, so the shortest time is 1 ns
    }
    if (ns && jitter) {  // so that values that were put at one time do not expire at one time
        double part = double(jitter) / double(u64(1) << 32) * double(random_number(s) >> 11) / double(u64(1) << 53);
        ns -= std::min(u64(double(ns) * part), ns - 1);
    }
    expires_ns = ns ? prim::coarse_ns() + ns : 0;
    return true;
}

constexpr u64 COPIED_HERE = 64 << 10;  // bytes that are copied while we have the interpreter's lock

// Stores a value. `out`: whether it was kept. INTERRUPTED: a lock could not be taken, and nothing has changed.
static Status keep(CacheObject* cache, Segment& s, PutObject& put, ValuePieces& value, Published& out) {
    put.kind = value.kind;
    put.bytes = value.bytes;
    Status status = Status::WAIT;
    Published r = Published::FULL;
    const ObjectPiece* pieces = value.pieces.data();
    u32 n = u32(value.pieces.size());
    if (put.bytes <= COPIED_HERE) {
        Quick quick;
        r = store_object(s, put, pieces, n, status);
    }
    if (status == Status::WAIT) {
        cache->seg->put_bytes.add_relaxed(put.bytes);
        Released unlocked(cache->seg);
        r = store_object(s, put, pieces, n, status);
    }
    CacheUses& uses = uses_of_cache(s, cache->cache);
    if (r == Published::YES) sample_use(s, put.key, USED_PUT, put.record());
    bool again = r == Published::SUPERSEDED && put.replaces;  // change() tries again, and is counted then
    if (!again)
        (r == Published::YES ? uses.puts : r == Published::SUPERSEDED ? uses.superseded : uses.refused).add_relaxed(1);
    out = r;
    return status;
}

static Status remove_value(CacheObject* cache, Segment& s, const ObjectKey& key) {
    Released unlocked(cache->seg);
    return delete_object(s, key);
}

// put(key, value, ttl=None) -> whether it was kept
static PyObject* cache_put(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    PyObject* ttl = n == 3 ? args[2] : nullptr;
    if (named == 1 && n == 2 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "ttl") == 0) ttl = args[2];
    else if (named || n < 2 || n > 3) return raise("TypeError", "put() takes a key, a value, and ttl=");
    Segment* s = ready_cache(C(self));
    KeyBytes bytes;
    PutObject put;
    ValuePieces value;
    if (!s || !read_key(C(self), args[0], bytes, put.key) || !expiry(C(self), *s, ttl, put.expires_ns)) return nullptr;
    if (value.take(args[1]) < 0 || !ask_for_memory(C(self)->seg)) return nullptr;
    s = ready_cache(C(self));  // pickling may have run code that closed the pool
    if (!s) return nullptr;
    Published kept;
    Status status = keep(C(self), *s, put, value, kept);
    // The newer value could not be kept, so the older one must be removed.
    if (status != Status::INTERRUPTED && kept != Published::YES) status = remove_value(C(self), *s, put.key);
    if (status == Status::INTERRUPTED) return raise_late(s, "put");
    return PyBool_FromLong(kept == Published::YES);
}

// One try of change(). SUPERSEDED: another process has changed the value meanwhile. Null: there is no value, or an
// exception is set.
static PyObject* change_once(CacheObject* cache, PyObject* from, PyObject* change, Published& kept) {
    Segment* s = ready_cache(cache);
    KeyBytes bytes;
    PutObject put;
    FoundObject found;
    if (!s || !read_key(cache, from, bytes, put.key)) return nullptr;
    Look look = look_up(cache, *s, put.key, found);
    if (look == Look::UNSURE) return raise_late(s, "update");
    if (look != Look::FOUND) {
        uses_of_cache(*s, cache->cache).misses.add_owned(1);
        sample_use(*s, put.key, USED_MISS, 0);
        return nullptr;
    }
    uses_of_cache(*s, cache->cache).hits.add_owned(1);
    touch_object(*s, found.entry, put.key);
    put.replaces = found.word & ~object::WAITED;
    PyObject* old = value_of(cache->seg, found);
    PyObject* made = old ? PyObject_CallOneArg(change, old) : nullptr;
    Py_XDECREF(old);
    ValuePieces value;
    if (!made || value.take(made) < 0 || !(s = ready_cache(cache))) return Py_XDECREF(made), nullptr;
    Status status = keep(cache, *s, put, value, kept);
    if (status != Status::INTERRUPTED && kept == Published::FULL) status = remove_value(cache, *s, put.key);
    if (status != Status::INTERRUPTED) return made;
    Py_DECREF(made);
    return raise_late(s, "update");
}

// change(key, function) -> the new value; None: there was no value.
static PyObject* cache_change(PyObject* self, PyObject* const* args, Py_ssize_t n) {
    if (n != 2) return raise("TypeError", "change() takes a key and a function");
    for (;;) {
        Published kept = Published::YES;
        PyObject* made = change_once(C(self), args[0], args[1], kept);
        if (!made) return PyErr_Occurred() ? nullptr : Py_NewRef(Py_None);
        if (kept != Published::SUPERSEDED) return made;
        Py_DECREF(made);
        if (check_signals() < 0) return nullptr;
    }
}

// touch(key, ttl=None) -> whether there was a value
static PyObject* cache_touch(PyObject* self, PyObject* const* args, Py_ssize_t n, PyObject* names) {
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    bool by_name = named == 1 && n == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "ttl") == 0;
    if ((named && !by_name) || n < 1 || n > 2) return raise("TypeError", "touch() takes a key, and ttl=");
    Segment* s = ready_cache(C(self));
    KeyBytes bytes;
    ObjectKey key;
    u64 expires_ns;
    PyObject* ttl = by_name || n == 2 ? args[1] : nullptr;
    if (!s || !read_key(C(self), args[0], bytes, key) || !expiry(C(self), *s, ttl, expires_ns)) return nullptr;
    Status was;
    {
        Released unlocked(C(self)->seg);
        was = set_expiry(*s, key, expires_ns);
    }
    return was == Status::INTERRUPTED ? raise_late(s, "touch") : PyBool_FromLong(was == Status::OK);
}

static PyObject* cache_delete(PyObject* self, PyObject* arg) {
    Segment* s = ready_cache(C(self));
    KeyBytes bytes;
    ObjectKey key;
    if (!s || !read_key(C(self), arg, bytes, key)) return nullptr;
    Status was = remove_value(C(self), *s, key);
    return was == Status::INTERRUPTED ? raise_late(s, "delete") : PyBool_FromLong(was == Status::OK);
}

static PyObject* cache_clear(PyObject* self, PyObject*) {
    Segment* s = ready_cache(C(self));
    if (!s) return nullptr;
    u64 n;
    Status status;
    {
        Released unlocked(C(self)->seg);
        status = clear_objects(*s, C(self)->cache, n);
        if (status == Status::OK) release_objects(*s, ~0ull, DROP);
    }
    if (status == Status::INTERRUPTED) return raise_late(s, "clear");
    if (check_signals() < 0) return nullptr;
    return PyLong_FromUnsignedLongLong(n);
}

// ---- loads ----------------------------------------------------------------------------

enum Outcome { OUT_VALUE, OUT_LOAD, OUT_FAILED, OUT_UNKEPT, OUT_BUSY, OUT_LATE, OUT_STALE };

// How often a load's end waits for a lock: for `seconds` at most.
static u32 slices_of(double seconds) {
    double slices = seconds * 1e9 / double(LOCK_SLICE_NS);
    return slices < PATIENT_SLICES ? std::max(u32(std::max(slices, 0.0)), 1u) : PATIENT_SLICES;
}

static void end_silently(CacheObject* cache, Segment& s, const PutObject& put) {
    Released unlocked(cache->seg);
    end_load(s, put.entry, put.word, s.me);
}

// begin(key, timeout, wait, waited, stale, loads) -> (outcome, value | (entry, word) | None). By outcome, the second is
// the value; or the load, which is ours, and is added to `loads`; or the pickled exception of the load for which the
// caller has waited; or None, for example if the value can be loaded but not kept. Raises WaitTimeout if a lock cannot
// be taken in this time; a caller that does not `wait` gets OUT_BUSY then.
static PyObject* cache_begin(PyObject* self, PyObject* args) {
    PyObject* from;
    double timeout;
    int wait, waited, stale;
    PyObject* loads = nullptr;  // a list, which gets our load at once: no exception of a signal handler loses it
    if (!PyArg_ParseTuple(args, "Odppp|O!:begin", &from, &timeout, &wait, &waited, &stale, &PyList_Type, &loads))
        return nullptr;
    u64 until_ns = deadline_in(timeout);
    Segment* s = ready_cache(C(self), timeout);
    KeyBytes bytes;
    LoadRequest want;
    if (!s || !read_key(C(self), from, bytes, want.key) || !ask_for_memory(C(self)->seg)) return nullptr;
    s = ready_cache(C(self), timeout);
    if (!s) return nullptr;
    want.wait = wait;
    want.waited = waited;
    want.stale = stale;
    Begun begun;
    {
        Released unlocked(C(self)->seg);
        Deadline until(until_ns);
        begun = begin_object(*s, want);
    }
    if (begun == Begun::INTERRUPTED && check_signals() < 0) return nullptr;
    if (begun == Begun::INTERRUPTED && !wait) begun = Begun::BUSY;
    CacheUses& uses = uses_of_cache(*s, C(self)->cache);
    // A caller that does not wait calls begin() again with `waited`, so that it is counted once.
    if (!waited && (want.waited || begun == Begun::BUSY)) uses.waits.add_relaxed(1);
    auto pair = [](Outcome outcome, PyObject* what) {
        return what ? Py_BuildValue("(iN)", int(outcome), what) : nullptr;
    };
    switch (begun) {
    case Begun::HIT:
        touch_object(*s, want.found.entry, want.key);
        return pair(OUT_VALUE, value_of(C(self)->seg, want.found));
    case Begun::STALE: return pair(OUT_STALE, value_of(C(self)->seg, want.found));
    case Begun::FAILED: return pair(OUT_FAILED, value_of(C(self)->seg, want.found));
    case Begun::LOAD: {
        PyObject* load = Py_BuildValue("(IK)", want.put.entry, (unsigned long long)want.put.word);
        if (!load || (loads && PyList_Append(loads, load) != 0)) {
            Py_XDECREF(load);
            end_silently(C(self), *s, want.put);
            return nullptr;
        }
        return pair(OUT_LOAD, load);
    }
    case Begun::BUSY: return pair(OUT_BUSY, Py_NewRef(Py_None));
    case Begun::LATE: return pair(OUT_LATE, Py_NewRef(Py_None));
    case Begun::INTERRUPTED: return raise_late(s, "get_or_load");
    default: return pair(OUT_UNKEPT, Py_NewRef(Py_None));
    }
}

// Ends a load without a value. For a second its entry holds the loader's exception for the callers that wait, or the
// notice that the value cannot be kept. Returns false if there was no room for that, or a lock could not be taken; then
// the load has not ended.
static bool tell(CacheObject* cache, Segment& s, PutObject& put, u8 kind, const ObjectPiece& piece) {
    put.kind = kind;
    put.bytes = piece.bytes;
    put.cost = 0;
    put.expires_ns = prim::coarse_ns() + 1'000'000'000;
    Status status;
    Released unlocked(cache->seg);
    Published r = store_object(s, put, &piece, 1, status);
    return r == Published::YES || r == Published::SUPERSEDED;
}

// finish(key, (entry, word), value, ttl, microseconds, seconds) -> whether the value was kept. `seconds`: how long it
// waits for a lock, a second at most. If it gets none, the load ends without a value for the others.
static PyObject* cache_finish(PyObject* self, PyObject* args) {
    PyObject *from, *object, *ttl;
    unsigned entry, cost;
    unsigned long long word;
    double seconds;
    if (!PyArg_ParseTuple(args, "O(IK)OOId:finish", &from, &entry, &word, &object, &ttl, &cost, &seconds))
        return nullptr;
    Segment* s = ready_cache(C(self), seconds);
    KeyBytes bytes;
    PutObject put;
    ValuePieces value;
    if (!s || !read_key(C(self), from, bytes, put.key) || !expiry(C(self), *s, ttl, put.expires_ns)) return nullptr;
    put.entry = entry;
    put.word = word;
    put.cost = cost;
    if (value.take(object) < 0) return nullptr;
    s = ready_cache(C(self), seconds);
    if (!s) return nullptr;
    uses_of_cache(*s, C(self)->cache).loads.add_relaxed(1);
    Patience patience(slices_of(seconds));
    Published kept;
    Status status = keep(C(self), *s, put, value, kept);
    if (status == Status::INTERRUPTED && check_signals() < 0) return nullptr;  // fail() ends the load
    bool ended = kept != Published::FULL;
    if (!ended && status != Status::INTERRUPTED) ended = tell(C(self), *s, put, KIND_UNKEPT, {"", 0, 0});
    if (!ended) end_silently(C(self), *s, put);
    return PyBool_FromLong(kept == Published::YES);
}

// fail((entry, word), key, exception or None, stale, seconds) -> whether the load has ended, without a value. The
// callers that wait get the (pickled) exception. None ends the load in any case. `stale`: the expired value that the
// load would have replaced is kept, and no other caller gets the exception. `seconds`: how long it waits for a lock.
static PyObject* cache_fail(PyObject* self, PyObject* args) {
    PyObject *from, *error;
    unsigned entry;
    unsigned long long word;
    int stale;
    double seconds;
    if (!PyArg_ParseTuple(args, "(IK)OOpd:fail", &entry, &word, &from, &error, &stale, &seconds)) return nullptr;
    Segment* s = ready_cache(C(self), seconds);
    KeyBytes bytes;
    PutObject put;
    if (!s || !read_key(C(self), from, bytes, put.key)) return nullptr;
    bool renews = object::state(word) == OBJECT_LIVE, silent = !PyBytes_Check(error) || (stale && renews), ended = true;
    put.entry = entry;
    put.word = word;
    Patience patience(slices_of(seconds));
    if (silent) end_silently(C(self), *s, put);
    else ended = tell(C(self), *s, put, KIND_FAILED, {PyBytes_AS_STRING(error), u64(PyBytes_GET_SIZE(error)), 0});
    if (ended) uses_of_cache(*s, C(self)->cache).load_failures.add_relaxed(1);
    return PyBool_FromLong(ended);
}

// ---- figures --------------------------------------------------------------------------

PyObject* counts_of(const CacheSlot& cache, const u64* sums) {
    auto k = [](u64 n) { return (unsigned long long)n; };
    auto n = [&](u32 i) { return k(sums[i] - cache.before[i].load_relaxed()); };
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:I,s:K,s:K,s:K}", "hits", n(0), "misses", n(1), "puts",
                         n(2), "loads", n(3), "load_failures", n(4), "waits", n(5), "superseded", n(6), "refused", n(7),
                         "evictions", k(cache.evictions.load_relaxed()), "count", cache.count.load_relaxed(), "bytes",
                         k(cache.bytes.load_relaxed()), "limit", k(cache.limit.load_relaxed()), "reserve",
                         k(cache.reserve.load_relaxed()));
}

static PyObject* cache_counts(PyObject* self, PyObject*) {
    Segment* s = ready_cache(C(self));
    if (!s) return nullptr;
    u64 sums[CACHE_USES];
    sum_uses(*s, cache_slot(C(self)->cache), sums);
    return counts_of(cache_of(*s, C(self)->cache), sums);
}

// The cache's settings, after the given ones have replaced theirs; 0: none.
struct CacheSettings {
    u64 limit, reserve;
};

// Checks that the settings do not contradict each other. Returns false with an exception.
static bool check_settings(Segment& s, u32 cache, const CacheSettings& want) {
    auto k = [](u64 n) { return (unsigned long long)n; };
    if (want.limit && want.reserve > want.limit)
        return raise("ValueError", "reserve (%llu bytes) must not be above limit (%llu bytes); give both",
                     k(want.reserve), k(want.limit)), false;
    u64 budget = s.header->budget_frames.load_relaxed(), others = 0;
    u64 most = (budget > PAGES_KEEP ? budget - PAGES_KEEP : 0) << s.g.page_shift;
    for (u32 i = 0; i < CACHES; i++)
        if (i != cache_slot(cache) && cache_of(s, i).state.load_relaxed() == CACHE_LIVE)
            others += cache_of(s, i).reserve.load_relaxed();
    if (want.reserve && (others > most || want.reserve > most - others))
        return raise("ValueError", "reserve (%llu bytes) is more than caches can have: they may reserve %llu bytes of "
                     "the budget, and others have reserved %llu; resize the pool, or reserve less", k(want.reserve),
                     k(most), k(others)), false;
    return true;
}

// configure(ttl, jitter, limit, reserve): None leaves a setting as it is. ttl in nanoseconds, limit and reserve in
// bytes.
static PyObject* cache_configure(PyObject* self, PyObject* args) {
    PyObject* given[4];
    if (!PyArg_ParseTuple(args, "OOOO:configure", &given[0], &given[1], &given[2], &given[3])) return nullptr;
    Segment* s = ready_cache(C(self));
    if (!s) return nullptr;
    CacheSlot& cache = cache_of(*s, C(self)->cache);
    u64 values[4] = {cache.ttl_ns.load_relaxed(), cache.jitter.load_relaxed(), cache.limit.load_relaxed(),
                     cache.reserve.load_relaxed()};
    for (u32 i = 0; i < 4; i++) {
        if (given[i] == Py_None) continue;
        values[i] = PyLong_AsUnsignedLongLong(given[i]);
        if (PyErr_Occurred()) return nullptr;
    }
    if (!check_settings(*s, C(self)->cache, {values[2], values[3]})) return nullptr;
    cache.ttl_ns.store_release(values[0]);
    cache.jitter.store_release(u32(values[1]));
    cache.limit.store_release(values[2]);
    cache.reserve.store_release(values[3]);
    Py_RETURN_NONE;
}

// ---- the type --------------------------------------------------------------------------

// Makes what of the objects' tables is missing, for the first cache. Returns 0 or -errno.
static int make_tables(Segment& s) {
    bool small = u64(s.header->budget_frames.load_relaxed()) << s.g.page_shift < 32u << 20;
    int r = make_objects(s, small ? 16 : 18);
    if (r == 0 && !s.objects.blocks_ready) r = grow_blocks(s);
    return r ? r : ready_row(s);
}

static PyObject* new_cache(PyTypeObject* type, PyObject* segment, u32 number) {
    auto self = reinterpret_cast<CacheObject*>(type->tp_alloc(type, 0));
    if (!self) return nullptr;
    self->seg = reinterpret_cast<SegmentObject*>(segment);
    Py_XINCREF(segment);
    self->cache = number;
    return reinterpret_cast<PyObject*>(self);
}

// bind(segment): what `_attach` calls for an unpickled cache. If two threads do so at the same time, the first binding
// is kept.
static PyObject* cache_bind(PyObject* self, PyObject* segment) {
    if (!PyObject_TypeCheck(segment, &SegmentType)) return raise("TypeError", "bind() takes a segment");
    Critical critical(self);
    if (!C(self)->seg) {
        Py_INCREF(segment);
        C(self)->seg = S(segment);
    }
    Py_RETURN_NONE;
}

static PyObject* cache_number(PyObject* self, void*) { return PyLong_FromUnsignedLong(C(self)->cache); }

// CacheBase(segment, name, timeout): opens the cache of this name, or makes it. CacheBase(number): an unpickled one.
static PyObject* cache_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject* segment;
    unsigned int number;
    if (PyTuple_GET_SIZE(args) == 1)
        return PyArg_ParseTuple(args, "I:CacheBase", &number) ? new_cache(type, nullptr, number) : nullptr;
    const char* name;
    double timeout;
    if (!PyArg_ParseTuple(args, "O!sd:CacheBase", &SegmentType, &segment, &name, &timeout)) return nullptr;
    SegmentObject* seg = S(segment);
    Use use(seg);
    Segment* s = opened(seg);
    if (!s) return nullptr;
    if (!*name || strlen(name) >= CACHE_NAME)
        return raise("ValueError", "the name of a cache has 1 to %u bytes", CACHE_NAME - 1);
    int r;
    u32 cache = NONE;
    Status status = Status::OK;
    {
        Released unlocked(seg);
        Deadline deadline(deadline_in(timeout));
        r = grow_with_room(*s, [&] { return make_tables(*s); });
        if (r == 0) status = open_cache(*s, name, cache);
    }
    if (r == -EINTR || status == Status::INTERRUPTED) return raise_late(s, "cache");
    if (r) return raise_errno(r, "memory for the tables of the objects cannot be allocated");
    if (status == Status::EXHAUSTED)
        return raise("TooManySpaces", "a pool has at most %u caches; remove one (pool.remove_cache())", CACHES);
    return new_cache(type, segment, cache);
}

static void cache_dealloc(CacheObject* cache) {
    PyTypeObject* type = Py_TYPE(cache);
    SegmentObject* seg = cache->seg;
    type->tp_free(cache);
    Py_XDECREF(seg);
}

static PyMethodDef cache_methods[] = {
    {"get", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(entered<cache_get, CacheEntry>)), METH_FASTCALL,
     "get($self, key, default=None, /)\n--\n\n"
     "Returns the value of a key, or the default."},
    {"look", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(entered<cache_look, CacheEntry>)), METH_FASTCALL,
     "look($self, key, default, timeout, /)\n--\n\n"
     "Returns the value of a key; or the default, also if only begin() can find the value, because it is changing."},
    {"put", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(entered<cache_put, CacheEntry>)),
     METH_FASTCALL | METH_KEYWORDS, "put($self, /, key, value, ttl=None)\n--\n\n"
     "Puts a value, for ``ttl`` seconds. Returns whether it was kept."},
    {"change", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(entered<cache_change, CacheEntry>)), METH_FASTCALL,
     "change($self, key, change, /)\n--\n\n"
     "Replaces a value by ``change(value)``, and calls it again if another caller has changed the value meanwhile.\n"
     "Returns the new value; None if there was no value."},
    {"touch", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(entered<cache_touch, CacheEntry>)),
     METH_FASTCALL | METH_KEYWORDS, "touch($self, /, key, ttl=None)\n--\n\n"
     "Makes a value expire ``ttl`` seconds from now (None: the cache's ttl). Returns whether there was a value: one\n"
     "that has expired is none, also while another call loads the next one, which has an expiry of its own."},
    {"delete", entered<cache_delete, CacheEntry>, METH_O, "delete($self, key, /)\n--\n\n"
     "Deletes the value of a key. Returns whether there was one."},
    {"clear", entered<cache_clear, CacheEntry>, METH_NOARGS, "clear($self, /)\n--\n\n"
     "Deletes all values. Returns their number."},
    {"begin", entered<cache_begin, CacheEntry>, METH_VARARGS,
     "begin($self, key, timeout, wait, waited, stale, loads=[], /)\n--\n\n"
     "Finds a value, or begins its load: (outcome, the value; the load, which is also appended to ``loads``; or\n"
     "the pickled exception of the load for which it waited; or None). Outcomes: the constants of\n"
     "objects/cache.py."},
    {"finish", entered<cache_finish, CacheEntry>, METH_VARARGS,
     "finish($self, key, load, value, ttl, microseconds, seconds, /)\n--\n\n"
     "Ends a load with its value; returns whether the value was kept. It waits for a lock for ``seconds`` at most."},
    {"fail", entered<cache_fail, CacheEntry>, METH_VARARGS,
     "fail($self, load, key, told, stale, seconds, /)\n--\n\n"
     "Ends a load without a value; the callers that wait get ``told``, a pickled exception. Returns whether it\n"
     "has ended: there may be no room for ``told``, or no lock within ``seconds``. None ends it in any case; with\n"
     "``stale`` an expired value is kept."},
    {"counts", entered<cache_counts, CacheEntry>, METH_NOARGS,
     "counts($self, /)\n--\n\n"
     "The figures of the cache, summed over all clients, as a dict of int."},
    {"configure", entered<cache_configure, CacheEntry>, METH_VARARGS,
     "configure($self, ttl, jitter, limit, reserve, /)\n--\n\n"
     "Changes settings: ttl in nanoseconds, jitter in 2**-32, limit and reserve in bytes. None leaves one as it\n"
     "is. Raises ValueError."},
    {"bind", cache_bind, METH_O,
     "bind($self, segment, /)\n--\n\n"
     "Attaches an unpickled cache to its segment."},
    {nullptr, nullptr, 0, nullptr}};
static PyGetSetDef cache_attributes[] = {
    {"number", cache_number, nullptr, "The number of the cache in its pool, which no later cache has.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

static PySequenceMethods cache_sequence = {};
PyTypeObject CacheType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_cache_type() {
    cache_sequence.sq_length = entered<cache_length, CacheEntry>;
    cache_sequence.sq_contains = entered<cache_contains, CacheEntry>;
    CacheType.tp_as_sequence = &cache_sequence;
    CacheType.tp_new = cache_new;
    CacheType.tp_flags |= Py_TPFLAGS_BASETYPE;
    return ready_type<CacheObject>(CacheType, "bufferpool._core.CacheBase", "The objects of one cache of a pool.",
                                   cache_dealloc, cache_methods, cache_attributes);
}

}  // namespace bp
