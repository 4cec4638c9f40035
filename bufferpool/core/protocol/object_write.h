// Putting, deleting, and loading objects.
//
//   put       room for the record (a part of a log page, pinned; or a block BUSY(me)) · copy · publish
//   publish   under the lock: make the entry CHANGING · write its fields · count the record as live in its block · make
//             the entry LIVE · link a new entry · count the old record as dead · wake the clients that wait
//   load      publish an entry LOADING(me), with the key and no value · run the loader · publish the value, if the
//             entry still names this load. If another client has put or deleted the key meanwhile, the caller gets the
//             value, but the value is not kept
#pragma once

#include "protocol/object_evict.h"

namespace bp {

struct ObjectPiece {
    const void* from;
    u64 bytes, at;  // of the value
};

struct PutObject {
    ObjectKey key{};
    u8 kind = 0;
    u64 bytes = 0;
    u64 expires_ns = 0;
    u32 cost = 0;
    EntryKind state = OBJECT_LIVE;
    // The load that this value ends: its entry (NONE: there is no load), and the word that the entry has during it.
    u32 entry = NONE;
    u64 word = 0;
    u64 replaces = 0;  // the word of the value that this one must replace, and whose expiry it keeps; 0: any value
    Placed to{};

    u64 value() const { return object::value(kind, bytes); }
    u64 record() const { return record_bytes(key.bytes, value()); }
};

// The largest record that may be kept: a quarter of what the objects may have.
inline u64 largest_record(Segment& s, const CacheSlot& cache) {
    u64 most = u64(most_lent(s)) * s.g.page_size, limit = cache.limit.load_relaxed();
    return (limit && limit < most ? limit : most) / 4;
}

// Evicts objects of the same cache until the record fits into the cache's limit. Returns false if that is not possible.
inline bool keep_limit(Segment& s, const PutObject& put) {
    CacheSlot& cache = cache_of(s, put.key.cache);
    u64 limit = cache.limit.load_relaxed();
    while (limit && cache.bytes.load_relaxed() + put.record() > limit)
        if (!evict_object(s, put.key.cache) || is_given_up(s)) return false;
    return true;
}

// Takes room for the record. EXHAUSTED, NO_SPACE, TOO_LONG: the record cannot be kept.
inline Status reserve_object(Segment& s, PutObject& put) {
    u64 bytes = put.record();
    CacheSlot& cache = cache_of(s, put.key.cache);
    if (bytes > largest_record(s, cache)) return Status::TOO_LONG;
    auto failed = [&](Status r) { return quick_only ? Status::WAIT : is_given_up(s) ? Status::INTERRUPTED : r; };
    if (!keep_limit(s, put)) return failed(Status::EXHAUSTED);
    bool large = bytes > most_shared(s);
    for (u32 tries = 0, refused = 0; tries < 10'000; tries++) {
        BlockRequest want{class_of(s, bytes), os_pages(s, bytes), large};
        u64 log_pages = log_bytes(s) / s.g.os_page;
        if (s.objects.header->log_blocks.load_relaxed() > 8) want.spare = log_pages;
        Status r;
        if (large) {
            put.to = {NONE, 0, true, false};
            r = take_block(s, want, put.to.block);
            put.to.write = want.write;
        } else {
            r = reserve_in_log(s, bytes, want, put.to);
        }
        if (r == Status::OK) return r;
        put.to.block = NONE;
        if (quick_only) return Status::WAIT;
        if (r == Status::NO_SPACE && is_out_of_memory(want.error) && refused++ < KERNEL_TRIES) {
            if (!make_kernel_room(s, std::max(want.pages, log_pages))) return failed(r);
        } else if (r != Status::EXHAUSTED) {
            return r;
        } else if (!make_object_room(s, want)) {
            return failed(r);
        }
        if (is_given_up(s)) return Status::INTERRUPTED;
    }
    return Status::EXHAUSTED;
}

// Gives back the room of a record that is not published.
inline void abandon_object(Segment& s, PutObject& put) {
    if (put.to.block == NONE) return;
    if (put.to.large) strip_block(s, put.to.block);
    else unpin_and_settle(s, put.to.block);
    put.to.block = NONE;
}

// Copies the key and the value to their room. Returns -errno if the kernel gave no memory. A block without memory is
// filled by pwrite(2), so that the kernel need not fill it with zeros first. Other blocks are filled by a copy, because
// a write waits for all other writes to the file.
inline int fill_object(Segment& s, PutObject& put, const ObjectPiece* pieces, u32 n) {
    u64 at = block_offset(s, put.to.block) + put.to.offset;
    u64 value = value_at(put.key.bytes, alignment(put.kind));
    if (!put.to.write) {
        u8* to = s.objects.data + at;
        if (put.to.large) *record_at(s, put.to.block, 0) = {0, u32(put.record() / 16)};
        memcpy(to + sizeof(RecordHead), put.key.at, put.key.bytes);
        for (u32 i = 0; i < n; i++) prim::copy_page(to + value + pieces[i].at, pieces[i].from, pieces[i].bytes);
        return 0;
    }
    if (!s.has_descriptor()) return -EBADF;
    u64 file = s.objects.at.data_at + at;
    RecordHead head{0, u32(put.record() / 16)};
    int r = prim::write_at(s.fd, &head, sizeof head, file);
    if (r == 0) r = prim::write_at(s.fd, put.key.at, put.key.bytes, file + sizeof head);
    for (u32 i = 0; r == 0 && i < n; i++)
        r = prim::write_at(s.fd, pieces[i].from, pieces[i].bytes, file + value + pieces[i].at);
    return r;
}

// True if this client began the load. A forked child knows its parent's loads, but is another client.
inline bool is_same_load(Segment& s, const ObjectEntry& entry, const PutObject& put) {
    return (entry.word.load_relaxed() & ~object::WAITED) == put.word && entry.owner.load_relaxed() == s.me;
}

// Writes the fields of an entry whose state is CHANGING.
inline void set_entry(Segment& s, u32 e, const PutObject& put) {
    ObjectEntry& entry = s.objects.entries[e];
    entry.hash.store_relaxed(put.key.hash);
    entry.cache.store_relaxed(put.key.cache);
    entry.place.store_relaxed(object::place(put.to.block, put.to.offset));
    entry.value.store_relaxed(put.value());
    entry.key_bytes.store_relaxed(put.key.bytes);
    entry.expires_ns.store_relaxed(put.expires_ns);
    entry.used.store_relaxed(s.objects.header->clock.load_relaxed());
    entry.cost.store_relaxed(put.cost);
    entry.owner.store_relaxed(put.state == OBJECT_LOADING ? u16(s.me) : 0);
}

// The count of uses with which a new object begins: the remembered count of an evicted object with the same key.
inline u8 first_uses(Segment& s, u64 hash) {
    ObjectsHeader& h = *s.objects.header;
    u64 word = memory_of(s, hash).load_relaxed();
    u32 frequency = worth::first_frequency(word, hash, h.clock.load_relaxed(), h.live.load_relaxed());
    return u8(std::min<u32>(frequency - 1, OBJECT_USES));
}

// GIVEN_UP: a lock could not be taken, and nothing has changed.
enum class Published { YES, SUPERSEDED, FULL, REMOVED, OTHER_VALUE, OTHER_LOAD, GIVEN_UP };

// Values of these kinds are not returned to callers. UNKEPT: the value that was loaded could not be kept.
constexpr u8 KIND_LOADING = 7, KIND_FAILED = 8, KIND_UNKEPT = 9;
constexpr bool is_value(u8 kind) { return kind < KIND_LOADING || kind > KIND_UNKEPT; }

// True if an entry prevents a new load: it has a value (an expired value is replaced in its entry, see claim_renewal),
// or another client loads it.
inline Published what_is_there(const ObjectEntry& entry) {
    if (object::state(entry.word.load_relaxed()) == OBJECT_LOADING) return Published::OTHER_LOAD;
    return is_value(object::kind(entry.value.load_relaxed())) ? Published::OTHER_VALUE : Published::YES;
}

// True if an entry has a value that has not expired. The caller holds the lock.
inline bool has_value(const ObjectEntry& entry) {
    return object::state(entry.word.load_relaxed()) == OBJECT_LIVE && !is_expired(entry.expires_ns.load_relaxed()) &&
           is_value(object::kind(entry.value.load_relaxed()));
}

// Takes over the expiry and the cost of the value that is replaced. False: the key has another value now, or none.
inline bool continue_value(const ObjectEntry& entry, PutObject& put) {
    if (!has_value(entry) || (entry.word.load_relaxed() & ~object::WAITED) != put.replaces) return false;
    put.expires_ns = entry.expires_ns.load_relaxed();
    put.cost = entry.cost.load_relaxed();
    return true;
}

// Publishes a record. Under the lock. `wake`: the entry whose waiters the caller wakes after it has released the lock.
inline Published publish_locked(Segment& s, PutObject& put, u32& wake) {
    ObjectsHeader& h = *s.objects.header;
    if (!is_cache(s, put.key.cache)) return Published::REMOVED;
    u32 e = find_locked(s, put.key);
    if (e != NONE && s.objects.entries[e].word.load_relaxed() & object::LEFT) {
        end_load_locked(s, e);  // its waiters were woken when it was left
        e = find_locked(s, put.key);
    }
    if (put.entry != NONE && (e != put.entry || !is_same_load(s, s.objects.entries[e], put)))
        return Published::SUPERSEDED;
    if (put.replaces && (e == NONE || !continue_value(s.objects.entries[e], put))) return Published::SUPERSEDED;
    if (put.state == OBJECT_LOADING && e != NONE) {
        if (Published there = what_is_there(s.objects.entries[e]); there != Published::YES) {
            put.entry = e;
            put.word = s.objects.entries[e].word.load_relaxed();
            return there;
        }
    }
    bool is_new = e == NONE;
    if (is_new && (e = take_entry(s)) == NONE) return Published::FULL;
    ObjectEntry& entry = s.objects.entries[e];
    u64 w = entry.word.load_relaxed();
    w = entry.word.swap_seq_cst(object::next(w, OBJECT_CHANGING));
    BP_POINT("put.closed");
    u64 old = entry.place.load_relaxed(), old_bytes = 0;
    if (!is_new) {
        old_bytes = record_bytes(entry.key_bytes.load_relaxed(), entry.value.load_relaxed());
        count_object(s, entry, false);
    }
    if (put.state == OBJECT_LIVE) h.clock.store_relaxed(h.clock.load_relaxed() + 1);
    if (is_new) entry.uses.store_relaxed(first_uses(s, put.key.hash));
    set_entry(s, e, put);
    if (put.to.large) s.objects.blocks[put.to.block].next.store_relaxed(e + 1);
    else record_at(s, put.to.block, put.to.offset)->entry = e + 1;
    add_record(s, put.to.block, put.record());
    BP_POINT("put.filled");
    put.entry = e;
    put.word = object::next(entry.word.load_relaxed(), put.state);
    entry.word.store_seq_cst(put.word);
    BP_POINT("put.live");
    if (is_new) {
        link_entry(s, e);
        h.live.store_relaxed(h.live.load_relaxed() + 1);
        if (h.live.load_relaxed() > h.buckets.load_relaxed()) split_bucket(s);
    } else {
        drop_record(s, object::block(old), old_bytes);
    }
    count_object(s, entry, true);
    if (w & object::WAITED) wake = e;
    return Published::YES;
}

// Makes the value visible, as a whole. If the result is not YES, the room of the record is given back, but not after
// GIVEN_UP in a thread that may not wait (Quick), which tries again.
inline Published publish_object(Segment& s, PutObject& put) {
    Published r = Published::GIVEN_UP;
    u32 wake = NONE;
    for (u32 tries = 0; tries < 100; tries++) {
        if (!lock_objects(s)) {
            r = Published::GIVEN_UP;
            break;
        }
        r = publish_locked(s, put, wake);
        unlock_objects(s);
        if (r != Published::FULL) break;
        int grown = grow_entries(s);
        if (grown == 0 || (grown != -EINTR && evict_object(s, NONE))) continue;
        if (grown == -EINTR || quick_only || is_given_up(s)) r = Published::GIVEN_UP;
        break;  // no memory or no room for another entry
    }
    if (wake != NONE) wake_waiters(s, wake);
    if (r == Published::GIVEN_UP && quick_only) return r;
    if (r == Published::YES) {
        if (!put.to.large) unpin_and_settle(s, put.to.block);
        Objects& o = s.objects;
        if (o.header->buckets.load_relaxed() >= o.heads_ready) grow_heads(s);
        put.to.block = NONE;
    } else {
        abandon_object(s, put);
    }
    return r;
}

// Stores a value: takes room, copies, publishes. FULL: the value was not kept, and `status` says why. If that is WAIT,
// this thread may not wait (Quick), and calls this function again when it may; `put` has the room that was taken.
inline Published store_object(Segment& s, PutObject& put, const ObjectPiece* pieces, u32 n, Status& status) {
    for (u32 tries = 0; put.to.block == NONE; tries++) {
        status = reserve_object(s, put);
        if (status != Status::OK) return Published::FULL;
        int r = fill_object(s, put, pieces, n);
        if (r == 0) break;
        abandon_object(s, put);
        status = quick_only ? Status::WAIT : is_given_up(s) ? Status::INTERRUPTED : Status::NO_SPACE;
        bool again = status == Status::NO_SPACE && is_out_of_memory(r) && tries < KERNEL_TRIES;
        if (!again || !make_kernel_room(s, os_pages(s, put.record()))) return Published::FULL;
    }
    BP_POINT("put.copied");
    Published r = publish_object(s, put);
    status = Status::OK;
    if (r != Published::GIVEN_UP) return r;
    status = quick_only ? Status::WAIT : Status::INTERRUPTED;
    return Published::FULL;
}

// Removes a key's object, or ends its load. OK: there was a value. ABSENT: there was none. INTERRUPTED: nothing has
// changed, because the lock could not be taken.
inline Status delete_object(Segment& s, const ObjectKey& key) {
    if (!lock_objects(s)) return Status::INTERRUPTED;
    u32 e = find_locked(s, key);
    bool live = e != NONE && has_value(s.objects.entries[e]);
    bool wake = e != NONE && remove_locked(s, e);
    unlock_objects(s);
    if (wake) wake_waiters(s, e);
    return live ? Status::OK : Status::ABSENT;
}

// Changes when a key's value expires. OK: there was a value. ABSENT: there was none. INTERRUPTED: nothing has changed,
// because the lock could not be taken.
inline Status set_expiry(Segment& s, const ObjectKey& key, u64 expires_ns) {
    if (!lock_objects(s)) return Status::INTERRUPTED;
    u32 e = find_locked(s, key);
    bool live = e != NONE && has_value(s.objects.entries[e]);
    if (live) s.objects.entries[e].expires_ns.store_relaxed(expires_ns);
    unlock_objects(s);
    return live ? Status::OK : Status::ABSENT;
}

// Ends a load of ours without the lock: it marks the entry as LEFT, and the next client that wants the key, or room,
// removes the entry. (While the entry has this word, the load is ours, because its end raises the version.)
inline void leave_load(Segment& s, u32 e, u64 word) {
    if (!has_entry(s, e) || s.objects.entries[e].owner.load_relaxed() != s.me) return;
    Atomic<u64>& at = s.objects.entries[e].word;
    u64 seen = at.load_seq_cst();
    while ((seen & ~object::WAITED) == word) {
        if (!at.cas_seq_cst(seen, seen | object::LEFT)) continue;
        BP_POINT("load.left");
        wake_waiters(s, e);
    }
}

// Ends a load of `owner` without a value. If the lock cannot be taken soon, a load of ours is marked as LEFT, and the
// load of another client remains for the next client that finds it.
inline void end_load(Segment& s, u32 e, u64 word, u32 owner) {
    if (!lock_objects_briefly(s)) {
        if (owner == s.me) leave_load(s, e, word);
        return;
    }
    bool still = has_entry(s, e) && (s.objects.entries[e].word.load_relaxed() & ~object::WAITED) == word &&
                 s.objects.entries[e].owner.load_relaxed() == owner;
    bool wake = still && end_load_locked(s, e);
    unlock_objects(s);
    if (wake) wake_waiters(s, e);
}

constexpr u32 CLEAR_BATCH = 512;

// Removes all objects that a cache has at the beginning of the call, and counts their values in `n`. INTERRUPTED: some
// remain.
inline Status clear_objects(Segment& s, u32 cache, u64& n) {
    n = 0;
    u32 high = s.objects.header->entries_high.load_relaxed();
    for (u32 e = 0; e < high && has_entry(s, e);) {
        if (!lock_objects(s)) return Status::INTERRUPTED;
        u32 wake[CLEAR_BATCH], waked = 0;
        for (u32 end = e + CLEAR_BATCH; e < end && e < high; e++) {
            ObjectEntry& entry = s.objects.entries[e];
            EntryKind state = object::state(entry.word.load_relaxed());
            if (entry.cache.load_relaxed() != cache || (state != OBJECT_LIVE && state != OBJECT_LOADING)) continue;
            n += has_value(entry);
            if (remove_locked(s, e)) wake[waked++] = e;
        }
        unlock_objects(s);
        for (u32 i = 0; i < waked; i++) wake_waiters(s, wake[i]);
        if (is_given_up(s)) return Status::INTERRUPTED;
    }
    return Status::OK;
}

}  // namespace bp
