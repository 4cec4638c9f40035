// The area of the objects: behind the pages, in the same file. It exists when the pool has its first cache.
//
//  +--------+-------+---------+--------+----------------+-- - -----------------------------------------+
//  | header,| heads | entries | blocks | rows, one each | data: address room for the blocks; only the |
//  | caches,| 16 B[]| 64 B[]  | 32 B[] | client: uses,  | OS pages that an object needs have memory   |
//  | samples|       |         |        | pins u32[]     |                                             |
//  +--------+-------+---------+--------+----------------+-- - -----------------------------------------+
//
// An object (a key and its value) is a *record* in a block. Records above an eighth of a log page have a block of
// their own, of the next power of two; smaller ones share *log pages*, which are filled from the front. The entries
// are the only truth: the chains of the hash table, the lists of free blocks and entries, and every count can be made
// from them anew (rebuild_objects in protocol/objects.h).
//
// Address room is free, and a block keeps its place for ever, so there is nothing to compact: free memory is
// that of free blocks, and is given back, or moved to another class, by one MADV_REMOVE.
#pragma once

#include "layout/layout.h"

namespace bp {

#ifdef BP_EXPLORE
constexpr u32 CACHES = 1, CACHE_NAME = 8, BLOCK_CLASSES = 20, FIRST_BUCKETS = 1, OBJECT_ROWS = 8;
constexpr u32 OBJECT_SAMPLES = 1;
#else
constexpr u32 CACHES = 64, CACHE_NAME = 200, BLOCK_CLASSES = 48, FIRST_BUCKETS = 512;
constexpr u32 OBJECT_ROWS = CLIENTS_LIMIT + 1;
constexpr u32 OBJECT_SAMPLES = 8192;  // uses of keys that the ring for the advice has
#endif

// The word of an entry:   63            8   7       6        3     0
//                        +---------------+--------+--------+-------+
//                        | version       | waited | left   | state |
//                        +---------------+--------+--------+-------+
// Left: the client that loads it has ended the load, and could not get the lock of the objects. The next client that
// wants the key, or room, removes what the load has left.
// Every change of an entry makes another version. A reader takes what it has read of an entry if the word is the same
// before and after, and its pin on the block was counted in between.
enum EntryKind : u32 { OBJECT_FREE, OBJECT_LIVE, OBJECT_LOADING, OBJECT_CHANGING };
namespace object {
constexpr u64 WAITED = 1 << 7, LEFT = 1 << 6;
constexpr EntryKind state(u64 w) { return EntryKind(w & 7); }
constexpr u64 next(u64 w, EntryKind state) { return ((w >> 8) + 1) << 8 | state; }
constexpr u64 place(u32 block, u64 offset) { return u64(block) << 32 | offset / 16; }
constexpr u32 block(u64 place) { return u32(place >> 32); }
constexpr u64 offset(u64 place) { return (place & 0xffffffff) * 16; }
constexpr u64 value(u8 kind, u64 bytes) { return u64(kind) << 56 | bytes; }
constexpr u64 bytes(u64 value) { return value & (~u64(0) >> 8); }
constexpr u8 kind(u64 value) { return u8(value >> 56); }
}  // namespace object

struct alignas(64) ObjectEntry {
    Atomic<u64> word, hash;
    Atomic<u64> place;       // of the record: its block, and where in it
    Atomic<u64> value;       // the kind of the value, and its bytes
    Atomic<u64> expires_ns;  // CLOCK_MONOTONIC; 0: never. Of an entry with an owner: when its load began
    Atomic<u32> next;        // the next entry of the chain, or of the free entries, +1
    Atomic<u32> key_bytes;
    Atomic<u32> used;        // when last used, by the clock of insertions
    Atomic<u32> cost;        // how long its load took, in microseconds
    Atomic<u32> cache;       // the number of its cache: see CacheSlot
    Atomic<u16> owner;       // LOADING: the client that loads it; LIVE: the client that loads a newer value
    Atomic<u8> uses;
    u8 unused;
};
static_assert(sizeof(ObjectEntry) == 64);

// A bucket of the hash table, and one word of memory of an evicted object (policy/worth.h) whose hash leads to it: so
// the memory grows with the number of objects.
struct ObjectHead {
    Atomic<u64> word;  // version | the first entry of the chain, +1: see object_index.h
    Atomic<u64> evicted;
};

// A use of a key, for the advice: the keys of one hash in 2^shift are sampled. All clients fill a ring of the last
// ones without a lock: a record that is damaged, or overtaken, is one use too few or too many.
enum ObjectUse : u64 { USED_HIT = 1, USED_MISS, USED_PUT };
struct ObjectSample {
    Atomic<u64> hash, what;  // what: bytes of the record | slot of the cache << 8 | ObjectUse
};
constexpr u64 object_use(ObjectUse use, u32 slot, u64 bytes) { return bytes << 16 | u64(slot) << 8 | use; }
// So many objects have some hundred keys in the sample.
constexpr u32 sample_shift(u32 live) { return live >= 512 ? 23 - u32(__builtin_clz(live)) : 0; }

// What stands before the key in a record. (The words of the entry decide; this is for walks over a log page.)
struct RecordHead {
    u32 entry;  // +1
    u32 units;  // the length of the record, in units of 16 bytes
};

// Values begin at a multiple of `align`: arrays at 64, so that they are aligned for every instruction.
constexpr u64 value_at(u64 key_bytes, u64 align) { return round_up(sizeof(RecordHead) + key_bytes, align); }

// The word of a block: state | owner << 8 | class << 24.
//
//   FREE      no object; it may have memory          BUSY(c)  client c is about to fill it, or to take its memory
//   LOG       a log page                             LARGE    the block of one object
//   DOOMED    nothing in it is wanted any more, but clients have pins on it: the last one frees it
enum BlockState : u32 { BLOCK_NONE, BLOCK_FREE, BLOCK_BUSY, BLOCK_LOG, BLOCK_LARGE, BLOCK_DOOMED };
namespace block {
constexpr BlockState state(u64 w) { return BlockState(w & 0xff); }
constexpr u32 owner(u64 w) { return u32(w >> 8) & 0xffff; }
constexpr u32 size_class(u64 w) { return u32(w >> 24) & 0xff; }
constexpr u64 word(BlockState state, u32 cls, u32 owner = 0) { return u64(cls) << 24 | u64(owner) << 8 | state; }
}  // namespace block

struct ObjectBlock {
    Atomic<u64> word;
    Atomic<u64> at;      // where its memory lies, in OS pages from the begin of the data
    Atomic<u32> memory;  // how many of its OS pages may have memory: set before a plug, and after a punch
    Atomic<u32> live;    // the bytes of its live records, in units of 16
    Atomic<u32> filled;  // a log page: bytes given out
    Atomic<u32> next;    // FREE: the next free block, +1; LARGE: its entry, +1, for samples
};
static_assert(sizeof(ObjectBlock) == 32);

// What a client counts of one cache. A row belongs to a client's number, and is never reset: the next client with that
// number adds to it. So nothing is added up when a client detaches.
struct CacheUses {
    Atomic<u64> hits, misses, puts, loads, load_failures, waits, superseded, refused;
};
constexpr u32 CACHE_USES = sizeof(CacheUses) / 8;

// A cache has a number: its slot, and how many caches the slot has had before. Entries and handles have it, too, so
// that those of a cache that was removed lead nowhere.
enum CacheState : u32 { CACHE_FREE, CACHE_LIVE, CACHE_REMOVING };
constexpr u32 cache_slot(u32 number) { return number % CACHES; }

struct CacheSlot {
    Atomic<u32> state, number;
    Atomic<u32> count;  // live objects
    Atomic<u32> jitter;  // by which part of its ttl a value may expire earlier, in 2^-32
    Atomic<u64> bytes;  // of their records
    Atomic<u64> limit, reserve;  // in bytes; 0: none
    Atomic<u64> ttl_ns;          // 0: values do not expire
    Atomic<u64> opened_ns, evictions;
    Atomic<u64> before[CACHE_USES];  // what the uses of the slot were when this cache was made
    char name[CACHE_NAME];
};

struct ObjectsHeader {
    Atomic<u32> log_shift;
    Atomic<u64> entries_ready, blocks_ready, heads_ready;  // doubled(): how many have memory
    Atomic<u64> buckets;   // of the hash table, which grows by one bucket at a time (linear hashing)
    // Under the lock of the objects.
    alignas(64) Atomic<u32> entries_high, blocks_high;  // how many were ever used
    Atomic<u32> free_entries;                            // the first free one, +1
    Atomic<u32> open;                                    // the log page that is being filled, +1
    Atomic<u32> live;                                    // objects, loads included
    Atomic<u32> clock;                                   // values that were put: the time of the eviction
    // Set without the lock, by a client that could not get it. 1: DOOMED blocks may be without a pin, and `used` may be
    // more than the sum over the blocks.
    Atomic<u32> to_sweep;
    Atomic<u64> data_used;                               // OS pages of address room that blocks have
    Atomic<u64> used;                                    // OS pages that may have memory: the sum over all blocks
    Atomic<u64> log_blocks, log_live;                    // log pages, and the units of live records in them
    Atomic<u32> free_full[BLOCK_CLASSES], free_empty[BLOCK_CLASSES];  // free blocks with memory, and without
    alignas(64) Atomic<u64> sampled;                     // how many uses the ring of samples ever got
    CacheSlot caches[CACHES];
    Atomic<u64> rows_ready[OBJECT_ROWS];  // doubled(): for how many blocks the pin row of each client has memory
};

// Where the tables lie, from the begin of the file. It follows from the pool's geometry and the area's size.
struct ObjectPlaces {
    u64 at, samples_at, heads_at, entries_at, blocks_at, rows_at, row_bytes, data_at, end;
    u32 max_entries, max_blocks;
};

// The row of a client: what it counts of each cache, then its pins on so many blocks. 0 blocks: it has no memory yet.
inline u64 row_bytes(const Geometry& g, u64 blocks, bool counters_only = false) {
    u64 counters = round_up(CACHES * sizeof(CacheUses), g.os_page);
    return blocks || counters_only ? counters + round_up(blocks * 4, g.os_page) : 0;
}

// So much of the header is used: it ends with a word for each client that there can be.
constexpr u64 objects_header_bytes(const Geometry& g) {
    return sizeof(ObjectsHeader) - (OBJECT_ROWS - g.max_clients - 1) * sizeof(u64);
}

constexpr u64 OBJECT_LEAST_SHIFT = 15;  // of a block of its own: 32 KiB

inline ObjectPlaces place_objects(const Geometry& g, u64 bytes) {
    ObjectPlaces p{};
    u64 os = g.os_page, room = u64(g.max_frames) << g.page_shift;
    u64 most = room / 256 < (1u << 30) ? room / 256 : 1u << 30;
    p.max_entries = u32(most < 1024 ? 1024 : most);
    u64 blocks = 2 * (room >> 13) + 64;  // the smallest block of its own, with the smallest log pages, has 8 KiB
    p.max_blocks = u32(blocks < (1u << 30) ? blocks : 1u << 30);
#ifdef BP_EXPLORE
    p.max_entries = p.max_blocks = 4;
#endif
    u64 at = round_up(g.total_bytes, os);
    auto take = [&](u64 size) {
        u64 here = at;
        at = round_up(at + size, os);
        return here;
    };
    p.at = take(objects_header_bytes(g));
    p.samples_at = take(OBJECT_SAMPLES * sizeof(ObjectSample));
    p.heads_at = take(u64(p.max_entries) * sizeof(ObjectHead));
    p.entries_at = take(u64(p.max_entries) * sizeof(ObjectEntry));
    p.blocks_at = take(u64(p.max_blocks) * sizeof(ObjectBlock));
    p.row_bytes = row_bytes(g, p.max_blocks);
    p.rows_at = take(g.max_clients * p.row_bytes);
    p.data_at = at;
    p.end = p.at + bytes;
    return p;
}

// Address room for every class to have the whole budget at once; less where a process could not map it.
inline u64 object_room(const Geometry& g, u32 shrink) {
    u64 room = u64(g.max_frames) << g.page_shift, classes = 1;
    while ((u64(1) << (OBJECT_LEAST_SHIFT + classes)) < room) classes++;
    if (shrink >= classes) classes = 1;
    else classes -= shrink;
    ObjectPlaces p = place_objects(g, 0);
    return round_up(p.data_at - p.at + (classes + 1) * room, g.os_page);
}

}  // namespace bp
