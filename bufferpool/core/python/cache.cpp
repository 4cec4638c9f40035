// CacheBase: the objects of one cache, seen from Python. bufferpool/objects/cache.py adds what needs no speed.
#include "protocol/object_check.h"
#include "python/objects.h"

namespace bp {

static CacheObject* C(PyObject* self) { return reinterpret_cast<CacheObject*>(self); }

// The segment, if it can be used, and its objects are mapped.
static Segment* ready_cache(CacheObject* cache) {
    if (!may_work(cache->seg)) return nullptr;
    Segment* s = cache->seg->s;
    if (s->objects.row_ready) return s;
    int r = map_objects(*s);
    if (r == 0) r = ready_row(*s);
    if (r) return raise_errno(r, "memory for the tables of the objects cannot be allocated"), nullptr;
    return s;
}

struct CacheEntry {
    Use use;
    explicit CacheEntry(PyObject* self) : use(C(self)->seg, HELD) {}
    bool ok() const { return true; }
};

static PyObject* raise_unsure() {
    return check_signals() < 0 ? nullptr : raise("InterruptedError", "interrupted while waiting for the objects");
}

// The key that a method was given, in `bytes`. False with an exception.
static bool read_key(CacheObject* cache, PyObject* from, KeyBytes& bytes, ObjectKey& key) {
    if (bytes.add_key(from) < 0) return false;
    if (bytes.size() > 1 << 20) return raise("ValueError", "a key has at most 1 MiB"), false;
    key = bytes.key(cache->cache);
    return true;
}

// ---- get ----------------------------------------------------------------------------

// Finds a value that holds: FOUND with a pin. It counts the hit or the miss.
static Look look_up(CacheObject* cache, Segment& s, const ObjectKey& key, FoundObject& found) {
    Look look;
    {
        Quick quick;
        look = find_surely(s, key, found);
    }
    if (look == Look::UNSURE) {  // it is changing, or a table grows: without the interpreter's lock
        Released unlocked(cache->seg);
        look = find_surely(s, key, found);
    }
    if (look == Look::UNSURE) return look;
    if (look == Look::FOUND) {
        bool holds = object::state(found.word) == OBJECT_LIVE && object::kind(found.value) != KIND_FAILED;
        if (holds && (!found.expires_ns || !is_expired(found.expires_ns))) return look;
        drop_object_pin(cache->seg, found.block);
    }
    return Look::NOTHING;
}

// get(key, default=None)
static PyObject* cache_get(PyObject* self, PyObject* const* args, Py_ssize_t n) {
    if (n < 1 || n > 2) return raise("TypeError", "get() takes a key, and a default");
    Segment* s = ready_cache(C(self));
    KeyBytes bytes;
    ObjectKey key;
    if (!s || !read_key(C(self), args[0], bytes, key)) return nullptr;
    FoundObject found;
    Look look = look_up(C(self), *s, key, found);
    if (look == Look::UNSURE) return raise_unsure();
    if (look == Look::NOTHING) {
        uses_of_cache(*s, C(self)->cache).misses.add_owned(1);
        return Py_NewRef(n == 2 ? args[1] : Py_None);
    }
    uses_of_cache(*s, C(self)->cache).hits.add_owned(1);
    touch_object(*s, found.entry);
    return value_of(C(self)->seg, found);
}

static int cache_contains(PyObject* self, PyObject* arg) {
    Segment* s = ready_cache(C(self));
    KeyBytes bytes;
    ObjectKey key;
    if (!s || !read_key(C(self), arg, bytes, key)) return -1;
    FoundObject found;
    Look look = look_up(C(self), *s, key, found);
    if (look == Look::UNSURE) return raise_unsure(), -1;
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
    u64 ns = cache->ttl_ns;
    if (ttl && ttl != Py_None) {
        double seconds = PyFloat_AsDouble(ttl);
        if (PyErr_Occurred()) return false;
        if (!(seconds > 0)) return raise("ValueError", "ttl must be above 0 seconds, not %R", ttl), false;
        ns = seconds < 1e9 ? u64(seconds * 1e9) : 0;
    }
    if (ns && cache->jitter > 0)  // so that what was put together does not expire together
        ns -= u64(double(ns) * cache->jitter * double(random_number(s) >> 11) / double(u64(1) << 53));
    expires_ns = ns ? prim::coarse_ns() + ns : 0;
    return true;
}

constexpr u64 COPIED_HERE = 64 << 10;  // bytes that are copied while we have the interpreter's lock

static Published store(Segment& s, PutObject& put, ValuePieces& value, Status& status) {
    status = reserve_object(s, put);
    if (status != Status::OK) return Published::FULL;
    if (fill_object(s, put, value.pieces.data(), u32(value.pieces.size())) != 0) {
        abandon_object(s, put);
        status = Status::NO_SPACE;
        return Published::FULL;
    }
    BP_POINT("put.copied");
    return publish_object(s, put);
}

// Stores a value. Whether it was kept; -1 with an exception.
static int keep(CacheObject* cache, Segment& s, PutObject& put, ValuePieces& value) {
    put.kind = value.kind;
    put.bytes = value.bytes;
    Status status = Status::WAIT;
    Published r = Published::FULL;
    if (put.bytes <= COPIED_HERE) {
        Quick quick;
        r = store(s, put, value, status);
    }
    if (status == Status::WAIT) {
        Released unlocked(cache->seg);
        r = store(s, put, value, status);
    }
    if (status == Status::INTERRUPTED && check_signals() < 0) return -1;
    bool kept = r == Published::YES;
    CacheUses& uses = uses_of_cache(s, cache->cache);
    (kept ? uses.puts : uses.refused).add_relaxed(1);
    return kept;
}

// An older value must not stay where a newer one could not be kept.
static void forget(CacheObject* cache, Segment& s, const ObjectKey& key) {
    Released unlocked(cache->seg);
    delete_object(s, key);
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
    if (value.take(args[1]) < 0) return nullptr;
    s = ready_cache(C(self));  // pickling may have run code that closed the pool
    if (!s) return nullptr;
    int kept = keep(C(self), *s, put, value);
    if (kept == 0) forget(C(self), *s, put.key);
    return kept < 0 ? nullptr : PyBool_FromLong(kept);
}

static PyObject* cache_delete(PyObject* self, PyObject* arg) {
    Segment* s = ready_cache(C(self));
    KeyBytes bytes;
    ObjectKey key;
    if (!s || !read_key(C(self), arg, bytes, key)) return nullptr;
    bool was;
    {
        Released unlocked(C(self)->seg);
        was = delete_object(*s, key);
    }
    return PyBool_FromLong(was);
}

static PyObject* cache_clear(PyObject* self, PyObject*) {
    Segment* s = ready_cache(C(self));
    if (!s) return nullptr;
    u64 n;
    {
        Released unlocked(C(self)->seg);
        n = clear_objects(*s, C(self)->cache);
    }
    if (check_signals() < 0) return nullptr;
    return PyLong_FromUnsignedLongLong(n);
}

// ---- loads ----------------------------------------------------------------------------

enum Outcome { OUT_VALUE, OUT_LOAD, OUT_FAILED, OUT_UNKEPT, OUT_BUSY, OUT_LATE, OUT_STALE };

// begin(key, timeout, wait, waited, stale, loads) -> (outcome, value | (entry, word) | None): the value; or the load of
// it, which is ours, and which `loads` gets, too; or the pickled exception of the load that was waited for; or that it
// can be loaded, but not kept.
static PyObject* cache_begin(PyObject* self, PyObject* args) {
    PyObject* from;
    double timeout;
    int wait, waited, stale;
    PyObject* loads = nullptr;  // a list: it gets our load at once, so that no exception of a signal's handler loses it
    if (!PyArg_ParseTuple(args, "Odppp|O!:begin", &from, &timeout, &wait, &waited, &stale, &PyList_Type, &loads))
        return nullptr;
    Segment* s = ready_cache(C(self));
    KeyBytes bytes;
    LoadRequest want;
    if (!s || !read_key(C(self), from, bytes, want.key)) return nullptr;
    want.wait = wait;
    want.waited = waited;
    want.stale = stale;
    Begun begun;
    {
        Released unlocked(C(self)->seg);
        Deadline until(timeout < 1e9 ? prim::now_ns() + u64(std::max(timeout, 0.0) * 1e9) : 0);
        begun = begin_object(*s, want);
    }
    CacheUses& uses = uses_of_cache(*s, C(self)->cache);
    if (want.waited) uses.waits.add_relaxed(1);
    auto pair = [](Outcome outcome, PyObject* what) {
        return what ? Py_BuildValue("(iN)", int(outcome), what) : nullptr;
    };
    switch (begun) {
    case Begun::HIT: touch_object(*s, want.found.entry); return pair(OUT_VALUE, value_of(C(self)->seg, want.found));
    case Begun::STALE: return pair(OUT_STALE, value_of(C(self)->seg, want.found));
    case Begun::FAILED: return pair(OUT_FAILED, value_of(C(self)->seg, want.found));
    case Begun::LOAD: {
        PyObject* load = Py_BuildValue("(IK)", want.put.entry, (unsigned long long)want.put.word);
        if (!load || (loads && PyList_Append(loads, load) != 0)) {
            Py_XDECREF(load);
            end_load(*s, want.put.entry, want.put.word);
            return nullptr;
        }
        return pair(OUT_LOAD, load);
    }
    case Begun::BUSY: return pair(OUT_BUSY, Py_NewRef(Py_None));
    case Begun::LATE: return pair(OUT_LATE, Py_NewRef(Py_None));
    case Begun::INTERRUPTED: return raise_unsure();
    default: return pair(OUT_UNKEPT, Py_NewRef(Py_None));
    }
}

// finish(key, (entry, word), value, ttl, microseconds) -> whether the value was kept
static PyObject* cache_finish(PyObject* self, PyObject* args) {
    PyObject *from, *object, *ttl;
    unsigned entry, cost;
    unsigned long long word;
    if (!PyArg_ParseTuple(args, "O(IK)OOI:finish", &from, &entry, &word, &object, &ttl, &cost)) return nullptr;
    Segment* s = ready_cache(C(self));
    KeyBytes bytes;
    PutObject put;
    ValuePieces value;
    if (!s || !read_key(C(self), from, bytes, put.key) || !expiry(C(self), *s, ttl, put.expires_ns)) return nullptr;
    put.entry = entry;
    put.word = word;
    put.cost = cost;
    if (value.take(object) < 0) return nullptr;
    s = ready_cache(C(self));
    if (!s) return nullptr;
    uses_of_cache(*s, C(self)->cache).loads.add_relaxed(1);
    int kept = keep(C(self), *s, put, value);
    if (kept == 0) end_load(*s, entry, word);
    return kept < 0 ? nullptr : PyBool_FromLong(kept);
}

// fail((entry, word), key, pickled exception or None): ends a load without a value; those that wait get the exception.
static PyObject* cache_fail(PyObject* self, PyObject* args) {
    PyObject *from, *error;
    unsigned entry;
    unsigned long long word;
    if (!PyArg_ParseTuple(args, "(IK)OO:fail", &entry, &word, &from, &error)) return nullptr;
    Segment* s = ready_cache(C(self));
    KeyBytes bytes;
    PutObject put;
    if (!s || !read_key(C(self), from, bytes, put.key)) return nullptr;
    uses_of_cache(*s, C(self)->cache).load_failures.add_relaxed(1);
    bool told = false;
    if (PyBytes_Check(error) && object::state(word) == OBJECT_LOADING) {
        put.kind = KIND_FAILED;
        put.bytes = u64(PyBytes_GET_SIZE(error));
        put.entry = entry;
        put.word = word;
        put.expires_ns = prim::coarse_ns() + 1'000'000'000;
        ObjectPiece piece{PyBytes_AS_STRING(error), put.bytes, 0};
        Released unlocked(C(self)->seg);
        if (reserve_object(*s, put) == Status::OK && fill_object(*s, put, &piece, 1) == 0)
            told = publish_object(*s, put) == Published::YES;
        else abandon_object(*s, put);
    }
    if (!told) end_load(*s, entry, word);
    Py_RETURN_NONE;
}

// ---- figures --------------------------------------------------------------------------

static PyObject* cache_counts(PyObject* self, PyObject*) {
    Segment* s = ready_cache(C(self));
    if (!s) return nullptr;
    u64 sums[sizeof(CacheUses) / 8] = {};
    for (u32 c = 1; c <= s->g.max_clients; c++) {
        u64 w = s->objects.header->rows_ready[c].load_seq_cst();
        if (!is_doubled(w) || !w) continue;
        auto words = reinterpret_cast<Atomic<u64>*>(&s->object_uses(c)[C(self)->cache % CACHES]);
        for (u32 i = 0; i < sizeof(CacheUses) / 8; i++) sums[i] += words[i].load_relaxed();
    }
    CacheSlot& cache = cache_of(*s, C(self)->cache);
    auto k = [](u64 n) { return (unsigned long long)n; };
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:I,s:K,s:K,s:K}", "hits", k(sums[0]), "misses", k(sums[1]),
                         "puts", k(sums[2]), "loads", k(sums[3]), "load_failures", k(sums[4]), "waits", k(sums[5]),
                         "evictions", k(sums[6]), "refused", k(sums[7]), "count", cache.count.load_relaxed(), "bytes",
                         k(cache.bytes.load_relaxed()), "limit", k(cache.limit.load_relaxed()), "reserve",
                         k(cache.reserve.load_relaxed()));
}

// configure(ttl, jitter, limit, reserve): None leaves a setting as it is. ttl in nanoseconds, limit and reserve in
// bytes.
static PyObject* cache_configure(PyObject* self, PyObject* args) {
    PyObject *ttl, *limit, *reserve;
    double jitter;
    if (!PyArg_ParseTuple(args, "OdOO:configure", &ttl, &jitter, &limit, &reserve)) return nullptr;
    Segment* s = ready_cache(C(self));
    if (!s) return nullptr;
    CacheSlot& cache = cache_of(*s, C(self)->cache);
    auto set = [](PyObject* from, Atomic<u64>& to) {
        if (from == Py_None) return true;
        u64 n = PyLong_AsUnsignedLongLong(from);
        if (PyErr_Occurred()) return false;
        to.store_release(n);
        return true;
    };
    if (!set(ttl, cache.ttl_ns) || !set(limit, cache.limit) || !set(reserve, cache.reserve)) return nullptr;
    C(self)->ttl_ns = cache.ttl_ns.load_relaxed();
    C(self)->jitter = jitter;
    Py_RETURN_NONE;
}

// ---- the type --------------------------------------------------------------------------

// CacheBase(segment, name): opens the cache of this name, or makes it.
static PyObject* cache_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject* segment;
    const char* name;
    if (!PyArg_ParseTuple(args, "O!s:CacheBase", &SegmentType, &segment, &name)) return nullptr;
    SegmentObject* seg = S(segment);
    Use use(seg);
    Segment* s = opened(seg);
    if (!s) return nullptr;
    if (!*name || strlen(name) >= CACHE_NAME)
        return raise("ValueError", "the name of a cache has 1 to %u bytes", CACHE_NAME - 1);
    int r;
    u32 cache = NONE;
    {
        Released unlocked(seg);
        bool small = u64(s->header->budget_frames.load_relaxed()) << s->g.page_shift < 32u << 20;
        r = make_objects(*s, small ? 16 : 18);
        if (r == 0 && !s->objects.blocks_ready) r = grow_blocks(*s);
        if (r == 0) r = ready_row(*s);
        if (r == 0) cache = open_cache(*s, name, true);
    }
    if (r == -EINTR) return raise_interrupted("the tables of the objects");
    if (r) return raise_errno(r, "memory for the tables of the objects cannot be allocated");
    if (cache == NONE) return raise("TooManySpaces", "a pool has at most %u caches; remove one", CACHES);
    auto self = reinterpret_cast<CacheObject*>(type->tp_alloc(type, 0));
    if (!self) return nullptr;
    self->seg = seg;
    Py_INCREF(seg);
    self->cache = cache;
    self->ttl_ns = cache_of(*s, cache).ttl_ns.load_relaxed();
    return reinterpret_cast<PyObject*>(self);
}

static void cache_dealloc(CacheObject* cache) {
    PyTypeObject* type = Py_TYPE(cache);
    SegmentObject* seg = cache->seg;
    type->tp_free(cache);
    Py_XDECREF(seg);
}

static PyMethodDef cache_methods[] = {
    {"get", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(entered<cache_get, CacheEntry>)), METH_FASTCALL,
     "get(key, default=None): the value, or the default."},
    {"put", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(entered<cache_put, CacheEntry>)),
     METH_FASTCALL | METH_KEYWORDS, "put(key, value, ttl=None): whether the value was kept."},
    {"delete", entered<cache_delete, CacheEntry>, METH_O, "delete(key): whether there was a value."},
    {"clear", entered<cache_clear, CacheEntry>, METH_NOARGS, "Removes all values; returns their number."},
    {"begin", entered<cache_begin, CacheEntry>, METH_VARARGS, ""},
    {"finish", entered<cache_finish, CacheEntry>, METH_VARARGS, ""},
    {"fail", entered<cache_fail, CacheEntry>, METH_VARARGS, ""},
    {"counts", entered<cache_counts, CacheEntry>, METH_NOARGS, ""},
    {"configure", entered<cache_configure, CacheEntry>, METH_VARARGS, ""},
    {nullptr, nullptr, 0, nullptr}};

static PySequenceMethods cache_sequence = {};
PyTypeObject CacheType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_cache_type() {
    cache_sequence.sq_length = entered<cache_length, CacheEntry>;
    cache_sequence.sq_contains = entered<cache_contains, CacheEntry>;
    CacheType.tp_as_sequence = &cache_sequence;
    CacheType.tp_new = cache_new;
    CacheType.tp_flags |= Py_TPFLAGS_BASETYPE;
    return ready_type<CacheObject>(CacheType, "bufferpool._core.CacheBase", "The objects of one cache of a pool.",
                                   cache_dealloc, cache_methods);
}

}  // namespace bp
