// Eviction of objects, and room for new ones. In this order (make_object_room):
//
//   borrow   more of the budget from the pages, up to the limit (loans.h)
//   strip    gives memory of free blocks of other classes back to the kernel (object_blocks.h)
//   clean    empties a log page that is mostly dead: its live records move to the page that is being filled
//   evict    the object of a sample that is worth least (policy/worth.h); its frequency is remembered
#pragma once

#include "policy/worth.h"
#include "protocol/loans.h"
#include "protocol/object_log.h"

namespace bp {

inline u64 random_number(Segment& s) {
    u64 x = s.objects.random.load_relaxed();
    if (!x) x = prim::now_ns() * 0x9e3779b97f4a7c15 + s.me;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    s.objects.random.store_relaxed(x);
    return x;
}

inline bool is_expired(u64 expires_ns) { return expires_ns && prim::coarse_ns() >= expires_ns; }

constexpr u32 OBJECT_LOOKS = 12;   // how many objects a search compares; then as many large objects
constexpr u8 OBJECT_USES = 0xff;   // the highest count of uses

inline Atomic<u64>& memory_of(Segment& s, u64 hash) { return s.objects.heads[bucket_locked(s, hash)].evicted; }

// The worth of an object (policy/worth.h): the time that its hits are expected to save, for each byte.
inline double worth_of(Segment& s, const ObjectEntry& entry, u64 bytes) {
    const ObjectsHeader& h = *s.objects.header;
    u32 cost = entry.cost.load_relaxed();
    float price = cost ? worth::measured_cost(bytes, cost * 1e-6) : worth::default_cost(bytes);
    u32 idle = h.clock.load_relaxed() - entry.used.load_relaxed();
    return worth::worth(entry.uses.load_relaxed() + 1, idle, h.live.load_relaxed(), bytes, price);
}

struct Victim {
    u32 entry = NONE;
    u64 word = 0;
    double worth = 0;
};

// Makes an entry the victim so far, if its object can be evicted, and is worth less than the present victim. An entry
// that is LEFT (layout/objects.h), or has expired, is worth nothing.
inline void consider(Segment& s, u32 e, u32 cache, Victim& best) {
    ObjectEntry& entry = s.objects.entries[e];
    u64 w = entry.word.load_acquire();
    bool live = object::state(w) == OBJECT_LIVE, left = w & object::LEFT;
    if ((!live && !left) || (cache != NONE && entry.cache.load_relaxed() != cache)) return;
    if (entry.owner.load_relaxed() && !left) return;  // a newer value is being loaded, for which clients wait here
    u64 bytes = record_bytes(entry.key_bytes.load_relaxed(), entry.value.load_relaxed());
    u32 b = object::block(entry.place.load_relaxed());
    if (!has_block(s, b)) return;
    bool large = block::state(s.objects.blocks[b].word.load_relaxed()) == BLOCK_LARGE;
    if (large && any_object_pin(s, b)) return;
    double worth = left || is_expired(entry.expires_ns.load_relaxed()) ? 0 : worth_of(s, entry, bytes);
    CacheSlot& slot = cache_of(s, entry.cache.load_relaxed());
    bool reserved = cache == NONE && slot.bytes.load_relaxed() <= slot.reserve.load_relaxed();
    if (reserved) return;
    if (best.entry == NONE || worth < best.worth) best = {e, w, worth};
}

// Samples large objects separately: few objects have most of the bytes, and a sample of all objects hardly ever
// contains one of them.
inline void consider_large(Segment& s, u32 cache, Victim& best) {
    Objects& o = s.objects;
    u32 n = o.header->blocks_high.load_relaxed();
    if (!n || !has_block(s, n - 1)) return;
    u32 looks = 0, most = n < 4 * OBJECT_LOOKS ? n : 4 * OBJECT_LOOKS, first = u32(random_number(s) % n);
    for (u32 i = 0; i < most && looks < OBJECT_LOOKS; i++) {
        ObjectBlock& k = o.blocks[most == n ? (first + i) % n : u32(random_number(s) % n)];
        if (block::state(k.word.load_acquire()) != BLOCK_LARGE) continue;
        u32 e = k.next.load_relaxed();
        if (!e || !has_entry(s, e - 1)) continue;
        looks++;
        consider(s, e - 1, cache, best);
    }
}

// Returns the object of a sample that is worth least: of all caches, or of one.
inline Victim find_victim(Segment& s, u32 cache) {
    Victim best;
    u32 n = s.objects.header->entries_high.load_relaxed();
    if (!n || !has_entry(s, n - 1)) return best;
    u32 looks = 0, most = n < 8 * OBJECT_LOOKS ? n : 8 * OBJECT_LOOKS, first = u32(random_number(s) % n);
    for (u32 i = 0; i < most && looks < OBJECT_LOOKS; i++) {
        u32 e = most == n ? (first + i) % n : u32(random_number(s) % n);
        looks += object::state(s.objects.entries[e].word.load_relaxed()) == OBJECT_LIVE;
        consider(s, e, cache, best);
    }
    consider_large(s, cache, best);
    for (u32 i = 0; i < n && best.entry == NONE; i++) consider(s, (first + i) % n, cache, best);
    return best;
}

inline void count_eviction(Segment& s, const ObjectEntry& entry) {  // under the lock
    Atomic<u64>& n = cache_of(s, entry.cache.load_relaxed()).evictions;
    n.store_relaxed(n.load_relaxed() + 1);
}

// Evicts one object. Returns the bytes of its record, or 0 if no object can be evicted, or the lock could not be taken.
// It takes no pin, so that a client whose pins have no memory yet can make room for them.
inline u64 evict_object(Segment& s, u32 cache) {
    for (u32 tries = 0; tries < 16; tries++) {
        Victim victim = find_victim(s, cache);
        if (victim.entry == NONE) return 0;
        if (!lock_objects(s)) return 0;
        ObjectEntry& entry = s.objects.entries[victim.entry];
        u64 bytes = 0;
        // The word is the same if a client has begun to load a newer value since (claim_renewal).
        bool loads = entry.owner.load_relaxed() && !(victim.word & object::LEFT);
        if (entry.word.load_seq_cst() == victim.word && !loads) {
            bytes = record_bytes(entry.key_bytes.load_relaxed(), entry.value.load_relaxed());
            count_eviction(s, entry);
            u64 hash = entry.hash.load_relaxed();
            u32 now = s.objects.header->clock.load_relaxed();
            memory_of(s, hash).store_relaxed(worth::remembered(hash, entry.uses.load_relaxed() + 1, now));
            remove_locked(s, victim.entry);
        }
        unlock_objects(s);
        if (bytes) return bytes;
    }
    return 0;
}

// ---- log pages that are mostly dead -------------------------------------------------------

// Pins and returns the log page of a sample that has the fewest live bytes. NONE: there is no log page to clean.
inline u32 choose_log(Segment& s) {
    Objects& o = s.objects;
    ObjectsHeader& h = *o.header;
    u32 n = h.blocks_high.load_relaxed(), best = NONE, least = ~0u;
    if (!n || !has_block(s, n - 1) || ready_row(s) != 0) return NONE;
    u32 first = u32(random_number(s) % n), most = n < 256 ? n : 256;
    for (u32 i = 0; i < most; i++) {
        u32 b = most == n ? (first + i) % n : u32(random_number(s) % n);
        ObjectBlock& k = o.blocks[b];
        bool is_log = block::state(k.word.load_acquire()) == BLOCK_LOG && h.open.load_relaxed() != b + 1;
        if (is_log && k.live.load_relaxed() < least && !any_object_pin(s, b)) {
            least = k.live.load_relaxed();
            best = b;
        }
    }
    if (best == NONE || u64(least) * 16 > log_bytes(s) - log_bytes(s) / 16 || !lock_objects(s)) return NONE;
    bool still = block::state(o.blocks[best].word.load_relaxed()) == BLOCK_LOG && h.open.load_relaxed() != best + 1 &&
                 best < o.row_ready && is_whole_block(s, best);
    if (still) o.my_pins[best].add_seq_cst(1);
    unlock_objects(s);
    return still ? best : NONE;
}

// Moves a live record to the page that is being filled. Returns false if there is no room, or the lock could not be
// taken.
inline bool move_record(Segment& s, u32 e, u32 b, u64 offset, u64 bytes) {
    BlockRequest want{};
    Placed to;
    if (reserve_in_log(s, bytes, want, to) != Status::OK) return false;
    RecordHead* record = record_at(s, to.block, to.offset);
    memcpy(static_cast<void*>(record + 1), record_at(s, b, offset) + 1, bytes - sizeof(RecordHead));
    BP_POINT("clean.copied");
    if (!lock_objects(s)) {  // the copy becomes dead space
        unpin_and_settle(s, to.block);
        return false;
    }
    ObjectEntry& entry = s.objects.entries[e];
    EntryKind state = object::state(entry.word.load_relaxed());
    if ((state == OBJECT_LIVE || state == OBJECT_LOADING) && entry.place.load_relaxed() == object::place(b, offset)) {
        record->entry = e + 1;
        add_record(s, to.block, bytes);
        entry.place.store_seq_cst(object::place(to.block, to.offset));
        BP_POINT("clean.moved");
        drop_record(s, b, bytes);
    }
    unlock_objects(s);
    unpin_and_settle(s, to.block);
    return true;
}

// Empties a log page: moves its live records, and evicts those for which there is no room. Returns false if there is no
// log page to empty, or if none of its records could be moved or evicted.
inline bool clean_log(Segment& s) {
    Objects& o = s.objects;
    u32 b = choose_log(s);
    if (b == NONE) return false;
    u64 filled = std::min<u64>(o.blocks[b].filled.load_acquire(), log_bytes(s));
    u32 before = o.blocks[b].live.load_relaxed();
    for (u64 at = 0; at + sizeof(RecordHead) <= filled;) {
        RecordHead head = *record_at(s, b, at);
        u64 bytes = u64(head.units) * 16;
        if (bytes == 0 || bytes > filled - at) break;
        u32 e = head.entry - 1;
        bool live = head.entry && has_entry(s, e) && o.entries[e].place.load_acquire() == object::place(b, at);
        bool moved = live && move_record(s, e, b, at, bytes);
        if (is_given_up(s)) break;
        if (live && !moved && lock_objects(s)) {
            ObjectEntry& entry = o.entries[e];
            bool still = entry.place.load_relaxed() == object::place(b, at) &&
                         object::state(entry.word.load_relaxed()) == OBJECT_LIVE;
            if (still) {
                count_eviction(s, entry);
                remove_locked(s, e);
            }
            unlock_objects(s);
        }
        at += bytes;
    }
    BP_POINT("clean.emptied");
    bool fewer = o.blocks[b].live.load_relaxed() < before;
    unpin_and_settle(s, b);
    return fewer;
}

// ---- room ---------------------------------------------------------------------------------

// True if so many bytes of the log pages are dead that cleaning a log page frees more memory than it takes.
inline bool is_log_dirty(Segment& s) {
    ObjectsHeader& h = *s.objects.header;
    u64 all = h.log_blocks.load_relaxed() * log_bytes(s), live = h.log_live.load_relaxed() * 16;
    u64 dead = all > live ? all - live : 0;
    return dead > 2 * log_bytes(s) && dead > all / 8;
}

// Makes room for the OS pages that a request lacks. Returns false if nothing can be evicted, or a lock could not be
// taken. If the budget of the objects has grown since the request was refused, because another client has borrowed
// memory, nothing is evicted: the request may fit now.
inline bool make_object_room(Segment& s, const BlockRequest& want) {
    if (borrow(s, want.missing) || object_budget(s) > want.budget) return true;
    if (strip_free_blocks(s, want.missing)) return true;
    if (is_log_dirty(s) && clean_log(s)) return true;
    u64 got = 0;
    for (u32 i = 0; i < 256 && got < want.missing * s.g.os_page; i++) {
        u64 bytes = evict_object(s, NONE);
        if (!bytes) break;
        got += bytes;
        if (is_log_dirty(s)) break;
    }
    return got != 0 || clean_log(s);
}

constexpr u32 KERNEL_TRIES = 8;

inline bool is_out_of_memory(int error) { return error == -ENOSPC || error == -ENOMEM; }

// Evicts pages, and returns how many OS pages of memory were given back to the kernel.
inline u64 evict_pages(Segment& s, u64 os_pages) {
    Reclaimed done;
    shrink(s, std::max(frames_for(s, os_pages), u64(s.g.extent_frames)), PRESSURE, true, done);
    return (done.frames << s.g.page_shift) / s.g.os_page;
}

// Do objects use less memory than pages?
inline bool have_less_than_pages(Segment& s) {
    u64 pages = u64(s.header->resident.load_relaxed()) << s.g.page_shift;
    return s.objects.header->used.load_relaxed() * s.g.os_page < pages;
}

// Called if the kernel gives no memory although the budget has room, because the tmpfs or the cgroup is full. It gives
// the memory of free blocks back to the kernel. Then it evicts pages or objects, whichever use more memory, until
// `pages` OS pages were given back. Returns false if nothing could be given back.
inline bool make_kernel_room(Segment& s, u64 pages) {
    u64 got = strip_free_blocks(s, pages), dead = 0, most = pages * s.g.os_page + 4 * log_bytes(s);
    bool pages_first = have_less_than_pages(s);
    if (got < pages && pages_first) got += evict_pages(s, pages - got);
    while (got < pages && dead < most) {
        if (!is_log_dirty(s) || !clean_log(s)) {
            u64 bytes = evict_object(s, NONE);
            if (!bytes && !clean_log(s)) break;
            dead += bytes;
        }
        got += strip_free_blocks(s, pages - got);
    }
    return got != 0 || (!pages_first && evict_pages(s, pages) != 0);
}

// Frees the log page that is being filled, if it has no live record; returns whether it has freed one.
inline bool close_empty_log(Segment& s) {
    if (!lock_objects(s)) return false;
    ObjectsHeader& h = *s.objects.header;
    u32 n = h.open.load_relaxed();
    bool is_empty = n && has_block(s, n - 1) && !s.objects.blocks[n - 1].live.load_relaxed();
    if (is_empty) {
        h.open.store_relaxed(0);
        doom(s, n - 1);
    }
    unlock_objects(s);
    return is_empty;
}

inline void count_reclaimed_pages(Segment& s, u64 os_pages, Reason reason) {
    if (os_pages) count_reclaimed(s, os_pages * s.g.os_page, reason);
}

// Gives the memory of free blocks back to the kernel, at least `pages` OS pages if free blocks have so many, and gives
// the unused part of the loan back to the pages. Returns the number of OS pages that the kernel has got.
inline u64 release_objects(Segment& s, u64 pages, Reason reason) {
    close_empty_log(s);
    u64 got = strip_free_blocks(s, pages);
    count_reclaimed_pages(s, got, reason);
    give_back_loan(s, 0);
    return got;
}

// Evicts objects until they use at most `pages` OS pages, and gives the rest of the loan back to the pages. Returns
// false if they still use more.
inline bool fit_objects(Segment& s, u64 pages, Reason reason, u64& given) {
    auto over = [&] {
        u64 used = s.objects.header->used.load_relaxed();
        return used > pages ? used - pages : 0;
    };
    for (u32 tries = 0; over() && tries < 1'000'000; tries++) {
        u64 got = strip_free_blocks(s, over());
        count_reclaimed_pages(s, got, reason);
        given += got;
        if (got) continue;
        if (is_log_dirty(s) && clean_log(s)) continue;
        if (!evict_object(s, NONE) && !clean_log(s) && !close_empty_log(s)) break;
        if (is_given_up(s)) break;
    }
    give_back_loan(s, u32(frames_for(s, pages)));
    return !over();
}

}  // namespace bp
