// Finding an object, and waiting for a load of it: the loops of get and get_or_load. (It comes after reap.h, because a
// client that waits reaps a dead loader.)
#pragma once

#include "protocol/reap.h"

namespace bp {

// Looks until it is sure. FOUND: with our pin on the object's block. UNSURE: a signal's handler has raised, or there is
// no memory for our pins.
inline Look find_surely(Segment& s, const ObjectKey& key, FoundObject& found) {
    Look look = find_object(s, key, found);
    if (quick_only) return look;
    for (u32 tries = 0; look == Look::UNSURE && tries < 100; tries++) {
        if (ready_row(s) != 0 || !lock_objects(s)) return Look::UNSURE;
        u32 e = find_locked(s, key);
        look = Look::NOTHING;
        if (e != NONE) {
            ObjectEntry& entry = s.objects.entries[e];
            look = look_at(s, e, entry.word.load_relaxed(), key, found);
        }
        unlock_objects(s);
    }
    return look;
}

// A hit, for the policy: writes only if something changes.
inline void touch_object(Segment& s, u32 e) {
    ObjectEntry& entry = s.objects.entries[e];
    u32 now = s.objects.header->clock.load_relaxed();
    if (entry.used.load_relaxed() != now) entry.used.store_relaxed(now);
    u8 uses = entry.uses.load_relaxed();
    if (uses < OBJECT_USES) entry.uses.store_relaxed(u8(uses + 1));
}

inline CacheUses& uses_of_cache(Segment& s, u32 cache) { return s.objects.my_uses[cache % CACHES]; }

// Waits until the entry's word has changed, one slice at most; reaps a loader that has died.
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
    if (owner == 0 || owner > s.g.max_clients) {  // damaged: nobody loads it
        end_load(s, e, plain);
        return;
    }
    reap(s, owner);
    if (same() && s.clients[owner - 1].state.load_acquire() == CLIENT_FREE) end_load(s, e, plain);
}

enum class Begun { HIT, LOAD, FAILED, UNKEPT, LATE, BUSY, STALE, INTERRUPTED };

struct LoadRequest {
    ObjectKey key{};
    bool wait = true;      // BUSY: another client loads it, and we do not wait
    bool stale = false;    // a value that has expired will do, while another client loads a new one
    bool waited = false;   // in, out: whether a load of another client has been waited for
    FoundObject found{};   // HIT, FAILED: with a pin
    PutObject put{};       // LOAD: with `entry` and `word`, which name the load
};

// Makes the key's entry LOADING(me). WAIT: another client is loading it (put.entry, put.word). OK: it is ours.
// ABSENT: there is a value now.
inline Status claim_load(Segment& s, LoadRequest& want) {
    want.put = {};
    want.put.key = want.key;
    want.put.kind = KIND_LOADING;
    want.put.state = OBJECT_LOADING;
    Status r = reserve_object(s, want.put);
    if (r != Status::OK) return r;
    fill_object(s, want.put, nullptr, 0);
    switch (publish_object(s, want.put)) {
    case Published::YES: return Status::OK;
    case Published::OTHER_VALUE: return Status::ABSENT;
    case Published::OTHER_LOAD: return Status::WAIT;
    default: return Status::EXHAUSTED;
    }
}

// Whether the load of a new value in place of an expired one is ours: its entry names us. The old value stays until
// then.
inline bool claim_renewal(Segment& s, const FoundObject& found) {
    Atomic<u16>& owner = s.objects.entries[found.entry].owner;
    u16 seen = owner.load_seq_cst();
    if (seen && seems_alive(s, seen)) return false;
    return owner.cas_seq_cst(seen, u16(s.me));
}

// The value, or the load of it, which is ours then.
inline Begun begin_object(Segment& s, LoadRequest& want) {
    for (;;) {
        Look look = find_surely(s, want.key, want.found);
        FoundObject& found = want.found;
        u32 entry = NONE;
        u64 word = 0;
        if (look == Look::FOUND) {
            bool loading = object::state(found.word) == OBJECT_LOADING;
            bool failed = object::kind(found.value) == KIND_FAILED;
            if (!loading && failed && want.waited) return Begun::FAILED;
            if (!loading && !failed && !is_expired(found.expires_ns)) return Begun::HIT;
            if (!loading && !failed && want.stale) {
                if (!claim_renewal(s, found)) return Begun::STALE;
                want.put.entry = found.entry;
                want.put.word = found.word & ~object::WAITED;
                unpin_and_settle(s, found.block);
                return Begun::LOAD;
            }
            unpin_and_settle(s, found.block);
            if (loading) {
                entry = found.entry;
                word = found.word;
            }
        }
        if (look == Look::UNSURE) return Begun::INTERRUPTED;
        if (entry == NONE) {
            Status r = claim_load(s, want);
            if (r == Status::OK) return Begun::LOAD;
            if (r == Status::INTERRUPTED) return Begun::INTERRUPTED;
            if (r == Status::ABSENT) continue;
            if (r != Status::WAIT) return Begun::UNKEPT;
            entry = want.put.entry;
            word = want.put.word;
        }
        u32 owner = s.objects.entries[entry].owner.load_relaxed();
        if (!want.wait && (owner == s.me || seems_alive(s, owner))) return Begun::BUSY;
        want.waited = true;
        wait_object(s, entry, word);
        if (is_too_late()) return Begun::LATE;
        if (s.interrupted && s.interrupted(s)) return Begun::INTERRUPTED;
    }
}

// ---- caches ------------------------------------------------------------------------------

// The cache of a name, which is made if there is none. NONE: all are in use.
inline u32 open_cache(Segment& s, const char* name, bool make) {
    lock_objects(s, false);
    u32 free = NONE, found = NONE;
    for (u32 i = 0; i < CACHES; i++) {
        CacheSlot& cache = cache_of(s, i);
        bool used = cache.state.load_relaxed();
        if (!used && free == NONE) free = i;
        if (used && strncmp(cache.name, name, CACHE_NAME) == 0) found = i;
    }
    if (found == NONE && free != NONE && make) {
        CacheSlot& cache = cache_of(s, free);
        strncpy(cache.name, name, CACHE_NAME);
        cache.count.store_relaxed(0);
        cache.bytes.store_relaxed(0);
        cache.limit.store_relaxed(0);
        cache.reserve.store_relaxed(0);
        cache.ttl_ns.store_relaxed(0);
        cache.opened_ns.store_relaxed(prim::realtime_ns());
        BP_POINT("cache.named");
        cache.state.store_release(1);
        found = free;
    }
    unlock_objects(s);
    return found;
}

}  // namespace bp
