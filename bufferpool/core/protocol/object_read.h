// Finding an object, and waiting for a load of it: the loops of get and get_or_load. (It comes after reap.h, because a
// client that waits reaps a dead loader.)
#pragma once

#include "protocol/reap.h"

namespace bp {

// Searches for a key until the answer is certain. FOUND: we have pinned the object's block. UNSURE: a signal's handler
// has raised, or the call's time is over. If the kernel has no memory for our pins, the key counts as absent.
inline Look find_surely(Segment& s, const ObjectKey& key, FoundObject& found) {
    Look look = find_object(s, key, found);
    if (quick_only) return look;
    for (u32 tries = 0; look == Look::UNSURE && tries < 100; tries++) {
        if (int r = ready_row(s)) {
            if (!is_out_of_memory(r)) return Look::UNSURE;
            if (!strip_free_blocks(s, 16)) return Look::NOTHING;
            continue;
        }
        if (!lock_objects(s)) return Look::UNSURE;
        u32 e = find_locked(s, key);
        look = Look::NOTHING;
        if (e != NONE) {
            ObjectEntry& entry = s.objects.entries[e];
            look = look_at(s, e, entry.word.load_relaxed(), key, found, true);
        }
        unlock_objects(s);
    }
    return look;
}

// Records a use of a key for the advice, if its hash is in the sample.
inline void sample_use(Segment& s, const ObjectKey& key, ObjectUse use, u64 bytes) {
    ObjectsHeader& h = *s.objects.header;
    u32 shift = sample_shift(h.live.load_relaxed());
    if (shift && key.hash >> (64 - shift)) return;
    ObjectSample& to = s.objects.samples[h.sampled.add_relaxed(1) % OBJECT_SAMPLES];
    to.hash.store_relaxed(key.hash);
    to.what.store_relaxed(object_use(use, cache_slot(key.cache), bytes));
}

// Counts a hit for the policy and the advice. Writes to shared memory only if a count changes. If nothing was inserted
// since the last use of the key, the use is a hit in a cache of any size, and is not sampled.
inline void touch_object(Segment& s, u32 e, const ObjectKey& key) {
    ObjectEntry& entry = s.objects.entries[e];
    u32 now = s.objects.header->clock.load_relaxed();
    if (entry.used.load_relaxed() != now) {
        entry.used.store_relaxed(now);
        sample_use(s, key, USED_HIT, record_bytes(entry.key_bytes.load_relaxed(), entry.value.load_relaxed()));
    }
    u8 uses = entry.uses.load_relaxed();
    if (uses < OBJECT_USES) entry.uses.store_relaxed(u8(uses + 1));
}

inline CacheUses& uses_of_cache(Segment& s, u32 number) { return s.objects.my_uses[cache_slot(number)]; }

// Waits until the entry's word has changed, for one slice of time at most, and reaps a loader that has died.
inline void wait_object(Segment& s, u32 e, u64 w) {
    ObjectEntry& entry = s.objects.entries[e];
    u64 plain = w & ~object::WAITED;
    auto same = [&] { return (entry.word.load_seq_cst() & ~object::WAITED) == plain; };
    for (int spin = 0; spin < prim::SPINS; spin++) {
        if (!same()) return;
        prim::relax();
    }
    u64 seen = plain;
    if (!entry.word.cas_seq_cst(seen, plain | object::WAITED) && seen != (plain | object::WAITED)) return;
    u32 owner = entry.owner.load_relaxed();
    if (prim::futex_wait(&entry.word, u32(plain | object::WAITED), WAIT_SLICE_NS) != -ETIMEDOUT) return;
    if (owner == s.me || seems_alive(s, owner) || !same()) return;
    if (!s.has_slot(owner)) {  // the entry is damaged: no client loads it
        end_load(s, e, plain, owner);
        return;
    }
    reap(s, owner);
    if (same() && s.clients[owner - 1].state.load_acquire() == CLIENT_FREE) end_load(s, e, plain, owner);
}

// The result of begin_object(). HIT: there is a value. STALE: an expired one, while another client loads a new value.
// LOAD: this client loads the value. FAILED: the load for which it has waited has failed. UNKEPT: the value of that
// load could not be kept, or there is no room for a load: the caller computes the value for itself. BUSY: another
// client loads the value, and the call shall not wait. LATE: the call's time is over. INTERRUPTED: a signal handler has
// raised, or a lock could not be taken in the time of the call.
enum class Begun { HIT, LOAD, FAILED, UNKEPT, LATE, BUSY, STALE, INTERRUPTED };

struct LoadRequest {
    ObjectKey key{};
    bool wait = true;      // false: return BUSY if another client loads the value
    bool stale = false;    // return an expired value while another client loads a new one
    bool waited = false;   // in, out: whether the call has waited for a load of another client
    FoundObject found{};   // HIT, STALE, FAILED: with a pin
    PutObject put{};       // LOAD: with `entry` and `word`, which name the load
};

// Makes the key's entry LOADING(me). OK: the load is ours. WAIT: another client is loading the key (put.entry and
// put.word name its load). ABSENT: there is a value now.
inline Status claim_load(Segment& s, LoadRequest& want) {
    want.put = {};
    want.put.key = want.key;
    want.put.kind = KIND_LOADING;
    want.put.state = OBJECT_LOADING;
    want.put.expires_ns = prim::coarse_ns();
    Status r = reserve_object(s, want.put);
    if (r != Status::OK) return r;
    fill_object(s, want.put, nullptr, 0);
    switch (publish_object(s, want.put)) {
    case Published::YES: return Status::OK;
    case Published::OTHER_VALUE: return Status::ABSENT;
    case Published::OTHER_LOAD: return Status::WAIT;
    case Published::GIVEN_UP: return Status::INTERRUPTED;
    default: return Status::EXHAUSTED;
    }
}

// Begins the load of a new value that replaces an expired one, which is kept until the load ends. The owner of its
// entry is the client that loads. OK: the load is ours. WAIT: another client loads the value. In both cases put.entry
// and put.word name the load. ABSENT: the entry has changed. (set_expiry() does not change the word, so the expiry is
// read again.)
inline Status claim_renewal(Segment& s, LoadRequest& want) {
    ObjectEntry& entry = s.objects.entries[want.found.entry];
    if (!lock_objects(s)) return Status::INTERRUPTED;
    want.put.entry = want.found.entry;
    want.put.word = want.found.word & ~object::WAITED;
    bool same = (entry.word.load_relaxed() & ~object::WAITED) == want.put.word;
    same = same && is_expired(entry.expires_ns.load_relaxed());
    if (same && want.put.word & object::LEFT) {
        end_load_locked(s, want.put.entry);  // its waiters were woken when it was left
        same = false;
    }
    bool others = same && entry.owner.load_relaxed();
    if (same && !others) {
        entry.expires_ns.store_relaxed(prim::coarse_ns());  // when the load began; so the value is still expired
        entry.owner.store_seq_cst(u16(s.me));
        BP_POINT("renewal.claimed");
    }
    unlock_objects(s);
    return !same ? Status::ABSENT : others ? Status::WAIT : Status::OK;
}

// What begin_object() does next if it has found an entry of the key. WAITING: it waits for the load that put.entry and
// put.word name. AGAIN: it searches again. NEW: it begins a load. LOAD: it has begun one (claim_renewal). The others
// are results (Begun).
enum class Offer { HIT, FAILED, UNKEPT, STALE, LOAD, WAITING, AGAIN, NEW, INTERRUPTED };
inline Offer offer_of(Segment& s, LoadRequest& want) {
    FoundObject& found = want.found;
    u8 kind = object::kind(found.value);
    if (object::state(found.word) == OBJECT_LOADING && found.word & object::LEFT) return Offer::NEW;
    if (object::state(found.word) == OBJECT_LOADING) {
        want.put.entry = found.entry;
        want.put.word = found.word;
        return Offer::WAITING;
    }
    if (!is_value(kind)) return !want.waited ? Offer::NEW : kind == KIND_FAILED ? Offer::FAILED : Offer::UNKEPT;
    if (!is_expired(found.expires_ns)) return Offer::HIT;
    switch (claim_renewal(s, want)) {
    case Status::OK: return Offer::LOAD;
    case Status::WAIT: return want.stale ? Offer::STALE : Offer::WAITING;
    case Status::ABSENT: return Offer::AGAIN;
    default: return Offer::INTERRUPTED;
    }
}

// Finds the value of a key, or begins its load.
inline Begun begin_object(Segment& s, LoadRequest& want) {
    for (;;) {
        Look look = find_surely(s, want.key, want.found);
        if (look == Look::UNSURE) return Begun::INTERRUPTED;
        Offer offer = look == Look::FOUND ? offer_of(s, want) : Offer::NEW;
        if (offer == Offer::HIT) return Begun::HIT;
        if (offer == Offer::STALE) return Begun::STALE;
        if (offer == Offer::FAILED) return Begun::FAILED;
        if (look == Look::FOUND) unpin_and_settle(s, want.found.block);
        if (offer == Offer::LOAD) return Begun::LOAD;
        if (offer == Offer::UNKEPT) return Begun::UNKEPT;
        if (offer == Offer::INTERRUPTED) return Begun::INTERRUPTED;
        if (offer == Offer::NEW) {
            Status r = claim_load(s, want);
            if (r == Status::OK) return Begun::LOAD;
            if (r == Status::INTERRUPTED) return Begun::INTERRUPTED;
            if (r == Status::ABSENT) offer = Offer::AGAIN;
            else if (r != Status::WAIT) return Begun::UNKEPT;
        }
        if (offer == Offer::AGAIN) {
            if (is_given_up(s)) return Begun::INTERRUPTED;
            continue;
        }
        u32 entry = want.put.entry;
        u64 word = want.put.word;
        u32 owner = s.objects.entries[entry].owner.load_relaxed();
        if (!want.wait && (owner == s.me || seems_alive(s, owner))) return Begun::BUSY;
        want.waited = true;
        wait_object(s, entry, word);
        // A caller that shall not wait comes here only to reap a dead loader, whatever time it has given.
        bool same = ((s.objects.entries[entry].word.load_seq_cst() ^ word) & ~object::WAITED) == 0;
        if (!want.wait && same) return Begun::BUSY;
        if (want.wait && is_too_late()) return Begun::LATE;
        if (s.interrupted && s.interrupted(s)) return Begun::INTERRUPTED;
    }
}

// ---- caches ------------------------------------------------------------------------------

// The sum of the counters of all clients for a cache.
inline void sum_uses(Segment& s, u32 slot, u64 (&sums)[CACHE_USES]) {
    for (u64& sum : sums) sum = 0;
    for (u32 c = 1, slots = s.slots(); c <= slots; c++) {
        u64 w = s.objects.header->rows_ready[c].load_seq_cst();
        if (!is_doubled(w) || !w) continue;
        auto words = reinterpret_cast<Atomic<u64>*>(&s.object_uses(c)[slot]);
        for (u32 i = 0; i < CACHE_USES; i++) sums[i] += words[i].load_relaxed();
    }
}

// Removes the objects of the caches that are being removed, and frees their slots. If the client dies meanwhile, the
// next client that opens or removes a cache completes the removal. Returns false if the lock could not be taken.
inline bool finish_removals(Segment& s) {
    for (u32 i = 0; i < CACHES; i++) {
        CacheSlot& cache = cache_of(s, i);
        if (cache.state.load_acquire() != CACHE_REMOVING) continue;
        u32 number = cache.number.load_relaxed();
        u64 n;
        if (clear_objects(s, number, n) != Status::OK) return false;
        BP_POINT("cache.cleared");
        if (!lock_objects(s)) return false;
        bool still = cache.state.load_relaxed() == CACHE_REMOVING && cache.number.load_relaxed() == number;
        if (still && !cache.count.load_relaxed()) cache.state.store_release(CACHE_FREE);
        unlock_objects(s);
    }
    return true;
}

inline u32 find_cache(Segment& s, const char* name) {
    for (u32 i = 0; i < CACHES; i++) {
        CacheSlot& cache = cache_of(s, i);
        bool live = cache.state.load_acquire() == CACHE_LIVE;
        if (live && strncmp(cache.name, name, CACHE_NAME) == 0) return cache.number.load_relaxed();
    }
    return NONE;
}

inline void make_cache(Segment& s, u32 slot, const char* name) {
    CacheSlot& cache = cache_of(s, slot);
    strncpy(cache.name, name, CACHE_NAME);
    for (Atomic<u64>* word : {&cache.bytes, &cache.limit, &cache.reserve, &cache.ttl_ns, &cache.evictions})
        word->store_relaxed(0);
    cache.count.store_relaxed(0);
    cache.jitter.store_relaxed(0);
    u64 sums[CACHE_USES];
    sum_uses(s, slot, sums);
    for (u32 i = 0; i < CACHE_USES; i++) cache.before[i].store_relaxed(sums[i]);
    cache.opened_ns.store_relaxed(prim::realtime_ns());
    u32 number = cache.number.load_relaxed();
    cache.number.store_release(number ? number + CACHES : slot + CACHES);  // the slot remains number % CACHES
    BP_POINT("cache.named");
    cache.state.store_release(CACHE_LIVE);
}

// Finds the number of the cache with a name; makes the cache if there is none. EXHAUSTED: all slots are in use.
// INTERRUPTED: the lock could not be taken.
inline Status open_cache(Segment& s, const char* name, u32& found) {
    if (!finish_removals(s) || !lock_objects(s)) return Status::INTERRUPTED;
    found = find_cache(s, name);
    for (u32 i = 0; i < CACHES && found == NONE; i++) {
        if (cache_of(s, i).state.load_relaxed() != CACHE_FREE) continue;
        make_cache(s, i, name);
        found = cache_of(s, i).number.load_relaxed();
    }
    unlock_objects(s);
    return found == NONE ? Status::EXHAUSTED : Status::OK;
}

// Removes a cache, its values and its name. ABSENT: there is no such cache. INTERRUPTED: the lock could not be taken,
// and the cache remains. If the lock cannot be taken again once the name is gone, the next client that opens or removes
// a cache removes the values.
inline Status remove_cache(Segment& s, const char* name) {
    if (!lock_objects(s)) return Status::INTERRUPTED;
    u32 number = find_cache(s, name);
    if (number != NONE) cache_of(s, number).state.store_seq_cst(CACHE_REMOVING);
    BP_POINT("cache.removing");
    unlock_objects(s);
    finish_removals(s);
    return number == NONE ? Status::ABSENT : Status::OK;
}

}  // namespace bp
