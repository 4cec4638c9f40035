// The other operations that may hang, beside loads and flushes of pages: syncs of the log and saves of the working set,
// which Python code does, and loads of values of caches. Also the values of caches that clients hold.
#include "protocol/object_read.h"
#include "python/py.h"

namespace bp {

// ---- UnderWay: an operation that only figures show ---------------------------------
//
// Its intent records what the client does, and since when. If the client dies, nothing needs to be undone. The
// operation ends when the object is dropped, so that an exception between two bytecodes (Ctrl-C) leaves nothing behind.

struct UnderWayObject {
    PyObject_HEAD Shared<SegmentObject*> seg;  // null: it has ended, or no intent was free
    u32 forks;
    int op;
};

static void end_under_way(UnderWayObject* one) {
    SegmentObject* seg = one->seg.swap(nullptr);  // exactly one of several threads ends it
    if (!seg) return;
    Use use(seg);
    if (is_ours(seg, one->forks)) OpSlot(*seg->s, one->op);  // its destructor clears the intent
    Py_DECREF(seg);
}

// under_way(kind) -> UnderWay: "log_sync" or "save". If all intents of this client are in use, it is not shown.
static PyObject* segment_under_way(PyObject* self, PyObject* arg) {
    const char* name = PyUnicode_AsUTF8(arg);
    Segment* s = name ? opened(S(self)) : nullptr;
    if (!s) return nullptr;
    bool log = strcmp(name, "log_sync") == 0;
    if (!log && strcmp(name, "save") != 0) return raise("ValueError", "there is no operation %s", name);
    auto one = PyObject_New(UnderWayObject, &UnderWayType);
    if (!one) return nullptr;
    one->seg = nullptr;
    one->forks = S(self)->forks;
    OpSlot op(*s, OpSlot::IfFree{});
    if (op.valid()) {
        Intent& intent = op.intent();
        for (auto field : {&intent.page, &intent.frame, &intent.old, &intent.victim}) field->store_relaxed(NONE);
        intent.since.store_relaxed(s->tick());
        intent.op.store_release(u32(log ? Op::LOG_SYNC : Op::SAVE));
        one->op = op.release();
        one->seg = S(self);
        Py_INCREF(self);
    }
    return reinterpret_cast<PyObject*>(one);
}

static PyObject* under_way_enter(PyObject* self, PyObject*) { return Py_NewRef(self); }
static PyObject* under_way_exit(PyObject* self, PyObject* const*, Py_ssize_t) {
    end_under_way(reinterpret_cast<UnderWayObject*>(self));
    Py_RETURN_NONE;
}
static void under_way_dealloc(UnderWayObject* one) {
    end_under_way(one);
    PyObject_Free(one);
}

static PyMethodDef under_way_methods_of_type[] = {
    {"__enter__", under_way_enter, METH_NOARGS,
     "__enter__($self, /)\n--\n\n"
     "This object."},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(under_way_exit)), METH_FASTCALL,
     "__exit__($self, *exc)\n--\n\n"
     "Ends the operation."},
    {nullptr, nullptr, 0, nullptr}};
PyTypeObject UnderWayType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_under_way_type() {
    return ready_type(UnderWayType, "bufferpool._core.UnderWay",
                      "An operation that the pool's figures show until it ends.", under_way_dealloc,
                      under_way_methods_of_type);
}

// ---- loads of values ---------------------------------------------------------------

struct ValueLoad {
    u32 entry, client, cache, key_bytes;
    u64 word, place, since_ns;
};

constexpr u64 KEY_SHOWN = 1024;  // bytes of a key, at most

// The tables of the objects, copied with pread: neither an observer nor a client without caches has them mapped.
struct ObjectTables {
    Segment& s;
    ObjectPlaces at;
    ObjectsHeader header;

    bool read() {
        if (!s.header->objects_made.load_acquire()) return false;
        at = place_objects(s.g, s.header->object_bytes.load_relaxed());
        return prim::read_at(s.fd, &header, sizeof header, at.at) == ssize_t(sizeof header);
    }
    template <class Row>
    bool row(Row* to, u32 n, u64 table, u64 i) const {
        return prim::read_at(s.fd, to, n * sizeof(Row), table + i * sizeof(Row)) == ssize_t(n * sizeof(Row));
    }
};

// Looks through all entries for those that a client loads. False: there is no memory for the list.
static bool find_value_loads(ObjectTables& tables, Vec<ValueLoad>& out) {
    constexpr u32 MOST = 256;
    ObjectEntry chunk[MOST];
    u32 high = std::min(tables.header.entries_high.load_relaxed(), tables.at.max_entries);
    for (u32 first = 0; first < high; first += MOST) {
        u32 n = std::min(MOST, high - first);
        if (!tables.row(chunk, n, tables.at.entries_at, first)) return true;
        for (u32 i = 0; i < n; i++) {
            ObjectEntry& e = chunk[i];
            u64 w = e.word.load_relaxed();
            if (w == 0) return true;  // this entry and all after it were never used: the header is damaged
            u32 client = e.owner.load_relaxed();
            EntryKind state = object::state(w);
            if (!tables.s.has_slot(client)) continue;
            if ((state != OBJECT_LOADING && state != OBJECT_LIVE) || w & object::LEFT) continue;
            if (!out.push({first + i, client, e.cache.load_relaxed(), e.key_bytes.load_relaxed(), w,
                           e.place.load_relaxed(), e.expires_ns.load_relaxed()}))
                return false;
        }
    }
    return true;
}

// The first bytes of a load's key; None if the load has ended meanwhile.
static PyObject* key_of(const ObjectTables& tables, const ValueLoad& load) {
    ObjectBlock block;
    ObjectEntry now;
    char bytes[KEY_SHOWN];
    u64 n = std::min<u64>(load.key_bytes, KEY_SHOWN), b = object::block(load.place);
    if (b >= tables.at.max_blocks || !tables.row(&block, 1, tables.at.blocks_at, b)) Py_RETURN_NONE;
    u64 at = tables.at.data_at + block.at.load_relaxed() * tables.s.g.os_page + object::offset(load.place);
    at += sizeof(RecordHead);
    bool read = at < tables.at.end && prim::read_at(tables.s.fd, bytes, n, at) == ssize_t(n);
    if (!read || !tables.row(&now, 1, tables.at.entries_at, load.entry)) Py_RETURN_NONE;
    bool same = (now.word.load_relaxed() & ~object::WAITED) == (load.word & ~object::WAITED) &&
                now.place.load_relaxed() == load.place;
    if (!same) Py_RETURN_NONE;
    return PyBytes_FromStringAndSize(bytes, Py_ssize_t(n));
}

// value_loads(keys) -> the values that clients load: (client, the cache's number, the first bytes of the key or None,
// seconds since it began)
static PyObject* segment_value_loads(PyObject* self, PyObject* arg) {
    int keys = PyObject_IsTrue(arg);
    Segment* s = keys < 0 ? nullptr : seen(S(self));
    if (!s) return nullptr;
    ObjectTables tables{*s};
    Vec<ValueLoad> found;
    bool ok = true;
    {
        Released unlocked(S(self));
        if (tables.read()) ok = find_value_loads(tables, found);
    }
    PyObject* list = ok ? PyList_New(0) : PyErr_NoMemory();
    u64 now = prim::coarse_ns();
    for (const ValueLoad& load : found) {
        PyObject* key = !list ? nullptr : keys ? key_of(tables, load) : Py_NewRef(Py_None);
        double seconds = now > load.since_ns ? double(now - load.since_ns) / 1e9 : 0.0;
        PyObject* one = key ? Py_BuildValue("(IINd)", load.client, load.cache, key, seconds) : nullptr;
        if (!one || PyList_Append(list, one) < 0) Py_CLEAR(list);
        Py_XDECREF(one);
        if (!list) break;
    }
    return list;
}

// cache_names() -> the caches of the pool: number -> name
static PyObject* segment_cache_names(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    PyObject* names = s ? PyDict_New() : nullptr;
    if (!names) return nullptr;
    ObjectTables tables{*s};
    if (!tables.read()) return names;
    for (CacheSlot& cache : tables.header.caches) {
        if (cache.state.load_relaxed() != CACHE_LIVE) continue;
        PyObject* number = PyLong_FromUnsignedLong(cache.number.load_relaxed());
        PyObject* name = PyUnicode_DecodeUTF8(cache.name, Py_ssize_t(strnlen(cache.name, CACHE_NAME)), "replace");
        bool ok = number && name && PyDict_SetItem(names, number, name) == 0;
        Py_XDECREF(number);
        Py_XDECREF(name);
        if (!ok) return Py_DECREF(names), nullptr;
    }
    return names;
}

// object_samples() -> None, or (shift, the older samples, the newer ones), both as bytes
static PyObject* segment_object_samples(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s) return nullptr;
    ObjectTables tables{*s};
    if (!tables.read()) Py_RETURN_NONE;
    constexpr Py_ssize_t unit = sizeof(ObjectSample);
    PyObject* ring = PyBytes_FromStringAndSize(nullptr, OBJECT_SAMPLES * unit);
    if (!ring) return nullptr;
    char* at = PyBytes_AS_STRING(ring);
    bool there = tables.row(reinterpret_cast<ObjectSample*>(at), OBJECT_SAMPLES, tables.at.samples_at, 0);
    u64 n = there ? tables.header.sampled.load_relaxed() : 0;
    Py_ssize_t first = n > OBJECT_SAMPLES ? Py_ssize_t(n % OBJECT_SAMPLES) : 0;
    Py_ssize_t end = Py_ssize_t(std::min<u64>(n, OBJECT_SAMPLES));
    PyObject* out = Py_BuildValue("(Iy#y#)", sample_shift(tables.header.live.load_relaxed()), at + first * unit,
                                  (end - first) * unit, at, first * unit);
    Py_DECREF(ring);
    return out;
}

// ---- values that are held ----------------------------------------------------------

// The memory of the blocks that a client pins.
static u64 held_bytes(const ObjectTables& tables, u32 client) {
    constexpr u32 MOST = 1024;
    u32 counts[MOST];
    u64 w = tables.header.rows_ready[client].load_relaxed(), sum = 0;
    u64 counters = row_bytes(tables.s.g, 0, true);  // they stand before the counts
    u64 table = tables.at.rows_at + (client - 1) * tables.at.row_bytes + counters;
    u32 high = std::min(tables.header.blocks_high.load_relaxed(), tables.at.max_blocks);
    u32 end = is_doubled(w) ? std::min(u32(w), high) : 0;
    for (u32 first = 0; first < end; first += MOST) {
        u32 n = std::min(MOST, end - first);
        if (!tables.row(counts, n, table, first)) break;
        for (u32 i = 0; i < n; i++) {
            ObjectBlock block;
            if (counts[i] && tables.row(&block, 1, tables.at.blocks_at, first + i))
                sum += u64(block.memory.load_relaxed()) * tables.s.g.os_page;
        }
    }
    return sum;
}

// held_objects() -> [(client, bytes)]: the memory of values that each client holds.
static PyObject* segment_held_objects(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    PyObject* out = s ? PyList_New(0) : nullptr;
    if (!out) return nullptr;
    ObjectTables tables{*s};
    if (!tables.read()) return out;
    for (u32 c = 1, slots = s->slots(); c <= slots; c++) {
        u64 bytes = held_bytes(tables, c);
        PyObject* row = bytes ? Py_BuildValue("(IK)", c, (unsigned long long)bytes) : nullptr;
        bool failed = bytes && (!row || PyList_Append(out, row) < 0);
        Py_XDECREF(row);
        if (failed) return Py_DECREF(out), nullptr;
    }
    return out;
}

PyMethodDef under_way_methods[] = {{"held_objects", entered<segment_held_objects, SegmentEntry>, METH_NOARGS,
                                    "held_objects($self, /)\n--\n\n"
                                    "(client, bytes) for each client that holds values of caches."},
                                   {"under_way", entered<segment_under_way, SegmentEntry>, METH_O,
                                    "under_way($self, kind, /)\n--\n\n"
                                    "An UnderWay of the kind \"log_sync\" or \"save\": the figures show it until it\n"
                                    "ends."},
                                   {"object_samples", entered<segment_object_samples, SegmentEntry>, METH_NOARGS,
                                    "object_samples($self, /)\n--\n\n"
                                    "The sampled uses of keys: (shift, the older ones, the newer ones), both as\n"
                                    "bytes; None without a cache."},
                                   {"value_loads", entered<segment_value_loads, SegmentEntry>, METH_O,
                                    "value_loads($self, keys, /)\n--\n\n"
                                    "The loads of values: (client, the cache's number, the first bytes of the\n"
                                    "key or None, seconds since it began)."},
                                   {"cache_names", entered<segment_cache_names, SegmentEntry>, METH_NOARGS,
                                    "cache_names($self, /)\n--\n\n"
                                    "The names of the caches, by number."},
                                   {nullptr, nullptr, 0, nullptr}};

}  // namespace bp
