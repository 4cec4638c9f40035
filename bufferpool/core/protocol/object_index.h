// The hash table of the objects, and their lock.
//
// The hash table is an array of heads, one for each bucket; each head begins a chain of entries. It grows by one bucket
// at a time (linear hashing: Litwin, VLDB 1980). A head has a version, which changes with its chain, and is odd while
// the chain is in pieces. A reader that finds nothing reads the head and the number of buckets again: if they are the
// same, the key has no object. Otherwise it searches again, a few times without the lock, and then under the lock.
#pragma once

#include "protocol/object_blocks.h"

namespace bp {

struct ObjectKey {
    const u8* at;
    u32 bytes;
    u32 cache;  // the number of its cache
    u64 hash;   // of the key's bytes and the number of the cache
};

inline u64 mix(u64 a, u64 b) {
    auto product = static_cast<unsigned __int128>(a) * b;
    return u64(product) ^ u64(product >> 64);
}

// A hash of bytes by multiplications of words, after wyhash (Wang Yi). It must never change, because other processes
// compute the same hashes.
inline u64 hash_bytes(const u8* at, size_t n, u64 seed) {
    constexpr u64 P = 0xa0761d6478bd642f, Q = 0xe7037ed1a0b428db;
    u64 h = mix(seed ^ P, n ^ Q);
    auto word = [&](size_t i) {
        u64 w = 0;
        memcpy(&w, at + i, n - i < 8 ? n - i : 8);
        return w;
    };
    for (size_t i = 0; i < n; i += 16) h = mix(word(i) ^ h ^ P, (i + 8 < n ? word(i + 8) : 0) ^ Q);
    return mix(h ^ Q, P);
}

inline u64 bucket_of(u64 hash, u64 buckets) {
    u64 mask = buckets <= 1 ? 0 : (u64(2) << (63 - __builtin_clzll(buckets - 1))) - 1;
    u64 b = hash & mask;
    return b < buckets ? b : b & (mask >> 1);
}

namespace head {
constexpr u32 first(u64 w) { return u32(w); }
constexpr bool in_pieces(u64 w) { return w >> 32 & 1; }
constexpr u64 change(u64 w, u32 first, u32 by) { return ((w >> 32) + by) << 32 | first; }
}  // namespace head

// An object that was found. Its bytes do not change while its block is pinned.
struct FoundObject {
    u32 entry = NONE, block = NONE;
    u64 word = 0, value = 0, expires_ns = 0;
    u64 value_offset = 0;  // of the value's bytes, from the start of the data
    bool shared = false;   // its block has other objects, too, whose memory a pin would keep
};

// Whether the record at `place` has this key, and is as long as its entry says. The caller holds the lock or a pin, so
// the record has memory.
inline bool has_key(Segment& s, u64 place, const ObjectKey& key, u32 key_bytes, u64 bytes) {
    if (key_bytes != key.bytes) return false;
    const u8* record = s.objects.read_base + block_offset(s, object::block(place)) + object::offset(place);
    RecordHead head;
    memcpy(&head, record, sizeof head);
    return head.units == u32(bytes / 16) && memcmp(record + sizeof(RecordHead), key.at, key.bytes) == 0;
}
inline bool is_place(Segment& s, u64 place, u64 bytes) {
    u32 b = object::block(place);
    if (!has_block(s, b) || !is_whole_block(s, b)) return false;
    u64 most = u64(memory_pages(s, b)) * s.g.os_page;
    return object::offset(place) < most && bytes <= most - object::offset(place);
}

// ---- searching, without the lock -------------------------------------------------------

enum class Look { FOUND, NOTHING, UNSURE };

// Reads an entry that may have the key. FOUND: it has, and we pin its block. UNSURE: the entry is changing, or our row
// of pins is too short. (The row is not extended while we hold the lock (`locked`), because that may wait for the
// growth lock.)
inline Look look_at(Segment& s, u32 e, u64 w, const ObjectKey& key, FoundObject& found, bool locked = false) {
    Objects& o = s.objects;
    ObjectEntry& entry = o.entries[e];
    u64 place = entry.place.load_acquire(), value = entry.value.load_relaxed(), ns = entry.expires_ns.load_relaxed();
    u32 key_bytes = entry.key_bytes.load_relaxed(), b = object::block(place);
    if (entry.cache.load_relaxed() != key.cache) return Look::NOTHING;
    if (b >= o.row_ready && (locked || !has_block(s, b) || ready_row(s) != 0 || b >= o.row_ready)) return Look::UNSURE;
    o.my_pins[b].add_seq_cst(1);
    BP_POINT("object.pinned");
    bool same = entry.word.load_seq_cst() == w && entry.place.load_seq_cst() == place;
    same = same && is_place(s, place, record_bytes(key_bytes, value));
    if (!same || !has_key(s, place, key, key_bytes, record_bytes(key_bytes, value))) {
        unpin_and_settle(s, b);
        return same ? Look::NOTHING : Look::UNSURE;
    }
    found = {e, b, w, value, ns, 0, record_bytes(key_bytes, value) <= most_shared(s)};
    found.value_offset =
        block_offset(s, b) + object::offset(place) + value_at(key_bytes, alignment(object::kind(value)));
    return Look::FOUND;
}

constexpr u32 LOOKS = 4, CHAIN_STEPS = 4096;

inline Look find_object(Segment& s, const ObjectKey& key, FoundObject& found) {
    Objects& o = s.objects;
    for (u32 tries = 0; tries < LOOKS; tries++) {
        u64 buckets = o.header->buckets.load_acquire(), bucket = bucket_of(key.hash, buckets);
        if (bucket >= o.heads_ready) {
            look_at_objects(s);
            if (bucket >= o.heads_ready) return Look::UNSURE;
        }
        u64 first = o.heads[bucket].word.load_acquire();
        bool sure = !head::in_pieces(first);
        u32 n = head::first(first);
        for (u32 steps = 0; sure && n; steps++) {
            if (!has_entry(s, n - 1) || steps == CHAIN_STEPS) return Look::UNSURE;
            ObjectEntry& entry = o.entries[n - 1];
            u64 w = entry.word.load_acquire();
            if (entry.hash.load_relaxed() == key.hash) {
                EntryKind state = object::state(w);
                Look look = state == OBJECT_LIVE || state == OBJECT_LOADING ? look_at(s, n - 1, w, key, found)
                                                                            : Look::UNSURE;
                if (look == Look::FOUND) return look;
                sure = look == Look::NOTHING;
            }
            n = entry.next.load_acquire();
        }
        if (sure && o.heads[bucket].word.load_seq_cst() == first && o.header->buckets.load_seq_cst() == buckets)
            return Look::NOTHING;
        prim::relax();
    }
    return Look::UNSURE;
}

// ---- under the lock ------------------------------------------------------------------

inline u64 bucket_locked(Segment& s, u64 hash) {
    u64 n = s.objects.header->buckets.load_relaxed();
    if (n > s.objects.heads_ready) look_at_objects(s);         // another process has extended the table
    if (n > s.objects.heads_ready) n = s.objects.heads_ready;  // damaged
    return bucket_of(hash, n);
}

// The entry of a key, which does not change while we hold the lock. NONE: the key has no entry.
inline u32 find_locked(Segment& s, const ObjectKey& key) {
    Objects& o = s.objects;
    u32 n = head::first(o.heads[bucket_locked(s, key.hash)].word.load_relaxed());
    for (u32 steps = 0; n && has_entry(s, n - 1) && steps < o.entries_ready; steps++) {
        ObjectEntry& entry = o.entries[n - 1];
        u64 place = entry.place.load_relaxed();
        u64 bytes = record_bytes(entry.key_bytes.load_relaxed(), entry.value.load_relaxed());
        if (entry.hash.load_relaxed() == key.hash && entry.cache.load_relaxed() == key.cache &&
            is_place(s, place, bytes) && has_key(s, place, key, entry.key_bytes.load_relaxed(), bytes))
            return n - 1;
        n = entry.next.load_relaxed();
    }
    return NONE;
}

inline void link_entry(Segment& s, u32 e) {
    ObjectEntry& entry = s.objects.entries[e];
    Atomic<u64>& first = s.objects.heads[bucket_locked(s, entry.hash.load_relaxed())].word;
    u64 w = first.load_relaxed();
    entry.next.store_release(head::first(w));
    first.store_seq_cst(head::change(w, e + 1, 2));
}

inline void unlink_entry(Segment& s, u32 e) {
    Objects& o = s.objects;
    ObjectEntry& entry = o.entries[e];
    Atomic<u64>& first = o.heads[bucket_locked(s, entry.hash.load_relaxed())].word;
    u64 w = first.load_relaxed();
    u32 next = entry.next.load_relaxed(), n = head::first(w);
    if (n == e + 1) return first.store_seq_cst(head::change(w, next, 2));
    for (u32 steps = 0; n && has_entry(s, n - 1) && steps < o.entries_ready; steps++) {
        Atomic<u32>& at = o.entries[n - 1].next;
        n = at.load_relaxed();
        if (n != e + 1) continue;
        at.store_release(next);
        break;
    }
    first.store_seq_cst(head::change(w, head::first(w), 2));
}

// Adds one bucket, and divides the entries of one chain between the old bucket and the new one.
inline void split_bucket(Segment& s) {
    Objects& o = s.objects;
    u64 n = o.header->buckets.load_relaxed();
    if (n >= o.heads_ready || n == 0) return;
    u64 old = bucket_of(n, n);
    u64 w = o.heads[old].word.load_relaxed();
    u32 e = head::first(w), firsts[2] = {0, 0};
    o.heads[old].word.store_seq_cst(head::change(w, e, 1));
    BP_POINT("objects.splitting");
    for (u32 steps = 0; e && has_entry(s, e - 1) && steps < o.entries_ready; steps++) {
        ObjectEntry& entry = o.entries[e - 1];
        u32 next = entry.next.load_relaxed();
        u32& first = firsts[bucket_of(entry.hash.load_relaxed(), n + 1) == n];
        entry.next.store_release(first);
        first = e;
        e = next;
    }
    o.heads[n].word.store_release(head::change(o.heads[n].word.load_relaxed(), firsts[1], 2));
    o.header->buckets.store_seq_cst(n + 1);
    o.heads[old].word.store_seq_cst(head::change(w, firsts[0], 2));
}

// Takes an entry that is not in use. NONE: no such entry has memory.
inline u32 take_entry(Segment& s) {
    ObjectsHeader& h = *s.objects.header;
    u32 n = h.free_entries.load_relaxed();
    if (n && has_entry(s, n - 1) && object::state(s.objects.entries[n - 1].word.load_relaxed()) == OBJECT_FREE) {
        h.free_entries.store_relaxed(s.objects.entries[n - 1].next.load_relaxed());
        return n - 1;
    }
    n = h.entries_high.load_relaxed();
    if (!has_entry(s, n)) return NONE;
    h.entries_high.store_relaxed(n + 1);
    return n;
}

inline CacheSlot& cache_of(Segment& s, u32 number) { return s.objects.header->caches[cache_slot(number)]; }
inline bool is_cache(Segment& s, u32 number) {
    CacheSlot& slot = cache_of(s, number);
    return slot.number.load_acquire() == number && slot.state.load_acquire() == CACHE_LIVE;
}

inline void count_object(Segment& s, ObjectEntry& entry, bool more) {
    CacheSlot& cache = cache_of(s, entry.cache.load_relaxed());
    u64 bytes = record_bytes(entry.key_bytes.load_relaxed(), entry.value.load_relaxed());
    cache.bytes.store_relaxed(cache.bytes.load_relaxed() + (more ? bytes : 0 - bytes));
    cache.count.store_relaxed(cache.count.load_relaxed() + (more ? 1 : u32(-1)));
}

// Removes an object. Its bytes remain while a client pins their block. Returns true if clients wait for the entry: then
// the caller wakes them after it has released the lock.
inline bool remove_locked(Segment& s, u32 e) {
    ObjectsHeader& h = *s.objects.header;
    ObjectEntry& entry = s.objects.entries[e];
    u64 w = entry.word.load_relaxed();
    w = entry.word.swap_seq_cst(object::next(w, OBJECT_CHANGING));
    BP_POINT("object.closed");
    unlink_entry(s, e);
    count_object(s, entry, false);
    u64 place = entry.place.load_relaxed();
    drop_record(s, object::block(place), record_bytes(entry.key_bytes.load_relaxed(), entry.value.load_relaxed()));
    BP_POINT("object.dropped");
    entry.next.store_release(h.free_entries.load_relaxed());
    entry.word.store_seq_cst(object::next(entry.word.load_relaxed(), OBJECT_FREE));
    h.free_entries.store_relaxed(e + 1);
    h.live.store_relaxed(h.live.load_relaxed() - 1);
    return w & object::WAITED;
}
// Ends a load without a value. If the entry has an expired value, which the load was to replace, that value is kept,
// and the version of the entry is raised, because clients wait for a new version. Returns true if clients wait.
inline bool end_load_locked(Segment& s, u32 e) {
    ObjectEntry& entry = s.objects.entries[e];
    u64 w = entry.word.load_relaxed();
    if (object::state(w) == OBJECT_LOADING) return remove_locked(s, e);
    entry.owner.store_relaxed(0);
    return entry.word.swap_seq_cst(object::next(w, OBJECT_LIVE)) & object::WAITED;
}
inline void wake_waiters(Segment& s, u32 e) { prim::futex_wake_all(&s.objects.entries[e].word); }

// ---- the lock ------------------------------------------------------------------------

inline void rebuild_blocks(Segment& s) {
    Objects& o = s.objects;
    ObjectsHeader& h = *o.header;
    for (u32 cls = 0; cls < BLOCK_CLASSES; cls++) {
        h.free_full[cls].store_relaxed(0);
        h.free_empty[cls].store_relaxed(0);
    }
    u64 used = 0, end = 0;
    u32 b = 0, high = 0;
    h.log_blocks.store_relaxed(0);
    h.log_live.store_relaxed(0);
    h.open.store_relaxed(0);
    for (; b < o.blocks_ready; b++) {
        ObjectBlock& k = o.blocks[b];
        u64 w = k.word.load_relaxed();
        if (block::state(w) == BLOCK_NONE || !is_whole_block(s, b)) continue;
        high = b + 1;
        u64 last = k.at.load_relaxed() + block_bytes(w) / s.g.os_page;
        if (last > end) end = last;
        used += memory_pages(s, b);
        k.live.store_relaxed(0);
        if (block::state(w) == BLOCK_FREE) push_block(s, b);
        if (block::state(w) == BLOCK_LOG) h.log_blocks.store_relaxed(h.log_blocks.load_relaxed() + 1);
    }
    h.used.store_relaxed(used);
    h.data_used.store_relaxed(end);
    h.blocks_high.store_relaxed(high);
}

// True if the fields of an entry are valid and name a block that can hold its record.
inline bool is_whole_entry(Segment& s, ObjectEntry& entry) {
    u64 w = entry.word.load_relaxed(), place = entry.place.load_relaxed();
    if (object::state(w) != OBJECT_LIVE && object::state(w) != OBJECT_LOADING) return false;
    if (!is_place(s, place, record_bytes(entry.key_bytes.load_relaxed(), entry.value.load_relaxed()))) return false;
    BlockState state = block::state(s.objects.blocks[object::block(place)].word.load_relaxed());
    return (state == BLOCK_LOG || state == BLOCK_LARGE || state == BLOCK_DOOMED) &&
           cache_of(s, entry.cache.load_relaxed()).number.load_relaxed() == entry.cache.load_relaxed();
}

// After the owner of the lock has died: rebuilds all lists and counts from the entries and the blocks.
inline void rebuild_objects(Segment& s) {
    Objects& o = s.objects;
    ObjectsHeader& h = *o.header;
    look_at_objects(s);
    u64 buckets = h.buckets.load_relaxed();
    if (buckets > o.heads_ready || buckets < FIRST_BUCKETS) h.buckets.store_seq_cst(o.heads_ready);
    for (u64 i = 0; i < o.heads_ready; i++) {  // odd, until all entries are linked
        u64 w = o.heads[i].word.load_relaxed();
        o.heads[i].word.store_seq_cst(head::change(w, 0, head::in_pieces(w) ? 2 : 1));
    }
    rebuild_blocks(s);
    for (CacheSlot& cache : h.caches) {
        cache.count.store_relaxed(0);
        cache.bytes.store_relaxed(0);
    }
    h.free_entries.store_relaxed(0);
    h.live.store_relaxed(0);
    u32 high = 0;  // clients read entries_high without the lock, so it is never too small
    for (u32 e = 0; e < o.entries_ready; e++) {
        ObjectEntry& entry = o.entries[e];
        u64 w = entry.word.load_relaxed();
        if (w == 0) continue;  // never used
        high = e + 1;
        if (!is_whole_entry(s, entry)) {
            if (object::state(w) != OBJECT_FREE) entry.word.store_seq_cst(object::next(w, OBJECT_FREE));
            if (w & object::WAITED) wake_waiters(s, e);
            continue;
        }
        link_entry(s, e);
        count_object(s, entry, true);
        add_record(s, object::block(entry.place.load_relaxed()),
                   record_bytes(entry.key_bytes.load_relaxed(), entry.value.load_relaxed()));
        h.live.store_relaxed(h.live.load_relaxed() + 1);
    }
    h.entries_high.store_relaxed(high);
    for (u32 e = high; e-- > 0;) {  // also entries in between that were never used
        ObjectEntry& entry = o.entries[e];
        if (object::state(entry.word.load_relaxed()) != OBJECT_FREE) continue;
        entry.next.store_release(h.free_entries.load_relaxed());
        h.free_entries.store_relaxed(e + 1);
    }
    for (u32 b = 0; b < h.blocks_high.load_relaxed(); b++) {
        BlockState state = block::state(o.blocks[b].word.load_relaxed());
        bool dead = state == BLOCK_LOG || state == BLOCK_LARGE || state == BLOCK_DOOMED;
        if (dead && !o.blocks[b].live.load_relaxed()) doom(s, b);
    }
    for (u64 i = 0; i < o.heads_ready; i++) {
        u64 w = o.heads[i].word.load_relaxed();
        o.heads[i].word.store_seq_cst(head::change(w, head::first(w), 1));
    }
}

inline void objects_are_ours(Segment& s, Acquired how) {
    if (how == Acquired::REPAIR) {
        rebuild_objects(s);
        repaired(s, s.header->objects);
    }
    if (s.objects.header->to_sweep.load_relaxed()) sweep_locked(s);
    BP_POINT("objects.locked");
}

// Takes the lock. Returns false if a signal's handler has raised, the call's time is over, or another thread has the
// lock and this one may not wait (Quick).
inline bool lock_objects(Segment& s, bool interruptible) {
    LockWord& lock = s.header->objects;
    Acquired a = Acquired::YES;
    if (!take_if_free(s, lock)) {
        if (quick_only && interruptible) return false;
        a = acquire(s, lock, interruptible, interruptible ? ~0u : slices_left());
    }
    if (a == Acquired::INTERRUPTED) return false;
    objects_are_ours(s, a);
    return true;
}

// Takes the lock for work that can be left to its next owner (leave_to_sweep): it waits for BRIEF_SLICES at most, and
// not at all if other work was left.
inline bool lock_objects_briefly(Segment& s) {
    Patience patience(BRIEF_SLICES);
    if (!s.objects.header->to_sweep.load_relaxed()) return lock_objects(s, false);
    Acquired how;
    if (!try_acquire(s, s.header->objects, how)) return false;
    objects_are_ours(s, how);
    return true;
}

}  // namespace bp
