// What the explorer's processes do with objects: put, get, delete, load and evict them, and give their memory back.
//
// Every word of a value is its key and its version. What must hold: a reader sees whole values of its key, no older one
// than was deleted or replaced before it began, and what it pins does not change; the kernel has never given more
// memory than is counted; no process loads a key that another one loads.
#pragma once

#include "actors.h"
#include "protocol/object_check.h"

namespace bp {

constexpr u32 KEYS = 2, SMALL = 2, LARGE = 9;  // words of a value
constexpr u32 OBJECT_FRAMES = 6;               // what is lent to the objects

static Segment& make_area(const Geometry& g) {
    ObjectPlaces p = place_objects(g, 0);
    p.end = p.data_at + OBJECT_DATA;
    if (p.end - p.at > sizeof object_world.area) abort();
    object_world.begin = p.at;
    object_world.data_at = p.data_at;
    u8* at = object_world.area;
    auto header = reinterpret_cast<ObjectsHeader*>(at);
    header->log_shift.store_relaxed(OBJECT_LOG_SHIFT);
    for (Atomic<u64>* ready : {&header->entries_ready, &header->blocks_ready, &header->heads_ready})
        ready->store_relaxed(doubled(p.max_entries));
    for (u32 c = 1; c <= g.max_clients; c++) header->rows_ready[c].store_relaxed(doubled(p.max_blocks));
    header->buckets.store_relaxed(1);
    header->caches[0].number.store_relaxed(CACHES);
    header->caches[0].state.store_relaxed(CACHE_LIVE);
    auto h = reinterpret_cast<Header*>(world.segment);
    h->object_bytes.store_relaxed(p.end - p.at);
    h->objects_made.store_relaxed(1);
    h->loan.store_relaxed(loan::word(OBJECT_FRAMES, OBJECT_FRAMES));
    for (Process& process : world.processes) {
        Objects& o = process.segment.objects;
        o.at = p;
        o.base = at;
        o.heads = reinterpret_cast<ObjectHead*>(at + (p.heads_at - p.at));
        o.entries = reinterpret_cast<ObjectEntry*>(at + (p.entries_at - p.at));
        o.blocks = reinterpret_cast<ObjectBlock*>(at + (p.blocks_at - p.at));
        o.data = at + (p.data_at - p.at);
        o.read_base = o.data;
        o.log_shift = OBJECT_LOG_SHIFT;
        o.header = header;
        look_at_objects(process.segment);
    }
    object_world.used = true;
    return world.processes[0].segment;
}

// ---- what they do ------------------------------------------------------------------------------

static ObjectKey object_key(u32 key) {
    static const u64 keys[KEYS] = {0x1111, 0x2222};
    return {reinterpret_cast<const u8*>(&keys[key]), 8, CACHES, hash_bytes(reinterpret_cast<const u8*>(&keys[key]), 8, CACHES)};
}

static u64 version_of(Segment& s, u32 key, const FoundObject& found) {
    auto words = reinterpret_cast<const u64*>(s.objects.read_base + found.value_offset);
    u64 n = object::bytes(found.value) / 8;
    model::require_object(words, n * 8);
    u64 first = words[0];
    model::step();
    u64 last = words[n - 1];
    if (first != last) violation("the value of key %u is mixed: %llx and %llx", key, (unsigned long long)first, (unsigned long long)last);
    if (first >> 32 != key) violation("key %u has the value of %u", key, u32(first >> 32));
    if (u32(first) > object_world.intended[key]) violation("key %u has a version that nobody put", key);
    return u32(first);
}

// Looks twice at a value that is found, and releases it.
static void look_at_value(Segment& s, u32 key, const FoundObject& found, u64 least) {
    u64 version = version_of(s, key, found);
    if (version < least) violation("key %u has version %u after version %u", key, u32(version), u32(least));
    model::step();
    if (version_of(s, key, found) != version) violation("the value of key %u has changed while it is held", key);
    unpin_and_settle(s, found.block);
}

static void get_object(Segment& s, u32 key) {
    u64 least = object_world.floor[key];
    FoundObject found;
    if (find_surely(s, object_key(key), found) != Look::FOUND) return;
    bool holds = object::state(found.word) == OBJECT_LIVE && is_value(object::kind(found.value));
    if (!holds || is_expired(found.expires_ns)) return unpin_and_settle(s, found.block);
    look_at_value(s, key, found, least);
}

static Published store_version(Segment& s, PutObject& put, u32 key, u32 version, u32 words, Status& status) {
    u64 value[LARGE];
    for (u64& w : value) w = u64(key) << 32 | version;
    if (version > object_world.intended[key]) object_world.intended[key] = version;
    put.key = object_key(key);
    put.kind = 1;
    put.bytes = words * 8;
    ObjectPiece piece{value, put.bytes, 0};
    return store_object(s, put, &piece, 1, status);
}

static void put_object(Segment& s, u32 key, u32 version, u32 words, u64 expires_ns = 0) {
    PutObject put;
    put.expires_ns = expires_ns;
    Status status;
    Published done = store_version(s, put, key, version, words, status);
    if (done != Published::YES && status != Status::INTERRUPTED) delete_object(s, object_key(key));
}

// A load of a value. `writes`: others put or delete the key meanwhile, and then another one may load it at the same time.
static void load_object(Segment& s, u32 key, u32 version, bool stale, bool writes) {
    LoadRequest want;
    want.key = object_key(key);
    want.stale = stale;
    Begun begun = begin_object(s, want);
    if (begun == Begun::HIT || begun == Begun::STALE) return look_at_value(s, key, want.found, 0);
    if (begun != Begun::LOAD) return;
    if (object_world.touched[key]) violation("key %u is loaded although its value was touched before it expired", key);
    for (u32 i = 0; !writes && i < PROCESSES; i++) {
        bool lives = world.processes[i].life == READY || world.processes[i].life == WAITING;
        if (int(i) != running && lives && object_world.loading[key] >> i & 1) violation("key %u is loaded by %d and %u at once", key, running, i);
    }
    object_world.loading[key] |= u8(1u << running);
    object_world.loads[key]++;
    model::step();
    object_world.loading[key] &= u8(~(1u << running));
    PutObject put;
    put.entry = want.put.entry;
    put.word = want.put.word;
    Status status;
    if (store_version(s, put, key, version, SMALL, status) == Published::FULL) end_load(s, put.entry, put.word, s.me);
}

// ---- the end -----------------------------------------------------------------------------------

// The key of a load that was left can be loaded by any process.
static void load_left_keys(Segment& s) {
    for (u32 e = 0; e < s.objects.header->entries_high.load_relaxed(); e++) {
        if (!(s.objects.entries[e].word.load_relaxed() & object::LEFT)) continue;
        for (u32 key = 0; key < KEYS; key++) {
            LoadRequest want;
            want.key = object_key(key);
            want.wait = false;
            Begun begun = begin_object(s, want);
            if (begun == Begun::LOAD) end_load(s, want.put.entry, want.put.word, s.me);
            else if (begun == Begun::HIT) unpin_and_settle(s, want.found.block);
            else violation("key %u cannot be loaded after a load that was left", key);
        }
    }
}

static void check_objects_at_end(Segment& s, bool once) {
    load_left_keys(s);
    Findings found;
    if (check_objects(s, found) != Status::OK) abort();
    for (const Finding& finding : found) violation("%s", finding.text);
    ObjectsHeader& h = *s.objects.header;
    for (u32 b = 0; b < h.blocks_high.load_relaxed(); b++) {
        BlockState state = block::state(s.objects.blocks[b].word.load_relaxed());
        if (state == BLOCK_BUSY || state == BLOCK_DOOMED) violation("block %u is left %s", b, state == BLOCK_BUSY ? "BUSY" : "DOOMED");
        if (any_object_pin(s, b)) violation("block %u is left pinned", b);
    }
    if (model::object_pages() != h.used.load_relaxed()) violation("the kernel has given %u OS pages to objects, and %u are counted", model::object_pages(), u32(h.used.load_relaxed()));
    for (u32 e = 0; e < h.entries_high.load_relaxed(); e++) {
        EntryKind state = object::state(s.objects.entries[e].word.load_relaxed());
        if (state == OBJECT_LOADING || state == OBJECT_CHANGING) violation("object %u is left %s", e, state == OBJECT_LOADING ? "LOADING" : "CHANGING");
        if (state == OBJECT_LIVE && s.objects.entries[e].owner.load_relaxed()) violation("object %u is left to a client that renews it", e);
    }
    for (u32 key = 0; key < KEYS; key++) {
        get_object(s, key);
        if (once && !world.kills && object_world.loads[key] > 1) violation("key %u was loaded %u times", key, object_world.loads[key]);
    }
}

// Each key was put once, and there was room for all.
static void check_all_are_kept(Segment& s) {
    const CacheSlot& cache = s.objects.header->caches[0];
    u32 n = cache.count.load_relaxed(), evicted = u32(cache.evictions.load_relaxed());
    if (n != KEYS || evicted) violation("%u of %u values are kept, and %u were evicted, although there was room", n, KEYS, evicted);
}

// ---- programs ----------------------------------------------------------------------------------

static Program gets(u32 key, int n = 1) {
    return [=](Segment& s, Process&) {
        for (int i = 0; i < n; i++) get_object(s, key);
    };
}
static Program puts(u32 key, u32 version, u32 words) {
    return [=](Segment& s, Process&) { put_object(s, key, version, words); };
}
// The only process that writes the key: from then on no process may find the older value.
static Program puts_and_deletes(u32 key, u32 words) {
    return [=](Segment& s, Process&) {
        put_object(s, key, 2, words);
        object_world.floor[key] = 2;
        delete_object(s, object_key(key));
        object_world.floor[key] = 3;
    };
}
static Program puts_newer(u32 key) {
    return [=](Segment& s, Process&) {
        put_object(s, key, 2, SMALL);
        object_world.floor[key] = 2;
    };
}
// The first put gives the table memory for a second chain, and the next one of a new key divides the first chain.
static Program extends_table(u32 key) {
    return [=](Segment& s, Process&) {
        put_object(s, key, 1, SMALL);
        delete_object(s, object_key(key));
        put_object(s, key, 2, SMALL);
    };
}
static Program deletes_for_good(u32 key) {
    return [=](Segment& s, Process&) {
        delete_object(s, object_key(key));
        object_world.floor[key] = 2;
    };
}
static Program evicts_object() {
    return [](Segment& s, Process&) { evict_object(s, NONE); };
}
static Program evicts_and_puts(u32 key, u32 words) {
    return [=](Segment& s, Process&) {
        evict_object(s, NONE);
        put_object(s, key, 2, words);
    };
}
static Program loads(u32 key, u32 version, bool stale = false, bool writes = false) {
    return [=](Segment& s, Process&) { load_object(s, key, version, stale, writes); };
}
static Program strips(u32 key) {
    return [=](Segment& s, Process&) {
        if (delete_object(s, object_key(key)) != Status::INTERRUPTED) object_world.floor[key] = 2;
        strip_free_blocks(s, ~0ull);
    };
}
static Program touches(u32 key) {
    return [=](Segment& s, Process&) {
        if (set_expiry(s, object_key(key), 0) == Status::OK) object_world.touched[key] = true;
    };
}
static Program lets_time_pass() {
    return [](Segment&, Process&) {
        model::step();
        object_world.passed = 1;
    };
}
static Program deletes(u32 key) {
    return [=](Segment& s, Process&) { delete_object(s, object_key(key)); };
}
// The first load may give up, the second one does not.
static Program loads_twice(u32 key) {
    return [=](Segment& s, Process& me) {
        load_object(s, key, 1, false, false);
        me.hurried = 0;
        me.gives_up = false;
        load_object(s, key, 2, false, false);
    };
}
static Program cleans() {
    return [](Segment& s, Process&) {
        clean_log(s);
        strip_free_blocks(s, ~0ull);
    };
}

}  // namespace bp
