// The area of the objects: behind the pages, in the same file. It exists when the pool has its first cache.
//
//  +--------+-------+---------+--------+----------------+-- - -----------------------------------------+
//  | header,| heads | entries | blocks | rows, one each | data: address room for the blocks; only the |
//  | caches,| 16 B[]| 64 B[]  | 32 B[] | client: uses,  | OS pages that an object needs have memory   |
//  | samples|       |         |        | pins u32[]     |                                             |
//  +--------+-------+---------+--------+----------------+-- - -----------------------------------------+
//
// An object (a key and its value) is a *record* in a block. A record that is larger than an eighth of a log page has a
// block of its own, whose size is the next power of two; smaller records share *log pages*, which are filled from the
// front. The entries and the words of the blocks are authoritative: the chains of the hash table, the lists of free
// blocks and entries, and every count can be rebuilt from them (rebuild_objects in protocol/object_index.h).
//
// Addresses cost nothing, and a block keeps its place for ever, so blocks are never compacted. Free memory lies in free
// blocks; one MADV_REMOVE gives the memory of a block back, so that a block of another class can have it.
#pragma once

#include "layout/layout.h"

namespace bp {

#ifdef BP_EXPLORE
constexpr u32 CACHES = 1, CACHE_NAME = 8, BLOCK_CLASSES = 20, FIRST_BUCKETS = 1, OBJECT_ROWS = 8;
constexpr u32 OBJECT_SAMPLES = 1;
#else
constexpr u32 CACHES = 64, CACHE_NAME = 200, BLOCK_CLASSES = 48, FIRST_BUCKETS = 512;
constexpr u32 OBJECT_ROWS = CLIENTS_LIMIT + 1;
constexpr u32 OBJECT_SAMPLES = 8192;  // the number of uses of keys that the ring for the advice holds
#endif

// The word of an entry:   63            8   7       6        3     0
//                        +---------------+--------+--------+-------+
//                        | version       | waited | left   | state |
//                        +---------------+--------+--------+-------+
// Left: the client that loads it has ended the load, and could not get the lock of the objects. The next client that
// wants the key, or room, removes the entry of the load.
// Every change of an entry raises its version. What a reader has read of an entry is valid if the word is the same
// before and after, and the reader has counted its pin on the block in between.
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
    Atomic<u64> place;       // of the record: its block, and its offset there
    Atomic<u64> value;       // the kind of the value, and its bytes
    Atomic<u64> expires_ns;  // CLOCK_MONOTONIC; 0: never. While the entry has an owner: when its load began
    Atomic<u32> next;        // the next entry of the chain, or of the free entries, +1
    Atomic<u32> key_bytes;
    Atomic<u32> used;        // when last used: the value of ObjectsHeader::clock
    Atomic<u32> cost;        // how long its load took, in microseconds
    Atomic<u32> cache;       // the number of its cache: see CacheSlot
    Atomic<u16> owner;       // LOADING: the client that loads it; LIVE: the client that loads a newer value
    Atomic<u8> uses;
    u8 unused;
};
static_assert(sizeof(ObjectEntry) == 64);

// A bucket of the hash table, and one word that remembers an evicted object whose hash leads to this bucket
// (policy/worth.h). So there are as many such words as buckets, and their number grows with that of the objects.
struct ObjectHead {
    Atomic<u64> word;  // version | the first entry of the chain, +1: see object_index.h
    Atomic<u64> evicted;
};

// A use of a key, for the advice. One key in 2^shift is sampled, by its hash. All clients write to one ring without a
// lock, so a sample may be mixed or lost; the error is one use too few or too many.
enum ObjectUse : u64 { USED_HIT = 1, USED_MISS, USED_PUT };
struct ObjectSample {
    Atomic<u64> hash, what;  // what: bytes of the record | slot of the cache << 8 | ObjectUse
};
constexpr u64 object_use(ObjectUse use, u32 slot, u64 bytes) { return bytes << 16 | u64(slot) << 8 | use; }
// The shift for `live` objects: some hundred of their keys are sampled.
constexpr u32 sample_shift(u32 live) { return live >= 512 ? 23 - u32(__builtin_clz(live)) : 0; }

// The head of a record, before its key. A walk over a log page reads it; everything else uses the entry.
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
//   DOOMED    all of its records are dead, but clients may have pins on it: the client that releases the last one frees
//             it
enum BlockState : u32 { BLOCK_NONE, BLOCK_FREE, BLOCK_BUSY, BLOCK_LOG, BLOCK_LARGE, BLOCK_DOOMED };
namespace block {
constexpr BlockState state(u64 w) { return BlockState(w & 0xff); }
constexpr u32 owner(u64 w) { return u32(w >> 8) & 0xffff; }
constexpr u32 size_class(u64 w) { return u32(w >> 24) & 0xff; }
constexpr u64 word(BlockState state, u32 cls, u32 owner = 0) { return u64(cls) << 24 | u64(owner) << 8 | state; }
}  // namespace block

struct ObjectBlock {
    Atomic<u64> word;
    Atomic<u64> at;      // its place, in OS pages from the beginning of the data
    Atomic<u32> memory;  // how many of its OS pages may have memory: set before a plug, and after a punch
    Atomic<u32> live;    // the bytes of its live records, in units of 16
    Atomic<u32> filled;  // of a log page: the bytes that records have taken
    Atomic<u32> next;    // FREE: the next free block, +1; LARGE: its entry, +1, for samples
};
static_assert(sizeof(ObjectBlock) == 32);

// A client's counters of one cache. The row belongs to the client's number, and is never reset: the next client with
// that number adds to it. So no totals are needed when a client detaches.
struct CacheUses {
    Atomic<u64> hits, misses, puts, loads, load_failures, waits, superseded, refused;
};
constexpr u32 CACHE_USES = sizeof(CacheUses) / 8;

// A cache has a number, from its slot and from how many caches the slot has had before. Entries and handles contain the
// number, so those of a removed cache never refer to the next cache in its slot.
enum CacheState : u32 { CACHE_FREE, CACHE_LIVE, CACHE_REMOVING };
constexpr u32 cache_slot(u32 number) { return number % CACHES; }

struct CacheSlot {
    Atomic<u32> state, number;
    Atomic<u32> count;  // live objects
    Atomic<u32> jitter;  // a value may expire earlier by this part of its ttl, in 2^-32
    Atomic<u64> bytes;   // of the live records
    Atomic<u64> limit, reserve;  // in bytes; 0: none
    Atomic<u64> ttl_ns;          // 0: values do not expire
    Atomic<u64> opened_ns, evictions;
    Atomic<u64> before[CACHE_USES];  // what the uses of the slot were when this cache was made
    char name[CACHE_NAME];
};

struct ObjectsHeader {
    Atomic<u32> log_shift;
    Atomic<u64> entries_ready, blocks_ready, heads_ready;  // see doubled(): how many have memory
    Atomic<u64> buckets;   // of the hash table, which grows by one bucket at a time (linear hashing)
    // Under the lock of the objects.
    alignas(64) Atomic<u32> entries_high, blocks_high;  // how many were ever used
    Atomic<u32> free_entries;                            // the first free one, +1
    Atomic<u32> open;                                    // the log page that is being filled, +1
    Atomic<u32> live;                                    // objects, loads included
    Atomic<u32> clock;                                   // how many values were put: the time of the eviction policy
    // A client that could not get the lock sets it, without the lock. 1: DOOMED blocks may have no pin any more, and
    // `used` may exceed the sum over the blocks.
    Atomic<u32> to_sweep;
    Atomic<u64> data_used;                               // OS pages of address room that blocks have
    Atomic<u64> used;                                    // OS pages that may have memory: the sum over all blocks
    Atomic<u64> log_blocks, log_live;                    // log pages, and the units of live records in them
    Atomic<u32> free_full[BLOCK_CLASSES], free_empty[BLOCK_CLASSES];  // free blocks with memory, and without
    alignas(64) Atomic<u64> sampled;                     // how many uses the ring of samples ever got
    CacheSlot caches[CACHES];
    Atomic<u64> rows_ready[OBJECT_ROWS];  // see doubled(): for how many blocks each client's pin row has memory
};

// The offsets of the tables in the file. They follow from the pool's geometry and the size of the area.
struct ObjectPlaces {
    u64 at, samples_at, heads_at, entries_at, blocks_at, rows_at, row_bytes, data_at, end;
    u32 max_entries, max_blocks;
};

// The bytes of a client's row: its counters of each cache, then its pins on `blocks` blocks. 0 blocks: it has no memory
// yet.
inline u64 row_bytes(const Geometry& g, u64 blocks, bool counters_only = false) {
    u64 counters = round_up(CACHES * sizeof(CacheUses), g.os_page);
    return blocks || counters_only ? counters + round_up(blocks * 4, g.os_page) : 0;
}

// The bytes of the header that are used: its last field has a word for each client that this pool may have.
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

// The bytes of addresses for the area: enough for the blocks of every class to use the largest budget, all at once; or
// of `shrink` classes fewer, where a process could not map so much.
inline u64 object_room(const Geometry& g, u32 shrink) {
    u64 room = u64(g.max_frames) << g.page_shift, classes = 1;
    while ((u64(1) << (OBJECT_LEAST_SHIFT + classes)) < room) classes++;
    if (shrink >= classes) classes = 1;
    else classes -= shrink;
    ObjectPlaces p = place_objects(g, 0);
    return round_up(p.data_at - p.at + (classes + 1) * room, g.os_page);
}

}  // namespace bp
